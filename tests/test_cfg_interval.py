"""Classifier-free guidance in a limited interval of noise levels (Kynkaanniemi et al., 2024)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from worlds import ClassBackbone

from ppap_host.backbones.backbone import ClassifierFree
from ppap_host.backbones.noise import NoiseRange
from ppap_host.files.errors import OptionError
from ppap_host.runs.config import RunConfig
from ppap_host.runs.setup import set_up
from ppap_host.shapes.backbone import ShapesBackbone


def test_the_scale_holds_within_the_interval_and_is_one_without() -> None:
    backbone = ClassBackbone()
    one, nothing = backbone.encode_classes([2]), backbone.encode_classes([None])
    levels = backbone.walk(12).levels[:-1]
    interval = NoiseRange(levels[4].log_snr, levels[8].log_snr)
    free = ClassifierFree(backbone, one, nothing, 3.0, interval=interval)
    x = torch.randn(2, *backbone.state_shape)
    strengthened = []
    for level in levels:
        alpha, variance = level.alpha, level.alpha**2 * backbone.spread**2 + level.sigma**2
        # eps is linear in the mean, so that classifier-free guidance is one of another mean.
        for scale in (1.0, 3.0):
            mean = -0.9 + scale * (0.3 + 0.9)
            eps = level.sigma * (x - alpha * mean) / variance
            if torch.allclose(free(x, level).eps, eps, rtol=1e-3, atol=1e-4):
                strengthened.append((levels.index(level), scale))
    # Half-open, as all ranges of noise are: the lower bound is in, the upper one out.
    assert strengthened == [(k, 3.0 if 4 <= k < 8 else 1.0) for k in range(len(levels))]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ShapesBackbone.default_cfg_interval.text),
        ({"cfg_interval": "-2:3"}, "-2:3"),
        ({"cfg_interval": ":"}, ":"),
        ({"cfg": 4.0, "cfg_interval": ":1.5"}, ":1.5"),
        ({"cfg": 1.0}, None),
        ({"prompt": ""}, None),
    ],
)
def test_a_record_has_the_interval_as_a_value(given: dict[str, Any], expected: str | None) -> None:
    setup = set_up(RunConfig(**{"prompt": "a red cube", "steps": 8, **given}))
    decided = setup.decided()
    assert decided.cfg_interval == expected
    if expected is not None:
        assert setup.stages[0].cfg_interval.text == expected
    assert set_up(decided).decided() == decided


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"cfg_interval": "40:50"}, "holds none of the 8 steps"),
        ({"cfg_interval": "3"}, "LOW:HIGH"),
        ({"cfg_interval": "3:1"}, "LOW:HIGH"),
        ({"cfg_interval": ":", "cfg": 1.0}, "there is no classifier-free guidance"),
        ({"cfg_interval": ":", "prompt": ""}, "there is no classifier-free guidance"),
    ],
)
def test_intervals_that_do_nothing_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        set_up(RunConfig(**{"prompt": "a red cube", "steps": 8, **given}))
