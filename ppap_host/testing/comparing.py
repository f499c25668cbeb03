"""How checks compare tensors and watch for draws."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

_UNUSUAL = 190_547_013


def differ(a: Tensor, b: Tensor) -> float:
    """The largest difference, as a part of the largest entry of ``b``; inf if it is not finite."""
    if a.shape != b.shape:
        return float("inf")
    gap = (a.double() - b.double()).abs().max()
    size = b.double().abs().max().clamp_min(1e-12)
    found = float(gap / size)
    return found if found == found else float("inf")


@contextmanager
def watched_randomness() -> Iterator[list[str]]:
    """Collects the global generators that were drawn from or seeded, and leaves them as before.

    Python's own is not watched where beartype is loaded, which draws from it to check containers.
    """
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    # Not where it was: who seeds it always alike would come back to the same state.
    torch.set_rng_state(torch.Generator().manual_seed(_UNUSUAL).get_state())
    np.random.seed(_UNUSUAL)
    random.seed(_UNUSUAL)
    start = torch.get_rng_state(), np.random.get_state(), random.getstate()
    drawn: list[str] = []
    try:
        yield drawn
    finally:
        if not torch.equal(start[0], torch.get_rng_state()):
            drawn.append("torch")
        if not _same(start[1], np.random.get_state()):
            drawn.append("numpy")
        if start[2] != random.getstate() and "beartype" not in sys.modules:
            drawn.append("random")
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


def _same(a: Any, b: Any) -> bool:
    """Whether two states of numpy's generator are equal."""
    return all(np.array_equal(one, other) for one, other in zip(a, b, strict=True))


def in_a_line(error: BaseException) -> str:
    """Type and message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
