"""Methods that draw, choose or renoise, as their papers write them, against the presets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from equations import paper
from equations.product import ABARS, Denoiser, NetGuide, draws, rows, tensor
from equations.test_methods import PRESETS

from ppap_host.backbones.backbone import Prediction
from ppap_host.backbones.noise import NoiseLevel
from ppap_host.recipes.estimate import Estimate, Step
from ppap_host.recipes.presets import DSG
from ppap_host.recipes.recipe import Recipe
from ppap_host.recipes.selections import POTENTIALS, Branched, FeynmanKac
from ppap_host.sampling.evaluator import Evaluator, Guidance, Health
from ppap_host.sampling.loop import stream
from ppap_host.sampling.solvers import DDIM, DDPM, DPMSolverPP2M, Heun, Solver

WORLD = paper.World()
SOLVERS: dict[str, Solver] = {"ddim": DDIM(0.7), "ddpm": DDPM()}
BOTH = pytest.mark.parametrize("solver", SOLVERS)
SCALE = 0.7


def named(name: str) -> Iterator[Any]:
    """A noise of its own for every name, two images a draw."""
    return draws(sum(map(ord, name)) + 7)


def made(
    recipe: Recipe | None, solver: Solver, net: paper.Net, denoise: Any = None,
    process: Recipe | None = None,
) -> list[Any]:  # fmt: skip
    """The states of a run by the product."""
    guide, backbone = NetGuide(net), Denoiser(WORLD, net.mix)
    guided = [] if recipe is None else [Guidance(guide, guide.target, recipe, SCALE)]

    def drawn(name: str) -> Callable[[], torch.Tensor]:
        found = named(name)
        return lambda: tensor(next(found))

    events = stream(
        backbone, denoise or (lambda x, level: backbone.predict(x, level, {})), backbone.walk(5),
        solver, drawn(""), guided, streams=drawn, process=process,
    )  # fmt: skip
    return [rows(event.x_next) for event in events]


def gaussian(at: paper.At, solver: str) -> tuple[Any, Any]:
    """Mean and deviation of the step from x_t: Song et al. (2021) and Ho et al. (2020)."""
    ab, then, x = at.ab, at.abars[at.i + 1], at.x
    beta = 1 - ab / then
    if solver == "ddpm":
        mean = math.sqrt(then) * beta / (1 - ab) * at.x0
        mean = mean + math.sqrt(ab / then) * (1 - then) / (1 - ab) * x
        return mean, math.sqrt(beta) if then < 1 else 0.0
    deviation = 0.7 * math.sqrt((1 - then) / (1 - ab) * beta)
    return math.sqrt(then) * at.x0 + math.sqrt(1 - then - deviation**2) * at.eps, deviation


def looked(x: Any, i: int) -> paper.At:
    return paper.At(WORLD, x, ABARS[i], i, ABARS, False)


def lengths(x: Any) -> Any:
    return np.sqrt((x**2).sum(axis=1, keepdims=True))


def close(found: Any, wanted: Any) -> None:
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-8 * max(1, np.abs(b).max()))


@BOTH
def test_dsg_turns_the_noise_of_a_step_and_keeps_its_length(solver: str) -> None:
    """d = d_s + rate (r g / ||g|| - d_s), at length r: Yang et al. (2024), with r = ||d_s||."""
    net, noise, wanted = paper.Net(), named(""), []
    x = next(noise)
    for i in range(len(ABARS) - 1):
        at, z = looked(x, i), next(noise)
        mean, deviation = gaussian(at, solver)
        d, g = deviation * z, at.back(net.loss_and_pull(at.seen, None)[1])
        radius = lengths(d)
        mixed = d + 0.1 * SCALE * (radius * g / lengths(g) - d)
        x = mean + (radius * mixed / lengths(mixed) if deviation else 0.0)
        wanted.append(x)
    close(made(PRESETS["dsg"], SOLVERS[solver], net), wanted)


@BOTH
def test_dsg_at_relative_strength_turns_as_far_as_its_share_of_what_is_open(solver: str) -> None:
    net, noise, wanted = paper.Net(), named(""), []
    x, count = next(noise), len(ABARS) - 1
    for i in range(count):
        at, z, then = looked(x, i), next(noise), ABARS[i + 1]
        mean, deviation = gaussian(at, solver)
        d, g = deviation * z, at.back(net.loss_and_pull(at.seen, None)[1])
        radius, n = lengths(d), d.shape[1]
        x = mean
        if deviation:
            far = SCALE / count * math.sqrt(then * (1 - then)) * Denoiser(WORLD, net.mix).deviation
            rate = np.minimum(far / (radius / math.sqrt(n)), 1.0)
            mixed = d + rate * (radius * g / lengths(g) - d)
            x = mean + radius * mixed / lengths(mixed)
        wanted.append(x)
    close(made(DSG, SOLVERS[solver], net), wanted)


def test_daps_samples_between_the_flows_end_and_the_guide_and_renoises() -> None:
    """Zhang et al. (2025), algorithm 1: flow, Langevin chain at x_0, new noise."""
    net, wanted, chain, renoise = paper.Net(), [], named("chain"), named("renoised")
    x, count = next(named("")), len(ABARS) - 1
    for i, (ab, then) in enumerate(pairwise(ABARS)):
        s, spread = math.sqrt(1 / ab - 1), 1 - ab
        y, grid = x / math.sqrt(ab), np.linspace(s ** (1 / 7), 0.01 ** (1 / 7), 5) ** 7
        if s > 0.01:
            for a, b in pairwise(grid):
                y = y + (b - a) / a * (y - WORLD.raw(y / math.hypot(1, a), 1 / (1 + a * a)))
        else:
            y = WORLD.raw(x, ab)
        base, lr = y, 1e-3 * (1 - 0.99 * i / (count + 1)) * spread
        for _ in range(5):
            pull = paper.blurred(math.sqrt(paper.N) * net.loss_and_pull(y, None)[1], 3 / 64)
            drift = lr * (base - y) / s**2 + 0.05 * spread * paper.cut(SCALE * pull, 2)
            y = y + drift + math.sqrt(2 * lr) * next(chain)
        x = math.sqrt(then) * y + math.sqrt(1 - then) * next(renoise)
        wanted.append(x)
    close(made(PRESETS["daps"], DDIM(), net), wanted)


@BOTH
def test_svdd_keeps_the_next_state_whose_prediction_is_worth_most(solver: str) -> None:
    """Li et al. (2024), algorithm 1 at alpha 0: the value of a candidate is that of its own x_0."""
    net, noise, more, wanted = paper.Net(), named(""), named("branches"), []
    x = next(noise)
    for i in range(len(ABARS) - 1):
        mean, deviation = gaussian(looked(x, i), solver)
        candidates = [mean + deviation * next(noise)]
        if i < len(ABARS) - 2:
            candidates += [mean + deviation * next(more) for _ in range(3)]
            losses = [net.loss_and_pull(looked(c, i + 1).seen, None)[0] for c in candidates]
            best = np.argmin(losses, axis=0)
            candidates = [np.stack([candidates[k][b] for b, k in enumerate(best)])]
        x = candidates[0]
        wanted.append(x)
    close(made(PRESETS["svdd"], SOLVERS[solver], net), wanted)


def particles(name: str) -> list[Iterator[Any]]:
    """The noises of an image's four particles."""
    further = f"{name} of " if name else ""
    return [named(name), *(named(f"{further}particle {j}") for j in range(1, 4))]


