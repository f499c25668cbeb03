"""A base model and an upsampler, one after the other, guided at either or both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from worlds import GaussianBackbone, QuadraticGuide

from ppap_host.backbones.backbone import Backbone, Condition, Prediction
from ppap_host.backbones.noise import NoiseLevel
from ppap_host.files.errors import OptionError
from ppap_host.plugins.hookspecs import Entry
from ppap_host.plugins.registry import Registry
from ppap_host.runs.batches import generate
from ppap_host.runs.config import GuideConfig, RunConfig
from ppap_host.runs.run import run
from ppap_host.runs.setup import set_up
from ppap_host.sampling.evaluator import Health


class Enlarger(GaussianBackbone):
    """Doubles the sides of what it is given, and adds a little of its own."""

    name = "enlarger"
    default_steps = 3
    start_temperature = 0.5

    def __init__(self) -> None:
        super().__init__(mean=0.0, spread=0.05, shape=(3, 8, 8))
        self.seen: list[Tensor] = []

    def conditioned_on(self, images: Tensor) -> Condition:
        self.seen.append(images)
        return {"low_res": images}

    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        mean = F.interpolate(condition["low_res"], x.shape[2:], mode="nearest")
        variance = level.alpha**2 * self.spread**2 + level.sigma**2
        return Prediction(level.sigma * (x - level.alpha * mean) / variance)


class Cascade(GaussianBackbone):
    """A base of 4 x 4 pixels."""

    name = "cascade"

    def __init__(self, checkpoint: str | None = None, upsampler: str | None = None) -> None:
        super().__init__()
        self.second = Enlarger() if upsampler else None

    def upsampler(self) -> Backbone | None:
        return self.second


class Quadratic(QuadraticGuide):
    def __init__(self, model: str | None = None) -> None:
        super().__init__()


def world() -> Registry:
    registry = Registry([])
    claims = registry._claims
    (plugin, _), *_ = claims["backbone"]["shapes"]
    claims["backbone"]["cascade"] = [(plugin, Entry("cascade", f"{__name__}:Cascade", ""))]
    claims["guide"]["quadratic"] = [(plugin, Entry("quadratic", f"{__name__}:Quadratic", ""))]
    return registry


CONFIG = RunConfig(
    backbone="cascade", backbone_options={"upsampler": "yes"}, steps=6, num=2, device="cpu"
)
GUIDE = GuideConfig("quadratic", "0.8", recipe="x0", scale=0.3)


def images(config: RunConfig, indices: Sequence[int] = (0, 1)) -> Tensor:
    return generate(set_up(config, found=world()), list(indices), Health())


def test_the_upsampler_enlarges_what_the_base_made() -> None:
    setup = set_up(CONFIG, found=world())
    counted: list[int] = []
    large = generate(setup, [0, 1], Health(), lambda event: counted.append(event.index))
    enlarger = setup.stages[1].backbone
    assert isinstance(enlarger, Enlarger)
    (small,) = enlarger.seen
    alone = images(replace(CONFIG, backbone_options={}))
    assert torch.equal(small, alone)
    assert large.shape == (2, 3, 8, 8)
    assert (F.avg_pool2d(large, 2) - small).abs().max() < 0.15
    assert counted == [*range(6), *range(3)]


def test_each_stage_has_noise_of_its_own_and_each_image_too() -> None:
    both = images(CONFIG)
    assert torch.equal(both[1:], images(CONFIG, [1]))
    assert not torch.equal(both[0], both[1])


@pytest.mark.parametrize(("stage", "base", "upsampler"), [
    (None, True, False), ("base", True, False), ("upsampler", False, True), ("both", True, True),
])  # fmt: skip
def test_a_guide_steers_the_stages_that_are_asked_for(
    stage: str | None, base: bool, upsampler: bool
) -> None:
    setup = set_up(replace(CONFIG, guides=(replace(GUIDE, stage=stage),)), found=world())
    assert [bool(s.guides) for s in setup.stages] == [base, upsampler]
    for s in setup.stages:
        for g in s.guides:
            assert g.targets[0].value.shape[-2:] == s.backbone.image_size
    (seen,) = setup.guides
    assert seen.targets[0].value.shape[-2:] == (8, 8)
    guided = generate(setup, [0, 1], Health())
    assert (guided.mean() - 0.8).abs() < (images(CONFIG).mean() - 0.8).abs()


def test_a_run_records_what_was_guided_where(tmp_path: Path) -> None:
    from unittest.mock import patch

    config = replace(CONFIG, guides=(replace(GUIDE, stage="both"),), upsampler_steps=2)
    with patch("ppap_host.runs.setup.registry", world):
        record = run(config, tmp_path / "run").record
    assert record["status"] == "complete"
    assert record["used"]["steps"] == 6 + 2
    assert [g["stage"] for g in record["used"]["guides"]] == ["base", "upsampler"]


def test_what_belongs_to_an_upsampler_needs_one() -> None:
    alone = replace(CONFIG, backbone_options={})
    with pytest.raises(OptionError, match="upsampler_steps"):
        set_up(replace(alone, upsampler_steps=3), found=world())
    with pytest.raises(OptionError, match="'quadratic' is to steer an upsampler"):
        set_up(replace(alone, guides=(replace(GUIDE, stage="both"),)), found=world())
    with pytest.raises(OptionError, match="stage"):
        replace(GUIDE, stage="top")
    with pytest.raises(OptionError, match="enlarges no images"):
        GaussianBackbone().conditioned_on(torch.zeros(1, 3, 4, 4))
