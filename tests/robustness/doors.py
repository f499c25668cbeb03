"""One configuration through all doors: the command line, TOML, a record and Python."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
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


def through_all(
    name: str,
    kind: int,
    make: Make,
    values: Values,
    *,
    says: str | None = None,
    works: bool = False,
    **more: Any,
) -> Iterator[Case]:
    """A case for each door.

    Args:
        values: of a run, as a record has them.
        works: whether an image is made, which is another than the record says; else it is refused.
        more: of each :class:`~robustness.cases.Case`.
    """
    codes: Sequence[int] = (0,) if works else REFUSED

    def toml(folder: Path) -> None:
        make(folder)
        rest = {k: v for k, v in values.items() if k != "guides"}
        (folder / "x.toml").write_text(tomli_w.dumps({**rest, "guide": values.get("guides", [])}))

    def record(folder: Path) -> None:
        make(folder)
        stock.record(folder, {**stock.RUN, "config": {"backbone": "shapes", **values}})

    doors: dict[str, tuple[Make, Any, Sequence[int]]] = {
        "command line": (make, command_line(values), codes),
        "TOML": (toml, ("run", "--config", "x.toml", "--no-unguided", "--out", "out"), codes),
        "record": (record, ("rerun", "run.json"), (1, 2) if works else REFUSED),
        "Python": (make, lambda folder: in_python(values), codes),
    }
    for door, (files, command, right) in doors.items():
        # A record's targets are those that lie beside it, whatever its configuration says.
        said = None if door == "record" else says
        yield Case(f"{name}, {door}", kind, files, command, said, right, **more)


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
