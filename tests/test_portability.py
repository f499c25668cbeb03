"""Experts tuned with one noise schedule guide a backbone with another."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from worlds import ColourGuide, Exploding, small_gaussian

from ppap_host.backbones.backbone import Backbone, ClassifierFree
from ppap_host.experts.harvest import Lesson
from ppap_host.experts.sets import ExpertSet, WithExperts
from ppap_host.experts.tuning import TuningConfig, tune
from ppap_host.files.images import to_unit
from ppap_host.guides.guide import Guide
from ppap_host.plugins.registry import registry
from ppap_host.recipes.presets import PPAP
from ppap_host.sampling.evaluator import Guidance
from ppap_host.sampling.loop import sample
from ppap_host.sampling.solvers import DDIM, DPMSolverPP2M, Heun, Solver
from ppap_host.sampling.streams import ImageNoise


def guided(
    backbone: Backbone, guide: Guide, target: Tensor, solver: Solver, steps: int, scale: float
) -> Tensor:
    walk, empty = backbone.walk(steps), backbone.encode_prompts([""])
    noise = ImageNoise(5, range(len(target)), backbone.state_shape)
    # The first state in either form is the same picture: alpha_T x_0 is left out of both.
    start = noise() * walk.levels[0].scale
    return sample(
        backbone,
        ClassifierFree(backbone, empty, empty),
        walk,
        solver,
        noise,
        [Guidance(guide, target, PPAP, scale)],
        start=start,
    )


@pytest.fixture(scope="module")
def experts() -> ExpertSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (64, 3, 8, 8), generator=generator, dtype=torch.uint8)
    guide = ColourGuide()
    lesson = Lesson(pixels, guide.see(to_unit(pixels)), {})
    config = TuningConfig(experts=3, rank=1, steps=10, batch=8)
    return tune(guide, lesson, small_gaussian().levels(), config)


@pytest.mark.parametrize("solver", [DDIM(), DPMSolverPP2M(), Heun()], ids=lambda s: s.name)
def test_a_set_tuned_on_one_schedule_guides_the_other(experts: ExpertSet, solver: Solver) -> None:
    guide = WithExperts(ColourGuide(), experts, image_size=(8, 8))
    target = torch.tensor([[0.3, -0.2, 0.1], [0.0, 0.5, -0.5]])
    preserving = small_gaussian()
    one = guided(preserving, guide, target, solver, 12, 2.0)
    other = guided(Exploding(preserving), guide, target, solver, 12, 2.0)
    unguided = guided(preserving, guide, target, solver, 12, 0.0)
    assert (one - unguided).abs().max() > 0.02
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_the_ranges_of_both_schedules_are_the_same(experts: ExpertSet) -> None:
    preserving, exploding = small_gaussian(), Exploding(small_gaussian())
    for a, b in zip(preserving.levels(), exploding.levels(), strict=True):
        assert a.log_snr == pytest.approx(b.log_snr)
        assert experts.serving(a) == experts.serving(b)


def test_the_shipped_classifier_experts_measure_the_same_on_either_form() -> None:
    found = registry()
    guide = found.make("guide", "classifier", Guide, model=None)  # type: ignore[type-abstract]
    experts = ExpertSet.load(found.load("expert set", "classifier-shapes-5")())
    shapes = found.make("backbone", "shapes", Backbone, checkpoint=None)  # type: ignore[type-abstract]
    wrapped = WithExperts(guide, experts, image_size=shapes.image_size)
    target = torch.cat(
        [guide.read_target(name, (64, 64)).value for name in ("red cube", "blue cone")]
    )
    scale = guide.default_scale.get("ppap", guide.default_scale[""])
    one, other = (
        guided(backbone, wrapped, target, DDIM(), 10, scale)
        for backbone in (shapes, Exploding(shapes))
    )
    with torch.no_grad():
        measured = [guide.measure(guide.see(x), target) for x in (one, other)]
    assert measured[0]["right"] == measured[1]["right"]
    assert measured[0]["probability"] == pytest.approx(measured[1]["probability"], abs=0.05)
