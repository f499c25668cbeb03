"""What a plugin may implement: the whole contract on one page.

A plugin is a module named by an entry point of the group ``ppap``. It says ``ppap_interface = 1``
and implements any of the hooks below with ``@hookimpl``. Hooks name things, they do not load them:
a plugin's module must import quickly, and heavy libraries only inside what an :class:`Entry` names.

    from ppap_host.plugins.hookspecs import Entry, hookimpl

    ppap_interface = 1

    @hookimpl
    def ppap_guides() -> list[Entry]:
        return [Entry("depth", "my_plugin.guide:DepthGuide", "depth of the scene")]

Commands are entry points of the group ``ppap.commands`` (name -> Typer application), so that
``ppap --help`` can list them without importing any plugin.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import pluggy

from ppap_host.files.weights import PublishedFile

INTERFACE = 1
"""Version of this interface; a plugin written for a later one is reported and left out."""

OLDEST_INTERFACE = 1
"""The oldest version that is still served; a plugin written for an older one is reported, too."""

hookspec = pluggy.HookspecMarker("ppap")
hookimpl = pluggy.HookimplMarker("ppap")


@dataclass(frozen=True)
class Entry:
    """A thing a plugin offers, by name.

    Attributes:
        name: what users call it, lower case, words joined by hyphens.
        factory: ``"module:attribute"``, imported only when the thing is asked for.
        summary: one line for ``ppap list``.
    """

    name: str
    factory: str
    summary: str

    def load(self) -> Any:
        """Imports and returns what ``factory`` names."""
        module, _, attribute = self.factory.partition(":")
        return getattr(importlib.import_module(module), attribute)


@hookspec
def ppap_guides() -> list[Entry]:  # type: ignore[empty-body]
    """Guides. Each factory is called with ``model=`` (the --model option, a str or None) and
    returns a :class:`ppap_host.guides.guide.Guide`."""


@hookspec
def ppap_backbones() -> list[Entry]:  # type: ignore[empty-body]
    """Backbones. Each factory is called with ``checkpoint=`` (the --checkpoint option, a str or
    None) and returns a :class:`ppap_host.backbones.backbone.Backbone`."""


@hookspec
def ppap_recipes() -> list[Entry]:  # type: ignore[empty-body]
    """Recipes. Each factory *is* a :class:`ppap_host.recipes.recipe.Recipe`, not called."""


@hookspec
def ppap_samplers() -> list[Entry]:  # type: ignore[empty-body]
    """Samplers. Each factory is called with ``backbone=``, and where it takes them with ``eta=``
    and ``churn=`` (the options of these names, or None), and returns a
    :class:`ppap_host.sampling.solvers.Solver`."""


@hookspec
def ppap_expert_sets() -> list[Entry]:  # type: ignore[empty-body]
    """Expert sets shipped with a plugin. Each factory is called without arguments and returns the
    path of the set's safetensors file."""


@hookspec
def ppap_weights() -> list[PublishedFile]:  # type: ignore[empty-body]
    """Files of weights that the models' authors have published, for ``ppap weights``. Their names
    are those of the backbones and guides that need them, where there are any. The table belongs
    into a light module of its own, with nothing but :mod:`ppap_host.files.weights` to import."""
