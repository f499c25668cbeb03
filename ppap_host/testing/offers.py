"""From a name on the command line to the checks of what it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ppap_host.files.errors import PluginError, unknown_name
from ppap_host.plugins.loading import load_backbone
from ppap_host.plugins.plugin import Kind, Plugin
from ppap_host.plugins.registry import Registry
from ppap_host.testing.backbones import check_backbone
from ppap_host.testing.checks import Check, ConformanceError
from ppap_host.testing.guides import check_guide
from ppap_host.testing.recipes import check_recipe

CHECKED: tuple[Kind, ...] = ("guide", "backbone", "recipe")


@dataclass(frozen=True)
class Settings:
    """What checks are told of the things that they check.

    Attributes:
        target, model: of guides.
        checkpoint, options, prompt: of backbones.
        size: (height, width) of the images that guides are shown.
        shape: of what else they are shown.
    """

    target: str | None = None
    model: str | None = None
    checkpoint: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    prompt: str | None = None
    size: tuple[int, int] = (64, 64)
    shape: tuple[int, ...] | None = None


def offers(found: Registry, name: str, kind: Kind | None = None) -> list[tuple[Kind, str]]:
    """What is meant by a name: a thing, or all that a distribution offers.

    Args:
        kind: where a name alone says too little.

    Raises:
        PluginError: its plugin is broken, offers nothing to check, or shares the name with another.
        UnknownNameError: there is nothing of that name.
    """
    kinds = CHECKED if kind is None else (kind,)
    named = [(k, name) for k in kinds if name in found.names(k)]
    for k, one in named:
        found.entry(k, one)
    if named:
        return named
    plugins = [p for p in found.plugins if name in (p.distribution, p.name)]
    for plugin in plugins:
        if plugin.problem is not None:
            raise PluginError(
                f"The plugin {plugin.label} {plugin.problem}.", remedy="Mend or reinstall it."
            )
    if plugins:
        things = [(k, e.name) for p in plugins for k in kinds for e in p.offers.get(k, [])]
        if not things:
            raise PluginError(
                f"{name!r} offers no {' or '.join(kinds)}.", remedy="`ppap list` says what it is."
            )
        return things
    known = {one for k in kinds for one in found.names(k)}
    distributions = {plugin.distribution for plugin in found.plugins}
    raise unknown_name(" or ".join((*kinds, "distribution")), name, known | distributions)


def checks_of(found: Registry, kind: Kind, name: str, settings: Settings) -> list[Check]:
    """The checks of one thing that plugins offer, behind what importing its plugin did wrong."""
    plugin = found.owner(kind, name)
    remarks = [_remark(plugin, plugin.warning)] if plugin.warning else []
    return [*remarks, *_checks_of(found, kind, name, settings)]


def _remark(plugin: Plugin, what: str) -> Check:
    """A check that fails: what ``ppap list`` remarks of a plugin."""

    def run() -> None:
        raise ConformanceError(
            f"{plugin.label} {what}.",
            "The plugin is imported at almost every start, also of runs that do not use it.",
            "Let the module with the hooks name things, and do all else in what it names.",
        )

    return Check("imported", "Importing its plugin is quick and disturbs nobody.", run)


def _checks_of(found: Registry, kind: Kind, name: str, settings: Settings) -> list[Check]:
    if kind == "guide":
        # As its plugin makes it: the host would undo what the checks are to find.
        return check_guide(
            lambda: found.entry("guide", name).load()(model=settings.model),
            settings.target,
            size=settings.size,
            shape=settings.shape,
        )
    if kind == "backbone":
        return check_backbone(
            lambda: load_backbone(found, name, settings.checkpoint, settings.options),
            settings.prompt,
        )
    return check_recipe(found.load("recipe", name))
