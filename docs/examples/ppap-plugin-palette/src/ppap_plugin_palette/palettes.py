"""Palettes: a few colours and the share of each, read, found in pictures, and drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from PIL import Image, ImageColor
from ppap_host.files.errors import TargetError
from ppap_host.files.images import from_tensor
from torch import Tensor

from ppap_plugin_palette.colour import OKLab, to_srgb

_EXAMPLE = "Give colours such as 'navy,#ffcc00', with weights if you like: 'navy:3,#ffcc00:1'."
_SAME = 1e-3
"""Colours that are nearer than this in OKLab nobody tells apart."""
_ROUNDS = 12
_SHADES = (1.08, 0.85)
"""Lightness and chroma of the lightest and the darkest shade of a colour: light and shadow."""


@dataclass(frozen=True)
class Palette:
    """Some colours and how much there is of each.

    Attributes:
        colours: OKLab, [k, 3].
        shares: their sum is one, [k].
    """

    colours: Tensor
    shares: Tensor

    def hexes(self) -> list[str]:
        """Each colour as #rrggbb."""
        levels = (to_srgb(self.colours.T[None, :, :, None])[0, :, :, 0].T * 255).round().int()
        return [f"#{bytes(rgb).hex()}" for rgb in levels.tolist()]

    def text(self) -> str:
        """As :func:`parse` reads it, the weights in per cent, none below one."""
        percents = (100 * self.shares).round().int().clamp(min=1).tolist()
        pairs = zip(self.hexes(), percents, strict=True)
        return ",".join(f"{colour}:{percent}" for colour, percent in pairs)

    def nearest(self, lab: Tensor) -> tuple[Tensor, Tensor]:
        """For a picture [3, h, w] the distance to the nearest colour and its index, [h, w] each."""
        distances = torch.cdist(lab.flatten(1).T, self.colours)
        least = distances.min(dim=1)
        return least.values.view(lab.shape[1:]), least.indices.view(lab.shape[1:])

    def bars(self, height: int, width: int) -> Tensor:
        """Upright bars of the colours, as wide as their shares: OKLab, [3, h, w].

        They are filled column by column, so that the number of pixels is right to one.
        """
        places = (torch.arange(height * width, dtype=torch.float64) + 0.5) / (height * width)
        which = torch.searchsorted(self.shares.double().cumsum(0)[:-1], places)
        return self.colours[which].view(width, height, 3).permute(2, 1, 0)


def parse(text: str) -> Palette:
    """Reads a list such as ``navy:3,#ffcc00``; a colour without a weight has weight 1.

    Raises:
        TargetError: it is empty, or one of its colours or weights means nothing.
    """
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not items:
        raise TargetError("The palette has no colours.", remedy=_EXAMPLE)
    rgb, weights = zip(*map(_parse_item, items), strict=True)
    pixels = torch.tensor(rgb).T[None, :, :, None] / 255
    shares = [weight / sum(weights) for weight in weights]
    return Palette(OKLab()(pixels)[0, :, :, 0].T, torch.tensor(shares))


def _parse_item(item: str) -> tuple[tuple[int, ...], float]:
    name, colon, amount = (part.strip() for part in item.partition(":"))
    try:
        rgb = ImageColor.getrgb(name)[:3]
    except ValueError:
        near = get_close_matches(name.lower(), ImageColor.colormap, n=1)
        remedy = f"Did you mean {near[0]!r}?" if near else _EXAMPLE
        message = f"{name!r} in the palette is no colour."
        raise TargetError(message, remedy=remedy) from None
    try:
        weight = float(amount) if colon else 1.0
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise TargetError(
            f"{amount!r} is no weight for the colour {name!r}.",
            remedy=f"Give a number above zero, such as '{name}:2', or leave it out with its colon.",
        )
    return rgb, weight


def find(lab: Tensor, count: int) -> Palette:
    """The palette of a picture by k-means, darkest colour first; the same at every call.

    It starts with the colour nearest to the mean and then takes the one farthest from all those
    before, so that small accents get a colour of their own.

    Args:
        lab: OKLab, [3, h, w].
        count: how many colours; pictures with fewer get fewer.
    """
    pixels = lab.detach().cpu().float()
    flat = pixels.flatten(1).T
    colours = flat[(flat - flat.mean(dim=0)).norm(dim=1).argmin()][None]
    while len(colours) < count:
        distance = torch.cdist(flat, colours).amin(dim=1)
        if distance.max() < _SAME:
            break
        colours = torch.cat([colours, flat[distance.argmax()][None]])
    for _ in range(_ROUNDS):
        # Many centres for few colours: what no pixel is nearest to is left out.
        members = torch.cdist(flat, colours).argmin(dim=1)
        sizes = members.bincount(minlength=len(colours))
        sums = torch.zeros_like(colours).index_add(0, members, flat)
        colours = sums[sizes > 0] / sizes[sizes > 0, None]
    colours = colours[colours[:, 0].argsort()]
    members = torch.cdist(flat, colours).argmin(dim=1)
    return Palette(colours, members.bincount(minlength=len(colours)) / len(flat))


def shaded(lab: Tensor) -> Tensor:
    """The same colours in light and shadow, from the top to the bottom: OKLab, [3, h, w].

    More or less light on a surface multiplies all three of L, a and b by one number. Flat colours
    would ask for flat pictures.
    """
    return lab * torch.linspace(*_SHADES, lab.shape[1])[:, None]


def draw(lab: Tensor) -> Image.Image:
    """A picture for people from OKLab, [3, h, w]."""
    return from_tensor(to_srgb(lab[None]) * 2 - 1)[0]
