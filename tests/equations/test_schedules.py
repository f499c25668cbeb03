"""Noise levels, schedules, spacings, posteriors and ranges, against their equations."""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppap_host.backbones.noise import (
    CLEAN,
    DiscreteSchedule,
    NoiseLevel,
    NoiseRange,
    Walk,
    cosine_betas,
    linear_betas,
    respace,
    uniform_ranges,
)
from ppap_host.files.errors import OptionError

SCHEDULES = {
    "linear": DiscreteSchedule.from_betas(linear_betas(1000)),
    "cosine": DiscreteSchedule.from_betas(cosine_betas(1000)),
}


def test_a_level_is_a_ratio_of_signal_and_noise_and_a_length() -> None:
    level = NoiseLevel(0.6, 0.3, 7.0)
    assert level.log_snr == pytest.approx(math.log(4))
    assert level.scale == pytest.approx(math.sqrt(0.45))
    assert (NoiseLevel(1.0, 0.0, 0.0).log_snr, NoiseLevel(0.0, 1.0, 0.0).log_snr) == (
        math.inf, -math.inf,
    )  # fmt: skip
    assert (CLEAN.alpha, CLEAN.sigma, CLEAN.log_snr) == (1.0, 0.0, math.inf)


def test_a_range_holds_its_lower_bound_and_not_its_upper_one() -> None:
    part = NoiseRange(-1.5, 2.5)
    inside = {-1.6: False, -1.5: True, 0.0: True, 2.5: False, math.nextafter(2.5, 0): True}
    assert {value: value in part for value in inside} == inside
    assert -math.inf in NoiseRange(-math.inf, 0.0)


@pytest.mark.parametrize(("steps", "first", "last"), [(1000, 1e-4, 0.02), (250, 4e-4, 0.08)])
def test_linear_betas_are_a_line(steps: int, first: float, last: float) -> None:
    """Ho et al. (2020), section 4; Nichol and Dhariwal (2021): for other counts, as much noise."""
    line = [first + (last - first) * k / (steps - 1) for k in range(steps)]
    np.testing.assert_allclose(linear_betas(steps), line, rtol=1e-12)


def test_cosine_betas_multiply_to_a_squared_cosine() -> None:
    """Nichol and Dhariwal (2021), eq. 17, with s = 0.008 and beta at most 0.999."""
    angle = (np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2
    whole = np.cos(angle) ** 2 / np.cos(angle[0]) ** 2
    betas = cosine_betas(1000)
    np.testing.assert_allclose(np.cumprod(1 - betas)[:998], whole[1:999], rtol=1e-9)
    assert betas[-1] == 0.999 and betas[-2] < 0.999
    assert cosine_betas(10, 0.5).max() == 0.5


@pytest.mark.parametrize(
    ("steps", "spacing", "kept"),
    [
        (10, 4, [0, 3, 6, 9]),
        (10, "3", [0, 4, 9]),  # 4.5 is rounded to the even side, as is 5.5
        (12, "3", [0, 6, 11]),
        (10, 1, [0]),
        (11, "2,2", [0, 5, 6, 10]),  # the first section is the longer one
        (10, "3,2", [0, 2, 4, 5, 9]),
        (10, "1,5", [0, 5, 6, 7, 8, 9]),
        (10, "ddim4", [0, 3, 6, 9]),
        (10, "ddim5", [0, 2, 4, 6, 8]),
        (10, "ddim1", [0]),
        (10, "ddim10", list(range(10))),
        (10, "", list(range(10))),
        (1000, "ddim25", list(range(0, 1000, 40))),
    ],
)
def test_spacings_keep_these_steps(steps: int, spacing: int | str, kept: list[int]) -> None:
    assert respace(steps, spacing) == kept


@given(total=st.integers(1, 1000), data=st.data())
def test_respacing_by_count_keeps_first_and_last_and_exactly_so_many(
    total: int, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, total))
    kept = respace(total, count)
    assert len(kept) == len(set(kept)) == count
    assert kept == sorted(kept)
    assert kept[0] == 0
    if count > 1:
        assert kept[-1] == total - 1


def test_fast27_is_dense_where_images_are_clean_and_shuns_the_noisiest_step() -> None:
    """Nichol et al. (2022): 10, 10, 3, 2 and 2 steps of each fifth, and 997 for 999."""
    kept = respace(1000, "fast27")
    assert kept == sorted(set(kept))
    assert [sum(low <= t < low + 200 for t in kept) for low in range(0, 1000, 200)] == [
        10, 10, 3, 2, 2,
    ]  # fmt: skip
    assert kept[:2] == [0, 22]
    assert kept[-3:] == [799, 800, 997]
    assert len(SCHEDULES["linear"].walk("fast27")) == len(respace(50, "fast27")) == 27
    with pytest.raises(OptionError, match="Cannot keep 10 of 9 steps"):
        respace(45, "fast27")


