"""Every preset as shipped under every solver, against the methods as their papers write them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from equations import paper
from equations.product import ABARS, Denoiser, NetGuide, draws, rows, run, tensor

from ppap_host.backbones.noise import NoiseLevel, NoiseRange, Walk
from ppap_host.guides.operators import LinearOperator
from ppap_host.plugins import builtin
from ppap_host.recipes.recipe import Recipe
from ppap_host.sampling.evaluator import Guidance
from ppap_host.sampling.solvers import DDIM, DDPM, Churn, DPMSolverPP2M, Heun, Solver

PRESETS: dict[str, Recipe] = {
    entry.name: replace(entry.load(), absolute=True) for entry in builtin.ppap_recipes()
}
PLAIN = paper.World()
EXACT = Denoiser(PLAIN, np.zeros((3, 2))).level_at
CHURN = Churn(0.9, 0.5, 20.0, 1.01)


@dataclass(frozen=True)
class Pair:
    """A solver of the product, and the same of a paper."""

    solver: Solver
    reference: Any
    world: paper.World = PLAIN
    scale: float = 0.7


PAIRS = {
    "ddim": Pair(DDIM(), paper.ddim(0.0)),
    "ddim strong": Pair(DDIM(), paper.ddim(0.0), paper.World(clip=0.8), scale=70.0),
    "ddim eta": Pair(DDIM(0.7), paper.ddim(0.7), paper.World(clip=0.6)),
    "ddim eps kept": Pair(DDIM(), paper.ddim(0.0), paper.World(clip=0.6, clip_eps=False)),
    "ddpm": Pair(DDPM(), paper.ddpm),
    "ddpm small": Pair(DDPM("small"), paper.ddpm, paper.World(clip=0.8, small=True)),
    "ddpm learned": Pair(DDPM(), paper.ddpm, paper.World(learned=True)),
    "dpm++": Pair(DPMSolverPP2M(), paper.dpm(), paper.World(clip=1.0)),
    "dpm++ eta": Pair(DPMSolverPP2M(0.7), paper.dpm(0.7), paper.World(clip=1.0)),
    "heun": Pair(Heun(), paper.heun()),
    "heun churned": Pair(Heun(CHURN, EXACT), paper.heun(0.9, 0.5, 20.0, 1.01)),
}


def compared(
    names: Sequence[str], pair: Pair, scales: Sequence[float], averages: bool = False,
    **changes: Any,
) -> None:  # fmt: skip
    """Both run with these methods, a guide each, and every state is the same.

    Args:
        changes: of all methods: ``recurrence``, ``every``, ``interval``.
    """
    nets = [paper.Net(k % 4, 5 + k, averages) for k in range(len(names))]
    backbone = Denoiser(pair.world, nets[0].mix)
    for net in nets:
        net.mix = nets[0].mix  # the decoder is the backbone's
    guidance = []
    for name, net, scale in zip(names, nets, scales, strict=True):
        guide = NetGuide(net)
        guidance.append(Guidance(guide, guide.target, replace(PRESETS[name], **changes), scale))
    methods = [
        paper.methods(net, scale, draws(32))[name]()
        for name, net, scale in zip(names, nets, scales, strict=True)
    ]
    for method in methods:
        method.repeats = changes.get("recurrence", method.repeats)
        method.every = changes.get("every", 1)
        if "interval" in changes:
            method.low, method.high = changes["interval"].low, changes["interval"].high
    start = next(draws(1))
    found = run(backbone, guidance, pair.solver, backbone.walk(5), tensor(start), draws(2), 31)
    noise, renoise = draws(2), draws(31)
    wanted = paper.run(
        pair.world, methods, pair.reference, ABARS, start, noise.__next__, renoise.__next__,
        pair.solver.ancestral,
    )  # fmt: skip
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(rows(a), b, rtol=0, atol=1e-8 * np.abs(b).max())
    unguided = run(backbone, [], pair.solver, backbone.walk(5), tensor(start), draws(2), 31)
    assert math.dist(rows(unguided[-1]).ravel(), wanted[-1].ravel()) > 1e-3, "nothing is guided"


# Those that draw, choose, renoise or search for a start are in test_choices.py.
OTHERS = {
    name
    for name, r in PRESETS.items()
    if r.guideless or r.needs or r.selection or r.replaces or r.start
}


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in {"pigdm", *OTHERS}])
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_a_preset_is_its_papers_method(name: str, pair: Pair) -> None:
    compared([name], pair, [pair.scale])


@pytest.mark.parametrize("name", ["x0", "dps", "elucd-edm", "adam-dps"])
def test_a_mean_over_pixels_counts_as_much_as_a_label(name: str) -> None:
    """Its gradient is longer by the root of the number of entries."""
    compared([name], PAIRS["ddim"], [0.1], averages=True)


@pytest.mark.parametrize("name", ["x0", "elucd-edm", "tfg", "ugd", "adam-mpgd"])
@pytest.mark.parametrize("pair", ["ddim eta", "ddpm", "dpm++", "dpm++ eta", "heun churned"])
@pytest.mark.parametrize(
    "changes",
    [
        {"recurrence": 3},
        {"every": 2, "recurrence": 2},
        {"interval": NoiseRange(-6.0, 2.0)},
    ],
    ids=str,
)
def test_a_preset_is_repeated_and_asked_when_it_says(
    name: str, pair: str, changes: dict[str, Any]
) -> None:
    compared([name], PAIRS[pair], [PAIRS[pair].scale], **changes)


@pytest.mark.parametrize(
    "names",
    [
        ("x0", "dps", "mpgd"),
        ("mpgd", "ppap", "x0-through", "elucd"),
        ("elucd-edm", "x0", "elucd-edm"),
        ("ugd", "elucd-edm", "tfg"),
        ("adam-dps", "freedom", "adam-mpgd", "lgd-mc"),
    ],
    ids="+".join,
)
@pytest.mark.parametrize("solver", ["ddim", "ddim eta", "ddpm learned", "dpm++", "heun churned"])
def test_several_guides_are_their_methods_without_what_they_have_against_each_other(
    names: tuple[str, ...], solver: str
) -> None:
    pair = PAIRS[solver]
    compared(names, pair, [pair.scale * k for k in (1.0, 2.0, 0.5, 1.5)[: len(names)]])


@pytest.mark.parametrize(
    "name",
    ["naive", "ppap", "x0", "x0-through", "elucd", "mpgd", "adam-mpgd", "ugd"],
)
@pytest.mark.parametrize("pair", ["ddim", "ddim eta", "dpm++", "heun"])
def test_how_a_schedule_scales_its_states_changes_nothing(name: str, pair: str) -> None:
    """x / alpha is the same process in variance-exploding form (Karras et al., 2022, table 1)."""
    solver, guide = PAIRS[pair].solver, NetGuide(paper.Net())
    backbone = Denoiser(PLAIN, paper.Net().mix)
    preserving = backbone.walk(5)
    exploding = Walk(
        tuple(NoiseLevel(1.0, lv.sigma / lv.alpha, lv.time) for lv in preserving.levels)
    )
    start, asked = next(draws(1)), [Guidance(guide, guide.target, PRESETS[name], 0.7)]
    first = preserving.levels[0].alpha
    plain = run(backbone, asked, solver, preserving, tensor(start), draws(2), 31)
    other = run(backbone, asked, solver, exploding, tensor(start / first), draws(2), 31)
    for a, b, level in zip(plain, other, preserving.levels, strict=True):
        np.testing.assert_allclose(rows(b) * level.alpha, rows(a), rtol=0, atol=1e-8 * 40)


def pigdm_by_hand(
    world: paper.World, abars: Sequence[float], x: Any, matrix: Any, y: Any, noise: float
) -> list[Any]:
    """Song et al. (2023), algorithm 1 with eta 0: x' = DDIM(x) + sqrt(abar) g.

    g = J^T A^T (r^2 A A^T + noise^2 I)^-1 (y - A x_0), times r^2 = 1 - abar of an image with the
    variance of noise.
    """
    states = [x]
    for ab, then in pairwise(abars):
        x0, r2 = world.raw(x, ab), 1 - ab
        inner = np.linalg.solve(
            r2 * matrix @ matrix.T + noise**2 * np.eye(len(matrix)), (y - x0 @ matrix.T).T
        )
        g = world.through(r2 * (matrix.T @ inner).T, ab)
        eps = (x - math.sqrt(ab) * x0) / math.sqrt(1 - ab)
        x = math.sqrt(then) * x0 + math.sqrt(1 - then) * eps + math.sqrt(ab) * paper.cut(g, 4)
        states.append(x)
    return states


class Linear(NetGuide, LinearOperator):
    """y = A u of the state itself, by a matrix."""

    def __init__(self, matrix: Any) -> None:
        NetGuide.__init__(self, paper.Net(averages=True))  # which must not matter here
        self.matrix = torch.from_numpy(matrix)

    def operator(self, target: torch.Tensor) -> LinearOperator:
        return self

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.matrix.T

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        return (y @ self.matrix).view(-1, *paper.SHAPE)

    def pseudo_inverse(self, y: torch.Tensor, ratio: float = 0.0) -> torch.Tensor:
        gram = self.matrix @ self.matrix.T + ratio * torch.eye(len(self.matrix)).double()
        return self.adjoint(torch.linalg.solve(gram, y.T).T)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_pigdm_is_its_papers_method(noise: float) -> None:
    rng = np.random.default_rng(4)
    matrix, y = rng.standard_normal((30, paper.N)) / 20, rng.standard_normal((1, 30))
    backbone = Denoiser(PLAIN, paper.Net().mix)
    backbone.decode = lambda x0: x0  # type: ignore[method-assign]
    recipe = PRESETS["pigdm"].with_values({"noise": noise})
    assert PRESETS["pigdm"].value("noise") == 0.0
    asked = [Guidance(Linear(matrix), torch.from_numpy(y), recipe, 1.0)]
    start = next(draws(1))
    found = run(backbone, asked, DDIM(), backbone.walk(5), tensor(start), draws(2), 31)
    wanted = pigdm_by_hand(PLAIN, ABARS, start, matrix, y, noise)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(rows(a), b, rtol=0, atol=1e-8 * np.abs(b).max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["x0", "dps", "naive", "elucd"])
def test_a_guide_in_half_precision_leads_to_nearly_the_same_images(
    name: str, dtype: torch.dtype
) -> None:
    """The network alone is rounded: states stay what they are, and so do their gradients."""

    def made(dtype: torch.dtype) -> tuple[Any, Any]:
        guide, backbone = NetGuide(paper.Net()), Denoiser(PLAIN, paper.Net().mix)
        guide.to(torch.device("cpu"), dtype)
        asked = [Guidance(guide, guide.target, PRESETS[name], 0.7)]
        walk, start = backbone.walk(5), tensor(next(draws(1)))
        states = run(backbone, asked, DDIM(), walk, start, draws(2), 31)
        assert states[-1].dtype == torch.float64
        return rows(states[-1]), rows(run(backbone, [], DDIM(), walk, start, draws(2), 31)[-1])

    (exact, plain), (half, _) = made(torch.float64), made(dtype)
    part = np.linalg.norm(half - exact) / np.linalg.norm(exact - plain)
    assert 0 < part < {torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]
