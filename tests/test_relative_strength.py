"""Relative strength: scale 1 is the same share of what a step may move, whatever guides and how."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from worlds import GaussianBackbone, QuadraticGuide

from ppap_host.backbones.backbone import Backbone, ClassifierFree
from ppap_host.backbones.noise import NoiseLevel, NoiseRange, Walk
from ppap_host.files.errors import OptionError
from ppap_host.plugins import builtin
from ppap_host.recipes.ascents import Gradient
from ppap_host.recipes.estimate import Estimate, Step
from ppap_host.recipes.gradients import root_mean_square
from ppap_host.recipes.places import CleanPoint, Entering, MeanOrScore, NextState, Place, Score
from ppap_host.recipes.presets import ADAM_MPGD, DPS, MPGD, TFG, UGD, X0
from ppap_host.recipes.recipe import Recipe
from ppap_host.recipes.shares import SHARE, Ruler, spread
from ppap_host.recipes.views import Noisy, Predicted
from ppap_host.sampling.evaluator import Guidance, Health
from ppap_host.sampling.loop import sample, stream
from ppap_host.sampling.solvers import DDIM, DDPM, DPMSolverPP2M, Heun, Solver
from ppap_host.sampling.streams import ImageNoise

PRESETS: list[Recipe] = [entry.load() for entry in builtin.ppap_recipes()]
RELATIVE = [recipe for recipe in PRESETS if not (recipe.absolute or recipe.guideless)]
BY_NAME: Any = {"ids": lambda recipe: recipe.name}
PLAIN = Recipe("plain", Predicted(), CleanPoint(clip=False))
"""Moves x_0 by the gradient as it is."""


class Told(QuadraticGuide):
    """Its gradient is a number for each image and step: the same for all entries.

    Args:
        says: the number for an image at the call of this number.
        factor: of the loss.
    """

    name = "told"

    def __init__(self, says: Any, factor: float = 1.0) -> None:
        super().__init__()
        self.says, self.factor, self.seen = says, factor, 0

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        pull = torch.tensor([float(self.says(k, self.seen)) for k in range(len(output))])
        self.seen += 1
        return -self.factor * (pull.view(-1, 1, 1, 1) * output).sum(dim=(1, 2, 3))


def run(
    guidance: Sequence[Guidance] = (),
    solver: Solver | None = None,
    steps: int = 8,
    images: Sequence[int] = range(3),
    world: Backbone | None = None,
    health: Health | None = None,
) -> Tensor:
    world = world or GaussianBackbone(shape=(3, 8, 8))
    return sample(
        world, ClassifierFree(world, {}, {}), world.walk(steps), solver or DDIM(),
        ImageNoise(3, images, world.state_shape), list(guidance), health=health or Health(),
    )  # fmt: skip


def quadratic(recipe: Recipe, scale: float = 1.0, guide: Any = None) -> Guidance:
    return Guidance(
        guide or QuadraticGuide(noise=1.0), torch.full((1, 3, 8, 8), 0.9), recipe, scale
    )


def told(recipe: Recipe, says: Any, scale: float = 1.0, factor: float = 1.0) -> Guidance:
    return Guidance(Told(says, factor), torch.zeros(1), recipe, scale)


def moves(guidance: Guidance, steps: int = 8, beside: Sequence[Guidance] = ()) -> list[list[float]]:
    """What became of x_0 in each step, of each image, as a part of what is open in the step."""
    world = GaussianBackbone(shape=(3, 8, 8))
    walk = world.walk(steps)
    found = []
    for event in stream(
        world, ClassifierFree(world, {}, {}), walk, DDIM(),
        ImageNoise(3, range(2), world.state_shape), [guidance, *beside],
    ):  # fmt: skip
        now, then = walk.levels[event.index], walk.levels[event.index + 1]
        kept = 1 - (then.sigma / then.alpha) / (now.sigma / now.alpha)
        way = (event.x0 - event.x0_unguided) * kept / (spread(now) * world.deviation)
        found.append(root_mean_square(way).flatten().tolist())
    return found


# What a share is


@pytest.mark.parametrize("factor", [1e-12, 1e-3, 1e6, 1e15])
@pytest.mark.parametrize("recipe", RELATIVE, **BY_NAME)
def test_the_size_of_a_loss_means_nothing(recipe: Recipe, factor: float) -> None:
    class Scaled(QuadraticGuide):
        def loss(self, output: Tensor, target: Tensor) -> Tensor:
            return factor * super().loss(output.double(), target.double())

    recipe = replace(recipe, gradient=tuple(p for p in recipe.gradient if "Loss" not in repr(p)))
    if recipe.energy.__class__.__name__ == "MonteCarlo":
        recipe = replace(recipe, energy=replace(recipe.energy, samples=1))  # a mean of exponentials
    solver = DDIM(1.0 if recipe.needs else 0.0)
    x = run([quadratic(recipe)], solver)
    other = run([quadratic(recipe, guide=Scaled(noise=1.0))], solver)
    torch.testing.assert_close(x, other, rtol=0, atol=2e-3)
    assert (x - run([], solver)).square().mean().sqrt() > 1e-3


@pytest.mark.parametrize("recipe", RELATIVE, **BY_NAME)
def test_a_share_does_not_depend_on_the_batch(recipe: Recipe) -> None:
    together = run([quadratic(recipe)], DDIM(1.0))
    for k in range(3):
        alone = run([quadratic(recipe)], DDIM(1.0), images=[k])
        torch.testing.assert_close(alone[0], together[k], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [4, 25])
@pytest.mark.parametrize("scale", [0.3, 1.0, -2.0])
def test_a_constant_pull_moves_every_step_by_its_share(steps: int, scale: float) -> None:
    for row in moves(told(replace(PLAIN, place=CleanPoint(clip=False)), lambda k, n: k + 1, scale),
                     steps):  # fmt: skip
        sizes = torch.tensor(row)
        assert (sizes <= abs(scale) * SHARE / steps * 1.001).all()
    first = moves(told(PLAIN, lambda k, n: k + 1, scale), steps)[0]
    assert first == pytest.approx([abs(scale) * SHARE / steps] * 2, rel=1e-3)


def test_no_step_moves_more_than_all_that_is_open() -> None:
    for row in moves(told(PLAIN, lambda k, n: 1.0, 1e30)):
        assert max(row) < 1.001


PLACES = [
    (CleanPoint(), "x0"), (CleanPoint(keep_eps=True), "x0"), (Score(), "x0"), (NextState(), "next"),
    (NextState(carried=True), "next"), (NextState(unit_scale=True), "next"),
    (MeanOrScore(), "mean"), (Entering(), "x"),
]  # fmt: skip


@pytest.mark.parametrize("place", [place for place, _ in PLACES], ids=repr)
@pytest.mark.parametrize("index", [0, 3, 6, 7])
@pytest.mark.parametrize("solver", [DDIM(), DDPM(), DPMSolverPP2M(), Heun()], ids=lambda s: s.name)
def test_a_size_is_what_becomes_of_the_state_that_the_step_ends_in(
    place: Place, index: int, solver: Solver
) -> None:
    """Against the solver's own step, taken with and without the move, from a fixed prediction."""
    if solver.name == "heun" and isinstance(place, Score | MeanOrScore):
        return  # its second evaluation moves x_0 by less, as far as a score does there
    world = GaussianBackbone(shape=(3, 8, 8))
    step = Step(world.walk(8), index)
    now, then = step.now, step.then
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    way = 1e-3 * x.flip(0)
    x0 = 0.3 * x

    def ended(moved: bool) -> Tensor:
        def evaluate(state: Tensor, level: NoiseLevel) -> Estimate:
            eps = (state - level.alpha * x0) / level.sigma
            estimate = Estimate(level, state, x0, eps, step=step)
            if moved and not place.enters:
                estimate = place(estimate, way, solver.ancestral)
            return estimate

        state = place(Estimate(now, x, x0, x0, step=step), way, False).x if moved else x
        end, estimate, _ = solver.step(state, index, step.walk, evaluate, lambda: 0 * x, None)
        return end if estimate.next_shift is None else end + estimate.next_shift

    ruler = Ruler(place, 0.5, solver.ancestral, solver.reads_eps)
    measured = ruler.sizes(Estimate(now, x, x0, x0, step=step), way)[0].flatten()
    change = root_mean_square((ended(True) - ended(False)) / then.alpha).flatten()
    added = isinstance(place, NextState) or (isinstance(place, MeanOrScore) and solver.ancestral)
    if added and index == 7:
        assert measured.isinf().all(), "at the last step additions are nothing"
        return
    wanted = change / (spread(then if added else now) * 0.5)
    if place.enters:  # the prediction is held here, so only noise is left of it at the end
        wanted = root_mean_square(way / now.alpha).flatten() / (spread(now) * 0.5)
    if solver.name == "ddpm" and not added and not place.enters:
        # An ancestral step keeps less of x_t than DDIM: s_then^2 / s_now^2 instead of their ratio.
        ratio = (then.sigma / then.alpha) / (now.sigma / now.alpha)
        wanted = wanted / (1 + ratio)
    torch.testing.assert_close(measured, wanted, rtol=1e-6, atol=0)


