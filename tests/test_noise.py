"""Noise levels, schedules and ranges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppap_host.backbones.noise import (
    CLEAN,
    DiscreteSchedule,
    NoiseLevel,
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


def test_ddim_spacing_is_a_whole_stride_from_zero() -> None:
    assert respace(1000, "ddim25") == list(range(0, 1000, 40))


def test_sections_get_their_own_counts() -> None:
    kept = respace(300, "10,15,20")
    assert [sum(low <= t < low + 100 for t in kept) for low in (0, 100, 200)] == [10, 15, 20]


def test_fast27_is_dense_where_images_are_clean_and_shuns_the_noisiest_step() -> None:
    kept = respace(1000, "fast27")
    assert kept == sorted(set(kept))
    assert [sum(low <= t < low + 200 for t in kept) for low in range(0, 1000, 200)] == [
        10, 10, 3, 2, 2,
    ]  # fmt: skip
    assert kept[:2] == [0, 22]
    assert kept[-3:] == [799, 800, 997]
    assert len(SCHEDULES["linear"].walk("fast27")) == 27


def test_fast27_needs_sections_of_ten_steps() -> None:
    assert len(respace(50, "fast27")) == 27
    with pytest.raises(OptionError, match="Cannot keep 10 of 9 steps"):
        respace(45, "fast27")


@pytest.mark.parametrize("bad", ["0", "-3", "1001", "many", "ddim", "ddim7000", "10,,10", "1.5"])
def test_bad_spacings_are_refused_with_a_remedy(bad: str) -> None:
    with pytest.raises(OptionError) as caught:
        respace(1000, bad)
    assert "ddim25" in caught.value.remedy


@pytest.mark.parametrize("name", SCHEDULES)
def test_levels_are_variance_preserving_and_log_snr_falls(name: str) -> None:
    levels = [SCHEDULES[name].level(t) for t in range(1000)]
    assert all(math.isclose(level.scale, 1.0) for level in levels)
    assert all(np.diff([level.log_snr for level in levels]) < 0)
    assert CLEAN.log_snr == math.inf


def test_the_posterior_is_bayes_rule() -> None:
    """q(x_s | x_t, x_0) from the joint Gaussian of (x_s, x_t) given x_0, for a VE-like walk too."""
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


@pytest.mark.parametrize("count", [1, 2, 5, 10])
def test_ranges_split_the_steps_evenly_and_cover_every_level(count: int) -> None:
    schedule = SCHEDULES["cosine"]
    ranges = uniform_ranges(schedule.levels(), count)
    served = [
        [i for i, part in enumerate(ranges) if schedule.level(t).log_snr in part]
        for t in range(1000)
    ]
    assert all(len(hits) == 1 for hits in served)
    assert [hits[0] for hits in served] == [t * count // 1000 for t in range(1000)]
    for extreme in (1e9, -1e9):
        assert sum(extreme in part for part in ranges) == 1
