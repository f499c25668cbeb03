"""The parts of a benchmark on disk, so that one that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ppap_host.files.errors import DamageWarning, OutputError
from ppap_host.files.reading import Document, read_bytes
from ppap_host.files.writing import write_file

FORMAT = 1
# What was measured of nothing is NaN, and is kept like anything else.
_CELL = Document("part of a benchmark", OutputError, "It is made again.", 1 << 30, infinite=True)


class _Stored(BaseModel):
    settings: dict[str, Any]
    values: dict[str, Any]
    sha256: str | None


@dataclass
class Cell:
    """What one part of a benchmark found.

    Attributes:
        values: JSON values.
        tensors: images and other arrays, by name.
    """

    values: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)


class Cells:
    """A folder of finished cells: ``<name>.json`` and, with tensors, ``<name>.safetensors``.

    A cell belongs to the settings it was made with. It is made anew if they differ, or if its files
    are damaged; what made it is never guessed.

    Attributes:
        folder: where they lie.
        made, reused: names of the cells that this object made, and found.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[str] = []
        self.reused: list[str] = []

    def get(self, name: str, settings: Mapping[str, Any], make: Callable[[], Cell]) -> Cell:
        """The cell ``name``, from disk if it was made with the same ``settings``.

        Args:
            settings: JSON values; everything that the outcome depends on.
            make: makes it; may be interrupted, then nothing is written.

        Raises:
            OutputError: it cannot be written.
        """
        stem = re.sub(r"[^a-z0-9.+-]+", "-", name.lower())
        wanted = json.loads(json.dumps({"format": FORMAT, **settings}))
        found = self._read(stem, wanted)
        if found is not None:
            self.reused.append(name)
            return found
        cell = make()
        self._write(stem, wanted, cell)
        self.made.append(name)
        return cell

    def _read(self, stem: str, wanted: dict[str, Any]) -> Cell | None:
        """The cell that is there, if it is whole and of these settings; it is made again if not."""
        if not (self.folder / f"{stem}.json").exists():
            return None
        try:
            stored = _CELL.read(self.folder / f"{stem}.json", _Stored)
            if stored.settings != wanted:
                return None
            if stored.sha256 is None:
                return Cell(stored.values)
            data = read_bytes(self.folder / f"{stem}.safetensors", OutputError, size=8 << 30)
            if hashlib.sha256(data).hexdigest() != stored.sha256:
                raise OutputError(f"{stem}.safetensors is damaged.", remedy=_CELL.remedy)
            return Cell(stored.values, load(data))
        except (OutputError, SafetensorError) as error:
            warnings.warn(f"{error}", DamageWarning, stacklevel=3)
            return None

    def _write(self, stem: str, wanted: dict[str, Any], cell: Cell) -> None:
        digest = None
        if cell.tensors:
            data = save({name: tensor.contiguous() for name, tensor in cell.tensors.items()})
            digest = hashlib.sha256(data).hexdigest()
            write_file(self.folder / f"{stem}.safetensors", data)
        stored = {"settings": wanted, "values": cell.values, "sha256": digest}
        # Last, so that a cell whose JSON is there is whole.
        text = json.dumps(stored, indent=1, ensure_ascii=False) + "\n"
        write_file(self.folder / f"{stem}.json", text.encode())
