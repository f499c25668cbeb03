"""The folder of a run: images, targets, contact sheet and record, written as they are made."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from ppap_host.files import images
from ppap_host.files.errors import OutputError
from ppap_host.files.hashes import sha256_file

VOLATILE = (
    "given", "seconds", "status", "images", "failed", "skipped_guidance", "limited_guidance",
    "warnings",
)  # fmt: skip
"""Keys of a record that differ when a run is repeated; pictures do not carry them."""


def check_writable(out: Path) -> bool:
    """Fails early when results could not be written to ``out``; creates it if it is not there.

    Returns:
        Whether it was created.

    Raises:
        OutputError: it is a file, may not be written, or holds another run.
    """
    # os.path, because Path.exists raises for names that are too long.
    if os.path.exists(out) and not os.path.isdir(out):
        raise OutputError(f"{str(out)!r} is a file.", remedy="Give a folder with --out.")
    if os.path.exists(out / "run.json"):
        raise OutputError(
            f"The folder {str(out)!r} already holds a run.",
            remedy="Give another folder with --out; nothing is overwritten.",
        )
    created = not os.path.isdir(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OutputError(
            f"Cannot write to the folder {str(out)!r}: {error.strerror}.",
            remedy="Choose another folder with --out.",
        ) from None
    return created


class RunFolder:
    """Writes one run to a folder.

    Args:
        path: a new folder, or one without a record.

    Raises:
        OutputError: it cannot be written, or holds another run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._created = check_writable(path)

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Writes ``run.json``, whole or not at all."""
        text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        images.write_file(self.path / "run.json", text.encode())

    def write_images(
        self,
        record: Mapping[str, Any],
        entries: Sequence[dict[str, Any]],
        pictures: Sequence[Image.Image],
    ) -> None:
        """Writes pictures that carry the record with their own entries."""
        for entry, picture in zip(entries, pictures, strict=True):
            images.write_png(self.path / entry["file"], picture, carried(record, [entry]))

    def write_sheet(self, record: Mapping[str, Any], sheet: Image.Image) -> None:
        """Writes ``sheet.png``."""
        images.write_png(self.path / "sheet.png", sheet, carried(record, record["images"]))

    def copy_target(self, source: Path | Image.Image, name: str) -> dict[str, str]:
        """Keeps what decides what is made beside the images; what the record says of it."""
        suffix = source.suffix.lower() if isinstance(source, Path) else ".png"
        copy = self.path / "targets" / f"{name}{suffix}"
        try:
            copy.parent.mkdir(exist_ok=True)
            if isinstance(source, Path):
                shutil.copyfile(source, copy)
            else:
                source.save(copy)
        except OSError as error:
            raise OutputError(
                f"Cannot copy the target to {str(copy)!r}: {error.strerror}.",
                remedy="Free some space or choose another folder with --out.",
            ) from None
        return {"copy": copy.relative_to(self.path).as_posix(), "sha256": sha256_file(copy)}

    def forget(self) -> None:
        """Removes what a run left that failed before its first image, and nothing else."""
        (self.path / "run.json").unlink(missing_ok=True)
        shutil.rmtree(self.path / "targets", ignore_errors=True)
        if self._created:
            with suppress(OSError):
                self.path.rmdir()


def carried(record: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The part of a record that is the same whenever the run is repeated, with these images."""
    kept = {key: value for key, value in record.items() if key not in VOLATILE}
    return kept | {"images": list(entries)}
