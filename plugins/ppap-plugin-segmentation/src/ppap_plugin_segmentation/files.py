"""What the loaders of all sources share: naming classes, and saying what went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ppap_host.files.errors import CheckpointError
from ppap_host.files.models import first_line, read_json

LABELS = "labels.json"
REMEDY = (
    "Give --model a folder or hub name of a semantic segmentation model with safetensors weights, "
    "one saved by segmentation-models-pytorch's save_pretrained or one for transformers such as "
    "nvidia/segformer-b0-finetuned-ade-512-512, or torchvision:deeplabv3_resnet50."
)


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
    names = stored = read_json(path)
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


def three(values: Any) -> tuple[float, float, float]:
    """Numbers of red, green and blue.

    Raises:
        ValueError: there are more or less than three.
    """
    red, green, blue = (float(v) for v in values)
    return red, green, blue


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turns every way in which a library fails into a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        # The libraries have exceptions of their own; whichever it was, this gives no model.
        remedy = REMEDY
        if isinstance(error, ImportError):
            remedy = "Install the library that is missing where ppap is installed (pip install)."
        raise CheckpointError(
            f"The segmentation model {name!r} cannot be loaded: {first_line(error)}", remedy=remedy
        ) from error
