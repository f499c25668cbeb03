"""Makes the backbones and guides that users name."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch

from ppap_host.backbone import Backbone
from ppap_host.config import split_recipe
from ppap_host.containment import contained, warn_of
from ppap_host.errors import OptionError, nearest
from ppap_host.guide import Guide, Wrapped
from ppap_host.recipes import Recipe
from ppap_host.registry import Registry
from ppap_host.weights import default_folder, stored


def load_backbone(
    found: Registry,
    name: str,
    checkpoint: str | None = None,
    options: Mapping[str, str] | None = None,
) -> Backbone:
    """The backbone of this name, on the CPU in float32.

    Args:
        checkpoint: its weights, or the name of a published file that `ppap weights` has fetched;
            None where it ships its own, or was fetched under its own name.
        options: what else its factory takes, by name, such as ``vae`` or ``upsampler``.

    Raises:
        OptionError: the factory takes no such option; says which it takes.
        PpapError: as :meth:`ppap_host.registry.Registry.make`.
    """
    options = dict(options or {})
    taken = _options(found.load("backbone", name))
    for option in options:
        if taken is not None and option not in taken:
            close = nearest(option, taken, 1)
            known = ", ".join(f"{o}=..." for o in taken) or "none"
            raise OptionError(
                f"The backbone {name!r} takes no option {option!r}.",
                remedy=(f"Did you mean {close[0]!r}? " if close else "") + f"It takes: {known}.",
            )
    weights = _fetched(found, name, checkpoint)
    # mypy takes an abstract class for no type.
    return found.make("backbone", name, Backbone, checkpoint=weights, **options)  # type: ignore[type-abstract]


def _fetched(found: Registry, name: str, checkpoint: str | None) -> str | None:
    """The file that ``ppap weights`` has fetched for a backbone, else the checkpoint as it was."""
    wanted = checkpoint or name
    if wanted not in found.published_files():
        return checkpoint
    file = found.published(wanted)
    path = stored(file, default_folder(file))
    return checkpoint if path is None else str(path)


class Guarded(Wrapped):
    """A guide whose code can neither print into results nor change what belongs to everybody.

    See :mod:`ppap_host.containment`. What it does is warned of once a method, as a
    :class:`ppap_host.errors.PluginWarning` that names the plugin.
    """

    def __init__(self, guide: Guide, plugin: str) -> None:
        """Guards ``guide``; ``plugin`` is what to call its plugin."""
        super().__init__(guide)
        self._plugin = plugin
        self._asked: set[str] = set()
        self._told: set[str] = set()

    @contextmanager
    def _watched(self, method: str) -> Iterator[None]:
        # What is made when it is first needed, such as a network, may draw its weights then.
        with contained(draws=method in self._asked) as conduct:
            yield
        self._asked.add(method)
        if conduct and method not in self._told:
            self._told.add(method)
            warn_of(conduct, f"The guide {self.name!r} of {self._plugin}, asked for {method}(),")

    def to(self, device: torch.device, dtype: torch.dtype) -> Guide:
        """Moves the guide; returns the guarded one."""
        with self._watched("to"):
            return super().to(device, dtype)

    def tempered(self, joint: float, marginal: float) -> Guide:
        """The guide at these temperatures, guarded alike."""
        with self._watched("tempered"):
            return super().tempered(joint, marginal)


def _guard(method: str) -> None:
    """Gives :class:`Guarded` a method that runs the guide's own while it is watched."""
    passed_on = getattr(Wrapped, method)

    @wraps(passed_on)
    def guarded(self: Guarded, *args: Any, **kwargs: Any) -> Any:
        with self._watched(method):
            return passed_on(self, *args, **kwargs)

    setattr(Guarded, method, guarded)


for _name in vars(Wrapped):
    if not _name.startswith("_") and _name not in vars(Guarded):
        _guard(_name)


def load_guide(found: Registry, name: str, model: str | None = None) -> Guarded:
    """The guide of this name, its network frozen, on the CPU in float32.

    Args:
        model: checkpoint, folder or hub name; None for the network the plugin ships.

    Raises:
        PpapError: as :meth:`ppap_host.registry.Registry.make`.
    """
    guide = found.make("guide", name, Guide, model=model)  # type: ignore[type-abstract]
    guarded = Guarded(guide, found.owner("guide", name).label)
    guarded.network().requires_grad_(False)
    return guarded


def load_recipe(found: Registry, text: str) -> Recipe:
    """A recipe as users write it, its settings made (:func:`ppap_host.config.split_recipe`).

    Raises:
        PpapError: there is no such recipe, or it has no such parameter or not this value for it.
    """
    name, values = split_recipe(text)
    recipe: Recipe = found.load("recipe", name)
    return recipe.with_values(values)


def _options(factory: object) -> list[str] | None:
    """What a factory takes besides the checkpoint; None if that cannot be told."""
    if not callable(factory):
        return None
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.kind in named and p.name != "checkpoint"]
