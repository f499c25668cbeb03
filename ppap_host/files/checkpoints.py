"""Reads model files that come from anywhere, and says what is wrong with them.

Nothing in a file is ever run: tensors are read by safetensors, or as data by
:mod:`ppap_host.files.pickles`. Backbones and guides of all plugins read their state dicts here.

A state dict is seldom alone in its file, nor named as the network names it. Training programs put
it under a key beside the optimiser's state, keep a second one of averaged weights, and wrap the
network, which puts ``module.``, ``_orig_mod.`` or ``model.`` before every name.
:func:`read_state_dict` finds the tensors, :func:`renamed` gives them the network's names, and both
say what they chose.
"""

# Long because every published way to write a state dict is told apart here.
from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ppap_host.files.errors import CheckpointError
from ppap_host.files.pickles import (
    Call,
    RefusedError,
    Tensors,
    TorchScriptError,
    read_saved,
)
from ppap_host.files.reading import require_regular

_NAMED_PROBLEMS = 3
_WHOLE = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
_FEW = 1 << 26  # bytes that any machine has
_AGAIN = "Download the file again and compare its size with the server's."

# What training programs call the weights, and the averaged weights that they would be judged by.
_AVERAGED = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "params_ema", "ema_params", "ema",
)  # fmt: skip
_WEIGHTS = (
    "state_dict", "model_state_dict", "model_state", "model", "module", "network", "net", "params",
    "weights", "model_weights",
)  # fmt: skip
_NO_WEIGHTS = re.compile(r"optim|sched|scaler|callbacks|loops|loss|criterion|rng|amp|history")
_WRAPPED_WITHIN = re.compile(
    r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)(?=\.)"
)
_OTHER_KINDS = {
    b"\x89HDF": "an HDF5 file, as Keras writes it",
    b"GGUF": "a GGUF file of quantised weights",
    b"\x93NUM": "an array of NumPy",
    b"\x1f\x8b": "packed by gzip",
    b"\x08": "an ONNX file, or one of TensorFlow",
}
# Names that only the networks of one library have.
_LIBRARIES = (
    ("OpenAI's or open_clip's CLIP", r"^visual\.(transformer\.resblocks|conv1\b)"),
    ("timm's transformers", r"(^|\.)blocks\.\d+\.(attn\.qkv|mlp\.fc1)\."),
    ("torchvision's ViT", r"encoder\.layers\.encoder_layer_\d+\."),
    ("torchvision's ResNet, or timm's", r"^layer[1-4]\.\d+\.conv1\.weight$"),
    ("MMSegmentation", r"^decode_head\.(conv_seg|convs|linear_fuse)\b"),
    ("MMPretrain", r"^backbone\.(layer|layers|stages|patch_embed)"),
    ("Detectron2", r"^(backbone\.bottom_up|sem_seg_head|proposal_generator)\."),
    ("segmentation-models-pytorch", r"^segmentation_head\.\d+\."),
    ("transformers", r"(^|\.)(encoder\.layers?\.\d+\.|embeddings\.(cls_token|patch_embeddings))"),
    ("transformers", r"^(resnet|convnext|segformer|swin)\.(encoder|embedder|embeddings)\."),
    ("diffusers", r"^(down_blocks|transformer_blocks|mid_block)\."),
    ("OpenAI's guided-diffusion or GLIDE", r"^(input_blocks|middle_block|output_blocks)\."),
    ("facebookresearch/DiT", r"^(x_embedder|t_embedder|y_embedder)\."),
    ("Stable Diffusion's own code", r"^(model\.diffusion_model|first_stage_model)\."),
)


def library_of(names: Iterable[str]) -> str:
    """Whose networks call their tensors like this; "" if none that is known."""
    found = [who for who, pattern in _LIBRARIES if any(re.search(pattern, n) for n in names)]
    return found[0] if found else ""


def other_kind(head: bytes) -> str:
    """What a file is that begins so, if it is one of models that is not read; "" if unknown."""
    return next((what for start, what in _OTHER_KINDS.items() if head.startswith(start)), "")


def conversion(source: str = "pytorch_model.bin", target: str = "model.safetensors") -> str:
    """The line that makes safetensors of a pickled state dict, whatever its tensors share."""
    code = (
        "import torch; from safetensors.torch import save_file; "
        f"state = torch.load({source!r}, weights_only=True); "
        f"save_file({{k: v.clone().contiguous() for k, v in state.items()}}, {target!r}, "
        "{'format': 'pt'})"
    )
    return f'python -c "{code}"'


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
        CheckpointError: names, shapes or number formats do not fit, or the tensors speak of more
            numbers than there are; it names the first that differ and, where it can tell, what the
            file really is.
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
        require_whole(state)
        return
    message = f"The tensors do not fit the configuration ({'. '.join(found)})."
    names = identify(shapes)
    if names:
        raise CheckpointError(
            f"{message} They have the shapes of the published {' or '.join(names)}.",
            remedy="Load the file with that configuration, or give the right file"
            f"{f' ({source})' if source else ''}.",
        )
    if foreign := foreign_names(shapes, layout):
        message = f"{message} {foreign}"
    raise CheckpointError(
        message, remedy="Give the flags the file was trained with, or the file of these flags."
    )


