"""Folders in the manner of transformers: ``config.json``, safetensors, an image processor.

transformers itself would read more of such a folder than is named here: adapters of other models,
configurations of other repositories, quantisation, kernels, and Python files that it runs. So the
folder is never given to it. Its JSON files are read here, cleaned of all that, and written to a
folder of their own; the weights are read here and given as tensors. The classes of transformers
come from the plugins, since the host does not import it.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppap_host.files.checkpoints import (
    chosen_prefix,
    library_of,
    unprefixed,
    without_wrappers,
)
from ppap_host.files.errors import CheckpointError
from ppap_host.files.models import (
    CONFIG,
    ModelFolder,
    first_line,
    from_pretrained,
    held,
    no_larger_than,
    quietly,
)
from ppap_host.files.reading import read_bytes

PROCESSOR, PROCESSORS = "preprocessor_config.json", "processor_config.json"
"""An image processor's own file, and the newer one that holds it beside others."""

# What makes transformers fetch, run or transform something, at any depth.
_NOT_READ = {
    "adapter_config", "attn_implementation", "auto_map", "custom_pipelines", "device_map",
    "distributed_config", "dtype", "experts_implementation", "fusion_config", "kernel_config",
    "torch_dtype", "tp_plan", "transformers_weights",
}  # fmt: skip
_TABLES = {"id2label", "label2id"}
_LOW_RANK = re.compile(r"\blora_(A|B|up|down)\b|\b(lokr|hada)_w")
_ADAPTER = "adapter_config.json"
_PLAIN_NAME = re.compile(r"[\w.\-]+")


@dataclass(frozen=True)
class Pretrained:
    """What was loaded.

    Attributes:
        model: of transformers, float32, frozen, in evaluation mode.
        config: its configuration.
        processor: its image processor; None if none was asked for.
        labels: names of its classes, in the order of its outputs; two, for no and for yes, may
            belong to one output.
    """

    model: Any
    config: Any
    processor: Any
    labels: tuple[str, ...]


def load_pretrained(
    folder: ModelFolder,
    described: Mapping[str, Any],
    *,
    config: Any,
    model: Any,
    processor: Any,
    unneeded: Sequence[str] = (),
) -> Pretrained:
    """The model in a folder, every one of its weights read from there.

    Args:
        described: the content of its ``config.json``.
        config, model, processor: the classes of transformers that choose by the description:
            ``AutoConfig``, ``AutoImageProcessor`` and one such as ``AutoModelForDepthEstimation``.
        unneeded: beginnings of weights that may be missing.

    Raises:
        CheckpointError: a file is missing or damaged; the library does not know such a model, or
            needs code that comes with the folder; weights are missing, of another shape, quantised,
            or another network's; names of classes do not fit their number.
    """
    library = sys.modules[config.__module__.partition(".")[0]]
    clean = _cleaned(folder, described, library)
    inverse = _inverse(clean)
    names = _by_number(folder, clean.pop("id2label", None) or inverse)
    clean.pop("label2id", None)
    if inverse and names == {k: f"LABEL_{k}" for k in names}:  # which says nothing
        names = _by_number(folder, inverse)
    elif inverse and not _agree(inverse, names):
        folder.remarks.append(
            f"The id2label and label2id of {folder.name!r} contradict each other; id2label counts."
        )
    if names:
        clean["id2label"] = _placeholders(len(names) if min(names) else max(names) + 1)
    state = {
        name: tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
        for name, tensor in without_wrappers(folder.weights()).items()
    }
    if folder.folder is not None and (folder.folder / _ADAPTER).is_file():
        folder.remarks.append(
            f"{folder.name!r} holds an adapter as well ({_ADAPTER}), which is not used."
        )
    images = _processor_of(folder, library)
    with _staged({CONFIG: clean, PROCESSOR: images}) as place, _explained(folder, place, described):
        made = _Made(folder, place, config, model, state)
        network, report = made.load()
        rows = _rows(report, made.config)
        if rows is not None and (not names or max(names) in (rows - 1, rows)):
            made.relabel(clean | {"id2label": _placeholders(rows)})
            network, report = made.load()
        prepared = from_pretrained(processor, place)
    _check_whole(folder, report, state, unneeded)
    rows = int(getattr(made.config, "num_labels", 0))
    return Pretrained(
        network.float().eval().requires_grad_(False),
        made.config,
        prepared,
        _labels(folder, names, rows),
    )


TOKENIZER = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json",
    "vocab.json", "merges.txt",
)  # fmt: skip
"""The files of a tokenizer that are read; the first two say how, the others hold the tokens."""

_MOST_TOKENS = 64 << 20  # bytes


