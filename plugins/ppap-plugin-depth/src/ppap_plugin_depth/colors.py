"""Depth maps as colour pictures: near is warm and bright, far is dark."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

# Eleven equidistant colours of matplotlib's "inferno" (van der Walt and Smith, 2015, CC0): its
# lightness rises evenly, so equal steps of depth look equal, also in print and to the colour-blind.
_INFERNO = np.array([
    (0, 0, 4), (22, 11, 57), (66, 10, 104), (106, 23, 110), (147, 38, 103), (188, 55, 84),
    (221, 81, 58), (243, 120, 25), (252, 165, 10), (246, 215, 70), (252, 255, 164),
], dtype=np.float64)  # fmt: skip


def colored(nearness: Float[Tensor, "b h w"]) -> list[Image.Image]:
    """One RGB picture a map, at the map's size.

    Args:
        nearness: any monotone measure, larger is nearer. Each map is stretched from its 2nd to its
            98th percentile, so that a few stray pixels do not flatten the rest; a constant map is
            shown in the middle colour, and what is not finite in grey.
    """
    values = nearness.detach().float().cpu()
    edges = torch.tensor([0.02, 0.98])
    pictures = []
    for one in values:
        known = one.isfinite()
        finite = one[known] if bool(known.any()) else torch.zeros(1)
        low, high = torch.quantile(_thinned(finite), edges).tolist()
        one = one.nan_to_num(low, low, low)
        span = high - low
        shown = (one - low) / span if span > 1e-6 * max(abs(low), abs(high)) else one * 0 + 0.5
        positions = shown.clamp(0, 1).double().numpy() * (len(_INFERNO) - 1)
        ladder = np.arange(len(_INFERNO))
        rgb = np.stack([np.interp(positions, ladder, _INFERNO[:, c]) for c in range(3)], axis=-1)
        rgb[~known.numpy()] = 128
        pictures.append(Image.fromarray(rgb.round().astype(np.uint8)))
    return pictures


def _thinned(values: Tensor, most: int = 1_000_000) -> Tensor:
    """Every k-th value: torch.quantile refuses more than 2^24."""
    return values[:: max(1, len(values) // most)]
