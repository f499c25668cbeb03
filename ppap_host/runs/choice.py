"""Which recipe and which experts a guide of a run is given."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ppap_host.backbones.backbone import Backbone
from ppap_host.backbones.noise import NoiseRange, Walk
from ppap_host.experts.patches import network_hash
from ppap_host.experts.sets import ExpertSet, View, WithExperts, view_of
from ppap_host.files.errors import OptionError, PluginWarning, PpapError
from ppap_host.files.hashes import file_hashes
from ppap_host.guides.guide import Guide
from ppap_host.plugins.loading import load_recipe
from ppap_host.plugins.registry import Registry
from ppap_host.recipes.recipe import Recipe
from ppap_host.recipes.settings import absolutely
from ppap_host.runs.config import GuideConfig

SET_FILE = "experts.safetensors"
"""The expert set in a folder that ``ppap tune`` wrote."""
NONE = "none"
_BY_VALUES = "best-of-n"  # the recipe of a black box
_USUAL: dict[View, str] = {"noised": "ppap", "predicted": "x0"}  # the recipe, if none is named


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        guide: the guide, with its experts if it has any.
        asked: the recipe as one would write it, with the settings that were chosen, or itself
            where it was in memory.
        experts: name or path of the set, None without one.
        files: what was read of it.
        calibration_file: what the guide's calibration was read from, None without one.
    """

    guide: Guide
    recipe: Recipe
    asked: str | Recipe
    experts: str | None = None
    files: tuple[Path, ...] = ()
    calibration_file: Path | None = None


def expert_set_path(text: str, found: Registry) -> Path:
    """The file of an expert set given as a path, a folder of ``ppap tune``, or a registered name.

    Raises:
        UnknownNameError: it is none of them.
    """
    if os.path.isdir(text):
        return Path(text) / SET_FILE
    if os.path.exists(text) or os.sep in text or text.endswith(".safetensors"):
        return Path(text)
    return found.expert_set(text)


def fitting_set(
    guide: Guide,
    backbone: Backbone,
    found: Registry,
    count: int | None = None,
    view: View = "noised",
) -> tuple[str, ExpertSet, Path] | None:
    """The first registered set made for this guide, its network, and this backbone.

    Plugins register the set they recommend first.

    Args:
        count: of its experts; None for any.
        view: what its experts are shown.
    """
    network = None
    entries = [entry for plugin in found.plugins for entry in plugin.offers.get("expert set", [])]
    for entry in entries:
        try:
            path = found.expert_set(entry.name)
            metadata = ExpertSet.read_metadata(path)
        except PpapError as error:  # another plugin's, as likely as not
            warnings.warn(f"An expert set was not looked at: {error}", PluginWarning, stacklevel=2)
            continue
        if metadata.get("guide") != guide.name or view_of(metadata) != view:
            continue
        network = network or network_hash(guide.network())
        fits = (
            metadata.get("network_sha256") == network
            and tuple(metadata.get("image_size", ())) == backbone.image_size
            and (metadata.get("harvest") or {}).get("backbone") == backbone.name
            and _same_files(metadata.get("backbone", {}).get("files"), backbone)
        )
        if fits:
            experts = ExpertSet.load(path)
            if count in (None, len(experts.patches)):
                return entry.name, experts, path
    return None


def _same_files(recorded: Mapping[str, str] | None, backbone: Backbone) -> bool:
    """Whether a set was made with these weights of the backbone, as far as it says.

    Names alone don't tell: all pipelines of diffusers have one, and so has every own training.
    """
    if not recorded:
        return True
    return set(recorded.values()) == set(file_hashes(backbone.files(), backbone.name).values())


