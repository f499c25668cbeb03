"""Loads models of transformers: for semantic segmentation, and those that classify masks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Resampling
from torch import Tensor

from ppap_host.files.errors import CheckpointError
from ppap_plugin_segmentation.files import REMEDY, explained, three
from ppap_plugin_segmentation.model import Checkpoint, Preparation, SegmentationNetwork
from ppap_plugin_segmentation.queries import log_scores

_MODES = {Resampling.BICUBIC: "bicubic", Resampling.BILINEAR: "bilinear"}
_CLASSIFY_MASKS = ("maskformer", "mask2former")


def load_transformers(name: str, source: str, local: bool) -> Checkpoint:
    """Loads a model of transformers, its image processor and the names of its classes.

    Args:
        name: as the user gave it.
        source: a local folder or a hub name.
        local: whether it is a folder.

    Raises:
        CheckpointError: see :func:`~ppap_plugin_segmentation.checkpoint.load_checkpoint`.
    """
    with explained(name):
        from transformers import (
            AutoConfig,
            AutoImageProcessor,
            AutoModelForSemanticSegmentation,
            AutoModelForUniversalSegmentation,
        )
        from transformers.utils import cached_file

        config = AutoConfig.from_pretrained(source)
        by_masks = config.model_type in _CLASSIFY_MASKS
        kind = AutoModelForUniversalSegmentation if by_masks else AutoModelForSemanticSegmentation
        with _quiet(local):
            model, report = kind.from_pretrained(
                source, config=config, use_safetensors=True, dtype=torch.float32,
                output_loading_info=True,
            )  # fmt: skip
        processor = AutoImageProcessor.from_pretrained(source)
        found = cached_file(source, "config.json")
    # The criterion is of no use here.
    lost = sorted(key for key in report["missing_keys"] if not key.startswith("criterion."))
    if lost:
        raise CheckpointError(
            f"The segmentation model {name!r} lacks {len(lost)} of its weights, such as "
            f"{lost[0]!r}.",
            remedy="It may be a backbone without its segmentation head. " + REMEDY,
        )
    here = Path(found).parent
    files = [here / "config.json", here / "preprocessor_config.json", *here.glob("*.safetensors")]
    named = config.id2label
    network = SegmentationNetwork(model, _from_queries if by_masks else _logits, "pixel_values")
    return Checkpoint(
        network.eval().requires_grad_(False),
        read_processor(name, processor),
        tuple(str(named[i]) for i in range(len(named))),
        tuple(sorted(file for file in files if file.exists())),
        bool(getattr(processor, "do_reduce_labels", False)),
        tuple(
            int(number)
            for number in (
                getattr(processor, "ignore_index", None),
                getattr(config, "semantic_loss_ignore_index", None),
            )
            if number is not None
        ),
    )


def _logits(output: Any) -> Tensor:
    logits: Tensor = output.logits
    return logits


def _from_queries(output: Any) -> Tensor:
    return log_scores(output.class_queries_logits, output.masks_queries_logits)


def read_processor(name: str, processor: Any) -> Preparation:
    """The preprocessing that a transformers image processor is configured for.

    Raises:
        CheckpointError: it resizes in a way that is not understood.
    """
    found = Preparation()
    if getattr(processor, "do_resize", False):
        wanted = getattr(processor, "size", None) or {}
        sides = ("height", "width", "shortest_edge", "longest_edge")
        height, width, edge, most = (_entry(wanted, side) for side in sides)
        resample = getattr(processor, "resample", None)
        if not ((height and width) or edge) or resample not in _MODES:
            raise CheckpointError(
                f"The image processor {type(processor).__name__} of the model {name!r} resizes "
                f"to {wanted or 'no size'} with filter {resample}, which is not supported.",
                remedy="Use a model whose preprocessor_config.json gives a height and a width or a "
                "shortest edge, and bilinear or bicubic resampling.",
            )
        size = (height, width) if height and width else None
        # What MaskFormer and Mask2Former call so enlarges the image; DPT pads it.
        divisor = None
        if type(processor).__name__.startswith(("MaskFormer", "Mask2Former")):
            divisor = getattr(processor, "size_divisor", None)
        found = replace(
            found,
            size=size,
            shortest_edge=None if size else edge,
            longest_edge=None if size else most,
            multiple_of=int(divisor or getattr(processor, "ensure_multiple_of", None) or 1),
            upwards=bool(divisor),
            mode=_MODES[Resampling(resample)],
        )
    rescale = float(processor.rescale_factor) if getattr(processor, "do_rescale", True) else 1.0
    # MobileViT's processor has no mean; it only rescales.
    normalise = getattr(processor, "do_normalize", None) or False
    return replace(
        found,
        scale=rescale,
        mean=three(processor.image_mean) if normalise else (0.0, 0.0, 0.0),
        std=three(processor.image_std) if normalise else (1.0, 1.0, 1.0),
        swapped=bool(getattr(processor, "do_flip_channel_order", False)),
    )


def _entry(size: Any, side: str) -> int | None:
    value = size.get(side) if hasattr(size, "get") else getattr(size, side, None)
    return None if value is None else int(value)


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
