"""OKLab, and how far the colours of two pictures are apart in it.

OKLab (Björn Ottosson, "A perceptual color space for image processing", 2020) has a lightness L from
0 to 1 and two axes, a from green to red and b from blue to yellow, with 0 for grey. Here a and b
are always doubled, as Ottosson found best for colour differences; the Euclidean distance is then
known as delta E OK2. Without it, guidance meets the lightness long before the hue.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

_CHROMA = 2
_TO_LMS = (
    (0.4122214708, 0.5363325363, 0.0514459929),
    (0.2119034982, 0.6806995451, 0.1073969566),
    (0.0883024619, 0.2817188376, 0.6299787005),
)
_TO_LAB = (
    (0.2104542553, 0.7936177850, -0.0040720468),
    (1.9779984951 * _CHROMA, -2.4285922050 * _CHROMA, 0.4505937099 * _CHROMA),
    (0.0259040371 * _CHROMA, 0.7827717662 * _CHROMA, -0.8086757660 * _CHROMA),
)
_DARK = 1e-3
"""Below this part of white's light, a chord stands for the cube root, whose slope at black is
infinite. Black stays black, and greys from the 8-bit level 4 on are what they were."""
_DIRECTIONS = 24


class OKLab(nn.Module):
    """sRGB to OKLab; stands where other guides have a trained network."""

    def forward(self, pixels: Tensor) -> Tensor:
        """From sRGB in [0, 1] to L, 2a, 2b, both [b, 3, h, w].

        Both curves go on beyond white, and through zero as odd functions.
        """
        power = ((pixels.abs() + 0.055) / 1.055) ** 2.4
        linear = torch.where(pixels.abs() < 0.04045, pixels / 12.92, pixels.sign() * power)
        lms = torch.einsum("ij,bjhw->bihw", pixels.new_tensor(_TO_LMS), linear)
        # Clamped, because `where` needs a finite slope on the side that is not taken, too.
        root = lms.sign() * lms.abs().clamp(min=_DARK / 2) ** (1 / 3)
        root = torch.where(lms.abs() < _DARK, lms * _DARK ** (-2 / 3), root)
        return torch.einsum("ij,bjhw->bihw", pixels.new_tensor(_TO_LAB), root)


def to_srgb(lab: Tensor) -> Tensor:
    """The inverse of :class:`OKLab`, clipped to [0, 1] for people to look at: [b, 3, h, w]."""
    to_root, to_linear = (
        torch.tensor(matrix, dtype=torch.float64).inverse().to(lab) for matrix in (_TO_LAB, _TO_LMS)
    )
    root = torch.einsum("ij,bjhw->bihw", to_root, lab)
    lms = torch.where(root.abs() < _DARK ** (1 / 3), root * _DARK ** (2 / 3), root**3)
    linear = torch.einsum("ij,bjhw->bihw", to_linear, lms).clamp(0, 1)
    return torch.where(linear < 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def quantiles(values: Tensor) -> Tensor:
    """All of a distribution: the values [..., n] sorted, [..., n]."""
    return values.sort(dim=-1).values


def moments(values: Tensor) -> Tensor:
    """Mean and standard deviation of the values [..., n], as [..., 2]."""
    variance, mean = torch.var_mean(values, dim=-1, correction=0)
    # The root's slope at zero, that of plain pictures, is infinite.
    return torch.stack([mean, (variance + 1e-6).sqrt()], dim=-1)


def sliced_distance(a: Tensor, b: Tensor, statistic: Callable[[Tensor], Tensor]) -> Tensor:
    """How far the colours of pictures are apart, wherever in the pictures they are.

    The mean over directions of the squared differences of a statistic of the colours along each.
    With :func:`quantiles` it is the squared sliced Wasserstein distance (Bonneel et al., 2015), and
    zero where the distributions agree; with :func:`moments`, where means and covariances do.

    Args:
        a, b: OKLab, [b, 3, h, w]; a batch of one is compared with all, and sizes may differ.
        statistic: :func:`quantiles` or :func:`moments`.

    Returns:
        One number a picture, [b].
    """
    one, other = statistic(_along_directions(a)), statistic(_along_directions(b))
    count, known = one.shape[-1], other.shape[-1]
    if count != known:
        # Pictures of other sizes have other numbers of quantiles: the nearest ones are compared.
        nearest = (torch.arange(count, device=b.device) + 0.5) * known / count
        other = other[..., nearest.long()]
    return (one - other).square().mean(dim=(1, 2))


def _along_directions(lab: Tensor) -> Tensor:
    """Each colour's place along directions: [b, 3, h, w] to [b, directions, h * w].

    The directions are points of Fibonacci's spiral, which cover a half sphere evenly without any
    chance; the other half would only repeat them.
    """
    golden = math.pi * (3 - math.sqrt(5))
    heights = [(k + 0.5) / _DIRECTIONS for k in range(_DIRECTIONS)]
    directions = [
        (
            z,
            math.sqrt(1 - z * z) * math.cos(k * golden),
            math.sqrt(1 - z * z) * math.sin(k * golden),
        )
        for k, z in enumerate(heights)
    ]
    return torch.einsum("dc,bchw->bdhw", lab.new_tensor(directions), lab).flatten(2)
