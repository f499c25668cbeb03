"""The parts that recipes are made of."""

from __future__ import annotations

import math

import pytest
import torch

from ppap_host.backbones.noise import NoiseLevel
from ppap_host.recipes.estimate import Estimate
from ppap_host.recipes.gradients import Smoothed, limited
from ppap_host.recipes.places import CleanPoint
from ppap_host.recipes.presets import PPAP, X0

LEVEL = NoiseLevel(0.6, 0.8, 0.0)
ESTIMATE = Estimate(LEVEL, *[torch.zeros(1, 3, 16, 16)] * 3)


def test_smoothing_keeps_a_flat_gradient_and_takes_away_a_checkerboard() -> None:
    flat = torch.full((1, 3, 16, 16), 0.7)
    torch.testing.assert_close(Smoothed()(flat, ESTIMATE), flat)
    parity = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
    board = parity.expand(1, 3, 16, 16)
    assert Smoothed(1 / 16)(board, ESTIMATE).square().mean() < 1e-3 * board.square().mean()


def test_smoothing_has_the_deviation_it_says_in_parts_of_the_shorter_side() -> None:
    point = torch.zeros(1, 1, 33, 65)
    point[..., 16, 32] = 1
    spread = Smoothed(3 / 33)(point, ESTIMATE)[0, 0]
    assert spread.sum() == pytest.approx(1, abs=1e-5)
    rows = (spread.sum(dim=1) * (torch.arange(33) - 16).square()).sum().sqrt()
    columns = (spread.sum(dim=0) * (torch.arange(65) - 32).square()).sum().sqrt()
    assert rows == pytest.approx(3, rel=0.03) and columns == pytest.approx(3, rel=0.03)


def test_smoothing_works_on_channels_by_themselves_and_on_tiny_states() -> None:
    gradient = torch.zeros(2, 3, 2, 2)
    gradient[0, 1] = 1.0
    smoothed = Smoothed(1.0)(gradient, ESTIMATE)
    torch.testing.assert_close(smoothed, gradient)


def test_a_limit_keeps_the_direction_and_holds_for_any_size_of_gradient() -> None:
    direction = torch.randn(4, 3, 8, 8)
    sizes = torch.tensor([1e-3, 1.0, 1e10, 1e25]).view(4, 1, 1, 1)
    bounded = limited(direction * sizes, 2.0)
    rms = bounded.square().mean(dim=(1, 2, 3)).sqrt()
    assert (rms <= 2.0 + 1e-5).all()
    torch.testing.assert_close(bounded[0], direction[0] * 1e-3)
    cosine = torch.nn.functional.cosine_similarity(bounded.flatten(1), direction.flatten(1))
    torch.testing.assert_close(cosine, torch.ones(4))
    assert torch.equal(limited(direction, math.inf), direction)
    assert torch.equal(limited(torch.zeros(1, 3, 8, 8), 2.0), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("clip", [None, (-1.0, 1.0)])
def test_a_moved_clean_state_keeps_the_bounds_of_its_backbone(
    clip: tuple[float, float] | None,
) -> None:
    x0 = torch.full((1, 3, 4, 4), 0.8)
    moved = CleanPoint()(Estimate(LEVEL, x0, x0, x0, clip=clip), torch.full_like(x0, 5.0), False)
    assert moved.x0.max().item() == pytest.approx(1.0 if clip else 5.8)
    torch.testing.assert_close(LEVEL.alpha * moved.x0 + LEVEL.sigma * moved.eps, x0)


def test_guidance_at_x_t_and_at_x_0_differ_in_the_view_and_its_units_alone() -> None:
    assert (PPAP.place, PPAP.strength, PPAP.limit) == (X0.place, X0.strength, X0.limit)
    assert PPAP.gradient[1:] == X0.gradient
