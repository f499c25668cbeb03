"""The contact sheet of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from ppap_host.files import images
from ppap_host.guides.targets import Given

COLUMNS = 8
MOST = 64
"""Images that a sheet shows; a longer run says that it shows its first ones."""


@dataclass
class Kept:
    """A target, or another picture that decides what is made.

    Attributes:
        of: the guide that it is for, "" for none.
        row: what the record says of it.
        pictures: what people are shown of it.
        files: that it was read from, or what was given in memory.
        file: what its copy is called, without an ending.
        moved: where its files were read, by their paths as given, if they are elsewhere now.
    """

    of: str
    row: dict[str, Any]
    pictures: Mapping[str, Image.Image]
    files: Sequence[Path | Given]
    file: str
    moved: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Shown:
    """What a sheet is made of: the first images, with what guides see in them.

    Attributes:
        views: guide -> one picture an image.
        values: guide that rewards -> its value of each image.
        plain: the same images without guides.
        saturated: images, of all, most of whose pixels are at the bounds.
    """

    targets: list[Kept] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    pictures: list[Image.Image] = field(default_factory=list)
    views: dict[str, list[Image.Image]] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)
    plain: list[Image.Image] = field(default_factory=list)
    saturated: list[int] = field(default_factory=list)

    def add(
        self,
        indices: Sequence[int],
        pictures: Sequence[Image.Image],
        views: Mapping[str, Sequence[Image.Image]],
        plain: Sequence[Image.Image],
        values: Mapping[str, Sequence[float]],
    ) -> None:
        """Keeps as many of these images as a sheet still has room for."""
        room = max(MOST - len(self.indices), 0)
        self.indices += indices[:room]
        self.pictures += pictures[:room]
        self.plain += plain[:room]
        for name, seen in views.items():
            self.views.setdefault(name, []).extend(seen[:room])
        for name, those in values.items():
            self.values.setdefault(name, []).extend(those[:room])


def sheet_of(shown: Shown, record: Mapping[str, Any]) -> Image.Image:
    """Targets first, then rows of images, what each guide sees in them, and the unguided ones."""
    rows: list[tuple[str, list[tuple[str, Image.Image]]]] = []
    for kept in shown.targets[:COLUMNS]:
        if kept.pictures:
            rows.append((f"Target of {kept.of}", list(kept.pictures.items())))
    prompt = record["config"]["prompt"]
    of = f": {prompt}" if isinstance(prompt, str) and prompt else ""
    rewards = shown.values.items()
    left = len(record["images"]) - len(shown.indices)
    of += f" (the first {len(shown.indices)} of {len(record['images'])})" if left > 0 else ""
    for start in range(0, len(shown.indices), COLUMNS):
        part = slice(start, start + COLUMNS)
        labels = [f"image {k}" for k in shown.indices[part]]

        def row(
            title: str,
            pictures: Sequence[Image.Image],
            labels: Sequence[str] = labels,
            part: slice = part,
        ) -> None:
            rows.append((title, list(zip(labels, pictures[part], strict=True))))

        valued = [
            ", ".join([label, *(f"{name} {values[start + i]:.4g}" for name, values in rewards)])
            for i, label in enumerate(labels)
        ]
        row(f"Results{of}", shown.pictures, valued)
        for name, seen in shown.views.items():
            row(f"What {name} sees in them", seen)
        if shown.plain:
            row("The same without guides", shown.plain)
    return images.contact_sheet(rows)
