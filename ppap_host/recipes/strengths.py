"""Strengths: the factor on a guide's gradient over the course of a walk."""

from __future__ import annotations

import math
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from ppap_host.files.settings import NotNegative, settings
from ppap_host.recipes.estimate import Estimate, Step

Course = Literal["increase", "decrease", "constant"]


@runtime_checkable
class Strength(Protocol):
    """The factor on the gradient."""

    def __call__(self, estimate: Estimate) -> float | Tensor:
        """A number >= 0, or one for each image or entry, [b, ...]."""


@settings
class Constant:
    """The same at every level."""

    factor: NotNegative = 1.0

    def __call__(self, estimate: Estimate) -> float:
        """``factor``."""
        return self.factor


@settings
class PosteriorSpread:
    """How far x_0 is still open: sigma / sqrt(alpha^2 + sigma^2), raised to ``power``.

    The standard deviation of x_0 given x_t if images were standard normal (Song et al., 2023,
    PiGDM, section 3.1): close to 1 in pure noise, 0 for a clean image.
    """

    factor: NotNegative = 1.0
    power: NotNegative = 1.0

    def __call__(self, estimate: Estimate) -> float:
        """The spread to the power, times ``factor``."""
        level = estimate.level
        return self.factor * math.pow(level.sigma / level.scale, self.power)


@settings
class SignalScale:
    """alpha of the level, times ``factor``; the weight of PiGDM's step (Song et al., 2023)."""

    factor: NotNegative = 1.0

    def __call__(self, estimate: Estimate) -> float:
        """factor * alpha."""
        return self.factor * estimate.level.alpha


@settings
class Scheduled:
    """A course over the steps whose mean is ``factor`` (Ye et al., 2024, TFG, section 4).

    Attributes:
        course: in proportion to alpha_i = abar_i / abar_(i-1), which is large for clean images
            ("increase"), to 1 - alpha_i ("decrease"), or "constant".
    """

    factor: NotNegative = 1.0
    course: Course = "increase"

    def __call__(self, estimate: Estimate) -> float:
        """factor * s_i * N / sum_j s_j."""
        step = estimate.on_walk()
        count = len(step.walk)
        shares = [self._share(Step(step.walk, i)) for i in range(count)]
        return self.factor * shares[step.index] * count / sum(shares)

    def _share(self, step: Step) -> float:
        if self.course == "constant":
            return 1.0
        return step.kept() if self.course == "increase" else 1 - step.kept()


@settings
class SineVariance:
    """EluCD's strength: the variance of the ancestral step, and a sine over the steps.

    S + gamma * sin(pi k / N) * S_max (Ma et al., 2024, section 3.4), for step k of N counted from
    the clean end, S being the variance of the step and S_max the largest of the walk. The published
    code takes S_max from one pixel of the batch's first image; here it is that of the schedule, so
    that no image depends on another. States are measured at unit variance scale, so that it is the
    same on every schedule.

    Attributes:
        gamma: weight of the sine, >= 0; 0 leaves the variance alone.
    """

    gamma: NotNegative = 0.3

    def __call__(self, estimate: Estimate) -> Tensor:
        """The strength, [b, 1, ...] or one for each entry."""
        step = estimate.on_walk().at_unit_scale()
        count = len(step.walk)
        variance = step.log_variance(estimate.v, estimate.x).exp()
        largest = max(math.exp(step.walk.posterior(i).log_upper) for i in range(count))
        sine = math.sin(math.pi * (count - 1 - step.index) / count)
        return variance + max(self.gamma * sine * largest, 0.0)


@settings
class LinearSine:
    """The strength of EluCD's EDM variant: a line down to near zero, and a sine.

    max(maximum * (N + 1 - i) / (N + 1), least) + maximum * add * sin(pi i / N) for step i of N
    counted from the noisy end (Ma et al., 2024; published code).

    Attributes:
        maximum: of the line, >= 0.
        add: weight of the sine, >= 0.
        least: of the line, >= 0.
    """

    maximum: NotNegative = 0.02
    add: NotNegative = 0.3
    least: NotNegative = 1e-5

    def __call__(self, estimate: Estimate) -> float:
        """The strength of the step."""
        step = estimate.on_walk()
        count, i = len(step.walk), step.index
        line = max(self.maximum / (count + 1) * (count + 1 - i), self.least)
        return line + math.sin(math.pi * i / count) * self.maximum * self.add
