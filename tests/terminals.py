"""A terminal for programs under test: what a person would see on it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pexpect
import pyte
from processes import plain_environment

ROWS = 1000
"""So many that nothing scrolls away."""


@dataclass(frozen=True)
class Screen:
    """What a program left on a terminal.

    Attributes:
        code: its exit code.
        lines: of the screen at the end, without blanks at their ends and empty lines at the end.
        written: all that it wrote, escape sequences included.
    """

    code: int
    lines: list[str]
    written: str

    @property
    def text(self) -> str:
        """The lines as one text."""
        return "\n".join(self.lines)

    @property
    def links(self) -> dict[str, str]:
        """What can be clicked: the text -> its address (OSC 8)."""
        found = re.findall(r"\x1b\]8;[^;]*;([^\x1b]+)\x1b\\(.*?)\x1b\]8;;\x1b\\", self.written)
        return {re.sub(r"\x1b\[[\d;]*m", "", text): address for address, text in found}


def on_terminal(
    command: Sequence[str],
    folder: Path,
    *,
    columns: int = 80,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> Screen:
    """Runs a command on a terminal of its own until it ends.

    Args:
        env: added to the plain environment.
    """
    child = pexpect.spawn(
        command[0],
        [*command[1:]],
        cwd=str(folder),
        env={**plain_environment(), "TERM": "xterm-256color", **(env or {})},
        dimensions=(ROWS, columns),
        encoding="utf-8",
        timeout=timeout,
    )
    child.expect(pexpect.EOF)
    child.close()
    written: str = child.before
    screen = pyte.Screen(columns, ROWS)
    # The emulator does not know links, and they take no place.
    pyte.Stream(screen).feed(re.sub(r"\x1b\]8;.*?\x1b\\", "", written))
    lines = [line.rstrip() for line in screen.display]
    while lines and not lines[-1]:
        lines.pop()
    return Screen(
        child.exitstatus if child.signalstatus is None else -child.signalstatus, lines, written
    )
