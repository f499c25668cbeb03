"""How far an image moves when it is made in another batch: ``python docs/batches.py [RECIPE ...]``.

Every recipe makes the same images one by one and all at once. What rounding becomes on the way is
written to ``docs/results/batches.json``, from which the table of ``docs/recipes.md`` is made.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import ppap_host as ppap
from ppap_host.plugins import builtin

RESULTS = Path(__file__).parent / "results" / "batches.json"
TARGET = Path(__file__).parent / "images" / "target.png"
IMAGES, STEPS, SEED = 2, 20, 3


def measured(recipe: str) -> dict[str, float]:
    """The largest mean over an image, and the largest of a pixel, in steps of 8 bits."""
    guide = ("deblur", str(TARGET)) if recipe == "pigdm" else ("classifier", "red cube")
    given: dict[str, Any] = {"guides": ppap.guidance(*guide, recipe=recipe)}
    if recipe == "cfg++":  # it asks no guide
        given = {"recipe": recipe, "prompt": "a red cube"}
    usual = {"num": IMAGES, "steps": STEPS, "seed": SEED, "device": "cpu"}
    alone, together = (
        ppap.sample("shapes", batch=batch, **usual, **given).images for batch in (1, IMAGES)
    )
    gaps = [
        np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int))
        for a, b in zip(alone, together, strict=True)
    ]
    return {
        "mean": round(max(float(gap.mean()) for gap in gaps), 3),
        "most": max(int(gap.max()) for gap in gaps),
    }


def main() -> None:
    """Measures all recipes, or those that are named."""
    names = sys.argv[1:] or [entry.name for entry in builtin.ppap_recipes()]
    content = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    recipes = content.get("recipes", {})
    for name in names:
        recipes[name] = measured(name)
        print(name, recipes[name], flush=True)
        about = {"images": IMAGES, "steps": STEPS, "seed": SEED, "recipes": recipes}
        RESULTS.write_text(json.dumps(about, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