def ndtr(z: float) -> float:
    return (1 + math.erf(z / math.sqrt(2))) / 2


@pytest.mark.parametrize(
    ("name", "factor"), [("best-of-n", 3.0), ("fk", 3.0), ("fk", 1.0), ("unicode", 3.0)]
)
@BOTH
def test_a_population_is_weighed_resampled_and_its_best_is_the_image(
    name: str, factor: float, solver: str
) -> None:
    """Singhal et al. (2025), algorithm 1, potential max; of x0's moves where they are taken, too.

    Weights that no resampling uses up go on to the next selection; lambda is in units of the
    rewards' spread at the first.
    """
    net, count = paper.Net(), len(ABARS) - 1
    recipe, resampled = PRESETS[name], []
    if name != "best-of-n":
        recipe = recipe.with_values({"period": 1, "potential": "max", "lambda": factor})
    found = made(recipe, SOLVERS[solver], net)
    for image in range(2):
        noise, shares = particles(""), particles("selection")
        x = np.stack([next(z)[image] for z in noise])
        high, product, weights, unit = np.full(4, -math.inf), np.zeros(4), np.zeros(4), None
        for i in range(count):
            at = looked(x, i)
            if name == "unicode":
                pull = math.sqrt(paper.N) * net.loss_and_pull(at.seen, None)[1]
                at.to(at.x0 + at.sigma / 4 * paper.cut(SCALE * paper.blurred(pull, 3 / 64), 2))
            mean, deviation = gaussian(at, solver)
            x = mean + deviation * np.stack([next(z)[image] for z in noise])
            if name == "best-of-n":
                continue
            r = -net.loss_and_pull(at.x0, None)[0]
            unit = r.std() / SCALE if unit is None else unit
            high = np.maximum(high, r / unit)
            potential = factor * (r / unit) - product if i == count - 1 else factor * high
            weights, product = weights + potential, product + potential
            u = [ndtr(next(z)[image][0]) for z in shares]
            share = np.exp(weights - weights.max())
            share = share / share.sum()
            resampled.append(1 / (share**2).sum() < 2)
            if resampled[-1]:
                index = [int(np.searchsorted(np.cumsum(share), one)) for one in u]
                x, high, product, weights = x[index], high[index], product[index], np.zeros(4)
        best = np.argmin(net.loss_and_pull(x, None)[0])
        close([found[-1][image]], [x[best]])
    assert name == "best-of-n" or any(resampled)
    assert factor > 1 or not all(resampled)


