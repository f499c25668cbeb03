"""Where randomness comes from: streams that are never the same for two purposes or two images."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Draw = Callable[[], Tensor]


Stream = Callable[[str], Draw]


def derived(purpose: str, *parts: int | str) -> np.random.SeedSequence:
    """What a stream of random numbers starts from, for one purpose and one place in it.

    Seeds have no upper bound, and numpy's own way with a list of numbers cuts each into words of 32
    bits and pads the end with zeros: [2**32, 1] and [0, 1, 1] are one list to it. Here the list is
    written down as JSON, which no two lists share, and hashed.

    Args:
        purpose: in words, one for each use of randomness.
        parts: seed, step, index ... or names.
    """
    text = json.dumps([purpose, *parts])
    return np.random.SeedSequence(np.frombuffer(hashlib.sha256(text.encode()).digest(), "<u4"))


def of_image(seed: int, index: int, stage: int = 0, name: str = "") -> np.random.SeedSequence:
    """What the stream of one image starts from.

    Numbers below 2**32 are numpy's own list of them, as the pictures of seeds were made that
    people have written down; larger ones are :func:`derived`.

    Args:
        seed: of the run or the harvest, >= 0.
        index: of the image in it.
        stage: of a cascade.
        name: of a stream beside the sampler's; empty for the sampler's.
    """
    if max(seed, index, stage) >= 1 << 32:
        return derived("image", seed, index, stage, name)
    words = [seed, index, stage] if stage or name else [seed, index]
    if name:
        words.append(zlib.crc32(name.encode()))
    return np.random.SeedSequence(words)


def word(sequence: np.random.SeedSequence) -> int:
    """One whole number in [0, 2**63), for generators that are seeded with one."""
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(sequence: np.random.SeedSequence) -> torch.Generator:
    """A generator of torch's on the CPU."""
    return torch.Generator().manual_seed(word(sequence))


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
        self._seed, self._indices, self._shape, self._stage = seed, indices, shape, stage
        seeds = [seed] * len(indices) if isinstance(seed, int) else seed
        self._streams = [
            generator(of_image(own, k, stage, name)) for own, k in zip(seeds, indices, strict=True)
        ]

    @property
    def generators(self) -> list[torch.Generator]:
        """The streams of the images, for who draws from them without :meth:`__call__`."""
        return list(self._streams)

    def __call__(self) -> Tensor:
        """The next draw for every image, float32 [b, c, h, w] on the CPU."""
        return torch.stack([torch.randn(self._shape, generator=g) for g in self._streams])

    def stream(self, name: str) -> ImageNoise:
        """Noise for the same images that owes nothing to the sampler's, so that what a recipe draws
        leaves the rest of the run as it was."""
        return ImageNoise(self._seed, self._indices, self._shape, self._stage, name)
