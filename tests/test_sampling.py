"""Solvers and guidance against closed forms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from worlds import GaussianBackbone, QuadraticGuide

from ppap_host.backbones.backbone import ClassifierFree, Prediction
from ppap_host.backbones.noise import NoiseLevel, NoiseRange
from ppap_host.files.errors import OptionError
from ppap_host.plugins.loading import load_sampler
from ppap_host.plugins.registry import registry
from ppap_host.recipes.estimate import Estimate
from ppap_host.recipes.presets import NAIVE, X0, X0_THROUGH
from ppap_host.sampling.evaluator import Guidance, Health
from ppap_host.sampling.loop import Event, sample
from ppap_host.sampling.names import SAMPLER_SUMMARIES
from ppap_host.sampling.solvers import (
    DDIM,
    DDPM,
    Churn,
    DPMSolverPP2M,
    Heun,
    Solver,
    heun,
)
from ppap_host.sampling.streams import ImageNoise


def run(
    world: GaussianBackbone,
    solver: Solver,
    steps: int,
    images: Sequence[int] = range(6),
    guidance: Sequence[Guidance] = (),
    health: Health | None = None,
    seed: int = 1,
) -> Tensor:
    return sample(
        world,
        ClassifierFree(world, {}, {}),
        world.walk(steps),
        solver,
        ImageNoise(seed, images, world.state_shape),
        guidance,
        health=health,
    )


def error_of(solver: Solver, steps: int) -> float:
    world = GaussianBackbone()
    start = ImageNoise(1, range(6), world.state_shape)()
    exact = world.flow(start, world.walk(steps).levels[0])
    return float((run(world, solver, steps) - exact).abs().max())


@pytest.mark.parametrize("solver", [DDIM(), DPMSolverPP2M(), Heun()], ids=lambda s: s.name)
def test_deterministic_solvers_converge_to_the_probability_flow(solver: Solver) -> None:
    assert error_of(solver, 200) < 0.03


@pytest.mark.parametrize(
    ("solver", "order"), [(DDIM(), 1), (DPMSolverPP2M(), 2), (Heun(), 2)], ids=lambda s: str(s)
)
def test_solvers_have_the_order_they_claim(solver: Solver, order: int) -> None:
    """On a smooth walk in log-SNR, without the last step, which is of first order for all."""
    world = GaussianBackbone()

    def error(steps: int) -> float:
        high, low = -4.0, 4.0
        lams = [high + (low - high) * i / steps for i in range(steps + 1)]
        levels = [
            NoiseLevel(math.sqrt(1 / (1 + math.exp(-lam))), math.sqrt(1 / (1 + math.exp(lam))), 0.0)
            for lam in lams
        ]
        walk = replace(world.walk(2), levels=tuple(levels))
        x = torch.linspace(-2, 2, 48, dtype=torch.float64).view(1, 3, 4, 4)
        exact = world.flow(x, levels[0])
        memory = None

        def evaluate(x: Tensor, level: NoiseLevel) -> Estimate:
            eps = world.predict(x, level, {}).eps
            return Estimate(level, x, (x - level.sigma * eps) / level.alpha, eps)

        for i in range(steps):
            x, _, memory = solver.step(x, i, walk, evaluate, lambda: torch.zeros(0), memory)
        return float((world.flow(x, levels[-1]) - exact).abs().max())

    observed = math.log2(error(40) / error(80))
    assert observed == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize(
    "solver", [DDPM("small"), DDPM("large"), DDIM(1.0), DPMSolverPP2M(1.0)], ids=str
)
def test_stochastic_solvers_draw_from_the_data_distribution(solver: Solver) -> None:
    world = GaussianBackbone(shape=(3, 16, 16))
    x = run(world, solver, 250, images=range(40))
    assert float(x.mean()) == pytest.approx(world.mean, abs=0.02)
    assert float(x.std()) == pytest.approx(world.spread, abs=0.03)


@pytest.mark.parametrize("amount", [1.0, 40.0])
def test_churn_keeps_the_data_distribution(amount: float) -> None:
    world = GaussianBackbone(shape=(3, 16, 16))
    solver = heun(world, Churn(amount))
    x = run(world, solver, 100, images=range(40))
    assert float(x.mean()) == pytest.approx(world.mean, abs=0.02)
    assert float(x.std()) == pytest.approx(world.spread, abs=0.03)
    assert (x - run(world, Heun(), 100, images=range(40))).abs().mean() > 0.01


def test_churn_evaluates_at_trained_levels_above_those_of_the_walk() -> None:
    """Karras et al. (2022), algorithm 2: by min(S_churn / steps, sqrt(2) - 1), within bounds."""
    world, walk = GaussianBackbone(), GaussianBackbone().walk(10)
    at = world.level_at
    relative = [level.sigma / level.alpha for level in walk.levels]
    for amount, low, high in ((2.0, 0.0, math.inf), (100.0, 0.1, 5.0)):
        seen: list[NoiseLevel] = []

        def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
            seen.append(level)  # noqa: B023
            return world.predict(x, level, {})

        draws: list[int] = []

        def draw() -> Tensor:
            draws.append(1)  # noqa: B023
            return torch.zeros(1, 3, 4, 4)

        sample(world, denoise, walk, heun(world, Churn(amount, low, high)), draw)
        assert len(draws) == 1 + len(walk)
        share = min(amount / 10, math.sqrt(2) - 1)
        for i, (level, s) in enumerate(zip(seen[::2], relative[:-1], strict=True)):
            assert level == (at(s * (1 + share)) if low <= s <= high else walk.levels[i])
        assert seen[1::2] == list(walk.levels[1:-1])


def test_without_churn_nothing_is_drawn() -> None:
    world = GaussianBackbone()

    def draw() -> Tensor:
        raise AssertionError("a deterministic sampler has drawn noise")

    solver = heun(world, Churn(0.0, 0.1, 5.0, 1.1))
    start = torch.zeros(1, 3, 4, 4)
    sample(world, ClassifierFree(world, {}, {}), world.walk(3), solver, draw, start=start)


@pytest.mark.parametrize("solver", [DDPM("small"), DDIM(), DDIM(eta=1.0), Heun()], ids=str)
def test_exact_classifier_guidance_samples_the_posterior(solver: Solver) -> None:
    """Dhariwal and Nichol (2021): with the true p(y | x_t) the guided process draws p(x_0 | y)."""
    world = GaussianBackbone(shape=(3, 16, 16))
    guide, y, published = QuadraticGuide(noise=0.4, world=world), 1.0, replace(NAIVE, absolute=True)
    target = torch.full((1, *world.state_shape), y)
    x = run(world, solver, 250, range(40), [Guidance(guide, target, published, 1.0)])
    precision = 1 / world.spread**2 + 1 / guide.noise**2
    mean = (world.mean / world.spread**2 + y / guide.noise**2) / precision
    assert float(x.mean()) == pytest.approx(mean, abs=0.03)
    assert float(x.std()) == pytest.approx(precision**-0.5, abs=0.04)


def test_an_image_with_a_nan_gradient_goes_on_unguided_and_is_counted() -> None:
    world, health = GaussianBackbone(), Health()
    target = torch.full((1, *world.state_shape), 0.9)
    sick = [Guidance(QuadraticGuide(1.0, broken=(2,)), target, NAIVE, 0.5)]
    well = [Guidance(QuadraticGuide(1.0), target, NAIVE, 0.5)]
    x = run(world, DDIM(), 12, guidance=sick, health=health)
    assert x.isfinite().all()
    assert health.skipped == {"quadratic": 12}
    torch.testing.assert_close(x[2], run(world, DDIM(), 12)[2])
    others = [0, 1, 3, 4, 5]
    torch.testing.assert_close(x[others], run(world, DDIM(), 12, guidance=well)[others])


def test_image_k_does_not_depend_on_the_batch_it_is_in() -> None:
    world = GaussianBackbone()
    together = run(world, DDPM(), 10, images=range(5))
    for k in range(5):
        assert torch.equal(run(world, DDPM(), 10, images=[k])[0], together[k])


def test_seeds_and_indices_give_different_noise() -> None:
    draws = torch.cat(
        [ImageNoise(seed, range(3), (3, 8, 8))().flatten(1) for seed in (0, 1, 2**62)]
    )
    correlation = torch.corrcoef(draws) - torch.eye(9)
    assert correlation.abs().max() < 0.3


def test_outside_its_interval_a_guide_is_not_called() -> None:
    world, guide = GaussianBackbone(), QuadraticGuide()
    target = torch.zeros(1, *world.state_shape)
    late = replace(NAIVE, interval=NoiseRange(0.0, math.inf))
    run(world, DDIM(), 20, guidance=[Guidance(guide, target, late, 1.0)])
    inside = sum(level.log_snr >= 0 for level in world.walk(20).levels[:-1])
    assert 0 < guide.calls == inside < 20


def test_scale_zero_changes_nothing_and_costs_nothing() -> None:
    world, guide = GaussianBackbone(), QuadraticGuide()
    target = torch.zeros(1, *world.state_shape)
    off = run(world, DDIM(), 8, guidance=[Guidance(guide, target, X0, 0.0)])
    assert torch.equal(off, run(world, DDIM(), 8))
    assert guide.calls == 0


def test_a_guided_step_evaluates_the_backbone_once() -> None:
    for recipe in (NAIVE, X0, X0_THROUGH):
        world, guide = GaussianBackbone(), QuadraticGuide()
        target = torch.zeros(1, *world.state_shape)
        run(world, DDIM(), 9, guidance=[Guidance(guide, target, recipe, 0.1)])
        assert (world.evaluations, guide.calls) == (9, 9)


def test_only_the_view_through_the_backbone_keeps_its_graph() -> None:
    for recipe, kept in ((NAIVE, False), (X0, False), (X0_THROUGH, True)):
        seen: list[bool] = []

        class Watched(GaussianBackbone):
            def predict(self, x: Tensor, level: NoiseLevel, condition: object) -> Prediction:
                seen.append(torch.is_grad_enabled() and x.requires_grad)  # noqa: B023
                return super().predict(x, level, {})

        world = Watched()
        target = torch.zeros(1, *world.state_shape)
        run(world, DDIM(), 3, guidance=[Guidance(QuadraticGuide(), target, recipe, 0.1)])
        assert seen == [kept] * 3


def test_every_sampler_that_is_listed_can_be_made() -> None:
    for name in SAMPLER_SUMMARIES:
        assert load_sampler(registry(), name, GaussianBackbone()).name == name
    for eta in (0.0, 0.3, 1.0):
        assert load_sampler(registry(), "ddim", GaussianBackbone(), eta) == DDIM(eta)


@pytest.mark.parametrize(("name", "eta"), [("ddim", 1.5), ("ddim", -0.1), ("heun", 0.5)])
def test_eta_where_it_makes_no_sense_is_refused(name: str, eta: float) -> None:
    with pytest.raises(OptionError, match="eta"):
        load_sampler(registry(), name, GaussianBackbone(), eta)


def test_churn_where_it_makes_no_sense_is_refused() -> None:
    world = GaussianBackbone()
    with pytest.raises(OptionError, match="`churn` is nothing that the sampler 'ddim'"):
        load_sampler(registry(), "ddim", world, churn=Churn(1.0))
    assert load_sampler(registry(), "ddim", world, churn=Churn()).name == "ddim"
    with pytest.raises(ValueError, match="level_at"):
        Heun(Churn(1.0))


@pytest.mark.parametrize(
    ("between", "low", "high"),
    [(None, 0.0, math.inf), ("0.1:5", 0.1, 5.0), (":5", 0.0, 5.0), ("2:", 2.0, math.inf)],
)
def test_churn_is_read_as_it_is_written(between: str | None, low: float, high: float) -> None:
    assert Churn.of(3.0, between, 1.1) == Churn(3.0, low, high, 1.1)
    with pytest.raises(OptionError, match="no interval of noise"):
        Churn.of(3.0, "5")


@pytest.mark.parametrize(
    "values",
    [(-1.0,), (math.nan,), (math.inf,), (1.0, 2.0, 1.0), (1.0, -1.0), (1.0, 0.0, 1.0, 0.0)],
    ids=str,
)
def test_churn_out_of_range_is_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(OptionError, match="hurn"):
        Churn(*values)


def test_a_watcher_sees_every_step_in_order() -> None:
    world, seen = GaussianBackbone(), []

    def watch(report: Event) -> None:
        seen.append((report.index, report.steps, report.x_next.requires_grad))

    sample(
        world,
        ClassifierFree(world, {}, {}),
        world.walk(4),
        DDIM(),
        ImageNoise(0, [0], world.state_shape),
        watch=watch,
    )
    assert seen == [(i, 4, False) for i in range(4)]
