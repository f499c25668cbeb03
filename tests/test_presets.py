"""What holds for every preset, and for the parts that only some of them have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from worlds import GaussianBackbone, QuadraticGuide

from ppap_host.backbones.backbone import Backbone, ClassifierFree
from ppap_host.files.errors import OptionError, PpapError
from ppap_host.plugins import builtin
from ppap_host.plugins.loading import load_recipe
from ppap_host.plugins.registry import registry
from ppap_host.recipes.ascents import Gradient
from ppap_host.recipes.energies import MonteCarlo, Point
from ppap_host.recipes.estimate import Estimate
from ppap_host.recipes.gradients import Smoothed
from ppap_host.recipes.places import CleanPoint, Entering
from ppap_host.recipes.presets import (
    ADAM_DPS,
    DPS,
    LGD_MC,
    MPGD,
    PIGDM,
    TFG,
    X0,
)
from ppap_host.recipes.recipe import Move, Recipe
from ppap_host.recipes.settings import split_recipe
from ppap_host.recipes.views import Predicted, PredictedThrough
from ppap_host.sampling.evaluator import Guidance, Health
from ppap_host.sampling.loop import sample
from ppap_host.sampling.solvers import DDIM, DDPM, Heun, Solver
from ppap_host.sampling.streams import ImageNoise

PRESETS: list[Recipe] = [entry.load() for entry in builtin.ppap_recipes()]
FOR_ANY_GUIDE = [r for r in PRESETS if r.name != "pigdm" and not r.guideless]
BY_NAME = {"ids": lambda recipe: recipe.name}


def run(
    recipe: Recipe | None,
    scale: float = 0.05,
    solver: Solver | None = None,
    images: Sequence[int] = range(3),
    steps: int = 8,
    health: Health | None = None,
    world: Backbone | None = None,
    guide: Any = None,
) -> Tensor:
    world = world or GaussianBackbone(shape=(3, 8, 8))
    guide = guide or QuadraticGuide(noise=1.0)
    target = torch.full((1, *world.state_shape), 0.9)
    asked = [] if recipe is None else [Guidance(guide, target, recipe, scale)]
    return sample(
        world, ClassifierFree(world, {}, {}), world.walk(steps), solver or DDIM(),
        ImageNoise(3, images, world.state_shape), asked, health=health,
    )  # fmt: skip


@pytest.mark.parametrize("recipe", FOR_ANY_GUIDE, **BY_NAME)
def test_image_k_of_a_preset_does_not_depend_on_the_batch_it_is_in(recipe: Recipe) -> None:
    together = run(recipe, solver=DDIM(1.0))
    for k in range(3):
        alone = run(recipe, solver=DDIM(1.0), images=[k])
        torch.testing.assert_close(alone[0], together[k], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recipe", FOR_ANY_GUIDE, **BY_NAME)
def test_a_guide_that_says_what_is_not_finite_is_told_of_and_spoils_no_image(
    recipe: Recipe,
) -> None:
    health = Health()
    x = run(recipe, guide=QuadraticGuide(noise=1.0, broken=(0,)), health=health)
    assert x.isfinite().all()
    assert 0 < health.skipped["quadratic"] < health.asked["quadratic"] and health.warnings()


@pytest.mark.parametrize("absolute", [False, True], ids=["relative", "absolute"])
@pytest.mark.parametrize("recipe", FOR_ANY_GUIDE, **BY_NAME)
@pytest.mark.parametrize("scale", [1e2, 1e6, 1e30])
@pytest.mark.parametrize("clip", [None, (-1.0, 1.0)], ids=["latent", "pixels"])
def test_no_strength_drives_a_preset_out_of_all_bounds(
    recipe: Recipe, scale: float, clip: tuple[float, float] | None, absolute: bool
) -> None:
    recipe = replace(recipe, absolute=absolute)
    world, health = GaussianBackbone(shape=(3, 8, 8)), Health()
    world.clip = clip
    x = run(recipe, scale, DDPM(), steps=12, health=health, world=world)
    assert x.isfinite().all() and x.abs().max() < 100
    if recipe.absolute and scale >= 1e6 and recipe.moves:
        assert health.limited["quadratic"] > health.limitable["quadratic"] / 2


@pytest.mark.parametrize("recipe", FOR_ANY_GUIDE, **BY_NAME)
def test_a_preset_at_strength_zero_changes_nothing(recipe: Recipe) -> None:
    assert torch.equal(run(recipe, 0.0), run(None))


@pytest.mark.parametrize("recipe", PRESETS, **BY_NAME)
def test_every_parameter_leads_somewhere_and_starts_within_its_bounds(recipe: Recipe) -> None:
    assert not any(parameter.astray(recipe) for parameter in recipe.parameters)
    for name, parameter in recipe.tunable().items():
        value = recipe.value(name)
        if parameter.choices:
            assert value in parameter.choices
            other = next(c for c in parameter.choices if c != value)
        elif isinstance(value, bool):
            other = not value
        else:
            if math.isfinite(value):
                assert parameter.low <= value <= parameter.high, name
            other = type(value)(parameter.high if value != parameter.high else parameter.low)
        changed = recipe.with_values({name: other})
        assert changed != recipe and changed.value(name) == other
        assert recipe.with_values({name: str(other)}) == changed


@given(st.dictionaries(st.sampled_from(["rho", "mu", "sigma"]), st.floats(0.01, 5)))
def test_settings_of_a_recipe_are_read_as_they_are_written(values: dict[str, float]) -> None:
    text = "tfg:" + ",".join(f"{k}={v!r}" for k, v in values.items())
    name, read = split_recipe(text)
    assert name == "tfg" and {k: float(v) for k, v in read.items()} == values
    recipe = load_recipe(registry(), text)
    assert all(recipe.value(k) == v for k, v in values.items())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tfg:roh=1", "rho"),
        ("tfg:rho", "sets nothing"),
        ("tfg:rho=much", "rho=much"),
        ("tfg:samples=1.5", "whole number"),
        ("tfg:samples=-1", "at least 0"),
        ("tfg:rho-course=up", "increase"),
        ("tfg:sigma-fades=perhaps", "yes nor no"),
        ("x0:recurrence=0", "recurrence"),
        ("elucd:softplus=nan", "out of range"),
        ("tfg:samples=0", "samples=0"),
        ("lgd-mc:samples=1000000", "less than or equal to 100"),
        ("x0:smoothing=inf", "less than or equal to 1"),
        ("adam-dps:beta1=1", "less than 1"),
        ("freedom:recurrence=1e18", "from 1 to 100"),
        ("elucd:gamma=inf", "finite"),
        ("elucd:joint=0", "joint is above 0"),
        ("x0:softplus=0", "softplus is above 0"),
        ("ugd:absolute=yes,rate=1e400", "finite"),
        ("tgf", "tfg"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(text: str, says: str) -> None:
    with pytest.raises(PpapError) as caught:
        load_recipe(registry(), text)
    assert says in f"{caught.value.message} {caught.value.remedy}"


def test_moves_whose_parts_do_not_go_together_are_refused() -> None:
    with pytest.raises(ValueError, match="asked again"):
        Move(PredictedThrough(), CleanPoint(), ascent=Gradient(2))
    with pytest.raises(ValueError, match="noised state"):
        Recipe("early", Predicted(), Entering())


def test_every_k_steps_a_guide_is_called() -> None:
    for every, calls in ((1, 8), (2, 4), (3, 3), (8, 1)):
        guide = QuadraticGuide(noise=1.0)
        run(replace(X0, every=every), guide=guide)
        assert guide.calls == calls


def test_recurrence_evaluates_the_backbone_again_and_iterations_only_the_guide() -> None:
    for recipe, backbone, guide_calls in (
        (replace(X0, recurrence=3), 24, 24),
        (replace(MPGD, ascent=Gradient(3)), 8, 24),
        (replace(LGD_MC, energy=MonteCarlo(5)), 8, 40),
        (TFG, 8, 8 * (1 + 4)),
    ):
        world, guide = GaussianBackbone(shape=(3, 8, 8)), QuadraticGuide(noise=1.0)
        run(recipe, world=world, guide=guide)
        assert (world.evaluations, guide.calls) == (backbone, guide_calls)


@pytest.mark.parametrize("recipe", FOR_ANY_GUIDE, **BY_NAME)
def test_a_recipe_says_how_often_it_asks_the_backbone(recipe: Recipe) -> None:
    """At every step of an image. The last step of `svdd` and of `daps` asks for nothing more."""
    asked = []

    class Counting(GaussianBackbone):
        def predict(self, x: Tensor, *args: Any) -> Any:
            asked.append(len(x))
            return super().predict(x + 1e-9 * x.sin(), *args)  # so that a way back needs x

    run(recipe, solver=DDIM(1.0), images=range(2), steps=6, world=Counting(shape=(3, 8, 8)))
    assert sum(asked) == 2 * (6 * recipe.evaluations - {"svdd": 3, "daps": 3}.get(recipe.name, 0))


def test_the_step_most_repeated_counts_for_all_guides() -> None:
    world, often, once = GaussianBackbone(), QuadraticGuide(), QuadraticGuide()
    target = torch.zeros(1, *world.state_shape)
    asked = [
        Guidance(often, target, replace(X0, recurrence=2), 0.1),
        Guidance(once, target, X0, 0.1),
    ]
    sample(
        world, ClassifierFree(world, {}, {}), world.walk(5), DDIM(),
        ImageNoise(0, range(2), world.state_shape), asked,
    )  # fmt: skip
    assert (often.calls, once.calls, world.evaluations) == (10, 10, 10)


def test_what_acts_once_a_step_is_asked_once_by_a_solver_that_evaluates_twice() -> None:
    guide = QuadraticGuide(noise=1.0)
    run(DPS, solver=Heun(), guide=guide)
    assert guide.calls == 8
    guide = QuadraticGuide(noise=1.0)
    run(X0, solver=Heun(), guide=guide)
    assert guide.calls == 15


def test_noise_that_a_recipe_draws_leaves_the_samplers_own_alone() -> None:
    """With a strength too small to matter, drawing or not, the same image comes out."""
    quiet = run(replace(LGD_MC, energy=Point()), 1e-9, DDPM())
    torch.testing.assert_close(run(LGD_MC, 1e-9, DDPM()), quiet, rtol=0, atol=1e-6)


# DPS, FreeDoM, LGD, MPGD and UGD as points of TFG's design space (Ye et al., 2024, theorem 3.2).


# Parts.


def test_moments_are_kept_for_each_guide_and_forgotten_with_the_batch() -> None:
    torch.testing.assert_close(run(ADAM_DPS, 0.05), run(ADAM_DPS, 0.05))


def test_pigdm_is_refused_for_a_guide_that_measures_nothing() -> None:
    with pytest.raises(OptionError, match="no linear measurement"):
        Guidance(QuadraticGuide(), torch.zeros(1), PIGDM, 1.0)


def test_no_smoothing_leaves_the_gradient_as_it_is() -> None:
    recipe = load_recipe(registry(), "x0:smoothing=0")
    (smoothed,) = [part for part in recipe.gradient if isinstance(part, Smoothed)]
    gradient = torch.randn(2, 3, 8, 8)
    level = GaussianBackbone(shape=(3, 8, 8)).walk(4).levels[0]
    assert torch.equal(smoothed(gradient, Estimate(level, gradient, gradient, gradient)), gradient)
