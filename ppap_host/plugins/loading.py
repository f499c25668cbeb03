"""Makes the backbones and guides that users name."""

from __future__ import annotations

import inspect
import traceback
import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from ppap_host.backbones.backbone import Backbone, Prediction
from ppap_host.backbones.noise import Walk
from ppap_host.files.errors import (
    CheckpointError,
    CheckpointWarning,
    OptionError,
    PluginError,
    PpapError,
    nearest,
)
from ppap_host.files.weights import default_folder, stored
from ppap_host.guides.guide import Guide, Wrapped
from ppap_host.guides.targets import Target
from ppap_host.plugins.containment import Watch, in_a_line
from ppap_host.plugins.listing import check_sampler
from ppap_host.plugins.plugin import Kind
from ppap_host.plugins.registry import Registry
from ppap_host.recipes.recipe import Recipe
from ppap_host.recipes.settings import split_recipe
from ppap_host.sampling.solvers import Churn, Solver


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
        PpapError: as :meth:`ppap_host.plugins.registry.Registry.make`.
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
    made = found.make("backbone", name, Backbone, checkpoint=weights, **options)  # type: ignore[type-abstract]
    _say(made)
    plugin = found.owner("backbone", name)
    if plugin is found.plugins[0]:
        return made
    _check_name(made, "backbone", name, plugin.label)
    return _guard_backbone(made, plugin.label)


def _fetched(found: Registry, name: str, checkpoint: str | None) -> str | None:
    """The file that ``ppap weights`` has fetched for a backbone, else the checkpoint as it was."""
    wanted = checkpoint or name
    if wanted not in found.published_files():
        return checkpoint
    file = found.published(wanted)
    path = stored(file, default_folder(file))
    return checkpoint if path is None else str(path)


_ANSWERS: dict[str, type] = {
    "network": nn.Module, "read_target": Target, "understand": Target, "prepare": Tensor,
    "see": Tensor, "loss": Tensor, "distance": Tensor, "picture": list, "measure": dict,
    "predict": Prediction, "walk": Walk,
}  # fmt: skip
"""What methods of guides and backbones return, as far as a slip there is likely."""

_ASK_THE_KIT = "This is a fault of the plugin; tell its authors (`ppap plugin check` says more)."


def _check_answer(who: str, method: str, answer: object) -> None:
    """Raises PluginError if a method returns something else than it should."""
    wanted = _ANSWERS.get(method, object)
    if not isinstance(answer, wanted):
        raise PluginError(
            f"{who} returns a {type(answer).__name__} from {method}(), not a {wanted.__name__}.",
            remedy=_ASK_THE_KIT,
        )


def _check_name(thing: Guide | Backbone, kind: Kind, name: str, plugin: str) -> None:
    """Raises PluginError if a plugin's thing has no name."""
    if not isinstance(getattr(thing, "name", None), str):
        raise PluginError(f"The {kind} {name!r} of {plugin} has no name.", remedy=_ASK_THE_KIT)


class Guarded(Wrapped):
    """A guide whose code can neither print into results nor change what belongs to everybody.

    See :mod:`ppap_host.plugins.containment`. What it does is warned of once a method, as a
    :class:`ppap_host.files.errors.PluginWarning` that names the plugin. A method that returns
    something else than it should raises a :class:`ppap_host.files.errors.PluginError`.
    """

    def __init__(self, guide: Guide, plugin: str, model: str | None = None) -> None:
        """Guards ``guide``; ``plugin`` is what to call its plugin, ``model`` its checkpoint."""
        super().__init__(guide)
        self._model = model
        self._who = f"The guide {self.name!r} of {plugin}"
        self._watch = Watch(self._who)

    def to(self, device: torch.device, dtype: torch.dtype) -> Guide:
        """Moves the guide; returns the guarded one."""
        with self._watch("to"):
            return super().to(device, dtype)

    def tempered(self, joint: float, marginal: float) -> Guide:
        """The guide at these temperatures, guarded alike."""
        with self._watch("tempered"):
            return super().tempered(joint, marginal)


def _of_network(error: Exception) -> bool:
    """Whether an error came up within a network, and is not about memory."""
    if isinstance(error, PpapError | torch.OutOfMemoryError) or "allocate" in str(error):
        return False
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__") == nn.Module.__module__ for frame, _ in frames)


def _unseeing(who: str, model: str, given: tuple[Any, ...], error: Exception) -> CheckpointError:
    """A network that a user has named fails where others do not: that is no fault of the plugin."""
    shown = next((x for x in given if isinstance(x, Tensor)), None)
    height, width = given[-1] if shown is None else shown.shape[-2:]
    return CheckpointError(
        f"{who} cannot look at images of {height} x {width} pixels with {model!r}: "
        f"{in_a_line(error)}.",
        remedy="Its network may need another size, or its configuration a resizing that it takes; "
        "give another --model, or a backbone that makes images of another size.",
    )


