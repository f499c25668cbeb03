"""Guidance of any pipeline at its scheduler, for as long as a block lasts."""

from __future__ import annotations

import copy
import inspect
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from pipelines import ContrastGuide, tiny
from torch import Tensor, nn

import ppap_host as ppap
from ppap_host.backbones.backbone import Backbone, ClassifierFree, Prediction
from ppap_host.backbones.noise import NoiseLevel, NoiseRange, Walk
from ppap_host.files.errors import CheckpointError, GuidanceWarning, OptionError, SamplingError
from ppap_host.guides.guide import Guide
from ppap_host.pipelines import steering
from ppap_host.pipelines.backbone import PipelineBackbone
from ppap_host.pipelines.course import Course
from ppap_host.pipelines.decoding import Decoder, Layout
from ppap_host.pipelines.hooks import hooked
from ppap_host.pipelines.schedules import schedule_of
from ppap_host.pipelines.steer import steer
from ppap_host.pipelines.steering import Report, SteeringOptions
from ppap_host.recipes.energies import MonteCarlo
from ppap_host.recipes.presets import (
    ADAM_MPGD,
    DPS,
    ELUCD,
    ELUCD_EDM,
    FREEDOM,
    LGD_MC,
    MPGD,
    NAIVE,
    TFG,
    UGD,
    X0,
    X0_THROUGH,
)
from ppap_host.recipes.recipe import Recipe
from ppap_host.sampling import room
from ppap_host.sampling.evaluator import Guidance
from ppap_host.sampling.loop import sample
from ppap_host.sampling.solvers import DDIM

STEPS, CFG = 4, 3.0
ROOM = Image.new("RGB", (16, 16), (200, 120, 40))
HALF = Image.new("L", (16, 16), 0)
HALF.paste(255, (0, 0, 8, 16))
EMBEDS = torch.randn(2, 1, 5, 16, generator=torch.Generator().manual_seed(11))


class Indifferent(ContrastGuide):
    """A guide whose gradient is zero."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return 0 * super().loss(output, target)


def asks(
    recipe: Recipe = X0, scale: float = 8.0, guide: Guide | None = None, target: float = 2.0
) -> Guidance:
    return Guidance(guide or ContrastGuide(), torch.tensor([target]), recipe, scale)


COMMON: dict[str, Any] = {"num_inference_steps": STEPS}
PICTURE = {**COMMON, "height": 16, "width": 16, "output_type": "latent"}
CALLS: dict[str, dict[str, Any]] = {
    "ddpm": {**COMMON, "batch_size": 2, "output_type": "np"},
    "sd": {**PICTURE, "prompt": "a dog", "num_images_per_prompt": 2, "guidance_scale": CFG},
    "flux": {**PICTURE, "prompt": "a dog", "num_images_per_prompt": 2, "max_sequence_length": 8},
    "qwen": {**PICTURE, "prompt_embeds": EMBEDS[0], "negative_prompt_embeds": EMBEDS[1],
             "true_cfg_scale": CFG, "num_images_per_prompt": 2},
    "wan": {**PICTURE, "prompt": "a dog", "num_frames": 5, "max_sequence_length": 8,
            "guidance_scale": CFG},
    "if": {**COMMON, "prompt": "a dog", "clean_caption": False, "guidance_scale": CFG,
           "output_type": "pt"},
}  # fmt: skip
CALLS["sdxl"] = CALLS["sd3"] = CALLS["sd"]
CALLS["pixart"] = CALLS["sd"] | {"clean_caption": False, "use_resolution_binning": False}
CALLS["controlnet"] = CALLS["sd"] | {"image": ROOM}
CALLS["inpainting"] = CALLS["sd"] | {"image": ROOM, "mask_image": HALF, "strength": 1.0}
BY_HEART: dict[str, Callable[[], Any]] = {
    "img2img": lambda: diffusers.AutoPipelineForImage2Image.from_pipe(tiny("sd")),
    "inpaint4": lambda: diffusers.AutoPipelineForInpainting.from_pipe(tiny("sd")),
}
CALLS["img2img"] = {k: v for k, v in CALLS["sd"].items() if k not in ("height", "width")} | {
    "image": [ROOM, ROOM], "prompt": ["a dog"] * 2, "num_images_per_prompt": 1,
    "strength": 0.8, "num_inference_steps": 5,
}  # fmt: skip
CALLS["inpaint4"] = CALLS["inpainting"]


def made(name: str, scheduler: Any = None) -> Any:
    if name not in BY_HEART:
        return tiny(name, scheduler)
    pipe = BY_HEART[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: Any, name: str = "sd", **changes: Any) -> Tensor:
    torch.manual_seed(7)
    call = CALLS[name] | {"generator": torch.Generator().manual_seed(3)} | changes
    out = pipe(**call)
    images = out.frames if hasattr(out, "frames") else out.images
    return torch.as_tensor(images)


def loss(report: Report) -> list[float]:
    """Of the images' guide, at the first and at the last step."""
    course = report.losses["contrast"]
    return [sum(row) / len(row) for row in (course[0], course[-1])]


