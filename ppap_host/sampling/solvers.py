"""Solvers: how a step is taken from one noise level to the next."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from ppap_host.backbones.backbone import Backbone, FixedVariance
from ppap_host.backbones.noise import NoiseLevel, Walk
from ppap_host.files.errors import OptionError
from ppap_host.recipes.estimate import Estimate, Step
from ppap_host.sampling.streams import Draw

Evaluate = Callable[[Tensor, NoiseLevel], Estimate]


LevelAt = Callable[[float], NoiseLevel]


class Solver(ABC):
    """Takes one step down a walk of noise levels. Concrete solvers are final.

    Attributes:
        name: what the user calls it.
        ancestral: whether it draws from a Gaussian with a mean that guidance may shift.
        noise: what of it recipes can build on: "noise" where a step draws some, "gaussian" where it
            tells the mean and the deviation, too (:attr:`Estimate.mean`), "" where it draws none.
        draws_itself: whether it takes its noise from the images' generators, not as it is given.
        reads_eps: whether it goes on with the noise of the estimate, as DDIM does; others follow
            x_0 alone, whatever a recipe has made of eps.
        reads_x0: whether it goes on with the predicted clean state, as DDIM does. One that follows
            the noise alone, such as DEIS, is told a moved x_0 whose eps stays (``mpgd``) as the
            noise that moves a step of DDIM as far.
    """

    name: str
    ancestral: bool = False
    noise: Literal["", "noise", "gaussian"] = ""
    draws_itself: bool = False
    reads_eps: bool = True
    reads_x0: bool = True

    def walk(self, backbone: Backbone, steps: int | str) -> Walk:
        """The levels that it visits in so many steps; by default those of the backbone.

        Raises:
            OptionError: it takes no such steps, or cannot sample this backbone.
        """
        return backbone.walk(steps)

    def begin(self, noise: Tensor, temperature: float, walk: Walk) -> tuple[Tensor, Any]:
        """The initial state for standard normal ``noise``, and the memory for the first step."""
        return temperature * walk.levels[0].scale * noise, None

    @abstractmethod
    def step(
        self, x: Tensor, i: int, walk: Walk, evaluate: Evaluate, draw: Draw, memory: Any
    ) -> tuple[Tensor, Estimate, Any]:
        """From ``walk.levels[i]`` to ``walk.levels[i + 1]``.

        Args:
            x: the state entering the step.
            evaluate: the guided estimate at a state and its noise level, which need not be one of
                the walk's.
            draw: standard normal noise of the state's shape; called once a step by every solver
                that is stochastic for some setting, so that settings share their noise.
            memory: what the step before returned, None at the first.

        Returns:
            The next state, the estimate the step was based on, and the new memory.
        """


@dataclass(frozen=True)
class DDPM(Solver):
    """Ancestral sampling (Ho et al., 2020, algorithm 2), with learned or fixed variance.

    The variance is that of :meth:`ppap_host.recipes.estimate.Step.log_variance`. Guidance shifts
    the mean by variance * gradient (Dhariwal and Nichol, 2021, algorithm 1), in the last step too,
    which draws no noise.

    Attributes:
        variance: what to use when the backbone learned none.
    """

    variance: FixedVariance = "large"
    name = "ddpm"
    ancestral = True
    noise = "gaussian"
    reads_eps = False

    def step(
        self, x: Tensor, i: int, walk: Walk, evaluate: Evaluate, draw: Draw, memory: Any
    ) -> tuple[Tensor, Estimate, Any]:
        """One ancestral step; see :meth:`Solver.step`."""
        estimate, posterior, noise = evaluate(x, walk.levels[i]), walk.posterior(i), draw().to(x)
        log_variance = Step(walk, i, self.variance).log_variance(estimate.v, x)
        mean = posterior.of_x0 * estimate.x0 + posterior.of_xt * x
        if estimate.mean_shift is not None:
            mean = mean + log_variance.exp() * estimate.mean_shift
        deviation = (0.5 * log_variance).exp()
        estimate = replace(estimate, mean=mean, deviation=deviation)
        if i == len(walk) - 1:
            return mean, estimate, None
        return mean + deviation * noise, estimate, None


@dataclass(frozen=True)
class DDIM(Solver):
    """Song et al. (2021), eq. 12, for any schedule.

    Attributes:
        eta: 0 is deterministic; 1 has the variance of DDPM's posterior.
    """

    eta: float = 0.0
    name = "ddim"

    @property
    def noise(self) -> Literal["", "noise", "gaussian"]:  # type: ignore[override]
        """A Gaussian's, unless eta is 0."""
        return "gaussian" if self.eta else ""

    def step(
        self, x: Tensor, i: int, walk: Walk, evaluate: Evaluate, draw: Draw, memory: Any
    ) -> tuple[Tensor, Estimate, Any]:
        """One implicit step; see :meth:`Solver.step`."""
        estimate, then = evaluate(x, walk.levels[i]), walk.levels[i + 1]
        spread = self.eta * math.sqrt(walk.posterior(i).variance) if self.eta else 0.0
        inward = math.sqrt(max(then.sigma**2 - spread**2, 0.0))
        x = then.alpha * estimate.x0 + inward * estimate.eps
        if self.eta:
            estimate = replace(estimate, mean=x, deviation=spread)
            x = x + spread * draw().to(x)
        return x, estimate, None


