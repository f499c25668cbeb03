"""How checks compare tensors and watch for draws."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ppap_host.plugins.containment import GENERATORS

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
    before = {setting.what: setting.read() for setting in GENERATORS}
    # Not where it was: who seeds it always alike would come back to the same state.
    torch.set_rng_state(torch.Generator().manual_seed(_UNUSUAL).get_state())
    np.random.seed(_UNUSUAL)
    random.seed(_UNUSUAL)
    start = {setting.what: setting.read() for setting in GENERATORS}
    drawn: list[str] = []
    try:
        yield drawn
    finally:
        for setting in GENERATORS:
            same = setting.same(start[setting.what], setting.read())
            if not same and (setting.module or "beartype" not in sys.modules):
                drawn.append(setting.module or "random")
            setting.restore(before[setting.what])