# What is remembered


def test_the_guides_own_signal_decides_how_steps_compare() -> None:
    """A pull that fades is followed less and less; one that grows by less than double, fully."""
    world = GaussianBackbone(shape=(3, 8, 8))
    walk = world.walk(8)
    sizes = [row[0] for row in moves(told(PLAIN, lambda k, n: 0.5**n))]
    ratios = []
    for n in range(8):
        ratios.append(0.5**n / spread(walk.levels[n]))
    most = 0.0
    for size, ratio in zip(sizes, ratios, strict=True):
        most = max(most, min(ratio, 2 * most or ratio))
        assert size == pytest.approx(SHARE / 8 * min(ratio / most, 1.0), rel=1e-3)


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_a_gradient_of_zero_or_none_leaves_the_memory_alone(bad: float) -> None:
    sound = moves(told(PLAIN, lambda k, n: 1.0))
    found = moves(told(PLAIN, lambda k, n: bad if n in (2, 3) and k == 0 else 1.0))
    for n, (a, b) in enumerate(zip(found, sound, strict=True)):
        assert a[1] == pytest.approx(b[1], rel=1e-4)
        assert a[0] == pytest.approx(0.0 if n in (2, 3) else b[0], rel=1e-4, abs=1e-6)


def test_one_outlier_is_cut_and_at_most_doubles_the_memory() -> None:
    health = Health()
    sound = moves(told(PLAIN, lambda k, n: 1.0), 12)
    guidance = told(PLAIN, lambda k, n: 1e6 if n == 4 and k == 0 else 1.0)
    found = moves(guidance, 12)
    assert found[4][0] == pytest.approx(SHARE / 12, rel=1e-3)
    for n in range(5, 12):
        assert 0.499 * sound[n][0] <= found[n][0] <= 1.001 * sound[n][0]
    run([told(PLAIN, lambda k, n: 1e6 if n == 4 and k == 0 else 1.0)], steps=12, health=health)
    assert health.limited["told"] >= 1


