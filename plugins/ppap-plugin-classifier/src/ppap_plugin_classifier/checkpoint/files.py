"""What the loaders of all libraries share: the result, and where its files come from."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from torch import nn

from ppap_host.files.errors import CheckpointError
from ppap_host.guides.preprocessing import Preparation
from ppap_plugin_classifier.labels import Labels

PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".tar", ".pkl", ".pickle")
"""Endings of files that may run any program when they are read."""

CONFIG, WEIGHTS = "config.json", "model.safetensors"
"""The two files of a model in timm's and in transformers' folders."""

REMEDY = (
    "Give --model the name of a timm classifier (resnet18.a1_in1k), a hub name (owner/name), a "
    "folder with config.json and model.safetensors, ARCHITECTURE:weights.safetensors, or "
    "torchvision:ARCHITECTURE."
)
"""The ways to write a model, for messages."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded classifier.

    Attributes:
        network: frozen, in evaluation mode; prepared pixels [b, 3, h, w] to logits [b, c].
        preparation: what it wants done to an image.
        labels: as many as the network has classes.
        files: what was read.
    """

    network: nn.Module
    preparation: Preparation
    labels: Labels
    files: tuple[Path, ...]


def library(name: str, package: str) -> Any:
    """A library that only some models need.

    Args:
        name: of the module.
        package: what to install for it.

    Raises:
        CheckpointError: it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise CheckpointError(
            f"This model needs {name}, which cannot be imported ({first_line(error)}).",
            remedy=f"Install it: pip install {package!r}.",
        ) from error


def read_config(path: Path) -> dict[str, Any]:
    """A ``config.json``, whichever library wrote it.

    Raises:
        CheckpointError: it is unreadable, or no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError(f"{type(content).__name__} in place of an object")
    except (OSError, ValueError, TypeError) as error:
        raise undescribed(path, error) from None
    return content


def undescribed(path: Path, error: Exception) -> CheckpointError:
    """What to raise for a ``config.json`` from which no model can be built."""
    return CheckpointError(
        f"The file {str(path)!r} does not describe a model of timm or transformers ({error!r}).",
        remedy="It needs an architecture and num_classes, as timm writes them, or architectures "
        "and a model_type, as transformers does.",
    )


def named_weights(folder: Path, filename: str) -> Path:
    """A weights file of a local folder.

    Raises:
        CheckpointError: it is not there; a pickle in its place is named.
    """
    path = folder / filename
    if path.is_file():
        return path
    others = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
    found = f" Its {others[0]} is a pickle, which is never read." if others else ""
    raise CheckpointError(
        f"There is no {filename} in {str(folder)!r}.{found}",
        remedy="Save the weights with safetensors.torch.save_file.",
    )


@overload
def download(name: str, repository: str, filename: str) -> Path: ...


@overload
def download(name: str, repository: str, filename: str, *, optional: bool) -> Path | None: ...


def download(name: str, repository: str, filename: str, *, optional: bool = False) -> Path | None:
    """One file of a hub repository, from the cache where it is there.

    Args:
        name: what the user wrote, for messages.
        repository: ``owner/name``, with or without ``@revision``.
        optional: a file that is not there, nor in the cache of an unreachable hub, is None.

    Raises:
        CheckpointError: it cannot be had.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    repository, _, revision = repository.partition("@")
    try:
        return Path(hf_hub_download(repository, filename, revision=revision or None))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        if optional:
            return None
        raise CheckpointError(
            f"The classifier {name!r} is not on this machine and the hub cannot be reached.",
            remedy="Connect to the internet, unset HF_HUB_OFFLINE, or give a local folder.",
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"There is no model {repository!r} on the hub, or it is private.", remedy=REMEDY
        ) from error
    except HFValidationError as error:
        raise CheckpointError(f"{name!r} is no name of a hub model.", remedy=REMEDY) from error
    except EntryNotFoundError as error:
        if optional:
            return None
        raise CheckpointError(
            f"The hub model {repository!r} has no {filename}.",
            remedy="Models of timm and transformers are read, with safetensors weights only. "
            + REMEDY,
        ) from error
    except Exception as error:  # gated models, broken connections, a full disk ...
        raise CheckpointError(
            f"The classifier {name!r} cannot be downloaded: {first_line(error)}", remedy=REMEDY
        ) from error


def first_line(error: Exception) -> str:
    """Of what an exception says; its own name if it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else repr(error)
