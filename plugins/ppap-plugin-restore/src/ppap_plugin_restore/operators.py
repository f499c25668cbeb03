"""The linear measurements A of the five guides, with exact adjoints and pseudo-inverses.

All work on any device, in single or double precision, and are differentiable. Each is diagonal in
a basis that is cheap to change to, so that A^T (A A^T + ratio I)^-1 is known in closed form. That
is what DDRM (Kawar et al., 2022) and PiGDM (Song et al., 2023) ask of a measurement.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn import functional as F

from ppap_host.guides.operators import LinearOperator

Images = Float[Tensor, "b 3 h w"]

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in ITU-R BT.601's luma, which Pillow's mode "L" rounds."""

SMALLEST = 0.01
"""Frequencies of which a blur leaves less than this part are taken as lost. What it leaves is below
what 8 bits hold, and a pseudo-inverse would multiply the rounding by more than a hundred."""


class Measurement(LinearOperator):
    """A measurement of this plugin.

    Attributes:
        share: part of the measurement's entries that were measured; the others are always 0.
    """

    share: float = 1.0


def least_residual(operator: LinearOperator, y: Tensor) -> Float[Tensor, " b"]:
    """How far measurements are at least from those of any image: RMSE in images of [0, 1].

    The least squares over images in [-1, 1], by fifty steps of FISTA (Beck and Teboulle, 2009), for
    an operator that makes nothing larger; so a little above the least one there is.

    Args:
        y: measurements of images in [-1, 1], [b, c, h, w].
    """
    best = ahead = operator.adjoint(y).clamp(-1, 1)
    momentum = 1.0
    for _ in range(50):
        step = (ahead - operator.adjoint(operator(ahead) - y)).clamp(-1, 1)
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = step + (momentum - 1) / following * (step - best)
        best, momentum = step, following
    return (operator(best) - y).square().mean(dim=(1, 2, 3)).sqrt() / 2


class BoxDownsample(Measurement):
    """The mean of every ``factor`` x ``factor`` box: super-resolution as in DDRM.

    Args:
        factor: >= 1; divides height and width of the images.
    """

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, x: Images) -> Float[Tensor, "b 3 h2 w2"]:
        """[b, 3, h / factor, w / factor]."""
        return F.avg_pool2d(x, self.factor)

    def adjoint(self, y: Float[Tensor, "b 3 h2 w2"]) -> Images:
        """Every entry spread evenly over its box."""
        f = self.factor
        return y.repeat_interleave(f, dim=-2).repeat_interleave(f, dim=-1) / f**2

    def pseudo_inverse(self, y: Float[Tensor, "b 3 h2 w2"], ratio: float = 0.0) -> Images:
        """A A^T = I / factor^2; with ratio 0 every pixel has its box's mean."""
        return self.adjoint(y) / (1 / self.factor**2 + ratio)


class Masking(Measurement):
    """The known pixels; 0 in place of the others.

    Args:
        known: 1 where a pixel is known, 0 elsewhere.
    """

    def __init__(self, known: Float[Tensor, "1 1 h w"]) -> None:
        self.known = known
        self.share = float(known.mean())

    def __call__(self, x: Images) -> Images:
        """known * x."""
        return self.known.to(x) * x

    def adjoint(self, y: Images) -> Images:
        """As the measurement, which is a projection."""
        return self(y)

    def pseudo_inverse(self, y: Images, ratio: float = 0.0) -> Images:
        """A A^T is 1 where a pixel is known."""
        return self(y) / (1 + ratio)


class Greyscale(Measurement):
    """Luma (ITU-R BT.601), [b, 1, h, w] in [-1, 1]."""

    def _weights(self, like: Tensor) -> Float[Tensor, "1 3 1 1"]:
        return like.new_tensor(LUMA).view(1, 3, 1, 1)

    def __call__(self, x: Images) -> Float[Tensor, "b 1 h w"]:
        """0.299 R + 0.587 G + 0.114 B."""
        return (self._weights(x) * x).sum(dim=1, keepdim=True)

    def adjoint(self, y: Float[Tensor, "b 1 h w"]) -> Images:
        """The weights times the luma."""
        return self._weights(y) * y

    def pseudo_inverse(self, y: Float[Tensor, "b 1 h w"], ratio: float = 0.0) -> Images:
        """A A^T = |weights|^2."""
        return self.adjoint(y) / (sum(weight**2 for weight in LUMA) + ratio)


class GaussianBlur(Measurement):
    """Convolution with a Gaussian, the image mirrored at its borders.

    The mirror lies between the pixels (numpy's "symmetric"). A symmetric kernel under it is
    diagonal in the type-II discrete cosine transform (Martucci, 1994), so nothing is approximated.

    Args:
        sigma: standard deviation in pixels, > 0.
        smallest: frequencies with a smaller response are lost (:data:`SMALLEST`); 0 keeps all.
    """

    def __init__(self, sigma: float, smallest: float = SMALLEST) -> None:
        self.sigma, self.smallest = sigma, smallest

    def _response(self, like: Tensor) -> Float[Tensor, "h w"]:
        rows, columns = (
            _gaussian_response(self.sigma, n, like.device, like.dtype) for n in like.shape[-2:]
        )
        return _cut(rows[:, None] * columns, self.smallest)

    def _filtered(self, x: Images, response: Float[Tensor, "h w"]) -> Images:
        down, across = (_cosines(n, x.device, x.dtype) for n in x.shape[-2:])
        return down.T @ (response * (down @ x @ across.T)) @ across

    def __call__(self, x: Images) -> Images:
        """The blurred images."""
        return self._filtered(x, self._response(x))

    def adjoint(self, y: Images) -> Images:
        """As the measurement, which is symmetric."""
        return self(y)

    def pseudo_inverse(self, y: Images, ratio: float = 0.0) -> Images:
        """response / (response^2 + ratio) at every frequency, 0 where it is lost."""
        return self._filtered(y, _inverse(self._response(y), ratio))