def test_the_best_particle_is_known_after_it_has_moved_to_another_slot() -> None:
    net, noise = paper.Net(), draws(7, 400)
    guide, backbone = NetGuide(net), Denoiser(WORLD, net.mix)
    recipe = PRESETS["fk"].with_values({"period": 1, "lambda": 3.0})
    selector = Evaluator(
        backbone, lambda x, level: backbone.predict(x, level, {}),
        [Guidance(guide, guide.target, recipe, SCALE)], ancestral=False, health=Health(),
        stream=lambda name: lambda: tensor(next(noise)),
    ).selector  # fmt: skip
    step, x = Step(backbone.walk(5), 1), tensor(next(noise))
    index = selector.select(Estimate(step.now, x, x, x), step)
    assert index is not None and not torch.equal(index, torch.arange(400))
    worth = -net.loss_and_pull(rows(x), None)[0][index.numpy()]
    best = selector.best(x, [], clean=False).numpy()
    assert (best // 4 == np.arange(100)).all()
    np.testing.assert_allclose(worth[best], worth.reshape(100, 4).max(axis=1))


@pytest.mark.parametrize("potential", POTENTIALS[:4])
@pytest.mark.parametrize("adaptive", [False, True])
def test_potentials_multiply_to_that_of_the_image(potential: Any, adaptive: bool) -> None:
    """exp(lambda r(x_0)) along the path of every particle, however often it was resampled.

    Where nothing is, all of that is in the last weights.
    """
    factor = 0.02 if adaptive else 1.5
    selection = FeynmanKac(
        5, potential, factor, period=1, relative=False, adaptive=adaptive, adaptive_last=adaptive
    )
    rng = torch.Generator().manual_seed(3)
    rewards, uniforms = torch.randn(2, 7, 3, 5, generator=rng, dtype=torch.float64)
    uniforms, state, at = uniforms.sigmoid(), selection.begin(3, rewards), rewards
    for i in range(7):
        chosen = selection(rewards[i], state, i, 7, uniforms[i])
        state, at = chosen.after, rewards[i].gather(1, chosen.index)
    torch.testing.assert_close(state.product, factor * at)
    if adaptive:
        shares = chosen.weights / chosen.weights.sum(dim=1, keepdim=True)
        torch.testing.assert_close(shares, torch.softmax(factor * rewards[-1], dim=1))


@pytest.mark.parametrize("potential", POTENTIALS[:5])
@pytest.mark.parametrize("adaptive", [False, True])
def test_particles_are_weighed_as_in_the_published_code(potential: Any, adaptive: bool) -> None:
    """Singhal et al. (2025), fkd_class.py, where weights, not their logarithms, are kept."""
    rng, floor, product = np.random.default_rng(8), -0.3, np.ones(5)
    selection = FeynmanKac(
        5, potential, 1.5, period=1, floor=floor, adaptive=adaptive, published="image"
    )
    state, before = selection.begin(1, torch.zeros(1, dtype=torch.float64)), np.full(5, floor)
    resampled = []
    for i in range(6):
        r, u = 1.5 * rng.standard_normal(5), rng.uniform(size=5)
        chosen = selection(torch.tensor(r)[None], state, i, 6, torch.tensor(u)[None])
        state, high = chosen.after, {"max": np.maximum(r, before), "add": r + before}
        kept = high.get(potential, r)
        w = np.exp(1.5 * (r - before if potential == "diff" else kept))
        if i == 5 and potential in ("max", "add", "rt"):
            w = np.exp(1.5 * kept) / product
        w = w.clip(0, 1e10)
        index = np.arange(5)
        resampled.append(not (adaptive or i == 5) or w.sum() ** 2 / (w**2).sum() < 2.5)
        if resampled[-1]:
            index = np.searchsorted(np.cumsum(w / w.sum()), u)
            product = (product * w)[index]
        before = kept[index]
        close([chosen.weights[0], state.reward[0], state.product[0].exp()], [w, before, product])
        assert chosen.index[0].tolist() == index.tolist() and bool(chosen.drawn) == resampled[-1]
    assert any(resampled) and (not adaptive or not all(resampled))


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, [0, 2, 4, 6]),
        ({"start": 1, "end": 4}, [1, 3, 6]),
        ({"start": 1, "end": 4, "period": 3}, [1, 4, 6]),
        ({"potential": "is"}, [6]),
        ({"potential": "bon"}, [6]),
    ],
    ids=str,
)
def test_particles_are_selected_after_these_steps_and_the_last(
    settings: Any, wanted: list[int]
) -> None:
    assert [i for i in range(7) if FeynmanKac(**settings).active(i, 7)] == wanted


