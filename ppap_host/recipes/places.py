"""Places: where a guide's scaled gradient changes a step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from ppap_host.recipes.estimate import Estimate


@runtime_checkable
class Place(Protocol):
    """Where the scaled gradient changes the step.

    Attributes:
        enters: whether it changes the state before the backbone is asked. The guide then knows
            nothing but the state.
        once: whether it acts once a step, also where the solver evaluates twice.
        own_size: whether how far it moves is its own affair, and not linear in the gradient, such
            as a point on a sphere. With relative strength it gets the gradient at a root mean
            square of the user's scale.
    """

    enters: ClassVar[bool] = False
    once: ClassVar[bool] = False
    own_size: ClassVar[bool] = False

    def __call__(self, estimate: Estimate, gradient: Tensor, ancestral: bool) -> Estimate:
        """The changed estimate; ``ancestral`` says whether the solver has a mean to shift."""

    def unit(self, estimate: Estimate) -> float:
        """The root mean square of a gradient that would change the state by about its own size.

        What :attr:`ppap_host.recipes.recipe.Move.limit` is measured in, with absolute strength.
        """
        return 1.0


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
            return replace(estimate, x0=x0)
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
