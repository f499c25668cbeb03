"""Guidance of unmodified diffusers pipelines through callback_on_step_end."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from pipelines import ContrastGuide, tiny
from torch import Tensor

import ppap_host
from ppap_host.backbones.backbone import ClassifierFree
from ppap_host.files.errors import OptionError, PpapError, UnknownNameError
from ppap_host.pipelines.backbone import PipelineBackbone
from ppap_host.recipes.gradients import Normalised
from ppap_host.recipes.places import CleanPoint
from ppap_host.recipes.presets import ADAM_MPGD, ELUCD, NAIVE, X0
from ppap_host.recipes.recipe import Recipe
from ppap_host.recipes.strengths import PosteriorSpread
from ppap_host.recipes.views import Predicted
from ppap_host.sampling.evaluator import Guidance
from ppap_host.sampling.loop import sample
from ppap_host.sampling.solvers import DDIM

STEPS, CFG = 6, 3.0
TOY = Recipe(
    name="toy",
    view=Predicted(),
    place=CleanPoint(),
    strength=PosteriorSpread(),
    gradient=(Normalised(),),
)
SCHEDULERS = {
    "sd": lambda: diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
    "sd-euler": lambda: diffusers.EulerDiscreteScheduler(
        steps_offset=1, prediction_type="v_prediction"
    ),
    "sdxl": lambda: diffusers.EulerDiscreteScheduler(timestep_spacing="leading"),
    "sd3": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
}
OTHERS = {
    "pndm": lambda: diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1),
    "dpm": lambda: diffusers.DPMSolverMultistepScheduler(steps_offset=1),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(steps_offset=1),
    "ancestral": lambda: diffusers.EulerAncestralDiscreteScheduler(steps_offset=1),
    "ddpm": lambda: diffusers.DDPMScheduler(steps_offset=1, clip_sample=False),
    "lms": lambda: diffusers.LMSDiscreteScheduler(steps_offset=1),
}


def pipeline(name: str) -> Any:
    return tiny(name.split("-")[0], SCHEDULERS[name]())


def run(pipe: Any, callback: Any = None, output: str = "latent", **settings: Any) -> Tensor:
    torch.manual_seed(7)
    settings = {"height": 16, "width": 16, "num_inference_steps": STEPS} | settings
    images: Tensor = pipe(
        "a dog",
        guidance_scale=CFG,
        num_images_per_prompt=2,
        output_type=output,
        generator=torch.Generator().manual_seed(3),
        callback_on_step_end=callback,
        **settings,
    ).images
    return images


def loss(pipe: Any, latents: Tensor, target: str) -> Tensor:
    guide = ContrastGuide()
    with torch.no_grad():
        image = PipelineBackbone(pipe).decode(latents)
    return guide.loss(guide.see(image), torch.tensor([float(target)]))


def guided(pipe: Any, scale: float | None = 8.0, **settings: Any) -> Any:
    settings = {"recipes": [TOY]} | settings
    return ppap_host.diffusers_callback(
        pipe, guides=[ContrastGuide()], targets=["40"], scales=[scale], **settings
    )


@pytest.mark.parametrize("name", SCHEDULERS)
def test_scale_zero_changes_no_byte(name: str) -> None:
    pipe = pipeline(name)
    plain = run(pipe)
    assert torch.equal(run(pipe, guided(pipe, 0.0)), plain)
    assert torch.equal(run(pipe), plain)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_guides_loss_falls(name: str) -> None:
    pipe = pipeline(name)
    before = loss(pipe, run(pipe), "40")
    callback = guided(pipe)
    after = loss(pipe, run(pipe, callback), "40")
    assert (after < before - 1).all()
    assert callback.health.skipped == {}


@pytest.mark.parametrize(
    "recipe",
    [TOY, replace(X0, place=CleanPoint()), NAIVE, ELUCD, ADAM_MPGD],
    ids=lambda recipe: recipe.name,
)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_it_is_the_hosts_own_guidance(name: str, recipe: Recipe) -> None:
    """With a scheduler of first order, pipeline and host's loop make the same latents."""
    pipe = pipeline(name)
    if name == "sd":
        pipe.scheduler = diffusers.DDIMScheduler.from_config(
            pipe.scheduler.config, set_alpha_to_one=True
        )
    theirs = run(pipe, guided(pipe, 2.0, recipes=[recipe]))
    backbone, guide = PipelineBackbone(pipe), ContrastGuide()
    denoise = ClassifierFree(
        backbone, backbone.encode_prompts(["a dog"]), backbone.encode_prompts([""]), CFG
    )
    walk = backbone.walk(STEPS)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    size = float(getattr(pipe.scheduler, "init_noise_sigma", 1.0))
    ours = sample(
        backbone,
        denoise,
        walk,
        DDIM(),
        lambda: noise,
        [Guidance(guide, torch.tensor([40.0]), recipe, 2.0)],
        start=noise * (size / backbone.family.schedule.own_scale(walk.levels[0])),
    )
    # At pure noise the host's floor under alpha takes part.
    tolerance = 1e-2 if name == "sd3" else 1e-3
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()
    assert (theirs - run(pipe)).abs().max() > 10 * tolerance


@pytest.mark.parametrize("name", OTHERS)
def test_other_schedulers_are_guided_too(name: str) -> None:
    pipe = tiny("sd", OTHERS[name]())
    before = loss(pipe, run(pipe), "40")
    assert (loss(pipe, run(pipe, guided(pipe)), "40") < before - 1).all()


