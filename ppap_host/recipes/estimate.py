"""What is known at one step of sampling: where on the walk it is, and the backbone's reading."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from ppap_host.backbones.backbone import FixedVariance
from ppap_host.backbones.noise import NoiseLevel, Walk


@dataclass(frozen=True)
class Step:
    """One step of a walk.

    Attributes:
        index: 0 is the noisiest; the step leads from ``walk.levels[index]`` to the next one.
        fixed_variance: the ancestral step's variance where the backbone has learned none.
    """

    walk: Walk
    index: int
    fixed_variance: FixedVariance = "large"

    @property
    def now(self) -> NoiseLevel:
        """The level the step starts from."""
        return self.walk.levels[self.index]

    @property
    def then(self) -> NoiseLevel:
        """The level the step leads to."""
        return self.walk.levels[self.index + 1]

    def kept(self) -> float:
        """How much of the signal's share the step leaves, abar_now / abar_then, in (0, 1].

        abar = alpha^2 / (alpha^2 + sigma^2), so that it is alpha_t of Ho et al. (2020) on every
        schedule.
        """
        now, then = self.now, self.then
        return ((now.alpha / now.scale) / (then.alpha / then.scale)) ** 2

    def at_unit_scale(self) -> Step:
        """The same step of the variance-preserving form of the process, x_t / scale."""
        levels = tuple(
            NoiseLevel(level.alpha / level.scale, level.sigma / level.scale, level.time)
            for level in self.walk.levels
        )
        return replace(self, walk=Walk(levels))

    def log_variance(
        self, v: Float[Tensor, "b ..."] | None, like: Tensor
    ) -> Float[Tensor, "b ..."]:
        """The log variance of the ancestral step (Ho et al., 2020; Nichol and Dhariwal, 2021).

        The learned one interpolates in log between posterior variance and beta (Nichol and
        Dhariwal, 2021, eq. 15). Of the fixed ones "large" is beta and "small" the posterior
        variance; in the last step both are the posterior variance of the step before.

        Args:
            v: the learned coefficient in [-1, 1], or None.
            like: of the state's type and device.

        Returns:
            As ``v``, or [b, 1, ...] where the variance is fixed.
        """
        posterior = self.walk.posterior(self.index)
        if v is not None:
            fraction = (v + 1) / 2
            return fraction * posterior.log_upper + (1 - fraction) * posterior.log_lower
        last = self.index == len(self.walk) - 1
        fixed = posterior.log_upper
        if self.fixed_variance == "small" or last:
            fixed = posterior.log_lower
        return like.new_full((len(like), *[1] * (like.ndim - 1)), fixed)

    def back(self, x: Tensor, noise: Tensor) -> Tensor:
        """From a state after the step to one before it, by new noise (Lugmayr et al., 2022, eq. 8).

        Args:
            x: at :attr:`then`, [b, ...].
            noise: standard normal, as ``x``.
        """
        ratio = self.now.alpha / self.then.alpha
        added = math.sqrt(max(self.now.sigma**2 - ratio**2 * self.then.sigma**2, 0.0))
        return ratio * x + added * noise


@runtime_checkable
class Asking(Protocol):
    """What a part may ask for beyond what is known: the backbone once more, and noise."""

    def clean(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """The predicted clean state of ``x`` at ``level``, clipped as the backbone asks."""

    def level_at(self, s: float) -> NoiseLevel:
        """The level with relative noise s = sigma / alpha, or the nearest that is known."""

    def noise(self, name: str, like: Tensor) -> Tensor:
        """The next standard normal draw of a stream of its own, as ``like``."""

    def uniform(self, name: str, like: Tensor) -> Tensor:
        """The next draw in [0, 1) of a stream of its own, one for each row of ``like``, [b]."""


End = Callable[[Tensor, "Estimate"], Tensor]
"""What a place does in the end, :attr:`Estimate.ends`: from the state after the step and what was
known to another state."""


@dataclass(frozen=True)
class Estimate:
    """What is known at one step: the state, and the backbone's reading of it.

    Attributes:
        x: the state x_t entering the step, [b, ...].
        x0: predicted clean state, clipped as the backbone asks.
        eps: the noise that belongs to ``x0``.
        v: the learned variance's coefficient in [-1, 1], or None.
        mean_shift: gradient that the ancestral step adds to its mean, times the variance.
        next_shift: what is added to the state after the step.
        clip: bounds of a clean state (:attr:`ppap_host.backbones.backbone.Backbone.clip`); None
            for latents.
        step: where on the walk this is; None outside of a walk.
        output: what the network itself said, for solvers that are given that.
        moved: which images a guide has moved, [b]; None before any was asked.
        eps_kept: whether x_0 was moved and eps left as it was, so that they no longer make x_t.
        loss: the guide's loss of each image where the gradient was last taken, [b].
        memory: what the parts of one guide's move keep from step to step, by part.
        scale: the user's scale of the guide whose move this is; for a blend (``Recipe.blend``)
            that of classifier-free guidance at this level.
        mean, deviation: of the Gaussian that the step draws the next state from, as the solver
            says; None and 0 where it draws from none. At a last step that draws nothing the
            deviation is that of the schedule.
        ends: what changes the state after the step, in this order: from the state and the estimate.
        conditional, unconditional: the noise that each branch of classifier-free guidance
            predicts, where both were asked; None otherwise.
        offset: of a recipe that leads on with the unconditional branch (CFG++), what
            classifier-free guidance has moved x_0 by.
        ask: the backbone and noise, for parts that need more of them.
    """

    level: NoiseLevel
    x: Float[Tensor, "b ..."]
    x0: Float[Tensor, "b ..."]
    eps: Float[Tensor, "b ..."]
    v: Float[Tensor, "b ..."] | None = None
    mean_shift: Float[Tensor, "b ..."] | None = None
    clip: tuple[float, float] | None = None
    next_shift: Float[Tensor, "b ..."] | None = None
    step: Step | None = None
    output: Float[Tensor, "b ..."] | None = None
    moved: Tensor | None = None
    eps_kept: bool = False
    loss: Float[Tensor, " b"] | None = None
    memory: dict[Hashable, Any] = field(default_factory=dict)
    scale: float = 1.0
    mean: Float[Tensor, "b ..."] | None = None
    deviation: Float[Tensor, "b ..."] | float = 0.0
    ends: tuple[End, ...] = ()
    offset: Float[Tensor, "b ..."] | None = None
    conditional: Float[Tensor, "b ..."] | None = None
    unconditional: Float[Tensor, "b ..."] | None = None
    ask: Asking | None = field(default=None, repr=False)

    def onward(self) -> Estimate:
        """What a solver steps from: where there is an :attr:`offset`, the unconditional estimate.

        The guided one is the same step, moved by ``then.alpha * offset`` in the end. That is CFG++
        (Chung et al., 2025) with every solver whose step is linear in x_0: DDIM, Euler and
        DPM-Solver++, whose corrections then are those of the unconditional branch.
        """
        if self.offset is None:
            return self
        ratio = self.level.alpha / self.level.sigma
        eps = self.eps + ratio * self.offset
        return replace(self, x0=self.x0 - self.offset, eps=eps).moved_by(self.offset)

    def as_noise(self, then: NoiseLevel) -> Estimate:
        """An x_0 that was moved while eps stayed, as the noise that moves a step of DDIM as far."""
        if not self.eps_kept:
            return self
        level = self.level
        gap = self.x0 - (self.x - level.sigma * self.eps) / level.alpha
        weight = then.alpha / (then.sigma - then.alpha * level.sigma / level.alpha)
        return replace(self, eps=self.eps + weight * gap, eps_kept=False)

    def asking(self) -> Asking:
        """Whom to ask for more.

        Raises:
            ValueError: nobody is there, outside of a run.
        """
        if self.ask is None:
            raise ValueError("This part of a recipe asks the backbone again: use it in a run.")
        return self.ask

    def moved_by(self, way: Tensor) -> Estimate:
        """The estimate, knowing which images a move has moved by ``way``."""
        moved = way.flatten(1).any(dim=1)
        return replace(self, moved=moved if self.moved is None else self.moved | moved)

    def on_walk(self) -> Step:
        """The step, for parts that make no sense without one.

        Raises:
            ValueError: the estimate belongs to no walk.
        """
        if self.step is None:
            raise ValueError("This part of a recipe needs to know the step of the walk.")
        return self.step
