"""Noise levels, the schedules that walk them, and ranges of levels.

A noise level is a pair (alpha, sigma) in ``x_t = alpha * x_0 + sigma * eps``. Variance-preserving
(DDPM), variance-exploding (EDM) and flow-matching schedules are three ways to walk the same line of
log-SNR. All tables are float64 numpy arrays; samplers cast to the working type where they use them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ppap_host.files.errors import OptionError

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class NoiseLevel:
    """One level of noise, shared by all images of a batch.

    Attributes:
        alpha: factor of the clean image, in (0, 1].
        sigma: standard deviation of the noise, >= 0.
        time: what the network is given to know the level (for DDPM the original step 0..T-1).
    """

    alpha: float
    sigma: float
    time: float

    @property
    def log_snr(self) -> float:
        """log(alpha^2 / sigma^2): natural logarithm, +inf for a clean image."""
        if self.sigma == 0:
            return math.inf
        return 2 * (math.log(self.alpha) - math.log(self.sigma)) if self.alpha else -math.inf

    @property
    def scale(self) -> float:
        """sqrt(alpha^2 + sigma^2): x_t divided by this is on the variance-preserving line."""
        return math.hypot(self.alpha, self.sigma)


CLEAN = NoiseLevel(alpha=1.0, sigma=0.0, time=0.0)


@dataclass(frozen=True)
class NoiseRange:
    """A half-open interval of noise levels, as bounds of log-SNR: ``low <= log_snr < high``."""

    low: float
    high: float

    def __contains__(self, log_snr: float) -> bool:
        return self.low <= log_snr < self.high

    @classmethod
    def read(cls, text: str) -> NoiseRange:
        """From what one writes, "low:high"; an empty side is open.

        Raises:
            ValueError: it is no such interval.
        """
        low, colon, high = text.partition(":")
        try:
            read = cls(float(low or "-inf"), float(high or "inf"))
        except ValueError:
            read = None
        if read is None or not colon or not read.low < read.high:
            raise ValueError(
                "LOW:HIGH in log-SNR, such as -4:6; pure noise is about -10, a clean image +10; "
                "either side may be left out"
            )
        return read

    @property
    def text(self) -> str:
        """As one writes it, "low:high"; an open side is left out."""
        return ":".join("" if math.isinf(side) else f"{side:g}" for side in (self.low, self.high))


EVERYWHERE = NoiseRange(-math.inf, math.inf)


def linear_betas(steps: int) -> Float64:
    """Ho et al. (2020): beta from 1e-4 to 0.02 at 1000 steps, rescaled for other counts."""
    scale = 1000 / steps
    return np.linspace(scale * 1e-4, scale * 0.02, steps, dtype=np.float64)


def cosine_betas(steps: int, largest: float = 0.999) -> Float64:
    """Nichol and Dhariwal (2021), eq. 17: abar(u) = cos^2((u + 0.008) / 1.008 * pi / 2)."""

    def abar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array(
        [min(1 - abar((i + 1) / steps) / abar(i / steps), largest) for i in range(steps)]
    )


def respace(steps: int, spacing: int | str) -> list[int]:
    """The original steps that a shortened process keeps, ascending.

    Args:
        steps: length of the original process.
        spacing: how many to keep (``25`` or ``"25"``: first and last step included); section counts
            (``"10,10,10"``: equal sections, so many from each); ``"ddim25"``: every k-th step
            from 0 on, where k is chosen so that exactly 25 remain (Song et al., 2021); or
            ``"fast27"``: GLIDE's own 27 steps (Nichol et al., 2022), ``"10,10,3,2,2"`` with the
            noisiest step moved two steps down.

    Raises:
        OptionError: the spacing is malformed or asks for more steps than there are.
    """
    text = str(spacing).strip()
    remedy = (
        f"Give a count from 1 to {steps}, 'ddim25', 'fast27', "
        "or counts of sections like '10,10,10'."
    )
    if text == "fast27":
        return [*respace(steps, "10,10,3,2,2")[:-1], steps - 3]
    try:
        if text.startswith("ddim"):
            wanted = int(text.removeprefix("ddim"))
            for stride in range(1, steps + 1):
                if len(range(0, steps, stride)) == wanted:
                    return list(range(0, steps, stride))
            raise OptionError(f"No whole stride keeps {wanted} of {steps} steps.", remedy=remedy)
        counts = [int(part) for part in text.split(",")] if text else [steps]
    except ValueError:
        raise OptionError(f"The steps {text!r} are not a spacing.", remedy=remedy) from None
    kept: list[int] = []
    size, longer = divmod(steps, len(counts))
    start = 0
    for section, count in enumerate(counts):
        length = size + (section < longer)
        if not 1 <= count <= length:
            raise OptionError(f"Cannot keep {count} of {length} steps.", remedy=remedy)
        step = (length - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0
        for _ in range(count):
            # Python's round: half to even, as the reference rounds.
            kept.append(start + round(position))
            position += step
        start += length
    return kept


@dataclass(frozen=True)
class Posterior:
    """q(x_s | x_t, x_0) of Ho et al. (2020), eq. 7, for any pair of levels s < t.

    Attributes:
        of_x0, of_xt: coefficients of the posterior mean.
        variance: the posterior variance (beta tilde).
        log_lower: log of it, where zero replaced as :meth:`Walk.posterior` says.
        log_upper: log beta, the upper end of the learned range.
    """

    of_x0: float
    of_xt: float
    variance: float
    log_lower: float
    log_upper: float


@dataclass(frozen=True)
class Walk:
    """The levels that a sampler visits, noisiest first, ending with the clean image.

    Attributes:
        levels: n + 1 levels for n steps; the last is :data:`CLEAN`.
    """

    levels: tuple[NoiseLevel, ...]

    def __len__(self) -> int:
        return len(self.levels) - 1

    def posterior(self, step: int) -> Posterior:
        """The posterior of step ``step`` (0 is the noisiest), from levels[step] to levels[step+1].

        The last step's variance is 0; its lower log variance is that of the step before, as Nichol
        and Dhariwal (2021) clip it.
        """
        raw = _posterior(self.levels[step], self.levels[step + 1])
        if raw.variance > 0 or step == 0:
            return raw
        before = _posterior(self.levels[step - 1], self.levels[step])
        return Posterior(
            raw.of_x0, raw.of_xt, raw.variance, math.log(before.variance), raw.log_upper
        )


def _posterior(now: NoiseLevel, then: NoiseLevel) -> Posterior:
    ratio = now.alpha / then.alpha
    # In the form 1 - abar_t / abar_s on the variance-preserving line, so that the float64 tables
    # of the reference are met to the last digits.
    beta = now.sigma**2 - ratio**2 * then.sigma**2
    variance = beta * then.sigma**2 / now.sigma**2
    return Posterior(
        of_x0=then.alpha * beta / now.sigma**2,
        of_xt=ratio * then.sigma**2 / now.sigma**2,
        variance=variance,
        log_lower=math.log(variance) if variance > 0 else math.log(beta),
        log_upper=math.log(beta),
    )


class DiscreteSchedule:
    """A variance-preserving schedule of T steps, as DDPM, ADM, GLIDE and Stable Diffusion use.

    Attributes:
        alphas_cumprod: float64 [T], the product of 1 - beta up to each step.
    """

    def __init__(self, alphas_cumprod: Float64) -> None:
        self.alphas_cumprod = np.asarray(alphas_cumprod, dtype=np.float64)

    @classmethod
    def from_betas(cls, betas: Float64 | Sequence[float]) -> DiscreteSchedule:
        """The schedule of these betas, each in (0, 1)."""
        kept = 1.0 - np.asarray(betas, dtype=np.float64)
        return cls(np.cumprod(kept, dtype=np.float64))

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def level(self, step: int) -> NoiseLevel:
        """The noise level of the original step ``step`` in 0..T-1."""
        abar = float(self.alphas_cumprod[step])
        return NoiseLevel(alpha=math.sqrt(abar), sigma=math.sqrt(1 - abar), time=float(step))

    def levels(self) -> tuple[NoiseLevel, ...]:
        """All T levels, cleanest first."""
        return tuple(self.level(step) for step in range(len(self)))

    def walk(self, spacing: int | str) -> Walk:
        """The levels of a process respaced to ``spacing`` (see :func:`respace`).

        A single step goes from the noisiest level, whichever one the spacing keeps: sampling starts
        from noise.
        """
        steps = respace(len(self), spacing)
        if len(steps) == 1:
            steps = [len(self) - 1]
        return Walk((*(self.level(t) for t in reversed(steps)), CLEAN))


def uniform_ranges(levels: Sequence[NoiseLevel], count: int) -> list[NoiseRange]:
    """PPAP's split (section 4.1): ``count`` equal parts of the T levels, from clean to noisy.

    With the levels of a T-step schedule, cleanest first, range i serves steps floor(i T / count) up
    to floor((i + 1) T / count); the outermost bounds are infinite, so that every level of any
    schedule is served by exactly one.

    Raises:
        OptionError: ``count`` is not in 1..T.
    """
    total = len(levels)
    if not 1 <= count <= total:
        raise OptionError(
            f"Cannot split {total} noise levels into {count} ranges.",
            remedy=f"Give a number of experts from 1 to {total}.",
        )
    edges = [levels[i * total // count - 1] for i in range(1, count)]
    after = [levels[i * total // count] for i in range(1, count)]
    cuts = [(a.log_snr + b.log_snr) / 2 for a, b in zip(edges, after, strict=True)]
    bounds = (math.inf, *cuts, -math.inf)
    return [NoiseRange(low=low, high=high) for high, low in pairwise(bounds)]
