"""Segmentations as colour pictures, one colour for each class."""

from __future__ import annotations

import colorsys

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

# The first two classes are usually surroundings (wall and floor, background and the first thing):
# greys of unlike lightness. Then the colours of Okabe and Ito, "Color universal design" (2008),
# made to be told apart by the colour-blind.
_FIRST = [
    (222, 222, 216), (88, 92, 102), (230, 159, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167),
    (86, 180, 233), (213, 94, 0), (240, 228, 66), (0, 0, 0),
]  # fmt: skip
_GOLDEN = 0.618033988749895

IGNORED = (255, 255, 255)
"""Colour of what a target does not say anything about."""


def palette(count: int) -> NDArray[np.uint8]:
    """``count`` colours as RGB [count, 3]; a class keeps its colour however many there are.

    Ten are told apart by everyone; further ones walk the hues by the golden ratio, in three
    lightnesses in turn, so that neighbours in the list differ.
    """
    colors = list(_FIRST[:count])
    for i in range(len(_FIRST), count):
        rgb = colorsys.hls_to_rgb(i * _GOLDEN % 1, (0.35, 0.6, 0.78)[i % 3], 0.65)
        colors.append(tuple(round(255 * c) for c in rgb))  # type: ignore[arg-type]
    return np.array(colors, dtype=np.uint8).reshape(count, 3)


def colored(labels: Int[Tensor, "b h w"], count: int) -> list[Image.Image]:
    """One RGB picture for each map of class indices, at its size; -1 is :data:`IGNORED`."""
    table = np.concatenate([palette(count), np.array([IGNORED], dtype=np.uint8)])
    return [Image.fromarray(table[one]) for one in labels.detach().to(torch.int64).cpu().numpy()]
