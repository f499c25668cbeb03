"""Loads depth models through transformers and repeats their preprocessing differentiably."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL.Image import Resampling
from torch import Tensor, nn
from torch.nn import functional as F

from ppap_host.files.errors import CheckpointError

_MODES = {Resampling.BICUBIC: "bicubic", Resampling.BILINEAR: "bilinear"}
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
class Preparation:
    """What a checkpoint's image processor does to an image, in differentiable torch.

    Bicubic overshoot is not clipped to the 8-bit range, since clipping would cut the gradient.
    Padding is left out: it would put pixels into the map that are not in the picture.

    Attributes:
        size: (height, width) asked for, None to keep the image's but for what is over a multiple.
        keep_aspect_ratio: scale both sides alike, by the factor nearer to one.
        multiple_of: each side is rounded to a multiple of this, then cut to a whole number
            (ZoeDepth's own value is 1 / 32).
        mode: of torch's interpolation.
        align_corners: how ZoeDepth resizes, without antialiasing; others antialias.
        rescale: from the 8-bit range to what ``mean`` and ``std`` refer to, usually 1 / 255.
    """

    size: tuple[int, int] | None
    keep_aspect_ratio: bool
    multiple_of: float
    mode: str
    align_corners: bool
    rescale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that the network is given for an image of this size."""
        if self.size is None:
            whole = int(self.multiple_of)
            return max(whole, height // whole * whole), max(whole, width // whole * whole)
        scales = [self.size[0] / height, self.size[1] / width]
        if self.keep_aspect_ratio:
            # The processors' rule: the smaller change wins, a tie goes to the height.
            by_width = abs(1 - scales[1]) < abs(1 - scales[0])
            scales = [scales[1] if by_width else scales[0]] * 2
        m = self.multiple_of
        sides = [round(s * n / m) * m for s, n in zip(scales, (height, width), strict=True)]
        return int(max(m, 1, sides[0])), int(max(m, 1, sides[1]))

    def __call__(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h2 w2"]:
        """Network input from RGB in [-1, 1]."""
        size = self.output_size(x.shape[-2], x.shape[-1])
        if size != tuple(x.shape[-2:]):
            if self.align_corners:
                x = F.interpolate(x, size, mode=self.mode, align_corners=True)
            else:
                x = F.interpolate(x, size, mode=self.mode, antialias=True)
        pixels = (x + 1) * (127.5 * self.rescale)
        mean, std = pixels.new_tensor(self.mean), pixels.new_tensor(self.std)
        return (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded depth model.

    Attributes:
        network: frozen, in evaluation mode.
        metric: whether it predicts metres, not inverse depth up to scale and shift.
        files: what was read.
    """

    network: DepthNetwork
    preparation: Preparation
    metric: bool
    files: tuple[Path, ...]


def load_checkpoint(name: str) -> Checkpoint:
    """Loads a depth model and its preprocessing; never unpickles anything.

    Args:
        name: a local folder or a hub name.

    Raises:
        CheckpointError: it cannot be found or downloaded, is no depth model, has no safetensors
            weights, lacks weights, or its image processor is not understood.
    """
    looks_local = name.startswith((".", "~", "/")) or name.count("/") > 1 or "\\" in name
    folder = Path(name).expanduser()
    local = os.path.isdir(folder)  # Path.is_dir raises for names that are too long
    if looks_local and not local:
        raise CheckpointError(f"There is no model folder {name!r}.", remedy=_REMEDY)
    source = str(folder) if local else name

    from transformers import AutoConfig, AutoImageProcessor, AutoModelForDepthEstimation
    from transformers.utils import cached_file

    try:
        config = AutoConfig.from_pretrained(source)
        if getattr(config, "max_depth", 1) is None:
            config.max_depth = 1  # as Depth Anything's first releases in transformers read it
        with _quiet(local):
            model, report = AutoModelForDepthEstimation.from_pretrained(
                source, config=config, use_safetensors=True, dtype=torch.float32,
                output_loading_info=True,
            )  # fmt: skip
        processor = AutoImageProcessor.from_pretrained(source)
        found = cached_file(source, "config.json")
    except Exception as error:
        # transformers, its hub client and safetensors each have exceptions of their own; whichever
        # it was, this name does not give a model.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(
            f"The depth model {name!r} cannot be loaded: {reason}", remedy=_REMEDY
        ) from error
    if report["missing_keys"]:
        lost = sorted(report["missing_keys"])
        raise CheckpointError(
            f"The depth model {name!r} lacks {len(lost)} of its weights, such as {lost[0]!r}.",
            remedy="It may be a backbone without its depth head. " + _REMEDY,
        )
    heads = len(getattr(config, "bin_configurations", None) or ())
    here = Path(found).parent
    files = [here / "config.json", here / "preprocessor_config.json", *here.glob("*.safetensors")]
    return Checkpoint(
        DepthNetwork(model, singly=heads > 1).eval().requires_grad_(False),
        _fitting(read_preparation(name, processor), config),
        predicts_metres(config),
        tuple(sorted(file for file in files if file.exists())),
    )


def predicts_metres(config: Any) -> bool:
    """Whether a depth model of transformers with this configuration predicts metres."""
    kind = getattr(config, "depth_estimation_type", "relative")
    return config.model_type in _ALWAYS_METRIC or kind == "metric"


@contextmanager
def _quiet(wanted: bool) -> Iterator[None]:
    """No progress bar for what takes no time; downloads keep theirs."""
    from transformers.utils import logging

    if not wanted or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def read_preparation(name: str, processor: Any) -> Preparation:
    """The preprocessing that a transformers image processor is configured for.

    Raises:
        CheckpointError: it resizes in a way that is not understood.
    """
    size: tuple[int, int] | None = None
    mode, multiple = "bilinear", 1.0
    kind = type(processor).__name__
    if getattr(processor, "do_resize", False):
        wanted = getattr(processor, "size", None) or {}
        height, width = (_entry(wanted, side) for side in ("height", "width"))
        resample = getattr(processor, "resample", None)
        # GLPN's asks for no size, but cuts what is over a multiple of its divisor.
        cut = kind.startswith("GLPN") and getattr(processor, "size_divisor", None)
        if not (cut or (height and width)) or resample not in _MODES:
            raise CheckpointError(
                f"The image processor {kind} of the model {name!r} resizes to "
                f"{wanted or 'no size'} with filter {resample}, which is not supported.",
                remedy="Use a model whose preprocessor_config.json gives a height and a width, "
                "and bilinear or bicubic resampling.",
            )
        size = (height, width) if height and width and not cut else None
        mode = _MODES[Resampling(resample)]
        multiple = float(cut or getattr(processor, "ensure_multiple_of", None) or 1)
    rescale = processor.rescale_factor if getattr(processor, "do_rescale", True) else 1.0
    # GLPN's has no mean; it only rescales.
    normalise = getattr(processor, "do_normalize", None) or False
    mean = tuple(processor.image_mean) if normalise else (0.0, 0.0, 0.0)
    std = tuple(processor.image_std) if normalise else (1.0, 1.0, 1.0)
    return Preparation(
        size=size,
        keep_aspect_ratio=bool(getattr(processor, "keep_aspect_ratio", False)),
        multiple_of=multiple,
        mode=mode,
        align_corners=kind.startswith("ZoeDepth"),
        rescale=rescale,
        mean=mean,
        std=std,
    )


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
    return replace(preparation, size=(side, side), keep_aspect_ratio=False)


def _entry(size: Any, side: str) -> int | None:
    value = size.get(side) if hasattr(size, "get") else getattr(size, side, None)
    return None if value is None else int(value)
