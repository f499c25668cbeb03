"""Loads segmentation models of three libraries, with their preprocessing and class names.

Read are folders that ``save_pretrained`` of segmentation-models-pytorch wrote, of any of its
architectures, transformers' models for semantic segmentation and its MaskFormer and Mask2Former,
all with safetensors weights, and torchvision's segmentation models. Nothing is ever unpickled:
torchvision's own files are read as tensors alone.
"""

from __future__ import annotations

import os
from pathlib import Path

from ppap_host.files.errors import CheckpointError
from ppap_plugin_segmentation.files import REMEDY, explained, fetched, read_json
from ppap_plugin_segmentation.from_smp import load_smp
from ppap_plugin_segmentation.from_torchvision import PREFIX, load_torchvision
from ppap_plugin_segmentation.from_transformers import load_transformers
from ppap_plugin_segmentation.model import Checkpoint


def load_checkpoint(name: str) -> Checkpoint:
    """Loads a segmentation model, its preprocessing and the names of its classes.

    Args:
        name: a local folder, a hub name, or a model of torchvision
            (:func:`~ppap_plugin_segmentation.from_torchvision.load_torchvision` says how).

    Raises:
        CheckpointError: it cannot be found or downloaded, is no semantic segmentation model, has no
            safetensors weights, lacks weights, or its preprocessing is not understood.
    """
    if name.startswith(PREFIX):
        return load_torchvision(name)
    looks_local = name.startswith((".", "~", "/")) or name.count("/") > 1 or "\\" in name
    folder = Path(name).expanduser()
    local = os.path.isdir(folder)  # Path.is_dir raises for names that are too long
    if looks_local and not local:
        raise CheckpointError(f"There is no model folder {name!r}.", remedy=REMEDY)
    source = str(folder) if local else name
    with explained(name):
        found = fetched(source, "config.json")
    if found is None:
        raise CheckpointError(f"The model {name!r} has no config.json.", remedy=REMEDY)
    config = read_json(found, name)
    if not isinstance(config, dict) or not {"_model_class", "model_type"} & config.keys():
        raise CheckpointError(
            f"The config.json of the model {name!r} names neither an architecture of "
            "segmentation-models-pytorch (_model_class) nor one of transformers (model_type).",
            remedy=REMEDY,
        )
    if "model_type" in config:
        return load_transformers(name, source, local)
    return load_smp(name, source, config)
