"""Loads depth models of transformers, and what they want done to an image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ppap_host.files.models import CONFIG, ModelFolder
from ppap_host.files.pretrained import load_pretrained
from ppap_host.guides.preprocessing import Preparation, accepted, on_grid, read_processor

# Depth Pro is none of them: before its field of view is applied, it predicts inverse depth.
_ALWAYS_METRIC = ("zoedepth", "glpn")
_REMEDY = (
    "Give --model a folder or hub name of a depth estimation model with safetensors weights, such "
    "as Intel/dpt-large or depth-anything/Depth-Anything-V2-Small-hf."
)


class DepthNetwork(nn.Module):
    """A depth model of transformers as a plain function of pixels.

    Args:
        model: what has a ``predicted_depth``.
        singly: whether it is to see each image of a batch alone. A ZoeDepth with several heads, one
            for rooms and one for streets, lets the images of a batch vote on the head for all.
    """

    def __init__(self, model: nn.Module, singly: bool = False) -> None:
        super().__init__()
        self.model = model
        self.singly = singly

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b h2 w2"]:
        """The predicted map: inverse depth (relative models) or metres (metric ones)."""
        parts = pixels.split(1) if self.singly else (pixels,)
        maps = [self.model(pixel_values=part).predicted_depth for part in parts]
        depth: Tensor = torch.cat(maps) if self.singly else maps[0]
        return depth.squeeze(1) if depth.ndim == 4 else depth


@dataclass(frozen=True)
class Checkpoint:
    """A loaded depth model.

    Attributes:
        network: frozen, in evaluation mode.
        metric: whether it predicts metres, not inverse depth up to scale and shift.
        files: what was read.
        remarks: what had to be chosen or guessed, a sentence each.
    """

    network: DepthNetwork
    preparation: Preparation
    metric: bool
    files: tuple[Path, ...]
    remarks: tuple[str, ...] = ()


def load_checkpoint(name: str) -> Checkpoint:
    """Loads a depth model and its preprocessing; never unpickles or runs anything.

    Args:
        name: a local folder or a hub name, optionally ``@revision``.

    Raises:
        CheckpointError: it cannot be found or downloaded, is no depth model, has no safetensors
            weights, lacks weights, or its image processor is not understood.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForDepthEstimation

    folder = ModelFolder(name, "depth model", _REMEDY)
    folder.need(CONFIG)
    described = folder.json(CONFIG) or {}
    if described.get("max_depth", 1) is None:
        described["max_depth"] = 1  # as Depth Anything's first releases in transformers read it
    loaded = load_pretrained(
        folder,
        described,
        config=AutoConfig,
        model=AutoModelForDepthEstimation,
        processor=AutoImageProcessor,
    )
    config = loaded.config
    heads = len(getattr(config, "bin_configurations", None) or ())
    network = DepthNetwork(loaded.model, singly=heads > 1).eval().requires_grad_(False)
    preparation = _fitting(on_grid(read_processor(name, loaded.processor), config), config)
    preparation = accepted(network, preparation, name, folder.remarks)
    return Checkpoint(
        network, preparation, predicts_metres(config), folder.files, tuple(folder.remarks)
    )


def predicts_metres(config: Any) -> bool:
    """Whether a depth model of transformers with this configuration predicts metres."""
    kind = getattr(config, "depth_estimation_type", "relative")
    return config.model_type in _ALWAYS_METRIC or kind == "metric"


def _fitting(preparation: Preparation, config: Any) -> Preparation:
    """Without the sizes that transformers' DPT refuses, whatever its image processor says.

    With a ViT of its own it takes any grid of patches for a square, and with BiT (MiDaS hybrid)
    nothing but images of the size it was trained with. Other backbones take any size.
    """
    hybrid = bool(getattr(config, "is_hybrid", False))
    if config.model_type != "dpt" or (config.backbone_config is not None and not hybrid):
        return preparation
    trained = config.image_size
    trained = (trained, trained) if isinstance(trained, int) else tuple(trained)
    if hybrid:
        return replace(preparation, size=trained, keep_aspect_ratio=False, multiple_of=1.0)
    side = max(preparation.size or trained)
    return replace(preparation, size=(side, side), shortest_edge=None, keep_aspect_ratio=False)
