"""Makes the backbones and guides that users name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

from ppap_host.backbone import Backbone
from ppap_host.config import split_recipe
from ppap_host.errors import OptionError, nearest
from ppap_host.guide import Guide
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


def load_guide(found: Registry, name: str, model: str | None = None) -> Guide:
    """The guide of this name, its network frozen, on the CPU in float32.

    Args:
        model: checkpoint, folder or hub name; None for the network the plugin ships.

    Raises:
        PpapError: as :meth:`ppap_host.registry.Registry.make`.
    """
    guide = found.make("guide", name, Guide, model=model)  # type: ignore[type-abstract]
    guide.network().requires_grad_(False)
    return guide


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
