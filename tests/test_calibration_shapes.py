"""``ppap calibrate`` in the built-in world, made small."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from ppap_plugin_openai.guide import ADMClassifierGuide

from ppap_host.experts.calibration import Calibrated, load_calibration
from ppap_host.experts.sets import ExpertSet, WithExperts
from ppap_host.guides.guide import Guide
from ppap_host.plugins.loading import load_guide
from ppap_host.plugins.registry import registry
from ppap_host.shapes.backbone import ShapesBackbone


@pytest.fixture
def harvested(ppap_here: Any) -> Path:
    made = ppap_here(
        "harvest", "--out", "h", "--num", 8, "--shard", 8, "--batch", 8, "--steps", 2,
        "--device", "cpu",
    )  # fmt: skip
    assert made.code == 0, made.err
    return Path("h")


def guide() -> Guide:
    return load_guide(registry(), "classifier")


def test_experts_are_calibrated_by_default_and_the_loss_follows(
    harvested: Path, ppap_here: Any
) -> None:
    arguments = ("calibrate", "classifier", "--harvest", harvested, "--num", 8, "--levels", 1)
    outcome = ppap_here(*arguments, "--out", "c", "--device", "cpu", "--json")
    assert outcome.code == 0, outcome.err
    assert "taught on these very images" not in outcome.err  # they were made in other steps
    printed = json.loads(outcome.out)
    assert printed["experts"] == "classifier-shapes-5"
    assert [part["count"] for part in printed["ranges"]] == [8] * 5
    with Image.open("c/reliability.png") as plot:
        assert plot.width > 1000
    with Image.open("c/ece.png") as plot:
        assert plot.width > 600

    path: Path = registry().load("expert set", "classifier-shapes-5")()
    both = WithExperts(guide(), ExpertSet.load(path), (64, 64))
    calibration = load_calibration(Path("c"), both)
    calibrated = Calibrated(both, calibration)
    level = ShapesBackbone().levels()[700]
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    target = calibrated.read_target("red cube", (64, 64)).value
    beta = calibration.inverse_temperature(level)
    assert beta == pytest.approx(1 / calibration.ranges[3].temperature)
    with torch.no_grad():
        loss = calibrated.loss(calibrated.see(x, level), target)
        wanted = both.loss(beta * both.see(x, level), target)
    torch.testing.assert_close(loss, wanted)
    assert math.isfinite(float(loss.sum()))

    again = ppap_here(*arguments, "--out", "c", "--device", "cpu")
    assert again.code == 2
    assert "already holds a calibration" in again.err


def test_off_the_shelf_guides_are_calibrated_on_predictions(
    harvested: Path, ppap_here: Any
) -> None:
    outcome = ppap_here(
        "calibrate", "classifier", "--harvest", harvested, "--view", "predicted", "--ranges", 2,
        "--levels", 1, "--out", "p", "--device", "cpu",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    calibration = load_calibration(Path("p"), guide())
    assert (calibration.view, calibration.experts) == ("predicted", None)
    assert calibration.details["images"]["used"] == 8


def test_renders_come_with_labels(ppap_here: Any) -> None:
    outcome = ppap_here(
        "calibrate", "classifier", "--labels", "--num", 8, "--levels", 1, "--experts", "none",
        "--out", "l", "--device", "cpu", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    printed = json.loads(outcome.out)
    assert (printed["truth"], printed["images"]["kind"]) == ("labels", "renders")
    assert printed["ranges"][0]["accuracy"] > 0.8
    load_calibration(Path("l"), guide())


def test_guides_without_classes_are_refused_before_anything_is_made(ppap_here: Any) -> None:
    outcome = ppap_here("calibrate", "depth", "--out", "d", "--device", "cpu")
    assert outcome.code == 2
    assert "knows no classes" in outcome.err
    assert not Path("d").exists()


def test_the_logits_of_classifiers_are_their_output_in_float32() -> None:
    half = torch.tensor([[1.0, -2.0]], dtype=torch.float16)
    assert torch.equal(guide().logits(half), half.float())
    assert torch.equal(ADMClassifierGuide.logits(None, half), half.float())
