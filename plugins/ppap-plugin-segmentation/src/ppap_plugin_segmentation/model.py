"""A loaded segmentation model of whichever library, as the guide uses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SegmentationNetwork(nn.Module):
    """A segmentation model of any library as a plain function of pixels.

    Args:
        model: what turns pixels into something that holds logits.
        logits: takes them, [b, C, h, w], from what the model returns.
        keyword: name of the model's argument; None passes the pixels by position.
    """

    def __init__(
        self, model: nn.Module, logits: Callable[[Any], Tensor], keyword: str | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.logits = logits
        self.keyword = keyword

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Logits of the classes, at the model's own resolution.

        A model with a single output, as smp's for binary masks, gets a second class that comes
        first, its background: the softmax of (0, z) is the sigmoid of z.
        """
        keyword = self.keyword
        output: Any = self.model(**{keyword: pixels}) if keyword else self.model(pixels)
        logits = self.logits(output)
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        return logits


@dataclass(frozen=True)
class Preparation:
    """What a checkpoint's preprocessing does to an image, in differentiable torch.

    Resizing antialiases. Bicubic overshoot is not clipped to the 8-bit range, since clipping would
    cut the gradient. Crops and padding are left out: the network is shown the whole picture and
    nothing else.

    Attributes:
        size: (height, width) asked for, None to keep the image's.
        shortest_edge: the shorter side asked for, in place of ``size``; the aspect ratio is kept.
        longest_edge: the longer side that ``shortest_edge`` may lead to at most.
        multiple_of: each side becomes a multiple of this.
        upwards: whether that is the next larger one, not the nearest.
        mode: of torch's interpolation.
        scale: from the 8-bit range to what ``mean`` and ``std`` refer to, usually 1 / 255.
        swapped: whether the network wants blue first.
    """

    size: tuple[int, int] | None = None
    shortest_edge: int | None = None
    longest_edge: int | None = None
    multiple_of: int = 1
    upwards: bool = False
    mode: str = "bilinear"
    scale: float = 1 / 255
    mean: tuple[float, ...] = _IMAGENET_MEAN
    std: tuple[float, ...] = _IMAGENET_STD
    swapped: bool = False

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that the network is given for an image of this size."""
        if self.size is not None:
            height, width = self.size
        elif self.shortest_edge is not None:
            height, width = self._by_edges(height, width, float(self.shortest_edge))
        m = self.multiple_of
        if self.upwards:
            return -(-height // m) * m, -(-width // m) * m
        # A half goes up; Python's round would send 16 to 0 and 48 to 64 for m = 32.
        return max(m, (2 * height + m) // (2 * m) * m), max(m, (2 * width + m) // (2 * m) * m)

    def _by_edges(self, height: int, width: int, edge: float) -> tuple[int, int]:
        short, long = sorted((height, width))
        if self.longest_edge is not None and long / short * edge > self.longest_edge:
            edge = self.longest_edge * short / long
        # The longer side is cut, not rounded, as transformers and torchvision do it.
        sides = round(edge), int(edge * long / short)
        return sides if height <= width else sides[::-1]

    def __call__(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Network input from RGB in [-1, 1]."""
        size = self.output_size(x.shape[-2], x.shape[-1])
        if size != tuple(x.shape[-2:]):
            x = F.interpolate(x, size, mode=self.mode, antialias=True)
        pixels = (x.flip(1) if self.swapped else x).add(1) * (127.5 * self.scale)
        mean, std = pixels.new_tensor(self.mean), pixels.new_tensor(self.std)
        return (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded segmentation model.

    Attributes:
        network: frozen, in evaluation mode.
        labels: names of the classes, in the order of the network's output.
        files: what was read.
        reduce_labels: whether its processor counts the classes of annotations from 1, and leaves
            out 0.
        ignored: numbers in annotations that are not compared, beside the usual 255.
    """

    network: SegmentationNetwork
    preparation: Preparation
    labels: tuple[str, ...]
    files: tuple[Path, ...]
    reduce_labels: bool = False
    ignored: tuple[int, ...] = ()