@pytest.mark.parametrize("name", CALLS)
def test_a_guide_without_a_gradient_changes_no_byte_and_one_with_it_steers(name: str) -> None:
    pipe = made(name)
    plain = run(pipe, name)
    with steer(pipe, asks(guide=Indifferent())) as report:
        assert torch.equal(run(pipe, name), plain)
    taken = [t.step for t in report.trace]
    assert len(taken) == report.steps == len(set(taken)) > 0
    free = losses_without(pipe, name)
    with steer(pipe, asks(scale=2.0)) as report:  # eight shares are too many for some
        assert not torch.equal(run(pipe, name), plain)
    assert loss(report)[1] < free - 1e-3
    assert torch.equal(run(pipe, name), plain)


def losses_without(pipe: Any, name: str) -> float:
    """The guide's loss at the last step of a run that it does not change."""

    class Watches(ContrastGuide):
        def loss(self, output: Tensor, target: Tensor) -> Tensor:
            value = super().loss(output, target)
            return value.detach() + 0 * value

    with steer(pipe, asks(guide=Watches())) as report:
        run(pipe, name)
    return loss(report)[1]


# The host's own loop

OWN_LOOP: dict[str, tuple[str, Callable[[], Any]]] = {
    "ddim": ("sd", lambda: diffusers.DDIMScheduler(steps_offset=1, clip_sample=False)),
    "euler-v": (
        "sd",
        lambda: diffusers.EulerDiscreteScheduler(
            steps_offset=1, prediction_type="v_prediction", timestep_spacing="leading"
        ),
    ),
    "flow": ("sd3", lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)),
}
RECIPES = {
    "naive": NAIVE, "x0": X0, "elucd": ELUCD, "mpgd": MPGD, "adam-mpgd": ADAM_MPGD,
    "x0-through": X0_THROUGH, "dps": DPS, "tfg": TFG,
    "ugd": replace(UGD, recurrence=1), "freedom": replace(FREEDOM, recurrence=1),
}  # fmt: skip


def by_the_host(pipe: Any, guidance: Guidance) -> Tensor:
    backbone = PipelineBackbone(pipe)
    denoise = ClassifierFree(
        backbone, backbone.encode_prompts(["a dog"]), backbone.encode_prompts([""]), CFG
    )
    walk = backbone.walk(STEPS)
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    size = float(getattr(pipe.scheduler, "init_noise_sigma", 1.0))
    start = noise * (size / backbone.family.schedule.own_scale(walk.levels[0]))
    return sample(
        backbone, denoise, walk, DDIM(), lambda: noise, [guidance], start=start,
        streams=lambda name: lambda: torch.zeros_like(noise),
    )  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("case", OWN_LOOP)
