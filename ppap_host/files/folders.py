"""Folders: which are one job's, which number is free, and names that stay inside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import get_ident
from typing import TYPE_CHECKING, Final

from ppap_host.files.errors import OutputError, PpapError
from ppap_host.files.writing import UNFINISHED, cannot_write, make_folder

if TYPE_CHECKING:
    from filelock import FileLock

LOCK: Final = ".lock"
"""File by which a job holds its folder, which goes when the job ends. The system lets go of the
lock also if the job is killed."""

_held: dict[str, int] = {}
"""Folders that this process holds, and the threads that do."""


class Job:
    """Makes a folder one job's own, and makes it, if need be, until :meth:`end`.

    In the thread that holds a folder it may be asked for again. What a job that was killed has left
    half written is removed. A folder that was made for a job which leaves nothing is removed again.

    Args:
        folder: where results are written.
    Raises:
        OutputError: another job is at work in it, or it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        from filelock import FileLock, Timeout

        try:
            self.folder, self._key = folder, os.path.realpath(folder)
        except ValueError as error:  # half a character, or a byte 0
            raise OutputError(
                f"{str(folder)!r} is no name of a folder ({error}).",
                remedy="Give another with --out.",
            ) from None
        self._lock, self.created = None, False
        if _held.get(self._key) == get_ident():
            return
        self.created = make_folder(folder)
        # Not a thread's: whoever ends a job may be another one than who began it.
        lock = FileLock(folder / LOCK, thread_local=False)
        try:
            while not _acquired(lock, folder / LOCK):
                pass
        except Timeout:
            raise OutputError(
                f"Another job is at work in {str(folder)!r}.",
                remedy="Wait until it ends, stop it, or choose another folder.",
            ) from None
        except (OSError, NotImplementedError) as error:
            raise cannot_write(folder, error) from None
        self._lock = lock
        _held[self._key] = get_ident()
        _sweep(folder)

    def end(self) -> None:
        """Lets go of the folder; a second call does nothing."""
        if self._lock is None:
            return
        with suppress(OSError):  # Windows lets no open file go
            (self.folder / LOCK).unlink()
        if self.created:
            with suppress(OSError):  # not empty
                os.rmdir(self.folder)
        _held.pop(self._key, None)
        self._lock.release()
        self._lock = None

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def __del__(self) -> None:
        with suppress(Exception):  # never begun, or the interpreter is ending
            self.end()


def _sweep(folder: Path) -> None:
    """Removes what was being written when a job was killed."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and entry.name.endswith(UNFINISHED):
                os.unlink(entry.path)


def _acquired(lock: FileLock, path: Path) -> bool:
    """Takes a lock; false if its file was removed meanwhile, as a job does that ends.

    Raises:
        Timeout: another job has it.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
    try:
        lock.acquire(timeout=0)
        # While it is open its number is no other's: it was there, and is, so it is what is locked.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return True
        lock.release()
        return False
    finally:
        os.close(handle)


@contextmanager
def numbered(base: Path) -> Iterator[Path]:
    """A new folder ``base/000``, ``base/001`` ...: its number is taken by making it.

    It is removed again, and so is ``base`` if it was made for it, if what it was made for fails and
    leaves nothing there.

    Raises:
        OutputError: it cannot be made.
    """
    created = make_folder(base)
    number = 0
    while True:
        folder = base / f"{number:03d}"
        try:
            os.mkdir(folder)
            break
        except FileExistsError:
            number += 1
        except OSError as error:
            raise cannot_write(folder, error) from None
    try:
        yield folder
    except BaseException:
        with suppress(OSError):
            os.rmdir(folder)
            if created:
                os.rmdir(base)
        raise


def inside(folder: Path, name: str, error: type[PpapError], remedy: str = "") -> Path:
    """A file in a folder by the name that a record or another document gives it.

    Documents come from anywhere, and what they name is read, copied and shown: they must not reach
    what lies beside them, by ``..``, from the root, or through a link.

    Args:
        error: the class of the error.

    Raises:
        PpapError: of that class; the name leads out of the folder.
    """
    try:
        base = os.path.realpath(folder)
        path = os.path.realpath(os.path.join(base, name))
        within = path != base and os.path.commonpath([base, path]) == base
    except ValueError:  # a zero byte, or another drive
        within = False
    if not within or os.path.isabs(name):
        shown = name if len(name) <= 200 else f"{name[:200]}..."
        raise error(f"{shown!r} is no file inside {str(folder)!r}.", remedy=remedy)
    return folder / name
