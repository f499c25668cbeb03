"""What a quality takes from a measured frontier, and what wins over it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

import ppap_host as ppap
from ppap_host.files.errors import CheckpointError
from ppap_host.files.hashes import file_hashes
from ppap_host.runs.config import GuideConfig, RunConfig
from ppap_host.runs.quality import OFF
from ppap_host.runs.setup import Setup, set_up
from ppap_host.shapes.backbone import ShapesBackbone

POINTS: Mapping[str, Mapping[str, Any]] = {
    "draft": {"scale": 2.5, "steps": 6, "every": 2, "solver": "dpm++:0"},
    "normal": {"scale": 5.0, "steps": 12, "every": 1, "interval": "-6:2"},
    "best": {"scale": 7.0, "steps": 40, "interval": "", "solver": "ddim:0.5"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier's network, with a frontier beside it."""
    shipped = Path(str(resources.files("ppap_plugin_classifier"))) / "weights" / "shapes-resnet"
    folder: Path = tmp_path_factory.mktemp("measured") / "network"
    shutil.copytree(shipped, folder, ignore=shutil.ignore_patterns("frontier*"))
    written(folder, ShapesBackbone().files())
    return folder


def written(folder: Path, backbone: Any, **changed: Any) -> None:
    found = {
        "format": 1, "guide": "classifier", "backbone": "shapes", "recipe": "x0", "experts": None,
        "backbone_files": file_hashes(backbone, "backbone"), "qualities": POINTS,
    }  # fmt: skip
    (folder / "frontier.json").write_text(json.dumps(found | changed), encoding="utf-8")


def made(model: Path, guide: Mapping[str, Any] | None = None, **run: Any) -> Setup:
    given = {"name": "classifier", "target": "red cube", "model": str(model), "experts": "none"}
    return set_up(RunConfig(guides=(GuideConfig(**given | dict(guide or {})),), **run))


@pytest.mark.parametrize(
    ("guide", "run", "expected"),
    [
        ({}, {"quality": "normal"}, (12, "x0", 5.0, "-6:2")),
        ({}, {}, (12, "x0", 5.0, "-6:2")),
        ({"scale": 2.0}, {"steps": 9}, (9, "x0", 2.0, "-6:2")),
        ({}, {"quality": "draft"}, (6, "x0:every=2", 2.5, None)),
        ({}, {"quality": "best"}, (40, "x0", 7.0, None)),
        ({"scale": 1.0}, {"quality": "draft"}, (6, "x0:every=2", 1.0, None)),
        ({"interval": ":1"}, {"quality": "draft"}, (6, "x0:every=2", 2.5, ":1")),
        ({"recipe": "x0:every=3"}, {"quality": "draft"}, (6, "x0:every=3", 2.5, None)),
        ({}, {"quality": "draft", "steps": 9}, (9, "x0:every=2", 2.5, None)),
    ],
)
def test_what_is_given_wins_and_the_rest_comes_from_the_frontier(
    model: Path, guide: dict[str, Any], run: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    setup = made(model, guide, **run)
    decided = setup.decided()
    (g,) = decided.guides
    assert (decided.steps, g.recipe, g.scale, g.interval) == expected
    assert len(setup.stages[0].walk) == expected[0]
    assert setup.doubts == []
    assert f"classifier {expected[1]} at scale" in (setup.quality or "")
    # A record holds the values, and asks no frontier again.
    assert decided.quality == OFF
    assert set_up(decided).decided() == decided


@pytest.mark.parametrize(
    ("guide", "run", "said"),
    [
        ({}, {"quality": "none"}, None),
        ({"recipe": "dps"}, {}, None),
        ({"recipe": "dps"}, {"quality": "draft"}, "No frontier was measured"),
        ({"absolute": True, "scale": 3.0}, {"quality": "draft"}, "No frontier was measured"),
        ({"model": None}, {"quality": "best", "checkpoint": "other"}, "No frontier was measured"),
        (None, {"quality": "draft"}, "there is no guide"),
    ],
)
def test_where_none_was_measured_the_backbone_decides_and_it_is_said(
    model: Path, tmp_path: Path, guide: dict[str, Any] | None, run: dict[str, Any], said: str | None
) -> None:
    if run.get("checkpoint"):  # the network's frontier belongs to other weights than these
        networks = ShapesBackbone().networks
        from ppap_host.shapes.backbone import save_backbone

        next(networks.parameters()).mul_(1.01)
        save_backbone(networks, tmp_path / "other")
        guide, run = {}, run | {"checkpoint": str(tmp_path / "other")}
    setup = set_up(RunConfig(**run)) if guide is None else made(model, guide, **run)
    assert setup.stages[0].steps == ShapesBackbone.default_steps
    assert all(g.recipe.every == 1 for g in setup.guides)
    if said is None:
        assert setup.doubts == []
    else:
        (doubt,) = setup.doubts
        assert said in doubt


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ({"quality": "draft"}, ("dpm++", 0.0)),
        ({"quality": "normal"}, ("dpm++", 1.0)),
        ({"quality": "best"}, ("ddim", 0.5)),
        ({"quality": "best", "eta": 0.2}, ("dpm++", 0.2)),
        ({"quality": "draft", "sampler": "euler"}, ("euler", None)),
    ],
)
def test_the_sampler_is_the_points_where_none_is_given(
    model: Path, run: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    decided = made(model, **run).decided()
    assert (decided.sampler, decided.eta) == expected


def test_a_quality_with_nothing_left_to_decide_is_said(model: Path) -> None:
    given = {"scale": 2.0, "interval": ":", "recipe": "x0:every=1"}
    (doubt,) = made(model, given, quality="draft", steps=5, sampler="ddim").doubts
    assert "everything it decides was given" in doubt


def test_several_guides_get_their_own_points_and_the_most_steps(
    model: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    points = {"draft": {"scale": 1.5, "steps": 8, "every": 3}}
    written(other, ShapesBackbone().files(), qualities=points)
    guides = tuple(
        ppap.guidance("classifier", "red cube", model=str(folder), experts="none")
        for folder in (model, other)
    )
    setup = set_up(RunConfig(guides=guides, quality="draft"))
    assert setup.stages[0].steps == 8
    assert [(g.scale, g.recipe.every) for g in setup.guides] == [(2.5, 2), (1.5, 3)]
    # Nobody asked for a quality, and one of the two has no normal point: each has its defaults.
    setup = set_up(RunConfig(guides=guides))
    assert setup.stages[0].steps == ShapesBackbone.default_steps
    assert [g.config.interval for g in setup.guides] == [None, None]
    assert setup.doubts == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"format": 2},
        {"qualities": {"draft": {"scale": 1, "steps": 3, "solver": "ddim:x"}}},
        {"qualities": {"draft": {"scale": "x", "steps": 3}}},
        {"recipe": 5},
    ],
)
def test_a_file_that_is_no_frontier_is_an_error(
    model: Path, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    other = shutil.copytree(model, tmp_path / "other")
    written(other, ShapesBackbone().files(), **wrong)
    with pytest.raises(CheckpointError, match="is no frontier"):
        made(other, quality="draft")
