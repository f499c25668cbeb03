"""Expert sets that come with the plugin; imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

EXPERTS = Path(__file__).parent / "weights" / "experts"


def shapes_5() -> Path:
    """Five experts of the bundled network for the built-in world."""
    return EXPERTS / "shapes-5.safetensors"
