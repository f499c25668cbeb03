"""Guidance methods as compositions of small parts, and the presets that have names.

A recipe says what the guide is shown (:class:`View`), what is done to its gradient
(:class:`GradientPart`), where the gradient is applied (:class:`Place`), how strongly
(:class:`Strength`) and at which noise levels. The sampling loop in :mod:`ppap_host.sampling` is the
same for all of them.

Sign and units: ``gradient`` is the gradient of *minus* the guide's loss, that is of a log
likelihood up to scale, per image, its length that of a label's gradient also where the loss is a
mean over pixels (:attr:`ppap_host.guide.Guide.averages_pixels`); it is multiplied by the
user's scale and the recipe's strength.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ppap_host.noise import NoiseLevel, NoiseRange

EVERYWHERE = NoiseRange(-math.inf, math.inf)


@dataclass(frozen=True)
class Estimate:
    """What is known at one step: the state, and the backbone's reading of it.

    Attributes:
        x: the state x_t entering the step, [b, c, h, w].
        x0: predicted clean state, clipped as the backbone asks.
        eps: the noise that belongs to ``x0``.
        v: the learned variance's coefficient in [-1, 1], or None.
        mean_shift: gradient that the ancestral step adds to its mean, times the variance.
        clip: bounds of a clean state (:attr:`ppap_host.backbone.Backbone.clip`); None for latents.
    """

    level: NoiseLevel
    x: Float[Tensor, "b c h w"]
    x0: Float[Tensor, "b c h w"]
    eps: Float[Tensor, "b c h w"]
    v: Float[Tensor, "b c h w"] | None = None
    mean_shift: Float[Tensor, "b c h w"] | None = None
    clip: tuple[float, float] | None = None


@runtime_checkable
class View(Protocol):
    """What the guide is shown, and with respect to what its loss is differentiated."""

    @property
    def through_backbone(self) -> bool:
        """Whether the gradient flows through the backbone, which then keeps its graph in memory."""

    @property
    def sees_noise(self) -> bool:
        """Whether the guide is shown noised images, so that experts are of use."""

    def variable(self, estimate: Estimate) -> Tensor:
        """The tensor to differentiate with respect to, requiring gradients."""

    def shown(self, estimate: Estimate, variable: Tensor) -> tuple[Tensor, NoiseLevel | None]:
        """The state the guide looks at as a function of ``variable``, and its noise level."""


@dataclass(frozen=True)
class Noisy:
    """x_t itself at unit variance scale, x_t / sqrt(alpha^2 + sigma^2).

    Classifier guidance (Dhariwal and Nichol, 2021) and PPAP with an expert that knows its noise;
    with an off-the-shelf guide this is the naive use that fails.
    """

    through_backbone: bool = False
    sees_noise: bool = True

    def variable(self, estimate: Estimate) -> Tensor:
        """x_t, detached from any graph."""
        return estimate.x.detach().requires_grad_(True)

    def shown(self, estimate: Estimate, variable: Tensor) -> tuple[Tensor, NoiseLevel | None]:
        """x_t rescaled, at its own level."""
        return variable / estimate.level.scale, estimate.level


@dataclass(frozen=True)
class Predicted:
    """The predicted x_0 held constant: the gradient is taken at it, not through the backbone.

    EluCD (Ma et al., 2024, section 3.2) and MPGD (He et al., 2024).
    """

    through_backbone: bool = False
    sees_noise: bool = False

    def variable(self, estimate: Estimate) -> Tensor:
        """The predicted x_0, detached."""
        return estimate.x0.detach().requires_grad_(True)

    def shown(self, estimate: Estimate, variable: Tensor) -> tuple[Tensor, NoiseLevel | None]:
        """The prediction, taken for a clean image."""
        return variable, None


@dataclass(frozen=True)
class PredictedThrough:
    """The predicted x_0, its gradient taken back to x_t through the backbone.

    DPS (Chung et al., 2023, eq. 16) and what grew from it. Where x_0 was clipped the gradient
    passes as if it were not, so that saturated pixels can still be steered.
    """

    through_backbone: bool = True
    sees_noise: bool = False

    def variable(self, estimate: Estimate) -> Tensor:
        """x_t with the backbone's graph attached."""
        return estimate.x

    def shown(self, estimate: Estimate, variable: Tensor) -> tuple[Tensor, NoiseLevel | None]:
        """The prediction as a function of x_t."""
        raw = (variable - estimate.level.sigma * estimate.eps) / estimate.level.alpha
        return raw + (estimate.x0 - raw).detach(), None


