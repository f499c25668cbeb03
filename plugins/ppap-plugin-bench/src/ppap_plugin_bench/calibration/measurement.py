"""Measures how honest a guide's confidence is at each noise level, and fits temperatures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from ppap_host.backbones.backbone import Backbone, Condition, encode, repeat_condition
from ppap_host.backbones.noise import NoiseLevel, NoiseRange, uniform_ranges
from ppap_host.experts.calibration import Calibration, RangeCalibration, experts_hash, experts_of
from ppap_host.experts.patches import network_hash
from ppap_host.experts.sets import View
from ppap_host.files.errors import OptionError
from ppap_host.files.images import to_unit
from ppap_host.files.settings import Batch, Parts, Seed, settings
from ppap_host.guides.guide import Guide
from ppap_host.sampling.streams import ImageNoise, derived, word
from ppap_plugin_bench.calibration import measures
from ppap_plugin_bench.calibration.material import Material
from ppap_plugin_bench.calibration.temperature import fit_inverse_temperature, softmax

Watch = Callable[[str, int, int], None]

_RESAMPLINGS = 200


@settings
class CalibrationConfig:
    """How a guide is calibrated.

    Attributes:
        view: what it is shown.
        ranges: into which the noise levels are split, each with a temperature of its own; None:
            those of its experts, 5 without any.
        levels: noise levels measured in each range.
        bins: of the reliability diagrams.
        seed: of the noise, >= 0.
        batch: images at a time.
    """

    view: View = "noised"
    ranges: Parts | None = None
    levels: Parts = 2
    bins: Parts = measures.BINS
    seed: Seed = 0
    batch: Batch = 25


@dataclass(frozen=True)
class LevelCalibration:
    """One noise level; what comes "after" is as of
    :class:`~ppap_host.experts.calibration.RangeCalibration`.

    Attributes:
        log_snr: of the level, natural logarithm.
        position: its place among the backbone's levels, counted from the cleanest, 0.
        accuracy, confidence, confidence_after, ece, ece_after, smooth_ece, smooth_ece_after,
            ece_error, ece_error_after: as of a range.
    """

    log_snr: float
    position: int
    accuracy: float
    confidence: float
    confidence_after: float
    ece: float
    ece_after: float
    smooth_ece: float
    smooth_ece_after: float
    ece_error: float
    ece_error_after: float


def check_classes(guide: Guide, size: tuple[int, int]) -> int:
    """The number of classes a guide tells apart.

    Args:
        size: (height, width) in pixels of the images it is to see.

    Raises:
        OptionError: it knows none, or its logits are not proportional to its output, so that a
            temperature cannot be applied to the output.
    """
    parameter = next(guide.network().parameters(), torch.zeros(()))
    with torch.no_grad():
        output = guide.see(torch.zeros(1, 3, *size, device=parameter.device))
        logits = guide.logits(output)
        doubled = guide.logits(2 * output)
    if logits.ndim != 2 or not torch.allclose(doubled, 2 * logits, rtol=1e-3, atol=1e-4):
        raise OptionError(
            f"The logits of the guide {guide.name!r} are not proportional to its output.",
            remedy="Only guides whose network gives logits can be calibrated.",
        )
    return logits.shape[1]


def check_view(guide: Guide, view: View) -> None:
    """Whether a guide's experts, if it has any, were tuned on what it is to be shown.

    Raises:
        OptionError: they were not.
    """
    own = experts_of(guide)
    if own is not None and own.view != view:
        raise OptionError(
            f"The experts were tuned on {own.view} images, not on {view} ones.",
            remedy=f"Use --view {own.view}, or --experts none.",
        )


def spread(
    levels: Sequence[NoiseLevel], ranges: Sequence[NoiseRange], count: int
) -> list[list[int]]:
    """For each range the positions of up to ``count`` levels in it, evenly spread.

    Raises:
        OptionError: a range holds no level.
    """
    found = []
    for part in ranges:
        own = [i for i, level in enumerate(levels) if level.log_snr in part]
        if not own:
            raise OptionError(
                f"The backbone has no noise level in [{part.low:.2f}, {part.high:.2f}).",
                remedy="Give fewer --ranges.",
            )
        picked = min(count, len(own))
        found.append([own[(2 * k + 1) * len(own) // (2 * picked)] for k in range(picked)])
    return found


class Shown:
    """What a guide sees of noised images.

    Args:
        backbone: whose predictions are shown; needed for the view "predicted" alone.

    Raises:
        OptionError: for the view "predicted", the backbone works on latents or cannot do without a
            class.
    """

    def __init__(self, guide: Guide, view: View, backbone: Backbone) -> None:
        self.guide, self.view, self.backbone = guide, view, backbone
        self.condition: Condition = {}
        if view == "noised":
            return
        if backbone.state_shape != (3, *backbone.image_size):
            raise OptionError(
                f"The backbone {backbone.name!r} works on latents; pictures cannot be noised "
                "for it.",
                remedy="Use --view noised, which noises the pictures themselves.",
            )
        try:
            self.condition = encode(backbone, [""], [None])
        except OptionError as error:
            raise OptionError(
                f"The backbone {backbone.name!r} predicts nothing without a condition: "
                f"{error.message}",
                remedy="Use --view noised, or a backbone with an unconditional branch.",
            ) from None

    def outputs(
        self, x0: Float[Tensor, "b 3 h w"], noise: Float[Tensor, "b 3 h w"], level: NoiseLevel
    ) -> Tensor:
        """The guide's outputs for images noised to a level.

        Args:
            x0: clean, RGB in [-1, 1].
            noise: standard normal.
        """
        x = level.alpha * x0 + level.sigma * noise
        if self.view == "noised":
            return self.guide.see(x / level.scale, level)
        state = x.to(self.backbone.state_dtype)
        eps = self.backbone.predict(state, level, repeat_condition(self.condition, len(x))).eps
        clean = (state - level.sigma * eps) / level.alpha
        if self.backbone.clip is not None:
            clean = clean.clamp(*self.backbone.clip)
        clean = self.backbone.decode(clean).to(x0)
        return self.guide.see(clean, level if self.guide.knows_predictions else None)


@torch.no_grad()
def logits_against_noise(
    shown: Shown,
    material: Material,
    levels: Sequence[NoiseLevel],
    config: CalibrationConfig,
    watch: Watch = lambda what, done, total: None,
) -> tuple[Float32[np.ndarray, "l n k"], Float64[np.ndarray, "n k"]]:
    """The guide's logits at each level, and the truth.

    An image's noise depends on the seed and its place alone and is the same at all levels, so that
    curves over noise are smooth. It is not the noise that a harvest of the same seed was made of.

    Raises:
        OptionError: a logit is not finite.
    """
    guide = shown.guide
    device = next((p.device for p in guide.network().parameters()), torch.device("cpu"))
    seed = word(derived("calibration", config.seed))
    size = tuple(material.pixels.shape[1:])
    said: list[list[Tensor]] = [[] for _ in levels]
    truth = []
    total = len(material) * len(levels)
    for first in range(0, len(material), config.batch):
        rows = range(first, min(first + config.batch, len(material)))
        x0 = to_unit(material.pixels[rows.start : rows.stop]).to(device)
        noise = ImageNoise(seed, rows, size)().to(device)
        if material.truth is None:
            truth.append(guide.logits(guide.see(x0)).float().cpu())
        for i, level in enumerate(levels):
            output = guide.logits(shown.outputs(x0, noise, level)).float().cpu()
            if not output.isfinite().all():
                raise OptionError(
                    f"The guide {guide.name!r} gives logits that are not finite at log-SNR "
                    f"{level.log_snr:.2f}.",
                    remedy="Try --dtype float32.",
                )
            said[i].append(output)
            watch(f"showing {guide.name} noise", first * len(levels) + (i + 1) * len(rows), total)
    if material.truth is None:
        right = softmax(torch.cat(truth).numpy())
    else:
        right = material.truth.double().numpy()
    return np.stack([torch.cat(parts).numpy() for parts in said]), right


def _halves(count: int) -> tuple[Int64[np.ndarray, " h"], Int64[np.ndarray, " h2"]]:
    """Every second image and the others."""
    places = np.arange(count)
    return places[places % 2 == 0], places[places % 2 == 1]


def _cross_fitted(
    logits: Float[np.ndarray, "l n k"], truth: Float[np.ndarray, "n k"]
) -> Float[np.ndarray, "l n"]:
    """Each image's confidences with the temperature that the other half of the images asks for."""
    found = np.empty(logits.shape[:2])
    first, second = _halves(logits.shape[1])
    for fitted, measured in ((first, second), (second, first)):
        beta = fit_inverse_temperature(*_together(logits[:, fitted], truth[fitted]))
        found[:, measured] = _confidences(beta * logits[:, measured].astype(np.float64))
    return found