def foreign_names(found: Collection[str], wanted: Collection[str]) -> str:
    """A sentence for tensors of which none has a name that is wanted; "" if one has."""
    if not found or set(found) & set(wanted):
        return ""
    who = library_of(found)
    shown = ", ".join(sorted(found)[:_NAMED_PROBLEMS]) + ", ..." * (len(found) > _NAMED_PROBLEMS)
    return (
        f"None of its {len(found)} names is one of this network's; they are those of "
        f"{who or 'another network'} ({shown})."
    )


def require_whole(state: Mapping[str, Tensor]) -> None:
    """Checks that tensors own the numbers that they speak of.

    A tensor may have any shape over few numbers, and thousands may share one storage; a copy of
    them would fill the memory. Weights that are tied are stored once and meant.

    Raises:
        CheckpointError: they speak of more than four times the numbers that are stored.
    """
    state = {name: tensor for name, tensor in state.items() if not tensor.is_meta}
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    stored = stored_bytes(state)
    if claimed > 4 * stored + _FEW:
        worst = max(state, key=lambda name: state[name].numel() * state[name].element_size())
        raise CheckpointError(
            f"The tensors, such as {worst!r}, are not stored whole: they speak of {claimed:,} "
            f"bytes and hold {stored:,}.",
            remedy=_AGAIN,
        )