@pytest.mark.parametrize(
    "bad", ["0", "-3", "1001", "many", "ddim", "ddim7000", "10,,10", "1.5", "500,501"]
)
def test_bad_spacings_are_refused_with_a_remedy(bad: str) -> None:
    with pytest.raises(OptionError) as caught:
        respace(1000, bad)
    assert "ddim25" in caught.value.remedy


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_discrete_schedule_walks_from_its_noisiest_kept_step_to_the_clean_image(
    name: str,
) -> None:
    betas = {"linear": linear_betas, "cosine": cosine_betas}[name](1000)
    schedule, product = SCHEDULES[name], 1.0
    for t, beta in enumerate(betas):
        product *= 1 - beta
        level = schedule.level(t)
        assert level.alpha**2 == pytest.approx(product, rel=1e-9)
        assert level.alpha**2 + level.sigma**2 == pytest.approx(1)
        assert level.time == t
    assert schedule.levels() == tuple(schedule.level(t) for t in range(1000))
    walk = schedule.walk("3")
    assert walk.levels == (*(schedule.level(t) for t in (999, 500, 0)), CLEAN)
    assert len(walk) == 3
    assert all(a.log_snr > b.log_snr for a, b in pairwise(schedule.levels()))


def test_the_posterior_is_bayes_rule() -> None:
    """q(x_s | x_t, x_0) from the joint Gaussian of (x_s, x_t) given x_0, for a VE-like walk too.

    The upper variance is that of q(x_t | x_s), the lower one the posterior's, and at the last step,
    where that is zero, the one of the step before (Nichol and Dhariwal, 2021, section 3.1).
    """
    for levels in (
        SCHEDULES["linear"].walk(10).levels,
        (*(NoiseLevel(1.0, sigma, 0.0) for sigma in (80.0, 5.0, 0.3)), CLEAN),
    ):
        walk = Walk(levels)
        for i in range(len(walk)):
            now, then = levels[i], levels[i + 1]
            ratio = now.alpha / then.alpha
            covariance = ratio * then.sigma**2
            gain = covariance / now.sigma**2
            posterior = walk.posterior(i)
            assert posterior.of_xt == pytest.approx(gain)
            assert posterior.of_x0 == pytest.approx(then.alpha - gain * now.alpha)
            assert posterior.variance == pytest.approx(then.sigma**2 - gain * covariance, abs=1e-12)
            beta = now.sigma**2 - ratio**2 * then.sigma**2
            assert math.exp(posterior.log_upper) == pytest.approx(beta)
            lower = posterior.variance or walk.posterior(i - 1).variance
            assert math.exp(posterior.log_lower) == pytest.approx(lower)
    only = Walk((NoiseLevel(0.6, 0.8, 0.0), CLEAN)).posterior(0)
    assert math.exp(only.log_lower) == math.exp(only.log_upper) == pytest.approx(0.64)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 1000])
def test_ranges_split_the_steps_evenly_and_cover_every_level(count: int) -> None:
    """PPAP, section 4.1: expert i of N from step floor(i T / N) on."""
    schedule = SCHEDULES["cosine"]
    ranges = uniform_ranges(schedule.levels(), count)
    levels = [schedule.level(t).log_snr for t in range(1000)]
    first = [i * 1000 // count for i in range(count)]
    for t, level in enumerate(levels):
        own = bisect_right(first, t) - 1
        # The ranges lie end to end, so that its neighbours are those it might also be in.
        near = range(max(own - 1, 0), min(own + 2, count))
        assert [i for i in near if level in ranges[i]] == [own]
    for extreme in (1e9, -1e9):
        assert sum(extreme in part for part in ranges) == 1
    for cleaner, noisier in pairwise(ranges):
        assert cleaner.low == noisier.high
        # A level at the bound itself is the cleaner one's.
        assert cleaner.low in cleaner and cleaner.low not in noisier
    for i, (cleaner, noisier) in enumerate(pairwise(ranges), 1):
        a, b = levels[i * 1000 // count - 1 : i * 1000 // count + 1]
        assert cleaner.low == noisier.high == pytest.approx((a + b) / 2)


@pytest.mark.parametrize("count", [0, 11])
def test_more_ranges_than_levels_are_refused(count: int) -> None:
    with pytest.raises(OptionError, match="from 1 to 10"):
        uniform_ranges(SCHEDULES["linear"].levels()[:10], count)
    assert len(uniform_ranges(SCHEDULES["linear"].levels()[:10], 10)) == 10