def test_it_is_the_hosts_own_guidance(
    case: str, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under schedulers whose step is DDIM's in other words, block and loop make the same."""
    name, scheduler = OWN_LOOP[case]
    pipe = tiny(name, scheduler())
    monkeypatch.setattr(
        "ppap_host.sampling.streams.ImageNoise.__call__",
        lambda self: torch.zeros(2, *self._shape),
    )
    guidance = asks(RECIPES[recipe], 2.0, target=40.0)
    plain = run(pipe)
    with steer(pipe, guidance):
        theirs = run(pipe)
    if case == "ddim":
        pipe.scheduler.final_alpha_cumprod = torch.tensor(1.0)  # the host ends at the clean image
        with steer(pipe, guidance):
            theirs = run(pipe)
    ours = by_the_host(pipe, guidance)
    moved = (theirs - plain).abs().max()
    # At pure noise the host's floor under alpha takes part.
    tolerance = 1e-2 if case == "flow" else 1e-3
    assert moved > 0.1
    assert (ours - theirs).abs().max() <= tolerance * max(float(moved), 1.0)


# Gradients through the network


class Quadratic(ContrastGuide):
    """A smooth loss of all pixels."""

    averages_pixels = False

    def see(self, x: Tensor, level: object = None) -> Tensor:
        weights = torch.linspace(-1, 1, x[0].numel(), dtype=x.dtype).view_as(x[0])
        return (weights * x).sum(dim=(1, 2, 3))


class Halts(Exception):
    """Ends a pipeline's call at a certain step."""


@pytest.mark.parametrize("name", ["sd", "controlnet", "wan", "qwen", "flux"])
def test_gradients_through_the_pipeline_are_those_of_finite_differences(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the guide's loss at x_0 with respect to the state, in the first and the second step."""
    # UniPC solves in float32 whatever it is given.
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0) if name == "wan" else None
    pipe = made(name, scheduler)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.to(torch.float64)
    double = {k: v.double() if isinstance(v, Tensor) else v for k, v in CALLS[name].items()}
    monkeypatch.setitem(CALLS, name, double)
    torch.set_default_dtype(torch.float64)
    try:
        _compare_with_differences(pipe, name)
    finally:
        torch.set_default_dtype(torch.float32)


def _compare_with_differences(pipe: Any, name: str) -> None:
    states: list[Tensor] = []
    seen: list[tuple[Tensor, Tensor]] = []
    own = steering._Part._gradient

    def gradient(self: Any, of_output: Tensor) -> Tensor:
        seen.append((of_output.clone(), own(self, of_output)))
        return seen[-1][1]

    def outputs(push: dict[int, Tensor]) -> list[Tensor]:
        """What reaches the scheduler where states are pushed before the network sees them."""
        found: list[Tensor] = []

        def step(scheduler: Any, call: Any, *args: Any, **kwargs: Any) -> Any:
            found.append(args[0].clone())
            states.append(args[2].clone())
            if len(found) == 2:
                raise Halts
            result = call(*args, **kwargs)
            state = result[0] if isinstance(result, tuple) else result.prev_sample
            state += push.get(len(found), 0.0)
            return result

        with hooked(pipe.scheduler, "step", step), pytest.raises(Halts):
            run(pipe, name)
        return found

    outputs({})
    shape = states[1].shape
    direction = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    h = 1e-2  # parts of transformers compute in float32
    ahead = outputs({1: h * direction})[1]
    behind = outputs({1: -h * direction})[1]
    slope = (ahead - behind) / (2 * h)
    # The guide's gradient at each step is a vector; the change of the output along a direction of
    # the state, times it, must be the direction times what was found by going back.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steering._Part, "_gradient", gradient)
        with steer(pipe, asks(X0_THROUGH, 1e-9, Quadratic())):
            run(pipe, name)
    assert len(seen) == len(pipe.scheduler.timesteps)
    of_output, of_state = seen[1]
    layout = _layout(pipe, states[1])
    scale = _own_scale(pipe, 1)
    found = (of_state * layout.laid_out(direction) / scale).sum()
    expected = (of_output * layout.laid_out(slope)).sum()
    assert expected.abs() > 1e-12
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0.0)


def _layout(pipe: Any, state: Tensor) -> Layout:
    height = width = 16  # looked up in this frame, as in that of a pipeline's call
    assert height == width
    return Decoder(pipe).layout(state, sys._getframe())


def _own_scale(pipe: Any, index: int) -> float:
    schedule = schedule_of(pipe.scheduler)
    return schedule.own_scale(Course(schedule, pipe.scheduler, "small").level(index))


# Schedulers


class Bare(diffusers.DiffusionPipeline):  # type: ignore[misc]
    """A network and a scheduler, stepped as the scheduler wants it."""

    channels = 3

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, steps: int, generator: torch.Generator) -> Tensor:
        scheduler = self.scheduler
        name = type(scheduler).__name__
        timesteps: dict[str, Any] = {
            "SCMScheduler": {"max_timesteps": 1.57, "intermediate_timesteps": None},
            "RePaintScheduler": {"jump_length": 2, "jump_n_sample": 2},
        }  # fmt: skip
        scheduler.set_timesteps(steps, **timesteps.get(name, {}))
        x = torch.randn(2, self.channels, 8, 8, generator=generator)
        x = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
        times = scheduler.timesteps
        if name in ("SCMScheduler", "DDPMWuerstchenScheduler"):
            times = times[:-1]
        options: dict[str, Any] = {}
        taken = inspect.signature(scheduler.step).parameters
        if "generator" in taken:
            options["generator"] = generator
        if "original_image" in taken:
            options |= {"original_image": torch.zeros_like(x), "mask": torch.zeros_like(x)}
        before, old = None, None
        for i, t in enumerate(times):
            if "prev_timestep" in taken:
                options["prev_timestep"] = times[i + 1] if i + 1 < len(times) else None
            if "old_pred_original_sample" in taken:
                options |= {"old_pred_original_sample": old, "timestep_back": before}
            shown = x
            if hasattr(scheduler, "scale_model_input"):
                shown = scheduler.scale_model_input(x, t)
            out = self.unet(shown[:, :3], float(t)).sample
            out = torch.cat([out, shown[:, 3:]], dim=1)
            if name == "DDPMWuerstchenScheduler":
                t = t.expand(len(x))
            result = scheduler.step(
                model_output=out, timestep=t, sample=x, return_dict=False, **options
            )
            x, old, before = result[0], result[-1], t
        return x


