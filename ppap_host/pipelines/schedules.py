"""A diffusers scheduler's noise levels as the host's, and what its networks predict at them.

A scheduler mixes three things: which noise levels there are, how a network is shown a state and
what its output means, and how a step is taken. The first two are here. Steps are the host's own
(:mod:`ppap_host.sampling`) or, under :mod:`~ppap_host.pipelines.steer`, the scheduler's.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from ppap_host.backbones.backbone import FixedVariance
from ppap_host.backbones.noise import CLEAN, DiscreteSchedule, NoiseLevel, Walk, respace
from ppap_host.files.errors import CheckpointError, OptionError
from ppap_host.sampling.names import NOT_GUIDED

ALPHA_FLOOR: Final = 2.0**-12
"""Least alpha of a level. Pure noise, where schedules with zero terminal SNR and flows begin, says
nothing of x_0 = (x - sigma eps) / alpha; from this alpha on, float32 gives x_0 to three digits.
diffusers' own schedulers put the same floor under alpha where they need one."""

_GRID: Final = 1000
"""Levels that a continuous schedule is given for :meth:`Schedule.levels`."""


class Schedule(ABC):
    """Noise levels of a scheduler. Concrete schedules are final.

    A state has the scale of these levels: variance-preserving, that of a flow, or
    variance-exploding, whatever scale the scheduler itself keeps it in (:meth:`own_scale`).

    Args:
        scheduler: from diffusers.
        shift: mu of a scheduler whose levels depend on the size of the image, None for others.

    Raises:
        CheckpointError: what the network predicts is not known.
    """

    predictions: ClassVar[tuple[str, ...]]

    def __init__(self, scheduler: Any, shift: float | None = None) -> None:
        self.scheduler, self.shift = scheduler, shift
        self.prediction = str(getattr(scheduler.config, "prediction_type", self.predictions[0]))
        if self.prediction not in self.predictions:
            raise CheckpointError(
                f"The scheduler {type(scheduler).__name__} says that the network predicts "
                f"{self.prediction!r}, which is not known here.",
                remedy=f"Known: {', '.join(self.predictions)}.",
            )

    @abstractmethod
    def visited(self, scheduler: Any) -> tuple[NoiseLevel, ...]:
        """The level of each of ``scheduler.timesteps`` as they are set, and the one it ends at."""

    @abstractmethod
    def levels(self) -> tuple[NoiseLevel, ...]:
        """The levels of the training, cleanest first; a thousand for continuous schedules."""

    @abstractmethod
    def eps(self, x: Tensor, out: Tensor, level: NoiseLevel) -> Tensor:
        """The predicted noise, from the network's output for the state ``x``."""

    def network_input(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """What the network is shown of the state ``x``."""
        return x

    def own_scale(self, level: NoiseLevel) -> float:
        """The factor from a state to what the scheduler keeps."""
        return 1.0

    def out_per_x0(self, level: NoiseLevel) -> float:
        """How far the network's output moves with the x_0 that it stands for, the state held.

        The noise is affine in the output, and moves by -alpha / sigma with x_0.
        """
        zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        eps_per_out = float(self.eps(zero, one, level) - self.eps(zero, zero, level))
        return -level.alpha / (level.sigma * eps_per_out)

    def walk(self, steps: int | str) -> Walk:
        """The levels that the scheduler visits in so many steps, then the clean image.

        Levels that a scheduler visits twice, as those of second order do, are walked once.

        Raises:
            OptionError: ``steps`` is no number, or the scheduler refuses it.
        """
        try:
            count = int(steps)
        except ValueError:
            return self._respaced(str(steps))
        fresh = type(self.scheduler).from_config(self.scheduler.config)
        options = {} if self.shift is None else {"mu": self.shift}
        try:
            fresh.set_timesteps(count, **options)
            levels = _descending(self.visited(fresh)[:-1])
        except (ValueError, ArithmeticError, IndexError) as error:
            raise OptionError(
                f"The scheduler {type(self.scheduler).__name__} takes no {count} steps "
                f"({' '.join(str(error).split())}).",
                remedy="Give another number with --steps.",
            ) from error
        if not levels:
            raise OptionError(f"{count} steps are none.", remedy="Give a number of at least 1.")
        return Walk((*levels, CLEAN))

    def _respaced(self, spacing: str) -> Walk:
        raise OptionError(
            f"{spacing!r} is no number of steps of {type(self.scheduler).__name__}.",
            remedy="Give a whole number with --steps.",
        )


class VariancePreserving(Schedule):
    """alpha^2 + sigma^2 = 1: DDPM and all that samples its networks, whatever its own scale.

    Schedulers in the tradition of k-diffusion keep x / alpha and show the network
    x / sqrt(1 + s^2) at s = sigma / alpha. That is the state on this line.
    """

    predictions: ClassVar[tuple[str, ...]] = ("epsilon", "sample", "v_prediction")

    def visited(self, scheduler: Any) -> tuple[NoiseLevel, ...]:
        """By the scheduler's own sigmas where it has them, else by its steps' alphas_cumprod."""
        times = [float(t) for t in scheduler.timesteps]
        sigmas = getattr(scheduler, "sigmas", None)
        if sigmas is not None and len(sigmas) == len(times) + 1:
            ratios = [float(s) for s in sigmas]
            # Every other step of KDPM2 is at a level of its own between two of these.
            between = getattr(scheduler, "sigmas_interpol", None)
            if between is not None:
                ratios = [float(between[i]) if i % 2 else s for i, s in enumerate(ratios)]
            return (
                *(_of_ratio(s, t) for s, t in zip(ratios, times, strict=False)),
                _of_ratio(ratios[-1], 0.0) if ratios[-1] else CLEAN,
            )
        abar = scheduler.alphas_cumprod
        final = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
        return (
            *(_of_abar(float(abar[int(t)]), t) for t in times),
            CLEAN if final == 1 else _of_abar(final, 0.0),
        )

    def levels(self) -> tuple[NoiseLevel, ...]:
        """All steps of the training."""
        return self._discrete().levels()

    def _discrete(self) -> DiscreteSchedule:
        abar = self.scheduler.alphas_cumprod.double().clamp_min(ALPHA_FLOOR**2)
        return DiscreteSchedule(abar.cpu().numpy())

    def _respaced(self, spacing: str) -> Walk:
        schedule = self._discrete()
        kept = reversed(respace(len(schedule), spacing))
        return Walk((*_descending(schedule.level(t) for t in kept), CLEAN))

    def eps(self, x: Tensor, out: Tensor, level: NoiseLevel) -> Tensor:
        """Of eps itself, of x_0, or of v = alpha eps - sigma x_0 (Salimans and Ho, 2022)."""
        if self.prediction == "epsilon":
            return out
        if self.prediction == "sample":
            return (x - level.alpha * out) / level.sigma
        return level.sigma * x + level.alpha * out

    def own_scale(self, level: NoiseLevel) -> float:
        """1 / alpha for schedulers that keep x / alpha; their initial noise is not of size 1."""
        return 1 / level.alpha if float(self.scheduler.init_noise_sigma) > 1.001 else 1.0


class FlowMatching(Schedule):
    """x = (1 - sigma) x_0 + sigma eps (Lipman et al., 2023; Esser et al., 2024, section 2).

    The network predicts v = eps - x_0 and is told sigma times the number of training steps.
    """

    predictions: ClassVar[tuple[str, ...]] = ("flow_prediction",)

    def visited(self, scheduler: Any) -> tuple[NoiseLevel, ...]:
        """By the scheduler's own sigmas, shifted as it does."""
        sigmas = [float(s) for s in scheduler.sigmas]
        times = [float(t) for t in scheduler.timesteps]
        last = CLEAN if not sigmas[-1] else _of_flow(sigmas[-1], 0.0)
        return (*(_of_flow(s, t) for s, t in zip(sigmas, times, strict=False)), last)

    def levels(self) -> tuple[NoiseLevel, ...]:
        """A uniform grid of sigma in (0, 1], shifted as the scheduler does."""
        config = self.scheduler.config
        total = int(getattr(config, "num_train_timesteps", 1))
        if self.shift is not None:
            shift = math.exp(self.shift)
        else:
            shift = float(getattr(config, "shift", getattr(config, "flow_shift", 1.0)))
        grid = ((k + 1) / _GRID for k in range(_GRID))
        sigmas = [shift * s / (1 + (shift - 1) * s) for s in grid]
        return tuple(_of_flow(s, s * total) for s in sigmas)

    def eps(self, x: Tensor, out: Tensor, level: NoiseLevel) -> Tensor:
        """x + alpha v."""
        return x + level.alpha * out


class Karras(Schedule):
    """x = x_0 + sigma eps, the network preconditioned (Karras et al., 2022, eq. 7 and table 1).

    With variance sigma_data^2 of the data the network is shown x / sqrt(sigma^2 + sigma_data^2),
    told log(sigma) / 4, and its output F gives
    x_0 = (sigma_data^2 x +- sigma sigma_data sqrt(sigma^2 + sigma_data^2) F)
    / (sigma^2 + sigma_data^2), with - for networks trained on v.
    """

    predictions: ClassVar[tuple[str, ...]] = ("epsilon", "v_prediction")

    def visited(self, scheduler: Any) -> tuple[NoiseLevel, ...]:
        """By the scheduler's own sigmas and timesteps."""
        sigmas, times = ([float(v) for v in of] for of in (scheduler.sigmas, scheduler.timesteps))
        last = CLEAN if not sigmas[-1] else self._level(sigmas[-1])
        levels = (self._level(s) for s in sigmas[:-1])
        return (*(replace(x, time=t) for x, t in zip(levels, times, strict=False)), last)

    def levels(self) -> tuple[NoiseLevel, ...]:
        """A grid that is even in log(sigma)."""
        config = self.scheduler.config
        low, high = math.log(config.sigma_min), math.log(config.sigma_max)
        grid = (low + (high - low) * k / (_GRID - 1) for k in range(_GRID))
        return tuple(self._level(math.exp(u)) for u in grid)

    def network_input(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """At unit variance."""
        sigma = torch.tensor(level.sigma, device=x.device, dtype=torch.float32)
        scaled: Tensor = self.scheduler.precondition_inputs(x, sigma)
        return scaled

    def eps(self, x: Tensor, out: Tensor, level: NoiseLevel) -> Tensor:
        """(x - x_0) / sigma, written so that nothing is divided by a small sigma."""
        data = float(self.scheduler.config.sigma_data)
        total = math.hypot(level.sigma, data)
        sign = 1.0 if self.prediction == "epsilon" else -1.0
        return (level.sigma / total**2) * x - (sign * data / total) * out

    @staticmethod
    def _level(sigma: float) -> NoiseLevel:
        return NoiseLevel(1.0, sigma, 0.25 * math.log(sigma))


class Consistency(Karras):
    """x = x_0 + sigma eps for consistency models (Song et al., 2023, eq. 5 and appendix C).

    The network's output F gives x_0 = c_skip x + c_out F, with the boundary at sigma_min. It is
    told 250 log(sigma).
    """

    predictions: ClassVar[tuple[str, ...]] = ("sample",)

    def network_input(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """At unit variance, to the last bit as the scheduler itself does it."""
        sigma = torch.tensor(level.sigma, device=x.device, dtype=torch.float32)
        data = float(self.scheduler.config.sigma_data)
        scaled: Tensor = x / ((sigma**2 + data**2) ** 0.5)
        return scaled

    @staticmethod
    def _level(sigma: float) -> NoiseLevel:
        return NoiseLevel(1.0, sigma, 250 * math.log(sigma))

    def eps(self, x: Tensor, out: Tensor, level: NoiseLevel) -> Tensor:
        """(x - x_0) / sigma."""
        sigma = torch.tensor(level.sigma, dtype=torch.float64)
        skip, scale = self.scheduler.get_scalings_for_boundary_condition(sigma)
        return ((1 - float(skip)) * x - float(scale) * out) / level.sigma


class Trigonometric(Schedule):
    """alpha = cos u, sigma = sin u (Lu and Song, 2025, TrigFlow; the schedule of iPNDM).

    The network predicts v = alpha eps - sigma x_0 in units of the data's standard deviation.
    """

    predictions: ClassVar[tuple[str, ...]] = ("v_prediction", "trigflow")

    def __init__(self, scheduler: Any, shift: float | None = None) -> None:
        super().__init__(scheduler, shift)
        self._angle = 1.0 if self.prediction == "trigflow" else math.pi / 2

    def visited(self, scheduler: Any) -> tuple[NoiseLevel, ...]:
        """By the scheduler's timesteps, which are angles, or parts of a right one."""
        times = [float(t) for t in scheduler.timesteps]
        if self.prediction != "trigflow":
            times.append(0.0)
        levels = [self._level(t) for t in times]
        return (*levels[:-1], CLEAN if not times[-1] else levels[-1])

    def levels(self) -> tuple[NoiseLevel, ...]:
        """A uniform grid of angles."""
        right = math.pi / 2 / self._angle
        return tuple(self._level(right * (k + 1) / _GRID) for k in range(_GRID))

    def eps(self, x: Tensor, out: Tensor, level: NoiseLevel) -> Tensor:
        """sigma x + alpha v."""
        return level.sigma * x + level.alpha * out

    def own_scale(self, level: NoiseLevel) -> float:
        """The data's standard deviation, in which TrigFlow's states are kept."""
        return float(getattr(self.scheduler.config, "sigma_data", 1.0))

    def _level(self, time: float) -> NoiseLevel:
        angle = self._angle * time
        return _floored(math.cos(angle), math.sin(angle), time)


class Wuerstchen(VariancePreserving):
    """A cosine schedule in continuous time (Pernias et al., 2023)."""

    def visited(self, scheduler: Any) -> tuple[NoiseLevel, ...]:
        """By the scheduler's own function of its timesteps, the last of which is where it ends."""
        times = [float(t) for t in scheduler.timesteps]
        levels = [self._level(t) for t in times]
        return (*levels[:-1], CLEAN if not times[-1] else levels[-1])

    def levels(self) -> tuple[NoiseLevel, ...]:
        """A uniform grid of times."""
        return tuple(self._level((k + 1) / _GRID) for k in range(_GRID))

    def own_scale(self, level: NoiseLevel) -> float:
        """The scheduler keeps the state as it is."""
        return 1.0

    def _level(self, time: float) -> NoiseLevel:
        abar = self.scheduler._alpha_cumprod(torch.tensor([time]), torch.device("cpu"))
        return _of_abar(float(abar), time)


_FLOWS = ("HeliosScheduler", "HeliosDMDScheduler", "LTXEulerAncestralRFScheduler")
"""Schedulers for flows whose names and settings do not say so."""


def schedule_of(scheduler: Any, shift: float | None = None) -> Schedule:
    """The schedule of a scheduler.

    Raises:
        CheckpointError: its noise levels cannot be known, or it has no prediction to guide.
    """
    config = scheduler.config
    name = type(scheduler).__name__
    flows = getattr(config, "use_flow_sigmas", False)
    prediction = getattr(config, "prediction_type", "")
    if name in NOT_GUIDED:
        raise CheckpointError(
            f"The scheduler {name} {NOT_GUIDED[name]}.",
            remedy="Use a pipeline with a scheduler such as DDIM, Euler, UniPC or "
            "FlowMatchEulerDiscrete.",
        )
    if getattr(config, "stages", 1) > 1:
        raise CheckpointError(
            f"The scheduler {name} goes up a pyramid of {config.stages} sizes, and what is "
            "predicted below the last one is no clean picture.",
            remedy="Use a scheduler with one stage.",
        )
    if name.startswith(("EDM", "Cosine")):
        return Karras(scheduler)
    if name == "CMStochasticIterativeScheduler":
        return Consistency(scheduler)
    if name == "IPNDMScheduler" or prediction == "trigflow":
        return Trigonometric(scheduler)
    if hasattr(scheduler, "_alpha_cumprod"):
        return Wuerstchen(scheduler)
    if name in _FLOWS or "FlowMatch" in name or flows or prediction == "flow_prediction":
        return FlowMatching(scheduler, shift)
    if isinstance(getattr(scheduler, "alphas_cumprod", None), Tensor):
        return VariancePreserving(scheduler)
    raise CheckpointError(
        f"The noise levels of the scheduler {name} are not known here.",
        remedy="Known are schedulers with alphas_cumprod (DDIM, DDPM, PNDM, Euler, DPM-Solver, "
        "UniPC and their kin), EDM* and FlowMatch*.",
    )


def learned_variance(scheduler: Any) -> bool:
    """Whether the network's further output channels interpolate the variance."""
    return str(getattr(scheduler.config, "variance_type", "")) == "learned_range"


def _of_ratio(ratio: float, time: float) -> NoiseLevel:
    """The variance-preserving level with sigma / alpha = ``ratio``."""
    return _floored(1 / math.hypot(1.0, ratio), ratio / math.hypot(1.0, ratio), time)


def _of_abar(abar: float, time: float) -> NoiseLevel:
    return _floored(math.sqrt(abar), math.sqrt(1 - abar), time)


def _floored(alpha: float, sigma: float, time: float) -> NoiseLevel:
    if alpha >= ALPHA_FLOOR:
        return NoiseLevel(alpha, sigma, time)
    return NoiseLevel(ALPHA_FLOOR, math.sqrt(1 - ALPHA_FLOOR**2), time)


def _of_flow(sigma: float, time: float) -> NoiseLevel:
    alpha = max(1 - sigma, ALPHA_FLOOR)
    return NoiseLevel(alpha, 1 - alpha, time)


def _descending(levels: Iterable[NoiseLevel]) -> list[NoiseLevel]:
    """Without those that are not cleaner than the one before."""
    kept: list[NoiseLevel] = []
    for level in levels:
        if not kept or level.log_snr > kept[-1].log_snr:
            kept.append(level)
    return kept


def as_rows(level: NoiseLevel, x: Tensor) -> Tensor:
    """What a network is told of the level, once a row of ``x``, float32 [b]."""
    return torch.full((len(x),), level.time, device=x.device, dtype=torch.float32)


def fixed_variance_of(scheduler: Any) -> FixedVariance:
    """The fixed variance that a scheduler of diffusers takes where none is learned."""
    kind = str(scheduler.config.get("variance_type", "fixed_small"))
    return "small" if kind.startswith("fixed_small") else "large"
