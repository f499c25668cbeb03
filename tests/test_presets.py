"""What holds for every preset, and for the parts that only some of them have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from analytic import NOTHING, Likelihood
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from worlds import Exploding, GaussianBackbone, QuadraticGuide

from ppap_host.backbones.backbone import Backbone, ClassifierFree
from ppap_host.backbones.noise import CLEAN, NoiseLevel, Walk
from ppap_host.files.errors import OptionError, PpapError
from ppap_host.guides.operators import LinearOperator
from ppap_host.plugins import builtin
from ppap_host.plugins.loading import load_recipe
from ppap_host.plugins.registry import registry
from ppap_host.recipes.ascents import Adam, Gradient
from ppap_host.recipes.energies import MonteCarlo, Point, Question
from ppap_host.recipes.estimate import Estimate, Step
from ppap_host.recipes.gradients import AdamMoments
from ppap_host.recipes.places import CleanPoint, Entering, NextState
from ppap_host.recipes.presets import (
    ADAM_DPS,
    DPS,
    ELUCD,
    FREEDOM,
    LGD_MC,
    MPGD,
    PIGDM,
    TFG,
    UGD,
    X0,
)
from ppap_host.recipes.recipe import Move, Recipe
from ppap_host.recipes.settings import split_recipe
from ppap_host.recipes.strengths import Constant, Scheduled, SineVariance
from ppap_host.recipes.views import Predicted, PredictedThrough
from ppap_host.sampling.evaluator import Guidance, Health
from ppap_host.sampling.loop import sample
from ppap_host.sampling.solvers import DDIM, DDPM, Heun, Solver
from ppap_host.sampling.streams import ImageNoise

PRESETS: list[Recipe] = [entry.load() for entry in builtin.ppap_recipes()]
FOR_ANY_GUIDE = [recipe for recipe in PRESETS if recipe.name != "pigdm"]
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
@pytest.mark.parametrize("solver", [DDIM(), DDIM(1.0), DDPM(), Heun()], ids=str)
def test_a_preset_pulls_towards_the_target_with_every_solver(
    recipe: Recipe, solver: Solver
) -> None:
    # Recurrence draws noise of its own: by itself it leads elsewhere without any guide.
    recipe = replace(recipe, recurrence=1)
    scale = {"elucd-edm": 2.0, "naive": 0.2}.get(recipe.name, 0.05)
    target = torch.full((1, 3, 8, 8), 0.9)
    error = (run(recipe, scale, solver, steps=20) - target).abs().mean()
    assert error < 0.98 * (run(None, solver=solver, steps=20) - target).abs().mean()


@pytest.mark.parametrize("recipe", FOR_ANY_GUIDE, **BY_NAME)
def test_image_k_of_a_preset_does_not_depend_on_the_batch_it_is_in(recipe: Recipe) -> None:
    together = run(recipe, solver=DDIM(1.0))
    for k in range(3):
        alone = run(recipe, solver=DDIM(1.0), images=[k])
        torch.testing.assert_close(alone[0], together[k], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recipe", FOR_ANY_GUIDE, **BY_NAME)
@pytest.mark.parametrize("scale", [1e2, 1e6, 1e30])
@pytest.mark.parametrize("clip", [None, (-1.0, 1.0)], ids=["latent", "pixels"])
def test_no_strength_drives_a_preset_out_of_all_bounds(
    recipe: Recipe, scale: float, clip: tuple[float, float] | None
) -> None:
    world, health = GaussianBackbone(shape=(3, 8, 8)), Health()
    world.clip = clip
    x = run(recipe, scale, DDPM(), steps=12, health=health, world=world)
    assert x.isfinite().all() and x.abs().max() < 100
    if scale >= 1e6:
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


@dataclass(frozen=True)
class NotCarried:
    """The strength that undoes TFG's 1 / sqrt(alpha_t)."""

    factor: float = 1.0

    def __call__(self, estimate: Estimate) -> float:
        step = estimate.on_walk()
        return self.factor * step.now.alpha / step.then.alpha


def tfg(**values: Any) -> Recipe:
    return TFG.with_values({"sigma": 0.0, "recurrence": 1} | values)


def without(recipe: Recipe, move: int) -> Recipe:
    """TFG with the strength of one of its moves at zero."""
    silent = Constant(0.0)
    if move == 0:
        return replace(recipe, strength=silent)
    return replace(recipe, also=(replace(recipe.also[0], strength=silent),))


@pytest.mark.parametrize("solver", [DDIM(), DDIM(1.0)], ids=str)
@pytest.mark.parametrize(
    ("method", "point"),
    [
        pytest.param(
            replace(DPS, gradient=TFG.gradient),
            replace(without(tfg(), 1), strength=NotCarried()),
            id="dps",
        ),
        pytest.param(FREEDOM, without(tfg(recurrence=2), 1), id="freedom"),
        pytest.param(
            LGD_MC,
            without(tfg(**{"rho-course": "constant", "sigma": 1.0, "samples": 4}), 1),
            id="lgd-mc",
        ),
        pytest.param(
            MPGD,
            without(tfg(**{"mu": 1.0, "mu-course": "constant", "iterations": 1}), 0),
            id="mpgd",
        ),
    ],
)
def test_a_method_is_a_point_of_tfg(method: Recipe, point: Recipe, solver: Solver) -> None:
    torch.testing.assert_close(run(method, 0.05, solver), run(point, 0.05, solver))


