"""Rendered scenes on disk: what the networks of the built-in world are trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from ppap_host.files.images import to_pixels, to_unit
from ppap_host.shapes.renderer import render
from ppap_host.shapes.scenes import Scenes, sample_scenes

_SHARD = 1000


class RenderedScenes:
    """Labelled scenes kept as memory-mapped arrays, rendered once and resumable.

    Attributes:
        rgb: uint8 [n, 64, 64, 3].
        depth: float16 [n, 64, 64], metres along the view axis.
        segmentation: uint8 [n, 64, 64], indices into ``SEGMENTS``.
        labels: int64 [n], indices into ``CLASS_NAMES``.
        scenes: the scenes themselves, for captions.
    """

    def __init__(self, folder: Path, seed: int, count: int) -> None:
        """Opens ``count`` scenes of ``seed`` in ``folder``, rendering those that are missing."""
        self.seed, self.count = seed, count
        self.rgb, self.depth, self.segmentation = _render_missing(folder, seed, count)
        self.scenes: Scenes = sample_scenes(seed, 0, count)
        self.labels = self.scenes.labels

    def __len__(self) -> int:
        return self.count

    def images(self, picks: np.ndarray, device: torch.device) -> Tensor:
        """RGB in [-1, 1], float32 [b, 3, 64, 64], of these scenes."""
        return to_unit(torch.from_numpy(self.rgb[picks]).to(device).permute(0, 3, 1, 2))


def _render_missing(
    folder: Path, seed: int, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = []
    for name, dtype, tail in (
        ("rgb", np.uint8, (64, 64, 3)),
        ("depth", np.float16, (64, 64)),
        ("segmentation", np.uint8, (64, 64)),
    ):
        path = folder / f"{name}-{seed}-{count}.npy"
        mode = "r+" if path.exists() else "w+"
        arrays.append(np.lib.format.open_memmap(path, mode, dtype, (count, *tail)))
    rgb, depth, segmentation = arrays
    progress = folder / f"rendered-{seed}-{count}.json"
    done = json.loads(progress.read_text()) if progress.exists() else 0
    starts = range(done, count, _SHARD)
    for start in track(starts, description=f"rendering scenes of seed {seed}", disable=not starts):
        stop = min(start + _SHARD, count)
        for first in range(start, stop, 200):
            last = min(first + 200, stop)
            with torch.no_grad():
                view = render(sample_scenes(seed, first, last - first))
            rgb[first:last] = to_pixels(view.rgb).permute(0, 2, 3, 1).numpy()
            depth[first:last] = view.depth[:, 0].half().numpy()
            segmentation[first:last] = view.segmentation.numpy()
        for array in arrays:
            array.flush()
        progress.write_text(json.dumps(stop))
    return rgb, depth, segmentation