@runtime_checkable
class GradientPart(Protocol):
    """A transformation of the guide's gradient, [b, c, h, w] to [b, c, h, w], image by image."""

    def __call__(self, gradient: Tensor, estimate: Estimate) -> Tensor:
        """The transformed gradient."""


def limited(gradient: Tensor, largest: float) -> Tensor:
    """Every image's gradient at root mean square ``largest`` at most, direction kept."""
    # Squared as a part of the largest entry, so that no square overflows.
    peak = gradient.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-30)
    rms = peak * (gradient / peak).square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return gradient * (largest / rms.clamp_min(1e-30)).clamp(max=1.0)


@dataclass(frozen=True)
class Normalised:
    """Every image's gradient at root mean square 1 (zero stays zero)."""

    def __call__(self, gradient: Tensor, estimate: Estimate) -> Tensor:
        """gradient / rms(gradient)."""
        rms = gradient.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        return torch.where(rms > 0, gradient / rms.clamp_min(1e-30), gradient)


@dataclass(frozen=True)
class Clipped:
    """Every image's gradient at root mean square ``largest`` at most."""

    largest: float = 1.0

    def __call__(self, gradient: Tensor, estimate: Estimate) -> Tensor:
        """gradient * min(1, largest / rms(gradient))."""
        return limited(gradient, self.largest)


@dataclass(frozen=True)
class UnitScale:
    """The gradient with respect to x_t / sqrt(alpha^2 + sigma^2), from the one with respect to x_t.

    What moves x_0 by it does the same whatever the schedule's own scale of x_t is.
    """

    def __call__(self, gradient: Tensor, estimate: Estimate) -> Tensor:
        """gradient * sqrt(alpha^2 + sigma^2)."""
        return gradient * estimate.level.scale


@dataclass(frozen=True)
class RootSize:
    """The gradient times the root of the number of the state's entries.

    A gradient of length one then has root mean square one: it moves the pixels of a large picture
    as far as those of a small one.
    """

    def __call__(self, gradient: Tensor, estimate: Estimate) -> Tensor:
        """gradient * sqrt(c h w)."""
        return gradient * math.sqrt(gradient[0].numel())


@dataclass(frozen=True)
class Smoothed:
    """The gradient under a Gaussian filter, reflected at the borders.

    A guide's gradient changes from pixel to pixel, which images do not: followed as it is, it draws
    noise that the guide likes and that feeds on itself. Taken through the denoiser it would be
    multiplied by the covariance of x_0 given x_t (Chung et al., 2023, eq. 11, with Tweedie's second
    moment), which is smooth; the filter stands for that covariance at no cost.

    Attributes:
        width: standard deviation, as a part of the state's shorter side.
    """

    width: float = 3 / 64

    def __call__(self, gradient: Tensor, estimate: Estimate) -> Tensor:
        """gradient * N(0, width^2), channel by channel."""
        channels, *size = gradient.shape[1:]
        deviation = self.width * min(size)
        reach = min(math.ceil(3 * deviation), min(size) - 1)
        at = torch.arange(-reach, reach + 1, device=gradient.device, dtype=gradient.dtype)
        kernel = torch.exp(-at.square() / (2 * deviation**2))
        kernel = (kernel / kernel.sum()).expand(channels, 1, -1)
        padded = F.pad(gradient, (reach,) * 4, mode="reflect")
        rows = F.conv2d(padded, kernel[:, :, None, :], groups=channels)
        return F.conv2d(rows, kernel[:, :, :, None], groups=channels)


@runtime_checkable
class Place(Protocol):
    """Where the scaled gradient changes the step."""

    def __call__(self, estimate: Estimate, gradient: Tensor, ancestral: bool) -> Estimate:
        """The changed estimate; ``ancestral`` says whether the solver has a mean to shift."""


