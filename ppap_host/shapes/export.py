"""Labelled scenes as files that people and other programs can read."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ppap_host.files import images, writing
from ppap_host.files.errors import OutputError
from ppap_host.shapes.renderer import render
from ppap_host.shapes.scenes import CLASS_NAMES, SEGMENTS, sample_scenes

_BATCH = 16
_PALETTE = (206, 200, 190, 150, 140, 128, 224, 84, 72, 70, 130, 200, 240, 190, 70, 96, 170, 110)


def render_scenes(
    out: Path, seed: int, count: int, size: int, watch: Callable[[str, int, int], None]
) -> None:
    """Writes ``count`` scenes of ``seed`` at ``size`` x ``size`` pixels into the folder ``out``.

    Depth is 16-bit PNG in millimetres along the view axis; segmentation is 8-bit palette PNG.

    Raises:
        OutputError: the folder already holds scenes, or cannot be written.
    """
    if os.path.exists(out / "scenes.json"):
        raise OutputError(
            f"The folder {str(out)!r} already holds scenes.", remedy="Give another with --out."
        )
    rows: list[dict[str, Any]] = []
    shown = []
    for first in range(0, count, _BATCH):
        scenes = sample_scenes(seed, first, min(_BATCH, count - first))
        view = render(scenes, size)
        for i, (picture, caption) in enumerate(
            zip(images.from_tensor(view.rgb), scenes.captions(), strict=True)
        ):
            k = first + i
            millimetres = (view.depth[i, 0] * 1000).round().clamp(0, 65535).numpy()
            segments = Image.fromarray(view.segmentation[i].numpy()).convert("P")
            segments.putpalette(_PALETTE)
            writing.write_png(out / f"{k:05d}.png", picture)
            _write(out / f"{k:05d}-depth.png", Image.fromarray(millimetres.astype(np.uint16)))
            _write(out / f"{k:05d}-segmentation.png", segments)
            label = int(scenes.labels[i])
            rows.append(
                {
                    "file": f"{k:05d}.png",
                    "depth": f"{k:05d}-depth.png",
                    "segmentation": f"{k:05d}-segmentation.png",
                    "label": label,
                    "class": CLASS_NAMES[label],
                    "caption": caption,
                }
            )
            if k < 64:
                shown.append((CLASS_NAMES[label], picture))
        watch("rendering", first + len(scenes), count)
    described = {
        "seed": seed,
        "size": size,
        "depth_unit": "millimetres along the view axis",
        "segments": list(SEGMENTS),
        "classes": list(CLASS_NAMES),
        "scenes": rows,
    }
    text = json.dumps(described, indent=2) + "\n"
    writing.write_file(out / "scenes.json", text.encode())
    lines = [("", shown[i : i + 8]) for i in range(0, len(shown), 8)]
    writing.write_png(out / "sheet.png", images.contact_sheet(lines, cell=128))


def _write(path: Path, image: Image.Image) -> None:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    writing.write_file(path, buffer.getvalue())
