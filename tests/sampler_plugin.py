"""A plugin with a sampler."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ppap_host.backbones.backbone import Backbone
from ppap_host.backbones.noise import Walk
from ppap_host.plugins.hookspecs import Entry, hookimpl
from ppap_host.recipes.estimate import Estimate
from ppap_host.sampling.solvers import Evaluate, Solver
from ppap_host.sampling.streams import Draw

ppap_interface = 1


class PlainEuler(Solver):
    """A step along the predicted noise."""

    name = "plain-euler"

    def step(
        self, x: Tensor, i: int, walk: Walk, evaluate: Evaluate, draw: Draw, memory: Any
    ) -> tuple[Tensor, Estimate, Any]:
        estimate, then = evaluate(x, walk.levels[i]), walk.levels[i + 1]
        return then.alpha * estimate.x0 + then.sigma * estimate.eps, estimate, None


def make(backbone: Backbone) -> PlainEuler:
    return PlainEuler()


@hookimpl
def ppap_samplers() -> list[Entry]:
    return [Entry("plain-euler", "sampler_plugin:make", "one step after another")]