def test_universal_guidance_is_a_point_of_tfg() -> None:
    """Forward guidance shifts eps and TFG the next state: a step of DDIM makes them the same.

    eps - sigma g moves the next state by (alpha' sigma^2 / alpha - sigma' sigma) g, and a delta of
    x_0 by alpha' delta where eps is kept; backward guidance that lets eps follow moves it by
    (alpha' - sigma' alpha / sigma) delta.
    """

    @dataclass(frozen=True)
    class Forward:
        def __call__(self, estimate: Estimate) -> float:
            step = estimate.on_walk()
            now, then = step.now, step.then
            move = then.alpha * now.sigma**2 / now.alpha - then.sigma * now.sigma
            return move * now.alpha / then.alpha

    @dataclass(frozen=True)
    class Follow:
        """CleanPoint whose eps follows, in terms of one whose eps is kept."""

        def __call__(self, estimate: Estimate, gradient: Tensor, ancestral: bool) -> Estimate:
            step = estimate.on_walk()
            now, then = step.now, step.then
            share = 1 - then.sigma * now.alpha / (now.sigma * then.alpha)
            return CleanPoint(keep_eps=True)(estimate, share * gradient, ancestral)

        enters = once = False

        def unit(self, estimate: Estimate) -> float:
            return 1.0

    backward = replace(
        TFG.also[0], strength=Constant(0.3), place=CleanPoint(), energy=Point(),
        ascent=Gradient(2), limit=math.inf,
    )  # fmt: skip
    universal = replace(UGD, also=(backward,), limit=math.inf, recurrence=2)
    point = replace(
        tfg(recurrence=2), strength=Forward(), limit=math.inf,
        also=(replace(backward, place=Follow()),),
    )  # fmt: skip
    torch.testing.assert_close(run(universal, 0.02), run(point, 0.02), rtol=1e-4, atol=1e-5)


# Parts.


def on_walk(level: NoiseLevel, x: Tensor, index: int, walk: Walk, **given: Any) -> Estimate:
    return Estimate(level, x, x, x, step=Step(walk, index), **given)


def test_elucds_strength_is_the_variance_and_a_sine_on_every_schedule() -> None:
    """Ma et al. (2024): S + gamma sin(pi k / N) S_max, at unit scale."""
    world = GaussianBackbone()
    for backbone in (world, Exploding(world)):
        walk = backbone.walk(10)
        x = torch.zeros(1, 3, 4, 4)
        found = [
            float(SineVariance(0.5)(on_walk(walk.levels[i], x, i, walk)).mean()) for i in range(10)
        ]
        plain = world.walk(10)
        beta = [math.exp(plain.posterior(i).log_upper) for i in range(10)]
        for i in range(10):
            variance = beta[i] if i < 9 else plain.posterior(8).variance
            expected = variance + 0.5 * math.sin(math.pi * (9 - i) / 10) * max(beta)
            assert found[i] == pytest.approx(expected, rel=1e-5)


def test_elucd_guides_alike_on_schedules_that_are_the_same_process() -> None:
    world = GaussianBackbone(shape=(3, 8, 8))
    guide = QuadraticGuide(noise=1.0)
    plain = run(ELUCD, 0.02, DDIM(), world=world, guide=guide)
    exploding = run(ELUCD, 0.02, DDIM(), world=Exploding(world), guide=guide)
    torch.testing.assert_close(plain, exploding, rtol=1e-3, atol=1e-3)


def test_a_course_has_the_mean_it_says() -> None:
    walk = GaussianBackbone().walk(12)
    x = torch.zeros(1, 3, 4, 4)
    for course in ("increase", "decrease", "constant"):
        strength = Scheduled(0.7, course)
        found = [strength(on_walk(walk.levels[i], x, i, walk)) for i in range(12)]
        assert sum(found) / 12 == pytest.approx(0.7)
        # The last step leads to the clean image, which is a step of its own kind.
        sign = {"increase": 1, "decrease": -1, "constant": 0}[course]
        assert (found[-2] - found[0]) * sign > 0 or course == "constant"


