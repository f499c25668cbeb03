"""Guidance as scripts describe it, loaded for a pipeline that somebody else runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppap_host.backbones.backbone import Backbone
from ppap_host.files.errors import OptionError
from ppap_host.guides.guide import Guide
from ppap_host.pipelines.steering import Asked
from ppap_host.plugins.loading import load_recipe
from ppap_host.plugins.registry import Registry, registry
from ppap_host.runs.choice import NONE, choose, expert_set_path
from ppap_host.runs.config import GuideConfig
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
    given = list(guidance) if isinstance(guidance, Sequence) else [guidance]
    names = told_apart([getattr(each, "name", "") for each in given])
    return [_one(each, name, registry()) for each, name in zip(given, names, strict=True)]


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
    recipe = None if given.recipe is None else load_recipe(found, given.recipe)
    if given.experts not in (None, NONE):
        expert_set_path(str(given.experts), found)
    guide, ours, _ = guide_of(given, found, [])
    _target(guide, given, _ANY_SIZE, torch.device("cpu"))

    def at_work(backbone: Backbone, device: torch.device) -> Guidance:
        if ours:
            guide.to(device, torch.float32)
        walk = backbone.walk(0)
        chosen = calibrated(given, choose(given, given.recipe, guide, backbone, walk, found))
        usual = chosen.guide.usual_scale(chosen.recipe.name)
        scale = usual if given.scale is None else given.scale
        rows = _target(chosen.guide, given, backbone.image_size, device)
        return Guidance(chosen.guide, rows, chosen.recipe, scale, name)

    return Asked(name, recipe, at_work)


def _target(
    guide: Guide, given: GuideConfig, size: tuple[int, int], device: torch.device
) -> Tensor:
    """One row, or one a picture."""
    targets = given.target if isinstance(given.target, tuple) else (given.target,)
    return torch.cat([target_of(guide, target, size, device).value for target in targets])