class MotionBlur(Measurement):
    """Convolution with a straight line through its centre, the image wrapped around at its borders.

    A slanted line is not symmetric in either axis, so no cosine transform makes it diagonal; on the
    torus the Fourier transform does. What leaves the image on one side comes back on the other, as
    in most work that inverts blurs in closed form, such as DPIR (Zhang et al., 2021).

    Args:
        length: of the line in pixels, >= 1; 1 is no blur.
        angle: in degrees, counter-clockwise from the horizontal.
        smallest: as for :class:`GaussianBlur`.
    """

    def __init__(self, length: float, angle: float, smallest: float = SMALLEST) -> None:
        self.length, self.angle, self.smallest = length, angle, smallest

    def _response(self, like: Tensor) -> Complex[Tensor, "h half"]:
        height, width = like.shape[-2:]
        response = _motion_response(self.length, self.angle, height, width, like.device, like.dtype)
        return _cut(response, self.smallest)

    def _filtered(self, x: Images, response: Complex[Tensor, "h half"]) -> Images:
        blurred: Tensor = torch.fft.irfft2(response * torch.fft.rfft2(x), s=x.shape[-2:])
        return blurred

    def __call__(self, x: Images) -> Images:
        """The blurred images."""
        return self._filtered(x, self._response(x))

    def adjoint(self, y: Images) -> Images:
        """Convolution with the mirrored kernel."""
        return self._filtered(y, self._response(y).conj())

    def pseudo_inverse(self, y: Images, ratio: float = 0.0) -> Images:
        """conj(response) / (|response|^2 + ratio) at every frequency, 0 where it is lost."""
        return self._filtered(y, _inverse(self._response(y), ratio))


def motion_kernel(length: float, angle: float) -> Float[Tensor, "k k"]:
    """A line of ``length`` pixels with soft edges: its weights add up to 1, float64.

    A pixel weighs 1 minus its distance from the line between the centres of the first and the last
    pixel, if that is above 0.
    """
    half = (length - 1) / 2
    reach = math.ceil(half) + 1
    at = torch.arange(-reach, reach + 1, dtype=torch.float64)
    # Rows count downwards, angles upwards.
    across, up = at[None, :], -at[:, None]
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    along = across * cosine + up * sine
    beside = up * cosine - across * sine
    distance = torch.hypot((along.abs() - half).clamp_min(0), beside)
    weights = (1 - distance).clamp_min(0)
    return weights / weights.sum()


def _cut(response: Tensor, smallest: float) -> Tensor:
    return torch.where(response.abs() < smallest, torch.zeros_like(response), response)


def _inverse(response: Tensor, ratio: float) -> Tensor:
    """What divides by ``response`` where it is not 0, held back by ``ratio``."""
    power = response.abs().square() + ratio
    lost = response == 0
    return torch.where(
        lost, torch.zeros_like(response), response.conj() / power.masked_fill(lost, 1)
    )


# The tables are made outside inference mode: those made within could serve no gradient later.


@lru_cache(maxsize=32)
def _cosines(n: int, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "n n"]:
    """The orthonormal type-II discrete cosine transform: rows are frequencies."""
    with torch.inference_mode(False):
        frequency = torch.arange(n, dtype=torch.float64)[:, None]
        pixel = torch.arange(n, dtype=torch.float64)
        table = math.sqrt(2 / n) * torch.cos(math.pi / n * frequency * (pixel + 0.5))
        table[0] /= math.sqrt(2)
        return table.to(device, dtype)


@lru_cache(maxsize=32)
def _gaussian_response(
    sigma: float, n: int, device: torch.device, dtype: torch.dtype
) -> Float[Tensor, " n"]:
    """What a sampled Gaussian leaves of each frequency of :func:`_cosines`."""
    with torch.inference_mode(False):
        reach = math.ceil(6 * sigma)
        at = torch.arange(-reach, reach + 1, dtype=torch.float64)
        kernel = torch.exp(-at.square() / (2 * sigma**2))
        frequency = torch.arange(n, dtype=torch.float64)[:, None]
        response: Tensor = torch.cos(math.pi / n * frequency * at) @ (kernel / kernel.sum())
        return response.to(device, dtype)


@lru_cache(maxsize=32)
def _motion_response(
    length: float, angle: float, height: int, width: int, device: torch.device, dtype: torch.dtype
) -> Complex[Tensor, "h half"]:
    """What :func:`motion_kernel` leaves of each frequency, in the layout of ``rfft2``."""
    with torch.inference_mode(False):
        kernel = motion_kernel(length, angle)
        reach = len(kernel) // 2
        at = torch.arange(-reach, reach + 1)
        wrapped = torch.zeros(height, width, dtype=torch.float64)
        rows, columns = torch.meshgrid(at % height, at % width, indexing="ij")
        # A kernel larger than the image meets some of its pixels several times.
        wrapped.index_put_((rows, columns), kernel, accumulate=True)
        response: Tensor = torch.fft.rfft2(wrapped)
        return response.to(device, dtype.to_complex())
