"""Energies: how the loss of what a guide is shown is evaluated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ppap_host.backbones.noise import NoiseLevel
from ppap_host.files.errors import OptionError
from ppap_host.files.settings import Count, NotNegative, settings
from ppap_host.guides.guide import Guide


@dataclass(frozen=True)
class Question:
    """What a guide is asked at one step.

    Attributes:
        target: as the guide's loss takes it.
        decode: from a state to what the guide looks at
            (:func:`ppap_host.guides.sight.shown`).
        level: of the state.
        told: the level that the guide is told, None for a clean image.
        draws: so many standard normal tensors of the state's shape; the same ones however often
            they are asked for at a step.
    """

    guide: Guide
    target: Tensor
    decode: Callable[[Tensor], Tensor]
    level: NoiseLevel
    told: NoiseLevel | None
    draws: Callable[[int], list[Tensor]]

    def of(self, rows: slice) -> Question:
        """The same of some images of the batch."""
        if rows == slice(None):
            return self
        target = self.target if len(self.target) == 1 else self.target[rows]
        return replace(self, target=target, draws=lambda n: [d[rows] for d in self.draws(n)])

    def loss(self, state: Tensor) -> Float[Tensor, " b"]:
        """The guide's loss of a state, image by image; differentiable."""
        return self.guide.loss(self.guide.see(self.decode(state), self.told), self.target)


@runtime_checkable
class Energy(Protocol):
    """How the loss of what the guide is shown is evaluated; its gradient is followed downwards.

    Attributes:
        in_pixels: whether its gradient is measured in the image's own units, so that nothing is
            made up for a loss that is a mean over pixels.
    """

    in_pixels: ClassVar[bool] = False

    def __call__(self, question: Question, state: Tensor) -> Tensor:
        """The loss of each image, [b], of states [b, ...]."""

    def check(self, guide: Guide, target: Tensor) -> None:
        """Whether it can be asked of this guide.

        Raises:
            OptionError: it cannot; says which guides or recipes would do.
        """


@dataclass(frozen=True)
class Point(Energy):
    """The guide's own loss at the point that it is shown."""

    def __call__(self, question: Question, state: Tensor) -> Tensor:
        """The loss."""
        return question.loss(state)

    def check(self, guide: Guide, target: Tensor) -> None:
        """Every guide has a loss."""


@settings
class MonteCarlo(Energy):
    """The guide's likelihood averaged over noise around the point, -log mean_j exp(-loss(u + d_j)).

    LGD-MC (Song et al., 2023, eq. 8) and TFG's smoothing (Ye et al., 2024, section 3.2). The draws
    are the same for all that a recipe does in one evaluation, as in TFG.

    Attributes:
        samples: how many; the guide is asked so often.
        width: standard deviation of the noise, >= 0; with 0 nothing is drawn and the point counts.
        fading: whether the width is multiplied by sigma / sqrt(alpha^2 + sigma^2), which is LGD's
            r_t on every schedule.
    """

    samples: Count = 4
    width: NotNegative = 1.0
    fading: bool = True

    def deviation(self, level: NoiseLevel) -> float:
        """Standard deviation of the noise at a level of the state."""
        return self.width * (level.sigma / level.scale if self.fading else 1.0)

    def __call__(self, question: Question, state: Tensor) -> Tensor:
        """The smoothed loss."""
        deviation = self.deviation(question.level)
        if not deviation:
            return question.loss(state)
        losses = [
            question.loss(state + deviation * draw.to(state))
            for draw in question.draws(self.samples)
        ]
        return math.log(self.samples) - torch.logsumexp(-torch.stack(losses), dim=0)

    def check(self, guide: Guide, target: Tensor) -> None:
        """Every guide has a loss."""


@settings
class LinearPosterior(Energy):
    """Minus log p(y | x_t) of a linear measurement y = A x_0, x_0 given x_t taken for Gaussian.

    PiGDM (Song et al., 2023, eq. 7), times its r_t^2: the gradient with respect to x_0 is
    -A^T (A A^T + noise^2 / r_t^2)^-1 (y - A x_0), with r_t = sigma / sqrt(alpha^2 + sigma^2).

    Attributes:
        noise: standard deviation of the measurement's noise in units of [-1, 1], >= 0.
    """

    noise: NotNegative = 0.0
    in_pixels: ClassVar[bool] = True

    def __call__(self, question: Question, state: Tensor) -> Tensor:
        """An energy with that gradient; its value means nothing by itself."""
        operator = question.guide.operator(question.target)
        assert operator is not None, "Energy.check is called before"
        image = question.decode(state)
        spread = question.level.sigma / question.level.scale
        with torch.no_grad():
            # Beyond it there is no pull left, and a square that no number can hold.
            ratio = min(self.noise / spread, 1e100) ** 2 if spread else 0.0
            residual = question.target.to(image) - operator(image)
            pull = operator.pseudo_inverse(residual, ratio)
        return -(pull * image).flatten(1).sum(dim=1)

    def check(self, guide: Guide, target: Tensor) -> None:
        """The guide must be a linear measurement."""
        if guide.operator(target) is None:
            raise OptionError(
                f"The guide {guide.name!r} is no linear measurement, which this recipe is made "
                "for.",
                remedy="Use it with a guide of ppap-plugin-restore, or use --recipe dps.",
            )
