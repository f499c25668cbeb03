"""Images to calibrate on: a backbone's own, labelled renders, or a folder of files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ppap_host.experts.harvest import Harvest
from ppap_host.files.errors import OptionError
from ppap_host.files.images import read_rgb, to_pixels
from ppap_host.guides.guide import Guide
from ppap_host.sampling.streams import derived

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Material:
    """What a guide is calibrated on.

    Attributes:
        pixels: 8-bit RGB.
        truth: probabilities of the classes an image, one-hot for labels; None: the teacher's, what
            the off-the-shelf network says of the clean image.
        identity: where both come from, as JSON values.
    """

    pixels: UInt8[Tensor, "n 3 h w"]
    truth: Float[Tensor, "n k"] | None = None
    identity: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pixels)


def from_harvest(made: Harvest, count: int) -> Material:
    """The first ``count`` images of a harvest, all if it has fewer; the teacher says what is right.

    Raises:
        CheckpointError: a file of the harvest cannot be read.
    """
    pixels = made.pixels()[:count]
    return Material(pixels, None, {**made.identity(), "used": len(pixels)})


def from_renders(guide: Guide, count: int, seed: int) -> Material:
    """Fresh renders of the built-in world with their exact classes.

    Args:
        guide: must know the world's classes by name.
        seed: of scenes that no network was trained on.

    Raises:
        TargetError: the guide does not know a class.
    """
    from ppap_host.shapes.renderer import render
    from ppap_host.shapes.scenes import CLASS_NAMES, sample_scenes
    from ppap_plugin_bench.shapes import FRESH_SEED

    scene_seed = FRESH_SEED + 100 + seed
    scenes = sample_scenes(scene_seed, 0, count)
    view = render(scenes)
    size = (view.rgb.shape[-2], view.rgb.shape[-1])
    rows = _class_rows(guide, CLASS_NAMES, size)
    identity = {"kind": "renders", "scene_seed": scene_seed, "used": count}
    return Material(to_pixels(view.rgb), rows[scenes.labels], identity)


def from_folder(
    guide: Guide, folder: Path, size: tuple[int, int], count: int, seed: int, labels: bool
) -> Material:
    """Images of a folder and its sub-folders, at most ``count`` drawn at random.

    Args:
        size: (height, width) they are cropped and resized to.
        labels: whether the first folder below ``folder`` is the name of each image's class, as
            torchvision's ImageFolder has it; without, the teacher says what is right.

    Raises:
        OptionError: there are fewer than two images, or one lies in no folder of a class.
        TargetError: an image cannot be read, or the guide does not know a class.
    """
    if not os.path.isdir(folder):
        raise OptionError(
            f"There is no folder {str(folder)!r}.", remedy="Give a folder of images with --images."
        )
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
    if len(files) < 2:
        raise OptionError(
            f"{str(folder)!r} holds {len(files)} images.",
            remedy=f"Give a folder with more of them ({', '.join(_SUFFIXES)}).",
        )
    if len(files) > count:
        order = np.random.default_rng(derived("calibration images", seed)).permutation(len(files))
        kept = np.sort(order[:count])
        files = [files[i] for i in kept]
    names = [p.relative_to(folder).parts for p in files]
    if labels and any(len(parts) < 2 for parts in names):
        stray = next(p for p, parts in zip(files, names, strict=True) if len(parts) < 2)
        raise OptionError(
            f"{str(stray)!r} lies in no folder of a class.",
            remedy="Put images into one folder a class, or leave out --labels.",
        )
    truth = None
    if labels:
        classes = sorted({parts[0] for parts in names})
        rows = dict(zip(classes, _class_rows(guide, classes, size), strict=True))
        truth = torch.stack([rows[parts[0]] for parts in names])
    pixels = torch.stack(
        [torch.from_numpy(np.array(read_rgb(p, size))).permute(2, 0, 1) for p in files]
    )
    digest = _digest(pixels)
    identity = {"kind": "folder", "used": len(files), "images_sha256": digest}
    return Material(pixels.contiguous(), truth, identity)


def _class_rows(guide: Guide, names: Sequence[str], size: tuple[int, int]) -> Float[Tensor, "c k"]:
    """The row of probabilities that asks for each class."""
    return torch.cat([guide.read_target(n, size).value.detach().cpu().float() for n in names])


def _digest(pixels: Tensor) -> str:
    from hashlib import sha256

    return sha256(pixels.contiguous().numpy().tobytes()).hexdigest()
