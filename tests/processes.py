"""Programs run as processes of their own, whatever the shell that the tests run in."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def success(self) -> Outcome:
        """This outcome.

        Raises:
            RuntimeError: with all that was printed, if the command failed.
        """
        if self.code:
            raise RuntimeError(f"exit code {self.code}\n{self.out}\n{self.err}")
        return self


def plain_environment() -> dict[str, str]:
    """The environment without what changes how Python or Rich behave."""
    loud = ("PYTHON", "COLUMNS", "FORCE_COLOR", "CLICOLOR", "TTY_", "_PPAP")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(loud)}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}


def run_process(
    command: list[str], folder: Path, env: Mapping[str, str] | None = None, timeout: float = 300
) -> Outcome:
    """Runs a command in a folder, at most ``timeout`` seconds long.

    Args:
        env: all of its environment; the plain one if left out.
    """
    done = subprocess.run(
        command,
        cwd=folder,
        env=plain_environment() if env is None else env,
        capture_output=True,
        encoding="utf-8",
        timeout=timeout,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
