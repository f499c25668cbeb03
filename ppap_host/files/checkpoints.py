"""Reads model files that come from anywhere, and says what is wrong with them.

Nothing in a file is ever run: tensors are read by safetensors, or by torch with its unpickler
restricted to tensors. Backbones and guides of all plugins read their state dicts here.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ppap_host.files.errors import CheckpointError

_NAMED_PROBLEMS = 3
_AGAIN = "Download the file again and compare its size with the server's."


def require_layout(
    state: Mapping[str, Tensor],
    layout: Mapping[str, tuple[int, ...]],
    identify: Callable[[Mapping[str, tuple[int, ...]]], Sequence[str]] = lambda shapes: (),
    source: str = "",
) -> None:
    """Checks that a state dict has just the tensors that a configuration needs.

    Args:
        state: tensors by their published names.
        layout: shape of each tensor that must be there.
        identify: names of published models that tensors of these shapes may belong to.
        source: where the published files lie, for the remedy.

    Raises:
        CheckpointError: names, shapes or number formats do not fit; it names the first that differ
            and, where ``identify`` can tell, what the file really is.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    problems = {
        "missing": [f"{name} {shape}" for name, shape in layout.items() if name not in shapes],
        "of another shape": [
            f"{name} is {shapes[name]}, not {shape}"
            for name, shape in layout.items()
            if name in shapes and shapes[name] != shape
        ],
        "unexpected": [f"{name} {shape}" for name, shape in shapes.items() if name not in layout],
        "not floating-point": [
            f"{name} is {tensor.dtype}"
            for name, tensor in state.items()
            if name in layout and not tensor.is_floating_point()
        ],
    }
    found = [
        f"{len(items)} {kind}: {'; '.join(items[:_NAMED_PROBLEMS])}"
        f"{'; ...' if len(items) > _NAMED_PROBLEMS else ''}"
        for kind, items in problems.items()
        if items
    ]
    if not found:
        return
    message = f"The tensors do not fit the configuration ({'. '.join(found)})."
    names = identify(shapes)
    if names:
        raise CheckpointError(
            f"{message} They have the shapes of the published {' or '.join(names)}.",
            remedy="Load the file with that configuration, or give the right file"
            f"{f' ({source})' if source else ''}.",
        )
    raise CheckpointError(
        message, remedy="Give the flags the file was trained with, or the file of these flags."
    )


def read_head(path: str | os.PathLike[str], size: int = 512) -> bytes:
    """The first bytes of a model file that may be one.

    Raises:
        CheckpointError: the file is missing, unreadable, empty, a web page, or a Git LFS pointer.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(size)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such file.", remedy=_AGAIN) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from error
    if not head:
        raise CheckpointError(f"{path}: the file is empty.", remedy=_AGAIN)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise CheckpointError(
            f"{path}: the file is a web page (HTML or XML), not weights.",
            remedy="The server answered with a message instead of the file: read the page, "
            "then download the file again.",
        )
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path}: the file is a Git LFS pointer, not weights.", remedy="Run 'git lfs pull'."
        )
    return head


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read named tensors from a file without running anything in it.

    Files of ``torch.save`` (zip archives are mapped into memory, the older format is read
    whole) and safetensors files are told apart by their first bytes, not by their names.

    Args:
        path: the file.

    Returns:
        Tensors on the CPU, which may be backed by the file.

    Raises:
        CheckpointError: if the file is missing, unreadable, empty, cut short, a web page, or
            holds anything but named tensors.
    """
    path = Path(path)
    head = read_head(path)
    is_zip = head.startswith(b"PK\x03\x04")
    is_pickle = head.startswith(b"\x80")
    is_safetensors = head[8:9] == b"{"
    if not (is_zip or is_pickle or is_safetensors):
        raise CheckpointError(
            f"{path}: neither a PyTorch nor a safetensors file (it starts with {head[:8]!r}).",
            remedy=_AGAIN,
        )
    # A zip archive's table of contents is at its end.
    if is_zip and not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: the file is cut short.", remedy=_AGAIN)
    try:
        if is_safetensors:
            content: Any = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    # A damaged or hostile file can make the readers raise anything. Their own words are left to
    # the cause: torch's advise to load without its protection.
    except Exception as error:
        raise CheckpointError(
            f"{path}: the file is damaged or cut short, or holds something else than tensors "
            "(nothing in it was run).",
            remedy=_AGAIN,
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}, not a state dict of named tensors."
        )
    others = [name for name, value in content.items() if not _is_plain(value)]
    if others:
        raise CheckpointError(
            f"{path}: not a plain state dict: "
            f"{', '.join(map(repr, others[:_NAMED_PROBLEMS]))} "
            f"{'is' if len(others) == 1 else 'are'} no plain tensor.",
            remedy="Save the state dict of the network alone to a file of its own.",
        )
    return content


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor of numbers in memory: not sparse, nested, quantised or without any."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_nested)
    )
