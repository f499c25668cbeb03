"""diffusers pipelines as backbones: their own numbers by the host's loop."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub.constants
import pytest
import torch
from pipelines import BUILDERS, ContrastGuide, tiny, unet, vae
from torch import Tensor, nn

from ppap_host.backbones.backbone import Backbone, ClassifierFree
from ppap_host.files.errors import CheckpointError, OptionError
from ppap_host.pipelines.autoencoder import Autoencoder
from ppap_host.pipelines.backbone import PipelineBackbone
from ppap_host.pipelines.schedules import ALPHA_FLOOR, schedule_of
from ppap_host.plugins.registry import registry
from ppap_host.recipes.gradients import Normalised
from ppap_host.recipes.places import CleanPoint
from ppap_host.recipes.recipe import Recipe
from ppap_host.recipes.strengths import PosteriorSpread
from ppap_host.recipes.views import Predicted
from ppap_host.sampling.evaluator import Guidance
from ppap_host.sampling.loop import sample
from ppap_host.sampling.solvers import DDIM
from ppap_host.sampling.streams import ImageNoise

CPU = torch.device("cpu")
STEPS = 6
PROMPT = "a red cube in the snow"


def ddim(**settings: Any) -> Any:
    return diffusers.DDIMScheduler(
        **{"clip_sample": False, "set_alpha_to_one": True, "steps_offset": 1} | settings
    )


def made(name: str, scheduler: Any = None) -> PipelineBackbone:
    return PipelineBackbone(tiny(name, scheduler))


def by_name(checkpoint: Path | str | None) -> Backbone:
    return registry().make(
        "backbone", "diffusers", Backbone, checkpoint=checkpoint and str(checkpoint)
    )  # type: ignore[type-abstract]


# The pipeline's own numbers

# Schedulers whose steps are DDIM's in other words, so that the host's DDIM must make the very
# same trajectory. Together they cover every prediction type and every scale of states.
TRAJECTORIES: dict[str, tuple[str, Callable[[], Any]]] = {
    "ddpm-epsilon": ("ddpm", lambda: ddim(steps_offset=0)),
    "ddpm-sample": ("ddpm", lambda: ddim(steps_offset=0, prediction_type="sample")),
    "sd-epsilon": ("sd", ddim),
    "sd-v": ("sd", lambda: ddim(prediction_type="v_prediction", beta_schedule="scaled_linear")),
    "sd-zero-snr": (
        "sd",
        lambda: ddim(
            prediction_type="v_prediction", rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
        ),
    ),
    "sd-sample": ("sd", lambda: ddim(prediction_type="sample")),
    "sd-euler": ("sd", lambda: diffusers.EulerDiscreteScheduler(steps_offset=1)),
    "sd-euler-trailing": (
        "sd", lambda: diffusers.EulerDiscreteScheduler(steps_offset=1, timestep_spacing="trailing")
    ),
    "sd-euler-karras-v": (
        "sd",
        lambda: diffusers.EulerDiscreteScheduler(
            use_karras_sigmas=True, prediction_type="v_prediction", steps_offset=1
        ),
    ),
    "sd-dpm": (
        "sd", lambda: diffusers.DPMSolverMultistepScheduler(solver_order=1, steps_offset=1)
    ),
    "sdxl-euler": ("sdxl", lambda: diffusers.EulerDiscreteScheduler(timestep_spacing="leading")),
    "sdxl-edm": ("sdxl", lambda: diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=20.0)),
    "sdxl-edm-v": (
        "sdxl",
        lambda: diffusers.EDMEulerScheduler(
            sigma_min=0.01, sigma_max=20.0, sigma_data=1.0, prediction_type="v_prediction"
        ),
    ),
    "if-dpm": ("if", lambda: diffusers.DPMSolverMultistepScheduler(solver_order=1)),
    "if-dpm-learned": (
        "if",
        lambda: diffusers.DPMSolverMultistepScheduler(
            solver_order=1, variance_type="learned_range"
        ),
    ),
    "pixart-dpm": ("pixart", lambda: diffusers.DPMSolverMultistepScheduler(solver_order=1)),
    "sd3-flow": ("sd3", lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)),
    "sd3-dynamic": (
        "sd3",
        lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    ),
}  # fmt: skip


def by_the_pipeline(pipe: Any, name: str, cfg: float) -> tuple[Tensor, Tensor]:
    """The noise it starts from at unit size, and the state it ends with."""
    size = 8
    channels = 3 if name in ("ddpm", "if") else 4
    noise = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    common = {"num_inference_steps": STEPS, "generator": generator}
    if name == "ddpm":
        pipe = diffusers.DDIMPipeline(pipe.unet, pipe.scheduler)
        pipe.set_progress_bar_config(disable=True)
        images = pipe(batch_size=2, output_type="np", **common).images
        return noise, torch.from_numpy(images).permute(0, 3, 1, 2)
    if name == "if":
        images = pipe(
            PROMPT, num_images_per_prompt=2, guidance_scale=cfg, output_type="pt", **common,
            clean_caption=False,
        ).images  # fmt: skip
        return noise, images
    extra = {"clean_caption": False, "use_resolution_binning": False} if name == "pixart" else {}
    latents = pipe(
        PROMPT, num_images_per_prompt=2, guidance_scale=cfg, output_type="latent", **common,
        height=16, width=16, **extra,
    ).images  # fmt: skip
    return noise, latents


@pytest.mark.parametrize("case", TRAJECTORIES)
def test_the_hosts_ddim_walks_the_pipelines_own_trajectory(case: str) -> None:
    name, scheduler = TRAJECTORIES[case]
    pipe, cfg = tiny(name, scheduler()), 3.0
    noise, theirs = by_the_pipeline(pipe, name, cfg)
    backbone = PipelineBackbone(pipe)
    backbone.clip = None
    walk = backbone.walk(STEPS)
    # Schedulers disagree on the size of the first state; it is taken from the scheduler.
    first = walk.levels[0]
    scale = float(pipe.scheduler.init_noise_sigma) if hasattr(
        pipe.scheduler, "init_noise_sigma"
    ) else 1.0  # fmt: skip
    start = noise * (scale / backbone.family.schedule.own_scale(first))
    prompt = PROMPT if backbone.family.reads_text else ""
    denoise = ClassifierFree(
        backbone, backbone.encode_prompts([prompt]), backbone.encode_prompts([""]), cfg
    )
    assert len(walk) == STEPS
    with torch.no_grad():
        ours = sample(backbone, denoise, walk, DDIM(), lambda: noise, start=start)
    if name == "ddpm":
        ours = (ours / 2 + 0.5).clamp(0, 1)
    # At pure noise the host's floor under alpha takes part.
    tolerance = 1e-2 if first.alpha <= ALPHA_FLOOR else 1e-4
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()
    assert theirs.std() > 0.05


KNOWN_SCHEDULERS = [
    "DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
    "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "LCMScheduler", "LMSDiscreteScheduler",
    "PNDMScheduler", "SASolverScheduler", "TCDScheduler", "UniPCMultistepScheduler",
    "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("sd", {"time_cond_proj_dim": 8}, "the scale of guidance"),
        ("sd", {"num_class_embeds": 4}, "a class"),
        ("sd", {"channels": 9, "out": 4}, "9 channels"),
        ("sd", {"addition_embed_type": "text_time", "addition_time_embed_dim": 4,
                "projection_class_embeddings_input_dim": 32}, "sizes or pictures"),
        ("sd", {"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 8}, "IP-Adapter"),
        ("sdxl", {"time_cond_proj_dim": 8, "addition_embed_type": "text_time",
                  "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 32},
         "the scale of guidance"),
    ],
)  # fmt: skip
def test_what_a_network_is_also_shown_is_left_to_its_pipeline(
    name: str, settings: dict[str, Any], words: str
) -> None:
    """As of networks distilled for LCM; the pipeline's own steps show it, see test_own_steps.py."""
    pipe = tiny(name)
    pipe.register_modules(unet=unet(8 if name == "sd" else 16, **settings))
    with pytest.raises(OptionError, match=f"also shown .*{words}.* Leave out `sampler`"):
        PipelineBackbone(pipe).encode_prompts(["a dog"])


