"""Selections: how images are chosen by what a guide says of them, without its gradient.

A guide is asked for values alone, minus its losses, so that any black box will do. Every image is
grown from a population or from branches of its own: it competes with no other image of the batch,
and depends on its seed and its number alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppap_host.files.settings import Batch, Count, Finite, NotNegative, settings

Potential = Literal["max", "add", "diff", "rt", "is", "bon"]
POTENTIALS: tuple[Potential, ...] = ("max", "add", "diff", "rt", "is", "bon")
_MOST = 1e10


@dataclass(frozen=True)
class Selected:
    """What one selection did.

    Attributes:
        index: which particle of its image each slot holds now, [b, n].
        after: what they carry on, in their new order; handed to the next selection.
        weights: of the particles before, [b, n]; zeros where they were only put in order. None
            where nothing is told of them.
        ess: effective sample size of the weights, [b], or None.
        drawn: for which images indices were drawn from the weights, [b], or None.
    """

    index: Int[Tensor, "b n"]
    after: Any = None
    weights: Float[Tensor, "b n"] | None = None
    ess: Float[Tensor, " b"] | None = None
    drawn: Tensor | None = None


@dataclass(frozen=True)
class Selection:
    """How a recipe chooses. One of one's own derives from it.

    A population, of a :attr:`size` above 1, says in a call which particles live on, and in
    :meth:`final` which one is the image. Branches, of a number above 1, are chosen by
    :meth:`chosen`. Both are told values alone, minus the guides' losses times their scales.

    Attributes:
        size: particles of an image that are alive between steps.
        branches: next states of which a step keeps one.
        needs: what of the sampler: "noise" in its steps, without which copies stay copies, or a
            step that is "gaussian", with a mean and a deviation that it tells.
        draws: whether :meth:`chosen` draws, and is given numbers for it.
        relative: whether each guide's values are measured in their standard deviation over an
            image's particles at its first selection (:func:`spread`).
        at_end: whether a population is chosen from at the end alone.
        corrected: whether a call is also told how much likelier the backbone's own step is than
            the one that guides have moved, as in twisted SMC; such a step is "gaussian".
    """

    size: ClassVar[int] = 1
    branches: ClassVar[int] = 1
    needs: ClassVar[Literal["", "noise", "gaussian"]] = ""
    draws = True
    relative = False
    at_end = False
    corrected = False

    def active(self, i: int, steps: int) -> bool:
        """Whether particles are selected after step ``i`` of so many; by default after each."""
        return True

    def begin(self, images: int, like: Tensor) -> Any:
        """What the particles of so many images start with, for the first call."""
        return None

    def __call__(
        self,
        rewards: Float[Tensor, "b n"],
        before: Any,
        i: int,
        steps: int,
        uniforms: Float[Tensor, "b n"],
        **told: Float[Tensor, "b n"],
    ) -> Selected:
        """One selection of a population at an :meth:`active` step.

        The values are those of x_0 predicted at the state that entered the step, and what is chosen
        among are the states after it.

        Args:
            rewards: of the particles, times the user's scale; one that is not finite counts
                nothing.
            before: what the selection before carried on, :meth:`begin` at the first.
            uniforms: in [0, 1), one a slot.
            told: of a :attr:`corrected` one ``owed``, log p - log q of the steps since the last
                selection: p as the backbone would draw them, q as the guides had them drawn.
        """
        raise NotImplementedError(f"{type(self).__name__} has particles: say which live on.")

    def final(
        self, rewards: Float[Tensor, "b n"], before: Any, uniforms: Float[Tensor, " b"]
    ) -> Int[Tensor, " b"]:
        """Which finished particle is the image; by default the best, the first of equal ones.

        Args:
            rewards: of the finished images, -inf for what has failed.
            before: what the last selection carried on.
            uniforms: in [0, 1).
        """
        return rewards.argmax(dim=1)

    def chosen(
        self, values: Float[Tensor, "m b"], uniforms: Float[Tensor, " b"] | None
    ) -> Int[Tensor, " b"]:
        """Which branch of each image goes on; by default the one that is worth most.

        Args:
            values: times the user's scale; NaN is worth nothing.
            uniforms: in [0, 1), where it :attr:`draws`.
        """
        return values.nan_to_num(-math.inf, math.inf, -math.inf).argmax(dim=0)


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

    @property
    def draws(self) -> bool:  # type: ignore[override]
        """With a temperature."""
        return self.temperature > 0

    def weights(self, values: Float[Tensor, "m b"]) -> Float[Tensor, "m b"]:
        """With what probability each branch is kept at a temperature above 0."""
        return torch.softmax(values / self.temperature, dim=0)

    def chosen(
        self, values: Float[Tensor, "m b"], uniforms: Float[Tensor, " b"] | None
    ) -> Int[Tensor, " b"]:
        """The best, or with a temperature one in proportion to its worth."""
        if not self.temperature or uniforms is None:
            return super().chosen(values, uniforms)
        values = values.nan_to_num(-math.inf, math.inf, -math.inf)
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
        corrected: whether weights make up for what guides have moved, so that moves are proposals
            and the potentials alone say what is sampled: with "diff" the twisted diffusion sampler
            (TDS; Wu et al., 2023, algorithm 1), with others FK steering with proposals of its own.
        final_draw: whether the image is drawn in proportion to the weights that are left, as a
            sampler does, and not the best of the particles.
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
    corrected: bool = False
    final_draw: bool = False
    published: Literal["", "image", "discrete"] = ""

    @property
    def needs(self) -> Literal["", "noise", "gaussian"]:  # type: ignore[override]
        """Noise, where particles are copied before the end."""
        if self.corrected:
            return "gaussian"
        return "" if self.potential in ("bon", "is") or self.size == 1 else "noise"

    @property
    def at_end(self) -> bool:  # type: ignore[override]
        """Best-of-N."""
        return self.potential == "bon"

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
        **told: Float[Tensor, "b n"],
    ) -> Selected:
        """See :meth:`Selection.__call__`."""
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
        total = total + told["owed"] if "owed" in told else total
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

    def final(
        self, rewards: Float[Tensor, "b n"], before: Population | None, uniforms: Tensor
    ) -> Int[Tensor, " b"]:
        """The best, or one in proportion to the weights that are left."""
        if not self.final_draw or before is None:
            return super().final(rewards, before, uniforms)
        failed = rewards == -math.inf
        weights, _ = self._weights(before.weight.to(rewards).masked_fill(failed, -math.inf))
        return drawn(weights, uniforms[:, None])[:, 0]

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