def choose(
    config: GuideConfig,
    recipe_name: str | Recipe | None,
    guide: Guide,
    backbone: Backbone,
    walk: Walk,
    found: Registry,
) -> Choice:
    """Recipe and experts of one guide.

    With neither named, a registered expert set that fits is used with the recipe ``ppap``, and
    ``x0`` where there is none. A named set is never replaced by another one, or by none. Experts
    are shown only what they were tuned on: a set of noised images fits recipes that show any, a set
    of predicted ones those that show nothing else; without a recipe they get ``ppap`` and ``x0``.

    Args:
        recipe_name: the guide's own or the run's; None leaves the choice to this function.

    Raises:
        CheckpointError: the set was made for another guide, network or resolution, or leaves
            levels of the walk without an expert.
        OptionError: the recipe and the experts exclude each other; names a recipe that fits.
    """

    def asked(text: str | Recipe) -> str | Recipe:
        return absolutely(text) if config.absolute else text

    def load(text: str | Recipe) -> Recipe:
        recipe = load_recipe(found, text)
        if recipe.guideless:
            raise OptionError(
                f"The recipe {recipe.name!r} asks no guide, and {guide.name!r} is given none of "
                "its own.",
                remedy="Leave out the guide, or give each guide a recipe of its own.",
            )
        # What is in memory is absolute because it was made so, or because that was asked for.
        made_so = not config.absolute
        if isinstance(text, str):
            made_so = found.load("recipe", recipe.name).absolute
        _check_scale(config, recipe, made_so)
        return recipe

    recipe_name = None if recipe_name is None else asked(recipe_name)
    recipe = None if recipe_name is None else load(recipe_name)
    of_host = _USUAL["predicted"] if guide.differentiable else _BY_VALUES
    usual = recipe_name or asked(guide.usual_recipe(backbone) or of_host)
    wanted = config.experts
    if wanted == NONE:
        if recipe is not None and recipe.needs_experts:
            raise OptionError(
                f"--experts is none, and the recipe {recipe.name!r} needs experts.",
                remedy="Leave out --experts none, or use --recipe x0.",
            )
        return Choice(guide, _within(recipe or load(usual), config), usual)
    if wanted is not None:
        path = expert_set_path(wanted, found)
        experts = ExpertSet.load(path)
        text = recipe_name or asked(_USUAL[experts.view])
        recipe = load(text)
        _check_view(recipe, experts.view, guide, wanted)
        return _with_set(config, guide, recipe, text, experts, wanted, path, backbone, walk)
    if recipe is not None and not recipe.needs_experts:
        return Choice(guide, _within(recipe, config), usual)
    view: View = "noised" if recipe is None or recipe.sees_noise else "predicted"
    fitting = fitting_set(guide, backbone, found, view=view)
    if fitting is not None:
        name, experts, path = fitting
        text = recipe_name or asked(_USUAL["noised"])
        recipe = load(text)
        return _with_set(config, guide, recipe, text, experts, name, path, backbone, walk)
    if recipe is not None:
        how = f"ppap tune {guide.name}" + (" --view predicted" if view == "predicted" else "")
        raise OptionError(
            f"No expert set is installed for the guide {guide.name!r} with this network on the "
            f"backbone {backbone.name!r}, and the recipe {recipe.name!r} needs one.",
            remedy=f"Make one with `ppap harvest` and `{how}` and give it with --experts, or use "
            "--recipe x0, which needs none.",
        )
    return Choice(guide, _within(load(usual), config), usual)


def _check_scale(config: GuideConfig, recipe: Recipe, made_so: bool) -> None:
    """Whether a strength that was asked for as absolute is given.

    Raises:
        OptionError: it is not.
    """
    if recipe.absolute and not made_so and config.scale is None:
        raise OptionError(
            f"Absolute strength was asked for with the recipe {recipe.name!r} and the guide "
            f"{config.name!r}, and no number is usual there.",
            remedy="Give the paper's with --scale, or leave out absolute: then 1 is usual.",
        )


def _check_view(recipe: Recipe, view: View, guide: Guide, name: str) -> None:
    """Whether a recipe shows experts what they were tuned on, and nothing else.

    Raises:
        OptionError: it does not; names a recipe that does.
    """
    use = f"Use --recipe {_USUAL[view]}, or leave out --experts."
    if view == "noised" and not recipe.sees_noise:
        raise OptionError(
            f"The recipe {recipe.name!r} shows the guide {guide.name!r} clean images, so its "
            f"experts {name!r}, which were tuned on noised ones, would never be asked.",
            remedy=use,
        )
    if view == "predicted" and (recipe.sees_noise or not recipe.sees_predictions):
        raise OptionError(
            f"The recipe {recipe.name!r} shows the guide {guide.name!r} noised images, and its "
            f"experts {name!r} were tuned on predicted clean ones.",
            remedy=use,
        )


def _with_set(
    config: GuideConfig,
    guide: Guide,
    recipe: Recipe,
    text: str | Recipe,
    experts: ExpertSet,
    name: str,
    path: Path,
    backbone: Backbone,
    walk: Walk,
) -> Choice:
    recipe = _within(recipe, config)
    wrapped = WithExperts(guide, experts, image_size=backbone.image_size)
    for level in walk.levels[:-1]:
        if level.log_snr in recipe.interval:
            experts.serving(level)
    return Choice(wrapped, recipe, text, name, (path,))


def _within(recipe: Recipe, config: GuideConfig) -> Recipe:
    """The recipe with the guide's own interval."""
    if config.interval is None:
        return recipe
    return replace(recipe, interval=NoiseRange.read(config.interval))
