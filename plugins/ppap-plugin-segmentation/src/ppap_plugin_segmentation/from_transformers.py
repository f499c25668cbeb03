"""Loads models of transformers: for semantic segmentation, and those that classify masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ppap_host.files.models import ModelFolder
from ppap_host.files.pretrained import load_pretrained
from ppap_host.guides.preprocessing import accepted, on_grid, read_processor
from ppap_plugin_segmentation.files import explained
from ppap_plugin_segmentation.model import Checkpoint, SegmentationNetwork
from ppap_plugin_segmentation.queries import log_scores

_CLASSIFY_MASKS = ("maskformer", "mask2former", "eomt")


def load_transformers(folder: ModelFolder, config: Mapping[str, Any]) -> Checkpoint:
    """Loads a model of transformers, its image processor and the names of its classes.

    Args:
        folder: where it is.
        config: the content of its ``config.json``.

    Raises:
        CheckpointError: see :func:`~ppap_plugin_segmentation.checkpoint.load_checkpoint`.
    """
    with explained(folder.name):
        from transformers import (
            AutoConfig,
            AutoImageProcessor,
            AutoModelForSemanticSegmentation,
            AutoModelForUniversalSegmentation,
        )

    by_masks = config.get("model_type") in _CLASSIFY_MASKS
    loaded = load_pretrained(
        folder,
        config,
        config=AutoConfig,
        model=AutoModelForUniversalSegmentation if by_masks else AutoModelForSemanticSegmentation,
        processor=AutoImageProcessor,
        unneeded=("criterion.",),
    )
    logits = _from_queries if by_masks else _logits
    network = SegmentationNetwork(loaded.model, logits, "pixel_values").eval().requires_grad_(False)
    preparation = on_grid(read_processor(folder.name, loaded.processor), loaded.config)
    preparation = accepted(network, preparation, folder.name, folder.remarks)
    return Checkpoint(
        network,
        preparation,
        _both(loaded.labels),
        folder.files,
        bool(getattr(loaded.processor, "do_reduce_labels", False)),
        tuple(
            int(number)
            for number in (
                getattr(loaded.processor, "ignore_index", None),
                getattr(loaded.config, "semantic_loss_ignore_index", None),
            )
            if number is not None
        ),
        tuple(folder.remarks),
    )


def _both(labels: tuple[str, ...]) -> tuple[str, ...]:
    """The names of classes; those of one output are two, of which the first is the background."""
    if len(labels) > 1:
        return labels
    return "background", "foreground" if labels == ("LABEL_0",) else labels[0]


def _logits(output: Any) -> Tensor:
    logits: Tensor = output.logits
    return logits


def _from_queries(output: Any) -> Tensor:
    return log_scores(output.class_queries_logits, output.masks_queries_logits)