def stored_bytes(state: Mapping[str, Tensor]) -> int:
    """Bytes that tensors really hold, each once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in state.values()}
    return sum(storage.nbytes() for storage in storages.values())


def read_head(path: str | os.PathLike[str], size: int = 512) -> bytes:
    """The first bytes of a model file that may be one.

    Raises:
        CheckpointError: the file is missing, no regular file, unreadable, empty, a web page, or a
            Git LFS pointer.
    """
    require_regular(path, CheckpointError, "Check its name and its folder.")
    try:
        with open(path, "rb") as file:
            head = file.read(size)
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


def read_state_dict(
    path: str | os.PathLike[str], remarks: list[str] | None = None, *, whole: bool = True
) -> dict[str, Tensor]:
    """Reads named tensors from a file without running anything in it.

    Files of ``torch.save`` and safetensors files are told apart by their first bytes, not by their
    names, and are mapped into memory. Of a training checkpoint the averaged weights are taken if
    there are any, else the weights; what else it holds is left aside.

    Args:
        path: the file.
        remarks: what was chosen and left aside is added here, a sentence each.
        whole: whether :func:`require_whole` is to look at them. Who asks for False must call
            :func:`require_layout`, which does it as well.

    Returns:
        Tensors on the CPU, which may be backed by the file.

    Raises:
        CheckpointError: if the file is missing, unreadable, empty, cut short, a web page, or holds
            something else than named tensors: a whole module, a compiled program, or several
            networks of which none is the obvious one. It says how to save what is wanted.
    """
    path = Path(path)
    head = read_head(path)
    is_pickle = head.startswith((b"PK\x03\x04", b"\x80"))
    is_safetensors = head[8:9] == b"{"
    if not (is_pickle or is_safetensors):
        other = other_kind(head)
        raise CheckpointError(
            f"{path}: neither a PyTorch nor a safetensors file "
            f"(it {f'is {other}' if other else f'starts with {head[:8]!r}'}).",
            remedy="Give weights of PyTorch." if other else _AGAIN,
        )
    try:
        if is_safetensors:
            state = dict(safetensors.torch.load_file(path))
        else:
            content, tensors = read_saved(path)
            state = _Found(path, tensors, [] if remarks is None else remarks).state_dict(content)
    except CheckpointError:
        raise
    except TorchScriptError as error:
        raise CheckpointError(
            f"{path}: {error} (TorchScript or torch.export), which is never run.",
            remedy="Where you trust the file, save its state dict and give that: "
            + _saving(f"torch.jit.load({str(path)!r}).state_dict()"),
        ) from error
    except RefusedError as error:
        raise CheckpointError(
            f"{path}: no file of tensors: {error} (nothing in it was run).", remedy=_AGAIN
        ) from error
    # A damaged or hostile file can end the readers in any way.
    except Exception as error:
        raise CheckpointError(
            f"{path}: the file is damaged or cut short, or holds something else than tensors "
            "(nothing in it was run).",
            remedy=_AGAIN,
        ) from error
    whole_numbers = [
        name
        for name, tensor in state.items()
        if name.endswith((".weight", ".bias")) and tensor.dtype in _WHOLE and tensor.ndim
    ]
    if whole_numbers:
        raise CheckpointError(
            f"{path}: {len(whole_numbers)} weights, such as {whole_numbers[0]!r}, are whole "
            f"numbers ({state[whole_numbers[0]].dtype}): they are quantised, and what they stand "
            "for is not in them.",
            remedy="Give the model in full or half precision.",
        )
    if whole:
        try:
            require_whole(state)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error.message}", remedy=error.remedy) from error
    return state


def _saving(expression: str, target: str = "state-dict.pt") -> str:
    """The line that saves what a Python expression gives."""
    return f'python -c "import torch; torch.save({expression}, {target!r})"'


class _Found:
    """Finds the weights in the content of a file of ``torch.save``."""

    def __init__(self, path: Path, tensors: Tensors, remarks: list[str]) -> None:
        self.path, self.tensors, self.remarks = path, tensors, remarks

    def state_dict(self, content: Any) -> dict[str, Tensor]:
        """The named tensors in it."""
        keys: list[str] = []
        table = _table(content)
        if table is None:
            raise self._no_table(content)
        aside: list[str] = []
        # "ema" of one program holds "module", "model" of another holds "state_dict".
        for _ in range(3):
            chosen = self._chosen(table)
            if chosen is None:
                break
            aside += [key for key in table if key != chosen and self._is_weights(table[key])]
            keys.append(chosen)
            table = _table(table[chosen]) or {}
        if keys:
            where = "".join(f"[{key!r}]" for key in keys)
            averaged = any(key in _AVERAGED for key in keys)
            left = f"; {', '.join(map(repr, aside))} left aside" if aside else ""
            self.remarks.append(
                f"Of {self.path.name} the {'averaged ' if averaged else ''}weights under {where} "
                f"are used{left}."
            )
        return self._plain(table)

    def _is_tensor(self, value: Any) -> bool:
        return isinstance(value, Call) and value.function in self.tensors.FUNCTIONS

    def _is_weights(self, value: Any) -> bool:
        """Whether it holds named tensors, at once or in one of its tables."""
        for depth in range(3):
            table = _table(value)
            if table is None or depth == 2:
                break
            if any(self._is_tensor(item) for item in table.values()):
                return True
            value = next((v for v in table.values() if _table(v) is not None), None)
        return False

    def _chosen(self, table: Mapping[str, Any]) -> str | None:
        """The key under which the weights are; None if they are here."""
        inside = [k for k, v in table.items() if not _NO_WEIGHTS.search(k) and self._is_weights(v)]
        module = next((k for k in (*_AVERAGED, *_WEIGHTS) if _is_module(table.get(k))), None)
        for known in (_AVERAGED, _WEIGHTS):
            found = [key for key in known if key in inside]
            if len(found) == 1 or (found and known is _AVERAGED):
                return found[0]
            if found:
                raise self._several(found)
        if module is not None:
            raise self._no_table(table[module], module)
        if any(self._is_tensor(value) for value in table.values()):
            return None
        if len(inside) > 1:
            raise self._several(inside)
        return inside[0] if inside else None

    def _several(self, keys: Sequence[str]) -> CheckpointError:
        shown = ", ".join(map(repr, keys[:5]))
        expression = f"torch.load({str(self.path)!r}, weights_only=True)[{keys[0]!r}]"
        return CheckpointError(
            f"{self.path}: holds the weights of {len(keys)} networks: {shown}.",
            remedy="Save the one that is meant to a file of its own: " + _saving(expression),
        )

    def _no_table(self, value: Any, key: str = "") -> CheckpointError:
        """What is wrong where there is no table of named tensors."""
        where = f"[{key!r}]" if key else ""
        what = f"under {key!r} " if key else ""
        if isinstance(value, Call) and not self._is_tensor(value):
            expression = f"torch.load({str(self.path)!r}, weights_only=False){where}.state_dict()"
            return CheckpointError(
                f"{self.path}: holds {what}a whole object ({value.function[:100]}), whose code "
                "would be run to read it, not a state dict of named tensors.",
                remedy="Where you trust the file, save its state dict and give that: "
                + _saving(expression),
            )
        kind = "tensor" if self._is_tensor(value) else type(value).__name__
        return CheckpointError(
            f"{self.path}: holds {what}a {kind}, not a state dict of named tensors.",
            remedy="Save the state dict of the network.",
        )

    def _plain(self, table: Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensors of a table that holds hardly anything else."""
        state, plain, others = {}, [], []
        for name, value in table.items():
            if self._is_tensor(value):
                state[name] = self.tensors(value)
            elif isinstance(value, str | int | float | bool | None):
                plain.append(name)
            else:
                others.append(name)
        if others or not state:
            wrong = others or plain
            shown = ", ".join(map(repr, wrong[:_NAMED_PROBLEMS]))
            says = f"{shown} {'is' if len(wrong) == 1 else 'are'} no plain tensor" if wrong else (
                "there is nothing in it"
            )  # fmt: skip
            raise CheckpointError(
                f"{self.path}: the pickle holds no plain state dict: {says} (nothing in it was "
                "run).",
                remedy="Save the state dict of the network alone to a file of its own: "
                "safetensors.torch.save_file(network.state_dict(), 'model.safetensors').",
            )
        if plain:
            self.remarks.append(
                f"Of {self.path.name} what is no tensor is left aside: {', '.join(plain[:5])}."
            )
        return state


