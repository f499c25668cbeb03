"""Modular pipelines: steered within a block, and by a guider around another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import ClassifierFreeGuidance, guiders
from diffusers.hooks import LayerSkipConfig
from pipelines import MODULAR, ContrastGuide, run_modular, tiny
from torch import Tensor

import ppap_host as ppap
from ppap_host.files.errors import OptionError, UnknownNameError
from ppap_host.pipelines.guider import Guider, _described, _made, guider
from ppap_host.pipelines.steer import steer
from ppap_host.recipes.presets import X0, X0_THROUGH
from ppap_host.recipes.recipe import Recipe
from ppap_host.sampling.evaluator import Guidance

STEPS = 4
WITH_GUIDER = [name for name in MODULAR if name != "flux"]
pytestmark = pytest.mark.filterwarnings("ignore:.*update_components")


class Indifferent(ContrastGuide):
    """A guide whose gradient is zero."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return 0 * super().loss(output, target)


def asks(recipe: Recipe = X0, guide: Any = ContrastGuide) -> Guidance:
    return Guidance(guide(), torch.tensor([2.0]), recipe, 8.0)


def made(name: str) -> Any:
    return MODULAR[name][0]()


@pytest.mark.parametrize("name", MODULAR)
@pytest.mark.parametrize("recipe", [X0, X0_THROUGH], ids=lambda recipe: recipe.name)
def test_a_block_steers_modular_pipelines(name: str, recipe: Recipe) -> None:
    pipe = made(name)
    plain = run_modular(pipe, name)
    with steer(pipe, asks(recipe, Indifferent)) as report:
        assert torch.equal(run_modular(pipe, name), plain)
    assert len(report.trace) == report.steps == STEPS
    with steer(pipe, asks(recipe)) as report:
        steered = run_modular(pipe, name)
    course = [row[0] for row in report.losses["contrast"]]
    assert course[-1] < course[0]
    assert not torch.equal(steered, plain)
    assert not steered.requires_grad
    assert torch.equal(run_modular(pipe, name), plain)


@pytest.mark.parametrize("name", WITH_GUIDER)
def test_a_guider_does_what_the_block_does(name: str) -> None:
    """Rescaling by the conditional norm, a negated prediction, two guiders: all come out right."""
    pipe = made(name)
    plain = run_modular(pipe, name)
    with steer(pipe, asks()):
        expected = run_modular(pipe, name)
    parts = [part for part in pipe._component_specs if part.startswith("guider")]
    before = {part: getattr(pipe, part) for part in parts}
    ours = {part: guider(pipe, asks(), around=before[part]) for part in parts}
    pipe.update_components(**ours)
    kinds = type(pipe), type(pipe.scheduler)
    assert torch.equal(run_modular(pipe, name), expected)
    assert torch.equal(run_modular(pipe, name), expected)
    assert sum(len(each.report.trace) for each in ours.values()) == 2 * STEPS
    assert {each.report.calls for each in ours.values()} == {2}
    assert (type(pipe), type(pipe.scheduler)) == kinds
    pipe.update_components(**before)
    assert torch.equal(run_modular(pipe, name), plain)


def test_only_the_guider_of_some_steps_guides_them() -> None:
    pipe = made("wan22")
    first = guider(pipe, asks(), around=pipe.guider)
    pipe.update_components(guider=first)
    run_modular(pipe, "wan22")
    boundary = pipe.config.boundary_ratio * pipe.num_train_timesteps
    high = [k for k, t in enumerate(pipe.scheduler.timesteps) if t >= boundary]
    assert [t.step for t in first.report.trace] == high
    assert 0 < len(high) < STEPS


def test_start_and_stop_are_kept() -> None:
    pipe = made("sdxl")
    for start, stop, steps in ((0.5, 1.0, [2, 3]), (0.0, 0.25, [0]), (0.3, 0.3, [])):
        ours = guider(pipe, asks(), around=ClassifierFreeGuidance(3.0), start=start, stop=stop)
        pipe.update_components(guider=ours)
        run_modular(pipe, "sdxl")
        assert [t.step for t in ours.report.trace] == steps


@pytest.mark.parametrize(
    "around",
    [
        ClassifierFreeGuidance(guidance_scale=4.0, guidance_rescale=0.5, start=0.3),
        diffusers.AdaptiveProjectedGuidance(guidance_scale=4.0),
        diffusers.ClassifierFreeZeroStarGuidance(guidance_scale=4.0),
        diffusers.TangentialClassifierFreeGuidance(guidance_scale=4.0),
    ],
    ids=lambda around: type(around).__name__,
)
def test_any_guider_may_be_inside(around: Any) -> None:
    pipe = made("sdxl")
    pipe.update_components(guider=around)
    plain = run_modular(pipe, "sdxl")
    ours = guider(pipe, asks(guide=Indifferent))  # around the one that is there
    assert ours.around is around
    pipe.update_components(guider=ours)
    assert torch.equal(run_modular(pipe, "sdxl"), plain)
    assert ours.guidance_scale == 4.0
    assert ours.num_conditions == around.num_conditions
    assert len(ours.report.trace) == STEPS
    assert guider(pipe, asks()).around is around  # never two deep
    changed = ours.new(guidance_scale=2.0)
    assert isinstance(changed, Guider)
    assert changed.around.guidance_scale == 2.0


