"""Temperature scaling: one factor of the logits that makes confidences honest."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from ppap_host.experts.calibration import HIGHEST, LOWEST

_HALVINGS = 40


def log_softmax(logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Log probabilities of each row, float64."""
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    normaliser: Float[np.ndarray, "n one"] = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    said: Float[np.ndarray, "n k"] = shifted - normaliser
    return said


def softmax(logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Probabilities of each row, float64."""
    probabilities: Float[np.ndarray, "n k"] = np.exp(log_softmax(logits))
    return probabilities


def cross_entropy(logits: ArrayLike, truth: ArrayLike, inverse_temperature: float = 1.0) -> float:
    """-mean_i sum_k truth_ik log softmax(beta logits_i)_k in nats, beta the inverse temperature."""
    said = log_softmax(inverse_temperature * np.asarray(logits, np.float64))
    return float(-(np.asarray(truth, np.float64) * said).sum(axis=1).mean())


def fit_inverse_temperature(logits: ArrayLike, truth: ArrayLike) -> float:
    """The factor of the logits with the least cross entropy to the truth.

    Temperature scaling (Guo et al., 2017, section 4.2), with beta = 1 / T: at one-hot rows the
    negative log likelihood of labels, at a teacher's probabilities the cross entropy with them,
    whose minimum is that of the divergence KL(teacher || network). The cross entropy is convex in
    beta: its slope, mean_i (softmax(beta l_i) - truth_i) . l_i, only rises. So the least is found
    by halving an interval of log beta, to nine digits.

    Args:
        logits: [n, k], finite.
        truth: [n, k], a row of probabilities an image.

    Returns:
        beta in [0.01, 100]; 1 where all logits of every image are equal, since no factor matters.

    Raises:
        ValueError: shapes differ, there is no image, or a logit is not finite.
    """
    said, q = np.asarray(logits, np.float64), np.asarray(truth, np.float64)
    if said.ndim != 2 or said.shape != q.shape or not said.size:
        raise ValueError(f"A row of each an image, please, not {said.shape} and {q.shape}.")
    if not np.isfinite(said).all():
        raise ValueError("A logit is not finite.")
    said = said - said.max(axis=1, keepdims=True)
    if not said.any():
        return 1.0
    wanted = (q * said).sum(axis=1).mean()

    def slope(beta: float) -> float:
        return float((softmax(beta * said) * said).sum(axis=1).mean() - wanted)

    low, high = math.log(LOWEST), math.log(HIGHEST)
    if slope(LOWEST) >= 0:
        return LOWEST
    if slope(HIGHEST) <= 0:
        return HIGHEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if slope(math.exp(middle)) < 0:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)
