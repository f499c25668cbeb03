"""Reads EDM's files, and builds the networks they describe.

NVlabs/edm saves whole Python objects: ``edm-*.pkl`` holds a network's class by name, the *source
code* of the module that defines it, the arguments it was made with, and its tensors. The original
reader runs that source code. Here the file is read as data (:mod:`ppap_host.files.pickles`), the
source code is not looked at, and the network of this package that has the class's name is made with
the recorded arguments and given the tensors.

A safetensors file with the same arguments in a JSON file beside it is read as well; :func:`save`
writes such a pair.
"""

from __future__ import annotations

import inspect
import json
import math
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, get_args

import safetensors.torch
import torch
from torch import Tensor

from ppap_host.files.checkpoints import read_head, read_state_dict, require_layout
from ppap_host.files.errors import CheckpointError
from ppap_host.files.models import held, no_larger_than, own_path, read_json
from ppap_host.files.pickles import STORAGE, Call, RefusedError, Tensors, read_pickle
from ppap_plugin_edm.networks import DecoderType, EmbeddingType, EncoderType, Number
from ppap_plugin_edm.preconditioning import PRECONDITIONINGS, UNETS, Denoiser, ModelType

PUBLISHED_URL: Final = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"
"""Where the published files lie."""

_AGAIN: Final = f"Download the file again ({PUBLISHED_URL}) and compare its size with the server's."
_PERSISTENT: Final = "torch_utils.persistence._reconstruct_persistent_obj"
_MODULE_DICT: Final = "torch.nn.modules.container.ModuleDict"
_PARAMETER: Final = "torch._utils._rebuild_parameter"
_TENSOR: Final = "torch._utils._rebuild_tensor_v2"

# All that genuine files name, protocol 3 or newer. Numbers of numpy and sets are attributes of
# modules, which are not read.
_NAMES: Final = frozenset(
    {
        _PERSISTENT,
        _MODULE_DICT,
        _PARAMETER,
        _TENSOR,
        STORAGE,
        "collections.OrderedDict",
        "builtins.set",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
    }
)

# Which values an argument may have. The bounds are far above any network that was ever made; they
# keep a damaged file from asking for one that no machine can build.
_COUNTS: Final = {
    "img_resolution": (1, 8192),
    "img_channels": (1, 1024),
    "label_dim": (0, 10**6),
    "augment_dim": (0, 10**4),
    "model_channels": (1, 10**4),
    "channel_mult_emb": (1, 64),
    "channel_mult_noise": (1, 64),
    "num_blocks": (1, 64),
    "M": (2, 10**5),
}
_LISTS: Final = {
    "channel_mult": (1, 64),
    "attn_resolutions": (0, 8192),
    "resample_filter": (-(10**6), 10**6),
}
_LONGEST: Final = 16
_NUMBERS: Final = {
    "dropout", "label_dropout", "sigma_min", "sigma_max", "sigma_data", "beta_d", "beta_min",
    "epsilon_t", "C_1", "C_2",
}  # fmt: skip
_CHOICES: Final = {
    "use_fp16": (False, True),
    "model_type": get_args(ModelType),
    "embedding_type": get_args(EmbeddingType),
    "encoder_type": get_args(EncoderType),
    "decoder_type": get_args(DecoderType),
}
# For training only.
_UNUSED: Final = frozenset({"dropout", "label_dropout"})


@dataclass(frozen=True)
class Snapshot:
    """What a file says about a network.

    Attributes:
        class_name: of the preconditioning, such as "EDMPrecond".
        arguments: it was made with, by name.
        tensors: of its state dict.
    """

    class_name: str
    arguments: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(repr=False)


def load(path: str | os.PathLike[str]) -> Denoiser:
    """The network in a file of NVlabs/edm, or in a converted one.

    Args:
        path: ``edm-*.pkl``, ``network-snapshot-*.pkl``, or a safetensors file with the JSON file of
            the same name beside it. Nothing in it is ever run.

    Returns:
        The network in float32 on the CPU, in evaluation mode, its parameters frozen.

    Raises:
        CheckpointError: the file is missing or damaged, holds something else, or its tensors are
            not those of the network it describes.
    """
    path = own_path(path)
    snapshot = read(path)
    try:
        return build(snapshot)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.message}", remedy=error.remedy) from error


