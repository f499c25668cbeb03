"""How far confidences are from how often they are right.

All functions take one confidence an image and how right the image's prediction was, and compute in
float64. "Right" is 0 or 1 where labels are known. It may be any number between, such as the
probability that a teacher gives to the predicted class: then its mean is the expected accuracy.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import ArrayLike

BINS = 15
"""Guo et al. (2017) use 15 bins."""

_COSINES = 2048
_NARROWEST = 1e-3


def _checked(
    confidence: ArrayLike, correct: ArrayLike
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    p, h = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if p.ndim != 1 or p.shape != h.shape or not len(p):
        raise ValueError(f"One of each an image, please, not {p.shape} and {h.shape}.")
    for values in (p, h):
        if not ((values >= 0) & (values <= 1)).all():  # false for NaN, too
            raise ValueError("Confidence and correctness lie in [0, 1].")
    return p, h


def bin_indices(confidence: Float[np.ndarray, " n"], bins: int = BINS) -> Int64[np.ndarray, " n"]:
    """The bin of each confidence, 0..bins - 1: (0, 1/M], (1/M, 2/M], ... ((M-1)/M, 1].

    A confidence of 0 is counted in the first bin, which other implementations lose.
    """
    places: Int64[np.ndarray, " n"] = np.ceil(bins * confidence).astype(np.int64) - 1
    return places.clip(0, bins - 1)


def reliability(
    confidence: ArrayLike, correct: ArrayLike, bins: int = BINS
) -> Float[np.ndarray, "bins three"]:
    """The numbers of a reliability diagram (Guo et al., 2017, eqs. 2 and 3).

    Args:
        confidence: of the predicted class, [n] in [0, 1].
        correct: how right each prediction is, [n] in [0, 1].
        bins: of equal width, >= 1; see :func:`bin_indices`.

    Returns:
        Count, accuracy and mean confidence of each bin; zeros where a bin is empty.

    Raises:
        ValueError: there is nothing to count, lengths differ, or a value lies outside [0, 1].
    """
    p, h = _checked(confidence, correct)
    if bins < 1:
        raise ValueError(f"{bins} bins cannot hold anything.")
    places = bin_indices(p, bins)
    count = np.bincount(places, minlength=bins).astype(np.float64)
    size = np.maximum(count, 1)
    accuracy = np.bincount(places, weights=h, minlength=bins) / size
    mean = np.bincount(places, weights=p, minlength=bins) / size
    return np.stack([count, accuracy, mean], axis=1)


def expected_error(table: Float[np.ndarray, "bins three"]) -> float:
    """ECE of a :func:`reliability` table, in [0, 1]: sum_m n_m / n |accuracy - confidence|.

    Guo et al. (2017), eq. 3.
    """
    count, accuracy, confidence = table.T
    return float((count * np.abs(accuracy - confidence)).sum() / count.sum())


def maximum_error(table: Float[np.ndarray, "bins three"]) -> float:
    """MCE of a :func:`reliability` table, in [0, 1]: the largest gap of a bin that is not empty.

    Guo et al. (2017), eq. 5.
    """
    there = table[table[:, 0] > 0]
    return float(np.abs(there[:, 1] - there[:, 2]).max())


def calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = BINS) -> float:
    """Expected calibration error with equal-width bins, in [0, 1]; arguments as of
    :func:`reliability`.

    With few images it is above zero even for a perfectly calibrated network, about
    0.8 sum_m sqrt(n_m p_m (1 - p_m)) / n, since every bin's gap is taken absolutely.
    torchmetrics closes its bins on the other side and counts a confidence of 1 apart.
    """
    return expected_error(reliability(confidence, correct, bins))


# Integral over noise


def mean_over_noise(errors: ArrayLike) -> float:
    """The plain mean of the errors at several noise levels.

    EluCD (Ma et al., 2024) chooses classifiers by the integral of their calibration error along the
    sampling process; this is it for evenly spaced levels.

    Raises:
        ValueError: there is no error.
    """
    values = np.asarray(errors, np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"One error a noise level, please, not {values.shape}.")
    return float(values.mean())


def integral_over_noise(errors: ArrayLike, positions: ArrayLike) -> float:
    """The integral of the errors over noise by the trapezoid rule, divided by the range of noise.

    It has the unit of the errors, and no change of unit or origin of the positions changes it.

    Args:
        errors: [l], at each noise level.
        positions: [l], where the levels lie, strictly ascending or descending, such as time steps.

    Raises:
        ValueError: lengths differ or the positions are not in order. One level alone is allowed:
            its error is the mean.
    """
    values, at = np.asarray(errors, np.float64), np.asarray(positions, np.float64)
    if values.ndim != 1 or values.shape != at.shape or not len(values):
        raise ValueError(f"One error a position, please, not {values.shape} and {at.shape}.")
    if len(at) == 1:
        return float(values[0])
    widths = np.diff(at)
    if not ((widths > 0).all() or (widths < 0).all()):
        raise ValueError("The positions are not in order.")
    return float((widths * (values[1:] + values[:-1]) / 2).sum() / (at[-1] - at[0]))


# Smooth ECE


class _Smoother:
    """The residuals of predictions, smoothed by reflected Gaussian kernels of any width.

    On [0, 1] the Gaussian kernel reflected at both ends is 1 + 2 sum_k exp(-(k pi s)^2 / 2)
    cos(k pi x) cos(k pi y): a width only damps the cosine coefficients of the residuals.
    """

    def __init__(self, p: Float[np.ndarray, " n"], h: Float[np.ndarray, " n"]) -> None:
        self._k = np.pi * np.arange(_COSINES)
        total = np.zeros(_COSINES)
        for first in range(0, len(p), 1024):
            rows = slice(first, first + 1024)
            total += (h[rows] - p[rows]) @ np.cos(np.outer(p[rows], self._k))
        self._coefficients = total / len(p)
        self._coefficients[1:] *= 2

    def error(self, width: float) -> float:
        """smECE at one width: the integral over [0, 1] of the smoothed residuals' absolute."""
        damped = self._coefficients * np.exp(-0.5 * (width * self._k) ** 2)
        # At the centres of as many cells as there are cosines: an inverse cosine transform.
        turned = damped * np.exp(0.5j * self._k / _COSINES)
        values = 2 * _COSINES * np.fft.ifft(turned, 2 * _COSINES).real[:_COSINES]
        return float(np.abs(values).mean())


