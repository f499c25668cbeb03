"""Guidance of calls that are given a callback."""

from __future__ import annotations

import gc
import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback, SDCFGCutoffCallback
from pipelines import ContrastGuide, tiny
from torch import Tensor

import ppap_host as ppap
from ppap_host.files.errors import OptionError, PpapError, TargetError, UnknownNameError
from ppap_host.pipelines.callback import StepGuidance, _looks_early
from ppap_host.pipelines.steer import steer
from ppap_host.recipes.presets import DPS, ELUCD, FREEDOM, MPGD, X0
from ppap_host.recipes.recipe import Recipe
from ppap_host.sampling.evaluator import Guidance

STEPS = 4


def asks(recipe: Recipe = X0, scale: float = 8.0) -> Guidance:
    return Guidance(ContrastGuide(), torch.tensor([2.0]), recipe, scale)


def run(pipe: Any, callback: Any = None, **settings: Any) -> Tensor:
    torch.manual_seed(7)
    settings = {
        "height": 16, "width": 16, "num_inference_steps": STEPS, "num_images_per_prompt": 2
    } | settings  # fmt: skip
    if callback is not None:
        settings["callback_on_step_end"] = callback
    images: Tensor = pipe(
        "a dog", guidance_scale=3.0, output_type="latent",
        generator=torch.Generator().manual_seed(3), **settings,
    ).images  # fmt: skip
    return images


def kinds(pipe: Any) -> tuple[type, type, set[str]]:
    return type(pipe), type(pipe.scheduler), set(vars(pipe.scheduler))


@pytest.mark.parametrize("recipe", [X0, ELUCD, MPGD], ids=lambda recipe: recipe.name)
@pytest.mark.parametrize(
    "scheduler",
    ["DDIMScheduler", "UniPCMultistepScheduler", "HeunDiscreteScheduler", "DDPMScheduler"],
)
def test_it_does_what_the_block_does(scheduler: str, recipe: Recipe) -> None:
    kind = getattr(diffusers, scheduler)
    clips = {"clip_sample": False} if scheduler.startswith("DD") else {}
    pipe = tiny("sd", kind(steps_offset=1, **clips))
    plain, before = run(pipe), kinds(pipe)
    with steer(pipe, asks(recipe)):
        expected = run(pipe)
    callback = ppap.diffusers_callback(pipe, asks(recipe))
    assert torch.equal(run(pipe, callback), expected)
    assert kinds(pipe) == before
    assert torch.equal(run(pipe), plain)
    assert torch.equal(run(pipe, callback), expected)
    assert callback.report.calls == 2
    assert not torch.equal(expected, plain)


def test_it_guides_the_calls_that_it_is_passed_to_and_no_other() -> None:
    pipe = tiny("sd")
    plain = run(pipe)
    callback = ppap.diffusers_callback(pipe, asks())
    guided = run(pipe, callback)

    class Halts(Exception):
        pass

    class Ends(PipelineCallback):  # type: ignore[misc]
        tensor_inputs = ["latents"]  # noqa: RUF012

        def callback_fn(self, *_: Any) -> Any:
            raise Halts

    with pytest.raises(Halts) as kept:
        run(pipe, MultiPipelineCallbacks([callback, Ends()]))
    assert torch.equal(run(pipe), plain)  # though the failed call is still held by its traceback
    assert torch.equal(run(pipe, callback), guided)
    del kept
    gc.collect()
    assert type(pipe.scheduler) is diffusers.DDIMScheduler
    assert callback._runs == {}
    assert torch.equal(run(pipe, lambda *a: a[3]), plain)


def test_it_chains_with_others() -> None:
    pipe = tiny("sd")
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=0.5)
    with steer(pipe, asks()):
        expected = run(pipe, cutoff, num_images_per_prompt=1)
    for order in (0, 1):
        ours = ppap.diffusers_callback(pipe, asks())
        chain = [ours, cutoff] if order else [cutoff, ours]
        chained = run(pipe, MultiPipelineCallbacks(chain), num_images_per_prompt=1)
        assert torch.equal(chained, expected)
    both = MultiPipelineCallbacks([
        ppap.diffusers_callback(pipe, asks(ELUCD)), ppap.diffusers_callback(pipe, asks()),
    ])  # fmt: skip
    with steer(pipe, asks()), steer(pipe, asks(ELUCD)):
        nested = run(pipe)
    assert torch.equal(run(pipe, both), nested)