def all_schedulers() -> list[str]:
    """Of the installed diffusers, those that could be made."""
    return sorted(
        name
        for name in dir(diffusers)
        if name.endswith("Scheduler") and inspect.isclass(getattr(diffusers, name))
    )


SETTINGS: dict[str, dict[str, Any]] = {
    "AmusedScheduler": {"mask_token_id": 1},
    "VQDiffusionScheduler": {"num_vec_classes": 5},
    "PNDMScheduler": {"skip_prk_steps": True},
    "RFD4ProteinaScheduler": {
        "schedule_mode": "power", "noise_mode": "1/t", "tsr_k": 1.0, "tsr_sigma": 1.0
    },
    "HeliosScheduler": {"stages": 1},
}  # fmt: skip


def scheduler_of(name: str) -> Any:
    kind = getattr(diffusers, name)
    if kind is diffusers.SchedulerMixin or kind.__module__.startswith("diffusers.utils"):
        pytest.skip("needs a library that is not installed")
    settings = dict(SETTINGS.get(name, {}))
    known = inspect.signature(kind.__init__).parameters
    if "clip_sample" in known:
        settings["clip_sample"] = False
    if "timestep_spacing" in known:
        settings["timestep_spacing"] = "leading"
    return kind(**settings)


REFUSED = {
    "AmusedScheduler", "BlockRefinementScheduler", "DiscreteDDIMScheduler",
    "EntropyBoundScheduler", "VQDiffusionScheduler", "RFD4ProteinaScheduler",
    "KarrasVeScheduler", "ScoreSdeVeScheduler", "FlowMapEulerDiscreteScheduler",
    "HeliosDMDScheduler", "PiflowScheduler", "DDIMInverseScheduler",
    "DPMSolverMultistepInverseScheduler", "MiniMaxH3Scheduler",
}  # fmt: skip


def fell(pipe: Any, guidance: Guidance) -> float:
    """How far a guide's loss is below that of an unguided run at the end."""

    def ends(guide: Guidance | None) -> float:
        generator = torch.Generator().manual_seed(3)
        torch.manual_seed(5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GuidanceWarning)
            with steer(pipe, guide or asks(scale=0.0)):
                x = pipe(8, generator=generator)
        own = float(getattr(pipe.scheduler.config, "sigma_data", 0.0) or 1.0)
        own = own if type(pipe.scheduler).__name__ == "SCMScheduler" else 1.0
        seen = guidance.guide.see(x / own)
        return float(guidance.guide.loss(seen, guidance.target).mean())

    return ends(None) - ends(guidance)


class Levels(Backbone):
    """The network of a pipeline on the noise levels of its scheduler."""

    clip = None

    def __init__(self, pipe: Any) -> None:
        self.net, self.schedule = pipe.unet, schedule_of(pipe.scheduler)
        self.state_shape = (3, 8, 8)

    def walk(self, steps: int | str) -> Walk:
        scheduler = self.schedule.scheduler
        return Course(self.schedule, scheduler, "small").walk

    def levels(self) -> tuple[NoiseLevel, ...]:
        return self.schedule.levels()

    def predict(self, x: Tensor, level: NoiseLevel, condition: Any) -> Prediction:
        out = self.net(self.schedule.network_input(x, level), level.time).sample
        return Prediction(self.schedule.eps(x, out, level))

    def to(self, device: Any, dtype: Any) -> Backbone:
        return self


def fell_under_ddim(pipe: Any, guidance: Guidance) -> float:
    """How far a guide's loss falls in the host's DDIM on the levels that a scheduler visits."""
    levels = Levels(pipe)
    walk = levels.walk(0)
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    ends = []
    for guides in ([], [guidance]):
        x = sample(
            levels, ClassifierFree(levels, {}, {}), walk, DDIM(), lambda: noise, guides,
        )  # fmt: skip
        ends.append(float(guidance.guide.loss(guidance.guide.see(x), guidance.target).mean()))
    return ends[0] - ends[1]