def test_best_of_n_puts_particles_in_order_and_draws_none() -> None:
    rewards, selection = torch.tensor([[0.2, math.nan, 0.9]]), FeynmanKac(3, "bon")
    chosen = selection(rewards, selection.begin(1, rewards), 6, 7, rewards)
    assert chosen.index.tolist() == [[2, 0, 1]] and not chosen.drawn.any()


def test_a_branch_is_drawn_in_proportion_to_its_value_over_the_temperature() -> None:
    shares = torch.tensor([0.1, 0.3, 0.0, 0.6])
    values = (0.5 * shares.log()).nan_to_num(math.nan, neginf=math.nan)[:, None].expand(4, 10)
    uniforms = (torch.arange(10) + 0.5) / 10
    drawn = Branched(4, 0.5).chosen(values, uniforms)
    assert drawn.bincount(minlength=4).tolist() == [1, 3, 0, 6]
    torch.testing.assert_close(Branched(4, 0.5).weights(shares.log()[:, None] / 2)[:, 0], shares)
    assert Branched(4).chosen(values, uniforms).tolist() == [3] * 10


@pytest.mark.parametrize(
    "solver",
    [DDIM(), DDIM(0.7), DDPM(), DPMSolverPP2M(), DPMSolverPP2M(0.7), Heun()],
    ids=lambda s: s.name,
)
@pytest.mark.parametrize("weight", [0.0, 0.6])
def test_cfgpp_takes_x0_from_the_guided_noise_and_leads_on_with_the_unconditional(
    solver: Solver, weight: float
) -> None:
    """Chung et al. (2025), algorithm 2, and at weight 0 every solver's own unconditional step."""
    net = paper.Net()
    backbone = Denoiser(WORLD, net.mix)

    def branches(x: torch.Tensor, level: NoiseLevel) -> Prediction:
        eps = backbone.predict(x, level, {}).eps
        return Prediction(eps + weight * torch.tanh(x), unconditional=eps)

    found = made(None, solver, net, denoise=branches, process=PRESETS["cfg++"])
    if weight == 0:
        close(found, made(None, solver, net))
    elif solver == DDIM():
        x, wanted = next(named("")), []
        for ab, then in pairwise(ABARS):
            eps = (x - math.sqrt(ab) * WORLD.raw(x, ab)) / math.sqrt(1 - ab)
            x0 = (x - math.sqrt(1 - ab) * (eps + weight * np.tanh(x))) / math.sqrt(ab)
            x = math.sqrt(then) * x0 + math.sqrt(1 - then) * eps
            wanted.append(x)
        close(found, wanted)
    else:
        plain = made(None, solver, net)
        assert np.abs(found[-1] - plain[-1]).max() > 1e-3


