"""Places: where a guide's scaled gradient changes a step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from ppap_host.files.settings import NotNegative, Positive, settings
from ppap_host.recipes.estimate import Estimate


@runtime_checkable
class Place(Protocol):
    """Where the scaled gradient changes the step.

    Attributes:
        enters: whether it changes the state before the backbone is asked. The guide then knows
            nothing but the state.
        once: whether it acts once a step, also where the solver evaluates twice.
        needs: what of the sampler: "gaussian" is a step from a Gaussian that it tells.
        replaces: whether it takes the step in the sampler's place, at strength zero, too.
        own_size: whether how far it moves is its own affair, and not linear in the gradient, such
            as a point on a sphere. With relative strength it gets the gradient at a root mean
            square of the user's scale, and is told its share (:meth:`of_share`).
    """

    enters: ClassVar[bool] = False
    once: ClassVar[bool] = False
    needs: ClassVar[Literal["", "noise", "gaussian"]] = ""
    replaces: ClassVar[bool] = False
    own_size: ClassVar[bool] = False

    def __call__(self, estimate: Estimate, gradient: Tensor, ancestral: bool) -> Estimate:
        """The changed estimate; ``ancestral`` says whether the solver has a mean to shift."""

    def unit(self, estimate: Estimate) -> float:
        """The root mean square of a gradient that would change the state by about its own size.

        What :attr:`ppap_host.recipes.recipe.Move.limit` is measured in, with absolute strength.
        """
        return 1.0

    def of_share(self, share: float) -> Place:
        """The place that moves the state after the step by this much of how far it is open.

        Args:
            share: >= 0, in units of sigma / sqrt(alpha^2 + sigma^2) at unit variance.
        """
        return self


@dataclass(frozen=True)
class Score(Place):
    """Shifts the noise, eps - sigma * gradient; x_0 follows and is not clipped again.

    Dhariwal and Nichol (2021), algorithm 2, and the forward guidance of Universal Guidance (Bansal
    et al., 2023, eq. 6).
    """

    def __call__(self, estimate: Estimate, gradient: Tensor, ancestral: bool) -> Estimate:
        """The shifted estimate."""
        level = estimate.level
        eps = estimate.eps - level.sigma * gradient
        return replace(estimate, eps=eps, x0=(estimate.x - level.sigma * eps) / level.alpha)

    def unit(self, estimate: Estimate) -> float:
        """1 / sigma: the noise has size one."""
        return 1 / estimate.level.sigma


@dataclass(frozen=True)
class MeanOrScore(Place):
    """Dhariwal and Nichol (2021): algorithm 1 for ancestral solvers, algorithm 2 for the others.

    Algorithm 1 adds variance * gradient to the mean of the step; algorithm 2 is :class:`Score`.
    """

    def __call__(self, estimate: Estimate, gradient: Tensor, ancestral: bool) -> Estimate:
        """The shifted estimate."""
        if not ancestral:
            return Score()(estimate, gradient, ancestral)
        before = estimate.mean_shift
        return replace(estimate, mean_shift=gradient if before is None else before + gradient)

    def unit(self, estimate: Estimate) -> float:
        """1 / sigma: the noise has size one."""
        return 1 / estimate.level.sigma


@dataclass(frozen=True)
class CleanPoint(Place):
    """Moves the predicted x_0 and lets eps follow, so that x_t = alpha x_0 + sigma eps still holds.

    The natural place for a gradient taken at the predicted x_0: no factor 1 / alpha that explodes
    at high noise.

    Attributes:
        keep_eps: whether eps stays as it was: MPGD (He et al., 2024, algorithm 1) and the
            Delta_0 of TFG (Ye et al., 2024, algorithm 1).
        clip: whether x_0 stays within the backbone's bounds, if it has any.
    """

    keep_eps: bool = False
    clip: bool = True

    def __call__(self, estimate: Estimate, gradient: Tensor, ancestral: bool) -> Estimate:
        """The shifted estimate."""
        x0 = estimate.x0 + gradient
        if self.clip and estimate.clip is not None:
            x0 = x0.clamp(*estimate.clip)
        if self.keep_eps:
            return replace(estimate, x0=x0, eps_kept=True)
        eps = (estimate.x - estimate.level.alpha * x0) / estimate.level.sigma
        return replace(estimate, x0=x0, eps=eps)


@dataclass(frozen=True)
class NextState(Place):
    """Adds to the state after the step: DPS, FreeDoM, LGD, PiGDM, TFG and EluCD.

    Attributes:
        carried: whether the gradient is a move of x_t, brought to the scale of the next level by
            alpha_(t-1) / alpha_t, as TFG's Delta_t is (Ye et al., 2024, algorithm 1).
        unit_scale: whether it is a move at unit variance scale, brought to that of the next level.
    """

    carried: bool = False
    unit_scale: bool = False
    once: ClassVar[bool] = True

    def __call__(self, estimate: Estimate, gradient: Tensor, ancestral: bool) -> Estimate:
        """The estimate with what its step will add."""
        step = estimate.on_walk()
        if self.carried:
            gradient = gradient * (step.then.alpha / step.now.alpha)
        if self.unit_scale:
            gradient = gradient * step.then.scale
        before = estimate.next_shift
        return replace(estimate, next_shift=gradient if before is None else before + gradient)

    def unit(self, estimate: Estimate) -> float:
        """The scale of the level, or one where the gradient is at unit scale already."""
        return 1.0 if self.unit_scale else estimate.level.scale


@dataclass(frozen=True)
class Entering(Place):
    """Moves the state that enters the step, before the backbone is asked (EluCD's EDM variant)."""

    enters: ClassVar[bool] = True
    once: ClassVar[bool] = True

    def __call__(self, estimate: Estimate, gradient: Tensor, ancestral: bool) -> Estimate:
        """The estimate of the moved state."""
        return replace(estimate, x=estimate.x + gradient)

    def unit(self, estimate: Estimate) -> float:
        """The scale of the level."""
        return estimate.level.scale


@settings
class Sphere(Place):
    """Turns the noise of a step towards the gradient: DSG (Yang et al., 2024, section 4).

    Noise of n entries and deviation sigma lies close to a sphere of radius r = sqrt(n) sigma around
    the mean of the step, so a guide that only turns it leaves the next state as noisy as it has to
    be: d = d_sample + rate (r g / ||g|| - d_sample), brought back to length r. Only the gradient's
    direction counts. A step without noise is left as it is.

    What a rate moves depends on how many steps there are and how much noise each has. With relative
    strength it is therefore found for each step, from the share that the guide may move.

    Attributes:
        rate: g_r of the paper, which the user's scale multiplies; the product counts up to 1.
        share: of relative strength, in place of a rate: how far the next state is moved, beside
            how far a clean image of unit variance is open there.
        own_radius: whether r is the length of the noise that was drawn, so that rate 0 is the plain
            sampler, an ancestral last step moves nothing, and variances of their own for every
            entry count as they are. The published code takes sqrt(n) sigma, sigma being that of the
            first entry.
        least: added to lengths that are divided by.
    """

    rate: NotNegative = 0.1
    share: float | None = None
    own_radius: bool = True
    least: Positive = 1e-20
    once: ClassVar[bool] = True
    own_size: ClassVar[bool] = True
    needs: ClassVar[Literal["", "noise", "gaussian"]] = "gaussian"

    def __call__(self, estimate: Estimate, gradient: Tensor, ancestral: bool) -> Estimate:
        """The estimate whose step will be turned."""
        scale = estimate.scale
        return replace(estimate, ends=(*estimate.ends, partial(self._turned, gradient, scale)))

    def of_share(self, share: float) -> Sphere:
        """The place that moves the next state so far, in units of how far it is open."""
        return replace(self, share=share)

    def _rate(self, radius: Tensor, scale: float, estimate: Estimate) -> Tensor:
        if self.share is None:
            return torch.full_like(radius, self.rate * scale).clamp(0, 1)
        then = estimate.on_walk().then
        size = radius / math.sqrt(estimate.x[0].numel())
        wanted = self.share * then.alpha * then.sigma / then.scale
        return torch.where(size > 0, wanted / (size + self.least), 0.0).clamp(0, 1)

    def _turned(self, gradient: Tensor, scale: float, x: Tensor, estimate: Estimate) -> Tensor:
        if estimate.mean is None:
            return x
        noise = x - estimate.mean
        radius = _lengths(noise)
        if not self.own_radius:
            deviation = torch.as_tensor(estimate.deviation, dtype=x.dtype, device=x.device)
            first = deviation.expand_as(x).flatten(1)[:, :1]
            radius = (math.sqrt(x[0].numel()) * first).view(radius.shape)
        best = gradient * (radius / (_lengths(gradient) + self.least))
        rate = self._rate(radius, scale, estimate)
        mixed = noise + rate * (best - noise)
        if not self.own_radius or bool((rate > 0).any()):
            mixed = mixed * (radius / (_lengths(mixed) + self.least))
        return x + (mixed - noise)


def _lengths(x: Tensor) -> Tensor:
    """Of each image, [b, 1, ...]."""
    found: Tensor = torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)
    return found


@dataclass(frozen=True)
class Renoised(Place):
    """Moves x_0 and draws the next state from it by new noise: DAPS (Zhang et al., 2025).

    x_(t-1) = alpha x_0 + sigma z, whatever the sampler would do, so that what one level has got
    wrong the next can mend.

    Attributes:
        clip: whether x_0 stays within the backbone's bounds, if it has any.
    """

    clip: bool = True
    once: ClassVar[bool] = True
    replaces: ClassVar[bool] = True

    def __call__(self, estimate: Estimate, gradient: Tensor, ancestral: bool) -> Estimate:
        """The estimate with its x_0 moved."""
        moved = CleanPoint(keep_eps=True, clip=self.clip)(estimate, gradient, ancestral)
        return replace(moved, ends=(*moved.ends, self._drawn))

    def _drawn(self, x: Tensor, estimate: Estimate) -> Tensor:
        then = estimate.on_walk().then
        return then.alpha * estimate.x0 + then.sigma * estimate.asking().noise("renoised", x)
