"""Views: what a guide is shown, and with respect to what its loss is differentiated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor

from ppap_host.recipes.estimate import Estimate
from ppap_host.recipes.gradients import root_mean_square


@runtime_checkable
class View(Protocol):
    """What the guide is shown, and with respect to what its loss is differentiated.

    Attributes:
        through_backbone: whether the gradient flows through the backbone, which then keeps its
            graph in memory.
        sees_noise: whether the guide is shown noised images, for which experts are tuned.
    """

    through_backbone: ClassVar[bool] = False
    sees_noise: ClassVar[bool] = False

    def variable(self, estimate: Estimate) -> Tensor:
        """The tensor to differentiate with respect to, [b, ...]."""

    def shown(self, estimate: Estimate, variable: Tensor) -> Tensor:
        """The state the guide looks at as a function of ``variable``."""


@dataclass(frozen=True)
class Noisy(View):
    """x_t itself at unit variance scale, x_t / sqrt(alpha^2 + sigma^2).

    Classifier guidance (Dhariwal and Nichol, 2021) and PPAP with an expert that knows its noise;
    with an off-the-shelf guide this is the naive use that fails.
    """

    sees_noise: ClassVar[bool] = True

    def variable(self, estimate: Estimate) -> Tensor:
        """x_t, detached from any graph."""
        return estimate.x.detach()

    def shown(self, estimate: Estimate, variable: Tensor) -> Tensor:
        """x_t rescaled."""
        return variable / estimate.level.scale


@dataclass(frozen=True)
class NoisyUnitSize(View):
    """x_t divided by its root mean square, image by image, where that is above one.

    What EluCD's code for EDM shows its classifier (Ma et al., 2024). The gradient is the one with
    respect to what is shown.
    """

    sees_noise: ClassVar[bool] = True

    def variable(self, estimate: Estimate) -> Tensor:
        """x_t / max(rms(x_t), 1), detached."""
        x = estimate.x.detach()
        return x / root_mean_square(x).clamp_min(1.0)

    def shown(self, estimate: Estimate, variable: Tensor) -> Tensor:
        """As it is."""
        return variable


@dataclass(frozen=True)
class Predicted(View):
    """The predicted x_0 held constant: the gradient is taken at it, not through the backbone.

    EluCD (Ma et al., 2024, section 3.2), MPGD (He et al., 2024) and the backward guidance of
    Universal Guidance (Bansal et al., 2023).
    """

    def variable(self, estimate: Estimate) -> Tensor:
        """The predicted x_0, detached."""
        return estimate.x0.detach()

    def shown(self, estimate: Estimate, variable: Tensor) -> Tensor:
        """The prediction, taken for a clean image."""
        return variable


@dataclass(frozen=True)
class PredictedThrough(View):
    """The predicted x_0, its gradient taken back to x_t through the backbone.

    DPS (Chung et al., 2023, eq. 16) and what grew from it.

    Attributes:
        clip: what is done where x_0 leaves the backbone's bounds. "straight": it is clipped, and
            the gradient passes as if it were not, so that saturated pixels can still be steered.
            "exact": it is clipped, and the gradient is zero there. "none": it is not clipped.
    """

    clip: Literal["straight", "exact", "none"] = "straight"
    through_backbone: ClassVar[bool] = True

    def variable(self, estimate: Estimate) -> Tensor:
        """x_t with the backbone's graph attached."""
        return estimate.x

    def shown(self, estimate: Estimate, variable: Tensor) -> Tensor:
        """The prediction as a function of x_t."""
        raw = (variable - estimate.level.sigma * estimate.eps) / estimate.level.alpha
        if self.clip == "none" or estimate.clip is None:
            return raw
        if self.clip == "exact":
            return raw.clamp(*estimate.clip)
        return raw + (estimate.x0 - raw).detach()
