"""Loads segmentation models of three libraries, with their preprocessing and class names.

Read are folders that ``save_pretrained`` of segmentation-models-pytorch wrote, of any of its
architectures, transformers' models for semantic segmentation and its MaskFormer, Mask2Former and
EoMT, all with safetensors weights, and torchvision's segmentation models. Nothing is ever unpickled
or run.
"""

from __future__ import annotations

from ppap_host.files.errors import CheckpointError
from ppap_host.files.models import CONFIG, ModelFolder
from ppap_plugin_segmentation.files import REMEDY
from ppap_plugin_segmentation.from_smp import load_smp
from ppap_plugin_segmentation.from_torchvision import PREFIX, load_torchvision
from ppap_plugin_segmentation.from_transformers import load_transformers
from ppap_plugin_segmentation.model import Checkpoint


def load_checkpoint(name: str) -> Checkpoint:
    """Loads a segmentation model, its preprocessing and the names of its classes.

    Args:
        name: a local folder, a hub name, optionally ``@revision``, or a model of torchvision
            (:func:`~ppap_plugin_segmentation.from_torchvision.load_torchvision` says how).

    Raises:
        CheckpointError: it cannot be found or downloaded, is no semantic segmentation model, has no
            safetensors weights, lacks weights, or its preprocessing is not understood.
    """
    if name.startswith(PREFIX):
        return load_torchvision(name)
    folder = ModelFolder(name, "segmentation model", REMEDY)
    folder.need(CONFIG)
    config = folder.json(CONFIG) or {}
    if "model_type" in config:
        return load_transformers(folder, config)
    if "_model_class" in config:
        return load_smp(folder, config)
    raise CheckpointError(
        f"The config.json of the model {name!r} names neither an architecture of "
        "segmentation-models-pytorch (_model_class) nor one of transformers (model_type).",
        remedy=REMEDY,
    )
