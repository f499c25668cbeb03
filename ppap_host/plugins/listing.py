"""What there is to choose from: name -> what it is. Imports no torch."""

from __future__ import annotations

from ppap_host.files.errors import OptionError
from ppap_host.plugins.plugin import Kind
from ppap_host.plugins.registry import Registry, registry
from ppap_host.sampling.names import why_no_sampler


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
    return _list("sampler")


def check_sampler(found: Registry, name: str | None) -> None:
    """Whether a sampler is installed, None being the backbone's own; imports none of it.

    Raises:
        OptionError: it is a scheduler of diffusers that guides cannot use; says why.
        PluginError, UnknownNameError: as :meth:`ppap_host.plugins.registry.Registry.entry`.
    """
    if name is None:
        return
    refused = why_no_sampler(name)
    if refused is not None and name not in found.names("sampler"):
        kind, why = refused
        raise OptionError(
            f"diffusers' {kind} is no sampler: it {why}.",
            remedy="`ppap list samplers` says which there are.",
        )
    found.entry("sampler", name)