def load_tokenizer(folder: ModelFolder, tokenizer: Any, model_type: str) -> Any:
    """The tokenizer in a folder.

    Args:
        tokenizer: ``AutoTokenizer`` of transformers.
        model_type: of the model that it belongs to.

    Raises:
        CheckpointError: a file is damaged or too large, or the library makes no tokenizer of them.
    """
    with _staged({CONFIG: {"model_type": model_type}}) as place, _explained(folder, place, {}):
        for name in TOKENIZER:
            path = folder.find(name)
            if path is None:
                continue
            if name in TOKENIZER[:2]:
                described = folder.json(name) or {}
                kept = {k: v for k, v in described.items() if not k.endswith("_file")}
                _write(place / name, _without(kept, folder))
            else:
                tokens = read_bytes(path, CheckpointError, folder.remedy, _MOST_TOKENS)
                (place / name).write_bytes(tokens)
        return from_pretrained(tokenizer, place)


class _Made:
    """A configuration, and the network of its class with these weights."""

    def __init__(
        self, folder: ModelFolder, place: Path, config: Any, model: Any, state: dict[str, Tensor]
    ) -> None:
        self.folder, self.place, self.state = folder, place, state
        self._config, self._model = config, model
        self.config = from_pretrained(config, place)

    def relabel(self, described: Mapping[str, Any]) -> None:
        """Begins again with another description."""
        _write(self.place / CONFIG, described)
        self.config = from_pretrained(self._config, self.place)

    def load(self) -> tuple[Any, dict[str, Any]]:
        """The network, and what the library says of its weights."""
        name, numbers, tensors = self.folder.name, held(self.state), len(self.state)
        limited = no_larger_than(name, numbers, tensors)
        with torch.random.fork_rng(devices=[]), limited, torch.device("meta"), quietly():
            empty = self._model.from_config(self.config, trust_remote_code=False)
        wanted = len(empty.state_dict())

        def attempt(prefix: str) -> tuple[Any, dict[str, Any]]:
            under = unprefixed(self.state, prefix)
            limited = no_larger_than(name, numbers, tensors)
            with torch.random.fork_rng(devices=[]), limited:
                # Its own class: the one that chooses wants a path.
                network, report = from_pretrained(
                    type(empty), None, config=self.config, state_dict=under,
                    ignore_mismatched_sizes=True, output_loading_info=True,
                )  # fmt: skip
            return network, dict(report)

        network, report = attempt("")
        if len(report["missing_keys"]) <= wanted / 2:
            return network, report
        # What a training program puts before all names. Which the names in a file should be, only
        # the library knows.
        found = {
            prefix: len(attempt(prefix)[1]["missing_keys"])
            for prefix in _beginnings(self.state, wanted / 2)
        }
        least = min(found.values(), default=wanted)
        if least > wanted / 2:
            return network, report
        fitting = [prefix for prefix, missing in found.items() if missing == least]
        prefix = chosen_prefix(fitting, self.state)
        network, report = attempt(prefix)
        self.state = unprefixed(self.state, prefix, self.folder.remarks)
        return network, report


def _beginnings(state: Mapping[str, Tensor], least: float) -> list[str]:
    """What more than so many names begin with, up to four parts of them."""
    found: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for k in range(1, min(len(parts), 5)):
            found["".join(f"{part}." for part in parts[:k])] += 1
    return [beginning for beginning, count in found.most_common(12) if count > least]


def _rows(report: Mapping[str, Any], config: Any) -> int | None:
    """How many classes the weights have, where that is all that does not fit."""
    shapes = [(tuple(there), tuple(needed)) for _, there, needed in report["mismatched_keys"]]
    if not shapes or any(a[1:] != b[1:] or not a or not b for a, b in shapes):
        return None
    more = {there[0] - needed[0] for there, needed in shapes}
    classes = int(getattr(config, "num_labels", 0))
    # Networks that classify masks have an output more, for none.
    heads = {needed[0] - classes for _, needed in shapes}
    return classes + more.pop() if len(more) == 1 and heads <= {0, 1} else None


def _cleaned(folder: ModelFolder, described: Mapping[str, Any], library: Any) -> dict[str, Any]:
    """A description without what would fetch, run or transform something."""
    if described.get("quantization_config"):
        raise CheckpointError(
            f"The weights of {folder.name!r} are quantised, which loses the gradient.",
            remedy="Give the model in full or half precision.",
        )
    kinds = described.get("architectures") or ()
    own_code = isinstance(described.get("auto_map"), dict)
    unknown = [str(kind) for kind in kinds if not hasattr(library, str(kind))]
    if own_code and kinds and len(unknown) == len(kinds):
        raise _needs_code(folder, f"its class {unknown[0]}", described["auto_map"])
    clean: dict[str, Any] = _without(described, folder)
    return clean