def smooth_error_at(confidence: ArrayLike, correct: ArrayLike, width: float) -> float:
    """smECE at a given width of the kernel: Blasiok and Nakkiran (2023, section 3, smECE_sigma).

    The integral over t in [0, 1] of |mean_i K(t, p_i) (h_i - p_i)|, K the Gaussian kernel reflected
    at 0 and 1. It falls as the width grows.

    Args:
        confidence, correct: as of :func:`reliability`.
        width: sigma of the kernel, >= 0.001, in units of confidence.

    Raises:
        ValueError: as :func:`reliability`, or the width is too small.
    """
    if width < _NARROWEST:
        raise ValueError(f"A width of {width} is below {_NARROWEST}.")
    return _Smoother(*_checked(confidence, correct)).error(width)


def smooth_calibration_error(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Smooth ECE, in [0, 1] (Blasiok and Nakkiran, 2023, definition of smECE_*).

    The kernel's width is the one at which the error equals the width: there is exactly one, since
    the error falls as the width grows. So nothing has to be chosen, unlike the number of bins, and
    no small change of a confidence changes it much. It bounds the distance to the nearest
    calibrated predictor from both sides (theorem 1).

    Values below 0.001 are those of a kernel of that width.

    Raises:
        ValueError: as :func:`reliability`.
    """
    smoother = _Smoother(*_checked(confidence, correct))
    low, high = _NARROWEST, 1.0
    if smoother.error(low) <= low:
        return smoother.error(low)
    while high - low > 1e-7:
        middle = math.sqrt(low * high)
        if smoother.error(middle) > middle:
            low = middle
        else:
            high = middle
    return smoother.error(high)