def test_disabling_it_disables_the_other_guider() -> None:
    pipe = made("sdxl")
    around = ClassifierFreeGuidance(4.0)
    ours = guider(pipe, asks(), around=around)
    assert ours._enabled
    ours.disable()
    assert not around._enabled
    assert ours.num_conditions == 1
    ours.enable()
    assert around._enabled
    with pytest.raises(AttributeError, match="nothing"):
        _ = ours.nothing
    assert "Guider" in repr(ours)


def test_after_an_exception_nothing_is_left_of_it() -> None:
    class Halts(Exception):
        pass

    class Fails(ContrastGuide):
        def loss(self, output: Tensor, target: Tensor) -> Tensor:
            raise Halts

    pipe = made("sdxl")
    plain, before, kind = run_modular(pipe, "sdxl"), pipe.guider, type(pipe.scheduler)
    pipe.update_components(guider=guider(pipe, asks(guide=Fails)))
    with pytest.raises(Halts):
        run_modular(pipe, "sdxl")
    assert type(pipe.scheduler) is kind
    pipe.update_components(guider=before)
    assert torch.equal(run_modular(pipe, "sdxl"), plain)


def test_what_a_guider_cannot_do_names_what_can() -> None:
    with pytest.raises(OptionError, match=r"no guider; update_components would.*ppap\.steer"):
        guider(made("flux"), asks())
    with pytest.raises(OptionError, match=r"no modular pipeline.*ppap\.steer"):
        guider(tiny("sd"), asks())
    with pytest.raises(OptionError, match=r"too late for.*ppap\.steer"):
        guider(made("sdxl"), asks(X0_THROUGH))
    with pytest.raises(OptionError, match="A str is no guider"):
        guider(made("sdxl"), asks(), around="cfg")
    one, other = made("sdxl"), made("sdxl")
    one.update_components(guider=guider(other, asks()))
    with pytest.raises(OptionError, match="made for another pipeline"):
        run_modular(one, "sdxl")


@pytest.mark.parametrize("name", ["SkipLayerGuidance", "MagnitudeAwareGuidance"])
def test_the_other_guider_is_described_as_diffusers_does_it(name: str) -> None:
    """Also where its settings are objects, and where diffusers itself does not list it."""
    kind = getattr(guiders, name)
    layers = {"indices": [0], "fqn": "blocks"}
    around = kind(skip_layer_config=LayerSkipConfig(**layers)) if "Skip" in name else kind(3.0)
    again = _made(json.loads(json.dumps(_described(around))), "folder")
    assert type(again) is kind
    assert again.to_json_string() == around.to_json_string()


def test_it_is_saved_and_read_again(tmp_path: Path) -> None:
    pytest.importorskip("ppap_plugin_classifier")
    pipe = made("sdxl")
    description = ppap.guidance("classifier", target="red cube", scale=30.0)
    ours = ppap.guider(
        pipe, description, around=ClassifierFreeGuidance(3.0, start=0.25), start=0.25, seed=3
    )
    pipe.update_components(guider=ours)
    expected = run_modular(pipe, "sdxl")
    ours.save_pretrained(tmp_path)
    again = Guider.from_pretrained(tmp_path, pipe=pipe)
    assert again.around.config["guidance_scale"] == 3.0
    assert again.around.config["start"] == 0.25
    pipe.update_components(guider=again)
    assert torch.equal(run_modular(pipe, "sdxl"), expected)
    with pytest.raises(OptionError, match="object in memory"):
        guider(pipe, asks()).save_pretrained(tmp_path / "other")
    saved = tmp_path / "ppap_guider.json"
    values = json.loads(saved.read_text())
    for change, error, words in (
        ({"around": {"class": "StableDiffusionPipeline", "config": {}}}, OptionError, "no guider"),
        ({"guidance": [{"name": "evil.py:run", "what": "evil.py:run"}]}, OptionError, "be run"),
        ({"guidance": [{"name": "nothing"}]}, UnknownNameError, "nothing"),
    ):
        saved.write_text(json.dumps(values | change))
        with pytest.raises(error, match=words):
            Guider.from_pretrained(tmp_path, pipe=pipe)
    saved.write_text("{")
    with pytest.raises(OptionError, match="is no saved guidance"):
        Guider.from_pretrained(tmp_path, pipe=pipe)
