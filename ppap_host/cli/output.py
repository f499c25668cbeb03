"""How the command line speaks: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from ppap_host.errors import PpapError

if TYPE_CHECKING:
    from rich.console import Console


def stderr() -> Console:
    """The console for progress, warnings and errors."""
    from rich.console import Console

    return Console(stderr=True)


def for_people(as_json: bool) -> bool:
    """Whether standard output is read by a person (a terminal, and no --json)."""
    return not as_json and sys.stdout.isatty()


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
