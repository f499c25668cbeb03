"""Steer any trained diffusion model with any trained vision model, plug and play."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppap_host.pipelines.callback import diffusers_callback

__all__ = ["diffusers_callback"]


def __getattr__(name: str) -> Any:
    """Imports what needs torch only when it is asked for."""
    if name == "diffusers_callback":
        from ppap_host.pipelines.callback import diffusers_callback

        return diffusers_callback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