def _without(value: Any, folder: ModelFolder) -> Any:
    """Without the keys of :data:`_NOT_READ`, and backbones that lie elsewhere."""
    if isinstance(value, list):
        return [_without(item, folder) for item in value]
    if not isinstance(value, dict):
        return value
    found = {
        key: item if key in _TABLES else _without(item, folder)
        for key, item in value.items()
        if key not in _NOT_READ and not key.startswith("_")
    }
    if "use_pretrained_backbone" in found:
        found["use_pretrained_backbone"] = False  # its weights are among those that follow
    backbone = found.get("backbone")
    if isinstance(backbone, str):
        if not _PLAIN_NAME.fullmatch(backbone):
            raise CheckpointError(
                f"The {CONFIG} of {folder.name!r} names the backbone {backbone!r} instead of "
                "describing it, and nothing is fetched that was not asked for.",
                remedy="Save the model again with a newer transformers, which writes a "
                "backbone_config.",
            )
        if found.get("backbone_config") is None and found.get("model_type") != "timm_backbone":
            options = found.pop("backbone_kwargs", None) or {}
            del found["backbone"]
            found["backbone_config"] = {
                "model_type": "timm_backbone", "backbone": backbone,
                "use_pretrained_backbone": False, **options,
            }  # fmt: skip
    return found


def _processor_of(folder: ModelFolder, library: Any) -> dict[str, Any]:
    """The description of the image processor, from the file that transformers would read."""
    several = folder.json(PROCESSORS) or {}
    found = several.get("image_processor")
    if not isinstance(found, dict):
        folder.forget(PROCESSORS)
        found = folder.json(PROCESSOR)
    if found is None:
        raise CheckpointError(
            f"The model {folder.name!r} has no {PROCESSOR}, which says how images are prepared "
            "for it.",
            remedy="Save its image processor with save_pretrained into the same folder. "
            + folder.remedy,
        )
    table = found.get("auto_map")
    if isinstance(table, dict) and table:
        named = found.get("image_processor_type") or str(next(iter(table.values())))
        kind = str(named).rpartition(".")[2].removesuffix("Fast")
        if not (hasattr(library, kind) or hasattr(library, f"{kind}Fast")):
            raise _needs_code(folder, f"its image processor {kind}", table)
        found = found | {"image_processor_type": kind}
    kept = {k: v for k, v in found.items() if k not in _NOT_READ and not k.startswith("_")}
    if "reduce_labels" in kept:  # as transformers called it until 4.22, and the hub still has it
        kept.setdefault("do_reduce_labels", kept.pop("reduce_labels"))
    return kept


def _needs_code(folder: ModelFolder, what: str, table: Mapping[str, Any]) -> CheckpointError:
    where = ", ".join(sorted({f"{str(v).partition('.')[0]}.py" for v in table.values()}))
    return CheckpointError(
        f"The model {folder.name!r} needs code of its own for {what} ({where[:200]}), which is "
        "never run.",
        remedy="Give a model whose class transformers has, or write a plugin that brings the code "
        "(`ppap plugin new`). " + folder.remedy,
    )


def _inverse(described: Mapping[str, Any]) -> dict[str, Any] | None:
    """The names of classes where only their numbers by names are given."""
    table = described.get("label2id")
    return {str(k): name for name, k in table.items()} if isinstance(table, dict) else None


def _agree(inverse: Mapping[str, Any], names: Mapping[int, str]) -> bool:
    """Whether names by number are those of a table of numbers by name, where both have any."""
    try:
        there = {int(number): str(name) for number, name in inverse.items()}
    except (TypeError, ValueError):
        return True
    return all(
        names.get(number, name) == name
        for number, name in there.items()
        if name != f"LABEL_{number}"  # transformers' own
    )


def _placeholders(count: int) -> dict[str, str]:
    """As transformers itself names classes, so that it makes so many of them."""
    return {str(k): f"LABEL_{k}" for k in range(count)}


def _by_number(folder: ModelFolder, table: Any) -> dict[int, str]:
    """The names of classes by number.

    Raises:
        CheckpointError: a key is no number, or two are the same.
    """
    if table is None:
        return {}
    try:
        if not all(isinstance(name, str | int | float | None) for name in table.values()):
            raise ValueError("the names are no texts")
        found = {
            int(key): f"class {key}" if name is None else str(name) for key, name in table.items()
        }
        if not found or len(found) < len(table) or min(found) < 0 or max(found) > 10**6:
            raise ValueError("the keys are not the numbers of classes")
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"The id2label of {folder.name!r} does not number its classes ({error}).",
            remedy='Write {"0": name, "1": name, ...} in its config.json.',
        ) from None
    return found


