"""Measurement of guidance, for any world: distances of image sets, strengths, errors, curves.

Nothing here knows what is guided or who judges. Sets of images are compared by the features that
some network gives them; a guide is measured against noise by its own measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ppap_host.backbones.noise import NoiseLevel
from ppap_host.files.settings import settings
from ppap_host.guides.guide import Guide
from ppap_host.sampling.streams import ImageNoise


@dataclass(frozen=True)
class Measure:
    """A measured number.

    Attributes:
        value: the number; NaN if it could not be measured.
        error: its standard error, None if it has none worth telling.
    """

    value: float
    error: float | None = None


class Operations(TorchDispatchMode):
    """Counts the floating point operations within, by torch's own formulas, gradients included.

    (Torch's ``FlopCounterMode`` also follows modules, which does not go with ``autograd.grad``.)

    Attributes:
        count: so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs and counts an operation."""
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.count += formula(*args, **(kwargs or {}), out_val=out)
        return out


# Errors of measures


def mean_measure(values: Sequence[float] | Tensor) -> Measure:
    """Mean of one number an image, and the standard error of the mean (None for one image)."""
    numbers = torch.as_tensor(values, dtype=torch.float64)
    n = numbers.numel()
    return Measure(float(numbers.mean()), float(numbers.std() / math.sqrt(n)) if n > 1 else None)


def share_measure(hits: Tensor) -> Measure:
    """Share of True in ``hits`` [n], with a binomial standard error.

    The error is half the width of Wilson's score interval (Wilson, 1927) at one standard deviation:
    unlike sqrt(p (1 - p) / n) it is not zero where every image or none was right.
    """
    n, p = len(hits), float(hits.double().mean())
    return Measure(p, math.sqrt(p * (1 - p) / n + 1 / (4 * n * n)) / (1 + 1 / n))


def bootstrap_measure(
    statistic: Callable[[Tensor], float], count: int, *, repeats: int = 200, seed: int = 0
) -> Measure:
    """A statistic of ``count`` images, its standard error by resampling images (Efron, 1979).

    Args:
        statistic: its value for the images of these indices, int64 [count], repetitions included.
        repeats: how many resamplings.
    """
    generator = torch.Generator().manual_seed(seed)
    draws = [statistic(torch.randint(count, (count,), generator=generator)) for _ in range(repeats)]
    spread = float(torch.tensor(draws, dtype=torch.float64).std())
    return Measure(statistic(torch.arange(count)), spread)


# Distances of image sets


class _AsTheyAre(nn.Module):
    """Features in place of images, for torchmetrics."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(real: Float[Tensor, "n d"], made: Float[Tensor, "m d"]) -> float:
    """Frechet distance of two sets of features (Heusel et al., 2017, eq. 6), >= 0.

    |mu_1 - mu_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)). It falls with the number of images even
    where the distributions are the same: compare only sets of one size.

    Raises:
        ValueError: a set has fewer than two rows.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    if min(len(real), len(made)) < 2:
        raise ValueError("A Frechet distance needs two images or more on either side.")
    metric = FrechetInceptionDistance(feature=_AsTheyAre(real.shape[1]))
    metric.set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(made.double(), real=False)
    # Rounding leaves identical sets a hair below zero.
    return max(0.0, float(metric.compute()))


def precision_and_recall(
    real: Float[Tensor, "n d"], made: Float[Tensor, "m d"], neighbours: int = 3
) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi et al., 2019, eqs. 1 and 2), each in [0, 1].

    Precision is the share of ``made`` within the manifold of ``real``, recall the share of ``real``
    within the manifold of ``made``. A set's manifold is the union of balls around its points, each
    as large as the distance to the point's ``neighbours``-th nearest neighbour.

    Args:
        neighbours: k of the paper, which uses 3.

    Raises:
        ValueError: a set has too few rows to have such neighbours.
    """
    if min(len(real), len(made)) <= neighbours:
        raise ValueError(f"{neighbours} neighbours need {neighbours + 1} images or more.")
    return _covered(made, real, neighbours), _covered(real, made, neighbours)


def _covered(points: Tensor, manifold: Tensor, neighbours: int) -> float:
    """Share of ``points`` in the union of balls around the rows of ``manifold``."""
    points, manifold = points.double(), manifold.double()
    # The exact mode: the one by matrix product loses the small distances to rounding.
    mode = "donot_use_mm_for_euclid_dist"
    own = torch.cdist(manifold, manifold, compute_mode=mode)
    radius = own.kthvalue(neighbours + 1, dim=1).values  # the first is the point itself
    inside = torch.cdist(points, manifold, compute_mode=mode) <= radius
    return float(inside.any(dim=1).double().mean())


def confusions(judged: Tensor, truth: Tensor, classes: int) -> Float[Tensor, "b classes classes"]:
    """Confusion matrix of each image, rows true, columns judged, in pixels.

    Args:
        judged, truth: int64 [b, h, w], each pixel's class in 0..classes - 1.
    """
    b = len(truth)
    image = torch.arange(b, device=truth.device).view(-1, 1, 1)
    cells = (image * classes + truth) * classes + judged
    counts = torch.bincount(cells.flatten(), minlength=b * classes * classes)
    return counts.view(b, classes, classes).double()


def mean_iou(confusion: Float[Tensor, "classes classes"]) -> float:
    """Mean intersection over union of the classes that occur, in truth or in judgement."""
    both = confusion.diagonal()
    either = confusion.sum(dim=0) + confusion.sum(dim=1) - both
    there = either > 0
    return float((both[there] / either[there]).mean())


# Strength


@dataclass(frozen=True)
class Trial:
    """One strength that was tried.

    Attributes:
        scale: the strength.
        score: the judged measure on the validation set.
        tie: decides between equal scores, lower is better (e.g. a Frechet distance).
    """

    scale: float
    score: float
    tie: float = 0.0


@settings
class Search:
    """A small search for a strength, the same for everyone.

    First a geometric grid of three strengths around a start. As long as the best lies at the edge,
    the grid grows by one strength beyond it; as soon as it lies inside, the wider gap beside it is
    halved on the logarithmic scale. The number of trials is fixed, so that no method is searched
    harder than another, wherever it starts.

    Attributes:
        factor: between neighbours of the grid, > 1.
        trials: strengths that are tried, >= 3.
    """

    factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] = 4.0
    trials: Annotated[int, Field(ge=3, le=1000)] = 6


