"""What there is to choose from: name -> what it is. Imports no torch."""

from __future__ import annotations

from ppap_host.plugins.plugin import Kind
from ppap_host.plugins.registry import registry
from ppap_host.sampling.names import SAMPLER_SUMMARIES


def _list(kind: Kind) -> dict[str, str]:
    return {name: found[0][1].summary for name, found in registry().names(kind).items()}


def list_guides() -> dict[str, str]:
    """The guides that are installed: name -> what it is."""
    return _list("guide")


def list_backbones() -> dict[str, str]:
    """The backbones that are installed: name -> what it is."""
    return _list("backbone")


def list_recipes() -> dict[str, str]:
    """The guidance methods that are installed: name -> what it is."""
    return _list("recipe")


def list_experts() -> dict[str, str]:
    """The expert sets that are installed: name -> what it is."""
    return _list("expert set")


def list_samplers() -> dict[str, str]:
    """The samplers: name -> what it is."""
    return dict(SAMPLER_SUMMARIES)
