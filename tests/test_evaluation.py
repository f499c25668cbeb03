"""Measures agree with closed forms, searches find what they should, curves are reproducible."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from ppap_plugin_bench.evaluation import (
    Search,
    Trial,
    accuracy_against_noise,
    bootstrap_measure,
    confusions,
    frechet_distance,
    mean_iou,
    mean_measure,
    precision_and_recall,
    search_strength,
    share_measure,
)
from worlds import QuadraticGuide

from ppap_host.backbones.noise import CLEAN, DiscreteSchedule, cosine_betas


def normal(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).double()


# Frechet distance


def test_a_set_has_no_distance_to_itself() -> None:
    x = normal(200, 5)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_a_shifted_set_is_the_shift_squared() -> None:
    x, shift = normal(200, 5), torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0])
    assert frechet_distance(x, x + shift) == pytest.approx(float(shift.square().sum()), rel=1e-6)


def test_frechet_distance_of_a_stretched_set_is_the_difference_of_spreads_squared() -> None:
    x = normal(500, 1)
    spread = float(x.std())
    centred = x - x.mean()
    assert frechet_distance(centred, 3 * centred) == pytest.approx((2 * spread) ** 2, rel=1e-6)


def test_frechet_distance_needs_two_images() -> None:
    with pytest.raises(ValueError, match="two images"):
        frechet_distance(normal(1, 3), normal(9, 3))


# Precision and recall


def test_equal_sets_have_full_precision_and_recall() -> None:
    x = normal(30, 4)
    assert precision_and_recall(x, x) == (1.0, 1.0)


def test_precision_and_recall_of_points_on_a_line() -> None:
    # With one neighbour every ball of `real` has radius 1 and those of `made` 1, 1, 90.
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    made = torch.tensor([[-1.5], [-0.5], [100.0]])
    precision, recall = precision_and_recall(real, made, neighbours=1)
    assert precision == pytest.approx(1 / 3)  # only -0.5 is within a ball: around 0
    # The ball around 100 reaches down to -0.5, so it holds every real point.
    assert recall == 1.0


def test_far_sets_share_nothing() -> None:
    x = normal(20, 3)
    assert precision_and_recall(x, x + 1000) == (0.0, 0.0)


def test_a_narrow_set_is_precise_and_recalls_little() -> None:
    real = normal(200, 2)
    precision, recall = precision_and_recall(real, 0.05 * normal(200, 2, seed=1))
    assert precision > 0.95
    assert recall < 0.2


def test_neighbours_need_images() -> None:
    with pytest.raises(ValueError, match="4 images"):
        precision_and_recall(normal(3, 2), normal(9, 2), neighbours=3)


# Errors


def test_mean_has_the_usual_standard_error() -> None:
    found = mean_measure([1.0, 2.0, 3.0, 4.0])
    assert found.value == 2.5
    assert found.error == pytest.approx(math.sqrt(5 / 3) / 2)
    assert mean_measure([1.0]).error is None


@pytest.mark.parametrize(("hits", "count"), [(0, 24), (24, 24)])
def test_a_share_of_none_or_all_is_not_certain(hits: int, count: int) -> None:
    found = share_measure(torch.arange(count) < hits)
    assert found.value == hits / count
    assert found.error == pytest.approx(0.5 / (count + 1))


def test_a_share_has_about_the_binomial_error() -> None:
    found = share_measure(torch.arange(1000) < 300)
    assert found.error == pytest.approx(math.sqrt(0.3 * 0.7 / 1000), rel=0.01)


def test_bootstrap_of_a_mean_is_its_standard_error() -> None:
    values = normal(400, 1)[:, 0]
    found = bootstrap_measure(lambda rows: float(values[rows].mean()), 400, repeats=400)
    assert found.value == pytest.approx(float(values.mean()))
    assert found.error == pytest.approx(1 / 20, rel=0.15)


# Segmentation


def test_iou_agrees_with_torchmetrics() -> None:
    from torchmetrics.functional.classification import multiclass_jaccard_index

    generator = torch.Generator().manual_seed(3)
    truth, judged = (torch.randint(6, (5, 8, 8), generator=generator) for _ in range(2))
    each = confusions(judged, truth, 6)
    assert each.sum(dim=(1, 2)).tolist() == [64.0] * 5
    expected = multiclass_jaccard_index(judged, truth, 6, average="macro")
    assert mean_iou(each.sum(0)) == pytest.approx(float(expected), rel=1e-6)


def test_confusion_has_rows_of_truth() -> None:
    truth, judged = torch.tensor([[[0, 1]]]), torch.tensor([[[2, 1]]])
    assert confusions(judged, truth, 3)[0].tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_classes_that_do_not_occur_do_not_count() -> None:
    assert mean_iou(torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 0.0]])) == 1.0


# Search


def peak(best: float) -> Callable[[float], Trial]:
    return lambda scale: Trial(scale, -abs(math.log(scale / best)))


@pytest.mark.parametrize("best", [0.01, 0.06, 0.5, 2.0, 33.0, 200.0])
def test_search_comes_close_to_a_peak(best: float) -> None:
    found, trials = search_strength(peak(best), 1.0, Search(trials=7), higher_is_better=True)
    assert abs(math.log(found.scale / best)) <= math.log(2) + 1e-9
    assert len(trials) == 7
    assert [t.scale for t in trials] == sorted({t.scale for t in trials})


def test_search_goes_outwards_then_inwards() -> None:
    tried = []

    def measure(scale: float) -> Trial:
        tried.append(scale)
        return peak(1 / 16)(scale)

    search_strength(measure, 1.0, Search(trials=7), higher_is_better=True)
    assert tried == pytest.approx([1 / 4, 1, 4, 1 / 16, 1 / 64, 1 / 32, 1 / 8])


def test_search_for_the_lowest() -> None:
    found, _ = search_strength(
        lambda s: Trial(s, abs(math.log(s / 4))), 1.0, Search(), higher_is_better=False
    )
    assert found.scale == pytest.approx(4)


@pytest.mark.parametrize("best", [0.01, 1.0, 50.0])
def test_everyone_gets_the_same_number_of_trials(best: float) -> None:
    _, trials = search_strength(peak(best), 1.0, Search(3.0, 5), higher_is_better=True)
    assert len(trials) == 5


def test_ties_go_to_the_nearer_set_then_to_the_weaker() -> None:
    plain = Search(trials=3)
    found, _ = search_strength(lambda s: Trial(s, 1.0), 1.0, plain, higher_is_better=True)
    assert found.scale == pytest.approx(1 / 4)
    found, _ = search_strength(
        lambda s: Trial(s, 1.0, tie=abs(s - 4)), 1.0, plain, higher_is_better=True
    )
    assert found.scale == 4


@pytest.mark.parametrize("higher", [True, False])
def test_a_strength_without_a_number_loses(higher: bool) -> None:
    found, _ = search_strength(
        lambda s: Trial(s, math.nan if s != 4 else 0.5), 1.0, Search(), higher_is_better=higher
    )
    assert found.scale == 4


# Guides against noise


LEVELS = [CLEAN, *(DiscreteSchedule.from_betas(cosine_betas(1000)).level(t) for t in (100, 800))]


def test_a_guide_that_sees_pixels_errs_with_the_noise() -> None:
    images = 0.5 * normal(40, 3 * 4 * 4).float().view(40, 3, 4, 4)
    points = accuracy_against_noise(QuadraticGuide(), images, images, LEVELS)
    errors = [point.measures["error"].value for point in points]
    assert errors[0] == 0
    assert [p.log_snr for p in points] == [level.log_snr for level in LEVELS]
    for level, error in zip(LEVELS[1:], errors[1:], strict=True):
        spread = math.hypot(0.5 * (1 - level.alpha), level.sigma)
        assert error == pytest.approx(spread * math.sqrt(2 / math.pi), rel=0.06)


def test_curves_do_not_depend_on_the_batch() -> None:
    images = normal(10, 48).float().view(10, 3, 4, 4)
    found = [
        accuracy_against_noise(QuadraticGuide(), images, images, LEVELS, batch=batch)
        for batch in (3, 64)
    ]
    for one, other in zip(*found, strict=True):
        assert one.measures["error"].value == pytest.approx(other.measures["error"].value)


def test_curves_repeat_themselves_and_follow_the_seed() -> None:
    images = normal(10, 48).float().view(10, 3, 4, 4)
    first, again, other = (
        accuracy_against_noise(QuadraticGuide(), images, images, LEVELS, seed=seed)
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first[2].measures != other[2].measures