@dataclass(frozen=True)
class DPMSolverPP2M(Solver):
    """DPM-Solver++(2M) and SDE-DPM-Solver++(2M) (Lu et al., 2022b, algorithm 2).

    Second order and multistep. Works on the predicted x_0 in half log-SNR, lambda = log(alpha /
    sigma); the first and the last step are of first order. Not to be confused with DPM-Solver-2,
    which evaluates twice a step.

    Attributes:
        eta: 0 is the differential equation, 1 the stochastic one. Between them, a step of h in
            lambda keeps exp(-eta h) of the noise that it would keep without.
    """

    eta: float = 0.0
    name = "dpm++"
    reads_eps = False

    @property
    def noise(self) -> Literal["", "noise", "gaussian"]:  # type: ignore[override]
        """A Gaussian's, unless eta is 0."""
        return "gaussian" if self.eta else ""

    def step(
        self, x: Tensor, i: int, walk: Walk, evaluate: Evaluate, draw: Draw, memory: Any
    ) -> tuple[Tensor, Estimate, Any]:
        """One multistep step; memory is (lambda, x_0) of the step before."""
        now, then = walk.levels[i], walk.levels[i + 1]
        estimate = evaluate(x, now)
        lam, d, spread = now.log_snr / 2, estimate.x0, 0.0
        if then.sigma == 0:
            x = then.alpha * d
        else:
            h = then.log_snr / 2 - lam
            if memory is not None:
                lam_before, d_before = memory
                r = (lam - lam_before) / h
                d = d + (d - d_before) / (2 * r)
            kept = (then.sigma / now.sigma) * math.exp(-self.eta * h)
            x = kept * x - then.alpha * math.expm1(-(1 + self.eta) * h) * d
            spread = then.sigma * math.sqrt(-math.expm1(-2 * self.eta * h))
        if self.eta:
            estimate = replace(estimate, mean=x, deviation=spread)
            x = x + spread * draw().to(x)
        return x, estimate, (lam, estimate.x0)


@dataclass(frozen=True)
class Churn:
    """How much noise is put back before each step (Karras et al., 2022, algorithm 2).

    Noise is measured as s = sigma / alpha, which is sigma for EDM.

    Attributes:
        amount: S_churn, >= 0: over the whole walk; a step's share is S_churn / steps, at most
            sqrt(2) - 1, and raises s by that fraction. 0 is none.
        low, high: S_tmin and S_tmax, >= 0: the steps from s within these bounds get some.
        noise: S_noise, > 0: standard deviation of the new noise, 1 or a little more.

    Raises:
        OptionError: a value is out of range.
    """

    amount: float = 0.0
    low: float = 0.0
    high: float = math.inf
    noise: float = 1.0

    @classmethod
    def of(cls, amount: float, between: str | None = None, noise: float = 1.0) -> Churn:
        """From what a user writes: ``between`` is "low:high", either side may be empty.

        Raises:
            OptionError: it is no interval, or a value is out of range.
        """
        try:
            low, high = (":" if between is None else between).split(":")
            return cls(amount, float(low or 0), float(high or "inf"), noise)
        except ValueError:
            raise OptionError(
                f"--churn-range {between!r} is no interval of noise.",
                remedy="Give LOW:HIGH in sigma / alpha, such as 0.05:50.",
            ) from None

    def __post_init__(self) -> None:
        if not 0 <= self.amount < math.inf:
            raise OptionError(
                f"The churn {self.amount} is out of range.", remedy="Give a number of at least 0."
            )
        if not 0 <= self.low <= self.high:
            raise OptionError(
                f"Churn from {self.low} to {self.high} is no interval of noise.",
                remedy="Give two numbers of at least 0, the lower one first.",
            )
        if not 0 < self.noise < math.inf:
            raise OptionError(
                f"The churn's noise {self.noise} is out of range.",
                remedy="Give a number above 0, such as 1.003.",
            )


