"""The judges read renders, spoiled ones too, and are what their report says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ppap_host.files.errors import CheckpointError
from ppap_host.shapes.judges import FEATURES, NETWORKS, WEIGHTS, Judges, aligned, weights_file
from ppap_host.shapes.renderer import Render, render
from ppap_host.shapes.scenes import SEGMENTS, Scenes, sample_scenes
from ppap_host.shapes.train_judges import Spoiler

COUNT = 160


@pytest.fixture(scope="module")
def judges() -> Judges:
    return Judges.load()


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return sample_scenes(4242, 0, COUNT)


@pytest.fixture(scope="module")
def views(scenes: Scenes) -> Render:
    return render(scenes)


@pytest.fixture(scope="module", params=["clean", "spoiled"])
def images(request: pytest.FixtureRequest, views: Render) -> torch.Tensor:
    if request.param == "clean":
        return views.rgb
    return Spoiler(np.random.default_rng(0), torch.device("cpu"))(views.rgb)


def test_class(judges: Judges, scenes: Scenes, images: torch.Tensor) -> None:
    right = judges.classify(images).argmax(dim=1) == scenes.labels
    assert right.float().mean().item() > 0.96


def test_depth_up_to_scale_and_shift(judges: Judges, views: Render, images: torch.Tensor) -> None:
    depth = judges.depth(images)
    assert depth.min().item() > 0
    relative = (aligned(depth, views.depth) / views.depth - 1).abs()
    assert relative.mean().item() < 0.04


def test_depth_is_about_metres(judges: Judges, views: Render) -> None:
    # A picture does not tell the scale: single scenes may be off by half, the average is not.
    ratio = (judges.depth(views.rgb) / views.depth).flatten(1).median(dim=1).values
    assert ratio.median().item() == pytest.approx(1, abs=0.08)
    assert ((ratio > 0.5) & (ratio < 2)).all()


def test_segments(judges: Judges, views: Render, images: torch.Tensor) -> None:
    truth = views.segmentation.long()
    found = judges.segment(images).argmax(dim=1)
    ious = []
    for segment in range(len(SEGMENTS)):
        here, there = found == segment, truth == segment
        ious.append(((here & there).sum() / (here | there).sum()).item())
    assert np.mean(ious) > 0.90
    assert min(ious) > 0.83


def test_shapes_and_features(judges: Judges, views: Render) -> None:
    few = views.rgb[:5]
    assert judges.classify(few).shape == (5, 24)
    assert judges.features(few).shape == (5, FEATURES)
    assert judges.depth(few).shape == (5, 1, 64, 64)
    assert judges.segment(few).shape == (5, 6, 64, 64)
    # Same scenes, same place in feature space; other classes, elsewhere.
    features = judges.features(views.rgb)
    spread = torch.cdist(features, features)
    slightly = judges.features((views.rgb + 0.01).clamp(-1, 1))
    assert (features - slightly).norm(dim=1).mean() < 0.2 * spread.mean()


def test_judges_never_give_gradients(judges: Judges, views: Render) -> None:
    x = views.rgb[:2].clone().requires_grad_()
    for output in (judges.classify(x), judges.features(x), judges.depth(x), judges.segment(x)):
        assert not output.requires_grad


def test_verdicts_do_not_depend_on_the_batch(judges: Judges, views: Render) -> None:
    for look in (judges.classify, judges.features, judges.depth, judges.segment):
        together = look(views.rgb[:6])
        alone = torch.cat([look(image[None]) for image in views.rgb[:6]])
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)
        assert torch.equal(together, look(views.rgb[:6]))


def test_files_are_small_and_reported(judges: Judges) -> None:
    assert [file.parent for file in judges.files()] == [WEIGHTS] * 3
    assert all(file.stat().st_size <= 1.5e6 for file in judges.files())
    report = json.loads((WEIGHTS / "judges.json").read_text())
    assert set(report) == set(NETWORKS)
    assert all("--work" in entry["command"] for entry in report.values())


def test_missing_or_damaged_weights_are_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        Judges.load(folder=tmp_path)
    for name in NETWORKS:
        weights_file(name, tmp_path).write_bytes(b"not a safetensors file")
    with pytest.raises(CheckpointError, match="damaged"):
        Judges.load(folder=tmp_path)
