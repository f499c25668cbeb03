"""EluCD's temperatures on the noise-aware classifier."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ppap_plugin_openai.adm import ADMClassifierConfig, load_adm_classifier
from ppap_plugin_openai.guide import ADMClassifierGuide
from torch import Tensor

from ppap_host.backbones.noise import DiscreteSchedule, linear_betas
from ppap_host.files.errors import OptionError

CONFIG = ADMClassifierConfig(
    image_size=16,
    model_channels=32,
    num_res_blocks=1,
    attention_resolutions=(2,),
    out_channels=5,
    channel_mult=(1, 2),
    num_head_channels=16,
    pool="attention",
)


@pytest.fixture
def guide(tmp_path: Path, random_state: Callable[[Any], dict[str, Tensor]]) -> ADMClassifierGuide:
    path = tmp_path / "classifier.pt"
    torch.save(random_state(CONFIG), path)
    return ADMClassifierGuide.of(load_adm_classifier(path, CONFIG))


@pytest.mark.parametrize(("joint", "marginal"), [(1.0, 0.5), (1.0, 0.0), (0.7, 1.3), (2.0, 2.0)])
@pytest.mark.parametrize("target", [[[0.0, 0.0, 1.0, 0.0, 0.0]], [[0.1, 0.2, 0.3, 0.4, 0.0]]])
def test_the_loss_is_that_of_both_temperatures(
    guide: ADMClassifierGuide, joint: float, marginal: float, target: list[list[float]]
) -> None:
    seen = 3 * torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = torch.tensor(target, dtype=torch.float64)
    loss = guide.tempered(joint, marginal).loss(seen, wanted)
    expected = (marginal * seen).logsumexp(dim=1) - joint * (wanted * seen).sum(dim=1)
    torch.testing.assert_close(loss, expected)


def test_the_noise_level_still_reaches_the_network(guide: ADMClassifierGuide) -> None:
    levels = DiscreteSchedule.from_betas(linear_betas(1000)).levels()
    x, tempered = torch.randn(2, 3, 16, 16), guide.tempered(1.0, 0.5)
    for level in (levels[0], levels[700]):
        assert torch.equal(tempered.see(x, level), guide.see(x, level))
    again = tempered.tempered(2.0, 0.1).loss(torch.zeros(1, 5), torch.eye(5)[:1])
    torch.testing.assert_close(again, torch.full((1,), math.log(5)))


def test_a_classifier_that_knows_noise_takes_no_experts(guide: ADMClassifierGuide) -> None:
    with pytest.raises(OptionError, match="knows noise already"):
        guide.patch_plan(guide.network())