def test_images_come_out_as_ever() -> None:
    pipe = pipeline("sd")
    images = run(pipe, guided(pipe), output="pil")
    assert [image.size for image in images] == [(16, 16)] * 2  # type: ignore[attr-defined]


def test_a_callback_serves_again_and_at_another_size() -> None:
    pipe = pipeline("sd")
    callback = guided(pipe)
    first = run(pipe, callback)
    assert run(pipe, callback, height=24, width=16).shape == (2, 4, 12, 8)
    assert torch.equal(run(pipe, callback), first)
    assert torch.equal(run(pipe, guided(pipe)), first)


def test_an_interval_is_kept() -> None:
    pipe = pipeline("sd")
    levels = PipelineBackbone(pipe).walk(STEPS).levels
    late = replace(TOY, interval=replace(TOY.interval, low=levels[-2].log_snr - 1e-6))
    states: list[Tensor] = []

    def spy(callback: Any) -> Any:
        def step(pipe: Any, i: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            out: dict[str, Any] = callback(pipe, i, t, kwargs)
            states.append(out["latents"])
            return out

        return step

    run(pipe, spy(guided(pipe, recipes=[late])))
    run(pipe, spy(guided(pipe, 0.0)))
    same = [torch.equal(a, b) for a, b in zip(states[:STEPS], states[STEPS:], strict=True)]
    assert same == [True] * (STEPS - 1) + [False]


def test_image_to_image_pipelines_are_guided_as_well() -> None:
    plain = pipeline("sd")
    pipe = diffusers.StableDiffusionImg2ImgPipeline(
        **plain.components, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)

    def made(callback: Any) -> Tensor:
        out: Tensor = pipe(
            "a dog", image=torch.zeros(1, 3, 16, 16), strength=0.6, num_inference_steps=10,
            generator=torch.Generator().manual_seed(3), output_type="latent",
            callback_on_step_end=callback,
        ).images  # fmt: skip
        return out

    assert loss(plain, made(guided(pipe)), "40") < loss(plain, made(None), "40") - 1


def test_defaults_are_the_guides_and_names_are_looked_up() -> None:
    pipe = pipeline("sd")
    callback = ppap_host.diffusers_callback(
        pipe, guides=["classifier", ContrastGuide()], targets=["red cube", "40"]
    )
    assert [a.recipe.name for a in callback._asked] == ["x0", "x0"]
    assert callback._asked[1].scale == 4.0
    assert not torch.equal(run(pipe, callback), run(pipe))


def test_a_gradient_that_is_not_finite_is_left_out_and_counted() -> None:
    class Broken(ContrastGuide):
        def loss(self, output: Tensor, target: Tensor) -> Tensor:
            return super().loss(output, target) * float("nan")

    pipe = pipeline("sd")
    callback = ppap_host.diffusers_callback(
        pipe, guides=[Broken()], targets=["1"], recipes=[TOY], scales=[1.0]
    )
    torch.testing.assert_close(run(pipe, callback), run(pipe))
    assert callback.health.skipped == {"contrast": 2 * STEPS}


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"guides": ["nothing"]}, UnknownNameError, "Unknown guide 'nothing'"),
        ({"guides": "depth"}, OptionError, "are lists"),
        ({"targets": []}, OptionError, "1 guides and 0 targets"),
        ({"scales": [1.0, 2.0]}, OptionError, "1 guides and 2 scales"),
        ({"recipes": ["nothing"]}, UnknownNameError, "Unknown recipe 'nothing'"),
        ({"recipes": ["x0-through"]}, OptionError, "back through the backbone"),
        ({"recipes": ["x0:recurrence=2"]}, OptionError, "asks the backbone again"),
        ({"recipes": ["elucd-edm"]}, OptionError, "asks the backbone again"),
        ({"recipes": ["ppap"]}, OptionError, "needs one"),
        ({"experts": ["nothing"]}, UnknownNameError, "Unknown expert set 'nothing'"),
        ({"models": ["resnet18"]}, OptionError, "has its network already"),
    ],
)
def test_wrong_arguments_are_named(
    changes: dict[str, Any], error: type[PpapError], words: str
) -> None:
    arguments = {"guides": [ContrastGuide()], "targets": ["1"]} | changes
    with pytest.raises(error, match=words):
        ppap_host.diffusers_callback(pipeline("sd"), **arguments)


def test_pipelines_that_cannot_be_guided_say_so() -> None:
    with pytest.raises(OptionError, match="IFPipeline has no callback_on_step_end"):
        guided(tiny("if"))
    with pytest.raises(OptionError, match="HeunDiscreteScheduler starts each second half"):
        guided(tiny("sd", diffusers.HeunDiscreteScheduler(steps_offset=1)))


def test_misuse_while_running_is_named() -> None:
    pipe, other = pipeline("sd"), pipeline("sd")
    callback = guided(pipe)
    with pytest.raises(OptionError, match="another pipeline"):
        run(other, callback)
    with pytest.raises(OptionError, match="offers no latents"):
        run(pipe, callback, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    with pytest.raises(OptionError, match="are packed"):
        callback(pipe, 0, torch.tensor(1), {"latents": torch.zeros(1, 4, 8)})
    pipe.scheduler = SCHEDULERS["sd"]()
    with pytest.raises(OptionError, match="another scheduler"):
        run(pipe, callback)


def test_the_import_of_the_host_stays_light() -> None:
    code = "import sys, ppap_host; print('torch' in sys.modules, 'diffusers' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ppap_host.nothing
