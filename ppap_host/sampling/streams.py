"""Noise for each image from its own stream."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Draw = Callable[[], Tensor]


Stream = Callable[[str], Draw]


class ImageNoise:
    """Gaussian noise for each image from its own stream.

    Image k of seed s always sees the same draws, whatever the batch it is in, the number of images
    asked for, or the device: the numbers are made on the CPU in float32.

    Args:
        seed: the run's seed, >= 0; or one a row.
        indices: which images (0, 1, ...) the rows of a batch are.
        shape: of one state, (c, h, w).
        stage: of a cascade, >= 0; every stage has noise of its own.
        name: of a stream of its own beside the sampler's; empty for the sampler's.
    """

    def __init__(
        self,
        seed: int | Sequence[int],
        indices: Sequence[int],
        shape: tuple[int, ...],
        stage: int = 0,
        name: str = "",
    ) -> None:
        self._streams = []
        self._seed, self._indices, self._shape, self._stage = seed, indices, shape, stage
        seeds = [seed] * len(indices) if isinstance(seed, int) else seed
        for own, k in zip(seeds, indices, strict=True):
            entropy = [own, k, stage] if stage or name else [own, k]
            if name:
                entropy.append(zlib.crc32(name.encode()))
            word = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
            self._streams.append(torch.Generator().manual_seed(int(word >> np.uint64(1))))

    def __call__(self) -> Tensor:
        """The next draw for every image, float32 [b, c, h, w] on the CPU."""
        return torch.stack([torch.randn(self._shape, generator=g) for g in self._streams])

    def stream(self, name: str) -> ImageNoise:
        """Noise for the same images that owes nothing to the sampler's, so that what a recipe draws
        leaves the rest of the run as it was."""
        return ImageNoise(self._seed, self._indices, self._shape, self._stage, name)
