"""Every value of every document that people can edit, replaced by everything that it is not."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from robustness import stock
from robustness.cases import Case

Write = Callable[..., None]
Reader = Callable[[Path], Any] | Sequence[str]


def cases() -> Iterator[Case]:
    """One case a place in a document; whatever is said is right if it is said in a line."""
    documents: tuple[tuple[str, Any, Write, Reader], ...] = (
        ("record", stock.RUN, stock.record, _rerun),
        ("harvest", stock.HARVEST, stock.harvest, _harvest),
        ("expert set", stock.SET, stock.expert_set, ("experts", "show", "set.safetensors")),
        ("calibration", stock.CALIBRATION, stock.calibration, _calibration),
        ("tuning", stock.TUNING, stock.tuning, ("plot", ".", "--out", "plot.png")),
        ("search", stock.SEARCH, stock.search, _search),
    )
    for name, sound, write, reader in documents:
        yield Case(f"{name}, sound", 14, write, reader, codes=(0,))
        for place, group in groupby(stock.spoilt(sound), key=lambda named: named[0].split(" ")[0]):
            spoilt = list(group)
            check = _each(spoilt, write, reader)
            label = f"{name}: {place}"
            yield Case(label, 14, _nothing, check, codes=(0,), seconds=120, inputs=len(spoilt))
        for what, text in _TEXTS.items():

            def spoil(folder: Path, text: bytes = text, write: Write = write) -> None:
                write(folder)
                for file in folder.rglob("*.json"):
                    file.write_bytes(text)

            if write is not stock.expert_set:
                yield Case(f"{name}, {what}", 14, spoil, reader)


_TEXTS = {
    "empty": b"", "cut": b'{"format": 1, "con', "no text": b"\xff\xfe\x00", "a list": b"[]",
    "a number": b"1", "deep": b"[" * 100_000, "binary": os.urandom(1000), "page": b"<html></html>",
}  # fmt: skip


def _nothing(folder: Path) -> None:
    """Each input makes its own."""


def _each(
    spoilt: Sequence[tuple[str, Any]], write: Write, reader: Reader
) -> Callable[[Path], None]:
    """Reads one document after the other; all but an error in a line is a fault."""

    def check(folder: Path) -> None:
        from ppap_host.cli import main
        from ppap_host.files.errors import PpapError

        base = folder.resolve()
        for number, (name, values) in enumerate(spoilt):
            own = base / str(number)
            own.mkdir()
            os.chdir(own)
            write(own, values)
            try:
                if callable(reader):
                    reader(own)
                else:
                    sys.argv = ["ppap", *reader]
                    main()
            except PpapError as error:
                print(f"Error: {error}", file=sys.stderr)
            except SystemExit as stop:
                if stop.code not in (None, 0, 1, 2):
                    raise RuntimeError(f"{name}: exit code {stop.code}") from None
            except BaseException:
                print(name, file=sys.stderr)
                raise

    return check


def _rerun(folder: Path) -> None:
    """All of ``ppap rerun`` but the images, whose making takes seconds."""
    from ppap_host.cli.rerun import _tell
    from ppap_host.runs.record import differences, read_record
    from ppap_host.runs.script import from_record

    before = read_record(folder / "run.json")
    from_record(before, folder)
    found = differences(before, stock.RUN)
    outcome = {"identical": False, "images": 1, "changed": [0], "differences": found}
    _tell(outcome)


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