_LOOKING = ("see", "through", "read_target")
"""What shows images to the network."""


def _guard(method: str) -> None:
    """Gives :class:`Guarded` a method that runs the guide's own while it is watched."""
    passed_on = getattr(Wrapped, method)

    @wraps(passed_on)
    def guarded(self: Guarded, *args: Any, **kwargs: Any) -> Any:
        try:
            with self._watch(method):
                answer = passed_on(self, *args, **kwargs)
        except Exception as error:
            if method in _LOOKING and self._model is not None and _of_network(error):
                raise _unseeing(self._who, self._model, args, error) from error
            raise
        _check_answer(self._who, method, answer)
        return answer

    setattr(Guarded, method, guarded)


for _name in vars(Wrapped):
    if not _name.startswith("_") and _name not in vars(Guarded):
        _guard(_name)

_WATCHED = (
    "conditioned_on", "decode", "encode_classes", "encode_prompts", "inpainting", "level_at",
    "levels", "predict", "to", "upsampler", "walk",
)  # fmt: skip


def _guard_backbone(backbone: Backbone, plugin: str) -> Backbone:
    """The backbone, whose methods are watched from now on as those of :class:`Guarded`.

    Not a wrapper: backbones are told apart by their classes, and have attributes of their own.
    """
    who = f"The backbone {backbone.name!r} of {plugin}"
    watch = Watch(who)

    def guarded(method: str, own: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(own)
        def call(*args: Any, **kwargs: Any) -> Any:
            with watch(method):
                answer = own(*args, **kwargs)
            _check_answer(who, method, answer)
            return answer

        return call

    for method in _WATCHED:
        setattr(backbone, method, guarded(method, getattr(backbone, method)))
    return backbone


def load_guide(found: Registry, name: str, model: str | None = None) -> Guarded:
    """The guide of this name, its network frozen, on the CPU in float32.

    Args:
        model: checkpoint, folder or hub name; None for the network the plugin ships.

    Raises:
        PpapError: as :meth:`ppap_host.plugins.registry.Registry.make`.
    """
    guide = found.make("guide", name, Guide, model=model)  # type: ignore[type-abstract]
    plugin = found.owner("guide", name).label
    _check_name(guide, "guide", name, plugin)
    guarded = Guarded(guide, plugin, model)
    guarded.network().requires_grad_(False)
    _say(guarded)
    return guarded


def _say(thing: Guide | Backbone) -> None:
    """Warns of what had to be chosen or guessed when a model was read."""
    for remark in thing.remarks():
        warnings.warn(remark, CheckpointWarning, stacklevel=3)


def load_sampler(
    found: Registry,
    name: str,
    backbone: Backbone,
    eta: float | None = None,
    churn: Churn | None = None,
) -> Solver:
    """The sampler of this name for a backbone.

    Args:
        eta, churn: for samplers that take one, None for their own; zero is none for the others.

    Raises:
        OptionError: the sampler takes no such option, or not this value; says which ones do.
        PpapError: as :meth:`ppap_host.plugins.registry.Registry.make`.
    """
    check_sampler(found, name)
    options = {"eta": eta, "churn": churn if churn is not None and churn.amount else None}
    taken = _options(found.load("sampler", name))
    for option, value in list(options.items()):
        if taken is not None and option not in taken:
            if value:
                raise OptionError(
                    f"--{option} is nothing that the sampler {name!r} takes.",
                    remedy=f"Leave out --{option}, or use --sampler "
                    f"{'ddim' if option == 'eta' else 'heun'}.",
                )
            del options[option]
    # mypy takes an abstract class for no type.
    made = found.make("sampler", name, Solver, backbone=backbone, **options)  # type: ignore[type-abstract]
    if not isinstance(getattr(made, "name", None), str):
        raise PluginError(
            f"The sampler {name!r} of {found.owner('sampler', name).label} has no name.",
            remedy=_ASK_THE_KIT,
        )
    return made


def load_recipe(found: Registry, text: str | Recipe) -> Recipe:
    """A recipe as users write it (:func:`~ppap_host.recipes.settings.split_recipe`), settings made.

    One in memory is there already.

    Raises:
        PpapError: there is no such recipe, or it has no such parameter or not this value for it.
    """
    if not isinstance(text, str):
        return text
    name, values = split_recipe(text)
    recipe = found.load("recipe", name)
    if not isinstance(recipe, Recipe):
        raise PluginError(
            f"The recipe {name!r} of {found.owner('recipe', name).label} is a "
            f"{type(recipe).__name__}, not a Recipe.",
            remedy="This is a fault of the plugin; tell its authors.",
        )
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
