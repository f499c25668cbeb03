"""What a segmentation target is, and how it is read.

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

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from ppap_host.files.errors import TargetError, nearest
from ppap_host.files.images import is_map, read_map, read_rgb

APART = -1.0
"""Marks a class that a target does not tell from the rest."""

_IGNORED_8_BIT, _IGNORED_16_BIT = 255, 65535


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


def find_class(name: str, labels: Sequence[str]) -> int | None:
    """Index of a class by its name (case, hyphens and underscores do not matter) or its number."""

    def plain(text: str) -> str:
        return " ".join(text.lower().replace("-", " ").replace("_", " ").split())

    known = [plain(label) for label in labels]
    if plain(name) in known:
        return known.index(plain(name))
    number = name.strip()
    is_number = number.isascii() and number.isdigit() and int(number) < len(labels)
    return int(number) if is_number else None


def split_class(text: str, labels: Sequence[str]) -> tuple[int, Path] | None:
    """(class, path) of a target like ``cone=mask.png``; None if it names no class.

    Raises:
        TargetError: what stands before the sign is no class; suggests the nearest names.
    """
    name, sign, path = text.partition("=")
    # A file may have the sign in its own name, or in that of its folder.
    if not sign or Path(text).is_file() or "/" in name or "\\" in name:
        return None
    index = find_class(name, labels)
    if index is None:
        close = nearest(name.strip(), labels)
        hint = f"Did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
        listed = ", ".join(labels[:30]) + (", ..." if len(labels) > 30 else "")
        raise TargetError(
            f"The target {text!r} names the class {name.strip()!r}, which the network does not "
            "know.",
            remedy=f"{hint}Its classes: {listed}.",
        )
    if not path.strip():
        raise TargetError(
            f"The target {text!r} names no file.",
            remedy=f"Give a mask, white where the class is to be: {name}=mask.png.",
        )
    return index, Path(path.strip())


def read_mask(path: Path, size: tuple[int, int]) -> Float[Tensor, "1 h w"]:
    """A mask as probabilities: white is 1, black is 0, transparent counts as white.

    All black is allowed: it says that the class is to be nowhere.

    Raises:
        TargetError: it cannot be read, or holds nothing brighter than a dark grey, as maps of class
            indices do.
    """
    grey = np.asarray(read_rgb(path, size).convert("L"), dtype=np.float32) / 255
    if 0 < grey.max() < 0.5:
        raise TargetError(
            f"The mask {str(path)!r} has no white pixel, its brightest is {round(grey.max() * 255)}"
            " of 255.",
            remedy="In a mask, the class is white (255) and the rest black (0).",
        )
    return torch.from_numpy(grey.copy())[None]


def read_labels(
    path: Path, size: tuple[int, int], labels: Sequence[str]
) -> Int[Tensor, "1 h w"] | None:
    """Class indices from a label map, -1 where the target says nothing; None for a photograph.

    A label map is a ``.npy``, an image with 16 or 32 bits a pixel, or a PNG with a palette or with
    8-bit grey whose values are all below the number of classes or 255. Any other image is a
    photograph. 255 (65535 with 16 bits) means "not compared", unless the network has such a class.

    Args:
        size: (height, width) to crop (centred, aspect ratio kept) and resize to, without mixing
            neighbours.

    Raises:
        TargetError: it cannot be read; holds an index that is no class, a fraction, or nothing to
            compare; or is a black and white mask, which says nothing of the class it is meant for.
    """
    count = len(labels)
    if is_map(path):
        values = _whole(path, read_map(path))
    else:
        read_rgb(path, size)  # says what is wrong with a file that cannot be decoded
        small = _small_integers(path)
        if small is None:
            return None
        if set(np.unique(small).tolist()) == {0, _IGNORED_8_BIT}:
            raise TargetError(
                f"The target {str(path)!r} is black and white, a mask of a class it does not name.",
                remedy=f"Name the class that white stands for, as in {labels[-1]}={path}.",
            )
        if ((small >= count) & (small != _IGNORED_8_BIT)).any():
            return None
        values = small.astype(np.int32)
    for mark in (_IGNORED_8_BIT, _IGNORED_16_BIT):
        if mark >= count:
            values = np.where(values == mark, -1, values)
    if values.max() >= count:
        raise TargetError(
            f"The label map {str(path)!r} holds the index {values.max()}, but the network has "
            f"{count} classes.",
            remedy=f"Use indices from 0 ({labels[0]}) to {count - 1} ({labels[-1]}), and 255 for "
            "pixels that are not to be compared.",
        )
    if values.max() < 0:
        raise TargetError(
            f"The label map {str(path)!r} holds nothing to compare: all of it is ignored.",
            remedy=f"Use indices from 0 ({labels[0]}) to {count - 1} ({labels[-1]}).",
        )
    fitted = ImageOps.fit(
        Image.fromarray(values.astype(np.int32)), (size[1], size[0]), Image.Resampling.NEAREST
    )
    return torch.from_numpy(np.array(fitted, dtype=np.int64))[None]


def _whole(path: Path, values: NDArray[np.float32]) -> NDArray[np.int32]:
    if (values != np.round(values)).any() or values.min() < 0 or values.max() > 2**24:
        raise TargetError(
            f"The label map {str(path)!r} holds values from {values.min():g} to {values.max():g} "
            "that are no class indices.",
            remedy="A label map holds whole numbers from 0; save a photograph with 8 bits a "
            "channel.",
        )
    return values.astype(np.int32)


def _small_integers(path: Path) -> NDArray[np.uint8] | None:
    """The stored 8-bit numbers of a PNG with a palette or one channel, None for anything else."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(path) as image:
            if image.format != "PNG" or image.mode not in ("1", "P", "L"):
                return None
            return np.asarray(image.convert("L") if image.mode == "1" else image, dtype=np.uint8)
