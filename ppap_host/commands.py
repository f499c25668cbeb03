"""Commands that plugins add, found without importing any plugin."""

from __future__ import annotations

import os
from importlib import metadata

COMMANDS = "ppap.commands"
"""Entry point group of commands that plugins add: name -> Typer application."""

LEFT_OUT = "PPAP_WITHOUT"
"""Environment variable: plugins or distributions to leave out, separated by commas."""

OWN_COMMANDS = (
    "run", "rerun", "list", "doctor", "weights", "harvest", "tune", "calibrate", "search",
    "experts", "bench", "shapes", "plugin",
)  # fmt: skip
"""The host's own, which no plugin can replace."""


def left_out() -> set[str]:
    """Plugins and distributions that the user wants to do without (:data:`LEFT_OUT`)."""
    return {name.strip() for name in os.environ.get(LEFT_OUT, "").split(",")} - {""}


def plugin_commands() -> dict[str, list[metadata.EntryPoint]]:
    """Commands of plugins: name -> who claims it (more than one is a collision)."""
    found: dict[str, list[metadata.EntryPoint]] = {}
    unwanted = left_out()
    for point in sorted(metadata.entry_points(group=COMMANDS), key=lambda p: (p.name, p.value)):
        if not {point.name, owner(point)} & unwanted:
            found.setdefault(point.name, []).append(point)
    return found


def owner(point: metadata.EntryPoint) -> str:
    """The distribution that declares an entry point, else the module that it names."""
    return point.dist.name if point.dist else point.value
