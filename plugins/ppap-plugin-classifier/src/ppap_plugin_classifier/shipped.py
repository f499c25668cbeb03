"""Where the files that come with this plugin lie; imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"

BUNDLED = WEIGHTS / "shapes-resnet"
"""The small ResNet for the built-in world, a folder in timm's own format."""

EXPERTS = WEIGHTS / "experts"
"""Expert sets of that ResNet, one safetensors file each."""


def shapes_1() -> Path:
    """One expert for all noise levels of the built-in world."""
    return EXPERTS / "shapes-1.safetensors"


def shapes_2() -> Path:
    """Two experts for the built-in world."""
    return EXPERTS / "shapes-2.safetensors"


def shapes_5() -> Path:
    """Five experts for the built-in world, PPAP's own number."""
    return EXPERTS / "shapes-5.safetensors"


def shapes_10() -> Path:
    """Ten experts for the built-in world."""
    return EXPERTS / "shapes-10.safetensors"
