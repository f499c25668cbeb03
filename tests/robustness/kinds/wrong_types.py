"""Every value of every document that people can edit, replaced by everything that it is not."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from robustness import stock
from robustness.cases import Case


def cases() -> Iterator[Case]:
    """One case a place and a wrong value; whatever is said is right if it is said in a line."""
    documents: tuple[tuple[str, Any, Callable[..., None], Any], ...] = (
        ("record", stock.RUN, stock.record, _rerun),
        ("harvest", stock.HARVEST, stock.harvest, _harvest),
        ("expert set", stock.SET, stock.expert_set, ("experts", "show", "set.safetensors")),
        ("calibration", stock.CALIBRATION, stock.calibration, _calibration),
        ("tuning", stock.TUNING, stock.tuning, ("plot", ".", "--out", "plot.png")),
        ("search", stock.SEARCH, stock.search, _search),
    )
    for name, sound, write, command in documents:
        yield Case(f"{name}, sound", 14, write, command, codes=(0, 1))
        for where, values in stock.spoilt(sound):

            def make(folder: Path, values: Any = values, write: Any = write) -> None:
                write(folder, values)

            yield Case(f"{name}: {where}", 14, make, command, codes=(0, 1, 2), writes=("h/.lock",))
        for what, text in _TEXTS.items():

            def spoil(folder: Path, text: bytes = text, write: Any = write) -> None:
                write(folder)
                for file in folder.rglob("*.json"):
                    file.write_bytes(text)

            if write is not stock.expert_set:
                yield Case(f"{name}, {what}", 14, spoil, command)


_TEXTS = {
    "empty": b"", "cut": b'{"format": 1, "con', "no text": b"\xff\xfe\x00", "a list": b"[]",
    "a number": b"1", "deep": b"[" * 100_000, "binary": os.urandom(1000), "page": b"<html></html>",
}  # fmt: skip


def _rerun(folder: Path) -> None:
    """All of ``ppap rerun`` but the images, whose making takes seconds."""
    from ppap_host.cli.rerun import _tell
    from ppap_host.runs.record import differences, read_record
    from ppap_host.runs.script import from_record

    before = read_record(folder / "run.json")
    from_record(before, folder)
    found = differences(before, stock.RUN)
    _tell({"identical": False, "images": len(before["images"]), "changed": [0],
           "differences": found})  # fmt: skip


def _harvest(folder: Path) -> None:
    from ppap_plugin_bench.calibration.material import from_harvest

    from ppap_host.experts.harvest import Harvest

    made = Harvest.open(folder / "h")
    from_harvest(made, 3)


def _calibration(folder: Path) -> None:
    from ppap_host.backbones.noise import NoiseLevel
    from ppap_host.experts.calibration import load_calibration

    found = load_calibration(folder)
    found.inverse_temperature(NoiseLevel(0.5, 0.5, 0.0))
    found.save(folder / "again.json")
    print([part.name for part in found.ranges])


def _search(folder: Path) -> None:
    from ppap_plugin_bench.search.session import _stored, trials_kept

    trials_kept(folder / "w")
    _stored(folder / "w", {"run": {"num": 4}})
