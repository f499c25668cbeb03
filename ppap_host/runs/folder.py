"""The folder of a run: images, targets, contact sheet and record, written as they are made."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ppap_host.files.errors import OutputError, TargetError
from ppap_host.files.folders import Job
from ppap_host.files.hashes import sha256_file
from ppap_host.files.previews import array_bytes, film_bytes
from ppap_host.files.reading import local_path
from ppap_host.files.writing import copy_file, write_file, write_json, write_png
from ppap_host.guides.targets import Given

VOLATILE = (
    "given", "seconds", "status", "images", "failed", "skipped_guidance", "limited_guidance",
    "images_per_gradient", "warnings",
)  # fmt: skip
"""Keys of a record that differ when a run is repeated; pictures do not carry them."""


class RunFolder:
    """Writes one run to a folder, which is the run's alone until :meth:`close`.

    Args:
        path: a new folder, or one without a record; ``~`` is the user's.

    Raises:
        OutputError: it is no path, cannot be written, another job is at work in it, or it holds
            another run.
    """

    def __init__(self, path: str | Path) -> None:
        if not isinstance(path, str | os.PathLike) or not os.fspath(path):
            raise OutputError(f"{path!r} is no folder.", remedy="Give the path of a new folder.")
        self.path = path = Path(local_path(os.fspath(path)))
        # os.path, because Path.exists raises for names that are too long.
        if os.path.exists(path) and not os.path.isdir(path):
            raise OutputError(f"{str(path)!r} is a file.", remedy="Give a folder with --out.")
        self._job = Job(path)
        if os.path.exists(path / "run.json"):
            self._job.end()
            raise OutputError(
                f"The folder {str(path)!r} already holds a run.",
                remedy="Give another folder with --out; nothing is overwritten.",
            )

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Writes ``run.json``, whole or not at all."""
        write_json(self.path / "run.json", record)

    def write_images(
        self,
        record: Mapping[str, Any],
        entries: Sequence[dict[str, Any]],
        pictures: Sequence[Image.Image],
    ) -> None:
        """Writes pictures that carry the record with their own entries."""
        for entry, picture in zip(entries, pictures, strict=True):
            write_png(self.path / entry["file"], picture, carried(record, [entry]))

    def write_data(self, entries: Sequence[dict[str, Any]], samples: Sequence[Tensor]) -> None:
        """Writes what is no image as ``.npy`` files beside its previews; nothing of images."""
        for entry, sample in zip(entries, samples, strict=True):
            if "data" in entry:
                write_file(self.path / entry["data"], array_bytes(sample))
            if "video" in entry:
                write_file(self.path / entry["video"], film_bytes(sample, entry["fps"]))

    def write_sheet(self, record: Mapping[str, Any], sheet: Image.Image) -> None:
        """Writes ``sheet.png``."""
        write_png(self.path / "sheet.png", sheet, carried(record, record["images"]))

    def copy_target(self, source: Path | Given, name: str) -> dict[str, str]:
        """Keeps what decides what is made beside the images; what the record says of it."""
        suffix, content = source.encoded() if isinstance(source, Given) else (source.suffix, b"")
        copy = self.path / "targets" / f"{name}{suffix.lower()}"
        if isinstance(source, Path):
            digest = copy_file(source, copy, TargetError)
        else:
            write_file(copy, content)
            digest = sha256_file(copy)
        return {"copy": copy.relative_to(self.path).as_posix(), "sha256": digest}

    def forget(self) -> None:
        """Removes what a run left that failed before its first image, and nothing else."""
        (self.path / "run.json").unlink(missing_ok=True)
        shutil.rmtree(self.path / "targets", ignore_errors=True)
        self.close()
        if self._job.created:
            with suppress(OSError):  # removed, or somebody has put something there
                os.rmdir(self.path)

    def close(self) -> None:
        """Lets others have the folder; removes one that was made for nothing."""
        self._job.end()


def carried(record: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The part of a record that is the same whenever the run is repeated, with these images."""
    kept = {key: value for key, value in record.items() if key not in VOLATILE}
    return kept | {"images": list(entries)}
