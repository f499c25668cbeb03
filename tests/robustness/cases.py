"""The table of cases, and what they are made of."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KINDS = {
    1: "what is not finite",
    2: "two seeds, the same picture",
    3: "numbers that mean nothing",
    4: "options that do nothing",
    6: "Python in model folders",
    7: "pictures that are something else",
    8: "names in documents that lead elsewhere",
    9: "words that steer a terminal",
    10: "small files that eat memory or time",
    11: "a power cut at any point",
    12: "two jobs at once",
    13: "no memory, and signals",
    14: "wrong types in documents that people edit",
    15: "sheets and harvests that grow",
    16: "a user's file is no fault of the plugin",
    17: "results where something else lies",
}
"""What the numbers mean; a module that adds a kind adds its line here."""

REFUSED = (2,)
"""Exit codes of what is refused."""


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        name: unique within its kind.
        kind: a key of :data:`KINDS`.
        make: makes the files in an empty folder, which the command then runs in.
        command: the arguments of ``ppap``; or a function of the folder, which may raise what a
            command would report, or ``AssertionError`` for what must not be.
        says: a regular expression that standard error must match; None for any words.
        prints: the same of standard output.
        codes: exit codes that are right; none: any, as long as nothing else is wrong.
        writes: files that the command may change, as patterns; all others must stay as they are.
        seconds: of computing in which it must end; ten times as many by the clock.
        memory: bytes that it may take beyond what is imported.
        inputs: how many inputs it stands for, where the function tries several.
    """

    name: str
    kind: int
    make: Callable[[Path], Any]
    command: Sequence[str] | Callable[[Path], Any]
    says: str | None = None
    codes: Sequence[int] = REFUSED
    writes: Sequence[str] = ()
    seconds: float = 60.0
    memory: int = 2 << 30
    inputs: int = 1
    prints: str | None = None


@dataclass
class Verdict:
    """What came of a case: each is empty where all was well, else says what was not."""

    case: Case
    seconds: float = 0.0
    executed: str = ""
    traceback: str = ""
    hang: str = ""
    lost: str = ""
    unsaid: str = ""
    told: str = field(default="", repr=False)

    @property
    def well(self) -> bool:
        """Whether nothing was wrong."""
        return not (self.executed or self.traceback or self.hang or self.lost or self.unsaid)


def all_cases(only: Sequence[int] = ()) -> Iterator[Case]:
    """The cases of all modules, of some kinds only where these are named."""
    from robustness import kinds

    for module in sorted(pkgutil.iter_modules(kinds.__path__), key=lambda m: m.name):
        for case in importlib.import_module(f"{kinds.__name__}.{module.name}").cases():
            if not only or case.kind in only:
                yield case
