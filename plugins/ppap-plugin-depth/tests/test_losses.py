"""The losses compare shapes of depth, not units."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ppap_plugin_depth.losses import (
    metric_measures,
    relative_measures,
    resized,
    scale_and_shift_invariant,
    smooth_invariant,
)


def _maps(seed: int, count: int = 2, side: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")[:, 0] + 0.2


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1000),
    scale=st.floats(0.01, 100),
    shift=st.floats(-5, 5),
    trim=st.sampled_from([0.0, 0.2]),
)
def test_relative_loss_ignores_scale_and_shift(
    seed: int, scale: float, shift: float, trim: float
) -> None:
    a, b = _maps(seed), _maps(seed + 5000)
    plain = scale_and_shift_invariant(a, b, trim=trim)
    moved = scale_and_shift_invariant(a * scale + shift * scale, b, trim=trim)
    torch.testing.assert_close(moved, plain, rtol=2e-3, atol=2e-3)
    at_target = scale_and_shift_invariant(b * scale + shift * scale, b, trim=trim)
    assert at_target.max() < 2e-3 < plain.min()


def test_an_inverted_map_is_worse_than_an_unrelated_one() -> None:
    a, other = _maps(0), _maps(1)
    inverted = scale_and_shift_invariant(-a, a)
    assert (inverted > scale_and_shift_invariant(other, a)).all()


@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
def test_constant_maps_are_finite(value: float) -> None:
    flat = torch.full((2, 8, 8), value, requires_grad=True)
    losses = scale_and_shift_invariant(flat, _maps(0, side=8))
    (gradient,) = torch.autograd.grad(losses.sum(), flat)
    assert torch.isfinite(losses).all()
    assert torch.isfinite(gradient).all()
    both = scale_and_shift_invariant(flat.detach(), flat.detach())
    assert both.tolist() == [0, 0]
    measures = relative_measures(flat.detach(), _maps(0, side=8))
    assert all(math.isfinite(v) for v in measures["abs-rel"])


def test_half_precision_is_compared_in_single() -> None:
    a = (_maps(3) * 500).half()
    assert scale_and_shift_invariant(a, a.float()).max() < 1e-3


def test_trimming_forgives_few_outliers() -> None:
    a = _maps(4)
    b = a.clone()
    b[:, :2, :2] += 20 * a.std()
    kept = scale_and_shift_invariant(a, b, gradient_weight=0.0)
    trimmed = scale_and_shift_invariant(a, b, gradient_weight=0.0, trim=0.2)
    assert (trimmed < kept).all()


def test_measures_are_those_of_depth() -> None:
    inverse = _maps(0) + 0.5
    perfect = relative_measures(3 * inverse + 2, inverse)
    assert perfect["abs-rel"] == pytest.approx([0, 0], abs=1e-6)
    assert perfect["delta<1.25"] == [1, 1]
    depth = 1 / inverse
    assert metric_measures(1.3 * depth, depth)["abs-rel"] == pytest.approx([0.3, 0.3])
    assert metric_measures(1.3 * depth, depth)["delta<1.25"] == [0, 0]
    assert metric_measures(1.2 * depth, depth)["delta<1.25"] == [1, 1]


def test_resizing_keeps_the_mean() -> None:
    maps = _maps(2)
    assert resized(maps, (16, 16)) is maps
    torch.testing.assert_close(resized(maps, (8, 8)).mean(), maps.mean(), rtol=1e-2, atol=0)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1000),
    scale=st.floats(0.01, 100),
    shift=st.floats(-5, 5),
)
def test_smooth_loss_ignores_scale_and_shift_and_orders_maps(
    seed: int, scale: float, shift: float
) -> None:
    a, b = _maps(seed), _maps(seed + 5000)
    moved = smooth_invariant(a * scale + shift * scale, b)
    torch.testing.assert_close(moved, smooth_invariant(a, b), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(smooth_invariant(b * scale + shift * scale, b), torch.zeros(2), rtol=0, atol=2e-3)  # fmt: skip  # noqa: E501
    torch.testing.assert_close(smooth_invariant(-b, b), torch.full((2,), 2.0), rtol=0, atol=2e-3)


def test_smooth_loss_has_a_gradient_that_fades_at_the_target_and_is_finite_for_flat_maps() -> None:
    target = _maps(3)
    norms = []
    for distance in (1.0, 0.1, 0.01):
        near = (target + distance * _maps(4)).requires_grad_(True)
        (gradient,) = torch.autograd.grad(smooth_invariant(near, target).sum(), near)
        norms.append(float(gradient.norm()))
    assert norms[0] > 5 * norms[1] > 25 * norms[2]
    flat = torch.full((1, 8, 8), 0.7, requires_grad=True)
    (gradient,) = torch.autograd.grad(smooth_invariant(flat, _maps(0, 1, 8)).sum(), flat)
    assert gradient.isfinite().all()
