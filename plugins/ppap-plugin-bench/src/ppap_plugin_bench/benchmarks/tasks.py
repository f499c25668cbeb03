"""What benchmarks are about, for the command line too: imports nothing heavy."""

from __future__ import annotations

TASKS = {
    "class": "classifier",
    "depth": "depth",
    "segmentation": "segmentation",
    "super-resolution": "super-resolution",
    "inpainting": "inpainting",
}
"""Tasks of ``ppap bench recipes`` -> the guide that is asked."""

STEERS = ("symmetry", "counting", "colour", "reward")
"""What guides in ``ppap bench strength``."""

GROUNDS = ("shapes", "small")
"""Its backbones."""
