"""What guides and experts are taught to lessen, loss by loss, in numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from ppap_plugin_classifier import losses as classes
from ppap_plugin_clip import losses as clip
from ppap_plugin_clip.clip_guide import ClipGuide
from ppap_plugin_clip.style_guide import StyleGuide
from ppap_plugin_depth import losses as depth
from ppap_plugin_depth.guide import DepthGuide
from ppap_plugin_openai.guide import ADMClassifierGuide
from ppap_plugin_restore.guide import colourise, inpainting
from ppap_plugin_segmentation import losses as segments
from ppap_plugin_segmentation.guide import SegmentationGuide
from worlds import QuadraticGuide

from ppap_host.backbones.noise import NoiseLevel
from ppap_host.guides.functions import FunctionGuide
from ppap_host.guides.rewards import RewardGuide
from ppap_host.guides.temperatures import Tempered

RNG = np.random.default_rng(12)
LOGITS, OTHER = 2 * RNG.standard_normal((2, 3, 5))
MAPS, WANTED = np.abs(RNG.standard_normal((2, 3, 9, 7))) + 0.2


def t(x: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(x))


def same(found: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=tolerance, atol=tolerance)


def shares(logits: Any, axis: int = 1) -> Any:
    e = np.exp(logits)
    return e / e.sum(axis=axis, keepdims=True)


def kl(wanted: Any, found: Any, axis: int = 1) -> Any:
    return (wanted * np.log(wanted / found)).sum(axis=axis)


# Classes


def test_losses_of_classifiers_and_of_their_teaching() -> None:
    wanted = shares(OTHER)
    same(classes.cross_entropy(t(LOGITS), t(wanted[:1])), -(wanted[0] * np.log(shares(LOGITS))).sum(axis=1))  # fmt: skip  # noqa: E501
    each = kl(shares(OTHER / 0.25), shares(LOGITS / 2))
    options = dict(teacher_temperature=0.25, student_temperature=2.0)
    same(classes.distillation(t(LOGITS), t(OTHER), **options), each)
    same(classes.distillation(t(LOGITS), t(OTHER), reduction="mean", **options), each / 5)


class CrossEntropy(QuadraticGuide):
    def tempered(self, joint: float, marginal: float) -> Tempered:
        return Tempered(self, joint, marginal)

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return classes.cross_entropy(output, target)


def test_temperatures_weigh_joint_and_marginal() -> None:
    """EluCD, section 3.3: -(joint f_y - log sum_k exp(marginal f_k))."""
    guide = CrossEntropy()
    wanted = shares(OTHER)
    for joint, marginal in ((1.0, 0.5), (0.7, 1.3), (2.0, 2.0), (1.0, 0.0)):
        found = Tempered(guide, joint, marginal).loss(t(LOGITS), t(wanted))
        energy = joint * (wanted * LOGITS).sum(axis=1)
        same(found, np.log(np.exp(marginal * LOGITS).sum(axis=1)) - energy)
        again = Tempered(guide, 3.0, 0.2).tempered(joint, marginal)
        same(again.loss(t(LOGITS), t(wanted)), found)


class Reward(RewardGuide):
    name, network, prepare, value = "reward", *[lambda self, x: x.sum(dim=1)] * 3


@pytest.mark.parametrize("guide", [FunctionGuide(lambda x: x, "function"), Reward()])  # type: ignore[abstract]
def test_functions_and_rewards_are_taught_by_the_mean_square(guide: Any) -> None:
    same(guide.distance(t(LOGITS), t(OTHER)), ((LOGITS - OTHER) ** 2).mean(axis=1))
    same(guide.distance(t(LOGITS[:, 0]), t(OTHER[:, 0])), (LOGITS - OTHER)[:, 0] ** 2)


def test_the_noise_aware_classifier_is_told_the_step_of_the_same_noise() -> None:
    """Between steps where need be, by log-SNR; clean images count as step 0."""
    guide: Any = object.__new__(ADMClassifierGuide)
    guide._noise = np.array([-9.0, -4.0, 0.0, 5.0])  # minus log-SNR of steps 0..3
    for log_snr, step in ((4.0, 1.0), (2.0, 1.5), (-5.0, 3.0), (99.0, 0.0), (-99.0, 3.0)):
        share = 1 / (1 + math.exp(-log_snr))  # alpha^2, where alpha^2 + sigma^2 = 1
        level = NoiseLevel(math.sqrt(share), math.sqrt(1 / (1 + math.exp(log_snr))), 0.0)
        assert guide.time(level) == pytest.approx(step)
    assert guide.time(None) == 0.0
    wanted = shares(OTHER)
    same(guide.loss(t(LOGITS), t(wanted)), -(wanted * np.log(shares(LOGITS))).sum(axis=1))
    same(guide.distance(t(LOGITS), t(OTHER)), kl(wanted, shares(LOGITS)))


# Depth


def midas(maps: Any) -> Any:
    """(d - median) / mean |d - median| (Ranftl et al., 2020, eq. 5)."""
    flat = maps.reshape(len(maps), -1)
    centred = maps - np.median(flat, axis=1)[:, None, None]
    return centred / np.abs(centred).mean(axis=(1, 2), keepdims=True)


def test_losses_of_depth() -> None:
    apart = midas(MAPS) - midas(WANTED)
    residuals = np.sort(np.abs(apart).reshape(3, -1), axis=1)
    matching = np.zeros(3)
    for k in range(4):
        coarse = apart[:, :: 2**k, :: 2**k]
        if min(coarse.shape[1:]) > 1:
            matching += np.abs(np.diff(coarse, axis=1)).mean(axis=(1, 2))
            matching += np.abs(np.diff(coarse, axis=2)).mean(axis=(1, 2))
    found = depth.scale_and_shift_invariant
    same(found(t(MAPS), t(WANTED), gradient_weight=0.0), residuals.mean(axis=1) / 2)
    kept = residuals[:, : 63 - int(0.2 * 63)].sum(axis=1) / 63
    same(found(t(MAPS), t(WANTED), trim=0.2, gradient_weight=0.0), kept / 2)
    same(found(t(MAPS), t(WANTED)), residuals.mean(axis=1) / 2 + 0.5 * matching)
    correlation = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(MAPS, WANTED, strict=True)]  # fmt: skip  # noqa: E501
    same(depth.smooth_invariant(t(MAPS), t(WANTED)), 1 - np.array(correlation))
    same(depth.squared_error(t(MAPS), t(WANTED)), ((MAPS - WANTED) ** 2).mean(axis=(1, 2)))
    same(depth.metric_loss(t(MAPS), t(WANTED)), np.abs(np.log(MAPS / WANTED)).mean(axis=(1, 2)))
    same(depth.metric_loss(0 * t(MAPS), 0 * t(MAPS) + 1), np.full(3, math.log(1000)))


def test_where_a_target_says_nothing_depth_is_not_compared() -> None:
    wanted = WANTED.copy()
    wanted[:, 0, :3] = np.nan
    known = np.isfinite(wanted[0])
    pairs = [(a[known], b[known]) for a, b in zip(MAPS, WANTED, strict=True)]
    same(
        depth.smooth_invariant(t(MAPS), t(wanted)),
        [1 - np.corrcoef(a, b)[0, 1] for a, b in pairs],
    )
    same(depth.metric_loss(t(MAPS), t(wanted)), [np.abs(np.log(a / b)).mean() for a, b in pairs])
    found = depth.metric_measures(t(MAPS), t(wanted))
    same(found["abs-rel"], [np.abs(a / b - 1).mean() for a, b in pairs])


@pytest.mark.parametrize("metric", [True, False])
def test_a_depth_guide_compares_its_own_kind_of_maps(metric: bool) -> None:
    guide: Any = object.__new__(DepthGuide)
    guide.metric = metric
    compare = depth.metric_loss if metric else depth.smooth_invariant
    wanted = compare(t(MAPS), t(WANTED[:1]).expand(3, -1, -1))
    same(guide.loss(t(MAPS), t(WANTED[:1])), wanted)
    same(guide.distance(t(MAPS), t(WANTED)), compare(t(MAPS), t(WANTED)))
    same(guide.from_labels(t(MAPS)), MAPS if metric else 1 / MAPS)


def test_measures_of_depth() -> None:
    """After alignment of inverse depth by least squares (MiDaS, section 6)."""
    found = depth.relative_measures(t(MAPS), t(WANTED))
    for k in range(3):
        slope, shift = np.polyfit(MAPS[k].ravel(), WANTED[k].ravel(), 1)
        floor = WANTED[k].max() / 20
        counts = WANTED[k] >= floor
        ratio = (WANTED[k] / np.maximum(slope * MAPS[k] + shift, floor))[counts]
        assert found["abs-rel"][k] == pytest.approx(np.abs(ratio - 1).mean())
        near = np.maximum(ratio, 1 / ratio) < 1.25
        assert found["delta<1.25"][k] == pytest.approx(near.mean())
    metric = depth.metric_measures(t(MAPS), t(WANTED))
    ratio = MAPS / WANTED
    same(metric["abs-rel"], np.abs(ratio - 1).mean(axis=(1, 2)))
    same(metric["delta<1.25"], (np.maximum(ratio, 1 / ratio) < 1.25).mean(axis=(1, 2)))


# Segments


def test_losses_of_segments() -> None:
    """The divergence from the target, classes that it does not tell apart being one outcome."""
    logits, truth = 2 * RNG.standard_normal((2, 2, 4, 3, 5))
    seen, wanted = shares(logits), shares(truth)
    same(segments.divergence(t(logits), t(truth)), kl(wanted, seen).mean(axis=(1, 2)))
    same(segments.cross_entropy(t(logits), t(wanted)), kl(wanted, seen).mean(axis=(1, 2)))
    value = wanted.copy()
    value[:, 1:3] = -1.0  # two classes are not told apart
    value[:, :, 0, :2] = -1.0  # and two pixels are not compared
    rest_wanted, rest_seen = 1 - value[:, [0, 3]].sum(axis=1), seen[:, 1:3].sum(axis=1)
    each = kl(wanted[:, [0, 3]], seen[:, [0, 3]]) + rest_wanted * np.log(rest_wanted / rest_seen)
    compared = np.ones((3, 5), bool)
    compared[0, :2] = False
    same(segments.cross_entropy(t(logits), t(value)), each[:, compared].mean(axis=1))
    same(segments.cross_entropy(t(logits), t(0 * value - 1)), np.zeros(2))
    mask = (RNG.random((1, 3, 5)) > 0.5) * 1.0
    alone = np.full((1, 4, 3, 5), -1.0)
    alone[:, 2] = mask
    p = seen[:, 2]
    binary = -(mask * np.log(p) + (1 - mask) * np.log(1 - p)).mean(axis=(1, 2))
    same(segments.cross_entropy(t(logits), t(alone)), binary)


def test_measures_of_segments_leave_out_what_is_not_compared() -> None:
    seen = np.array([[0, 0, 1, 1, 2, 3]])
    truth = np.array([[0, 1, 1, 1, 2, -1]])
    logits = np.eye(4)[seen].transpose(0, 2, 1)[:, :, None]
    value = np.where(truth[:, None] < 0, -1.0, np.eye(4)[truth].transpose(0, 2, 1))[:, :, None]
    found = segments.measures(t(logits), t(value))
    same(found["miou"], [(1 / 2 + 2 / 3 + 1) / 3])
    same(found["pixel-accuracy"], [4 / 5])


def test_the_segmentation_guide_is_sure_of_labels_and_averages_pixels() -> None:
    guide: Any = object.__new__(SegmentationGuide)
    logits, truth = RNG.standard_normal((2, 2, 4, 3, 5))
    same(guide.distance(t(logits), t(truth)), segments.divergence(t(logits), t(truth)))
    same(guide.loss(t(logits), t(shares(truth))), kl(shares(truth), shares(logits)).mean(axis=(1, 2)))  # fmt: skip  # noqa: E501
    same(guide.as_target(t(logits)), shares(logits))
    assert SegmentationGuide.averages_pixels and DepthGuide.averages_pixels


# CLIP


def test_losses_of_embeddings_and_of_tokens() -> None:
    u, v = RNG.standard_normal((3, 6)), RNG.standard_normal((1, 6))
    cosines = (u @ v[0]) / np.linalg.norm(u, axis=1) / np.linalg.norm(v)
    same(clip.spherical_distance(t(u), t(v)), np.arccos(cosines) ** 2 / 2)
    guide: Any = object.__new__(ClipGuide)
    guide.temperature = 30.0
    same(guide.loss(t(u), t(v)), 30 * np.arccos(cosines) ** 2 / 2)
    same(guide.distance(t(u), t(v.repeat(3, 0))), 30 * np.arccos(cosines) ** 2 / 2)
    tokens, other = RNG.standard_normal((2, 3, 7, 4))
    grams, wanted = (np.einsum("bni,bnj->bij", x, x) / 7 for x in (tokens, other))
    same(clip.gram(t(tokens)), grams)
    part = [np.linalg.norm(g - w) / np.linalg.norm(w) for g, w in zip(grams, wanted, strict=True)]
    same(clip.gram_distance(t(grams), t(wanted)), part)
    style: Any = object.__new__(StyleGuide)
    same(style.loss(t(tokens), t(wanted)), part)
    same(style.distance(t(tokens), t(other)), part)


# Restoration


def test_a_restoration_averages_over_what_was_measured(tmp_path: Any) -> None:
    """In inpainting what is unknown is no part of the mean."""
    guide = inpainting("box=0.5")
    y, target = RNG.standard_normal((2, 2, 3, 16, 16))
    known = guide.operator(t(target)).known.double().numpy()  # type: ignore[attr-defined]
    assert 0.5 < known.mean() < 0.9
    squares = (known * (y - target)) ** 2
    found = guide.loss(t(known * y), t(known * target))
    same(found, squares.sum(axis=(1, 2, 3)) / (3 * known.sum()))
    measured = guide.measure(t(known * y), t(known * target))
    rmse = np.sqrt(np.asarray(found)) / 2
    same(measured["rmse"], rmse)
    same(measured["psnr"], -20 * np.log10(rmse))
    grey = colourise()
    same(grey.loss(t(y[:, :1]), t(target[:, :1])), ((y - target)[:, :1] ** 2).mean(axis=(1, 2, 3)))
    assert guide.averages_pixels