def read(path: str | os.PathLike[str]) -> Snapshot:
    """What a file holds, before any network is made of it.

    Raises:
        CheckpointError: as :func:`load` does, except for what a network is needed to tell.
    """
    path = own_path(path)
    head = read_head(path)
    if head[8:9] == b"{":
        return _read_converted(path)
    if not head.startswith(b"\x80"):
        raise CheckpointError(
            f"{path}: neither a pickle nor a safetensors file (it starts with {head[:8]!r}).",
            remedy=_AGAIN,
        )
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            content = read_pickle(view, _NAMES)
            size = len(view)
        return _snapshot(content, size)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.message}", remedy=error.remedy) from error
    except RefusedError as error:
        raise CheckpointError(
            f"{path}: no file of NVlabs/edm: {error} (nothing in it was run).", remedy=_AGAIN
        ) from error
    # A damaged or hostile file can end the reader in any way.
    except Exception as error:
        raise CheckpointError(
            f"{path}: the file is damaged or cut short (nothing in it was run).", remedy=_AGAIN
        ) from error


def build(snapshot: Snapshot) -> Denoiser:
    """The network that a snapshot describes, with its tensors.

    Raises:
        CheckpointError: there is no such network, or the tensors are not its.
    """
    with no_larger_than("the file", held(snapshot.tensors), len(snapshot.tensors)):
        network = _empty(snapshot.class_name, snapshot.arguments)
    layout = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    try:
        require_layout(snapshot.tensors, layout)
    except CheckpointError as error:
        raise CheckpointError(
            error.message,
            remedy="The file names the configuration itself, so it was changed or damaged. "
            + _AGAIN,
        ) from error
    tensors = {
        name: tensor.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        for name, tensor in snapshot.tensors.items()
    }
    network.load_state_dict(tensors, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def make(class_name: str, **arguments: Any) -> Denoiser:
    """A fresh network with random weights, for tests.

    Args:
        class_name: of the preconditioning.
        arguments: of it and its U-Net.

    Raises:
        CheckpointError: there is no such network.
    """
    return _made(class_name, arguments).eval().requires_grad_(False)


def save(snapshot: Snapshot, path: str | os.PathLike[str]) -> None:
    """Writes a safetensors file, and a JSON file with the configuration beside it.

    Args:
        path: of the safetensors file.
    """
    path = Path(path)
    config = {"class": snapshot.class_name, "init_kwargs": dict(snapshot.arguments)}
    tensors = {name: tensor.contiguous() for name, tensor in snapshot.tensors.items()}
    safetensors.torch.save_file(tensors, path)
    _beside(path).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


# --------------------------------------------------------------------------------------------
# Networks
# --------------------------------------------------------------------------------------------


def _empty(class_name: str, arguments: Mapping[str, Any]) -> Denoiser:
    """The network without memory for its tensors."""
    with torch.device("meta"):
        return _made(class_name, arguments)


def _made(class_name: str, arguments: Mapping[str, Any]) -> Denoiser:
    if class_name not in PRECONDITIONINGS:
        raise CheckpointError(
            f"It holds a {class_name[:200]!r}, which is none of {', '.join(PRECONDITIONINGS)}.",
            remedy=f"Give a diffusion model of NVlabs/edm ({PUBLISHED_URL}).",
        )
    outer = PRECONDITIONINGS[class_name]
    for name, value in arguments.items():
        _check(name, value)
    arguments = {name: value for name, value in arguments.items() if name not in _UNUSED}
    _check_sizes(outer, arguments)
    try:
        return outer(**arguments)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(
            f"Its arguments describe no {class_name} ({error}).", remedy=_AGAIN
        ) from error


def _is_number(value: Any, low: Number, high: Number, *kinds: type) -> bool:
    # A bool is an int to Python; NaN is in no interval.
    return type(value) in kinds and bool(low <= value <= high)


def _check(name: str, value: Any) -> None:
    """Whether an argument is known and its value may be meant."""
    if name in _COUNTS:
        right = _is_number(value, *_COUNTS[name], int)
    elif name in _LISTS:
        kinds = (int, float) if name == "resample_filter" else (int,)
        right = isinstance(value, list | tuple) and len(value) <= _LONGEST
        right = right and all(_is_number(item, *_LISTS[name], *kinds) for item in value)
    elif name in _NUMBERS:
        right = _is_number(value, -math.inf, math.inf, int, float)
    elif name in _CHOICES:
        right = isinstance(value, str | bool) and value in _CHOICES[name]
    else:
        raise CheckpointError(
            f"Its network was made with the argument {name[:100]!r}, which is not known here.",
            remedy=f"Give a diffusion model of NVlabs/edm ({PUBLISHED_URL}).",
        )
    if not right:
        # A number of thousands of digits cannot even be written out.
        short = isinstance(value, str | float) or (isinstance(value, int) and abs(value) < 10**18)
        shown = repr(value)[:60] if short else f"a {type(value).__name__}"
        raise CheckpointError(
            f"Its network was made with {name} = {shown}, which cannot be meant.", remedy=_AGAIN
        )


def _check_sizes(outer: type[Denoiser], arguments: Mapping[str, Any]) -> None:
    """Whether the image can be halved from level to level."""
    chosen = inspect.signature(outer).parameters["model_type"].default
    unet = UNETS[arguments.get("model_type", chosen)]
    widths = inspect.signature(unet).parameters["channel_mult"].default
    levels, size = len(arguments.get("channel_mult", widths)), arguments.get("img_resolution", 0)
    if not levels or size % 2 ** (levels - 1):
        raise CheckpointError(
            f"Its images of {size} pixels cannot have {levels} levels.", remedy=_AGAIN
        )


# --------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------


def _beside(path: Path) -> Path:
    return path.with_suffix(".json")


def _read_converted(path: Path) -> Snapshot:
    """A safetensors file and its configuration."""
    beside = _beside(path)
    again = "Convert the original file again with python -m ppap_plugin_edm.convert."
    if not beside.is_file():
        raise CheckpointError(
            f"{path}: its configuration {beside.name} is not beside it.", remedy=again
        )
    config = read_json(beside, again)
    name, arguments = (
        (config.get("class"), config.get("init_kwargs")) if isinstance(config, dict) else (0, 0)
    )
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise CheckpointError(f"{beside}: not the configuration of a converted file.", remedy=again)
    return Snapshot(name, arguments, read_state_dict(path))


def _snapshot(content: Any, size: int) -> Snapshot:
    """The network under "ema" in the content of a file of ``size`` bytes."""
    if not isinstance(content, dict) or "ema" not in content:
        held = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"The file holds no network under 'ema' (it holds {held[:200]}).",
            remedy=f"Give a diffusion model of NVlabs/edm ({PUBLISHED_URL}).",
        )
    class_name, state = _object(content["ema"])
    if class_name in PRECONDITIONINGS:
        arguments = _arguments(PRECONDITIONINGS[class_name], state)
    else:
        arguments = {}
    tensors: dict[str, Tensor] = {}
    _collect(content["ema"], "", tensors, set(), _Whole(size))
    return Snapshot(class_name, arguments, tensors)


