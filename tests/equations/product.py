"""The world of :mod:`equations.paper` as the product takes it: a backbone, a guide, and a walk."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from equations import paper
from torch import Tensor, nn
from worlds import QuadraticGuide

from ppap_host.backbones.backbone import Backbone, Condition, Prediction
from ppap_host.backbones.noise import DiscreteSchedule, NoiseLevel, Walk, linear_betas
from ppap_host.guides.guide import Guide
from ppap_host.recipes.estimate import Step
from ppap_host.sampling.evaluator import Evaluator, Guidance, Health
from ppap_host.sampling.loop import take_step
from ppap_host.sampling.solvers import Solver

TIMES = (999, 749, 500, 250, 0)
"""Of five steps of a thousand, by Ho et al.'s betas."""

ABARS = [*np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[list(TIMES)], 1.0]


def tensor(rows: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(rows)).view(-1, *paper.SHAPE)


def rows(x: Tensor) -> Any:
    return x.detach().flatten(1).numpy()


class Denoiser(Backbone):
    """:class:`equations.paper.World`; counts its evaluations."""

    name = "linear"
    state_shape = paper.SHAPE
    state_dtype = torch.float64

    def __init__(self, world: paper.World, mix: Any) -> None:
        self.world, self.mix = world, torch.from_numpy(mix)
        self.clip = None if world.clip is None else (-world.clip, world.clip)
        self.clip_eps = world.clip_eps
        self.fixed_variance = "small" if world.small else "large"
        self.base, self.spectrum, self.mean = (
            torch.from_numpy(a) for a in (world.base, world.spectrum, world.mean)
        )
        self.schedule = DiscreteSchedule.from_betas(linear_betas(1000))
        self.evaluations = 0

    def walk(self, steps: int | str) -> Walk:
        return self.schedule.walk(steps)

    def levels(self) -> tuple[NoiseLevel, ...]:
        return self.schedule.levels()

    def level_at(self, s: float) -> NoiseLevel:
        return NoiseLevel(1 / math.hypot(1, s), s / math.hypot(1, s), -1.0)

    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition = {}) -> Prediction:  # noqa: B006
        self.evaluations += 1
        alpha, sigma = level.alpha / level.scale, level.sigma / level.scale
        flat = x.flatten(1) / level.scale
        gains = alpha * self.spectrum / (alpha**2 * self.spectrum + sigma**2)
        x0 = self.mean + (flat - alpha * self.mean) @ self.base * gains @ self.base.T
        eps = ((flat - alpha * x0) / sigma).view_as(x)
        v = torch.tanh(x / 2 + 0.3) if self.world.learned else None
        return Prediction(eps, v)

    def decode(self, x0: Tensor) -> Tensor:
        return torch.einsum("ij,bjhw->bihw", self.mix.to(x0), x0) + 0.1

    def to(self, device: torch.device, dtype: torch.dtype) -> Backbone:
        return self


class NetGuide(QuadraticGuide):
    """:class:`equations.paper.Net`; its target is the label as a row of probabilities."""

    name = "net"

    def __init__(self, net: paper.Net) -> None:
        super().__init__()
        self.joint = self.marginal = 1.0
        self.averages_pixels = net.averages
        first, second = (nn.Linear(*w.shape[::-1], bias=False) for w in (net.w1, net.w2))
        self._network = nn.Sequential(nn.Flatten(), first, nn.ReLU(), second).double().eval()
        self._network.requires_grad_(False)
        first.weight.copy_(torch.from_numpy(net.w1))
        second.weight.copy_(torch.from_numpy(net.w2))
        self.target = torch.eye(4, dtype=torch.float64)[net.label : net.label + 1]

    def network(self) -> nn.Module:
        return self._network

    def see(self, x: Tensor, level: NoiseLevel | None = None) -> Tensor:
        size = 1.0 if level is None else 1.5 + math.tanh(level.log_snr / 4) / 2
        return self.through(self._network, size * x)

    def tempered(self, joint: float, marginal: float) -> Guide:
        other = copy(self)
        other.joint, other.marginal = joint, marginal
        return other

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        chosen = self.joint * (target * output).sum(dim=1)
        return torch.logsumexp(self.marginal * output, dim=1) - chosen


def draws(seed: int, count: int = 2) -> Iterator[Any]:
    """Standard normal rows."""
    rng = np.random.default_rng(seed)
    while True:
        yield rng.standard_normal((count, paper.N))


def streams(seed: int, count: int = 2) -> Callable[[str], Callable[[], Tensor]]:
    """A recipe's own noise: one sequence for recurrence, another for all smoothing."""

    def stream(name: str) -> Callable[[], Tensor]:
        found = draws(seed + (name != "recurrence"), count)
        return lambda: tensor(next(found))

    return stream


def run(
    backbone: Backbone,
    guidance: Sequence[Guidance],
    solver: Solver,
    walk: Walk,
    x: Tensor,
    draw: Iterator[Any],
    seed: int,
    health: Health | None = None,
    **options: Any,
) -> list[Tensor]:
    """All states of a walk, by the loop's own steps."""
    evaluator = Evaluator(
        backbone, lambda x, level: backbone.predict(x, level, {}), guidance,
        ancestral=solver.ancestral, health=health or Health(), stream=streams(seed, len(x)),
        **options,
    )  # fmt: skip
    states, memory = [x], None
    for i in range(len(walk)):
        step = Step(walk, i, backbone.fixed_variance)
        x, _, memory = take_step(solver, x, step, evaluator, lambda: tensor(next(draw)), memory)
        states.append(x)
    return states
