"""What a step of sampling costs: seconds by a fair clock, and bytes at the peak."""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable
from typing import Any

import torch

Clock = Callable[[], float]


def clock_of(device: torch.device) -> tuple[str, Clock]:
    """The clock for work on a device, with its name.

    On the CPU in one thread it is the processor's time of this process, which other work on the
    machine does not lengthen; the wall clock otherwise, read when the device has come to rest.
    """
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return "processor time", time.process_time

    def wall() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter()

    return "wall clock", wall


def peak_bytes(work: Callable[[], object], device: torch.device) -> float:
    """The most bytes that torch's allocator held for ``work`` at any one time.

    Weights and what else was there before do not count, nor does what libraries allocate by
    themselves. NaN on devices that do not tell.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return float(torch.cuda.max_memory_allocated(device) - before)
    if device.type != "cpu":
        return math.nan
    from torch.profiler import ProfilerActivity, profile

    # Else the profiler writes on standard error that it found no GPU.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    gc.collect()  # else it warns of what was allocated before and is freed meanwhile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    kept: Any = profiled.profiler
    events = [event for event in kept.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: int(event.start_ns())):
        held += event.nbytes()
        most = max(most, held)
    return float(most)