def _table(value: Any) -> dict[str, Any] | None:
    """What a dictionary, or an object that is one, holds by names."""
    if isinstance(value, Call):
        value = value.items or None
    if not isinstance(value, dict):
        return None
    return {name: item for name, item in value.items() if isinstance(name, str)}


def _is_module(value: Any) -> bool:
    """Whether it is a whole network."""
    return isinstance(value, Call) and isinstance(value.state, dict) and "_modules" in value.state


def renamed(
    state: Mapping[str, Tensor], names: Collection[str], remarks: list[str] | None = None
) -> dict[str, Tensor]:
    """The tensors as the network calls them that its training may have wrapped.

    What wrappers put into names (``_orig_mod.`` and the like) is taken out anywhere. Then the
    prefix is found under which most of the network's names are; what is not under it (a criterion,
    another network) is left out. Where none fits, names stay as they are.

    Args:
        names: of the network's own tensors.
        remarks: what was taken off and left out is added here, a sentence each.

    Raises:
        CheckpointError: two networks of this kind are in it, and none of them is the averaged one.
    """
    unwrapped, wanted = without_wrappers(state), set(names)
    found: Counter[str] = Counter()
    for name in unwrapped:
        parts = name.split(".")
        for k in range(min(len(parts), 8)):
            if ".".join(parts[k:]) in wanted:
                found["".join(f"{part}." for part in parts[:k])] += 1
    fitting = [prefix for prefix, count in found.items() if count > len(wanted) / 2]
    prefix = chosen_prefix(fitting, unwrapped)
    return unprefixed(unwrapped, prefix, remarks)


def without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without what torch.compile and its kin put into their names.

    Raises:
        CheckpointError: two of them have the same name then.
    """
    unwrapped = {_WRAPPED_WITHIN.sub("", name).removeprefix("."): t for name, t in state.items()}
    if len(unwrapped) < len(state):
        raise CheckpointError(
            "Two of the tensors have the same name but for their wrappers.",
            remedy="Save the state dict of the network alone.",
        )
    return unwrapped


def unprefixed(
    state: Mapping[str, Tensor], prefix: str, remarks: list[str] | None = None
) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it.

    Args:
        remarks: a sentence is added that says what was taken off and left out.
    """
    kept = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    if prefix and remarks is not None:
        said = f"{prefix!r} is taken off the names of the tensors"
        left = [name for name in state if not name.startswith(prefix)]
        if left:
            shown = ", ".join(left[:_NAMED_PROBLEMS]) + ", ..." * (len(left) > _NAMED_PROBLEMS)
            said += f", and {len(left)} that begin otherwise are left aside: {shown}"
        remarks.append(f"{said}.")
    return kept


def chosen_prefix(fitting: Sequence[str], state: Mapping[str, Tensor]) -> str:
    """Which of the prefixes is meant under which a network's tensors are; "" for none.

    Averaged weights come first; of equal ones any will do.

    Raises:
        CheckpointError: that cannot be told.
    """
    if not fitting or "" in fitting:
        return ""
    averaged = [prefix for prefix in fitting if re.search(r"(^|[._])(ema|averaged?)", prefix)]
    if len(averaged) == 1:
        return averaged[0]
    kept = [unprefixed(state, prefix) for prefix in fitting]
    if all(
        one.keys() == kept[0].keys() and all(torch.equal(one[k], kept[0][k]) for k in one)
        for one in kept[1:]
    ):
        return fitting[0]
    raise CheckpointError(
        f"The file holds {len(fitting)} networks of this kind, under "
        f"{' and '.join(map(repr, sorted(fitting)))}.",
        remedy="Save the one that is meant to a file of its own, without that beginning of names.",
    )