def bare(scheduler: Any) -> Any:
    pipe = Bare(tiny("ddpm").unet, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.filterwarnings("ignore:__array", "ignore::FutureWarning", "ignore:Should have t")
@pytest.mark.parametrize("name", all_schedulers())
def test_every_scheduler_is_guided_or_refused(name: str) -> None:
    scheduler = scheduler_of(name)
    pipe = bare(scheduler)
    if name in REFUSED:
        with pytest.raises(CheckpointError, match=name):
            steer(pipe, asks())
        return

    def end() -> Tensor:
        torch.manual_seed(5)
        return pipe(8, generator=torch.Generator().manual_seed(3))

    plain = end()
    with steer(pipe, asks(guide=Indifferent())) as report:
        assert torch.equal(end(), plain)
    assert len(report.trace) == report.steps >= 7
    by_the_scheduler = fell(pipe, asks(target=40.0))
    assert by_the_scheduler > fell_under_ddim(pipe, asks(target=40.0)) / 2 > 1


@pytest.mark.filterwarnings("ignore:__array")
@pytest.mark.parametrize(
    "name", ["DDPM", "PNDM", "UniPCMultistep", "HeunDiscrete", "KDPM2Discrete"]
)
@pytest.mark.parametrize("recipe", [DPS, MPGD, ELUCD], ids=lambda recipe: recipe.name)
def test_what_is_added_after_a_step_is_not_lost(name: str, recipe: Recipe) -> None:
    """Whether the scheduler remembers or not: about as far as under DDIM."""
    guidance, pipe = asks(recipe, 0.5, target=40.0), bare(scheduler_of(f"{name}Scheduler"))
    by_the_scheduler = fell(pipe, guidance)
    assert by_the_scheduler > fell_under_ddim(pipe, guidance) / 2 > 1


# What is left of it


def state_of(thing: Any) -> dict[str, Any]:
    return {key: copy.copy(value) for key, value in vars(thing).items()}


def test_afterwards_all_is_as_it_was() -> None:
    pipe = tiny("sd")
    kinds = type(pipe), type(pipe.scheduler)
    before = state_of(pipe.vae), state_of(pipe.scheduler), set(vars(pipe))
    flags = [p.requires_grad for p in pipe.unet.parameters()]
    pipe.vae.enable_gradient_checkpointing()
    checkpointing = [getattr(m, "gradient_checkpointing", None) for m in pipe.vae.modules()]
    block = steer(pipe, asks(X0_THROUGH))
    for fails in (False, True):
        with block:
            if not fails:
                run(pipe)
                continue
            with pytest.raises(Halts):
                run(pipe, callback_on_step_end=_halts)
        assert (type(pipe), type(pipe.scheduler)) == kinds
        assert [p.requires_grad for p in pipe.unet.parameters()] == flags
        assert all(p.requires_grad for p in pipe.vae.parameters())
        now = [getattr(m, "gradient_checkpointing", None) for m in pipe.vae.modules()]
        assert now == checkpointing
        assert set(vars(pipe.scheduler)) == set(before[1])
        assert set(vars(pipe)) <= before[2] | {"_guidance_scale", "_num_timesteps"} | {
            key for key in vars(pipe) if key.startswith("_")
        }
        assert torch.is_grad_enabled()
    with pytest.raises(Halts), block:
        raise Halts
    assert type(pipe) is kinds[0]


def _halts(pipe: Any, i: int, t: Any, kwargs: Any) -> Any:
    if i == 1:
        raise Halts
    return kwargs


def test_what_a_pipeline_returns_carries_no_graph() -> None:
    pipe = tiny("sd")
    with steer(pipe, asks(X0_THROUGH)):
        assert not run(pipe).requires_grad
        assert not run(pipe, output_type="pt").requires_grad
        images = pipe(**CALLS["sd"] | {"output_type": "pil"}).images
    assert [image.size for image in images] == [(16, 16)] * 2
    given = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    with steer(pipe, asks(X0_THROUGH)) as report:
        out = run(pipe, latents=given)
    assert len(report.trace) == STEPS
    assert not out.requires_grad
    assert not given.requires_grad


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("recipe", [X0, X0_THROUGH], ids=lambda recipe: recipe.name)
def test_it_works_under_modes_without_gradients(recipe: Recipe, mode: Any) -> None:
    pipe = tiny("sd")
    with steer(pipe, asks(recipe)):
        expected = run(pipe)
    with mode(), steer(pipe, asks(recipe)):
        assert torch.equal(run(pipe), expected)


def test_networks_loaded_under_inference_mode_are_guided() -> None:
    with steer(pipe := tiny("sd"), asks()):
        expected = run(pipe)
    with torch.inference_mode():
        pipe = tiny("sd")
        with steer(pipe, asks()):
            assert torch.equal(run(pipe), expected)
    with (
        torch.inference_mode(),
        steer(pipe, asks(X0_THROUGH)),
        pytest.raises(OptionError, match="inference_mode"),
    ):
        run(pipe)


def test_a_scheduler_exchanged_within_the_block_is_followed() -> None:
    pipe = tiny("sd")
    pipe.scheduler = diffusers.EulerDiscreteScheduler(steps_offset=1)
    with steer(pipe, asks()):
        expected = run(pipe)
    pipe = tiny("sd")
    with steer(pipe, asks()) as report:
        first = run(pipe)
        pipe.scheduler = diffusers.EulerDiscreteScheduler(steps_offset=1)
        assert torch.equal(run(pipe), expected)
    assert (report.calls, len(report.trace)) == (2, 2 * STEPS)
    assert not torch.equal(first, expected)


def test_one_exchanged_during_a_call_is_followed_too() -> None:
    pipe = tiny("sd")

    def exchanges(pipe: Any, i: int, t: Any, kwargs: Any) -> Any:
        if i == 1:
            fresh = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
            fresh.set_timesteps(STEPS)
            pipe.scheduler = fresh
        return kwargs

    with steer(pipe, asks()) as report:
        run(pipe, callback_on_step_end=exchanges)
    assert [t.step for t in report.trace] == list(range(STEPS))
    assert type(pipe.scheduler) is diffusers.DDIMScheduler


def test_copies_and_other_pipelines_are_left_alone() -> None:
    pipe = tiny("sd")
    other = diffusers.StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    plain = run(pipe)
    copies: list[Any] = []

    def copying(pipe: Any, i: int, t: Any, kwargs: Any) -> Any:
        copies.extend([copy.copy(pipe.scheduler), copy.deepcopy(pipe.scheduler)])
        return kwargs

    with steer(pipe, asks()) as report:
        assert torch.equal(run(other), plain)
        assert report.steps == 0
        assert torch.equal(run(copy.copy(pipe)), plain)
        assert not torch.equal(run(pipe, callback_on_step_end=copying), plain)
        steps = report.steps
        out, state = torch.randn(2, 1, 4, 8, 8)
        for one in copies:
            assert type(one) is diffusers.DDIMScheduler
            one.set_timesteps(STEPS)
            expected = copy.deepcopy(one).step(out, one.timesteps[0], state).prev_sample
            assert torch.equal(one.step(out, one.timesteps[0], state).prev_sample, expected)
        assert report.steps == steps


def test_blocks_may_be_nested_and_entered_again() -> None:
    pipe = tiny("sd")
    one, two = asks(scale=4.0), asks(scale=4.0, target=-2.0)
    with steer(pipe, one) as outer, steer(pipe, two) as inner:
        both = run(pipe)
    assert len(outer.trace) == len(inner.trace) == STEPS
    block = steer(pipe, one)
    with block:
        alone = run(pipe)
        assert torch.equal(run(pipe), alone)
    assert not torch.equal(both, alone)
    with block as report:
        assert torch.equal(run(pipe), alone)
        assert run(pipe, height=24, num_images_per_prompt=1).shape == (1, 4, 12, 8)
    assert report.calls == 2


def test_a_call_within_a_call_is_guided_by_itself() -> None:
    pipe = tiny("sd")
    inner: list[Tensor] = []

    def previews(one: Any, i: int, t: Any, kwargs: Any) -> Any:
        if i == 1 and not inner:
            scheduler = one.scheduler
            one.scheduler = diffusers.DDIMScheduler.from_config(scheduler.config)
            inner.append(torch.empty(0))
            inner[0] = run(one)
            one.scheduler = scheduler
        return kwargs

    with steer(pipe, asks()) as report:
        expected = run(pipe)
        assert torch.equal(run(pipe, callback_on_step_end=previews), expected)
    assert torch.equal(inner[0], expected)
    assert [t.call for t in report.trace] == [0] * 4 + [1] * 2 + [2] * 4 + [1] * 2


def test_threads_with_pipelines_of_their_own() -> None:
    pipes = [tiny("sd"), tiny("sd")]
    guides = [asks(scale=4.0), asks(X0_THROUGH, scale=4.0, target=-2.0)]
    expected = []
    for pipe, guide in zip(pipes, guides, strict=True):
        with steer(pipe, guide):
            expected.append(pipe(**_quiet(3)).images)
    found: dict[int, Tensor] = {}

    def work(k: int) -> None:
        with steer(pipes[k], guides[k]):
            for _ in range(2):
                found[k] = pipes[k](**_quiet(3)).images

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, latents in enumerate(expected):
        assert torch.equal(found[k], latents)


def _quiet(seed: int) -> dict[str, Any]:
    """A call that draws from its own generator alone: the global one is every thread's."""
    return CALLS["sd"] | {"generator": torch.Generator().manual_seed(seed)}


def test_what_it_draws_is_its_own() -> None:
    class Draws(ContrastGuide):
        def see(self, x: Tensor, level: object = None) -> Tensor:
            return super().see(x + 0.1 * torch.randn_like(x))

    pipe = tiny("sd", diffusers.EulerAncestralDiscreteScheduler(steps_offset=1))
    recipe = replace(X0, energy=MonteCarlo(samples=2))

    def ends(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(1)
        generator = torch.Generator().manual_seed(3)
        with steer(pipe, asks(recipe, guide=Draws()), seed=seed):
            latents = pipe(**CALLS["sd"] | {"generator": generator}).images
        return latents, generator.get_state(), torch.get_rng_state()

    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(3)
    pipe(**CALLS["sd"] | {"generator": generator})
    first, again, other = ends(0), ends(0), ends(1)
    for states in (first, other):
        assert torch.equal(states[1], generator.get_state())
        assert torch.equal(states[2], torch.get_rng_state())
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


# What is said


def test_the_report_traces_every_step() -> None:
    pipe = tiny("sd")
    guides = [asks(scale=4.0), asks(ELUCD, scale=300.0, target=40.0)]
    with steer(pipe, guides) as report:
        run(pipe)
    assert [t.step for t in report.trace] == list(range(STEPS))
    assert all(t.steps == STEPS for t in report.trace)
    snr = [t.log_snr for t in report.trace]
    assert snr == sorted(snr)
    assert list(report.losses) == ["contrast", "contrast-2"]
    assert len(report.losses["contrast"]) == STEPS
    assert len(report.losses["contrast"][0]) == 2
    assert report.cut["contrast-2"] > 0
    assert all(x > 0 for t in report.trace for x in t.moved)
    assert "contrast: loss" in str(report)


def test_it_says_when_no_guide_was_asked() -> None:
    pipe = tiny("sd")
    with pytest.warns(GuidanceWarning, match="was not called"), steer(pipe, asks()) as report:
        pass
    assert report.notes
    with (
        pytest.warns(GuidanceWarning, match="none of its 4 steps"),
        steer(pipe, asks(replace(X0, interval=NoiseRange(50.0, 60.0)))),
    ):
        run(pipe)


def test_a_gradient_that_is_not_finite_is_left_out_and_told() -> None:
    class Broken(ContrastGuide):
        def loss(self, output: Tensor, target: Tensor) -> Tensor:
            return super().loss(output, target) * float("nan")

    pipe = tiny("sd")
    plain = run(pipe)
    with (
        pytest.warns(GuidanceWarning, match="was not finite in 8 of 8"),
        steer(pipe, asks(guide=Broken())) as report,
    ):
        assert torch.equal(run(pipe), plain)
    assert report.skipped == {"contrast": 2 * STEPS}


def test_targets_may_be_one_a_picture() -> None:
    pipe = tiny("sd")
    each = Guidance(ContrastGuide(), torch.tensor([2.0, -2.0]), X0, 8.0)
    with steer(pipe, each):
        both = run(pipe)
    for row, target in enumerate((2.0, -2.0)):
        with steer(pipe, asks(target=target)):
            torch.testing.assert_close(run(pipe)[row], both[row])
    with steer(pipe, each), pytest.raises(OptionError, match="2 targets, and the pipeline makes 3"):
        run(pipe, num_images_per_prompt=3)


def test_frames_of_a_video_are_chosen() -> None:
    pipe = tiny("wan")
    shown: list[int] = []

    class Counts(ContrastGuide):
        def see(self, x: Tensor, level: object = None) -> Tensor:
            shown.append(len(x))
            return super().see(x)

    for frames, count in ((1, 1), (3, 3), ([0, -1], 2), (99, 5)):
        shown.clear()
        with steer(pipe, asks(guide=Counts()), frames=frames):
            run(pipe, "wan")
        assert set(shown) == {count}
    with steer(pipe, asks(), frames=[5]), pytest.raises(OptionError, match="no frame 5"):
        run(pipe, "wan")


def test_half_precision_keeps_the_pipelines_formats() -> None:
    pipe = tiny("sd").to(torch.bfloat16)
    plain = run(pipe)
    with steer(pipe, asks(guide=Indifferent())):
        assert torch.equal(run(pipe), plain)
    for recipe in (X0, X0_THROUGH, DPS):
        with steer(pipe, asks(recipe)):
            out = run(pipe)
        assert out.dtype == torch.bfloat16
        assert not torch.equal(out, plain)
    assert pipe.vae.dtype == torch.bfloat16


def test_an_autoencoder_that_overflows_in_float16_is_read_in_float32() -> None:
    pipe = tiny("sdxl")
    assert pipe.vae.config.force_upcast
    pipe.vae.to(torch.float16)
    decoder = Decoder(pipe)
    z = torch.randn(1, 4, 8, 8)
    layout = decoder.layout(z, None)
    with torch.no_grad():
        picture = decoder.decode(z, layout)
    assert decoder.autoencoder is not None
    assert decoder.autoencoder.network.dtype == torch.float32
    assert pipe.vae.dtype == torch.float16
    pipe.vae.to(torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(Decoder(pipe).decode(z, layout), picture, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("recipe", "words"),
    [(FREEDOM, "takes every step 2 times"), (ELUCD_EDM, "before the network is asked")],
)
def test_recipes_that_a_pipeline_cannot_follow_are_refused(recipe: Recipe, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        steer(tiny("sd"), asks(recipe))


def test_a_network_without_gradients_is_refused_with_the_reason() -> None:
    pipe = tiny("sd")
    forward = pipe.unet.forward
    pipe.unet.forward = lambda *args, **kwargs: (forward(*args, **kwargs)[0].detach(),)
    with steer(pipe, asks(X0_THROUGH)), pytest.raises(OptionError, match="carries no gradient"):
        run(pipe)


def test_what_makes_no_picture_is_refused() -> None:
    with pytest.raises(OptionError, match="has no scheduler"):
        steer(nn.Linear(1, 1), asks())
    pipe = bare(diffusers.DDIMScheduler())
    pipe.channels = 4
    with steer(pipe, asks()), pytest.raises(OptionError, match="no autoencoder makes a picture"):
        pipe(2, torch.Generator())


@pytest.mark.parametrize(
    "options",
    [
        {"seed": -1}, {"seed": 2.5}, {"seed": float("nan")}, {"balance": "weighed"}, {"frames": 0},
        {"frames": float("nan")}, {"frames": "x"}, {"start": 2.0}, {"stop": float("nan")},
    ],
)  # fmt: skip
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(OptionError, match=name):
        SteeringOptions(**options)
    if options in ({"seed": -1}, {"balance": "weighed"}, {"frames": 0}):
        with pytest.raises(OptionError, match=name):
            steer(tiny("sd"), asks(), **options)


def test_pictures_that_the_pipeline_loses_are_told() -> None:
    pipe = tiny("sd")
    broken: list[int] = []

    def spoil(module: nn.Module, inputs: Any, output: Any) -> Any:
        (state,) = output if isinstance(output, tuple) else (output.sample,)
        return (state.index_fill(0, torch.tensor(broken), float("nan")),)

    pipe.unet.register_forward_hook(spoil)
    broken[:] = [1, 3]  # both branches of the second picture
    with pytest.warns(GuidanceWarning) as told, steer(pipe, asks()) as report:
        made = run(pipe)
    assert any("image 1 of the batch is lost" in str(warning.message) for warning in told)
    assert made[0].isfinite().all()
    assert any("float32" in note for note in report.notes)
    broken[:] = [0, 1, 2, 3]
    with pytest.raises(SamplingError, match="not finite at step 0"), steer(pipe, asks()):
        run(pipe)


def test_what_was_understood_of_targets_is_noted(tmp_path: Path) -> None:
    Image.new("L", (64, 64), 90).save(tmp_path / "grey.png")
    pipe = tiny("sd")
    guidance = ppap.guidance("depth", target=str(tmp_path / "grey.png"), experts="none")
    with pytest.warns(GuidanceWarning) as told, steer(pipe, guidance) as report:
        run(pipe)
    assert any("is grey and was taken" in str(warning.message) for warning in told)
    assert sum(note.startswith("Target: photograph") for note in report.notes) == 1


@pytest.mark.parametrize("recipe", [X0, X0_THROUGH, LGD_MC])
def test_gradients_are_taken_of_as_many_images_as_fit(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = torch.tensor([2.0, 40.0, -30.0, 9.0])
    counts: list[room.Counted] = []

    class Kept(room.Counted):
        def __init__(self) -> None:
            super().__init__()
            counts.append(self)

    def made(fits: float | None) -> tuple[Tensor, Report]:
        """With memory for so many images; None where nobody knows."""
        need = counts[0].peak if counts else 1
        share = None if fits is None else int(fits * need / room.SHARE) + 1
        monkeypatch.setattr(room, "free", lambda device: share)
        pipe, guidance = tiny("sd"), replace(asks(recipe), target=targets)
        with steer(pipe, guidance) as report:
            return run(pipe, "sd", num_images_per_prompt=4), report

    monkeypatch.setattr(room, "Counted", Kept)
    whole, report = made(None)
    assert report.at_once == {"contrast": 4} and not counts
    made(0.0)
    for fits, size in ((9.0, 4), (3.0, 2), (1.5, 1)):
        states, report = made(fits)
        assert report.at_once == {"contrast": size} and f"{size} images to a gradient" in str(
            report
        )
        torch.testing.assert_close(states, whole, rtol=1e-4, atol=1e-4)
        assert size < 4 or torch.equal(states, whole)
    assert len({count.peak for count in counts}) == 1 and counts[0].peak > 16 * 16 * 3 * 4
