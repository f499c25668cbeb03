"""Gradient parts: what is done to a guide's gradient before it is applied."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from ppap_host.files.settings import Decay, Fraction, Positive, settings
from ppap_host.recipes.estimate import Estimate

_TINY = 1e-30


@runtime_checkable
class GradientPart(Protocol):
    """A transformation of the guide's gradient, [b, ...] to [b, ...], image by image.

    It may have an attribute ``sized``: what it makes has a root mean square of about one, whatever
    the gradient's is. Where such a part is the last, that says how strong the move is, not what its
    place makes of it (:func:`ppap_host.recipes.shares.shared`).
    """

    def __call__(self, gradient: Tensor, estimate: Estimate) -> Tensor:
        """The transformed gradient."""


def sides(x: Tensor) -> tuple[int, ...]:
    """All dimensions of a batch but the first: what is reduced over, image by image."""
    return tuple(range(1, x.ndim))


def each(values: Tensor, like: Tensor) -> Tensor:
    """One number an image, [b] to [b, 1, ...], to be combined with a batch such as ``like``."""
    return values.view(-1, *[1] * (like.ndim - 1))


def root_mean_square(x: Tensor) -> Tensor:
    """Of each image, [b, 1, ...]; of numbers of any size."""
    # Squared as a part of the largest entry, so that no square overflows.
    peak = x.abs().amax(dim=sides(x), keepdim=True).clamp_min(_TINY)
    return peak * (x / peak).square().mean(dim=sides(x), keepdim=True).sqrt()


def limited(gradient: Tensor, largest: float) -> Tensor:
    """Every image's gradient at root mean square ``largest`` at most, direction kept."""
    return gradient * (largest / root_mean_square(gradient).clamp_min(_TINY)).clamp(max=1.0)


@dataclass(frozen=True)
class Normalised:
    """Every image's gradient at root mean square 1 (zero stays zero)."""

    sized: ClassVar[bool] = True

    def __call__(self, gradient: Tensor, estimate: Estimate) -> Tensor:
        """gradient / rms(gradient)."""
        rms = gradient.square().mean(dim=sides(gradient), keepdim=True).sqrt()
        return torch.where(rms > 0, gradient / rms.clamp_min(_TINY), gradient)


@settings
class Clipped:
    """Every image's gradient at root mean square ``largest`` at most."""

    largest: Positive = 1.0

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
class StateSize:
    """The gradient times the root mean square of each image's state x_t (EluCD's EDM variant)."""

    def __call__(self, gradient: Tensor, estimate: Estimate) -> Tensor:
        """gradient * rms(x_t)."""
        return gradient * root_mean_square(estimate.x.detach())


@dataclass(frozen=True)
class RootSize:
    """The gradient times the root of the number of the state's entries.

    A gradient of length one then has root mean square one: it moves the pixels of a large picture
    as far as those of a small one.
    """

    def __call__(self, gradient: Tensor, estimate: Estimate) -> Tensor:
        """gradient * sqrt(c h w)."""
        return gradient * math.sqrt(gradient[0].numel())


@settings
class PerRootLoss:
    """The gradient divided by the root of the loss.

    For a squared residual this is DPS's step size zeta / ||y - A x_0|| (Chung et al., 2023,
    algorithm 1): the gradient of the residual's norm, up to the factor two. It stays bounded as the
    target is met, where the loss itself in the denominator would not.

    Attributes:
        least: losses below it count as it, > 0.
    """

    least: Positive = 1e-6

    def __call__(self, gradient: Tensor, estimate: Estimate) -> Tensor:
        """gradient / sqrt(|loss|)."""
        assert estimate.loss is not None
        root = estimate.loss.detach().abs().clamp_min(self.least).sqrt()
        return gradient / each(root, gradient).to(gradient)


@settings
class AdamMoments:
    """Adam's moments of the gradient over the steps of the walk, m / (sqrt(v) + eps), unbiased.

    Adam-DPS and Adam-MPGD (Belardi et al., ICLR 2026, arXiv 2603.16797): the guide's gradient is
    noisy from step to step, and its moving averages are less so. Every image has its own moments.

    Attributes:
        beta1, beta2: decay of the first and the second moment, in [0, 1).
        eps: added to the root of the second moment, > 0.
    """

    beta1: Decay = 0.9
    beta2: Decay = 0.999
    eps: Positive = 1e-8
    sized: ClassVar[bool] = True

    def __call__(self, gradient: Tensor, estimate: Estimate) -> Tensor:
        """The moments' ratio; entries that are not finite leave the moments as they were."""
        zero = torch.zeros_like(gradient)
        m, v, t = estimate.memory.get(self, (zero, zero, 0))
        sound = gradient.isfinite()
        g = torch.where(sound, gradient, 0.0)
        m_new = torch.where(sound, self.beta1 * m + (1 - self.beta1) * g, m)
        v_new = torch.where(sound, self.beta2 * v + (1 - self.beta2) * g.square(), v)
        t += 1
        estimate.memory[self] = (m_new, v_new, t)
        unbiased = m_new / (1 - self.beta1**t)
        ratio = unbiased / ((v_new / (1 - self.beta2**t)).sqrt() + self.eps)
        return torch.where(sound, ratio, gradient)


@settings
class Smoothed:
    """The gradient under a Gaussian filter, reflected at the borders.

    Each frame of a video is filtered by itself, sound along time, and vectors, whose entries have
    no neighbours, stay as they are.

    A guide's gradient changes from pixel to pixel, which images do not: followed as it is, it draws
    noise that the guide likes and that feeds on itself. Taken through the denoiser it would be
    multiplied by the covariance of x_0 given x_t (Chung et al., 2023, eq. 11, with Tweedie's second
    moment), which is smooth; the filter stands for that covariance at no cost.

    Attributes:
        width: standard deviation, as a part of the shorter side of an image, or of the length, in
            [0, 1]; 0 for none.
    """

    width: Fraction = 3 / 64

    def __call__(self, gradient: Tensor, estimate: Estimate) -> Tensor:
        """gradient * N(0, width^2), channel by channel."""
        if gradient.ndim == 2:
            return gradient
        size = gradient.shape[2:] if gradient.ndim == 3 else gradient.shape[-2:]
        planes = gradient.reshape(len(gradient), -1, *size)
        channels = planes.shape[1]
        deviation = self.width * min(size)
        if not deviation:
            return gradient
        reach = min(math.ceil(3 * deviation), min(size) - 1)
        at = torch.arange(-reach, reach + 1, device=gradient.device, dtype=gradient.dtype)
        kernel = torch.exp(-at.square() / (2 * deviation**2))
        kernel = (kernel / kernel.sum()).expand(channels, 1, -1)
        padded = F.pad(planes, (reach,) * (2 * len(size)), mode="reflect")
        if len(size) == 1:
            return F.conv1d(padded, kernel, groups=channels).view_as(gradient)
        rows = F.conv2d(padded, kernel[:, :, None, :], groups=channels)
        return F.conv2d(rows, kernel[:, :, :, None], groups=channels).view_as(gradient)