def test_monte_carlo_smoothing_is_exact_for_a_quadratic_loss() -> None:
    """E exp(-|u + d - y|^2 / 2) of a Gaussian d is a Gaussian with the variances added."""
    u = torch.zeros(1, 1, 1, 1, requires_grad=True)
    width, wanted = 0.5, 1.0

    noise = torch.randn(20_000, 1, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    guide = Likelihood(lambda x, _: -(x - wanted).square().flatten(1).sum(dim=1) / 2)
    question = Question(
        guide, NOTHING, lambda x: x, NoiseLevel(0.6, 0.8, 0.0), None, lambda count: list(noise)
    )
    energy = MonteCarlo(len(noise), width, fading=False)
    (gradient,) = torch.autograd.grad(energy(question, u).sum(), u)
    assert float(gradient) == pytest.approx(-wanted / (1 + width**2), abs=0.02)


def test_adams_moments_are_those_of_the_optimiser() -> None:
    torch.manual_seed(0)
    gradients = torch.randn(6, 2, 3, 4, 4)
    point = torch.zeros(2, 3, 4, 4, requires_grad=True)
    optimiser = torch.optim.Adam([point], lr=1.0, betas=(0.8, 0.95))
    estimate = Estimate(NoiseLevel(0.6, 0.8, 0.0), *[torch.zeros(2, 3, 4, 4)] * 3)
    part, way = AdamMoments(0.8, 0.95), torch.zeros(2, 3, 4, 4)
    for gradient in gradients:
        point.grad = gradient.clone()
        optimiser.step()
        way -= part(gradient, estimate)
    torch.testing.assert_close(way, point.detach())


def test_moments_are_kept_for_each_guide_and_forgotten_with_the_batch() -> None:
    torch.testing.assert_close(run(ADAM_DPS, 0.05), run(ADAM_DPS, 0.05))


def test_an_image_without_a_gradient_once_does_not_poison_its_moments() -> None:
    estimate = Estimate(NoiseLevel(0.6, 0.8, 0.0), *[torch.zeros(2, 3, 4, 4)] * 3)
    part, gradient = AdamMoments(), torch.ones(2, 3, 4, 4)
    broken = gradient.clone()
    broken[0] = math.nan
    assert part(broken, estimate)[0].isnan().all()
    assert part(gradient, estimate).isfinite().all()


def test_backward_guidance_stops_where_the_loss_is_low_enough() -> None:
    asked = []

    def pull(point: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(point)
        return -point, point.square().flatten(1).sum(dim=1)

    start = torch.stack([torch.full((1, 2, 2), 0.9), torch.full((1, 2, 2), 0.01)])
    estimate = Estimate(NoiseLevel(0.6, 0.8, 0.0), start, start, start, clip=(-0.5, 0.5))
    way = Adam(50, 0.1, cutoff=0.01)(pull, start, estimate)
    assert torch.equal(way[1], torch.zeros(1, 2, 2))
    assert len(asked) < 50 and (start + way)[0].abs().max() < 0.1
    assert all(point.abs().max() <= 0.5 for point in asked)


class Half(LinearOperator):
    """Measures the left half of the picture."""

    def __call__(self, x: Tensor) -> Tensor:
        return x[..., : x.shape[-1] // 2]

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.cat([y, torch.zeros_like(y)], dim=-1)

    def pseudo_inverse(self, y: Tensor, ratio: float = 0.0) -> Tensor:
        return self.adjoint(y) / (1 + ratio)


class Seen(QuadraticGuide):
    def operator(self, target: Tensor) -> LinearOperator:
        return Half()

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        raise AssertionError("PiGDM asks the operator, not the loss")


@pytest.mark.parametrize("solver", [DDIM(), DDIM(1.0), DDPM()], ids=str)
def test_pigdm_meets_a_measurement_and_leaves_the_rest_to_the_backbone(solver: Solver) -> None:
    world = GaussianBackbone(mean=-0.3, spread=0.5, shape=(3, 8, 8))
    wanted = torch.full((1, 3, 8, 4), 0.8)
    x = sample(
        world, ClassifierFree(world, {}, {}), world.walk(60), solver,
        ImageNoise(1, range(12), world.state_shape), [Guidance(Seen(), wanted, PIGDM, 1.0)],
    )  # fmt: skip
    assert (x[..., :4] - 0.8).abs().mean() < 0.1
    assert float(x[..., 4:].mean()) == pytest.approx(-0.3, abs=0.1)
    assert float(x[..., 4:].std()) == pytest.approx(0.5, abs=0.1)


def test_pigdm_is_refused_for_a_guide_that_measures_nothing() -> None:
    with pytest.raises(OptionError, match="no linear measurement"):
        Guidance(QuadraticGuide(), torch.zeros(1), PIGDM, 1.0)


def test_new_noise_leads_back_to_the_level_of_the_step() -> None:
    """q(x_t | x_s) of the forward process, on every schedule."""
    for now, then in (
        (NoiseLevel(0.6, 0.8, 0.0), NoiseLevel(0.8, 0.6, 0.0)),
        (NoiseLevel(1.0, 5.0, 0.0), NoiseLevel(1.0, 2.0, 0.0)),
        (NoiseLevel(0.3, 0.7, 0.0), NoiseLevel(0.7, 0.3, 0.0)),
    ):
        step = Step(Walk((now, then, CLEAN)), 0)
        noise = torch.randn(2, 200_000, dtype=torch.float64)
        x0 = 0.4
        back = step.back(then.alpha * x0 + then.sigma * noise[0], noise[1])
        assert float(back.mean()) == pytest.approx(now.alpha * x0, abs=0.02)
        assert float(back.std()) == pytest.approx(now.sigma, rel=0.02)


def test_a_place_that_adds_to_the_next_state_needs_a_walk() -> None:
    x = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match="step of the walk"):
        NextState()(Estimate(NoiseLevel(0.6, 0.8, 0.0), x, x, x), x, False)
