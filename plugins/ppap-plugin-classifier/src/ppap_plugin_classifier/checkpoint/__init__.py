"""Loads classifiers from timm, torchvision or transformers, with their labels and preprocessing.

Each library has a module of its own here. They are imported when a model of theirs is asked for.
"""

from __future__ import annotations

import os
from pathlib import Path

from ppap_host.files.errors import CheckpointError
from ppap_plugin_classifier.checkpoint import from_timm
from ppap_plugin_classifier.checkpoint.files import (
    CONFIG,
    PICKLES,
    REMEDY,
    WEIGHTS,
    Checkpoint,
    download,
    named_weights,
    read_config,
)

__all__ = ["Checkpoint", "load_checkpoint"]


def load_checkpoint(name: str) -> Checkpoint:
    """Loads a classifier, its labels and its preprocessing; never unpickles anything.

    Args:
        name: one of

            - a local folder with ``config.json`` and ``model.safetensors``, in timm's or in
              transformers' format, also written ``local-dir:FOLDER``;
            - a ``.safetensors`` file with a ``config.json`` beside it;
            - a hub name, ``owner/name`` or ``hf-hub:owner/name``, optionally ``@revision``, of
              either format;
            - the name of a pretrained model of timm, with or without its tag;
            - ``ARCHITECTURE:FILE.safetensors``: weights for an architecture of timm with its usual
              preprocessing; the number of classes is that of the file, the labels are ImageNet's
              where it has as many, else numbers;
            - ``torchvision:ARCHITECTURE``, ``torchvision:ARCHITECTURE.WEIGHTS`` or
              ``torchvision:ARCHITECTURE:FILE``, see
              :func:`ppap_plugin_classifier.checkpoint.from_torchvision.load`.

            A ``config.json`` that names ``architectures`` or a ``model_type`` is transformers',
            one that names an ``architecture`` timm's.

    Raises:
        CheckpointError: it cannot be found or downloaded, is no classifier of RGB images, has no
            safetensors weights, these do not fit, or its library is not installed.
    """
    prefix, _, rest = name.partition(":")
    if prefix == "torchvision" and rest:
        from ppap_plugin_classifier.checkpoint import from_torchvision

        return from_torchvision.load(name, rest)
    if prefix in ("hf-hub", "hf_hub") and rest:
        return _from_hub(name, rest)
    if prefix == "local-dir" and rest:
        return _from_folder(name, Path(rest).expanduser())
    local = Path(name).expanduser()
    if os.path.isdir(local):  # Path.is_dir raises for names that are too long
        return _from_folder(name, local)
    if name.lower().endswith(PICKLES):
        raise CheckpointError(
            f"The model file {name!r} is a pickle, which may run any program when it is read.",
            remedy="Convert it where you trust it: safetensors.torch.save_file(torch.load(FILE, "
            "weights_only=True), 'model.safetensors'); then give ARCHITECTURE:model.safetensors. "
            "A state dict for torchvision is read as it is: torchvision:ARCHITECTURE:FILE.",
        )
    if name.lower().endswith(".safetensors"):
        # "C:\weights.safetensors" is a file of Windows, not one of the architecture C.
        if rest and len(prefix) > 1 and not os.path.exists(local):
            return from_timm.load_file(name, prefix, Path(rest).expanduser())
        return _from_folder(name, local.parent, local.name)
    looks_local = name.startswith((".", "~", "/")) or name.count("/") > 1 or "\\" in name
    if looks_local:
        raise CheckpointError(f"There is no model folder {name!r}.", remedy=REMEDY)
    if "/" in name:
        return _from_hub(name, name)
    return from_timm.load_pretrained(name)


def _from_folder(name: str, folder: Path, weights: str = "") -> Checkpoint:
    """A folder in either format, or one file of it."""
    if not folder.is_dir() or (weights and not (folder / weights).is_file()):
        kind = "file" if weights else "folder"
        raise CheckpointError(f"There is no model {kind} {name!r}.", remedy=REMEDY)
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"There is no {CONFIG} in {str(folder)!r}.",
            remedy="It says which architecture the weights are for. Without one, write "
            "ARCHITECTURE:FILE.safetensors, such as resnet18:model.safetensors.",
        )
    config = read_config(path)
    if _is_transformers(config):
        from ppap_plugin_classifier.checkpoint import from_transformers

        return from_transformers.load(name, folder, config, weights)
    return from_timm.load_described(name, path, config, named_weights(folder, weights or WEIGHTS))


def _from_hub(name: str, repository: str) -> Checkpoint:
    """A repository in either format."""
    path = download(name, repository, CONFIG)
    config = read_config(path)
    if _is_transformers(config):
        from ppap_plugin_classifier.checkpoint import from_transformers

        from_transformers.fetch(name, repository)
        return from_transformers.load(name, path.parent, config)
    return from_timm.load_described(name, path, config, download(name, repository, WEIGHTS))


def _is_transformers(config: dict[str, object]) -> bool:
    """Whether a ``config.json`` is one of transformers; timm has ``architecture``, singular."""
    if isinstance(config.get("architectures"), list):
        return True
    return "model_type" in config and "architecture" not in config
