"""Every preset as shipped under every solver, against the methods as their papers write them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from equations import paper
from equations.product import ABARS, Denoiser, NetGuide, draws, rows, run, tensor

from ppap_host.plugins import builtin
from ppap_host.recipes.recipe import Recipe
from ppap_host.sampling.evaluator import Guidance, Health
from ppap_host.sampling.solvers import DDIM, DDPM, Churn, DPMSolverPP2M, Heun, Solver

PRESETS: dict[str, Recipe] = {entry.name: entry.load() for entry in builtin.ppap_recipes()}
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
    "dpm++": Pair(DPMSolverPP2M(), paper.dpm, paper.World(clip=1.0)),
    "heun": Pair(Heun(), paper.heun()),
    "heun churned": Pair(Heun(CHURN, EXACT), paper.heun(0.9, 0.5, 20.0, 1.01)),
}


def compared(
    names: Sequence[str], pair: Pair, scales: Sequence[float], averages: bool = False,
    health: Health | None = None,
) -> None:  # fmt: skip
    """Both run with these methods, a guide each, and every state is the same."""
    nets = [paper.Net(k % 4, 5 + k, averages) for k in range(len(names))]
    backbone = Denoiser(pair.world, nets[0].mix)
    for net in nets:
        net.mix = nets[0].mix  # the decoder is the backbone's
    guidance = []
    for name, net, scale in zip(names, nets, scales, strict=True):
        guide = NetGuide(net)
        guidance.append(Guidance(guide, guide.target, PRESETS[name], scale))
    methods = [
        paper.methods(net, scale, draws(32))[name]()
        for name, net, scale in zip(names, nets, scales, strict=True)
    ]
    start = next(draws(1))
    found = run(
        backbone, guidance, pair.solver, backbone.walk(5), tensor(start), draws(2), 31, health
    )
    noise, renoise = draws(2), draws(31)
    wanted = paper.run(
        pair.world, methods, pair.reference, ABARS, start, noise.__next__, renoise.__next__,
        pair.solver.ancestral,
    )  # fmt: skip
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(rows(a), b, rtol=0, atol=1e-8 * np.abs(b).max())
    unguided = run(backbone, [], pair.solver, backbone.walk(5), tensor(start), draws(2), 31)
    assert math.dist(rows(unguided[-1]).ravel(), wanted[-1].ravel()) > 1e-3, "nothing is guided"


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "pigdm"])
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_a_preset_is_its_papers_method(name: str, pair: Pair) -> None:
    compared([name], pair, [pair.scale])


@pytest.mark.parametrize("name", ["x0", "dps", "elucd-edm", "adam-dps"])
def test_a_mean_over_pixels_counts_as_much_as_a_label(name: str) -> None:
    """Its gradient is longer by the root of the number of entries."""
    compared([name], PAIRS["ddim"], [0.1], averages=True)


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
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_several_guides_are_their_methods_without_what_they_have_against_each_other(
    names: tuple[str, ...], pair: Pair
) -> None:
    compared(names, pair, [pair.scale * k for k in (1.0, 2.0, 0.5, 1.5)[: len(names)]])
