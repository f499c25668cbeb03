"""Renders of the built-in world spoiled in known ways: what a measure is worth.

A measure that does not fall where its own thing was spoiled, or that falls where another one was,
measures something else than it says.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ppap_host.files.images import to_pixels
from ppap_host.shapes.renderer import render
from ppap_host.shapes.scenes import SHAPES, Scenes


@dataclass(frozen=True)
class Spoil:
    """A way to spoil renders.

    Attributes:
        name: short, for tables.
        about: what is done, in words.
        scenes: changes the scenes before they are rendered.
        pixels: changes the pictures, uint8 [n, 3, h, w].
    """

    name: str
    about: str
    scenes: Callable[[Scenes], Scenes] = lambda scenes: scenes
    pixels: Callable[[Tensor, Scenes], Tensor] = lambda pixels, scenes: pixels

    def spoiled(self, scenes: Scenes) -> Tensor:
        """Spoiled renders of these scenes, uint8 [n, 3, 64, 64]."""
        changed = self.scenes(scenes)
        return self.pixels(to_pixels(render(changed).rgb), changed)


def _blurred(pixels: Tensor, scenes: Scenes) -> Tensor:
    offsets = torch.arange(-4.0, 5.0)
    row = torch.softmax(-offsets.square() / (2 * 1.5**2), dim=0)
    kernel = torch.outer(row, row).expand(3, 1, 9, 9)
    padded = F.pad(pixels.float(), (4, 4, 4, 4), mode="replicate")
    return F.conv2d(padded, kernel, groups=3).round().to(torch.uint8)


def _two_colors(pixels: Tensor, scenes: Scenes) -> Tensor:
    """The right half of every solid takes the hue a third of the circle on."""
    segments = render(scenes, supersample=1).segmentation
    columns = torch.arange(pixels.shape[3], dtype=torch.float32).expand(pixels.shape[2:])
    out = pixels.clone()
    for shape in range(len(SHAPES)):
        masks = segments == 2 + shape
        for picture, mask, turned in zip(out, masks, pixels[:, [1, 2, 0]], strict=True):
            if mask.any():
                half = mask & (columns > columns[mask].mean())
                picture[:, half] = turned[:, half]
    return out


def _fused(scenes: Scenes) -> Scenes:
    """The second solid stands half inside the first, in its colour."""
    position, color, albedo = (
        getattr(scenes, name).clone() for name in ("position", "color", "albedo")
    )
    aside = scenes.camera_axes[:, 0, :2] * 0.9 * scenes.radius[:, :1]
    position[:, 1] = torch.where(scenes.count[:, None] > 1, position[:, 0] + aside, 0.0)
    color[:, 1], albedo[:, 1] = color[:, 0], albedo[:, 0]
    return replace(scenes, position=position, color=color, albedo=albedo)


def _swapped(scenes: Scenes) -> Scenes:
    """First and second solid exchange what they are, and keep place and size."""
    fields = {}
    for name in ("shape", "color", "albedo", "roughness", "metalness"):
        value = getattr(scenes, name).clone()
        value[:, :2] = torch.where(
            (scenes.count > 1).view(-1, *[1] * (value.ndim - 1)), value[:, :2].flip(1), value[:, :2]
        )
        fields[name] = value
    return replace(scenes, **fields)


def _warped(pixels: Tensor, scenes: Scenes) -> Tensor:
    """Every picture is bent by a smooth random field of some two pixels."""
    n, _, h, w = pixels.shape
    noise = torch.randn(n, 2, 9, 9, generator=torch.Generator().manual_seed(0))
    bend = F.interpolate(noise, (h, w), mode="bicubic") * (2 * 2.0 / h)
    straight = torch.stack(
        torch.meshgrid(*(((2 * torch.arange(s) + 1) / s - 1) for s in (h, w)), indexing="ij")[::-1]
    )
    grid = (straight + bend).movedim(1, -1)
    out = F.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
    return out.round().to(torch.uint8)


def _wavy(pixels: Tensor, scenes: Scenes) -> Tensor:
    """Columns are moved up and down along a wave, by a pixel and a half at most."""
    h, w = pixels.shape[2:]
    shift = 1.5 * torch.sin(2 * math.pi * torch.arange(w) / 24)
    y, x = torch.meshgrid((2 * torch.arange(h) + 1) / h - 1, (2 * torch.arange(w) + 1) / w - 1,
                          indexing="ij")  # fmt: skip
    grid = torch.stack([x, y + 2 * shift / h], dim=-1).expand(len(pixels), -1, -1, -1)
    out = F.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
    return out.round().to(torch.uint8)


def _gridded(pixels: Tensor, scenes: Scenes) -> Tensor:
    """Every second row and every second column is darker."""
    h, w = pixels.shape[2:]
    signs = [(-1.0) ** torch.arange(side) for side in (h, w)]
    pattern = 1.5 * (signs[0][:, None] + signs[1])
    return (pixels.float() + pattern).round().clamp(0, 255).to(torch.uint8)


SPOILS = (
    Spoil("as they are", "renders of another seed than the reference"),
    Spoil("blurred", "by a Gaussian of 1.5 pixels", pixels=_blurred),
    Spoil("of two colours", "half of every solid in another hue", pixels=_two_colors),
    Spoil("bent", "by a smooth random field of some two pixels", pixels=_warped),
    Spoil("wavy", "columns moved along a wave of a pixel and a half", pixels=_wavy),
    Spoil("fused", "the second solid half inside the first, in its colour", scenes=_fused),
    Spoil(
        "removed", "the first solid alone is left",
        scenes=lambda scenes: replace(scenes, count=torch.ones_like(scenes.count)),
    ),
    Spoil("with a grid", "every second row and column darker by 3 of 255", pixels=_gridded),
    Spoil(
        "of wrong shapes", "every solid of another shape than its scene says",
        scenes=lambda scenes: replace(scenes, shape=(scenes.shape + 1) % len(SHAPES)),
    ),
    Spoil(
        "of wrong colours", "all hues a third of the circle on",
        pixels=lambda pixels, scenes: pixels[:, [1, 2, 0]],
    ),
    Spoil("exchanged", "first and second solid exchange shape and colour", scenes=_swapped),
)  # fmt: skip
"""The ways."""