def _together(
    logits: Float[np.ndarray, "l n k"], truth: Float[np.ndarray, "n k"]
) -> tuple[Float[np.ndarray, "ln k"], Float[np.ndarray, "ln k"]]:
    return logits.reshape(-1, logits.shape[-1]), np.tile(truth, (len(logits), 1))


def _confidences(logits: Float[np.ndarray, "l n k"]) -> Float[np.ndarray, "l n"]:
    """The probability of the likeliest class."""
    flat: Float[np.ndarray, " ln"] = softmax(logits.reshape(-1, logits.shape[-1])).max(axis=1)
    return flat.reshape(logits.shape[:2]).clip(0, 1)


def _rightness(
    logits: Float[np.ndarray, "l n k"], truth: Float[np.ndarray, "n k"]
) -> Float[np.ndarray, "l n"]:
    """The probability of the class that is said to be likeliest, in truth."""
    said = logits.argmax(axis=2)
    right: Float[np.ndarray, "l n"] = truth[np.arange(len(truth))[None], said]
    return right.clip(0, 1)


def _resampled(
    confidence: Float[np.ndarray, "l n"], right: Float[np.ndarray, "l n"], bins: int
) -> Float[np.ndarray, "repeats l1"]:
    """ECE of each level, and of all together in the last column, of resampled images."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(_RESAMPLINGS):
        rows = rng.integers(confidence.shape[1], size=confidence.shape[1])
        p, h = confidence[:, rows], right[:, rows]
        each = [measures.calibration_error(a, b, bins) for a, b in zip(p, h, strict=True)]
        found.append([*each, measures.calibration_error(p.ravel(), h.ravel(), bins)])
    return np.array(found)


def calibrate(
    guide: Guide,
    backbone: Backbone,
    material: Material,
    config: CalibrationConfig,
    experts: str | None = None,
    watch: Watch = lambda what, done, total: None,
    network_sha256: str | None = None,
) -> Calibration:
    """Measures a guide's calibration and fits an inverse temperature for each noise range.

    Args:
        guide: on its device, with its experts if it has any.
        backbone: on the same device; its noise levels, and its predictions for that view.
        material: images and what is right.
        experts: name of the guide's expert set.
        watch: told of progress: (what, done, total).
        network_sha256: of the guide's network before it was moved to half precision; None: as it
            is.

    Returns:
        The calibration. Its details hold the same measures at each level under ``levels``, and
        their means over noise under ``integral``.

    Raises:
        OptionError: the guide knows no classes, there are fewer than two images, the truth has
            other classes, the experts are shown something else, or the view is not to be had from
            this backbone.
    """
    count = check_classes(guide, backbone.image_size)
    if len(material) < 2:
        raise OptionError(
            f"{len(material)} image cannot be calibrated on.", remedy="Give two or more."
        )
    if material.truth is not None and material.truth.shape[1] != count:
        raise OptionError(
            f"The labels are of {material.truth.shape[1]} classes, the guide knows {count}.",
            remedy="Give labels of the guide's own classes.",
        )
    own = experts_of(guide)
    check_view(guide, config.view)
    every = backbone.levels()
    if config.ranges is None and own is not None:
        ranges = sorted(own.ranges, key=lambda part: -part.low)
    else:
        ranges = uniform_ranges(every, config.ranges or 5)
    places = spread(every, ranges, config.levels)
    flat = [i for part in places for i in part]
    shown = Shown(guide, config.view, backbone)
    logits, truth = logits_against_noise(shown, material, [every[i] for i in flat], config, watch)
    rows, points, samples = [], [], []
    start = 0
    for k, (part, positions) in enumerate(zip(ranges, places, strict=True)):
        watch("fitting temperatures", k, len(ranges))
        here = logits[start : start + len(positions)]
        start += len(positions)
        right = _rightness(here, truth)
        both = (_confidences(here), _cross_fitted(here, truth))
        drawn = tuple(_resampled(p, right, config.bins) for p in both)
        samples.append([d[:, :-1] for d in drawn])
        beta = fit_inverse_temperature(*_together(here, truth))
        tables = [measures.reliability(p.ravel(), right.ravel(), config.bins) for p in both]
        rows.append(
            RangeCalibration(
                low=part.low,
                high=part.high,
                inverse_temperature=beta,
                count=right.size,
                **_measured([p.ravel() for p in both], right.ravel(), config.bins),
                ece_error=float(drawn[0][:, -1].std(ddof=1)),
                ece_error_after=float(drawn[1][:, -1].std(ddof=1)),
                bins=tuple(tuple(row) for row in tables[0].tolist()),
                bins_after=tuple(tuple(row) for row in tables[1].tolist()),
            )
        )
        for j, i in enumerate(positions):
            points.append(
                LevelCalibration(
                    log_snr=every[i].log_snr,
                    position=i,
                    **_measured([p[j] for p in both], right[j], config.bins),
                    ece_error=float(drawn[0][:, j].std(ddof=1)),
                    ece_error_after=float(drawn[1][:, j].std(ddof=1)),
                )
            )
    watch("fitting temperatures", len(ranges), len(ranges))
    at = [point.position for point in points]
    integral: dict[str, float] = {}
    for suffix, which in (("", 0), ("_after", 1)):
        errors = [getattr(point, f"ece{suffix}") for point in points]
        smooth = [getattr(point, f"smooth_ece{suffix}") for point in points]
        each = np.concatenate([pair[which] for pair in samples], axis=1)
        integral |= {
            f"mean{suffix}": measures.mean_over_noise(errors),
            f"mean_error{suffix}": float(each.mean(axis=1).std(ddof=1)),
            f"trapezoid{suffix}": measures.integral_over_noise(errors, at),
            f"smooth_mean{suffix}": measures.mean_over_noise(smooth),
            f"smooth_trapezoid{suffix}": measures.integral_over_noise(smooth, at),
        }
    return Calibration(
        guide=guide.name,
        network_sha256=network_sha256 or network_hash(guide.network()),
        view=config.view,
        ranges=tuple(rows),
        experts=None if own is None else experts or "",
        experts_sha256=None if own is None else experts_hash(own),
        details={
            "integral": integral,
            "levels": [asdict(point) for point in points],
            "truth": "teacher" if material.truth is None else "labels",
            "images": material.identity,
            "backbone": {"name": backbone.name},
            "settings": asdict(config),
        },
    )


def _measured(
    confidences: Sequence[Float[np.ndarray, " m"]], right: Float[np.ndarray, " m"], bins: int
) -> dict[str, float]:
    """The measures of predictions without and with a temperature."""
    before, after = confidences
    return {
        "accuracy": float(right.mean()),
        "confidence": float(before.mean()),
        "confidence_after": float(after.mean()),
        "ece": measures.calibration_error(before, right, bins),
        "ece_after": measures.calibration_error(after, right, bins),
        "smooth_ece": measures.smooth_calibration_error(before, right),
        "smooth_ece_after": measures.smooth_calibration_error(after, right),
    }
