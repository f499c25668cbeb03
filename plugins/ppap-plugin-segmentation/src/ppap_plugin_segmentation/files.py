"""What the loaders of all sources share: finding files, naming classes, saying what went wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ppap_host.files.errors import CheckpointError

ALBUMENTATIONS = "albumentations_config_eval.json"
LABELS = "labels.json"
REMEDY = (
    "Give --model a folder or hub name of a semantic segmentation model with safetensors weights, "
    "one saved by segmentation-models-pytorch's save_pretrained or one for transformers such as "
    "nvidia/segformer-b0-finetuned-ade-512-512, or torchvision:deeplabv3_resnet50."
)


def fetched(source: str, file: str) -> Path | None:
    """The file in a folder, or in the hub's cache after a download; None if there is none."""
    if os.path.isdir(source):
        path = Path(source) / file
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(source, file))
    except LocalEntryNotFoundError:
        # Derived from the other, but means no connection, not that there is no such file. What
        # may be absent is taken as absent.
        if file in (ALBUMENTATIONS, LABELS):
            return None
        raise
    except EntryNotFoundError:
        return None


def read_json(path: Path, name: str) -> Any:
    """The content of a file of the model ``name``.

    Raises:
        CheckpointError: it cannot be read or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"The {path.name} of the model {name!r} is not readable JSON ({error}).",
            remedy="Save or download the model again.",
        ) from None


def class_names(name: str, path: Path | None, count: int) -> tuple[str, ...]:
    """Names from a ``labels.json``: a list in the order of the classes, or {"0": name, ...}.

    Args:
        path: of that file; without one the classes are numbered.
        count: outputs of the network. One is a class against its background.

    Raises:
        CheckpointError: the file holds something else, or names for another number of classes.
    """
    shown = 2 if count == 1 else count
    if path is None:
        plain = [f"class {i}" for i in range(shown)]
        return ("background", "foreground") if count == 1 else tuple(plain)
    names = stored = read_json(path, name)
    if isinstance(stored, dict):
        names = [stored.get(str(i)) for i in range(len(stored))]
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise CheckpointError(
            f"The {LABELS} of the model {name!r} is no list of names.",
            remedy='Write a JSON list such as ["wall", "floor"], in the order of the classes.',
        )
    if count == 1 and len(names) == 1:
        names = ["background", *names]
    if len(names) != shown:
        raise CheckpointError(
            f"The {LABELS} of the model {name!r} has {len(names)} names for {shown} classes.",
            remedy="Give one name for each class, in their order.",
        )
    return tuple(names)


def three(values: Any) -> tuple[float, ...]:
    """Numbers of red, green and blue.

    Raises:
        ValueError: there are more or less than three.
    """
    numbers = tuple(float(v) for v in values)
    if len(numbers) != 3:
        raise ValueError(f"{len(numbers)} values for three channels")
    return numbers


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turns every way in which loading fails into a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        # The libraries, their hub client and safetensors each have exceptions of their own;
        # whichever it was, this name does not give a model.
        lines = str(error).strip().splitlines() or [repr(error)]
        # torch names the weights that do not fit on the second line.
        reason = " ".join(line.strip() for line in lines[:2])
        reason = reason if len(reason) < 300 else reason[:300] + "..."
        remedy = REMEDY
        if isinstance(error, ImportError):
            remedy = "Install the library that is missing where ppap is installed (pip install)."
        raise CheckpointError(
            f"The segmentation model {name!r} cannot be loaded: {reason}", remedy=remedy
        ) from error
