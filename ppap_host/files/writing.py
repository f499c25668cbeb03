"""Writing what must not be lost: whole or not at all, and still there after a power cut.

A file gets its name only when its bytes are on the disk: they are written beside it under another
name, flushed, renamed, and then the folder is flushed, too. Without the first flush many file
systems may keep the name and lose the bytes; without the last one the name may be lost after it was
said that the file is there. Whatever the power cut leaves, a name is either the old file, the new
one, or not there; what is left under the other name ends in :data:`UNFINISHED`, and the next job in
that folder (:class:`ppap_host.files.folders.Job`) removes it.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from PIL import Image, PngImagePlugin

from ppap_host.files.errors import OutputError, PpapError, TargetError
from ppap_host.files.reading import Document, read_bytes

RECORD_KEY: Final = "ppap"
"""Key of the text chunk that holds a run's record in a PNG."""

UNFINISHED: Final = ".unfinished"
"""How the names of files end that are being written."""

_ELSEWHERE = "Free some space or choose another folder with --out."
PNG: Final = b"\x89PNG\r\n\x1a\n"
"""How every PNG begins."""

_CARRIED = Document("record", TargetError, "Give an image that `ppap run` wrote, or its run.json.")


def write_file(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all; when this returns it is on the disk.

    Raises:
        OutputError: no permission, no space, the folder is gone, or what has the name is no file.
    """
    if os.path.lexists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        # A device would be gone for everybody.
        raise OutputError(
            f"{str(path)!r} is a device, a pipe, a socket or a link to nothing, and would be "
            "replaced.",
            remedy="Give the name of a file.",
        )
    temporary = path.parent / f".{path.name[:100]}.{secrets.token_hex(4)}{UNFINISHED}"
    try:
        make_folder(path.parent)
        # As open would have it: the permissions of any other new file.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                _flush(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        flush_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from None


def make_folder(folder: Path) -> bool:
    """Makes a folder with all above it, on the disk, if it is not there.

    Returns:
        Whether it was made.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        missing = []
        for part in (folder, *folder.parents):
            if os.path.isdir(part):
                break
            missing.append(part)
        made = False
        for part in reversed(missing):
            with suppress(FileExistsError):
                os.mkdir(part)
                made = True
            if not os.path.isdir(part):
                raise FileExistsError(errno.EEXIST, "a file is in the way", str(part))
            flush_folder(part.parent)
        return made
    except (OSError, ValueError) as error:
        raise cannot_write(folder, error) from None


def flush_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk.

    Raises:
        OSError: the disk fails.
    """
    if os.name == "nt":  # pragma: no cover - there it is no file that can be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        _flush(handle)
    except OSError as error:
        # Some file systems flush no folders, and there is nothing else to do about it.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def _flush(handle: int) -> None:
    os.fsync(handle)
    try:
        import fcntl

        full = fcntl.F_FULLFSYNC  # type: ignore[attr-defined, unused-ignore]
    except (ImportError, AttributeError):
        return
    fcntl.fcntl(handle, full)  # pragma: no cover - macOS leaves the drive's own cache otherwise


def cannot_write(path: Path, error: Exception) -> OutputError:
    """What is said when the system does not let us."""
    reason = getattr(error, "strerror", None) or error
    return OutputError(f"Cannot write {str(path)!r}: {reason}.", remedy=_ELSEWHERE)


def json_text(values: Any, indent: int | None = 2, *, sort_keys: bool = False) -> str:
    """JSON that every reader takes.

    NaN and infinity, which JSON does not have, become null. Names of files that are no text in
    UTF-8 come back as they were.
    """
    text = json.dumps(
        _finite(values), indent=indent, ensure_ascii=False, allow_nan=False, sort_keys=sort_keys
    )
    # Halves of characters, as such names hold them, are written as JSON's own escapes.
    return text.encode("utf-8", "backslashreplace").decode()


def _finite(values: Any) -> Any:
    if isinstance(values, float):
        return values if -float("inf") < values < float("inf") else None
    if isinstance(values, Mapping):
        return {key: _finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_finite(value) for value in values]
    return values


def write_json(path: Path, values: Any, indent: int | None = 2) -> None:
    """Writes values as JSON (:func:`json_text`), with a newline at the end.

    Raises:
        OutputError: as :func:`write_file`.
    """
    write_file(path, f"{json_text(values, indent)}\n".encode())


# How spreadsheets tell a formula; intervals and numbers with a sign are none.
_FORMULA = re.compile(r"[=@\t\r\n]|[+-](?!(?:[\d.:e+-]|inf)*\Z)")


def csv_text(heads: Sequence[str], rows: Iterable[Mapping[str, Any] | Sequence[Any]]) -> str:
    """A table as CSV in which a spreadsheet runs nothing: a text that it would take for a formula
    gets a single quote before it, as spreadsheets themselves have it.

    Args:
        rows: by heads, where what is missing is left empty; or in their order.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in (heads, *rows):
        cells = [row.get(head, "") for head in heads] if isinstance(row, Mapping) else row
        writer.writerow([f"'{c}" if isinstance(c, str) and _FORMULA.match(c) else c for c in cells])
    return buffer.getvalue()


def copy_file(source: Path, path: Path, error: type[PpapError], size: int = 1 << 30) -> str:
    """Copies a file of the user's that decides what is made; what is hashed is what was read.

    Args:
        error: the class of the error if the source cannot be read.
        size: most bytes.

    Returns:
        SHA-256 of its bytes, hexadecimal.

    Raises:
        PpapError: of the class ``error``; the source is no regular file, unreadable or too large.
        OutputError: the copy cannot be written.
    """
    data = read_bytes(source, error, size=size)
    write_file(path, data)
    return hashlib.sha256(data).hexdigest()


def write_png(path: Path, image: Image.Image, record: Mapping[str, Any] | None = None) -> None:
    """Writes a PNG that carries ``record`` as JSON in its metadata.

    Raises:
        OutputError: as :func:`write_file`.
    """
    info = PngImagePlugin.PngInfo()
    if record is not None:
        info.add_itxt(RECORD_KEY, json_text(record, None, sort_keys=True))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info, optimize=False)
    write_file(path, buffer.getvalue())


def record_text(data: bytes, error: type[PpapError], source: str) -> str | None:
    """The text of the record in a PNG's metadata, None if it carries none. No pixel is decoded.

    Raises:
        PpapError: of the class ``error``; it is no PNG, or damaged.
    """
    try:
        with PngImagePlugin.PngImageFile(io.BytesIO(data)) as image:
            text = image.info.get(RECORD_KEY)
    except Exception as problem:  # damaged files make it raise anything, struct.error included
        raise error(
            f"{source!r} is no readable PNG ({problem}).",
            remedy="Give an image that `ppap run` wrote, or its run.json.",
        ) from None
    return None if text is None else str(text)


def read_png_record(path: Path) -> dict[str, Any] | None:
    """The record in a PNG's metadata, None if it carries none.

    Raises:
        TargetError: the file is no PNG, or damaged.
    """
    text = record_text(read_bytes(path, TargetError, size=1 << 30), TargetError, str(path))
    return None if text is None else _CARRIED.parse(text, dict[str, Any], str(path))
