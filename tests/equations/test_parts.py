"""Each part of a recipe by itself, on a schedule that keeps no variance, against its equation.

Whole methods on the variance-preserving line are in ``test_methods.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from equations import paper
from torch import Tensor, nn
from worlds import QuadraticGuide

from ppap_host.backbones.noise import CLEAN, NoiseLevel, Walk
from ppap_host.files.errors import OptionError
from ppap_host.guides.guide import Guide
from ppap_host.guides.operators import LinearOperator
from ppap_host.recipes.ascents import Adam, Gradient
from ppap_host.recipes.chains import Chain, Solved
from ppap_host.recipes.energies import LinearPosterior, MonteCarlo, Point, Question
from ppap_host.recipes.estimate import Estimate, Step
from ppap_host.recipes.gradients import (
    AdamMoments,
    Clipped,
    Normalised,
    PerRootLoss,
    RootSize,
    Smoothed,
    StateSize,
    UnitScale,
    limited,
    root_mean_square,
)
from ppap_host.recipes.places import (
    CleanPoint,
    Entering,
    MeanOrScore,
    NextState,
    Place,
    Score,
    Sphere,
)
from ppap_host.recipes.presets import PPAP, X0_THROUGH
from ppap_host.recipes.presets import X0 as X0_PRESET
from ppap_host.recipes.strengths import (
    Constant,
    LinearSine,
    PosteriorSpread,
    Scheduled,
    SignalScale,
    SineVariance,
)
from ppap_host.recipes.views import Noisy, NoisyUnitSize, Predicted, PredictedThrough

# A flow: x = (1 - t) x_0 + t eps, at t = 0.9, 0.7, 0.4, 0.2.
TS = (0.9, 0.7, 0.4, 0.2)
WALK = Walk((*(NoiseLevel(1 - t, t, t) for t in TS), CLEAN))
A, S = 1 - TS[1], TS[1]
LEVEL, SCALE = WALK.levels[1], math.sqrt(A**2 + S**2)
RNG = np.random.default_rng(3)
SHAPE = (2, 3, 4, 5)
COUNT = 3 * 4 * 5
X, X0, G = (torch.from_numpy(RNG.standard_normal(SHAPE)) for _ in range(3))
EPS = (X - A * X0) / S
AT = Estimate(LEVEL, X, X0, EPS, step=Step(WALK, 1))


def same(found: Tensor | float, wanted: Any, tolerance: float = 1e-12) -> None:
    found = found.detach().numpy() if isinstance(found, Tensor) else found
    np.testing.assert_allclose(found, np.asarray(wanted), rtol=tolerance, atol=tolerance)


def abar(t: float) -> float:
    return (1 - t) ** 2 / ((1 - t) ** 2 + t**2)


# Views


def test_views_show_what_they_say() -> None:
    same(Noisy().shown(AT, Noisy().variable(AT)), X.numpy() / SCALE)
    same(Predicted().shown(AT, Predicted().variable(AT)), X0.numpy())
    sizes = np.sqrt((X.numpy() ** 2).mean(axis=(1, 2, 3), keepdims=True))
    for factor in (0.2, 3.0):
        estimate = replace(AT, x=factor * X)
        unit = factor * X.numpy() / np.maximum(factor * sizes, 1)
        same(NoisyUnitSize().shown(estimate, NoisyUnitSize().variable(estimate)), unit)
    assert [v.sees_noise for v in (Noisy, NoisyUnitSize, Predicted, PredictedThrough)] == [
        True, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("clip", ["straight", "exact", "none"])
@pytest.mark.parametrize("bounds", [None, (-0.5, 0.7)], ids=str)
def test_a_prediction_is_clipped_and_its_gradient_passes_as_said(clip: Any, bounds: Any) -> None:
    """x_0 = (x - sigma eps(x)) / alpha with eps(x) = x / 3."""
    x = X.clone().requires_grad_(True)
    eps = x / 3
    raw = X.numpy() * (1 - S / 3) / A
    x0 = torch.from_numpy(raw if bounds is None else raw.clip(*bounds))
    estimate = Estimate(LEVEL, x, x0, eps, clip=bounds)
    view = PredictedThrough(clip)
    shown = view.shown(estimate, view.variable(estimate))
    (slope,) = torch.autograd.grad(shown.sum(), x)
    cut = bounds is not None and clip != "none"
    same(shown, raw.clip(*bounds) if cut else raw)
    free = (raw > bounds[0]) & (raw < bounds[1]) if cut else np.ones_like(raw)
    passes = free if clip == "exact" else np.ones_like(raw)
    same(slope, passes * (1 - S / 3) / A)


# Energies


class Told(QuadraticGuide):
    """|u - y|^2 / 2; keeps what it is told and shown."""

    def see(self, x: Tensor, level: NoiseLevel | None = None) -> Tensor:
        self.level, self.shown = level, x
        return x

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().sum(dim=(1, 2, 3)) / 2


def question(guide: Guide, target: Tensor, told: Any = None, noises: Any = ()) -> Question:
    return Question(
        guide, target, lambda u: 2 * u - 0.1, LEVEL, told, lambda count: list(noises)[:count]
    )


def test_a_point_energy_is_the_loss_of_the_decoded_state_at_the_level_that_is_told() -> None:
    guide = Told()
    found = Point()(question(guide, X0, LEVEL), X)
    decoded = 2 * X.numpy() - 0.1
    same(found, ((decoded - X0.numpy()) ** 2).sum(axis=(1, 2, 3)) / 2)
    same(guide.shown, decoded)
    assert guide.level is LEVEL
    Point()(question(guide, X0), X)
    assert guide.level is None


@pytest.mark.parametrize("fading", [True, False])
def test_monte_carlo_averages_likelihoods_not_losses(fading: bool) -> None:
    noises = RNG.standard_normal((4, *SHAPE))
    energy = MonteCarlo(samples=3, width=0.3, fading=fading)
    asked = question(Told(), X0, noises=[torch.from_numpy(n) for n in noises])
    width = 0.3 * (S / SCALE if fading else 1)
    losses = [
        ((2 * (X.numpy() + width * n) - 0.1 - X0.numpy()) ** 2).sum(axis=(1, 2, 3)) / 2
        for n in noises[:3]
    ]
    least = np.min(losses, axis=0)
    same(energy(asked, X), least - np.log(np.exp(least - losses).mean(axis=0)))
    same(MonteCarlo(3, 0.0, fading)(asked, X), Point()(asked, X).numpy())


class Dense(LinearOperator):
    """y = A x of the pixels in a row, by a matrix."""

    def __init__(self, matrix: Any) -> None:
        self.matrix = matrix

    def __call__(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ torch.from_numpy(self.matrix).T

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ torch.from_numpy(self.matrix)).view(-1, *SHAPE[1:])

    def pseudo_inverse(self, y: Tensor, ratio: float = 0.0) -> Tensor:
        gram = self.matrix @ self.matrix.T + ratio * np.eye(len(self.matrix))
        return self.adjoint(y @ torch.from_numpy(np.linalg.inv(gram)))


class Measured(Told):
    def __init__(self, operator: LinearOperator) -> None:
        super().__init__()
        self._operator = operator

    def operator(self, target: Tensor) -> LinearOperator:
        return self._operator


@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_the_linear_posterior_pulls_as_pigdm(noise: float) -> None:
    """Song et al. (2023), eq. 7: r^2 J^T D^T A^T (r^2 A A^T + noise^2 I)^-1 (y - A D(u)).

    r^2 = sigma^2 / (1 + sigma^2) in their sigma, here sigma / alpha.
    """
    matrix, y = RNG.standard_normal((7, COUNT)), RNG.standard_normal((2, 7))
    u = X.clone().requires_grad_(True)
    asked = question(Measured(Dense(matrix)), torch.from_numpy(y))
    (found,) = torch.autograd.grad(LinearPosterior(noise)(asked, u).sum(), u)
    r2 = (S / A) ** 2 / (1 + (S / A) ** 2)
    residual = y - (2 * X.numpy() - 0.1).reshape(2, -1) @ matrix.T
    inner = np.linalg.solve(r2 * matrix @ matrix.T + noise**2 * np.eye(7), residual.T)
    pull = r2 * 2 * (matrix.T @ inner).T
    same(-found.flatten(1), pull, 1e-9)
    clean = replace(asked, level=CLEAN)
    (found,) = torch.autograd.grad(LinearPosterior(noise)(clean, u).sum(), u)
    same(-found.flatten(1), 2 * residual @ np.linalg.pinv(matrix).T, 1e-9)


def test_the_linear_posterior_is_refused_for_a_guide_that_measures_nothing() -> None:
    with pytest.raises(OptionError, match="no linear measurement"):
        LinearPosterior().check(QuadraticGuide(), X)
    LinearPosterior().check(Measured(Dense(np.eye(COUNT))), X)


# Strengths


def test_strengths_over_a_flow() -> None:
    spread = math.sqrt(1 - abar(0.7))
    same(Constant(0.3)(AT), 0.3)
    same(PosteriorSpread(0.5)(AT), 0.5 * spread)
    same(PosteriorSpread(0.5, 2.0)(AT), 0.5 * (1 - abar(0.7)))
    same(PosteriorSpread(0.5, 0.0)(AT), 0.5)
    same(SignalScale(2.0)(AT), 2 * 0.3)


def along(strength: Any, walk: Walk = WALK, **estimate: Any) -> list[Any]:
    """The strength at every step."""
    return [
        strength(Estimate(walk.levels[i], X, X0, EPS, step=Step(walk, i), **estimate))
        for i in range(len(walk))
    ]


def test_a_course_is_in_proportion_to_what_a_step_keeps_and_has_its_mean() -> None:
    bars = [abar(t) for t in TS] + [1.0]
    alphas = np.array(bars[:-1]) / np.array(bars[1:])
    same(along(Scheduled(0.7, "increase")), 0.7 * alphas / alphas.mean())
    same(along(Scheduled(0.7, "decrease")), 0.7 * (1 - alphas) / (1 - alphas).mean())
    same(along(Scheduled(0.7, "constant")), [0.7] * 4)


def test_elucds_strength_is_the_variance_and_a_sine() -> None:
    """S + gamma sin(pi k / N) S_max, k from N - 1 down to 0, at unit scale."""
    bars = [abar(t) for t in TS] + [1.0]
    alphas = np.array(bars[:-1]) / np.array(bars[1:])
    betas = 1 - alphas
    tilde = [(1 - bars[i + 1]) / (1 - bars[i]) * betas[i] for i in range(4)]
    variances = [*betas[:3], tilde[2]]  # the last step's is that of the one before
    sine = [math.sin(math.pi * k / 4) for k in (3, 2, 1, 0)]
    found = [float(s.mean()) for s in along(SineVariance(0.5))]
    same(found, np.array(variances) + 0.5 * np.array(sine) * betas.max(), 1e-9)
    v = torch.tanh(X)
    learned = along(SineVariance(0.0), v=v)
    share = (v.numpy() + 1) / 2
    lower = [*tilde[:3], tilde[2]]
    for i in range(4):
        log = share * math.log(betas[i]) + (1 - share) * math.log(lower[i])
        same(learned[i], np.exp(log), 1e-9)


def test_elucds_strength_for_edm_falls_in_a_line_and_bulges_in_a_sine() -> None:
    """As published: linspace(max, 0, N + 2)[:N + 1], and a half sine from 0 on."""
    walk = Walk((*(NoiseLevel(1.0, s, s) for s in (80.0, 20.0, 5.0, 1.0, 0.1)), CLEAN))
    line = np.linspace(0.5, 0, 7)[:5]
    bulge = 0.5 * 0.4 * np.sin(np.linspace(0, np.pi, 6)[:5])
    same(along(LinearSine(0.5, 0.4), walk), line + bulge)
    assert line[0] > line[-1]
    same(along(LinearSine(0.5, 0.0, least=0.3), walk), np.maximum(line, 0.3))


# Places


def moved(place: Place, way: Tensor = G, ancestral: bool = False, **start: Any) -> Estimate:
    return place(replace(AT, **start), way, ancestral)


def consistent(estimate: Estimate) -> None:
    same(A * estimate.x0 + S * estimate.eps, estimate.x.numpy())


def test_a_score_moves_the_noise_against_the_gradient_and_x_0_along_it() -> None:
    for place in (Score(), MeanOrScore()):
        found = moved(place, clip=(-0.1, 0.1))
        same(found.eps, EPS.numpy() - S * G.numpy())
        same(found.x0, X0.numpy() + S**2 / A * G.numpy(), 1e-10)
        consistent(found)
        same(place.unit(AT), 1 / S)


def test_ancestral_solvers_shift_their_mean_and_shifts_add_up() -> None:
    once = moved(MeanOrScore(), ancestral=True)
    same(once.mean_shift, G.numpy())
    same(once.x0, X0.numpy())
    twice = MeanOrScore()(once, X, True)
    same(twice.mean_shift, (G + X).numpy())
    same(moved(Score(), ancestral=True).eps, EPS.numpy() - S * G.numpy())


@pytest.mark.parametrize("clip", [None, (-0.4, 0.6)], ids=str)
def test_a_clean_point_moves_x_0_within_its_bounds(clip: Any) -> None:
    wanted = (X0 + G).numpy()
    bounded = wanted if clip is None else wanted.clip(*clip)
    follows = moved(CleanPoint(), clip=clip)
    same(follows.x0, bounded)
    consistent(follows)
    kept = moved(CleanPoint(keep_eps=True), clip=clip)
    same(kept.x0, bounded)
    same(kept.eps, EPS.numpy())
    same(moved(CleanPoint(clip=False), clip=clip).x0, wanted)
    assert CleanPoint().unit(AT) == 1.0 and not CleanPoint.once and not CleanPoint.enters


def test_what_comes_after_the_step_is_brought_to_the_scale_of_the_next_level() -> None:
    then = WALK.levels[2]
    for place, factor, unit in (
        (NextState(), 1.0, SCALE),
        (NextState(carried=True), 0.6 / 0.3, SCALE),
        (NextState(unit_scale=True), math.hypot(then.alpha, then.sigma), 1.0),
    ):
        once = moved(place)
        same(once.next_shift, factor * G.numpy())
        same(place(once, X, False).next_shift, factor * (G + X).numpy())
        same(place.unit(AT), unit)
        assert place.once and not place.enters
    with pytest.raises(ValueError, match="step of the walk"):
        NextState()(replace(AT, step=None), G, False)


def test_the_state_that_enters_is_moved_itself() -> None:
    same(moved(Entering()).x, (X + G).numpy())
    same(Entering().unit(AT), SCALE)
    assert Entering.enters and Entering.once


def test_dsg_as_published_takes_its_radius_from_the_first_entry() -> None:
    """d + rate (sqrt(n) sigma g / ||g|| - d), at length sqrt(n) sigma (Yang et al., 2024)."""
    deviation = 0.2 + X0.abs()
    for rate in (0.0, 0.3):
        place, known = Sphere(rate, own_radius=False), replace(AT, mean=X, deviation=deviation)
        (end,) = place(replace(AT, scale=0.5), G, False).ends
        x, g, d = X.numpy(), G.numpy(), (0.1 * X0).numpy()
        radius = math.sqrt(COUNT) * deviation.numpy()[:, :1, :1, :1]
        mixed = d + 0.5 * rate * (radius * g / (math.sqrt(COUNT) * size(G)) - d)
        length = np.sqrt((mixed**2).sum(axis=(1, 2, 3), keepdims=True))
        same(end(X + 0.1 * X0, known), x + radius * mixed / length, 1e-9)
        assert end(X, AT) is X, "no Gaussian"
        first = {name: getattr(AT, name)[:1] for name in ("x", "x0", "eps")}
        (end,) = place(replace(AT, scale=0.5, **first), G[:1], False).ends
        one = replace(AT, mean=X[:1], deviation=deviation[:1], **first)
        alone = end((X + 0.1 * X0)[:1], one)
        same(alone, (x + radius * mixed / length)[:1], 1e-9)


# Ascents


def towards(wanted: Tensor, rate: float) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def pull(point: Tensor) -> tuple[Tensor, Tensor]:
        return rate * (wanted - point), (wanted - point).square().sum(dim=(1, 2, 3)) / 2

    return pull


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_gradient_ascent_of_a_quadratic_comes_nearer_by_a_power(steps: int) -> None:
    way = Gradient(steps)(towards(X0, 0.3), X, AT)
    same(way, (1 - 0.7**steps) * (X0 - X).numpy())


def test_adam_is_adam_within_the_bounds_and_stops_where_the_loss_is_low() -> None:
    """Kingma and Ba (2015), algorithm 1, from zero moments; every iteration starts clipped."""
    asked: list[Tensor] = []
    away = torch.tensor([0.01, 1.0]).view(2, 1, 1, 1)  # one image is all but there
    wanted = X.clamp(-0.9, 0.9) + away * G
    pull, cutoff = towards(wanted, 1.0), 0.5

    def watched(point: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(point)
        return pull(point)

    way = Adam(6, 0.05, cutoff)(watched, X, replace(AT, clip=(-0.9, 0.9)))
    point, m, v = X.numpy().copy(), 0.0, 0.0
    for t in range(1, 7):
        point = point.clip(-0.9, 0.9)
        same(asked[t - 1], point, 1e-9)
        g = point - wanted.numpy()
        done = (g**2).sum(axis=(1, 2, 3)) / 2 < cutoff
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = 0.05 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        point = np.where(done[:, None, None, None], point, point - step)
    assert len(asked) == 6
    same(way, point - X.numpy(), 1e-9)
    asked.clear()
    Adam(6, 0.05, 1e9)(watched, X, AT)
    assert len(asked) == 1, "all are done"


def test_adam_passes_over_entries_without_a_gradient() -> None:
    def pull(point: Tensor) -> tuple[Tensor, Tensor]:
        gradient = torch.ones_like(point)
        gradient[0, 0, 0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
        return gradient, torch.ones(2, dtype=torch.float64)

    way = Adam(2, 0.05, cutoff=1.0)(pull, X, AT)  # at the cutoff is not below it
    wanted = np.full(SHAPE, 0.1)
    wanted[0, 0, 0, :3] = 0.0
    same(way, wanted, 1e-6)


# Chains


def denoised(y: Any, s: float) -> Any:
    """The clean state of y = x / alpha at s = sigma / alpha."""
    return 0.4 * y + s / (1 + s)


class Answers:
    """A backbone over a flow, and noise of its own for every name."""

    def __init__(self) -> None:
        self.asked, self.normal, self.share = 0, *map(np.random.default_rng, (5, 8))

    def clean(self, x: Tensor, level: NoiseLevel) -> Tensor:
        self.asked += 1
        return denoised(x / level.alpha, level.sigma / level.alpha)

    def level_at(self, s: float) -> NoiseLevel:
        return NoiseLevel(1 / (1 + s), s / (1 + s), s)

    def noise(self, name: str, like: Tensor) -> Tensor:
        assert name == "chain"
        return torch.from_numpy(self.normal.standard_normal(like.shape))

    def uniform(self, name: str, like: Tensor) -> Tensor:
        assert name == "accepted"
        return torch.from_numpy(self.share.uniform(size=len(like)))


@pytest.mark.parametrize("spacing", ["poly", "ve"])
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("prior", ["gaussian", "score-t", "score-min", "exact"])
@pytest.mark.parametrize("kind", ["langevin", "hmc", "mh"])
def test_a_chain_samples_as_its_kind_and_its_prior_say(
    kind: Any, prior: Any, relative: bool, spacing: Any
) -> None:
    """Zhang et al. (2025), algorithm 1, and the other chains and priors of their code."""
    x, x0, g, axes, s, n = X.numpy(), X0.numpy(), G.numpy(), (1, 2, 3), S / A, 6
    chain = Chain(n, 0.2, 0.1, relative, kind, prior, 0.3, 0.6, Solved(2, 0.05, spacing, 3.0))
    ask = Answers()

    def pull(point: Tensor) -> tuple[Tensor, Tensor]:
        return 0.2 * (G - point), 0.1 * (G - point).square().sum(dim=axes)

    way = chain(pull, X, replace(AT, scale=0.5, ask=ask))  # type: ignore[arg-type]
    base, clean = x / A, x0
    grid = np.linspace(s ** (1 / 3), 0.05 ** (1 / 3), 3) ** 3
    for a, b in pairwise(grid if spacing == "poly" else np.geomspace(s, 0.05, 3)):
        slope = (base - clean) / a  # of dy / ds, and over 2 s that of dy / d(s^2)
        base = base + (slope * (b - a) if spacing == "poly" else slope / (2 * a) * (b**2 - a**2))
        clean = denoised(base, b)
    rate = 0.2 * (1 - 0.9 / 5) * (1 - abar(0.7) if relative else 1)
    near = {"score-t": lambda u: (x0 - x / A) / s**2, "score-min": lambda u: score(base)}

    def score(u: Any) -> Any:
        return (denoised(u, 0.3) - u) / 0.09

    def hold(u: Any) -> Any:
        return (
            (base - u) / s**2
            if prior == "gaussian"
            else (x / A - u) / s**2 + near.get(prior, score)(u)
        )

    def log_density(u: Any) -> Any:
        return -0.5 * 0.1 * ((g - u) ** 2).sum(axes) - ((u - base) ** 2).sum(axes) / s**2 / 2

    draws, taken, u = Answers(), [], base
    velocity = draws.normal.standard_normal(SHAPE) if kind == "hmc" else 0.0
    for _ in range(n):
        z = draws.normal.standard_normal(SHAPE)
        drift = rate * hold(u) + (1 if relative else rate) * 0.2 * (g - u)
        if kind == "langevin":
            u = u + drift + math.sqrt(2 * rate) * z
        elif kind == "hmc":
            velocity = 0.6 * velocity + drift / math.sqrt(rate) + math.sqrt(0.8) * z
            u = u + math.sqrt(rate) * velocity
        else:
            other = u + math.sqrt(rate) * z
            share = np.log(draws.share.uniform(size=2))
            taken.append(share < log_density(other) - log_density(u))
            u = np.where(taken[-1][:, None, None, None], other, u)
    same(way, u - x, 1e-9)
    assert kind == "mh" or ask.asked == chain.asks == 1 + {"score-min": 1, "exact": n}.get(prior, 0)
    assert kind != "mh" or (np.any(taken) and not np.all(taken))


# What is done to gradients


def size(x: Tensor) -> Any:
    return np.sqrt((x.numpy() ** 2).mean(axis=(1, 2, 3), keepdims=True))


@pytest.mark.parametrize("factor", [1e-200, 1e-3, 1.0, 1e160])
def test_sizes_and_limits_of_gradients_of_any_size(factor: float) -> None:
    g = factor * G
    wanted = factor * size(G)
    np.testing.assert_allclose(root_mean_square(g).numpy(), wanted, rtol=1e-9, atol=1e-29)
    limit = float(wanted.mean())  # one image is longer, one shorter
    found = limited(g, limit)
    np.testing.assert_allclose(
        found.numpy(), g.numpy() * np.minimum(1, limit / wanted), rtol=1e-9, atol=1e-29
    )
    assert torch.equal(limited(g, math.inf), g)
    assert torch.equal(limited(0 * g, limit), 0 * g)


def test_what_is_done_to_a_gradient() -> None:
    same(Normalised()(G, AT), G.numpy() / size(G))
    assert torch.equal(Normalised()(0 * G, AT), 0 * G)
    limit = float(size(G).mean())
    same(Clipped(limit)(G, AT), G.numpy() * np.minimum(1, limit / size(G)))
    same(UnitScale()(G, AT), SCALE * G.numpy())
    same(StateSize()(G, AT), size(X) * G.numpy())
    same(RootSize()(G, AT), math.sqrt(COUNT) * G.numpy())
    losses = torch.tensor([0.25, -9.0], dtype=torch.float64)
    by_root = G.numpy() / np.array([0.5, 3.0]).reshape(2, 1, 1, 1)
    same(PerRootLoss()(G, replace(AT, loss=losses)), by_root)
    least = PerRootLoss(least=0.04)(G, replace(AT, loss=0 * losses))
    same(least, G.numpy() / 0.2)
    assert PerRootLoss().least == 1e-6


def test_the_filter_is_a_gaussian_mirrored_at_the_borders() -> None:
    g = torch.from_numpy(RNG.standard_normal((2, *paper.SHAPE)))
    for width in (3 / 64, 0.2):
        same(Smoothed(width)(g, AT).flatten(1), paper.blurred(g.flatten(1).numpy(), width), 1e-9)
    assert Smoothed().width == 3 / 64
    for size in ((2, 2), (3, 2), (3, 4)):  # smaller than the filter
        tiny = torch.from_numpy(RNG.standard_normal((2, 3, *size)))
        wanted = paper.blurred(tiny.flatten(1).numpy(), 1.0, (3, *size))
        same(Smoothed(1.0)(tiny, AT).flatten(1), wanted, 1e-9)


def test_moments_are_adams_and_broken_entries_leave_them_alone() -> None:
    part, rng = AdamMoments(0.8, 0.95, 1e-3), np.random.default_rng(0)
    m, v = np.zeros(SHAPE), np.zeros(SHAPE)
    memory: dict[Any, Any] = {}
    for t in range(1, 6):
        g = rng.standard_normal(SHAPE)
        broken = (np.arange(SHAPE[3]) == t) & np.ones(SHAPE, bool)
        m, v = (np.where(broken, old, new) for old, new in (
            (m, 0.8 * m + 0.2 * g), (v, 0.95 * v + 0.05 * g**2),
        ))  # fmt: skip
        wanted = (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-3)
        found = part(torch.from_numpy(np.where(broken, np.nan, g)), replace(AT, memory=memory))
        assert bool(found.isnan().numpy()[broken].all())
        same(found[torch.from_numpy(~broken)], wanted[~broken])
    assert set(memory) == {part}, "what a part remembers is its own"
    assert (AdamMoments().beta1, AdamMoments().beta2, AdamMoments().eps) == (0.9, 0.999, 1e-8)


def test_guidance_at_x_t_and_at_x_0_differ_in_the_view_and_its_units_alone() -> None:
    assert (PPAP.place, PPAP.strength, PPAP.limit) == (X0_PRESET.place, X0_PRESET.strength, 2.0)
    assert PPAP.gradient == (UnitScale(), *X0_PRESET.gradient)
    assert X0_PRESET.limit == X0_THROUGH.limit == 2.0 and X0_THROUGH.strength == PPAP.strength


@pytest.mark.parametrize("recipe", [PPAP, X0_PRESET, X0_THROUGH], ids=lambda r: r.name)
def test_no_step_moves_x_0_by_more_than_half_of_what_is_open(recipe: Any) -> None:
    """What the limit and the factor of these presets are chosen for, at any strength."""
    spread = math.sqrt(1 - abar(0.7))
    huge = limited(1e9 * G, recipe.limit * recipe.place.unit(AT)) * recipe.strength(AT)
    same(root_mean_square(huge), np.full((2, 1, 1, 1), spread / 2), 1e-9)


# Steps


def test_a_step_keeps_and_gives_back_on_every_schedule() -> None:
    step = Step(WALK, 1)
    assert (step.now, step.then) == WALK.levels[1:3]
    same(step.kept(), abar(0.7) / abar(0.4))
    unit = step.at_unit_scale()
    same(unit.now.alpha**2, abar(0.7))
    same(unit.now.sigma**2, 1 - abar(0.7))
    assert (unit.now.time, unit.index, unit.fixed_variance) == (0.7, 1, "large")
    # q(x_t | x_s) has the mean x_s alpha_t / alpha_s; with it x_t has the variance sigma_t^2.
    back = step.back(X, G).numpy()
    ratio = 0.3 / 0.6
    same(back, ratio * X.numpy() + math.sqrt(0.7**2 - (ratio * 0.4) ** 2) * G.numpy())
    same(Step(WALK, 3).back(X, G), 0.8 * X.numpy() + 0.2 * G.numpy())


@pytest.mark.parametrize("index", range(4))
def test_the_variance_of_an_ancestral_step(index: int) -> None:
    """beta is that of q(x_t | x_s), beta tilde of q(x_s | x_t, x_0), here by Bayes' rule."""

    def both(i: int) -> tuple[float, float]:
        now, then = WALK.levels[i], WALK.levels[i + 1]
        ratio = now.alpha / then.alpha
        beta = now.sigma**2 - (ratio * then.sigma) ** 2
        if not then.sigma:
            return beta, 0.0
        return beta, 1 / (1 / then.sigma**2 + ratio**2 / beta)

    last = index == 3
    beta, tilde = both(index)
    lower = both(index - 1)[1] if last else tilde
    for fixed, wanted in (("large", lower if last else beta), ("small", lower)):
        found = Step(WALK, index, fixed).log_variance(None, X)  # type: ignore[arg-type]
        assert found.shape == (2, 1, 1, 1)
        same(found.exp(), np.full((2, 1, 1, 1), wanted), 1e-9)
    v = torch.tanh(X)
    share = (1 + v.numpy()) / 2
    same(Step(WALK, index).log_variance(v, X).exp(), beta**share * lower ** (1 - share), 1e-9)


def test_the_network_of_a_guide_is_left_as_it_is_by_softening_it() -> None:
    """The gradient of Softplus(beta) is a logistic curve of slope beta (EluCD, section 3.2)."""
    from ppap_host.guides.activations import softened

    z = torch.linspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
    with softened(3.0):
        soft = nn.ReLU()(z)
    same(soft, np.log1p(np.exp(3 * z.detach().numpy())) / 3)
    (slope,) = torch.autograd.grad(soft.sum(), z)
    same(slope, 1 / (1 + np.exp(-3 * z.detach().numpy())))
