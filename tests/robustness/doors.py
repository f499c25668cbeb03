"""One configuration through all doors: the command line, TOML, a record and Python."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from robustness import stock
from robustness.cases import REFUSED, Case

Make = Callable[[Path], Any]
Values = Mapping[str, Any]

QUICK: dict[str, Any] = {"num": 1, "steps": 1, "seed": 3, "device": "cpu"}
"""What keeps a run short."""


def guided(name: str, target: Any = "x.png", **more: Any) -> dict[str, Any]:
    """The configuration of a quick run with one guide."""
    return {**QUICK, "guides": [{"name": name, "target": target, "recipe": "x0", **more}]}


DOORS = ("command line", "TOML", "record", "Python")


def through_all(
    name: str,
    kind: int,
    make: Make,
    values: Values,
    *,
    codes: Sequence[int] = REFUSED,
    doors: Sequence[str] = DOORS,
    **more: Any,
) -> Case:
    """A case that goes through one door after the other.

    Args:
        values: of a run, as a record has them.
        codes: exit codes that are right; 0 where an image may be made, which then is another than
            the record says.
        more: of the :class:`~robustness.cases.Case`.
    """

    def check(folder: Path) -> None:
        for door in doors:
            try:
                code = _gone_through(door, folder, values)
            except BaseException:
                print(door, file=sys.stderr)
                raise
            right = (*codes, 1) if door == "record" and 0 in codes else codes
            if code not in right:
                raise RuntimeError(f"{door}: exit code {code}")

    more = {"inputs": len(doors), "seconds": 120.0, "writes": ("x.toml", "run.json"), **more}
    return Case(name, kind, make, check, codes=(0,), **more)


def _gone_through(door: str, folder: Path, values: Values) -> int:
    """The exit code, or what it would be."""
    from ppap_host.files.errors import PpapError

    if door == "Python":
        try:
            in_python(values)
        except PpapError as error:
            print(f"Error: {error}", file=sys.stderr)
            return error.exit_code
        return 0
    command = command_line(values, "out-1")
    if door == "TOML":
        rest = {k: v for k, v in values.items() if k != "guides"}
        (folder / "x.toml").write_text(tomli_w.dumps({**rest, "guide": values.get("guides", [])}))
        command = ("run", "--config", "x.toml", "--no-unguided", "--out", "out-2")
    elif door == "record":
        stock.record(folder, {**stock.RUN, "config": {"backbone": "shapes", **values}})
        command = ("rerun", "run.json")
    return ppap(command)


def ppap(arguments: Sequence[str]) -> int:
    """The command in this process; its exit code."""
    from ppap_host.cli import main

    sys.argv = ["ppap", *arguments]
    try:
        main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0


_WORDS = {"class_index": "class", "guides": "guide"}


def command_line(values: Values, out: str = "out") -> tuple[str, ...]:
    """The command that says the same."""
    words = ["run", "--no-unguided", "--out", out]
    for key, value in values.items():
        if key == "guides":
            for guide in value:
                words += _options({"guide": guide["name"], **guide}, leave=("name",))
        elif key in ("pipeline", "backbone_options"):
            option = "--pipeline" if key == "pipeline" else "--backbone-option"
            for name, inner in value.items():
                shown = inner if isinstance(inner, str) else json.dumps(inner)
                words += [option, f"{name}={shown}"]
        else:
            words += _options({key: value})
    return tuple(words)


def _options(values: Values, leave: Sequence[str] = ()) -> list[str]:
    found = []
    for key, value in values.items():
        if key not in leave:
            option = f"--{_WORDS.get(key, key).replace('_', '-')}"
            for one in value if isinstance(value, list) else [value]:
                found += [option, str(one)]
    return found


def in_python(values: Values) -> None:
    """The same with ``import ppap_host as ppap``."""
    import ppap_host as ppap

    rest = {k: v for k, v in values.items() if k not in ("guides", "backbone")}
    guides = []
    for guide in values.get("guides", ()):
        guide = dict(guide)
        guides.append(ppap.guidance(guide.pop("name"), guide.pop("target", None), **guide))
    ppap.sample(values.get("backbone", "shapes"), guides, **rest)
