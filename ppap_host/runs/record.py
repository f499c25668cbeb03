"""The record of a run: what made its images, enough to make them again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppap_host.files.errors import RecordError, TargetError
from ppap_host.files.writing import read_png_record
from ppap_host.runs.config import RECORD_FORMAT

_LAYOUT = {"config": dict, "images": list, "targets": list, "versions": dict, "model_files": dict}


def read_record(path: Path) -> dict[str, Any]:
    """The record in a ``run.json``, in a folder that has one, or in a PNG's metadata.

    Raises:
        RecordError: there is no readable record.
    """
    if os.path.isdir(path):
        path = path / "run.json"
    if not os.path.exists(path):
        raise RecordError(
            f"There is no file {str(path)!r}.",
            remedy="Give a run.json, the folder of a run, or an image that `ppap run` wrote.",
        )
    try:
        if path.suffix.lower() == ".json":
            record = json.loads(path.read_text(encoding="utf-8"))
        else:
            record = read_png_record(path)
    except (OSError, ValueError, TargetError) as error:
        raise RecordError(
            f"Cannot read a record from {str(path)!r}: {error}",
            remedy="Give a run.json, the folder of a run, or an image that `ppap run` wrote.",
        ) from None
    if not isinstance(record, dict) or "config" not in record:
        raise RecordError(
            f"The file {str(path)!r} carries no record of a run.",
            remedy="Programs that edit or re-save pictures drop it; use the run.json beside it.",
        )
    if record.get("format") != RECORD_FORMAT:
        raise RecordError(
            f"The record in {str(path)!r} has format {record.get('format')!r}, "
            f"this version reads {RECORD_FORMAT}.",
            remedy="Use the version of ppap-host that the record names.",
        )
    if not record.get("images"):
        raise RecordError(
            f"The record in {str(path)!r} names no finished image.",
            remedy="Give the run.json of a run with images, or one of its numbered PNGs.",
        )
    for key, kind in _LAYOUT.items():
        if not isinstance(record.get(key), kind):
            raise RecordError(
                f"The record in {str(path)!r} is damaged: it has no valid {key!r}.",
                remedy="Use another copy: every PNG of the run carries the record.",
            )
    return record


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
        if old["sha256"] != new["sha256"]:
            found.append(f"target {old['given']}: the file's content changed")
    for key in ("device", "machine", "threads"):
        if before.get(key) != now.get(key):
            found.append(f"{key}: was {before.get(key)}, is {now.get(key)}")
    return found


def _short(value: str | None) -> str:
    if value is None:
        return "absent"
    return value[:12] + "..." if len(value) > 40 else value


def find_targets(record: Mapping[str, Any], folder: Path) -> dict[int | str, str]:
    """Where each target file of the record is now: the copy beside it, or the path as given.

    Raises:
        RecordError: a file is gone.
    """
    found: dict[int | str, str] = {}
    for target in record["targets"]:
        for path in (folder / target["copy"], Path(target["given"])):
            if os.path.isfile(path):
                found[target.get("guide", target.get("input"))] = str(path)
                break
        else:
            raise RecordError(
                f"The target {target['given']!r} is gone, and so is its copy "
                f"{str(folder / target['copy'])!r}.",
                remedy=f"Put the file with SHA-256 {target['sha256'][:12]}... back in one place.",
            )
    return found
