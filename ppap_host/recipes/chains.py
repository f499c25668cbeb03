"""Chains: Markov chains over clean states, by which DAPS samples from what a guide leaves open."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ppap_host.files.settings import Count, Decay, NotNegative, Positive, settings
from ppap_host.recipes.ascents import Ascent, Pull
from ppap_host.recipes.estimate import Estimate


@settings
class Solved:
    """The clean state at the end of the probability flow from x_t, by Euler steps of its own.

    Of the state over alpha, at noise s = sigma / alpha (Karras et al., 2022, eq. 5). The first step
    uses what is known already, the others ask the backbone once each.

    Attributes:
        steps: >= 1.
        least: noise at which it ends, > 0.
        spacing: "poly" spreads s^(1 / power) evenly (Karras et al., 2022), "ve" the logarithm of s,
            with Euler steps in s^2.
    """

    steps: Count = 4
    least: Positive = 0.01
    spacing: Literal["poly", "ve"] = "poly"
    power: Positive = 7.0

    def noises(self, s: float) -> list[float]:
        """The noise at every point, from ``s`` on."""
        shares = [k / self.steps for k in range(self.steps + 1)]
        if self.spacing == "ve":
            return [s * (self.least / s) ** share for share in shares]
        root = 1 / self.power
        return [(s**root + share * (self.least**root - s**root)) ** self.power for share in shares]

    def __call__(self, estimate: Estimate) -> Tensor:
        """The end of the flow that the estimate is on."""
        level = estimate.level
        y, x0 = estimate.x.detach() / level.alpha, estimate.x0
        noises = self.noises(level.sigma / level.alpha)
        if noises[0] <= self.least:
            return x0
        for k, (s, then) in enumerate(pairwise(noises)):
            if k:
                near = estimate.asking().level_at(s)
                x0 = estimate.asking().clean(near.alpha * y, near)
            share = (then - s) / s if self.spacing == "poly" else (then**2 - s**2) / (2 * s**2)
            y = y + share * (y - x0)
        return y


@settings
class Chain(Ascent):
    """Samples a clean state between the flow's end and what the guide wants: DAPS.

    Zhang et al. (2025), algorithm 1: from x0hat, the end of the flow from x_t, a chain whose
    target is exp(-scale loss(x)) N(x; x0hat, s^2 I), s = sigma / alpha.

    Attributes:
        steps: updates.
        rate: size of an update; falls in a line over the walk, to ``last`` times itself one step
            after it.
        relative: whether the rate is in units of sigma^2 / (alpha^2 + sigma^2), so that it suits
            every level of every schedule, and the guide's pull is the way of an update. In the
            published code the rate multiplies both.
        kind: "langevin"; "hmc", with the momentum kept between updates; "mh", Metropolis and
            Hastings, which looks at values alone.
        prior: what holds x: "gaussian" is x0hat; of the published code's others "score-t" is the
            backbone's score at x_t, "score-min" and "exact" that at ``prior_noise``, taken at x0hat
            or anew at every x.
        momentum: of "hmc", in [0, 1).
        flow: that leads to x0hat.
    """

    steps: Annotated[int, Field(ge=1, le=1000)] = 5
    rate: NotNegative = 1e-3
    last: NotNegative = 0.01
    relative: bool = True
    kind: Literal["langevin", "hmc", "mh"] = "langevin"
    prior: Literal["gaussian", "score-t", "score-min", "exact"] = "gaussian"
    prior_noise: Positive = 0.01
    momentum: Decay = 0.9
    flow: Solved = Solved()
    after: ClassVar[bool] = True

    @property
    def asks(self) -> int:
        """How often it asks the backbone once more."""
        more = {"exact": self.steps, "score-min": 1}.get(self.prior, 0)
        return self.flow.steps - 1 + more

    def size(self, estimate: Estimate) -> float:
        """Of an update at this step."""
        step, level = estimate.on_walk(), estimate.level
        size = self.rate * (1 + step.index / (len(step.walk) + 1) * (self.last - 1))
        return size * (level.sigma / level.scale) ** 2 if self.relative else size

    def __call__(self, pull: Pull, start: Tensor, estimate: Estimate) -> Tensor:
        """The way from ``start`` to the chain's last state."""
        base, size = self.flow(estimate), self.size(estimate)
        x, velocity = base, None
        hold = self._hold(base, estimate)
        ask = estimate.asking()
        if self.kind == "hmc":
            velocity = ask.noise("chain", x)
        for _ in range(self.steps):
            if self.kind == "mh":
                x = self._proposed(pull, x, base, size, estimate)
                continue
            gradient, _ = pull(x)
            drift = hold(x) + (gradient / size if self.relative else gradient)
            noise = ask.noise("chain", x)
            if velocity is None:
                x = x + size * drift + math.sqrt(2 * size) * noise
                continue
            velocity = self.momentum * velocity + math.sqrt(size) * drift
            velocity = velocity + math.sqrt(2 * (1 - self.momentum)) * noise
            x = x + math.sqrt(size) * velocity
        return x - start

    def _hold(self, base: Tensor, estimate: Estimate) -> Callable[[Tensor], Tensor]:
        """The gradient of everything but the guide, as a function of x."""
        y = estimate.x.detach() / estimate.level.alpha
        square = (estimate.level.sigma / estimate.level.alpha) ** 2
        if self.prior == "gaussian":
            return lambda x: (base - x) / square
        if self.prior == "exact":
            return lambda x: (y - x) / square + self._score(x, estimate)
        score = (estimate.x0 - y) / square
        if self.prior == "score-min":
            score = self._score(base, estimate)
        return lambda x: (y - x) / square + score

    def _score(self, x: Tensor, estimate: Estimate) -> Tensor:
        """The backbone's score of a nearly clean state."""
        level = estimate.asking().level_at(self.prior_noise)
        clean = estimate.asking().clean(level.alpha * x, level)
        return (clean - x) / (level.sigma / level.alpha) ** 2

    def _proposed(
        self, pull: Pull, x: Tensor, base: Tensor, size: float, estimate: Estimate
    ) -> Tensor:
        """One update by Metropolis and Hastings."""
        square = (estimate.level.sigma / estimate.level.alpha) ** 2
        other = x + math.sqrt(size) * estimate.asking().noise("chain", x)
        _, loss = pull(x)
        _, loss_other = pull(other)
        held = [(p - base).square().flatten(1).sum(dim=1) / (2 * square) for p in (x, other)]
        ratio = estimate.scale * (loss - loss_other) + held[0] - held[1]
        taken = torch.log(estimate.asking().uniform("accepted", x)) < ratio
        return torch.where(taken.view(-1, *[1] * (x.ndim - 1)), other, x)
