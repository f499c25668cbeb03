"""A loaded segmentation model of whichever library, as the guide uses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ppap_host.guides.preprocessing import Preparation


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
class Checkpoint:
    """A loaded segmentation model.

    Attributes:
        network: frozen, in evaluation mode.
        labels: names of the classes, in the order of the network's output.
        files: what was read.
        reduce_labels: whether its processor counts the classes of annotations from 1, and leaves
            out 0.
        ignored: numbers in annotations that are not compared, beside the usual 255.
        remarks: what had to be chosen or guessed, a sentence each.
    """

    network: SegmentationNetwork
    preparation: Preparation
    labels: tuple[str, ...]
    files: tuple[Path, ...]
    reduce_labels: bool = False
    ignored: tuple[int, ...] = ()
    remarks: tuple[str, ...] = ()
