"""What the command line stands in: streams that may be closed or full, signals, a working folder.

Everything here is undone when the command ends, since Python may call it as well.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn, TextIO, cast

from ppap_host.cli.output import PLAIN_ERRORS
from ppap_host.files.errors import OutputError

INTERRUPTED = 130
"""Exit code of what was stopped by Ctrl-C, SIGTERM or SIGHUP."""
NOBODY_READS = 141
"""Exit code where the reader of standard output has gone: that of a program that SIGPIPE stops."""


# Streams


class NobodyReadsError(Exception):
    """The program that read the results, such as ``head``, has gone: there is no more to do."""


class _Stream:
    """A stream whose failures do not pass for those of what is written to it."""

    broken = False

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def failed(self, error: OSError | ValueError) -> Any:
        """Called instead of raising; ValueError is what Python says of a stream it has closed."""
        raise NotImplementedError

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:
            self.failed(error)
            return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self.failed(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Results(_Stream):
    """Standard output: what cannot be written there is lost, and that is an error."""

    def failed(self, error: OSError | ValueError) -> NoReturn:
        self.broken = True
        if isinstance(error, OSError) and error.errno == errno.EPIPE:
            raise NobodyReadsError from None
        why = (error.strerror if isinstance(error, OSError) else "") or str(error)
        raise OutputError(
            f"Cannot write to standard output: {why}.",
            remedy="Files that were named before are complete. Free some space, or send standard "
            "output somewhere else.",
        ) from None


class _Remarks(_Stream):
    """Standard error: nothing depends on it, so that a log on a full disk stops no job."""

    def failed(self, error: OSError | ValueError) -> None:
        self.broken = True


@contextmanager
def streams(results_alone: bool) -> Iterator[None]:
    """Keeps the standard streams fit to be written to.

    A stream that was closed does not leave its number to the next file that is opened. Characters
    that the encoding of a stream lacks are replaced by similar ones.

    Args:
        results_alone: what child processes and C libraries print goes to standard error. Without
            effect where standard output is none of the system's, as in a notebook.
    """
    _occupy()
    before = sys.stdout, sys.stderr
    with ExitStack() as stack:
        for stream in filter(None, before):
            stack.enter_context(_lenient(stream))
        remarks = _Remarks(sys.stderr or io.StringIO())
        sys.stderr = cast(TextIO, remarks)
        if results_alone and before[0] is not None:
            stack.enter_context(for_results_alone())
        results = _Results(sys.stdout or _Closed())
        sys.stdout = cast(TextIO, results)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
            for number, stream in ((1, results), (2, remarks)):
                if stream.broken:
                    _leave_nothing_behind(stream, number)


def _leave_nothing_behind(stream: _Stream, number: int) -> None:
    """What could not be written stays unwritten: Python would try it again when it ends."""
    with suppress(AttributeError, OSError, ValueError):
        if stream.fileno() == number:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)


class _Closed(io.StringIO):
    """A stream that says what a closed one says."""

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


def _occupy() -> None:
    """Takes the numbers of standard streams that are closed, so that no file gets them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


@contextmanager
def _lenient(stream: TextIO) -> Iterator[None]:
    errors = stream.errors
    if not isinstance(stream, io.TextIOWrapper):  # replaced, as in a notebook
        yield
        return
    with suppress(OSError):  # of a stream for both directions that cannot seek
        stream.reconfigure(errors=PLAIN_ERRORS)
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            stream.reconfigure(errors=errors)


@contextmanager
def for_results_alone() -> Iterator[None]:
    """Keeps standard output to what this process prints: children and C libraries get the other."""
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


# Signals


class _Interrupt:
    """Ends the command in order at the first signal, at once at the third.

    Between them what was made is written down, which a second Ctrl-C must not spoil.
    """

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count == 1:
            raise KeyboardInterrupt
        if self.count > 2:
            with suppress(OSError):
                os.write(2, b"\x1b[?25h" if os.isatty(2) else b"")  # a bar hides the cursor
            os._exit(INTERRUPTED)
        with suppress(OSError):
            os.write(2, b"\nEnding; once more stops at once.\n")


@contextmanager
def signals() -> Iterator[None]:
    """SIGTERM and SIGHUP, as clusters and closed terminals send them, end a command as Ctrl-C does.

    What the caller ignores stays ignored (``nohup``).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler, before = _Interrupt(), {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            with suppress(ValueError, OSError):
                signal.signal(number, old)


# The working folder


def working_folder_is_gone() -> bool:
    """Whether somebody has removed the folder that the command was started in."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False
