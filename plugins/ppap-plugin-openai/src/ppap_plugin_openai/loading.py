"""From OpenAI's files to networks: reads, checks and converts a published state dict."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from ppap_host.files.checkpoints import read_state_dict, renamed, require_layout
from ppap_host.files.errors import CheckpointError
from ppap_plugin_openai.trunk import Entry, Shape, rearranged

_Network = TypeVar("_Network", bound=nn.Module)


def load_network(
    path: str | os.PathLike[str],
    build: Callable[[], _Network],
    entries: Sequence[Entry],
    source: str,
    remarks: list[str] | None = None,
) -> _Network:
    """Reads a file into the network that ``build`` makes.

    Args:
        path: a state dict, as ``torch.save`` or safetensors writes it, or a training checkpoint.
        build: called on the meta device, so that no memory is spent on random weights.
        entries: what the file must hold, and where each tensor goes.
        source: where the published files lie, for errors.
        remarks: what had to be chosen in the file is added here, a sentence each.

    Returns:
        The network in float32 on the CPU, in evaluation mode, its parameters frozen and
        independent of the file.

    Raises:
        CheckpointError: the file is missing or damaged, or does not fit the entries.
    """
    state = read_state_dict(path, remarks, whole=False)
    try:
        state = renamed(state, [entry.name for entry in entries], remarks)
        converted = convert(state, entries, source)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.message}", remedy=error.remedy) from error
    # Built without memory and given the converted tensors, so that there is only one copy.
    with torch.device("meta"):
        network = build()
    network.load_state_dict(converted, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def convert(
    state: Mapping[str, Tensor], entries: Sequence[Entry], source: str
) -> dict[str, Tensor]:
    """Renames and rearranges a published state dict; the values are unchanged.

    Raises:
        CheckpointError: names, shapes or number formats do not fit the entries.
    """
    require_layout(state, {entry.name: entry.shape for entry in entries}, recognise, source)
    converted: dict[str, Tensor] = {}
    for entry in entries:
        converted |= rearranged(state[entry.name], entry)
    return converted


def recognise(shapes: Mapping[str, Shape]) -> list[str]:
    """Everything published by OpenAI that tensors of these names and shapes may belong to."""
    # They load their networks through this module.
    from ppap_plugin_openai import adm, glide

    return [*adm.identify(shapes), *glide.identify(shapes)]


def shapes_in(path: str | os.PathLike[str]) -> dict[str, Shape]:
    """Names and shapes of the tensors in a file.

    Raises:
        CheckpointError: as :func:`ppap_host.files.checkpoints.read_state_dict`.
    """
    state = read_state_dict(path, whole=False)
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
