"""Several processes at one task, through accelerate (``accelerate launch`` or torchrun)."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import Accelerator

PATIENCE = timedelta(days=7)
"""How long processes wait for each other before they take one of them for dead."""


@dataclass(frozen=True)
class Processes:
    """This process among its fellows.

    Attributes:
        index, count: 0-based number of this process, and how many there are.
        wait: returns once every process has called it.
        accelerator: accelerate's own object, None for a process that is alone.
    """

    index: int = 0
    count: int = 1
    wait: Callable[[], None] = lambda: None
    accelerator: Accelerator | None = None

    @property
    def first(self) -> bool:
        """Whether it is this process that talks to people."""
        return self.index == 0


def alone_or_first() -> bool:
    """Whether this process is the one that talks to people, told without joining the others."""
    return os.environ.get("RANK", "0") == "0"


def join(device: str) -> Processes:
    """The processes that were launched together; one that was started alone imports nothing.

    Args:
        device: the --device option; "cpu" keeps accelerate off the graphics cards.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Processes()
    import torch
    from accelerate import Accelerator, InitProcessGroupKwargs

    # Shards take minutes to hours, and whoever has none left waits for the others.
    patient = InitProcessGroupKwargs(timeout=PATIENCE)
    # Where there is no graphics card, accelerate lets the processes know of each other only if it
    # is told that they are to use the processor.
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    accelerator = Accelerator(cpu=on_cpu, kwargs_handlers=[patient])
    return Processes(
        accelerator.process_index,
        accelerator.num_processes,
        accelerator.wait_for_everyone,
        accelerator,
    )


def own_device(name: str, processes: Processes) -> str:
    """The device of this process: each takes one of its own where "auto" leaves the choice."""
    if processes.accelerator is None or name != "auto":
        return name
    return str(processes.accelerator.device)