def test_the_memory_changes_once_a_step_where_a_solver_evaluates_twice() -> None:
    """Of both evaluations of Heun the first alone counts, and the second is cut to it."""
    calls: list[int] = []

    def says(k: int, n: int) -> float:
        calls.append(n)
        return 1.0 if n % 2 == 0 else 1e6  # 2 n at the first evaluation of step n, then the second

    wild, calm = (run([told(PLAIN, f)], Heun()) for f in (says, lambda k, n: 1.0))
    assert max(calls) == 14, "seven steps of two evaluations, and the last of one"
    plain = run([], Heun())
    assert (wild - plain).abs().max() < 4 * (calm - plain).abs().max()


@dataclass(frozen=True)
class _Half:
    """One of two networks, by the level."""

    at: float

    def __call__(self, level: NoiseLevel | None) -> int | None:
        return None if level is None else int(level.log_snr > self.at)


@pytest.mark.parametrize("less", [0.5, 1e-3])
def test_another_network_is_followed_as_far_where_it_says_a_third(less: float) -> None:
    """Sizes of networks do not compare, but what is as good as reached is not drawn out."""
    world = GaussianBackbone(shape=(3, 8, 8))
    guide = Told(lambda k, n: 1.0 if n < 4 else less)
    guide.expert_at = _Half(world.walk(8).levels[4].log_snr - 1e-6)  # type: ignore[method-assign]
    recipe = replace(PLAIN, view=Noisy())
    ranged = moves(Guidance(guide, torch.zeros(1), recipe, 1.0))
    alone = moves(told(recipe, lambda k, n: 1.0 if n < 4 else less))
    assert alone[:4] == ranged[:4] and alone[4][0] < 0.7 * SHARE / 8
    for n in range(4, 8):
        wanted = min(3 * alone[n][0], SHARE / 8)
        assert ranged[n][0] == pytest.approx(wanted, rel=1e-3)


def test_it_is_read_before_guides_make_room_for_each_other() -> None:
    """What one takes away from another does not change what that one remembers."""

    def pull(k: int, n: int) -> float:
        return 1.9 if n == 3 else 1.0

    against = told(PLAIN, lambda k, n: -1.0 if n == 3 else 0.0)
    alone, together = moves(told(PLAIN, pull)), moves(told(PLAIN, pull), beside=[against])
    assert together[3][0] < 1e-4 < alone[3][0]
    for n in (0, 1, 2, 4, 5, 6, 7):
        assert together[n] == pytest.approx(alone[n], rel=1e-3)


# What divides a step


