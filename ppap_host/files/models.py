"""Models as users name them: folders, and repositories of the hub.

A model's folder is not ours. What is read of it is asked for by name through a
:class:`ModelFolder`, which keeps the list for the record; nothing in it decides what else is read,
fetched or run.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration

from ppap_host.files.checkpoints import conversion, other_kind, read_head, read_state_dict
from ppap_host.files.errors import CheckpointError
from ppap_host.files.offline import nothing_fetched
from ppap_host.files.reading import Document, local_path

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
"""What libraries call the description of a model, its weights, and the list of their parts."""

HALF = "model.fp16.safetensors"
HALF_INDEX = "model.safetensors.index.fp16.json"
"""Weights that are published in half precision beside the others, or alone, and their parts."""

PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".tar", ".pkl", ".pickle")
"""Endings of files that may run any program when they are read as they were meant to be."""

MOST_JSON = 16 << 20
"""Bytes of a JSON file that is read; the configuration of 21,841 classes has two million."""

_NO_MODEL = re.compile(r"optim|sched|scaler|rng_state|random_states|training_args")
_LARGEST, _MOST_LAYERS = 10**9, 100_000
_ELSEWHERE = "What a model needs has to lie in its folder; save it again with its library."
_UNFETCHED = "Connect to the internet, unset HF_HUB_OFFLINE, or give a local folder."


def local_folder(name: str, remedy: str = "") -> Path | None:
    """The folder of this name, ``~`` being the user's own; None where it can only be a hub name.

    Raises:
        CheckpointError: it is a file or an address, or is written like a path, and there is no such
            folder.
    """
    folder = own_path(name)
    if os.path.isdir(folder):  # Path.is_dir raises for names that are too long
        return folder
    if "://" in name and not name.startswith("file:"):
        raise CheckpointError(
            f"{name!r} is an address, and nothing is fetched from one.",
            remedy=f"Name a model of the hub as OWNER/NAME. {remedy}",
        )
    if os.path.isfile(folder):
        what = other_kind(read_head(folder))
        raise CheckpointError(
            f"{name!r} is a file{f' ({what})' if what else ''}, and the folder of a model is "
            "wanted.",
            remedy=remedy,
        )
    if name.startswith((".", "~", "/")) or name.count("/") > 1 or "\\" in name:
        raise CheckpointError(f"There is no model folder {name!r}.", remedy=remedy)
    return None


def own_path(name: str | os.PathLike[str]) -> Path:
    """The path, as :func:`~ppap_host.files.reading.local_path`."""
    return Path(local_path(os.fspath(name)))


def read_json(
    path: str | os.PathLike[str], remedy: str = "Save or download the model again."
) -> Any:
    """The content of a JSON file of a model, within a budget.

    Raises:
        CheckpointError: it cannot be read, is no JSON, larger than :data:`MOST_JSON`, nested deeper
            than anything that is meant, or has a whole number that can only fill the memory.
    """
    content = Document("readable JSON", CheckpointError, remedy, MOST_JSON, infinite=True).read(
        path, object
    )
    _check_numbers(content, _LARGEST, str(path), remedy)
    return content


# So many of these are counted out one by one before the first of them is made.
_COUNTED = re.compile(r"depth|layers|blocks|stages")
_TABLES = ("id2label", "label2id")


def _check_numbers(value: Any, most: int, source: str, remedy: str) -> None:
    """Refuses whole numbers in a document that can only fill the memory or take a day."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key in _TABLES and isinstance(inner, dict):  # whose keys are names of classes
                inner = list(inner.values())
            counted = _COUNTED.search(key) is not None
            _check_numbers(inner, _MOST_LAYERS if counted else most, source, remedy)
    elif isinstance(value, list):
        for inner in value:
            _check_numbers(inner, most, source, remedy)
    elif isinstance(value, int) and abs(value) > most:
        raise CheckpointError(
            f"{source!r} holds the number {value:.3g}, which cannot be meant.", remedy=remedy
        )


