"""Where the files that come with this plugin lie; imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

_WEIGHTS = Path(__file__).parent / "weights"

BUNDLED = _WEIGHTS / "shapes-unet"
"""The small U-Net for the built-in world, in segmentation-models-pytorch's own format."""

SHAPES_EXPERTS = _WEIGHTS / "experts" / "shapes-5.safetensors"
"""Five experts on :data:`BUNDLED`; need not be there."""


def shapes_experts() -> Path:
    """Path of the expert set ``segmentation-shapes-5``."""
    return SHAPES_EXPERTS
