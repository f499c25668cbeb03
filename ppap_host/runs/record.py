"""The record of a run: what made its images, enough to make them again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt

from ppap_host.files.errors import PpapError, RecordError
from ppap_host.files.folders import inside
from ppap_host.files.hashes import sha256_file
from ppap_host.files.reading import Document, read_bytes, require_regular
from ppap_host.files.writing import PNG, record_text
from ppap_host.runs.config import RECORD_FORMAT

_REMEDY = "Give a run.json, the folder of a run, or an image that `ppap run` wrote."
_DOCUMENT = Document(
    "sound record of a run", RecordError, "Use another copy: every PNG of the run carries one."
)
_LARGEST = 1 << 30  # bytes of a file that decided what was made

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Measures = dict[str, dict[str, FiniteFloat | None]]
"""Guide -> measure -> value."""


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class ImageEntry(_Part):
    """One finished image."""

    index: NonNegativeInt
    file: str
    pixels_sha256: Sha256
    measures: Measures = {}
    unguided: Measures = {}


class TargetEntry(_Part):
    """What decided what was made: words, or a file or a thing in memory and its copy.

    Attributes:
        guide, input: for which it was.
        row: of several targets of a guide.
        given: as it was given.
        understood: what it was read as.
        file: its path, of a file; without it a copy is of what was in memory.
        head: what has to stand before the path of such a copy.
    """

    guide: NonNegativeInt | None = None
    input: str | None = None
    row: NonNegativeInt | None = None
    given: str
    understood: str = ""
    file: str | None = None
    head: str = ""
    copy_: Annotated[str | None, Field(alias="copy")] = None
    sha256: Sha256 | None = None


class GuideEntry(_Part):
    """One guide of the configuration, as far as repeating looks at it before it is one."""

    name: str
    what: str | dict[str, Any] | None = None
    target: str | dict[str, Any] | list[str | dict[str, Any]] | None = None
    model: str | None = None


class ConfigEntry(_Part):
    """The configuration, likewise; all of it is checked where it becomes a
    :class:`~ppap_host.runs.config.RunConfig`."""

    backbone: str | dict[str, Any] = "shapes"
    checkpoint: str | None = None
    guides: list[GuideEntry] = []


class _Format(_Part):
    format: Any = None
    config: Any = None
    images: Any = None


class RunRecord(_Part):
    """What ``run.json`` holds, and, with its own image alone, each PNG; other keys are kept."""

    format: Literal[1]
    config: ConfigEntry
    images: list[ImageEntry]
    targets: list[TargetEntry]
    versions: dict[str, str]
    model_files: dict[str, str]
    status: str = ""
    warnings: list[str] = []
    objects: list[Any] = []
    used: dict[str, Any] = {}
    device: str | None = None
    machine: str | None = None
    threads: int | None = None


def read_record(path: Path) -> dict[str, Any]:
    """The record in a ``run.json``, in a folder that has one, or in a PNG's metadata.

    Raises:
        RecordError: there is no readable record.
    """
    if os.path.isdir(path):
        path = path / "run.json"
    data = read_bytes(path, RecordError, _REMEDY, _LARGEST)
    text = record_text(data, RecordError, str(path)) if data.startswith(PNG) else data
    if text is None:
        raise RecordError(
            f"The file {str(path)!r} carries no record of a run.",
            remedy="Programs that edit or re-save pictures drop it; use the run.json beside it.",
        )
    return checked_record(text, str(path))


def checked_record(record: str | bytes | Mapping[str, Any], source: str) -> dict[str, Any]:
    """A record as plain values, its structure checked.

    Args:
        record: as JSON or as plain values.
        source: what people call it, such as its path.

    Raises:
        RecordError: it is none, damaged, of another version, or names no image.
    """
    given = dict(record) if isinstance(record, Mapping) else _DOCUMENT.values(record, source)
    begun = _DOCUMENT.check(given, _Format, source)
    if begun.config is None:
        raise RecordError(f"{source!r} holds no record of a run.", remedy=_REMEDY)
    if begun.format != RECORD_FORMAT:
        raise RecordError(
            f"The record in {source!r} has format {begun.format!r}, "
            f"this version reads {RECORD_FORMAT}.",
            remedy="Use the version of ppap-host that the record names.",
        )
    if not begun.images:
        raise RecordError(
            f"The record in {source!r} names no finished image.",
            remedy="Give the run.json of a run with images, or one of its numbered PNGs.",
        )
    _DOCUMENT.check(given, RunRecord, source)
    config = {"backbone": "shapes", "guides": [], **given["config"]}
    return {**given, "config": config}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two records that could explain different pixels, in plain words."""
    found = []
    for key, what in (("versions", "version of"), ("model_files", "model file")):
        old, new = before.get(key, {}), now.get(key, {})
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                shown = [_short(v) for v in (old.get(name), new.get(name))]
                found.append(f"{what} {name}: was {shown[0]}, is {shown[1]}")
    for old, new in zip(before.get("targets", []), now.get("targets", []), strict=False):
        if old.get("sha256") != new.get("sha256"):
            found.append(f"target {old['given']}: the file's content changed")
    for key in ("device", "machine", "threads"):
        if before.get(key) != now.get(key):
            found.append(f"{key}: was {before.get(key)}, is {now.get(key)}")
    return found


def _short(value: str | None) -> str:
    if value is None:
        return "absent"
    return value[:12] + "..." if len(value) > 40 else value


def find_targets(
    record: Mapping[str, Any], folder: Path
) -> tuple[dict[str, str], dict[tuple[int, int] | str, str]]:
    """Where each target file of the record is now: the copy beside it, or the path as given.

    A record may come from anybody. Its copies are looked for in its own folder only, and what lies
    elsewhere is read only if it is the very file that the record was made with.

    Returns:
        Path as given -> path, of all files that may be read; and what to give for a target that
        was in memory by (guide, row), for a picture that is filled in or started from by its name.

    Raises:
        RecordError: a file is gone, or a copy is said to lie outside the record's folder.
    """
    moved: dict[str, str] = {}
    again: dict[tuple[int, int] | str, str] = {}
    for target in record["targets"]:
        if target.get("copy") is None:  # words, which are in the configuration
            continue
        copy = inside(folder, target["copy"], RecordError, "Do not trust that record.")
        file, sha256 = target.get("file"), target.get("sha256") or ""
        if os.path.isfile(copy):
            moved[file or str(copy)] = str(copy)
            if file is None:
                key = target.get("input") or (target.get("guide", 0), target.get("row", 0))
                again[key] = f"{target.get('head', '')}{copy}"
        elif file is not None and _is(Path(file), sha256):
            moved[file] = file
        else:
            raise RecordError(
                f"The target {target['given']!r} is gone or another one, and so is its copy "
                f"{str(copy)!r}.",
                remedy=f"Put the file with SHA-256 {sha256[:12]}... back in one place.",
            )
    return moved, again


def _is(path: Path, sha256: str) -> bool:
    """Whether this is a file with this hash."""
    try:
        require_regular(path, RecordError)
        return path.stat().st_size <= _LARGEST and sha256_file(path) == sha256
    except (OSError, PpapError):
        return False
