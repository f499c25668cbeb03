"""What calibration errors and temperatures must be whatever the data."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from ppap_plugin_bench.calibration.measures import (
    calibration_error,
    expected_error,
    integral_over_noise,
    maximum_error,
    mean_over_noise,
    reliability,
    smooth_calibration_error,
    smooth_error_at,
)
from ppap_plugin_bench.calibration.temperature import (
    cross_entropy,
    fit_inverse_temperature,
    softmax,
)

from ppap_host.experts.calibration import HIGHEST, LOWEST

Numbers = NDArray[np.float64]

pairs = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from([0.0, 0.25, 1.0])), min_size=1, max_size=40
).map(lambda rows: np.array(rows).T)


def drawn(count: int, power: float = 1.0, seed: int = 0) -> tuple[Numbers, Numbers]:
    """Confidences that are right with probability p^power: calibrated at 1."""
    rng = np.random.default_rng(seed)
    p = rng.beta(2, 1, count)
    return p, (rng.random(count) < p**power).astype(np.float64)


# Bins


def test_bins_are_closed_on_the_right_and_zero_is_in_the_first() -> None:
    table = reliability([0.0, 0.5, 0.5000001, 1.0], [0, 1, 0, 1], bins=2)
    np.testing.assert_array_equal(table[:, 0], [2, 2])
    np.testing.assert_allclose(table[:, 1], [0.5, 0.5])
    np.testing.assert_allclose(table[:, 2], [0.25, 0.75], atol=1e-6)


def test_known_errors() -> None:
    table = reliability([0.9, 0.9, 0.3], [1, 0, 0], bins=10)
    assert expected_error(table) == pytest.approx(2 / 3 * 0.4 + 1 / 3 * 0.3)
    assert maximum_error(table) == pytest.approx(0.4)


@given(pairs, st.integers(1, 20))
def test_bins_count_everything_once(data: Numbers, bins: int) -> None:
    p, h = data
    table = reliability(p, h, bins)
    assert table[:, 0].sum() == len(p)
    assert (table[:, 0] * table[:, 1]).sum() == pytest.approx(h.sum(), abs=1e-9)
    assert (table[:, 0] * table[:, 2]).sum() == pytest.approx(p.sum(), abs=1e-9)
    assert abs(p.mean() - h.mean()) - 1e-9 <= expected_error(table) <= maximum_error(table) + 1e-9


@settings(deadline=None, max_examples=25)
@given(pairs, st.randoms(use_true_random=False))
def test_neither_order_nor_repetition_matter(data: Numbers, random: object) -> None:
    order = np.arange(data.shape[1])
    random.shuffle(order)  # type: ignore[attr-defined]
    for measure in (calibration_error, smooth_calibration_error):
        wanted = measure(*data)
        assert measure(*data[:, order]) == pytest.approx(wanted, abs=1e-6)
        assert measure(*np.repeat(data, 3, axis=1)) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("p", "h"), [([], []), ([0.5], [1, 0]), ([1.2], [1]), ([math.nan], [1]), ([0.5], [-1])]
)
def test_what_cannot_be_counted_is_refused(p: list[float], h: list[float]) -> None:
    for measure in (reliability, calibration_error, smooth_calibration_error):
        with pytest.raises(ValueError, match=r"."):
            measure(p, h)


def test_bins_agree_with_torchmetrics_off_the_edges() -> None:
    import torch
    from torchmetrics.functional import classification as metrics

    p, h = drawn(1000, 2)
    for norm, mine in (("l1", expected_error), ("max", maximum_error)):
        theirs = metrics.binary_calibration_error(
            torch.from_numpy(p), torch.from_numpy(h).long(), n_bins=15, norm=norm
        )
        assert mine(reliability(p, h)) == pytest.approx(float(theirs), abs=1e-12)
    # A confidence of exactly 1/2 belongs to (0, 1/2] here and to [1/2, 1) there.
    edge, right = torch.tensor([0.5, 0.1, 0.9]), torch.tensor([1, 0, 1])
    theirs = metrics.binary_calibration_error(edge, right, n_bins=2)
    assert float(theirs) == pytest.approx(2 / 3 * 0.3 + 1 / 3 * 0.1)
    assert calibration_error(edge, right, 2) == pytest.approx(2 / 3 * 0.2 + 1 / 3 * 0.1)


# Integral


def test_integral_is_that_of_a_straight_line() -> None:
    at = np.array([0.0, 1.0, 4.0, 10.0])
    assert integral_over_noise(0.1 + 0.02 * at, at) == pytest.approx(0.2)
    assert integral_over_noise((0.1 + 0.02 * at)[::-1], at[::-1]) == pytest.approx(0.2)
    assert integral_over_noise(0.1 + 0.02 * at, 7 - 3 * at) == pytest.approx(0.2)
    assert mean_over_noise([0.1, 0.4]) == pytest.approx(0.25)
    assert integral_over_noise([0.3], [5]) == 0.3


def test_integral_over_disorder_is_refused() -> None:
    for errors, at in (([0.1, 0.2, 0.3], [0, 2, 1]), ([0.1, 0.2], [0, 0]), ([], []), ([1], [1, 2])):
        with pytest.raises(ValueError, match=r"position"):
            integral_over_noise(errors, at)
    with pytest.raises(ValueError, match="One error"):
        mean_over_noise([])


# Smooth ECE


@given(st.floats(0, 1), st.integers(0, 5), st.floats(0.005, 1))
def test_of_one_confidence_smooth_error_is_the_gap(p: float, hits: int, width: float) -> None:
    h = np.array([1.0] * hits + [0.0] * (5 - hits))
    gap = abs(p - h.mean())
    assert smooth_error_at(np.full(5, p), h, width) == pytest.approx(gap, abs=1e-6)


@settings(deadline=None, max_examples=25)
@given(pairs)
def test_smooth_error_falls_with_the_width_and_equals_it_once(data: Numbers) -> None:
    p, h = data
    errors = [smooth_error_at(p, h, width) for width in (0.005, 0.02, 0.1, 0.3, 1.0)]
    assert all(b <= a + 1e-6 for a, b in pairwise(errors))
    found = smooth_calibration_error(p, h)
    if found > 1e-3:
        assert smooth_error_at(p, h, found) == pytest.approx(found, abs=1e-5)
    # No smoothing lies between the error of the mean and that of each value by itself.
    values = np.unique(p)
    alone = sum(abs((h - p)[p == v].sum()) for v in values) / len(p)
    assert abs((h - p).mean()) - 1e-6 <= found <= max(alone, 1e-3) + 1e-3


def test_smooth_error_uses_the_kernel_reflected_at_both_ends() -> None:
    p, h = drawn(50, 3)
    width, t = 0.15, (np.arange(20_000) + 0.5) / 20_000
    total = np.zeros_like(t)
    for image in range(-3, 4):
        for mirrored in (t + 2 * image, -t + 2 * image):
            far = (mirrored[:, None] - p) / width
            total += (np.exp(-0.5 * far**2) * (h - p)).mean(axis=1)
    direct = np.abs(total).mean() / (width * math.sqrt(2 * math.pi))
    assert smooth_error_at(p, h, width) == pytest.approx(direct, abs=1e-6)


def test_smooth_error_of_the_calibrated_vanishes_with_their_number_and_of_others_stays() -> None:
    errors = [smooth_calibration_error(*drawn(n)) for n in (300, 2_000, 12_000)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02
    p, h = drawn(12_000, 3)
    true = float(np.abs(p - p**3).mean())
    assert smooth_calibration_error(p, h) == pytest.approx(true, abs=0.015)
    assert calibration_error(p, h) == pytest.approx(true, abs=0.015)


def test_smooth_error_moves_little_where_bins_jump() -> None:
    p = np.array([0.5] * 10 + [0.5001] * 10)
    h = np.array([1.0] * 10 + [0.0] * 10)
    assert calibration_error(p, h, 2) == pytest.approx(0.5, abs=1e-3)
    assert calibration_error(p - 0.0002, h, 2) < 1e-3
    for shift in (0.0, 0.0002):
        assert smooth_calibration_error(p - shift, h) < 0.02
    with pytest.raises(ValueError, match="width"):
        smooth_error_at(p, h, 1e-4)


# Temperatures


def logits_of(count: int, classes: int = 5, seed: int = 0) -> Numbers:
    return np.random.default_rng(seed).normal(size=(count, classes)) * 3


@pytest.mark.parametrize("beta", [0.05, 0.3, 1.0, 4.0])
def test_the_temperature_of_a_teacher_that_is_the_network_at_another_is_found(beta: float) -> None:
    logits = logits_of(200)
    found = fit_inverse_temperature(logits, softmax(beta * logits))
    assert found == pytest.approx(beta, rel=1e-6)
    assert fit_inverse_temperature(logits + 7, softmax(beta * logits)) == pytest.approx(found)


def test_the_temperature_of_labels_calibrates() -> None:
    rng = np.random.default_rng(1)
    logits = logits_of(20_000)
    truth = np.array([rng.multinomial(1, row) for row in softmax(0.4 * logits)], dtype=float)
    beta = fit_inverse_temperature(logits, truth)
    assert beta == pytest.approx(0.4, rel=0.03)
    p, right = softmax(logits).max(axis=1), truth[np.arange(len(truth)), logits.argmax(axis=1)]
    assert calibration_error(p, right) > 0.15
    assert calibration_error(softmax(beta * logits).max(axis=1), right) < 0.012


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.floats(-0.3, 0.3))
def test_no_other_temperature_has_less_cross_entropy(seed: int, off: float) -> None:
    logits, other = logits_of(20, 4, seed), logits_of(20, 4, seed + 1)
    truth = softmax(0.5 * logits + 0.5 * other)
    beta = fit_inverse_temperature(logits, truth)
    least = cross_entropy(logits, truth, beta)
    assert least <= cross_entropy(logits, truth, beta * math.exp(off)) + 1e-12
    order = np.random.default_rng(seed).permutation(20)
    assert fit_inverse_temperature(logits[order], truth[order]) == pytest.approx(beta, rel=1e-6)
    twice = fit_inverse_temperature(np.repeat(logits, 2, axis=0), np.repeat(truth, 2, axis=0))
    assert twice == pytest.approx(beta, rel=1e-6)


def test_temperatures_have_bounds() -> None:
    logits = logits_of(30)
    right = np.eye(5)[logits.argmax(axis=1)]
    assert fit_inverse_temperature(logits, right) == HIGHEST
    assert fit_inverse_temperature(logits, np.eye(5)[logits.argmin(axis=1)]) == LOWEST
    assert fit_inverse_temperature(np.full((3, 4), 2.0), np.full((3, 4), 0.25)) == 1.0
    for bad in (np.full((2, 3), np.nan), np.zeros((0, 3)), np.zeros((2, 4))):
        with pytest.raises(ValueError, match=r"finite|row"):
            fit_inverse_temperature(bad, np.full((2, 3), 1 / 3))