@pytest.mark.parametrize("solver", [DDIM(), DDPM(), DPMSolverPP2M()], ids=lambda s: s.name)
def test_initial_noise_follows_the_gradient_of_its_image_and_keeps_its_length(
    solver: Solver,
) -> None:
    """x + rate scale ||x|| / sqrt(n) g / rms(g), brought back to length ||x||.

    The world's sampler is affine in its noise, image = A x + b, so g is A^T times the image's own
    gradient; A comes from images of the basis.
    """
    net, rate, backbone = paper.Net(), 0.3, Denoiser(WORLD, paper.Net().mix)
    recipe = PRESETS["dno"].with_values({"iterations": 1, "rate": rate})
    noise = named("")
    start = next(noise)
    drawn = [tensor(next(noise)) for _ in ABARS[1:]]
    evaluator = Evaluator(
        backbone, lambda x, level: backbone.predict(x, level, {}), [],
        ancestral=solver.ancestral, health=Health(),
    )  # fmt: skip

    def image(x: Any, row: int) -> Any:
        """Of these noises, with the draws of the run's image ``row``."""
        x, walk, memory = tensor(x), backbone.walk(5), None
        for i, z in enumerate(drawn):
            noise = z[row : row + 1].expand_as(x)
            x, _, memory = solver.step(x, i, walk, evaluator.reader.open, lambda z=noise: z, memory)
        return rows(x)

    wanted = []
    for row in range(2):
        x, zero = start[row : row + 1], image(np.zeros((1, paper.N)), row)
        matrix = image(np.eye(paper.N), row) - zero
        g = net.loss_and_pull(image(x, row), None)[1] @ matrix.T
        moved = x + rate * SCALE * lengths(x) / math.sqrt(paper.N) * g / paper.rms(g)
        wanted.append(image(moved * lengths(x) / lengths(moved), row)[0])
    close([made(recipe, solver, net)[-1]], [np.stack(wanted)])


class Recalling(Solver):
    """Noise at first, then what it remembers of each row: its own state."""

    name, noise = "recalling", "noise"

    def step(
        self, x: Any, i: int, walk: Any, evaluate: Any, draw: Any, memory: Any
    ) -> tuple[Any, Any, Any]:
        estimate = evaluate(x, walk.levels[i])
        x = draw() if memory is None else memory["states"][0]
        return x, estimate, {"states": (x,)}


def test_what_a_solver_remembers_goes_with_its_particle() -> None:
    recipe = PRESETS["fk"].with_values({"period": 1, "lambda": 20.0})
    particles_of, kept = [], Recalling()
    step = kept.step

    def watched(x: Any, i: int, *args: Any) -> Any:
        particles_of.append((i, x))
        return step(x, i, *args)

    kept.step = watched  # type: ignore[method-assign]
    made(recipe, kept, paper.Net())
    for (_, before), (_, after) in pairwise(particles_of[1:]):
        # Nobody moves but by selection, so states come from those before, of the same image.
        for image in range(2):
            rows_before, rows_after = (t.view(2, 4, -1)[image] for t in (before, after))
            assert all(any(torch.equal(r, b) for b in rows_before) for r in rows_after)
    assert len({tuple(r.flatten()[:3].tolist()) for r in particles_of[-1][1]}) < 8, "none selected"