def _labels(folder: ModelFolder, names: Mapping[int, str], rows: int) -> tuple[str, ...]:
    """Names in the order of the outputs; says where the table has gaps, or begins with 1.

    One output may have two names, for no and for yes.

    Raises:
        CheckpointError: the table is for another number of classes.
    """
    if not names:
        return tuple(f"LABEL_{k}" for k in range(rows))
    if rows == 1 and set(names) == {0, 1}:  # one output decides between two classes
        return names[0], names[1]
    first = 1 if max(names) == rows and 0 not in names else 0
    if max(names) - first != rows - 1:
        raise CheckpointError(
            f"The id2label of {folder.name!r} numbers classes from {min(names)} to {max(names)}, "
            f"and the network has {rows}.",
            remedy="Mend id2label in its config.json.",
        )
    if first:
        folder.remarks.append(
            f"The classes of {folder.name!r} are numbered from 1: its first output is "
            f"{names[min(names)]!r}." if 1 in names else
            f"The classes of {folder.name!r} are numbered from 1."
        )  # fmt: skip
    lost = [k for k in range(rows) if k + first not in names]
    if lost:
        shown = ", ".join(map(str, lost[:5])) + ", ..." * (len(lost) > 5)
        folder.remarks.append(f"{len(lost)} classes of {folder.name!r} have no name: {shown}.")
    return tuple(names.get(k + first, f"class {k}") for k in range(rows))


def _check_whole(
    folder: ModelFolder, report: Mapping[str, Any], state: Mapping[str, Tensor],
    unneeded: Sequence[str],
) -> None:  # fmt: skip
    """Refuses a model some of whose weights were not in the file, or of another shape."""
    name, kind = folder.name, folder.kind
    patches = [key for key in state if _LOW_RANK.search(key)]
    if patches:
        raise CheckpointError(
            f"{len(patches)} of the weights of {name!r} are low-rank patches (LoRA) that are not "
            f"merged into the others, such as {patches[0]!r}.",
            remedy="Merge them (peft's merge_and_unload), and save the model by save_pretrained.",
        )
    lost = sorted(str(k) for k in report["missing_keys"] if not str(k).startswith(tuple(unneeded)))
    # Name, shape in the file and shape in the network.
    odd = sorted((str(row[0]), *map(tuple, row[1:3])) for row in report["mismatched_keys"])
    extra = sorted(str(key) for key in report["unexpected_keys"])
    if odd:
        key, there, needed = odd[0]
        raise CheckpointError(
            f"{len(odd)} of the weights of {name!r} are of another shape than its configuration "
            f"says: {key} is {there}, not {needed}.",
            remedy="Set id2label and the sizes in config.json to those of the weights.",
        )
    if lost and len(extra) >= len(state):
        who = library_of(extra)
        who = "another network of transformers" if who == "transformers" else who
        shown = ", ".join(extra[:3])
        raise CheckpointError(
            f"None of the {len(extra)} weights of {name!r} belongs to its {kind}: their names are "
            f"those of {who or 'another network'} ({shown}, ...).",
            remedy="Give the weights that this configuration was saved with. " + folder.remedy,
        )
    if lost:
        raise CheckpointError(
            f"The {kind} {name!r} lacks {len(lost)} of its weights, such as {lost[0]!r}.",
            remedy="It may be a backbone without its head. " + folder.remedy,
        )
    if extra:
        shown = ", ".join(extra[:3]) + ", ..." * (len(extra) > 3)
        folder.remarks.append(f"{len(extra)} weights of {name!r} are not used: {shown}.")


@contextmanager
def _staged(files: Mapping[str, Mapping[str, Any]]) -> Iterator[Path]:
    """A folder with these JSON files and nothing else."""
    with tempfile.TemporaryDirectory(prefix="ppap-") as place:
        for name, content in files.items():
            _write(Path(place) / name, content)
        yield Path(place)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


@contextmanager
def _explained(folder: ModelFolder, place: Path, described: Mapping[str, Any]) -> Iterator[None]:
    """Turns every way in which loading fails into a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        # transformers has exceptions of its own, and raises those of Python and torch; whichever
        # it was, these files do not give a model.
        if isinstance(described.get("auto_map"), dict):
            raise _needs_code(folder, "its class", described["auto_map"]) from error
        reason = first_line(error).replace(str(place), folder.name)
        if reason.startswith("Unrecognized configuration class"):
            reason = f"it has no {folder.kind} of the type {described.get('model_type')!r}."
        raise CheckpointError(
            f"The {folder.kind} {folder.name!r} cannot be loaded by transformers: {reason}",
            remedy="Install the library that is missing where ppap is installed (pip install)."
            if isinstance(error, ImportError)
            else folder.remedy,
        ) from error
