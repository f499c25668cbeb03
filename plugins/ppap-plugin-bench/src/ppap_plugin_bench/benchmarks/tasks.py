"""The tasks of ``ppap bench recipes``, for the command line too: imports nothing heavy."""

from __future__ import annotations

TASKS = {
    "class": "classifier",
    "depth": "depth",
    "segmentation": "segmentation",
    "super-resolution": "super-resolution",
    "inpainting": "inpainting",
    "symmetry": "symmetry",
}
"""Task -> the guide that is asked."""

REWARDS = ("symmetry",)
"""Guides that are made here, not installed."""
