"""What harvest and tuning will cost, before they are begun."""

from __future__ import annotations

import json

import pytest
import torch
from teaching import world
from torch import Tensor, nn
from typer.testing import CliRunner
from worlds import ClassBackbone, ColourGuide, GaussianBackbone

from ppap_host.backbones.backbone import Condition, Prediction
from ppap_host.backbones.noise import NoiseLevel
from ppap_host.cli import app
from ppap_host.experts.cost import Rate, estimate, measure
from ppap_host.experts.sets import VIEWS
from ppap_host.experts.tuning import TuningConfig, fresh_patch

CPU = torch.device("cpu")
CONFIG = TuningConfig(experts=3, rank=1, steps=40, batch=8)


class Convolving(GaussianBackbone):
    """One convolution, whose cost is known, and a count of its calls."""

    def __init__(self) -> None:
        super().__init__(shape=(3, 8, 8))
        self.network = nn.Conv2d(3, 3, 3, padding=1)

    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        self.evaluations += len(x)
        return Prediction(self.network(x))


def test_operations_are_counted_and_not_guessed() -> None:
    found = estimate(
        ColourGuide(), Convolving(), CONFIG, images=100, steps=5, cfg=False, device=CPU
    )
    assert found.generating.flops == 2 * 9 * 3 * 3 * 8 * 8
    assert found.evaluations == 5
    assert found.lessons == 3 * 40 * 8
    assert found.trainable == 3 * fresh_patch(ColourGuide(), CONFIG).count()
    # Backward costs about twice as much as forward.
    assert 2 * found.teaching.flops < found.learning.flops < 5 * found.teaching.flops
    harvest = 100 * (5 * found.generating.flops + found.teaching.flops)
    assert found.harvest.flops == pytest.approx(harvest)
    assert found.tuning.seconds == pytest.approx(found.lessons * found.learning.seconds)


def test_predicted_images_cost_an_evaluation_each() -> None:
    noised, predicted = (
        estimate(
            ColourGuide(), Convolving(), CONFIG, images=1, steps=5, cfg=False, device=CPU, view=view
        )
        for view in VIEWS
    )
    assert (noised.predictions, predicted.predictions) == (0, 1)
    more = predicted.tuning.flops - noised.tuning.flops
    assert more == pytest.approx(predicted.lessons * predicted.generating.flops)
    assert predicted.harvest.flops == noised.harvest.flops
    each = predicted.learning.seconds + predicted.generating.seconds
    assert predicted.tuning.seconds == pytest.approx(predicted.lessons * each)


def test_guidance_without_a_classifier_doubles_the_evaluations() -> None:
    found = estimate(ColourGuide(), Convolving(), CONFIG, images=1, steps=5, cfg=True, device=CPU)
    assert found.evaluations == 10


def test_a_guide_says_how_long_it_is_tuned_where_nobody_else_does() -> None:
    config = TuningConfig(experts=2, rank=1, batch=8)
    guide = ColourGuide()
    found = estimate(guide, ClassBackbone(), config, images=1, steps=5, cfg=False, device=CPU)
    assert found.lessons == 2 * guide.tuning_steps * 8


def test_a_rate_is_that_of_one_image() -> None:
    layer, x = nn.Linear(10, 10, bias=False), torch.zeros(4, 10)
    rate = measure(lambda: layer(x), 4, CPU)
    assert rate.flops == 200 and 0 < rate.seconds < 1
    assert Rate(1.0, 2.0).seconds == 2.0


def test_the_command_needs_neither_harvest_nor_folder_for_an_estimate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ppap_host.plugins.registry.registry", world)
    arguments = ["tune", "colour", "--backbone", "gaussian", "--estimate", "--rank", "1", "--json"]
    result = CliRunner().invoke(app, [*arguments, "--num", "10", "--harvest-steps", "4"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["images"], found["evaluations"]) == (10, 4)
    assert found["total"]["tuning"]["flops"] > 0
    assert found["predictions"] == 0
    result = CliRunner().invoke(app, [*arguments, "--view", "predicted"])
    assert json.loads(result.stdout)["predictions"] == 1
    result = CliRunner().invoke(app, ["tune", "colour"])
    assert result.exit_code != 0
    assert "--harvest is missing" in str(result.exception)