@dataclass(frozen=True)
class Heun(Solver):
    """Karras et al. (2022), algorithms 1 and 2: second order, two evaluations a step.

    Integrates dy/ds = (y - x_0) / s for y = x / alpha and s = sigma / alpha, so that it serves
    every schedule. The step to the clean image is a plain Euler step. Deterministic without churn;
    with churn each step first goes back to a higher noise level, one not on the walk.

    Attributes:
        churn: how much noise is put back; it is drawn at every step, also where none is put back.
        level_at: the level to go back to for its s; needed for churn alone
            (:meth:`ppap_host.backbones.backbone.Backbone.level_at`).
    """

    churn: Churn = Churn()
    level_at: LevelAt | None = field(default=None, repr=False)
    name = "heun"
    reads_eps = False

    @property
    def noise(self) -> Literal["", "noise", "gaussian"]:  # type: ignore[override]
        """Some, with churn."""
        return "noise" if self.churn.amount else ""

    def __post_init__(self) -> None:
        if self.churn.amount and self.level_at is None:
            raise ValueError("Heun with churn needs level_at, such as backbone.level_at.")

    def step(
        self, x: Tensor, i: int, walk: Walk, evaluate: Evaluate, draw: Draw, memory: Any
    ) -> tuple[Tensor, Estimate, Any]:
        """One step with its trapezoidal correction; see :meth:`Solver.step`."""
        now, then = walk.levels[i], walk.levels[i + 1]
        if self.churn.amount:
            x, now = self._churned(x, now, len(walk), draw().to(x))
        estimate = evaluate(x, now)
        s, s_then = now.sigma / now.alpha, then.sigma / then.alpha
        y = x / now.alpha
        d = (y - estimate.x0) / s
        if s_then == 0:
            return then.alpha * estimate.x0, estimate, None
        ahead = y + (s_then - s) * d
        d_then = (ahead - evaluate(then.alpha * ahead, then).x0) / s_then
        return then.alpha * (y + (s_then - s) * (d + d_then) / 2), estimate, None

    def _churned(
        self, x: Tensor, now: NoiseLevel, steps: int, noise: Tensor
    ) -> tuple[Tensor, NoiseLevel]:
        """The state at a raised noise level, and that level (algorithm 2, lines 4 to 6)."""
        s, churn = now.sigma / now.alpha, self.churn
        if self.level_at is None or not churn.low <= s <= churn.high:
            return x, now
        raised = self.level_at(s * (1 + min(churn.amount / steps, math.sqrt(2) - 1)))
        s_raised = raised.sigma / raised.alpha
        # Where the network knows no level between, the nearest one is this one.
        if s_raised <= s:
            return x, now
        y = x / now.alpha + math.sqrt(s_raised**2 - s**2) * churn.noise * noise
        return raised.alpha * y, raised


def ddim(backbone: Backbone, eta: float | None = None) -> DDIM:
    """The sampler ``ddim``; by default deterministic.

    Raises:
        OptionError: ``eta`` is out of [0, 1].
    """
    return DDIM(_stochasticity(eta))


def ddpm(backbone: Backbone) -> DDPM:
    """The sampler ``ddpm``, with the backbone's fixed variance where it has learned none."""
    return DDPM(backbone.fixed_variance)


def dpm_plus_plus(backbone: Backbone, eta: float | None = None) -> DPMSolverPP2M:
    """The sampler ``dpm++``; by default deterministic.

    Raises:
        OptionError: ``eta`` is out of [0, 1].
    """
    return DPMSolverPP2M(_stochasticity(eta))


def _stochasticity(eta: float | None) -> float:
    if eta is not None and not 0 <= eta <= 1:
        raise OptionError(f"--eta {eta} is out of range.", remedy="Give a number from 0 to 1.")
    return eta or 0.0


def heun(backbone: Backbone, churn: Churn | None = None) -> Heun:
    """The sampler ``heun``; by default without churn."""
    return Heun(churn or Churn(), backbone.level_at)
