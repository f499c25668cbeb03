"""One network against several experts: both sides get the same, and nothing is counted twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from ppap_plugin_bench.benchmarks import capacity
from ppap_plugin_bench.benchmarks.capacity import Settings, run, sides, spread, write_report
from torch import Tensor, nn
from worlds import GaussianBackbone

from ppap_host.experts.harvest import Lesson
from ppap_host.experts.sets import ExpertSet
from ppap_host.experts.tuning import TuningConfig
from ppap_host.files.images import from_tensor
from ppap_host.guides.guide import Guide
from ppap_host.guides.targets import Given, Target

SETTINGS = Settings(
    counts=(1, 2, 4), seeds=(0, 1), rank=1, images=256, batch=16, fresh=10, levels=4
)


class BrightnessGuide(Guide):
    """Reads how bright an image is, through a layer that has something to learn about noise."""

    name = "classifier"
    default_scale: Mapping[str, float] = {"": 1.0}

    def __init__(self, width: int) -> None:
        torch.manual_seed(width)
        self._network = nn.Sequential(
            nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(width, 1),
        )  # fmt: skip

    def network(self) -> nn.Module:
        return self._network

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        raise NotImplementedError

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().sum(dim=1)

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.loss(student, teacher)

    def from_labels(self, labels: Tensor) -> Tensor:
        return labels

    def picture(self, output: Tensor) -> list[Any]:
        return from_tensor(output.view(-1, 1, 1, 1).expand(-1, 3, 4, 4))

    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        return {"closeness": (-(output - target).abs()[:, 0]).tolist()}


class GreyWorld:
    """Grey images, labelled with their brightness."""

    def __init__(self) -> None:
        self.backbone = GaussianBackbone(shape=(3, 8, 8), mean=0.0, spread=0.2)

    def labelled(self, guide: str, seed: int, count: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randint(0, 256, (count, 1, 1, 1), generator=generator, dtype=torch.uint8)
        return pixels.expand(-1, 3, 8, 8).contiguous(), pixels.float()[:, :, 0, 0] / 127.5 - 1


class Harvested:
    """Stands for a harvest of that world."""

    def lesson(self, guide: Guide, watch: object) -> Lesson:
        pixels, brightness = GreyWorld().labelled(guide.name, 1, 60)
        return Lesson(pixels, brightness, {"kind": "harvest"})

    def identity(self) -> dict[str, Any]:
        return {"kind": "harvest"}


def study(out: Path, settings: Settings = SETTINGS) -> list[capacity.Row]:
    makers = {f"width {w}": lambda w=w: BrightnessGuide(w) for w in (4, 8)}
    world: Any = GreyWorld()
    harvested: Any = Harvested()
    return run(out, world, "classifier", makers, harvested, settings, "closeness")


def test_every_count_of_experts_meets_one_patch_of_as_many_factors() -> None:
    pairs = [(side.experts, side.rank) for side in sides(SETTINGS)]
    assert pairs == [(1, 1), (2, 1), (1, 2), (4, 1), (1, 4)]


def test_levels_are_spread_over_all_of_them() -> None:
    levels = GreyWorld().backbone.levels()
    shown = spread(levels, 4)
    times = [levels.index(level) / len(levels) for level in shown]
    assert times == pytest.approx([1 / 8, 3 / 8, 5 / 8, 7 / 8], abs=1 / len(levels))


def test_both_sides_are_shown_the_same_number_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[TuningConfig] = []
    real = capacity.tune

    def watched(guide: Guide, lesson: Lesson, levels: Any, config: TuningConfig) -> ExpertSet:
        asked.append(config)
        return real(guide, lesson, levels, config)

    monkeypatch.setattr(capacity, "tune", watched)
    study(tmp_path)
    assert len(asked) == 2 * 5 * 2
    shown = {config.experts * (config.steps or 0) * config.batch for config in asked}
    assert shown == {SETTINGS.images}
    assert {config.seed for config in asked} == {0, 1}


def test_the_study_reports_means_deviations_and_curves_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = study(tmp_path)
    assert [row.network for row in rows] == ["width 4"] * 5 + ["width 8"] * 5
    for row in rows:
        assert len(row.measure) == 2 and len(row.by_level) == 4
        assert row.mean == pytest.approx(sum(row.measure) / 2)
        assert row.deviation > 0  # seeds differ
    alike = [row.trainable for row in rows[1:3]]
    assert max(alike) < 1.5 * min(alike)

    def never(*_: object, **__: object) -> ExpertSet:
        raise AssertionError("a finished cell is made again")

    monkeypatch.setattr(capacity, "tune", never)
    assert study(tmp_path) == rows
    harvested: Any = Harvested()
    levels = spread(GreyWorld().backbone.levels(), SETTINGS.levels)
    written = write_report(rows, levels, SETTINGS, "closeness", "the command", harvested, tmp_path)
    assert json.loads((tmp_path / "capacity.json").read_text()) == json.loads(json.dumps(written))
    table = (tmp_path / "capacity.md").read_text().splitlines()
    assert len(table) == 2 + len(rows) and "±" in table[2]
    assert (tmp_path / "capacity.png").stat().st_size > 10_000
