"""Selections: how images are chosen by what a guide says of them, without its gradient.

A guide is asked for values alone, minus its losses, so that any black box will do. Every image is
grown from a population or from branches of its own: it competes with no other image of the batch,
and depends on its seed and its number alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppap_host.files.settings import Batch, Count, Finite, NotNegative, settings

Potential = Literal["max", "add", "diff", "rt", "is", "bon"]
POTENTIALS: tuple[Potential, ...] = ("max", "add", "diff", "rt", "is", "bon")
_MOST = 1e10


@dataclass(frozen=True)
class Selection:
    """How a recipe chooses.

    Attributes:
        size: particles of an image that are alive between steps.
        branches: next states of which a step keeps one.
        needs: what of the sampler: "noise" in its steps, without which copies stay copies, or a
            step that is "gaussian", with a mean and a deviation that it tells.
    """

    size: ClassVar[int] = 1
    branches: ClassVar[int] = 1
    needs: ClassVar[Literal["", "noise", "gaussian"]] = ""


@settings
class Branched(Selection):
    """Of several draws of the next state, the one that is worth most: SVDD (Li et al., 2024).

    Every step draws x_(t-1) so often from its Gaussian; the value of each is that of what the guide
    is shown of it at its own level (the predicted x_0 is SVDD-PM, which asks the backbone once
    more for each; the noised state is SVDD-MC). The last step, whose state is the image, draws one.

    Attributes:
        branches: draws a step, >= 1.
        temperature: alpha; one is drawn in proportion to exp(scale * value / alpha). 0, as in the
            published code, takes the best.
    """

    branches: Count = 4  # type: ignore[misc]
    temperature: NotNegative = 0.0
    needs: ClassVar[Literal["", "noise", "gaussian"]] = "gaussian"

    def weights(self, values: Float[Tensor, "m b"]) -> Float[Tensor, "m b"]:
        """With what probability each branch is kept at a temperature above 0."""
        return torch.softmax(values / self.temperature, dim=0)

    def chosen(
        self, values: Float[Tensor, "m b"], uniforms: Float[Tensor, " b"] | None
    ) -> Int[Tensor, " b"]:
        """Which branch of each image goes on.

        Args:
            values: scaled; NaN is worth nothing.
            uniforms: in [0, 1), for temperatures above 0.
        """
        values = values.nan_to_num(-math.inf, math.inf, -math.inf)
        if not self.temperature or uniforms is None:
            return values.argmax(dim=0)
        return drawn(self.weights(values).T, uniforms[:, None])[:, 0]


@dataclass(frozen=True)
class Population:
    """What particles carry from selection to selection, [b, n] each.

    Attributes:
        reward: the reward that the next potential looks back on.
        product: log of the product of all potentials so far.
        weight: log of the weights that no resampling has used up yet.
    """

    reward: Tensor
    product: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Selected:
    """What one selection did.

    Attributes:
        index: which particle of its image each slot holds now, [b, n].
        after: what they carry on.
        weights: of the particles before, [b, n]; zeros where they were only put in order.
        ess: effective sample size of the weights, [b].
        drawn: for which images indices were drawn from the weights, [b].
    """

    index: Int[Tensor, "b n"]
    after: Population
    weights: Float[Tensor, "b n"]
    ess: Float[Tensor, " b"]
    drawn: Tensor


@settings
class FeynmanKac(Selection):
    """Particles that are weighed, resampled and branched: FK steering (Singhal et al., 2025).

    Particles with much reward are copied in the place of those with little, at some steps, and in
    the end the best one is the image. The reward r is that of the x_0 predicted at x_t, and what is
    resampled is x_(t-1). Potentials G, whose product is exp(lambda r(x_0)) in the end:

    - max: exp(lambda max r so far); add: exp(lambda sum of r so far); rt: exp(lambda r);
    - diff: exp(lambda (r - r at the selection before));
    - is: none before the end; bon: none at all, which is best-of-N.

    Attributes:
        size: particles an image.
        factor: lambda, >= 0; the user's scale multiplies it.
        start, period, end: selections are at steps start, start + period, ... up to and with end
            (None: to the last), and always at the last.
        floor: reward that the first selection looks back on, r_min of the published code; None is
            one that changes nothing.
        adaptive: whether particles are only resampled where their effective sample size is below
            half their number; ``adaptive_last``: at the last step in any case.
        relative: whether each guide's rewards are measured in their standard deviation over an
            image's particles at its first selection (:func:`spread`), so that lambda means the same
            for every guide.
        published: "image" or "discrete" do as that part of the published code, which clamps weights
            at 1e10, loses those of steps that do not resample, and at the end puts the path's
            maximum or sum in the place of r(x_0). By default weights are kept as logarithms and
            carried on, and the last potential is that of the paper.
    """

    size: Count = 4  # type: ignore[misc]
    potential: Potential = "max"
    factor: NotNegative = 2.0
    start: int = 0
    end: int | None = None
    period: Batch = 2
    floor: Finite | None = None
    adaptive: bool = True
    adaptive_last: bool = True
    relative: bool = True
    published: Literal["", "image", "discrete"] = ""

    @property
    def needs(self) -> Literal["", "noise", "gaussian"]:  # type: ignore[override]
        """Noise, where particles are copied before the end."""
        return "" if self.potential in ("bon", "is") or self.size == 1 else "noise"

    def active(self, i: int, steps: int) -> bool:
        """Whether particles are selected after step ``i`` of so many."""
        if i == steps - 1:
            return True
        if self.potential in ("bon", "is") or i < self.start:
            return False
        return (self.end is None or i <= self.end) and (i - self.start) % self.period == 0

    def begin(self, images: int, like: Tensor) -> Population:
        """What the particles of so many images start with."""
        floor = self.floor
        if floor is None:
            floor = -math.inf if self.potential == "max" else 0.0
        zero = torch.zeros(images, self.size, dtype=like.dtype, device=like.device)
        return Population(zero + floor, zero, zero)

    def __call__(
        self,
        rewards: Float[Tensor, "b n"],
        before: Population,
        i: int,
        steps: int,
        uniforms: Float[Tensor, "b n"],
    ) -> Selected:
        """One selection at an :meth:`active` step.

        Args:
            rewards: of the particles, in their units and times the user's scale; one that is not
                finite counts nothing.
            uniforms: in [0, 1), one a slot.
        """
        last, count = i == steps - 1, rewards.shape[1]
        own = torch.arange(count, device=rewards.device).expand_as(rewards)
        nothing = torch.zeros_like(rewards)
        if self.potential == "bon":
            worth = rewards.nan_to_num(-math.inf, math.inf, -math.inf)
            order = worth.argsort(dim=1, descending=True, stable=True)
            none = torch.zeros(len(rewards), dtype=torch.bool, device=rewards.device)
            return Selected(order, before, nothing, nothing[:, 0], none)
        state, log = self._potential(rewards, before, last)
        total = log if self.published else log + before.weight
        weights, used = self._weights(total)
        share = weights / weights.sum(dim=1, keepdim=True)
        ess = 1 / share.square().sum(dim=1)
        resampled = torch.ones_like(ess, dtype=torch.bool)
        if self.adaptive or (last and self.adaptive_last):
            resampled = ess < count / 2
        index = torch.where(resampled[:, None], drawn(weights, uniforms), own)
        gained = before.product + (used if self.published else log)
        kept = before.product if self.published else gained
        after = Population(
            state.gather(1, index),
            torch.where(resampled[:, None], gained.gather(1, index), kept),
            nothing if self.published else torch.where(resampled[:, None], 0.0, total),
        )
        return Selected(index, after, weights, ess, resampled)

    def _potential(self, r: Tensor, before: Population, last: bool) -> tuple[Tensor, Tensor]:
        """What particles look back on from here, and the log of this step's potential."""
        state = r
        if self.potential == "max":
            state = torch.maximum(r, before.reward)
        elif self.potential == "add":
            state = r + before.reward
        if self.potential == "diff":
            return state, self.factor * (r - before.reward)
        if last and self.potential in ("max", "add", "rt"):
            end = state if self.published else r
            return state, self.factor * end - before.product
        return state, self.factor * state

    def _weights(self, log: Tensor) -> tuple[Tensor, Tensor]:
        """Weights, and their logarithms as the product takes them up."""
        if not self.published:
            log = log.nan_to_num(-math.inf, math.inf, -math.inf)
            peak = log.amax(dim=1, keepdim=True)
            weights = torch.where(peak.isinf(), 1.0, (log - peak).exp())
            return weights.nan_to_num(0.0), log
        weights = log.exp().clamp(0, _MOST).nan_to_num(0.0)
        if self.published == "discrete":
            weights = torch.where((weights == 0).all(dim=1, keepdim=True), 1.0, weights)
        return weights, weights.log()


def spread(rewards: Float[Tensor, "b n"]) -> Float[Tensor, "b 1"]:
    """Standard deviation over each image's particles that are finite; one where they agree."""
    sound = rewards.isfinite()
    filled, count = torch.where(sound, rewards, 0.0), sound.sum(dim=1, keepdim=True).clamp_min(1)
    mean = filled.sum(dim=1, keepdim=True) / count
    square = torch.where(sound, (rewards - mean).square(), 0.0).sum(dim=1, keepdim=True) / count
    return torch.where(square > 0, square.sqrt(), 1.0)


def drawn(weights: Float[Tensor, "b n"], uniforms: Float[Tensor, "b m"]) -> Int[Tensor, "b m"]:
    """Independent draws with replacement: the first k at which the share up to k reaches u."""
    share = (weights / weights.sum(dim=1, keepdim=True)).cumsum(dim=1)
    found = torch.searchsorted(share.contiguous(), uniforms.to(share).contiguous())
    return found.clamp(max=weights.shape[1] - 1)
