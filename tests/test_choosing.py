"""Recipes that choose, and one that asks no guide, from the outside: runs, records, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner
from worlds import GaussianBackbone

import ppap_host as ppap
from ppap_host.cli import app
from ppap_host.files.errors import OptionError, PpapError
from ppap_host.testing.worlds import PullGuide

CHOOSING = ["best-of-n", "fk", "svdd"]


def darkness(x: torch.Tensor) -> torch.Tensor:
    """A black box: nothing of it can be differentiated."""
    return torch.from_numpy(-np.asarray(x.detach().cpu()).mean(axis=(1, 2, 3)))


def chosen(recipe: str, **options: Any) -> ppap.Result:
    world = GaussianBackbone(shape=(3, 8, 8))
    options = {"num": 5, "steps": 8, "seed": 3} | options
    return ppap.sample(world, ppap.guidance(ppap.reward(darkness), recipe=recipe), **options)


@pytest.mark.parametrize("recipe", CHOOSING)
def test_a_black_box_chooses_and_image_k_depends_on_its_seed_alone(recipe: str) -> None:
    together, alone = chosen(recipe), chosen(recipe, batch=1)
    torch.testing.assert_close(together.tensor, alone.tensor, rtol=1e-4, atol=1e-5)
    few = chosen(recipe, num=2)
    torch.testing.assert_close(together.tensor[:2], few.tensor, rtol=1e-4, atol=1e-5)
    eta = together.record["config"]["eta"]
    assert eta == (0.0 if recipe == "best-of-n" else 1.0), "noise is drawn where it is needed"
    plain = ppap.sample(GaussianBackbone(shape=(3, 8, 8)), num=5, steps=8, seed=3, eta=eta)
    gained = darkness(together.tensor) - darkness(plain.tensor)
    assert (gained > -1e-6).all() if recipe == "best-of-n" else gained.mean() > 0
    assert gained.max() > 1e-3


def test_a_population_of_one_is_the_image_itself() -> None:
    for recipe in ("best-of-n:particles=1", "fk:particles=1", "svdd:branches=1"):
        found = chosen(recipe, eta=1.0)
        plain = ppap.sample(GaussianBackbone(shape=(3, 8, 8)), num=5, steps=8, seed=3, eta=1.0)
        torch.testing.assert_close(found.tensor, plain.tensor, rtol=1e-5, atol=1e-6)


def test_a_batch_holds_no_more_particles_than_images() -> None:
    world, rows = GaussianBackbone(shape=(3, 8, 8)), list[int]()
    predict = world.predict

    def watched(x: torch.Tensor, *args: Any) -> Any:
        rows.append(len(x))
        return predict(x, *args)

    world.predict = watched  # type: ignore[method-assign]
    guide = ppap.guidance(ppap.reward(darkness), recipe="fk:particles=3")
    ppap.sample(world, guide, num=5, steps=2, batch=7)
    assert max(rows) == 6


def test_guides_that_select_do_so_together_or_are_refused() -> None:
    world = GaussianBackbone(shape=(3, 8, 8))

    def guides(*recipes: str) -> list[Any]:
        reward = ppap.reward(darkness)
        return [ppap.guidance(reward, recipe=recipe, scale=0.5) for recipe in recipes]

    both = ppap.sample(world, guides("fk", "fk"), num=2, steps=4)
    one = ppap.sample(world, ppap.guidance(ppap.reward(darkness), recipe="fk"), num=2, steps=4)
    torch.testing.assert_close(both.tensor, one.tensor)
    with pytest.raises(OptionError, match="different ways"):
        ppap.sample(world, guides("fk", "svdd"), num=1, steps=2)


@pytest.mark.parametrize(
    ("recipe", "options"),
    [("dsg", {"sampler": "unipc"}), ("svdd", {"eta": 0.0}), ("fk", {"sampler": "heun"})],
)
def test_a_sampler_without_the_noise_that_a_recipe_needs_is_refused(
    recipe: str, options: dict[str, Any]
) -> None:
    with pytest.raises(OptionError, match="draws none there"):
        chosen(recipe, **options)


def test_cfgpp_runs_without_a_guide(tmp_path: Path) -> None:
    arguments = ["--prompt", "a red cube", "--num", "1", "--steps", "2", "--out", str(tmp_path)]
    done = CliRunner().invoke(app, ["run", "--recipe", "cfg++", *arguments])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert record["config"]["cfg"] == 0.6 and record["config"]["recipe"] == "cfg++"
    again = ppap.rerun(tmp_path)
    assert [i["pixels_sha256"] for i in again.record["images"]] == [
        i["pixels_sha256"] for i in record["images"]
    ]
    plain = ppap.sample(prompt="a red cube", num=1, steps=2, cfg=0.6)
    assert not torch.equal(plain.tensor, again.tensor)


def test_what_cfgpp_cannot_do_is_said() -> None:
    alone = ppap.sample("shapes", recipe="cfg++", num=1, steps=2)
    assert any("strengthens a prompt" in warning for warning in alone.warnings)
    with pytest.raises(OptionError, match="no weight"):
        ppap.sample("shapes", recipe="cfg++", prompt="a cube", cfg=7.5, num=1, steps=2)
    guide = ppap.guidance(ppap.reward(darkness))
    with pytest.raises(OptionError, match="asks no guide"):
        ppap.sample("shapes", guide, recipe="cfg++", prompt="a cube", num=1, steps=2)
    own = ppap.guidance(ppap.reward(darkness), recipe="best-of-n:particles=2")
    both = ppap.sample("shapes", own, recipe="cfg++", prompt="a cube", num=1, steps=2)
    assert both.record["used"]["guides"][0]["recipe"] == "best-of-n"


@pytest.mark.parametrize(
    ("recipe", "guide", "run", "said"),
    [
        (None, {}, {"recipe": "x0"}, "there is no guide"),
        ("x0", {}, {"recipe": "mpgd"}, "every guide has its own"),
        ("x0", {}, {"balance": "sum"}, "no two guides"),
        (None, {}, {"unguided": True}, "no guide to compare"),
        ("x0", {"scale": 0.0}, {}, "its scale is 0"),
        ("x0", {"scale": 1e-60}, {}, "its scale is 1e-60"),
        ("best-of-n", {"scale": 3.0}, {}, "any other of its sign"),
        ("best-of-n", {"interval": "30:"}, {}, "interval"),
    ],
)
def test_what_changes_nothing_is_said(
    recipe: str | None, guide: dict[str, Any], run: dict[str, Any], said: str
) -> None:
    world, pull = GaussianBackbone(shape=(3, 8, 8)), PullGuide()

    def made(guide: dict[str, Any], run: dict[str, Any]) -> ppap.Result:
        guides = None if recipe is None else ppap.guidance(pull, "0.5", recipe=recipe, **guide)
        return ppap.sample(world, guides, num=2, steps=3, **run)

    plain, done = made({}, {}), made(guide, run)
    assert said in " ".join(done.warnings) and said not in " ".join(plain.warnings)
    if guide.get("scale", 1) >= 1:
        assert torch.equal(plain.tensor, done.tensor), "it does change something"


def test_temperatures_of_a_guide_without_classes_are_said_to_do_nothing() -> None:
    def warnings(recipe: str) -> str:
        world, guide = GaussianBackbone(shape=(3, 8, 8)), ppap.guidance(PullGuide(), "0.5")
        return " ".join(ppap.sample(world, guide, recipe=recipe, num=1, steps=2).warnings)

    assert "recipe 'elucd' (joint) do nothing" in warnings("elucd:joint=2")
    assert "do nothing" not in warnings("elucd")


@pytest.mark.parametrize("recipe", ["best-of-n:every=2", "dno:every=2", "x0:every=2,every=3"])
def test_settings_of_recipes_that_say_nothing_are_refused(recipe: str) -> None:
    with pytest.raises(PpapError, match="every"):
        ppap.sample(GaussianBackbone(shape=(3, 8, 8)),
                    ppap.guidance(PullGuide(), "0.5", recipe=recipe), num=1, steps=2)  # fmt: skip
