"""One plugin as it was found, and whether it fits this host."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ppap_host.files.weights import PublishedFile
from ppap_host.plugins.containment import plain
from ppap_host.plugins.entry_points import NAME
from ppap_host.plugins.hookspecs import INTERFACE, OLDEST_INTERFACE, Entry

SLOW_IMPORT = 0.5
"""Seconds of import after which a plugin is reported as slow."""

Kind = Literal["guide", "backbone", "recipe", "sampler", "expert set"]
HOOKS: dict[Kind, str] = {
    "guide": "ppap_guides",
    "backbone": "ppap_backbones",
    "recipe": "ppap_recipes",
    "sampler": "ppap_samplers",
    "expert set": "ppap_expert_sets",
}
WEIGHTS_HOOK = "ppap_weights"
ANSWERS: dict[str, type] = {**dict.fromkeys(HOOKS.values(), Entry), WEIGHTS_HOOK: PublishedFile}
"""What the list is made of that a hook returns."""
PUBLISHED = "published file"
"""What files of :data:`WEIGHTS_HOOK` are called in messages; they are no kind of entry."""

Status = Literal["ok", "warning", "slow", "left out", "broken"]

_FACTORY = re.compile(r"[\w.]+:[\w.]+")


@dataclass
class Plugin:
    """One plugin as it was found.

    Attributes:
        name: of its entry point.
        distribution, version: of the package that declares it.
        module: the entry point's value.
        problem: why it offers nothing, or None if it works.
        warning: what is wrong with it although it works, or None.
        unwanted: whether the user has left it out.
        seconds: its import and its hooks took.
        offers: what it registered, by kind.
        published: files of weights that it declares.
    """

    name: str
    distribution: str
    version: str
    module: str
    problem: str | None = None
    warning: str | None = None
    unwanted: bool = False
    seconds: float = 0.0
    offers: dict[Kind, list[Entry]] = field(default_factory=dict)
    published: list[PublishedFile] = field(default_factory=list)

    @property
    def status(self) -> Status:
        """In a word."""
        if self.unwanted:
            return "left out"
        if self.problem:
            return "broken"
        if self.seconds > SLOW_IMPORT:
            return "slow"
        return "warning" if self.warning else "ok"

    def packages(self, owners: Mapping[str, Sequence[str]]) -> set[str]:
        """Packages and modules of its code, as far as its entries tell.

        Args:
            owners: of top-level packages: a factory may stand in somebody else's library, whose
                faults are not the plugin's.
        """
        factories = [entry.factory for entries in self.offers.values() for entry in entries]
        modules = [name.partition(":")[0] for name in (self.module, *factories)]
        own = {
            module
            for module in modules
            if (top := module.split(".")[0]) == modules[0].split(".")[0]
            or self.distribution in owners.get(top, ())
        }
        return own | {module.rpartition(".")[0] for module in own} - {""}

    @property
    def label(self) -> str:
        """Distribution and version, for messages."""
        return f"{self.distribution} {self.version}".strip()


def of_another_interface(plugin: Plugin, wanted: object) -> str | None:
    """Why a plugin that was written for this interface cannot be used; None if it can.

    An older interface that is still served leaves a warning with the plugin.
    """
    served = f"{INTERFACE}"
    if OLDEST_INTERFACE < INTERFACE:
        served = f"{OLDEST_INTERFACE} to {INTERFACE}"
    if wanted is None:
        return f"declares no ppap_interface; its module must name one, and this host has {served}"
    if type(wanted) is not int or abs(wanted) > 999_999:
        shown = plain(repr(wanted)) if isinstance(wanted, str | float | bool) else "that it does"
        return f"declares the ppap_interface {shown}, which is no version; this host has {served}"
    if wanted > INTERFACE:
        return (
            f"is written for interface {wanted}, and this host has {served}: "
            "`pip install --upgrade ppap-host`"
        )
    if wanted < OLDEST_INTERFACE:
        return (
            f"is written for interface {wanted}, and this host has {served}: "
            f"`pip install --upgrade {plugin.distribution}`, or use an older ppap-host"
        )
    if wanted < INTERFACE:
        plugin.warning = (
            f"is written for interface {wanted}; it works, but a later host will serve "
            f"{INTERFACE} only: `pip install --upgrade {plugin.distribution}`"
        )
    return None


def fault_of(entry: Entry) -> str | None:
    """What is wrong with an entry, if anything is."""
    # Not isinstance: what is derived from str may do anything when it is compared.
    if not (type(entry.name) is str and NAME.fullmatch(entry.name)):
        return f"named {entry.name!r}: a name has lower-case letters, digits and hyphens"
    if not (type(entry.factory) is str and _FACTORY.fullmatch(entry.factory)):
        return f"{entry.name!r} with the factory {entry.factory!r}: write 'module:attribute'"
    if type(entry.summary) is not str or "\n" in entry.summary:
        return f"{entry.name!r} whose summary is not one line of text"
    return None