@pytest.mark.filterwarnings("ignore:__array")  # diffusers' own dealings between numpy and torch
@pytest.mark.parametrize(
    ("name", "karras"),
    [(name, False) for name in KNOWN_SCHEDULERS]
    + [
        (name, True)
        for name in KNOWN_SCHEDULERS
        if "use_karras_sigmas" in inspect.signature(getattr(diffusers, name)).parameters
        # It adds noise for the rounded time, not for the sigma that its steps use.
        and name != "SASolverScheduler"
    ],
)
def test_levels_are_where_the_scheduler_itself_puts_noise(name: str, karras: bool) -> None:
    kind = getattr(diffusers, name)
    settings = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    scheduler = kind(**settings, **({"use_karras_sigmas": True} if karras else {}))
    scheduler.set_timesteps(8)
    schedule = schedule_of(scheduler)
    walk = schedule.walk(8)
    assert all(a.log_snr < b.log_snr for a, b in pairwise(walk.levels))
    x0, eps = torch.eye(2).view(2, 1, 1, 1, 2)  # alpha and sigma by themselves
    add = getattr(scheduler, "add_noise", None) or scheduler.scale_noise
    visited = schedule.visited(scheduler)[:-1]
    for t, level in zip(scheduler.timesteps, visited, strict=True):
        if name == "KDPM2DiscreteScheduler" and float(t) % 1:
            continue  # between two levels, where it adds no noise itself
        scheduler._step_index = None
        args = (x0, t[None], eps) if add.__name__ == "scale_noise" else (x0, eps, t[None])
        theirs = add(*args) / schedule.own_scale(level)
        ours = level.alpha * x0 + level.sigma * eps
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3, msg=str(level))


