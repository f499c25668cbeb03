"""Entry points, and the commands that plugins add, found without importing any plugin."""

from __future__ import annotations

import os
import re
from importlib import metadata

from packaging.utils import canonicalize_name

PLUGINS = "ppap"
"""Entry point group of plugins: name -> module with the hooks."""

COMMANDS = "ppap.commands"
"""Entry point group of commands that plugins add: name -> Typer application."""

LEFT_OUT = "PPAP_WITHOUT"
"""Environment variable: plugins or distributions to leave out, separated by commas."""

HOST = ("host", "ppap-host")
"""Name and distribution of the host's own plugin, which cannot be left out."""

OWN_COMMANDS = (
    "run", "rerun", "list", "doctor", "weights", "harvest", "tune", "experts", "shapes", "plugin",
)  # fmt: skip
"""The host's own, which no plugin can replace."""

KNOWN_COMMANDS = dict.fromkeys(("bench", "calibrate", "plot", "search"), "ppap-plugin-bench")
"""Commands of the project's own plugins, so that a missing one can be answered with a command."""

NAME = re.compile(r"[a-z0-9][a-z0-9._+-]*")
"""What users can type: commands, guides, backbones, recipes, expert sets."""


def entry_points(group: str) -> tuple[list[metadata.EntryPoint], dict[str, str]]:
    """The entry points of a group, and the distributions whose own cannot be read, with a reason.

    One broken file among hundreds of distributions must not take the rest along.
    """
    try:
        found = list(metadata.entry_points(group=group))
        broken: dict[str, str] = {}
    except Exception:
        found, broken = _one_by_one(group)
    return sorted(found, key=lambda point: (point.name, point.value)), broken


def _one_by_one(group: str) -> tuple[list[metadata.EntryPoint], dict[str, str]]:
    found: dict[str, list[metadata.EntryPoint]] = {}
    broken: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = str(getattr(distribution, "_path", "a distribution"))
        try:
            name = canonicalize_name(distribution.name)
            points = [p for p in distribution.entry_points if p.group == group]
        except Exception as error:
            broken[name] = f"{type(error).__name__}: {error}"
            continue
        found.setdefault(name, points)  # the first on the path hides the others
    return [point for points in found.values() for point in points], broken


def left_out() -> set[str]:
    """Plugins and distributions that the user wants to do without (:data:`LEFT_OUT`)."""
    named = {name.strip() for name in os.environ.get(LEFT_OUT, "").split(",")} - {""}
    return {str(canonicalize_name(name)) for name in named} - set(HOST)


def is_left_out(name: str, distribution: str) -> bool:
    """Whether the user wants to do without a plugin of this name and distribution."""
    return bool({str(canonicalize_name(name)), str(canonicalize_name(distribution))} & left_out())


def plugin_commands() -> dict[str, list[metadata.EntryPoint]]:
    """Commands of plugins: name -> who claims it (more than one is a collision).

    A plugin that is left out by its name takes the commands of its distribution with it.
    """
    found: dict[str, list[metadata.EntryPoint]] = {}
    # At every start: what is installed is read once more only for who leaves something out.
    plugins = entry_points(PLUGINS)[0] if left_out() else []
    gone = {owner(point) for point in plugins if is_left_out(point.name, owner(point))}
    for point in entry_points(COMMANDS)[0]:
        if owner(point) not in gone and not is_left_out(point.name, owner(point)):
            found.setdefault(point.name, []).append(point)
    return found


def owner(point: metadata.EntryPoint) -> str:
    """The distribution that declares an entry point, else the module that it names."""
    try:
        return (point.dist and point.dist.name) or point.value
    except Exception:  # of a distribution without metadata
        return point.value
