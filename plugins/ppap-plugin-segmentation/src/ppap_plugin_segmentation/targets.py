"""What a segmentation target is, and the classes that it names.

A target's value is one tensor [1, C, h, w], with a channel for each class of the network:

- a number in [0, 1] is the probability that the class is wanted with at the pixel;
- :data:`APART` (-1) says that the target does not tell this class from the others so marked. They
  are one outcome, "any of the rest", whose probability is what the named classes leave to one.

So an image or a label map names all classes, a mask of one class names that one, and a pixel where
no class is named allows everything and is not compared. The value is finite everywhere and says
all there is to say: it can be sliced, expanded over a batch, stacked into one target for each image
and moved between devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ppap_host.files.errors import TargetError, foreign
from ppap_host.guides.labels import Labels
from ppap_host.guides.targets import Given

APART = -1.0
"""Marks a class that a target does not tell from the rest."""


def one_hot(labels: Int[Tensor, "b h w"], count: int) -> Float[Tensor, "b {count} h w"]:
    """A target's value from class indices below ``count``; -1 is not compared."""
    hot = F.one_hot(labels.long().clamp_min(0), count).movedim(-1, 1).float()
    return hot.masked_fill((labels < 0)[:, None], APART)


def one_class(mask: Float[Tensor, "b h w"], index: int, count: int) -> Float[Tensor, "b c h w"]:
    """A target's value from the probability of one class, all others being told from it alone."""
    value = mask.new_full((len(mask), count, *mask.shape[1:]), APART)
    value[:, index] = mask
    return value


def resized(value: Float[Tensor, "b c h w"], size: Sequence[int]) -> Float[Tensor, "b c h2 w2"]:
    """A target's value at another (height, width), bilinearly with antialiasing.

    Labels become shares of area, which is what a coarse network's pixel can be asked for. Pixels
    that are not compared do not count; where most are, the result is not compared either.
    """
    if tuple(value.shape[-2:]) == tuple(size):
        return value
    known = (value >= 0).to(value.dtype)
    both = torch.cat([value * known, known])
    amount, weight = F.interpolate(both, tuple(size), mode="bilinear", antialias=True).chunk(2)
    return torch.where(weight >= 0.5, (amount / weight.clamp_min(0.5)).clamp(0, 1), APART)


def split_class(given: Given, labels: Sequence[str]) -> tuple[int, Given] | None:
    """(class, mask) of a target like ``cone=mask.png`` or ``mask,of=cone:mask.png``; None if it
    names no class.

    Raises:
        TargetError: what stands for the class is none; suggests the nearest names.
    """
    if given.kind == "mask":
        if "of" not in given.settings:
            raise TargetError(
                f"The mask {given.text!r} does not say of which class it is.",
                remedy=f"Name it: {given.as_(f'mask,of={labels[-1]}')}.",
            )
        return _class(given.settings["of"], labels, given), given
    # A file may have the sign in its own name, or in that of its folder.
    if given.kind is not None or given.is_file or not isinstance(given.value, str):
        return None
    name, sign, path = given.value.partition("=")
    if not sign or "/" in name or "\\" in name:
        return None
    index = _class(name, labels, given)
    if not path.strip():
        raise TargetError(
            f"The target {given.text!r} names no file.",
            remedy=f"Give a mask, white where the class is to be: {foreign(name)}=mask.png.",
        )
    mask = Given.of(path.strip(), ("mask",), given.moved)
    said = str(index) if set(name) & set(",:") else name  # as it may stand in a head
    return index, replace(mask, kind="mask", settings={**mask.settings, "of": said})


def _class(name: str, labels: Sequence[str], given: Given) -> int:
    try:
        return Labels(labels).find(name)
    except TargetError as error:
        raise TargetError(
            f"The target {given.text!r} names no class of the network. {error.message}",
            remedy=error.remedy,
        ) from None
