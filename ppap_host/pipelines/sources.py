"""Names of model files in diffusers' format: folders and the hub."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusers.utils import logging as diffusers_logging

from ppap_host.files.errors import CheckpointError


def local_folder(name: str, remedy: str = "") -> Path | None:
    """The folder of this name; None where it can only be a name on the hub.

    Raises:
        CheckpointError: it is written like a path, and there is no such folder.
    """
    folder = Path(name).expanduser()
    if os.path.isdir(folder):  # Path.is_dir raises for names that are too long
        return folder
    if name.startswith((".", "~", "/")) or name.count("/") > 1 or "\\" in name:
        raise CheckpointError(f"There is no model folder {name!r}.", remedy=remedy)
    return None


@contextmanager
def quietly() -> Iterator[None]:
    """No progress bars for what is read from a disk; downloads keep theirs."""
    # transformers has bars of its own; the host does not import it, a pipeline with text does.
    there = getattr(sys.modules.get("transformers.utils"), "logging", None)
    switches = [x for x in (diffusers_logging, there) if x and x.is_progress_bar_enabled()]
    for switch in switches:
        switch.disable_progress_bar()
    try:
        yield
    finally:
        for switch in switches:
            switch.enable_progress_bar()