def search_strength(
    measure: Callable[[float], Trial], start: float, search: Search, *, higher_is_better: bool
) -> tuple[Trial, list[Trial]]:
    """Chooses a strength.

    Equal scores are decided by :attr:`Trial.tie`, then by the lower strength; NaN loses.

    Args:
        measure: tries one strength.
        start: the middle of the first grid, > 0.

    Returns:
        The best trial, and all of them by strength.
    """

    def worth(trial: Trial) -> tuple[float, float, float]:
        score = trial.score if higher_is_better else -trial.score
        return (-math.inf if math.isnan(score) else score, -trial.tie, -trial.scale)

    trials = [measure(start * search.factor**k) for k in (-1, 0, 1)]
    while len(trials) < search.trials:
        at = max(range(len(trials)), key=lambda i: worth(trials[i]))
        trials.append(measure(_next_scale([t.scale for t in trials], at, search.factor)))
        trials.sort(key=lambda trial: trial.scale)
    return max(trials, key=worth), trials


def _next_scale(scales: Sequence[float], best: int, factor: float) -> float:
    """The strength to try after the sorted ``scales``, of which the one at ``best`` is the best."""
    here = scales[best]
    if best == 0:
        return here / factor
    if best == len(scales) - 1:
        return here * factor
    below, above = here / scales[best - 1], scales[best + 1] / here
    # Rounding must not decide between equal gaps.
    return here / math.sqrt(below) if below >= 0.999 * above else here * math.sqrt(above)


# Guides against noise


@dataclass(frozen=True)
class NoisePoint:
    """How well a guide reads images at one noise level.

    Attributes:
        log_snr: of the level, natural logarithm.
        time: what the backbone calls the level.
        measures: the guide's own measures, by name.
    """

    log_snr: float
    time: float
    measures: Mapping[str, Measure]


def accuracy_against_noise(
    guide: Guide,
    images: Float[Tensor, "n 3 h w"],
    truth: Tensor,
    levels: Sequence[NoiseLevel],
    *,
    seed: int = 0,
    batch: int = 64,
) -> list[NoisePoint]:
    """The guide's measures on noised images, as in the first figures of PPAP (Go et al., 2023).

    Every image gets one draw of noise that serves all levels, so that a curve is smooth and curves
    differ by their guides alone.

    Args:
        guide: plain, or :class:`~ppap_host.experts.sets.WithExperts`.
        images: clean, RGB in [-1, 1].
        truth: what a perfect network would give, as :meth:`Guide.from_labels` makes it, [n, ...].
        levels: where to measure; a pixel state is assumed, shown at unit variance scale.
        seed: of the noise.
    """
    found: list[dict[str, list[float]]] = [{} for _ in levels]
    for first in range(0, len(images), batch):
        rows = slice(first, min(first + batch, len(images)))
        noise = ImageNoise(seed, range(rows.start, rows.stop), tuple(images.shape[1:]))()
        clean, noise = images[rows], noise.to(images)
        for level, values in zip(levels, found, strict=True):
            shown = (level.alpha * clean + level.sigma * noise) / level.scale
            with torch.no_grad():
                measured = guide.measure(guide.see(shown, level), guide.as_target(truth[rows]))
            for name, each in measured.items():
                values.setdefault(name, []).extend(each)
    return [
        NoisePoint(level.log_snr, level.time, {k: mean_measure(v) for k, v in values.items()})
        for level, values in zip(levels, found, strict=True)
    ]