class _Whole:
    """Makes tensors that hold no more numbers than the file.

    A file may name one storage twenty thousand times; every copy of it would be made.
    """

    def __init__(self, size: int) -> None:
        self.left, self.tensors = size, Tensors(whole=True)

    def __call__(self, value: Any) -> Tensor:
        tensor = self.tensors(value)
        self.left -= tensor.numel() * tensor.element_size()
        if self.left < 0:
            raise RefusedError("its tensors together are larger than the file")
        return tensor


def _object(value: Any) -> tuple[str, dict[Any, Any]]:
    """Class name and state of a module."""
    if isinstance(value, Call) and value.function == _MODULE_DICT and isinstance(value.state, dict):
        return "ModuleDict", value.state
    if isinstance(value, Call) and value.function == _PERSISTENT and len(value.arguments) == 1:
        # Besides: the format's version, and the source code, which is left alone.
        (meta,) = value.arguments
        if isinstance(meta, dict) and meta.get("type") == "class":
            name, state = meta.get("class_name"), meta.get("state")
            if isinstance(name, str) and isinstance(state, dict):
                return name, state
    raise RefusedError("something else is where a network should be")


def _arguments(outer: type[Denoiser], state: Mapping[Any, Any]) -> dict[str, Any]:
    """What a module was made with, by name."""
    positional, named = state.get("_init_args", ()), state.get("_init_kwargs")
    if not isinstance(positional, Sequence) or not isinstance(named, dict):
        raise RefusedError("it does not say how the network was made")
    order = [
        name
        for name, parameter in inspect.signature(outer).parameters.items()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    given = dict(zip(order, positional, strict=False))
    if len(positional) > len(order) or given.keys() & named.keys():
        raise RefusedError("it does not say how the network was made")
    return given | {str(name): value for name, value in named.items()}


def _collect(
    module: Any, prefix: str, found: dict[str, Tensor], seen: set[int], tensors: _Whole
) -> None:
    """Adds a module's tensors to ``found``, by the names of its state dict."""
    if id(module) in seen:
        raise RefusedError("one module is in two places")
    seen.add(id(module))
    _, state = _object(module)
    for part in ("_parameters", "_buffers"):
        for name, value in _table(state, part).items():
            if value is not None:
                found[f"{prefix}{name}"] = tensors(value)
    for name, value in _table(state, "_modules").items():
        if value is not None:
            _collect(value, f"{prefix}{name}.", found, seen, tensors)


def _table(state: Mapping[Any, Any], part: str) -> dict[Any, Any]:
    table = state.get(part)
    if not isinstance(table, dict):
        raise RefusedError(f"a module has no {part}")
    return table
