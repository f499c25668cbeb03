"""What a CLIP sees, as pictures for people: a score card, and a map of an image's patches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SIDE = 192
"""Of a picture, in pixels; a card is still legible at two thirds of that."""

_PAPER, _INK, _GROOVE, _BAR = (250, 249, 246), (40, 38, 36), (226, 222, 214), (31, 95, 166)
_MARGIN, _LINES = 10, 4


def card(label: str, similarity: float | None = None) -> Image.Image:
    """A square picture with a text and, below it, a similarity as a number and a bar.

    Args:
        label: wrapped; what does not fit into four lines is cut and marked with dots.
        similarity: in [-1, 1]; the bar starts in the middle, at 0. Without one there is no bar.
    """
    picture = Image.new("RGB", (SIDE, SIDE), _PAPER)
    draw = ImageDraw.Draw(picture)
    font, large = ImageFont.load_default(18), ImageFont.load_default(26)
    for k, line in enumerate(_wrapped(label, SIDE - 2 * _MARGIN, font)):
        draw.text((_MARGIN, 8 + 24 * k), line, fill=_INK, font=font)
    if similarity is None:
        return picture
    draw.text((_MARGIN, 116), f"{similarity:+.3f}", fill=_INK, font=large)
    left, right, top, bottom = _MARGIN, SIDE - _MARGIN, 154, 172
    middle = (left + right) // 2
    draw.rectangle((left, top, right, bottom), fill=_GROOVE)
    # In this order NaN, which is written above it, has no bar.
    end = middle + round((right - middle) * min(max(-1.0, similarity), 1.0))
    if end != middle:
        draw.rectangle((min(middle, end), top, max(middle, end), bottom), fill=_BAR)
    draw.line((middle, top - 4, middle, bottom + 4), fill=_INK)
    return picture


def _wrapped(
    text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> list[str]:
    """At most four lines of at most ``width`` pixels."""
    lines: list[str] = []
    rest = " ".join(text[: _LINES * width].split())  # no character is narrower than a pixel
    while rest and len(lines) < _LINES:
        line = rest
        while len(line) > 1 and font.getlength(line) > width:
            # At a space where there is one, else within the word.
            line = line[: line.rfind(" ")] if " " in line else line[:-1]
        lines.append(line)
        rest = rest[len(line) :].lstrip()
    if rest:
        last = lines[-1]
        while last and font.getlength(last + "...") > width:
            last = last[:-1]
        lines[-1] = last.rstrip() + "..."
    return lines


@dataclass(frozen=True)
class Axes:
    """Three directions of tokens that are shown as red, green and blue.

    Attributes:
        mean: of the tokens, [c]; shown as grey.
        directions: [c, 3], each divided by twice the tokens' standard deviation along it.
    """

    mean: Float[Tensor, " c"]
    directions: Float[Tensor, "c 3"]

    @classmethod
    def of(cls, tokens: Float[Tensor, "n c"]) -> Axes:
        """The first three principal components of these tokens."""
        exact = tokens.detach().double().cpu()
        mean = exact.mean(dim=0)
        _, lengths, rows = torch.linalg.svd(exact - mean, full_matrices=False)
        spread = lengths[:3] / math.sqrt(len(exact))
        # A component's sign means nothing; this one is the same on every machine.
        peaks = rows[:3].gather(1, rows[:3].abs().argmax(dim=1, keepdim=True))
        directions = exact.new_zeros(exact.shape[1], 3)
        scaled = rows[:3] * peaks.sign() / (2 * spread[:, None]).clamp_min(1e-9)
        directions[:, : len(scaled)] = scaled.T
        return cls(mean, directions)


def patch_map(tokens: Float[Tensor, "n c"], axes: Axes) -> Image.Image:
    """The patches of an image, alike in colour where their tokens are alike.

    Args:
        tokens: of a square grid of patches, row by row.
        axes: what the colours mean. Pictures with the same axes can be compared.
    """
    projected = (tokens.detach().double().cpu() - axes.mean) @ axes.directions
    side = math.isqrt(len(tokens))
    unit = (0.5 + 0.5 * projected.nan_to_num(0.0)).clamp(0, 1).view(side, side, 3)
    pixels = (255 * unit).round().to(torch.uint8).numpy()
    small = Image.fromarray(np.ascontiguousarray(pixels))
    return small.resize((SIDE, SIDE), Image.Resampling.NEAREST)