@pytest.mark.parametrize(
    ("recipe", "count"),
    [
        (replace(PLAIN, every=2), 4),
        (replace(PLAIN, every=3), 3),
        (replace(PLAIN, interval=NoiseRange(-2.0, math.inf)), None),
    ],
    ids=["every second", "every third", "interval"],
)
def test_steps_are_those_in_which_the_guide_is_asked(recipe: Recipe, count: int | None) -> None:
    levels = GaussianBackbone(shape=(3, 8, 8)).walk(8).levels[:-1]
    asked = count or sum(level.log_snr in recipe.interval for level in levels)
    assert asked < 8
    rows = moves(told(recipe, lambda k, n: 1.0))
    assert max(row[0] for row in rows) == pytest.approx(SHARE / asked, rel=1e-3)
    assert sum(row[0] > 0 for row in rows) == asked


@pytest.mark.parametrize(
    "recipe",
    [
        replace(PLAIN, ascent=Gradient(steps=4)),
        replace(PLAIN, also=PLAIN.moves),
        replace(PLAIN, recurrence=3),
        replace(PLAIN, also=PLAIN.moves, ascent=Gradient(steps=2), recurrence=2),
    ],
    ids=["iterations", "moves", "repeats", "all"],
)
def test_iterations_moves_and_repeats_share_one_steps_portion(recipe: Recipe) -> None:
    """Each repeat moves x_0 by its part."""
    for row in moves(told(recipe, lambda k, n: 1.0)):
        assert row[0] <= SHARE / 8 / math.sqrt(recipe.recurrence) * 1.001
    first = moves(told(recipe, lambda k, n: 1.0))[0][0]
    assert first == pytest.approx(SHARE / 8 / math.sqrt(recipe.recurrence), rel=1e-3)


def test_the_factors_of_its_moves_divide_a_step() -> None:
    """rho and mu of tfg say how much of the step each gets; 0 leaves a move out."""
    for values in ({"rho": 0.0, "mu": 1.0}, {"rho": 1.0, "mu": 0.0}):
        recipe = TFG.with_values(values)
        assert [bool(move.weight) for move in recipe.moves] == [bool(v) for v in values.values()]
    double, same = TFG.with_values({"rho": 2.0, "mu": 0.5}), run([quadratic(TFG)])
    torch.testing.assert_close(run([quadratic(double)]), same, rtol=0, atol=1e-5)


@pytest.mark.parametrize("recipe", [UGD, ADAM_MPGD], **BY_NAME)
def test_adam_normalises_by_itself(recipe: Recipe) -> None:
    """A pull a million times smaller in the second half moves as far as one that stays."""
    recipe = replace(recipe, recurrence=1)
    small, same = (
        run([told(recipe, f)]) for f in (lambda k, n: 1.0 if n < 1 else 0.5, lambda k, n: 1.0)
    )
    plain = run()
    ratio = (small - plain).square().mean().sqrt() / (same - plain).square().mean().sqrt()
    assert 0.5 < ratio < 1.5


# Asking for a paper's


def test_absolute_strength_is_asked_for_in_the_recipe() -> None:
    assert DPS.with_values({"absolute": "yes"}) == replace(DPS, absolute=True)
    with pytest.raises(OptionError, match="absolute"):
        UGD.with_values({"rate": 0.05})
    assert UGD.with_values({"rate": 0.05, "absolute": "yes"}).value("rate") == 0.05
    assert "rate" not in UGD.tunable()


@pytest.mark.parametrize("recipe", [X0, MPGD], **BY_NAME)
def test_absolute_strength_is_in_the_units_of_the_loss(recipe: Recipe) -> None:
    absolute = replace(recipe, absolute=True)
    one, ten = (run([quadratic(absolute, scale)]) for scale in (0.001, 0.01))
    plain = run()
    gap = (ten - plain).square().mean().sqrt() / (one - plain).square().mean().sqrt()
    assert gap == pytest.approx(10, rel=0.2)


def test_schedules_in_other_units_have_the_same_share() -> None:
    world = GaussianBackbone(shape=(3, 8, 8))
    walk = world.walk(8)
    exploding = Walk(tuple(NoiseLevel(1.0, v.sigma / v.alpha, v.time) for v in walk.levels))
    start = ImageNoise(3, range(3), world.state_shape)()
    made = []
    for levels, x in ((walk, start), (exploding, start / walk.levels[0].alpha)):
        made.append(
            sample(
                world, ClassifierFree(world, {}, {}), levels, DDIM(), lambda: start,
                [quadratic(X0)], start=x,
            )
        )  # fmt: skip
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=1e-3)
