"""Single networks beside a pipeline: control networks, autoencoders, what sees pictures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open

from ppap_host.files.errors import CheckpointError
from ppap_host.files.models import CONFIG, ModelFolder, from_pretrained

_LOADS: Any = DiffusionPipeline.from_pretrained
# Newer ones call it dtype, and warn of the older name.
DTYPE = "dtype" if "dtype" in inspect.unwrap(_LOADS).__code__.co_consts else "torch_dtype"
"""What loaders call the number format of weights."""

_NAMES = ("diffusion_pytorch_model", "model")  # of diffusers, of transformers


def read_network(
    source: str,
    what: str,
    remedy: str,
    kind_of: Callable[[Mapping[str, Any]], Any],
    dtype: torch.dtype | None = None,
    **options: Any,
) -> tuple[Any, tuple[Path, ...]]:
    """A network from a folder or the hub, and the files that it was read from.

    Args:
        source: hub name or folder, with a configuration and safetensors weights.
        what: it should be, for messages.
        remedy: what can be given instead.
        kind_of: the class, from the configuration; None where it is no such network.
        dtype: number format; None takes that of the file.
        options: further ones of its ``from_pretrained``.

    Raises:
        CheckpointError: it cannot be found, read or downloaded, or is something else.
    """
    folder = ModelFolder(source, what, remedy)
    described = folder.json(CONFIG)
    kind = None if described is None else kind_of(described)
    if kind is None:
        raise CheckpointError(f"{source!r} gives no {what}.", remedy=remedy)
    weights, variant = _weights(folder)
    options |= {DTYPE: dtype or formats(weights).get(weights[0].parent.name, torch.float32)}
    if variant:
        options["variant"] = variant
    try:
        network = from_pretrained(kind, weights[0].parent, use_safetensors=True, **options)
    # diffusers, transformers and safetensors each have exceptions of their own.
    except Exception as error:
        raise CheckpointError(
            f"{source!r} gives no {what} ({type(error).__name__}).", remedy=remedy
        ) from error
    return network, folder.files


def _weights(folder: ModelFolder) -> tuple[list[Path], str]:
    """The first set of weights that there is, and its variant."""
    for name in _NAMES:
        for variant, file in (("", f"{name}.safetensors"), ("fp16", f"{name}.fp16.safetensors")):
            if (whole := folder.find(file)) is not None:
                return [whole], variant
        index = f"{name}.safetensors.index.json"
        if folder.find(index) is not None:
            return [folder.need(part) for part in folder.parts(index)], ""
    return [folder.need(f"{_NAMES[0]}.safetensors")], ""


def formats(files: Sequence[Path]) -> dict[str, torch.dtype]:
    """The number format of each folder's weights, as its files have it; float32 where they differ.

    Args:
        files: all that are read; those that are no safetensors do not count.
    """
    kinds = {"F16": torch.float16, "BF16": torch.bfloat16}
    found: dict[str, torch.dtype] = {}
    for path in files:
        if path.suffix != ".safetensors":
            continue
        try:
            with safe_open(path, "pt") as file:
                stored = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
        # What is damaged is told by who reads it.
        except Exception:
            continue
        each = {kinds.get(kind, torch.float32) for kind in stored if kind.startswith(("F", "B"))}
        each.add(found.get(path.parent.name, next(iter(each), torch.float32)))
        one = each.pop()
        found[path.parent.name] = torch.float32 if each else one
    return found