def test_levels_of_the_training_are_cleanest_first() -> None:
    for scheduler in (
        diffusers.DDIMScheduler(rescale_betas_zero_snr=True),
        diffusers.EDMEulerScheduler(),
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    ):
        levels = schedule_of(scheduler).levels()
        assert len(levels) == 1000
        assert all(a.log_snr >= b.log_snr for a, b in pairwise(levels))
        assert min(level.alpha for level in levels) >= ALPHA_FLOOR


def test_a_shifted_flow_has_the_schedulers_own_levels() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    levels = schedule_of(scheduler).levels()
    expected = scheduler.sigmas.flip(0).tolist()
    assert [x.sigma for x in levels[:-1]] == pytest.approx(expected[:-1], abs=1e-6)
    assert [x.time for x in levels] == pytest.approx(scheduler.timesteps.flip(0).tolist(), 1e-5)


def test_pure_noise_has_a_finite_reading() -> None:
    scheduler = ddim(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    assert float(scheduler.alphas_cumprod[-1]) == 0
    for name, one in (("sd", scheduler), ("sd3", None)):
        backbone = made(name, one)
        level = backbone.walk(4).levels[0]
        assert level.alpha == ALPHA_FLOOR
        x = torch.randn(2, *backbone.state_shape)
        eps = backbone.predict(x, level, backbone.encode_prompts(["a dog"] * 2)).eps
        x0 = (x - level.sigma * eps) / level.alpha
        assert x0.isfinite().all()
        assert x0.abs().max() < 100


def test_spacings_of_discrete_steps_are_the_hosts() -> None:
    backbone = made("sd")
    times = [level.time for level in backbone.walk("ddim25").levels[:-1]]
    assert times == list(range(960, -1, -40))
    with pytest.raises(OptionError, match="no number of steps"):
        made("sd3").walk("ddim25")
    for steps in (0, -3, 10_000):
        with pytest.raises(OptionError, match="steps"):
            backbone.walk(steps)


def test_unknown_predictions_and_schedulers_are_refused() -> None:
    with pytest.raises(CheckpointError, match="'speed', which is not known"):
        schedule_of(ddim(prediction_type="speed"))
    with pytest.raises(CheckpointError, match="ScoreSdeVeScheduler takes its steps by step_pred"):
        schedule_of(diffusers.ScoreSdeVeScheduler())


# Conditions, decoding, gradients


def rows(prompts: list[str], backbone: PipelineBackbone) -> Any:
    return backbone.encode_prompts(prompts)


@pytest.mark.parametrize("name", [n for n in BUILDERS if n != "ddpm"])
def test_prompts_are_batch_first_and_matter(name: str) -> None:
    backbone = made(name)
    condition = backbone.encode_prompts(["a dog", ""])
    assert all(len(value) == 2 for value in condition.values())
    x, level = (
        torch.randn(1, *backbone.state_shape).expand(2, -1, -1, -1),
        backbone.walk(8).levels[4],
    )
    eps = backbone.predict(x, level, condition).eps
    assert (eps[0] - eps[1]).abs().max() > 1e-5
    alone = backbone.predict(x[1:], level, {}).eps
    torch.testing.assert_close(alone, eps[1:], rtol=1e-4, atol=1e-5)


def test_the_unconditional_branch_of_sdxl_is_zero() -> None:
    condition = made("sdxl").encode_prompts(["a dog", ""])
    for key in ("text", "pooled"):
        assert condition[key][0].any()
        assert not condition[key][1].any()
    assert condition["sizes"].tolist() == [[16, 16, 0, 0, 16, 16]] * 2


def test_a_model_without_text_refuses_prompts() -> None:
    with pytest.raises(OptionError, match="reads no prompts"):
        made("ddpm").encode_prompts(["a dog"])


def test_the_default_cfg_is_the_pipelines() -> None:
    defaults = {name: made(name).default_cfg for name in BUILDERS}
    assert defaults == {
        "ddpm": 1.0, "sd": 7.5, "sdxl": 5.0, "if": 7.0, "pixart": 4.5, "sd3": 7.0
    }  # fmt: skip


def test_a_learned_variance_is_used_where_the_scheduler_says_so() -> None:
    x = torch.randn(1, 3, 8, 8)
    for backbone, learned in (
        (made("if"), True),
        (made("if", diffusers.DDPMScheduler(variance_type="fixed_large")), False),
    ):
        v = backbone.predict(x, backbone.walk(8).levels[4], {}).v
        assert (v is not None) == learned
    assert made("pixart").predict(torch.randn(1, 4, 8, 8), made("sd").levels()[9], {}).v is None


def test_pixel_models_clip_as_their_scheduler_does() -> None:
    assert made("ddpm").clip == (-1.0, 1.0)
    assert made("ddpm", ddim(clip_sample=True, clip_sample_range=2.0)).clip == (-2.0, 2.0)
    assert made("ddpm", ddim()).clip is None
    assert made("sd").clip is None
    large = diffusers.DDPMScheduler(variance_type="fixed_large")
    assert made("ddpm", large).fixed_variance == "large"
    assert made("ddpm").fixed_variance == "small"


@pytest.mark.parametrize("name", ["sd", "sdxl", "pixart", "sd3"])
def test_decoding_is_the_pipelines(name: str) -> None:
    pipe = tiny(name)
    extra = {"clean_caption": False, "use_resolution_binning": False} if name == "pixart" else {}

    def run(output: str) -> Tensor:
        out: Tensor = pipe(
            PROMPT, num_inference_steps=3, height=16, width=16, output_type=output,
            generator=torch.Generator().manual_seed(5), **extra,
        ).images  # fmt: skip
        return out

    latents, images = run("latent"), run("pt")
    backbone = PipelineBackbone(pipe)
    with torch.no_grad():
        ours = (backbone.decode(latents) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(ours, images, rtol=1e-4, atol=1e-4)
    assert backbone.image_size == (16, 16)


@pytest.mark.parametrize("name", BUILDERS)
def test_gradients_flow_through_network_and_decoder(name: str) -> None:
    backbone = made(name)
    x = torch.randn(2, *backbone.state_shape, requires_grad=True)
    level = backbone.walk(8).levels[4]
    eps = backbone.predict(x, level, rows([""] * 2, backbone)).eps
    image = backbone.decode((x - level.sigma * eps) / level.alpha)
    assert image.shape == (2, 3, *backbone.image_size)
    (gradient,) = torch.autograd.grad((image * torch.randn_like(image)).sum(), x)
    assert gradient.isfinite().all()
    assert gradient.flatten(1).any(dim=1).all()
    assert not any(p.requires_grad for p in backbone.family.net.parameters())


@pytest.mark.parametrize("name", BUILDERS)
def test_a_guide_steers(name: str) -> None:
    backbone, guide = made(name), ContrastGuide()
    prompt = "a dog" if backbone.family.reads_text else ""
    denoise = ClassifierFree(
        backbone, backbone.encode_prompts([prompt]), backbone.encode_prompts([""]), 2.0
    )
    recipe = Recipe(
        name="toy",
        view=Predicted(),
        place=CleanPoint(),
        strength=PosteriorSpread(),
        gradient=(Normalised(),),
    )
    target = torch.tensor([40.0])

    def losses(scale: float) -> Tensor:
        state = sample(
            backbone,
            denoise,
            backbone.walk(6),
            DDIM(),
            ImageNoise(0, range(2), backbone.state_shape),
            [Guidance(guide, target, recipe, scale)],
        )
        return guide.loss(guide.see(backbone.decode(state)), target)

    assert (losses(8.0) < losses(0.0) - 0.1).all()


# Files


@pytest.mark.parametrize("name", BUILDERS)
def test_a_saved_pipeline_is_the_same_backbone(name: str, tmp_path: Path) -> None:
    pipe = tiny(name)
    pipe.save_pretrained(tmp_path / "pipe")
    before, after = PipelineBackbone(pipe), by_name(tmp_path / "pipe")
    after.to(CPU, torch.float32)
    assert after.state_shape == before.state_shape
    assert after.walk(5) == before.walk(5)
    x, level = torch.randn(1, *before.state_shape), before.walk(5).levels[2]
    prompt = "a dog" if before.family.reads_text else ""
    for backbone in (before, after):
        eps = backbone.predict(x, level, backbone.encode_prompts([prompt])).eps
        if backbone is before:
            expected = eps, backbone.decode(x)
        else:
            torch.testing.assert_close(eps, expected[0])
            torch.testing.assert_close(backbone.decode(x), expected[1])
    kinds = {path.suffix for path in after.files()}
    assert kinds == {".json", ".safetensors"}
    assert after.files()[0].name == "model_index.json"


def test_loading_draws_no_progress_bar(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tiny("sd").save_pretrained(tmp_path)
    capfd.readouterr()
    by_name(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert diffusers.utils.logging.is_progress_bar_enabled()


def test_half_precision_keeps_the_autoencoder_whole() -> None:
    backbone = made("sd")
    weight = backbone.family.pipe.vae.decoder.conv_in.weight.clone()
    backbone.to(CPU, torch.float16)
    assert backbone.family.net.dtype == torch.float16
    assert torch.equal(backbone.family.pipe.vae.decoder.conv_in.weight, weight)
    backbone.to(CPU, torch.bfloat16)
    x = torch.randn(1, 4, 8, 8)
    assert backbone.predict(x, backbone.walk(5).levels[2], {}).eps.dtype == torch.float32
    assert backbone.decode(x).dtype == torch.float32


def test_pickles_are_not_read(tmp_path: Path) -> None:
    tiny("sd").save_pretrained(tmp_path, safe_serialization=False)
    assert list(tmp_path.glob("unet/*.bin"))
    with pytest.raises(CheckpointError, match="pickles"):
        by_name(tmp_path)


def test_the_safety_checker_is_not_loaded(tmp_path: Path) -> None:
    tiny("sd").save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    index["requires_safety_checker"] = True
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert by_name(tmp_path).name == "diffusers"


@pytest.mark.parametrize("kind", ["TomorrowsPipeline", "DDIMScheduler", None, "os"])
def test_a_class_that_is_no_pipeline_is_refused(kind: Any, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": kind}))
    with pytest.raises(CheckpointError, match="no such pipeline") as caught:
        by_name(tmp_path)
    assert str(kind) in str(caught.value)


def test_what_is_no_pipeline_in_memory_is_refused_too() -> None:
    with pytest.raises(CheckpointError, match="DiTPipeline is no pipeline"):
        PipelineBackbone(type("DiTPipeline", (), {})())


def test_the_hosts_samplers_refuse_pipelines_that_they_do_not_know() -> None:
    with pytest.raises(OptionError, match=r"do not know FluxPipeline.*takes its own steps"):
        _ = PipelineBackbone(tiny("flux")).family


@pytest.mark.parametrize(
    ("checkpoint", "words"),
    [(None, "without weights"), ("./nothing", "no model folder"), ("a/b/c", "no model folder")],
)
def test_what_is_no_pipeline_is_named(checkpoint: str | None, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        by_name(checkpoint)


def test_a_name_that_cannot_be_reached_is_a_checkpoint_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="'nobody/nothing' gives no pipeline"):
        by_name("nobody/nothing")
    with pytest.raises(CheckpointError, match="gives no pipeline"):
        by_name(tmp_path)


def test_damaged_weights_are_a_checkpoint_error(tmp_path: Path) -> None:
    tiny("ddpm").save_pretrained(tmp_path)
    (weights,) = tmp_path.glob("unet/*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be loaded") as caught:
        by_name(tmp_path)
    assert "\n" not in str(caught.value)


# The autoencoder


def kept_bytes(autoencoder: Autoencoder, z: Tensor) -> int:
    """What a decoding keeps for its gradient, weights not counted."""
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in autoencoder.network.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        image = autoencoder.decode(z)
        total = sum(kept.values())
        del image
    return total


def decoded(autoencoder: Autoencoder, z: Tensor) -> tuple[Tensor, Tensor]:
    z = z.clone().requires_grad_()
    image = autoencoder.decode(z)
    weights = torch.linspace(-1, 1, image.numel()).view_as(image)
    (gradient,) = torch.autograd.grad((image * weights).sum(), z)
    return image.detach(), gradient


def same_vae() -> Any:
    torch.manual_seed(0)
    return vae()


def test_checkpointing_changes_memory_and_nothing_else() -> None:
    z = torch.randn(1, 4, 32, 32)
    plain, thrifty = (Autoencoder(same_vae(), checkpointing=on) for on in (False, True))
    for a, b in zip(decoded(plain, z), decoded(thrifty, z), strict=True):
        torch.testing.assert_close(a, b)
    z.requires_grad_()
    assert kept_bytes(thrifty, z) < kept_bytes(plain, z) / 3


def test_tiles_are_differentiable_and_close_to_the_whole() -> None:
    z = torch.randn(1, 4, 24, 24, generator=torch.Generator().manual_seed(0))
    whole, tiled = Autoencoder(same_vae()), Autoencoder(same_vae(), tiling=True)
    (image, gradient), (in_tiles, of_tiles) = decoded(whole, z), decoded(tiled, z)
    assert image.shape == in_tiles.shape
    assert not torch.equal(image, in_tiles)
    assert of_tiles.isfinite().all()
    assert torch.cosine_similarity(gradient.flatten(), of_tiles.flatten(), dim=0) > 0.5


def test_latents_have_their_scale_and_shift() -> None:
    network = same_vae()
    z = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        expected = network.decode(z / 0.3 + 0.2).sample
        ours = Autoencoder(network, scaling=0.3, shift=0.2).decode(z)
    assert torch.equal(ours, expected)


def test_an_autoencoder_is_read_when_it_is_needed(tmp_path: Path) -> None:
    later = Autoencoder(str(tmp_path / "vae"))
    with pytest.raises(CheckpointError, match="no model folder"):
        _ = later.factor
    same_vae().save_pretrained(tmp_path / "vae")
    assert later.factor == 2
    assert not any(p.requires_grad for p in later.network.parameters())
    names = [path.name for path in later.files()]
    assert names == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert later.to(CPU, torch.float16).network.dtype == torch.float32
    assert math.isfinite(later.decode(torch.zeros(1, 4, 4, 4)).sum())


def test_a_pickled_autoencoder_is_refused(tmp_path: Path) -> None:
    same_vae().save_pretrained(tmp_path / "vae", safe_serialization=False)
    with pytest.raises(CheckpointError, match="is a pickle, which is never read"):
        Autoencoder(str(tmp_path / "vae")).decode(torch.zeros(1, 4, 4, 4))


def test_every_family_is_tried_here() -> None:
    from ppap_host.pipelines.families import FAMILIES

    served = {type(made(name).family) for name in BUILDERS}
    assert served == set(FAMILIES)
    assert all(isinstance(made(name).family.net, nn.Module) for name in ("sd", "sd3"))