class ModelFolder:
    """A folder, or a repository on the hub, and what was read of it.

    Args:
        name: as the user gave it: a folder, or ``owner/name``, optionally ``@revision``.
        kind: what such a model is called in messages.
        remedy: how users may write one.

    Attributes:
        name: what it is called in messages.
        folder: where it is; None for a repository.
        remarks: what had to be chosen among its files, a sentence each.

    Raises:
        CheckpointError: it is written like a path, and there is no such folder.
    """

    def __init__(self, name: str, kind: str = "model", remedy: str = "") -> None:
        self.name, self.kind, self.remedy = name, kind, remedy
        self.folder = local_folder(name, remedy)
        self._repository, _, self._revision = name.partition("@")
        self.remarks: list[str] = []
        self._read: dict[str, Path] = {}

    @property
    def files(self) -> tuple[Path, ...]:
        """What was read, in the order in which it was asked for."""
        return tuple(self._read.values())

    def find(self, file: str) -> Path | None:
        """A file of this name, downloaded if it must be; None if there is none.

        Raises:
            CheckpointError: the hub cannot be reached, or has no such repository.
        """
        if self.folder is not None:
            path = self.folder / file
            found = path if path.is_file() else None
        else:
            found = self._download(file)
        if found is not None:
            self._read[file] = found
        return found

    def forget(self, file: str) -> None:
        """Takes a file off the list: nothing in it was used."""
        self._read.pop(file, None)

    def need(self, file: str) -> Path:
        """As :meth:`find`, for a file that must be there.

        Raises:
            CheckpointError: it is not; a pickle in its place is named.
        """
        found = self.find(file)
        if found is not None:
            return found
        if self.folder is None:
            raise CheckpointError(
                f"The hub model {self.name!r} has no {file}.",
                remedy="Models with safetensors weights are read. " + self.remedy,
            )
        there = sorted(path.name for path in self.folder.iterdir())
        others = [n for n in there if n.endswith(PICKLES) and not _NO_MODEL.search(n)]
        if file.endswith(".safetensors") and others and re.search(r"-\d+-of-\d+\.", others[0]):
            raise CheckpointError(
                f"There is no {file} in {str(self.folder)!r}, only pickles in parts "
                f"({others[0]}, ...), which are never read in place of safetensors.",
                remedy="Convert them where you trust them: load the folder with the library that "
                "wrote it, and save it by save_pretrained.",
            )
        if file.endswith(".safetensors") and others:
            raise CheckpointError(
                f"There is no {file} in {str(self.folder)!r}. Its {others[0]} is a pickle, which "
                "is never read in place of safetensors.",
                remedy="Convert it where you trust it: " + conversion(others[0], file),
            )
        raise CheckpointError(
            f"There is no {file} in {str(self.folder)!r}; it holds "
            f"{', '.join(there[:6]) or 'nothing'}{', ...' if len(there) > 6 else ''}.",
            remedy="It is an adapter (LoRA): merge it into its model by peft's merge_and_unload, "
            "and save that by save_pretrained."
            if "adapter_config.json" in there
            else self.remedy,
        )

    def json(self, file: str) -> dict[str, Any] | None:
        """The object in a JSON file; None if there is no such file.

        Raises:
            CheckpointError: as :func:`read_json`, or it holds something else.
        """
        path = self.find(file)
        if path is None:
            return None
        content = read_json(path)
        if not isinstance(content, dict):
            raise CheckpointError(
                f"The {file} of the model {self.name!r} holds a {type(content).__name__}, "
                "no JSON object.",
                remedy="Save or download it again.",
            )
        return content

    def weights(self) -> dict[str, Tensor]:
        """The tensors in ``WEIGHTS``, in its parts, or the same of half precision (:data:`HALF`).

        Raises:
            CheckpointError: there are none, or they are damaged.
        """
        for file in (WEIGHTS, INDEX, HALF, HALF_INDEX):
            whole = self.find(file)
            if whole is None:
                continue
            if file in (HALF, HALF_INDEX):
                self.remarks.append(f"{self.name!r} has half-precision weights only ({file}).")
            if file.endswith(".safetensors"):
                return read_state_dict(whole, self.remarks)
            state: dict[str, Tensor] = {}
            for part in self.parts(file):
                state |= read_state_dict(self.need(part), self.remarks)
            return state
        return read_state_dict(self.need(WEIGHTS), self.remarks)

    def parts(self, index: str) -> list[str]:
        """Names of the files over which weights are spread; they stay in the folder.

        Raises:
            CheckpointError: the index does not say where they are.
        """
        table = (self.json(index) or {}).get("weight_map")
        parts = sorted(map(str, set(table.values()))) if isinstance(table, dict) else []
        if not parts or not all(
            part.endswith(".safetensors") and Path(part).name == part and "\\" not in part
            for part in parts
        ):
            raise CheckpointError(
                f"The {index} of the model {self.name!r} does not say where the weights are.",
                remedy="Save or download the model again.",
            )
        return parts

    def _download(self, file: str) -> Path | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HFValidationError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
        )

        repository, revision = self._repository, self._revision or None
        try:
            return Path(hf_hub_download(repository, file, revision=revision))
        except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
            if self._read:  # of what is in the cache, this was not fetched when it was
                return None
            raise CheckpointError(
                f"The {self.kind} {self.name!r} is not on this machine and the hub cannot be "
                "reached.",
                remedy=f"{_UNFETCHED} {self.remedy}",
            ) from error
        except RepositoryNotFoundError as error:
            raise CheckpointError(
                f"There is no model {repository!r} on the hub, or it is private.",
                remedy=self.remedy,
            ) from error
        except HFValidationError as error:
            raise CheckpointError(
                f"{self.name!r} is no name of a hub model.", remedy=self.remedy
            ) from error
        except EntryNotFoundError:
            return None
        except Exception as error:  # gated models, broken connections, a full disk ...
            raise CheckpointError(
                f"The {self.kind} {self.name!r} cannot be downloaded: {first_line(error)}",
                remedy=self.remedy,
            ) from error


