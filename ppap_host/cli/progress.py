"""How far a command is: a bar on a terminal, now and then a line in a log file."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ppap_host.cli.output import VOICE, clean, console, is_terminal

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Task

Watch = Callable[[str, int, int], None]
"""Told of progress: (what is being done, done so far, in all)."""

FIRST = 5.0
"""Seconds until the first line: what takes less says what came of it, and nothing before."""
EVERY = 20.0
"""Seconds between two lines."""


class Display:
    """Where progress is shown; it is a :data:`Watch`. This one shows nothing."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Told of progress."""

    def show(self, table: Callable[[], RenderableType], told: str) -> None:
        """Shows how well it goes, until the next time.

        Args:
            table: makes what stands above a bar.
            told: the same in a few words, for the lines of a log.
        """


@contextmanager
def progress_bar(*, disable: bool = False) -> Iterator[Display]:
    """Shows progress on standard error.

    On a terminal it is a bar. Elsewhere a line says every :data:`EVERY` seconds what is being done,
    also while nothing is told, such as during a download or a long step: a log shows that the
    command lives. Nothing is shown with --quiet, or if ``disable``.
    """
    if disable or VOICE.quiet:
        yield Display()
    elif is_terminal(sys.stderr) and not console(error=True).is_dumb_terminal:
        with _bar() as display:
            yield display
    else:
        with _lines() as display:
            yield display


def _clock(seconds: float) -> str:
    """A time as clocks show it: 0:07, 12:30, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class _Lines(Display):
    """What is being done, since when, and how far it is: a line for a log."""

    def __init__(self) -> None:
        self.began = self.since = time.monotonic()
        self.what, self.before, self.done, self.total = "starting", 0, 0, 0
        self.told = ""

    def show(self, table: Callable[[], RenderableType], told: str) -> None:
        self.told = f"; {told}"

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self.what:
            # What was done before does not say how fast this goes.
            self.what, self.since, self.before = what, time.monotonic(), done
        self.done, self.total = done, total

    def __str__(self) -> str:
        now = time.monotonic()
        parts = [f"{_clock(now - self.began)} elapsed"]
        if self.total > 1:
            parts.insert(0, f"{self.done / self.total:.0%}")
        made, missing = self.done - self.before, self.total - self.done
        if made > 0 and missing > 0:
            parts.append(f"about {_clock((now - self.since) * missing / made)} left")
        return f"{clean(self.what)}: {', '.join(parts)}{clean(self.told)}"


@contextmanager
def _lines() -> Iterator[Display]:
    display, ended = _Lines(), threading.Event()

    def speak() -> None:
        pause = FIRST
        while not ended.wait(pause):
            sys.stderr.write(f"{display}\n")
            sys.stderr.flush()
            pause = EVERY

    speaker = threading.Thread(target=speak, name="progress", daemon=True)
    speaker.start()
    try:
        yield display
    finally:
        ended.set()
        speaker.join()


@contextmanager
def _bar() -> Iterator[Display]:
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
    from rich.table import Column
    from rich.text import Text

    class Times(ProgressColumn):
        """Time spent and time left, each with its name."""

        def render(self, task: Task) -> Text:
            left = task.time_remaining
            then = f", {_clock(left)} left" if left else ""
            return Text(f"{_clock(task.elapsed or 0)} elapsed{then}", "dim")

    class Bar(Display):
        table: RenderableType | None = None

        def __call__(self, what: str, done: int, total: int) -> None:
            progress.update(task, description=clean(what), completed=done, total=total)

        def show(self, table: Callable[[], RenderableType], told: str) -> None:
            self.table = table()

    class WithTable(Progress):
        def get_renderables(self) -> Iterator[RenderableType]:
            if bar.table is not None:
                yield bar.table
            yield from super().get_renderables()

    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold")),
        BarColumn(12), TextColumn("{task.percentage:>3.0f}%"), Times(),
    )  # fmt: skip
    bar = Bar()
    # Results and bar share a terminal: what is printed meanwhile stands above the bar.
    shared = is_terminal(sys.stdout)
    with WithTable(*columns, console=console(error=True), redirect_stdout=shared) as progress:
        task = progress.add_task("starting", total=None)
        yield bar
