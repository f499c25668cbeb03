"""Every preset on the built-in world, at a hundred times the strength it usually has."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppap_host.plugins import builtin
from ppap_host.plugins.loading import load_recipe
from ppap_host.plugins.registry import registry
from ppap_host.runs.batches import generate
from ppap_host.runs.config import GuideConfig, RunConfig
from ppap_host.runs.run import run
from ppap_host.runs.setup import set_up
from ppap_host.sampling.evaluator import Health

TARGET = str(Path(__file__).parents[1] / "docs" / "images" / "target.png")

GUIDED = [
    entry.name
    for entry in builtin.ppap_recipes()
    if not load_recipe(registry(), entry.name).guideless
]


def asked(recipe: str, scale: float | None = None) -> RunConfig:
    """Two images of a few steps, by the classifier or what only restoration can do."""
    if recipe == "pigdm":
        guide = GuideConfig(
            "super-resolution", TARGET, model="measure=yes", recipe=recipe, scale=scale
        )
    else:
        guide = GuideConfig("classifier", "red cube", recipe=recipe, scale=scale)
    return RunConfig((guide,), steps=6, num=2)


@pytest.mark.parametrize("recipe", GUIDED)
def test_a_hundred_times_too_strong_gives_finite_images_and_a_warning(
    recipe: str, tmp_path: Path
) -> None:
    usual = set_up(asked(recipe)).guides[0].scale
    strong = asked(recipe, 100 * usual)
    x = generate(set_up(strong), [0, 1], Health())
    assert x.isfinite().all() and x.abs().max() < 100
    record = run(strong, tmp_path / "strong").record
    if set_up(strong).guides[0].recipe.takes_best:
        said = f"the recipe {recipe!r} takes what is best"
    else:
        said = f"100 times what is usual for the recipe {recipe!r}"
    assert said in record["warnings"][0]


def test_at_its_usual_strength_nothing_is_warned_of(tmp_path: Path) -> None:
    assert run(asked("x0"), tmp_path / "usual").record["warnings"] == []
