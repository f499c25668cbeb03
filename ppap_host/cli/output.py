"""How the command line speaks: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

from ppap_host.files.errors import PpapError

if TYPE_CHECKING:
    from rich.console import Console


def stderr() -> Console:
    """The console for progress, warnings and errors."""
    from rich.console import Console

    return Console(stderr=True)


def for_people(as_json: bool) -> bool:
    """Whether standard output is read by a person (a terminal, and no --json)."""
    return not as_json and sys.stdout.isatty()


@contextmanager
def for_results_alone() -> Iterator[None]:
    """Keeps standard output to what this process prints: children and C libraries get the other.

    Without effect where standard output is none of the system's, as in a notebook.
    """
    before = sys.stdout
    own = _duplicate()
    if own is None:
        yield
        return
    before.flush()
    line_by_line = 1 if before.isatty() else -1
    results = open(own, "w", line_by_line, before.encoding, before.errors)  # noqa: SIM115
    sys.stdout = results
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout = before
        with suppress(OSError):  # nobody may be left to read it
            results.flush()
        os.dup2(own, 1)
        with suppress(OSError):
            results.close()


def _duplicate() -> int | None:
    """Another descriptor of the system's standard output, if that and the error are in use."""
    try:
        if sys.stdout.fileno() == 1 and sys.stderr.fileno() == 2:
            return os.dup(1)
    except (AttributeError, OSError, ValueError):  # replaced, closed, or not there at all
        pass
    return None


def print_json(value: Any) -> None:
    """Prints a value as JSON and nothing else."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def show_warning(text: str) -> None:
    """Prints a warning on one line."""
    stderr().print(f"Warning: {text}", style="yellow", markup=False, soft_wrap=True)


def fail(error: PpapError) -> NoReturn:
    """Prints an error on one line, with its remedy, and exits with its code."""
    from rich.text import Text

    line = Text.assemble(("Error: ", "bold red"), error.message)
    if error.remedy:
        line.append(f" {error.remedy}", style="dim")
    stderr().print(line, soft_wrap=True)
    sys.exit(error.exit_code)
