"""Pipelines of diffusers that run themselves: what they make, what they take, what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import ContrastGuide, filled, tiny, tiny_decoder, unet
from torch import Tensor, nn
from zoo import HALF, ROOM, built

import ppap_host as ppap
from ppap_host.files.errors import OptionError, PpapError, RecordError, SamplingError
from ppap_host.pipelines.running import as_films
from ppap_host.sampling import room

SIZE: dict[str, Any] = {"height": 16, "width": 16}
STEPS: dict[str, Any] = {"steps": 4, "seed": 5}


def steers(scale: float = 8.0, **settings: Any) -> Any:
    return ppap.guidance(ContrastGuide(), target="40.0", scale=scale, **settings)


def by_diffusers(pipe: Any, *args: Any, seed: int = 5, **call: Any) -> Image.Image:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    out = pipe(*args, num_inference_steps=4, generator=generator, **call)
    return out.images[0]


def same(a: Image.Image, b: Image.Image) -> bool:
    return bool(np.array_equal(np.asarray(a), np.asarray(b)))


def test_image_k_is_what_a_script_makes_with_seed_plus_k() -> None:
    pipe = tiny("sd")
    made = ppap.sample(
        pipe, prompt="a dog", negative_prompt="snow", cfg=3.0, num=3, **STEPS, **SIZE
    )
    for k, image in enumerate(made.images):
        call = {"negative_prompt": "snow", "guidance_scale": 3.0, **SIZE}
        assert same(image, by_diffusers(pipe, "a dog", seed=5 + k, **call))
    together = ppap.sample(
        pipe, prompt="a dog", negative_prompt="snow", cfg=3.0, num=3, batch=3, **STEPS, **SIZE
    )
    assert (together.tensor - made.tensor).abs().max() <= 2 / 255 + 1e-6
    assert together.record["config"]["sampler"] == "pipeline"


SCHEDULERS = [
    "PNDMScheduler", "LMSDiscreteScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler",
    "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:__array")
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_makes_what_it_makes_in_diffusers(name: str) -> None:
    settings = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    pipe = tiny("sd", getattr(diffusers, name)(steps_offset=1, **settings))
    made = ppap.sample(pipe, prompt="a dog", num=1, cfg=3.0, **STEPS, **SIZE)
    assert same(made.images[0], by_diffusers(pipe, "a dog", guidance_scale=3.0, **SIZE))


def test_a_schedulers_last_step_and_clipping_are_its_own() -> None:
    pipe = tiny("sd", diffusers.DDIMScheduler(
        steps_offset=1, clip_sample=False, set_alpha_to_one=False
    ))  # fmt: skip
    rescaled = {"guidance_rescale": 0.7}
    made = ppap.sample(pipe, prompt="a dog", num=1, cfg=3.0, pipeline=rescaled, **STEPS, **SIZE)
    call = {"guidance_scale": 3.0, **rescaled, **SIZE}
    assert same(made.images[0], by_diffusers(pipe, "a dog", **call))
    pixels = tiny("ddpm", diffusers.DDPMScheduler(clip_sample=True, clip_sample_range=0.5))
    assert same(ppap.sample(pixels, num=1, **STEPS).images[0], by_diffusers(pixels))


def test_pictures_are_started_from_and_filled_in(tmp_path: Path) -> None:
    room, half = tmp_path / "room.png", tmp_path / "half.png"
    ROOM.save(room)
    HALF.save(half)
    kinds = {
        "sd": ({"strength": 0.8}, diffusers.AutoPipelineForImage2Image, {"strength": 0.8}),
        "inpainting": (
            {"mask": str(half), "strength": 1.0}, None, {"mask_image": HALF, "strength": 1.0},
        ),
        "controlnet": ({}, None, {}),
    }  # fmt: skip
    for name, (options, auto, call) in kinds.items():
        pipe = tiny(name)
        made = ppap.sample(
            pipe, steers(), prompt="a dog", image=str(room), num=1, cfg=3.0, unguided=True, **STEPS,
            **options,
        )  # fmt: skip
        other = pipe if auto is None else auto.from_pipe(tiny(name))
        other.set_progress_bar_config(disable=True)
        plain = by_diffusers(other, "a dog", image=ROOM, guidance_scale=3.0, **call)
        assert same(made._shown.plain[0], plain), name
        row = made.record["images"][0]
        assert row["measures"]["contrast"]["error"] < row["unguided"]["contrast"]["error"] - 1e-3
    filled = ppap.sample(
        tiny("sd"), prompt="a dog", image=str(room), mask=str(half), num=1, **STEPS
    )
    assert {row["input"] for row in filled.record["targets"]} == {"image", "mask"}


def test_pictures_may_be_in_memory_and_lists_are_recorded(tmp_path: Path) -> None:
    paths = {name: tmp_path / f"{name}.png" for name in ("image", "mask")}
    ROOM.save(paths["image"])
    HALF.save(paths["mask"])
    pipe = tiny("sd", diffusers.DDPMScheduler(steps_offset=1, clip_sample=False))
    options: dict[str, Any] = {"prompt": "a dog", "num": 1, "pipeline": {"timesteps": [700, 300]}}
    by_path = ppap.sample(pipe, **paths, **options)
    made = ppap.sample(pipe, image=ROOM, mask=HALF, out=tmp_path / "run", **options)
    assert same(made.images[0], by_path.images[0])
    assert made.record["config"]["pipeline"] == {"timesteps": [700, 300]}
    assert made.record["objects"][-2:] == ["the image", "the mask"]
    again = ppap.rerun(tmp_path / "run", backbone=pipe)
    assert same(again.images[0], made.images[0])
    options = {"prompt": "a dog", "num": 1, **STEPS, **SIZE}
    unsaid = ppap.sample(pipe, pipeline={"latents": torch.zeros(1, 4, 8, 8)}, **options)
    with pytest.raises(RecordError, match=r"'latents' in the record was an object in memory"):
        ppap.rerun(unsaid, backbone=pipe)


def test_a_users_pipeline_stays_as_it_is() -> None:
    pipe = tiny("sd")
    pipe.unet.train()
    before = (
        dict(vars(pipe)),
        dict(vars(pipe.scheduler)),
        [p.requires_grad for p in pipe.vae.parameters()],
    )
    kinds = type(pipe), type(pipe.scheduler)
    run = ppap.trajectory(pipe, steers(), prompt="a dog", num=1, cfg=3.0, **STEPS, **SIZE)
    for event in run:
        assert event.x.shape == (1, 4, 8, 8)
        assert event.image().shape == (1, 3, 16, 16)
        assert set(event.loss) == {"contrast"}
        if event.index == 1:
            break
    state = torch.get_rng_state()
    run.close()
    assert torch.equal(torch.get_rng_state(), state)
    assert run.record["status"] == "interrupted"
    assert len(run.result()) == 0
    assert (type(pipe), type(pipe.scheduler)) == kinds
    assert {k: id(v) for k, v in vars(pipe).items()} == {k: id(v) for k, v in before[0].items()}
    assert vars(pipe.scheduler).keys() == before[1].keys()
    assert [p.requires_grad for p in pipe.vae.parameters()] == before[2]
    assert pipe.unet.training


def test_a_trajectory_has_the_steps_of_the_host_and_ends_with_the_image() -> None:
    pipe = tiny("sd", diffusers.HeunDiscreteScheduler(steps_offset=1))
    torch.manual_seed(11)
    state = torch.get_rng_state()
    run = ppap.trajectory(pipe, steers(), prompt="a dog", num=1, cfg=3.0, **STEPS, **SIZE)
    events = list(run)
    assert torch.equal(torch.get_rng_state(), state)
    assert [e.index for e in events] == [0, 1, 2, 3]
    assert {e.steps for e in events} == {4}
    levels = [e.level.log_snr for e in events]
    assert levels == sorted(levels)
    last = events[-1].decode(events[-1].x_next)
    assert (last.clamp(-1, 1) - run.result().tensor).abs().max() < 2 / 255


class Fails(ContrastGuide):
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        raise ZeroDivisionError


def test_what_goes_wrong_in_a_guide_comes_out() -> None:
    with pytest.raises(ZeroDivisionError):
        ppap.sample(
            tiny("sd"), ppap.guidance(Fails(), target="1"), prompt="a dog", num=1, **STEPS, **SIZE
        )


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("sd", {"strength": 0.5}, "takes no strength"),
        ("sd", {"guidance_scale": 3.0}, "one scale of guidance"),
        ("sd", {"pipeline": {"negativ_prompt": "x"}}, "Did you mean 'negative_prompt'"),
        ("sd", {"pipeline": {"generator": 1}}, "Give `seed`"),
        ("sd", {"steps": "ddim25"}, "no number of steps"),
        ("sd", {"class_": 3}, "knows no classes"),
        ("sd", {"churn": 1.0}, "sampler heun"),
        ("sd", {"pipeline": {"prompt_embeds": torch.ones(2, 5, 8)}}, "cannot be called so"),
        ("sd", {"sampler": "ddim", "strength": 0.3}, "take their own steps"),
        ("flux", {"sampler": "ddim"}, "do not know FluxPipeline"),
        ("ddpm", {"prompt": "a dog"}, "takes no prompt"),
        ("ddpm", {"prompt": "", "height": 8}, "images have one size"),
        ("sd", {"recipe": "freedom"}, "--sampler ddim"),
        ("sd", {"pipeline": {"timesteps": [900, 100]}}, "takes as many steps as .* are 2"),
        ("ddpm", {"prompt": "", "pipeline": {"batch_size": 2}}, "Give `num`"),
        ("ddpm", {"prompt": "", "cfg": 2.0}, "has no classifier-free guidance"),
    ],
)  # fmt: skip
def test_what_a_pipeline_does_not_take_is_refused_by_name(
    name: str, options: dict[str, Any], words: str
) -> None:
    given = {"prompt": "a dog", "num": 1, **STEPS} | options
    with pytest.raises(PpapError, match=words):
        ppap.sample(tiny(name), steers(), **given)


def test_a_mask_without_a_picture_and_other_backbones_are_told_apart() -> None:
    with pytest.raises(OptionError, match="belongs to pipelines of diffusers"):
        ppap.sample("shapes", height=64, num=1)
    with pytest.raises(OptionError, match="no sampler of its own"):
        ppap.sample("shapes", sampler="pipeline", num=1)
    with pytest.raises(OptionError, match="there is no `image`"):
        ppap.sample("shapes", mask="half.png", num=1)


# What a checkpoint's configuration says besides


def told_the_scale(name: str, **more: Any) -> Any:
    """As networks that were distilled for LCM: the scale of guidance is an input of theirs."""
    pipe = tiny(name)
    pipe.register_modules(
        unet=filled(unet(8 if name == "sd" else 16, time_cond_proj_dim=8, **more))
    )
    return pipe


def test_a_record_says_how_many_images_a_gradient_was_taken_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"prompt": "a dog", "num": 3, **STEPS, **SIZE}
    monkeypatch.setattr(room, "free", lambda device: 1)
    for batch, size in ((None, 1), (3, 1)):
        made = ppap.sample(tiny("sd"), steers(), batch=batch, **options)
        assert made.record["images_per_gradient"] == {"contrast": size}
    monkeypatch.setattr(room, "free", lambda device: 2**40)
    made = ppap.sample(tiny("sd"), steers(), batch=3, **options)
    assert made.record["images_per_gradient"] == {"contrast": 3}


SIZES = {
    "addition_embed_type": "text_time", "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 32,
}  # fmt: skip


def refiner(scored: bool) -> Any:
    """The second part of Stable Diffusion XL, told what a picture is worth or its sizes."""
    parts = tiny("sdxl").components | {"text_encoder": None, "tokenizer": None}
    numbers = 8 + 4 * (5 if scored else 6)
    network = unet(8, **SIZES | {"projection_class_embeddings_input_dim": numbers})
    return diffusers.StableDiffusionXLImg2ImgPipeline(
        **parts | {"unet": filled(network)}, requires_aesthetics_score=scored, add_watermarker=False
    )


def untold() -> Any:
    """Flux without the embedding of its scale, as its schnell."""
    pipe = tiny("flux")
    config = dict(pipe.transformer.config) | {"guidance_embeds": False}
    pipe.register_modules(transformer=filled(diffusers.FluxTransformer2DModel(**config)))
    return pipe


def small_decoder() -> Any:
    pipe = tiny("sd")
    pipe.register_modules(vae=filled(tiny_decoder()))
    return pipe


START: dict[str, Any] = {"image": ROOM, "strength": 0.75}
SAID: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "sd told the scale": (lambda: told_the_scale("sd"), SIZE),
    "sdxl told the scale": (lambda: told_the_scale("sdxl", **SIZES), SIZE),
    "refiner": (lambda: refiner(False), START),
    "refiner with scores": (lambda: refiner(True), {**START, "aesthetic_score": 3.0}),
    "half of the way": (lambda: tiny("sdxl"), {**SIZE, "denoising_end": 0.5}),
    "flux untold": (untold, {**SIZE, "max_sequence_length": 8}),
    "small decoder": (small_decoder, SIZE),
}


@pytest.mark.parametrize("case", SAID)
def test_what_a_configuration_says_is_done_as_in_diffusers(case: str) -> None:
    make, call = SAID[case]
    pipe = make()
    pipe.set_progress_bar_config(disable=True)
    own = {k: v for k, v in call.items() if k in ("height", "width", "strength")}
    rest = {k: v for k, v in call.items() if k not in own}
    made = ppap.sample(pipe, prompt="a dog", num=1, pipeline=rest, **STEPS, **own)
    assert same(made.images[0], by_diffusers(pipe, "a dog", **call))
    guided = ppap.sample(pipe, steers(), prompt="a dog", num=1, pipeline=rest, **STEPS, **own)
    assert not same(made.images[0], guided.images[0])


# Scales of guidance


def cfg_of(pipe: Any, **options: Any) -> tuple[float, list[str]]:
    made = ppap.sample(pipe, **{"prompt": "a dog", "num": 1, "seed": 5, **SIZE} | options)
    return made.record["used"]["cfg"], made.record["remarks"]


def test_distilled_models_are_guided_only_where_it_is_asked_for() -> None:
    turbo = diffusers.EulerAncestralDiscreteScheduler(timestep_spacing="trailing")
    scale, remarks = cfg_of(tiny("sdxl", turbo))
    assert scale == 0.0
    assert any("looks distilled" in remark for remark in remarks)
    assert cfg_of(tiny("sdxl", turbo), cfg=2.0)[0] == 2.0
    assert cfg_of(tiny("sdxl"), steps=2)[0] == 5.0
    named = tiny("sd3")
    named.register_to_config(_name_or_path="maker/some-model-turbo")
    assert cfg_of(named)[0] == 0.0


@pytest.mark.parametrize("sampler", [None, "ddim"])
def test_scales_of_zero_and_one_follow_the_prompt(sampler: str | None) -> None:
    """As in diffusers, where both mean the plain conditional model."""
    images = [
        ppap.sample(
            tiny("sd"), prompt=prompt, cfg=cfg, sampler=sampler, num=1, steps=2,
            **({} if sampler else SIZE),
        ).images[0]
        for prompt, cfg in (("a dog", 0.0), ("a dog", 1.0), ("red cube", 0.0))
    ]  # fmt: skip
    assert same(images[0], images[1])
    assert not same(images[0], images[2])


def test_where_there_are_two_scales_cfg_is_the_true_one() -> None:
    pipe = tiny("flux")
    options = {"pipeline": {"max_sequence_length": 8}, "num": 1, **STEPS, **SIZE}
    made = ppap.sample(pipe, prompt="a dog", cfg=3.0, guidance_scale=2.0, **options)
    call = {"max_sequence_length": 8, "guidance_scale": 2.0, **SIZE}
    expected = by_diffusers(pipe, "a dog", true_cfg_scale=3.0, negative_prompt="", **call)
    assert same(made.images[0], expected)
    plain = ppap.sample(pipe, prompt="a dog", guidance_scale=2.0, **options)
    assert same(plain.images[0], by_diffusers(pipe, "a dog", **call))


# Videos


def test_videos_are_written_with_a_sheet_of_frames(tmp_path: Path) -> None:
    made = ppap.sample(
        tiny("wan"), steers(), prompt="a dog", cfg=3.0, height=16, width=16, num=1, unguided=True,
        steps=4, pipeline={"num_frames": 5, "max_sequence_length": 8}, out=tmp_path / "run",
    )  # fmt: skip
    (row,) = made.record["images"]
    with Image.open(tmp_path / "run" / row["video"]) as film:
        assert film.format == "WEBP"
        assert film.n_frames == 5
        first = np.asarray(film.convert("RGB"))
    assert made.tensor.shape == (1, 3, 5, 16, 16)
    frame = ((made.tensor[0, :, 0] + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert np.array_equal(frame.astype("uint8"), first)
    assert row["measures"]["contrast"]["error"] < row["unguided"]["contrast"]["error"]


@pytest.mark.filterwarnings("ignore")
def test_frames_in_the_batch_are_a_video_of_the_host() -> None:
    pipe, call = built(diffusers.TextToVideoSDPipeline)
    options = {"prompt": "a dog", "cfg": 3.0, "num": 2, "batch": 2, **STEPS, **SIZE}
    made = ppap.sample(pipe, steers(), pipeline={"num_frames": 5}, unguided=True, **options)
    assert made.tensor.shape == (2, 3, 5, 16, 16)
    for row in made.record["images"]:
        assert row["measures"]["contrast"]["error"] < row["unguided"]["contrast"]["error"]
    with ppap.steer(pipe, steers(), frames=[0, 4]) as report:
        pipe(**call)
    assert len(report.losses["contrast"][0]) == 1  # one video


def test_classes_are_a_list_of_the_batch() -> None:
    pipe, _ = built(diffusers.DiTPipeline)
    made = ppap.sample(pipe, class_=1, cfg=3.0, num=2, batch=2, **STEPS)
    call = {"class_labels": [1, 1], "guidance_scale": 3.0, "num_inference_steps": 4}
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    assert all(map(same, made.images, pipe(**call, generator=generators).images))
    alone = ppap.sample(pipe, cfg=3.0, num=1, pipeline={"class_labels": [1]}, **STEPS)
    assert (alone.tensor - made.tensor[:1]).abs().max() <= 2 / 255 + 1e-6
    with pytest.raises(SamplingError, match="for 2 pictures made 1"):
        ppap.sample(pipe, num=2, batch=2, pipeline={"class_labels": [1]}, **STEPS)


def test_videos_come_several_at_a_time() -> None:
    made = ppap.sample(
        tiny("wan"), prompt="a dog", cfg=1.0, num=2, batch=2, steps=2,
        pipeline={"num_frames": 5, "max_sequence_length": 8}, **SIZE,
    )  # fmt: skip
    assert made.tensor.shape == (2, 3, 5, 16, 16)


def test_steps_that_are_listed_are_counted() -> None:
    pipe, times = (
        tiny("sd", diffusers.DDPMScheduler(steps_offset=1, clip_sample=False)),
        [900, 500, 100],
    )
    options: dict[str, Any] = {"prompt": "a dog", "cfg": 3.0, "num": 1, **SIZE}
    made = ppap.sample(pipe, seed=5, pipeline={"timesteps": times}, **options)
    call = {"timesteps": times, "guidance_scale": 3.0, **SIZE}
    assert same(made.images[0], by_diffusers(pipe, "a dog", **call))
    assert made.record["used"]["steps"] == 3


def test_films_of_all_that_pipelines_return() -> None:
    x = torch.rand(2, 3, 4, 4)
    expected = as_films(x)
    for other in (x.permute(0, 2, 3, 1).numpy(), list(x), torch.cat([x, x[:, :1]], dim=1)):
        assert all(torch.equal(a, b) for a, b in zip(as_films(other), expected, strict=True))
    film = torch.rand(1, 5, 3, 4, 4)
    assert as_films(film)[0].shape == (5, 3, 4, 4)


# Loading


@pytest.mark.filterwarnings("ignore:.*half-precision weights only")
def test_weights_are_read_in_their_own_number_format(tmp_path: Path) -> None:
    pipe = tiny("sd")
    made = copy.deepcopy(pipe)
    for part in made.components.values():
        if isinstance(part, nn.Module):
            part.to(torch.float16)
    made.save_pretrained(tmp_path, variant="fp16")
    backbone = ppap.load_backbone("diffusers", str(tmp_path), dtype="bfloat16")
    assert {p.dtype for p in backbone.pipe.unet.parameters()} == {torch.bfloat16}
    expected = pipe.unet.conv_in.weight.half().bfloat16()
    assert torch.equal(backbone.pipe.unet.conv_in.weight, expected)
    image = ppap.sample(backbone, steers(), prompt="a dog", num=1, **STEPS, **SIZE).images[0]
    half = made.to(torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    plain = ppap.sample(backbone, prompt="a dog", num=1, **STEPS, **SIZE).images[0]
    assert same(plain, by_diffusers(half, "a dog", **SIZE))
    assert not same(image, plain)


def test_patches_tiles_and_offloading_are_options_of_the_backbone(tmp_path: Path) -> None:
    tiny("sd").save_pretrained(tmp_path / "pipe")
    folder = str(tmp_path / "pipe")
    tiled = ppap.load_backbone("diffusers", folder, tiling="yes")
    assert tiled.pipe.vae.use_tiling
    for options, words in (
        ({"lora": "nothing.safetensors"}, "no safetensors file"),
        ({"ip_adapter": "face.bin"}, "no safetensors file"),
        ({"controlnet": folder}, "no control network"),
        ({"offload": "often"}, "Unknown offload"),
        ({"offload": "model"}, "on the CPU"),
    ):
        with pytest.raises(PpapError, match=words):
            ppap.load_backbone("diffusers", folder, **options)
    tiny("controlnet").controlnet.save_pretrained(tmp_path / "control")
    controlled = ppap.load_backbone("diffusers", folder, controlnet=str(tmp_path / "control"))
    assert type(controlled.pipe).__name__ == "StableDiffusionControlNetPipeline"