@dataclass(frozen=True)
class MeanOrScore:
    """Dhariwal and Nichol (2021): algorithm 1 for ancestral solvers, algorithm 2 for the others.

    Algorithm 1 adds variance * gradient to the mean of the step. Algorithm 2 shifts the noise,
    eps - sigma * gradient, and x_0 follows from it without being clipped again.
    """

    def __call__(self, estimate: Estimate, gradient: Tensor, ancestral: bool) -> Estimate:
        """The shifted estimate."""
        if ancestral:
            before = estimate.mean_shift
            return replace(estimate, mean_shift=gradient if before is None else before + gradient)
        level = estimate.level
        eps = estimate.eps - level.sigma * gradient
        return replace(estimate, eps=eps, x0=(estimate.x - level.sigma * eps) / level.alpha)


@dataclass(frozen=True)
class CleanPoint:
    """Moves the predicted x_0 and lets eps follow, so that x_t = alpha x_0 + sigma eps still holds.

    The natural place for a gradient taken at the predicted x_0: no factor 1 / alpha that explodes
    at high noise. MPGD moves x_0 alike but keeps eps.
    """

    keep_eps: bool = False

    def __call__(self, estimate: Estimate, gradient: Tensor, ancestral: bool) -> Estimate:
        """The shifted estimate; x_0 stays within the backbone's bounds, if it has any."""
        x0 = estimate.x0 + gradient
        if estimate.clip is not None:
            x0 = x0.clamp(*estimate.clip)
        if self.keep_eps:
            return replace(estimate, x0=x0)
        eps = (estimate.x - estimate.level.alpha * x0) / estimate.level.sigma
        return replace(estimate, x0=x0, eps=eps)


@runtime_checkable
class Strength(Protocol):
    """The factor on the gradient at a noise level."""

    def __call__(self, level: NoiseLevel) -> float:
        """A number >= 0."""


@dataclass(frozen=True)
class Constant:
    """The same at every level."""

    factor: float = 1.0

    def __call__(self, level: NoiseLevel) -> float:
        """``factor``."""
        return self.factor


@dataclass(frozen=True)
class PosteriorSpread:
    """How far x_0 is still open: sigma / sqrt(alpha^2 + sigma^2), raised to ``power``.

    The standard deviation of x_0 given x_t if images were standard normal (Song et al., 2023,
    PiGDM, section 3.1): close to 1 in pure noise, 0 for a clean image.
    """

    factor: float = 1.0
    power: float = 1.0

    def __call__(self, level: NoiseLevel) -> float:
        """The spread to the power, times ``factor``."""
        return self.factor * math.pow(level.sigma / level.scale, self.power)


@dataclass(frozen=True)
class Recipe:
    """A guidance method.

    Attributes:
        name: what the user calls it.
        view, gradient, place, strength: its parts.
        interval: noise levels outside which the guide is not called at all.
        needs_experts: whether it makes no sense with the plain network.
        limit: root mean square that the user's scale times the gradient is cut to, image by image,
            before the strength; no scale can then drive an image out of all bounds.
    """

    name: str
    view: View
    place: Place
    strength: Strength = Constant()
    gradient: tuple[GradientPart, ...] = ()
    interval: NoiseRange = EVERYWHERE
    needs_experts: bool = False
    limit: float = math.inf


NAIVE = Recipe(
    name="naive",
    view=Noisy(),
    place=MeanOrScore(),
)
# The factor makes scales of order one good ones; with the limit, no step moves x_0 by a root mean
# square of more than half of what is still open.
PPAP = Recipe(
    name="ppap",
    view=Noisy(),
    place=CleanPoint(),
    strength=PosteriorSpread(factor=0.25),
    gradient=(UnitScale(), RootSize(), Smoothed()),
    needs_experts=True,
    limit=2.0,
)
X0 = Recipe(
    name="x0",
    view=Predicted(),
    place=CleanPoint(),
    strength=PosteriorSpread(factor=0.25),
    gradient=(RootSize(), Smoothed()),
    limit=2.0,
)
X0_THROUGH = Recipe(
    name="x0-through",
    view=PredictedThrough(),
    place=CleanPoint(),
    strength=PosteriorSpread(factor=0.25),
    gradient=(RootSize(),),
    limit=2.0,
)