def test_pipelines_around_the_same_autoencoder_are_guided_and_others_not() -> None:
    pipe = tiny("sd")
    callback = ppap.diffusers_callback(pipe, asks())
    same = diffusers.StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    same.set_progress_bar_config(disable=True)
    assert torch.equal(run(same, callback), run(pipe, callback))
    with pytest.raises(OptionError, match="made for another pipeline"):
        run(tiny("sd"), callback)


def test_classes_that_look_too_late_are_refused_and_name_steer() -> None:
    """Which they are is read from what their call does, not from a list."""
    names = [n for n in dir(diffusers) if n.endswith("Pipeline")]
    found: dict[bool, int] = {True: 0, False: 0}
    for name in names:
        kind = getattr(diffusers, name)
        if not (inspect.isclass(kind) and issubclass(kind, diffusers.DiffusionPipeline)):
            continue
        if "callback_on_step_end" in inspect.signature(kind.__call__).parameters:
            found[_looks_early(kind)] += 1
    assert min(found.values()) > 20
    assert _looks_early(diffusers.StableDiffusionPipeline)
    assert not _looks_early(diffusers.FluxPipeline)
    with pytest.raises(OptionError, match=r"FluxPipeline does not look.*ppap\.steer"):
        ppap.diffusers_callback(tiny("flux"), asks())
    with pytest.raises(OptionError, match=r"IFPipeline has no callback_on_step_end.*ppap\.steer"):
        ppap.diffusers_callback(tiny("if"), asks())

    class Late(diffusers.StableDiffusionPipeline):  # type: ignore[misc]
        def __call__(self, *args: Any, callback_on_step_end: Any, **kwargs: Any) -> Any:
            def passed(*args: Any) -> Any:
                return callback_on_step_end(*args)

            return super().__call__(*args, callback_on_step_end=passed, **kwargs)

    late = Late(**tiny("sd").components, requires_safety_checker=False)
    late.set_progress_bar_config(disable=True)
    with pytest.raises(OptionError, match=r"only after its first step.*ppap\.steer"):
        run(late, ppap.diffusers_callback(late, asks()))


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        (lambda: ppap.guidance("nothing"), UnknownNameError, "nothing"),
        (lambda: ppap.guidance("classifier", target="a zebra"), TargetError, "zebra"),
        (lambda: ppap.guidance("classifier", target="red cube", recipe="no"), PpapError, "no"),
        (lambda: "depth", OptionError, "where guidance is wanted"),
        (lambda: asks(DPS), OptionError, r"too late for.*ppap\.steer"),
        (lambda: asks(FREEDOM), OptionError, "takes every step 2 times"),
    ],
)
def test_what_cannot_be_asked_is_named(given: Any, error: type[PpapError], words: str) -> None:
    pytest.importorskip("ppap_plugin_classifier")
    with pytest.raises(error, match=words):
        ppap.diffusers_callback(tiny("sd"), given())


def test_guides_are_described_as_for_a_run() -> None:
    pytest.importorskip("ppap_plugin_classifier")
    pipe = tiny("sd")
    descriptions = [
        ppap.guidance("classifier", target="red cube"),
        ppap.guidance(ppap.reward(lambda x: x.mean((1, 2, 3))), name="bright", scale=300.0),
    ]
    callback = ppap.diffusers_callback(pipe, descriptions)
    assert not torch.equal(run(pipe, callback), run(pipe))
    assert list(callback.report.losses) == ["classifier", "bright"]
    bright = callback.report.losses["bright"]
    assert bright[-1][0] < bright[0][0]


def test_it_is_saved_and_read_again(tmp_path: Path) -> None:
    pytest.importorskip("ppap_plugin_classifier")
    pipe = tiny("sd")
    description = ppap.guidance("classifier", target="red cube", scale=30.0, interval="-4:")
    callback = ppap.diffusers_callback(pipe, description, seed=2)
    expected = run(pipe, callback)
    callback.save_pretrained(tmp_path)
    again = StepGuidance.from_pretrained(tmp_path, pipe=pipe)
    assert torch.equal(run(pipe, again), expected)
    with pytest.raises(OptionError, match="object in memory"):
        ppap.diffusers_callback(pipe, asks()).save_pretrained(tmp_path / "other")
    saved = tmp_path / "ppap_callback.json"
    values = json.loads(saved.read_text())
    saved.write_text(json.dumps(values | {"guidance": [{"name": "x", "what": "evil.py:run"}]}))
    with pytest.raises(OptionError, match="would be run"):
        StepGuidance.from_pretrained(tmp_path, pipe=pipe)


def test_the_host_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ppap.nothing
