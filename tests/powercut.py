"""What a power cut may leave of a folder: a layer that sees what has reached the disk.

A file system keeps two promises and no more: the bytes of a file are on the disk once it has been
flushed, and the names in a folder once the folder has been. :class:`Disk` watches a folder while a
program writes into it in this process, notes what has been flushed, and at every point can say what
would be found after a power cut:

* ``nothing``: only what was flushed, of names and of bytes;
* ``names``: all names as they are, with the bytes that were flushed, so that a file which was never
  flushed is empty (what file systems do that journal names alone);
* ``half``: all names, and of unflushed files a part of their bytes, the rest being zeros.

It knows nothing of how the program writes: it compares by the numbers that the system gives files.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

STATES = ("nothing", "names", "half")
_CALLS = ("fsync", "replace", "rename", "unlink", "remove", "mkdir", "rmdir", "link")


class Disk:
    """Watches a folder.

    Args:
        folder: that programs write into; what is in it at the beginning is on the disk.
        on_point: told, before and after every call that changes or flushes a name or a file.
    """

    def __init__(self, folder: Path, on_point: Callable[[str], None]) -> None:
        self.folder, self._on_point = folder, on_point
        self._bytes: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        for place, _, files in os.walk(folder):
            self._names[os.stat(place).st_ino] = _entries(Path(place))
            for name in files:
                path = Path(place) / name
                self._bytes[path.stat().st_ino] = path.read_bytes()
        # A file's number may be given again: what was flushed belongs to one that is held open.
        self._held: list[int] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches this process."""
        with mock.patch.multiple(os, **{name: self._watched(name) for name in _CALLS}):
            yield
        for handle in self._held:
            os.close(handle)
        self._held.clear()

    def _watched(self, name: str) -> Callable[..., Any]:
        call = getattr(os, name)

        def watched(*args: Any, **options: Any) -> Any:
            self._on_point(f"before {name}")
            result = call(*args, **options)
            if name == "fsync":
                self._flushed(args[0])
            self._on_point(f"after {name}")
            return result

        return watched

    def _flushed(self, handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if not path.is_relative_to(self.folder.resolve()):
            return
        number = os.fstat(handle).st_ino
        if path.is_dir():
            self._names[number] = _entries(path)
        else:
            self._bytes[number] = path.read_bytes()
            self._held.append(os.dup(handle))

    def leave(self, state: str, into: Path) -> None:
        """Writes what a power cut would leave now to a new folder."""
        self._leave(self.folder, os.stat(self.folder).st_ino, state, into)

    def _leave(self, place: Path, number: int, state: str, into: Path) -> None:
        into.mkdir(parents=True)
        known = self._names.get(number, {})
        entries = known if state == "nothing" else _entries(place)
        for name, own in entries.items():
            path = place / name
            if own in self._names or (path.is_dir() and path.stat().st_ino == own):
                self._leave(path, own, state, into / name)
            else:
                (into / name).write_bytes(self._found(path, own, state))

    def _found(self, path: Path, number: int, state: str) -> bytes:
        if number in self._bytes:
            return self._bytes[number]
        if state == "half" and path.exists() and path.stat().st_ino == number:
            data = path.read_bytes()
            return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
        return b""


def _entries(folder: Path) -> dict[str, int]:
    with os.scandir(folder) as entries:
        return {entry.name: entry.inode() for entry in entries}


def cuts(folder: Path, work: Callable[[], Any], into: Path) -> Iterator[tuple[str, Path]]:
    """Runs ``work``, which writes into ``folder``; then every different thing a power cut at any
    point of it would have left, as folders below ``into`` that may be changed.

    Yields:
        (at which point and in which state, the folder).
    """
    left: dict[tuple[tuple[str, bytes], ...], tuple[str, Path]] = {}
    count = 0

    def on_point(name: str) -> None:
        nonlocal count
        count += 1
        for state in STATES:
            trial = into / f"{count:05d}-{state}"
            with mock.patch.multiple(os, **real):
                disk.leave(state, trial)
                there = sorted(trial.rglob("*"))
                bytes_of = [path.read_bytes() if path.is_file() else b"/" for path in there]
                names = [path.relative_to(trial).as_posix() for path in there]
                found = tuple(zip(names, bytes_of, strict=True))
                if found in left:
                    shutil.rmtree(trial)
                else:
                    left[found] = (f"point {count}, {name}: {state}", trial)

    real = {name: getattr(os, name) for name in _CALLS}
    disk = Disk(folder, on_point)
    with disk.watching():
        work()
    yield from left.values()
