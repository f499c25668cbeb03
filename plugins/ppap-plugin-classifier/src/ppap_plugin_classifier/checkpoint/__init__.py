"""Loads classifiers from timm, torchvision or transformers, with their labels and preprocessing.

Each library has a module of its own here. They are imported when a model of theirs is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ppap_host.files.checkpoints import conversion
from ppap_host.files.errors import CheckpointError, foreign
from ppap_host.files.models import CONFIG, PICKLES, ModelFolder, own_path
from ppap_host.guides.preprocessing import accepted
from ppap_plugin_classifier.checkpoint import from_timm
from ppap_plugin_classifier.checkpoint.files import REMEDY, Checkpoint

__all__ = ["Checkpoint", "load_checkpoint"]


def load_checkpoint(name: str) -> Checkpoint:
    """Loads a classifier, its labels and its preprocessing; never unpickles or runs anything.

    Args:
        name: one of

            - a local folder with ``config.json`` and ``model.safetensors``, in timm's or in
              transformers' format, also written ``local-dir:FOLDER``;
            - a ``.safetensors`` file with a ``config.json`` beside it;
            - a hub name, ``owner/name`` or ``hf-hub:owner/name``, optionally ``@revision``, of
              either format;
            - the name of a pretrained model of timm, with or without its tag;
            - ``ARCHITECTURE:FILE``: weights for an architecture of timm with its usual
              preprocessing, safetensors or of ``torch.save``, also a training checkpoint; the
              number of classes is that of the file, the labels are ImageNet's where it has as many,
              else numbers;
            - ``torchvision:ARCHITECTURE``, ``torchvision:ARCHITECTURE.WEIGHTS`` or
              ``torchvision:ARCHITECTURE:FILE``, see
              :func:`ppap_plugin_classifier.checkpoint.from_torchvision.load`.

            A ``config.json`` that names ``architectures`` or a ``model_type`` is transformers',
            one that names an ``architecture`` timm's.

    Raises:
        CheckpointError: it cannot be found or downloaded, is no classifier of RGB images, has no
            weights that can be read, these do not fit, or its library is not installed.
    """
    found = _found(name)
    remarks = list(found.remarks)
    preparation = accepted(found.network, found.preparation, name, remarks)
    return replace(found, preparation=preparation, remarks=tuple(remarks))


def _found(name: str) -> Checkpoint:
    prefix, _, rest = name.partition(":")
    if prefix == "torchvision" and rest:
        from ppap_plugin_classifier.checkpoint import from_torchvision

        return from_torchvision.load(name, rest)
    if prefix in ("hf-hub", "hf_hub") and rest:
        return _described(name, ModelFolder(rest, "classifier", REMEDY))
    if prefix == "local-dir" and rest:
        return _described(name, _folder(name, own_path(rest)))
    local = own_path(name)
    if os.path.isdir(local):  # Path.is_dir raises for names that are too long
        return _described(name, _folder(name, local))
    # "C:\weights.safetensors" is a file of Windows, not one of the architecture C.
    if rest and len(prefix) > 1 and not os.path.exists(local):
        if rest.lower().endswith((".safetensors", *PICKLES)):
            return from_timm.load_file(name, prefix, own_path(rest))
    elif name.lower().endswith(".safetensors"):
        if not local.is_file():
            raise CheckpointError(f"There is no model file {name!r}.", remedy=REMEDY)
        return _described(name, _folder(name, local.parent), local)
    if name.lower().endswith(PICKLES):
        raise CheckpointError(
            f"The model file {name!r} is a pickle of weights, which does not say what network "
            "they are for.",
            remedy="Write ARCHITECTURE:FILE for an architecture of timm, such as "
            f"{foreign(f'resnet18:{name}')}, or torchvision:ARCHITECTURE:FILE. For a folder with a "
            "config.json convert it where you trust it: " + conversion(name),
        )
    if "/" in name or name.startswith((".", "~")) or "\\" in name:
        return _described(name, ModelFolder(name, "classifier", REMEDY))
    return from_timm.load_pretrained(name)


def _folder(name: str, folder: Path) -> ModelFolder:
    if not folder.is_dir():
        raise CheckpointError(f"There is no model folder {name!r}.", remedy=REMEDY)
    return ModelFolder(str(folder.absolute()), "classifier", REMEDY)


def _described(name: str, folder: ModelFolder, weights: Path | None = None) -> Checkpoint:
    """A folder or repository in either format, or one file of it."""
    folder.name = name
    config = folder.json(CONFIG)
    if config is None:
        if folder.folder is not None:
            folder.remedy = (
                "It says which architecture the weights are for. Without one, write "
                "ARCHITECTURE:FILE.safetensors, such as resnet18:model.safetensors."
            )
        folder.need(CONFIG)
        config = {}
    if _is_transformers(config):
        from ppap_plugin_classifier.checkpoint import from_transformers

        return from_transformers.load(folder, config, weights)
    return from_timm.load_described(folder, config, weights)


def _is_transformers(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is one of transformers; timm has ``architecture``, singular.

    A model of timm that transformers wrapped has both, and is timm's.
    """
    if "architecture" in config:
        return False
    return isinstance(config.get("architectures"), list) or "model_type" in config
