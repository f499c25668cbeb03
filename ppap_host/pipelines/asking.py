"""Guidance as scripts describe it, loaded for a pipeline that somebody else runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from ppap_host.backbones.backbone import Backbone
from ppap_host.files.errors import OptionError
from ppap_host.files.reading import Document
from ppap_host.files.writing import make_folder, write_json
from ppap_host.guides.guide import Guide
from ppap_host.guides.targets import Target
from ppap_host.pipelines.steering import Asked
from ppap_host.plugins.loading import load_recipe
from ppap_host.plugins.registry import Registry, registry
from ppap_host.recipes.settings import absolutely
from ppap_host.runs.choice import NONE, choose, expert_set_path
from ppap_host.runs.config import GuideConfig, RunConfig, called, refuse_code
from ppap_host.runs.setup import calibrated, guide_of, target_of
from ppap_host.sampling.evaluator import Guidance, told_apart

_ANY_SIZE = (64, 64)
"""For which a target is read to say early if it cannot be; the pictures' own is known later."""


def asked(guidance: Any) -> list[Asked]:
    """The guides of one description or several, in this order; their networks are loaded.

    Args:
        guidance: of :func:`~ppap_host.runs.script.guidance`, or a
            :class:`~ppap_host.sampling.evaluator.Guidance` that is loaded already.

    Raises:
        PpapError: a name is unknown, or a target cannot be read.
    """
    given = _each(guidance)
    if not given:
        raise OptionError("There is no guidance.", remedy="Give one ppap.guidance or several.")
    names = told_apart([getattr(each, "name", "") for each in given])
    return [_one(each, name, registry()) for each, name in zip(given, names, strict=True)]


def _each(guidance: Any) -> list[Any]:
    several = isinstance(guidance, Sequence) and not isinstance(guidance, str)
    return list(guidance) if several else [guidance]


def _one(given: Any, name: str, found: Registry) -> Asked:
    if isinstance(given, Guidance):
        return Asked.of(replace(given, name=name))
    if not isinstance(given, GuideConfig):
        raise OptionError(
            f"A {type(given).__name__} stands where guidance is wanted.",
            remedy="Wrap it: ppap.guidance(what, target=...).",
        )
    if given.stage not in (None, "base"):
        raise OptionError(
            f"The guide {name!r} is to steer an upsampler, and there is none.",
            remedy="Leave out its stage; steer the pipeline that enlarges by itself.",
        )
    text = given.recipe
    if text is not None:
        text = absolutely(text) if given.absolute else text
    recipe = None if text is None else load_recipe(found, text)
    if given.experts not in (None, NONE):
        expert_set_path(str(given.experts), found)
    guide, ours, _ = guide_of(given, found, [])
    targets = _targets(guide, given, _ANY_SIZE, torch.device("cpu"))

    def at_work(backbone: Backbone, device: torch.device) -> Guidance:
        if ours:
            guide.to(device, torch.float32)
        walk = backbone.walk(0)
        chosen = calibrated(given, choose(given, given.recipe, guide, backbone, walk, found))
        usual = chosen.guide.usual_scale(chosen.recipe.name)
        scale = usual if given.scale is None else given.scale
        targets[:] = _targets(chosen.guide, given, backbone.image_size, device)
        rows = torch.cat([target.value for target in targets])
        return Guidance(chosen.guide, rows, chosen.recipe, scale, name)

    return Asked(name, recipe, at_work, targets)


def _targets(
    guide: Guide, given: GuideConfig, size: tuple[int, int], device: torch.device
) -> list[Target]:
    """One for all pictures, or one a picture."""
    targets = given.target if isinstance(given.target, tuple) else (given.target,)
    return [target_of(guide, target, size, device) for target in targets]


def written(guidance: Any, **options: Any) -> dict[str, Any]:
    """Guidance as plain values; what is in memory as ``{"object": what it is called}``.

    Args:
        options: of the callback or the guider.
    """
    if not isinstance(decoder := options.get("decoder"), str | None):
        options["decoder"] = {"object": called(decoder)}
    rows = [
        g.to_dict() if isinstance(g, GuideConfig) else {"object": called(g)}
        for g in _each(guidance)
    ]
    return {
        "guidance": [{k: v for k, v in row.items() if v is not None} for row in rows],
        **options,
    }


def save(values: Mapping[str, Any], folder: str | os.PathLike[str], file: str) -> None:
    """Writes what :func:`written` gives to a file in a folder.

    Raises:
        OptionError: something of it is in memory alone.
        OutputError: it cannot be written.
    """
    if not isinstance(values.get("decoder"), str | None):
        raise OptionError(
            "The small decoder is an object in memory, which no file can hold.",
            remedy="Give its hub name or folder.",
        )
    for row in values["guidance"]:
        for key, value in {"": row, **row}.items():
            if isinstance(value, Mapping) and "object" in value:
                which = f"{key} of {row.get('name')!r}" if key else f"guide {value['object']!r}"
                raise OptionError(
                    f"The {which} is an object in memory, which no file can hold.",
                    remedy="Save guidance whose guides and targets have names.",
                )
    make_folder(Path(folder))
    write_json(Path(folder) / file, values)


_SAVED = Document("saved guidance", OptionError, "Give the folder that save_pretrained wrote.")


class _Saved(BaseModel):
    guidance: list[dict[str, Any]]
    seed: Any = 0
    balance: Any = "project"
    frames: Any = 3
    decoder: str | None = None
    shrink: Any = 1
    start: Any = None
    stop: Any = None
    around: dict[str, Any] | None = None


def saved(folder: str | os.PathLike[str], file: str) -> dict[str, Any]:
    """What :func:`save` wrote, with the guidance as descriptions; nothing it names is run.

    Raises:
        OptionError: there is no such file, it is damaged, or it names code.
    """
    path = Path(folder) / file
    values = _SAVED.read(path, _Saved).model_dump(exclude_unset=True)
    config = RunConfig.from_dict({"guides": values["guidance"]}, str(path))
    refuse_code(config, str(path))
    return {**values, "guidance": list(config.guides)}
