"""Programs run as processes of their own, whatever the shell that the tests run in."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


def plain_environment() -> dict[str, str]:
    """The environment without what changes how Python or Rich behave."""
    loud = ("PYTHON", "COLUMNS", "FORCE_COLOR", "CLICOLOR", "TTY_", "_PPAP")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(loud)}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}


def run_process(command: list[str], folder: Path) -> Outcome:
    done = subprocess.run(
        command,
        cwd=folder,
        env=plain_environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