def first_line(error: BaseException) -> str:
    """Of what an exception says, at most 300 characters; its own name if it says nothing."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else repr(error)
    return text if len(text) <= 300 else text[:300] + " ..."


def from_pretrained(kind: Any, source: str | Path | None, **options: Any) -> Any:
    """``kind.from_pretrained`` of a library, which neither runs code of a folder nor fetches.

    The only place where it is called. A folder that asks for code of its own is refused by the
    library, where otherwise a question on the terminal would be enough.

    Args:
        kind: a class of transformers or diffusers.
        source: a folder; None for what is made of ``options`` alone.
    """
    with quietly(), nothing_fetched(str(source or "the model"), _ELSEWHERE):
        return kind.from_pretrained(
            source if source is None else str(source),
            trust_remote_code=False,
            local_files_only=True,
            **options,
        )


@contextmanager
def quietly() -> Iterator[None]:
    """No bars and no reports of transformers and diffusers: what is wrong is raised instead."""
    # The host imports no transformers; where a model needs it, it has been imported.
    there = [sys.modules.get(f"{name}.utils.logging") for name in ("transformers", "diffusers")]
    found: list[Any] = [logging for logging in there if logging is not None]
    before = [(x, x.is_progress_bar_enabled(), x.get_verbosity()) for x in found]
    for logging in found:
        logging.disable_progress_bar()
        logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        for logging, bars, level in before:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()


@contextmanager
def no_larger_than(name: str, numbers: int, tensors: int = 3000) -> Iterator[None]:
    """Stops the making of a network that its weights cannot fill.

    A configuration of a hundred bytes may ask for a network that no machine can build. Inside, a
    network may have some times the numbers and the parts that its weights have; where it has more
    of either, making it ends. It should be made on the meta device first, which has no memory.

    Args:
        name: of the model, for messages.
        numbers: in its weights.
        tensors: among its weights.

    Raises:
        CheckpointError: it has more.
    """
    most, parts = 16 * numbers + (1 << 27), 32 * tensors + 20_000
    made = [0, 0]

    def count(owner: nn.Module, part: str, value: Any) -> None:
        made[0] += value.numel() if isinstance(value, Tensor) else 0
        made[1] += 1
        if made[0] > most or made[1] > parts:
            raise CheckpointError(
                f"The configuration of {name!r} describes a network far larger than its weights.",
                remedy="Mend the configuration: its sizes are not those that the weights have.",
            )

    register = (
        registration.register_module_parameter_registration_hook,
        registration.register_module_buffer_registration_hook,
        registration.register_module_module_registration_hook,
    )
    hooks = [add(count) for add in register]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def held(state: Mapping[str, Tensor]) -> int:
    """How many numbers there are in a state dict."""
    return sum(tensor.numel() for tensor in state.values())


def build(make: Callable[[], nn.Module], state: Mapping[str, Tensor], name: str) -> nn.Module:
    """A network that a file's configuration describes, as it is initialised.

    It is made without memory first (:func:`no_larger_than`). Neither moves a caller's seed.

    Args:
        make: makes it.
        state: the weights that are meant for it.
        name: of the model, for messages.

    Raises:
        CheckpointError: the weights are for a far smaller one.
        Exception: whatever ``make`` raises.
    """
    with torch.random.fork_rng(devices=[]), nothing_fetched(name, _ELSEWHERE):
        try:
            with no_larger_than(name, held(state), len(state)), torch.device("meta"):
                make()
        except (NotImplementedError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "meta" not in str(error):
                raise
            # It looks at numbers while it is made, which the meta device has not got.
            with no_larger_than(name, held(state), len(state)):
                return make()
        return make()
