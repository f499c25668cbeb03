"""What benchmarks are about, for the command line too: imports nothing heavy."""

from __future__ import annotations

TASKS = {
    "class": "classifier",
    "depth": "depth",
    "segmentation": "segmentation",
    "super-resolution": "super-resolution",
    "inpainting": "inpainting",
    "symmetry": "symmetry",
}
"""Tasks of ``ppap bench recipes`` -> the guide that is asked."""

REWARDS = ("symmetry",)
"""Guides that are made here, not installed."""

STEERS = ("symmetry", "counting", "colour", "reward")
"""What guides in ``ppap bench strength``."""

GROUNDS = ("shapes", "small")
"""Its backbones."""
