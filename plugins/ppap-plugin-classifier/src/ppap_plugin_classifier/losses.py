"""Losses between the logits of a classifier and a target, and between two of its outputs."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

Logits = Float[Tensor, "b c"]
PerImage = Float[Tensor, " b"]

_SURE = 50.0
"""Logit of a label's own class over the others: exp(-50) is below 1e-21, so even twenty thousand
other classes together stay far below a float32's last digit."""


def cross_entropy(logits: Logits, probabilities: Float[Tensor, "one c"]) -> PerImage:
    """-sum_c p_c log softmax(logits)_c of each image, in nats.

    For a one-hot target this is -log p(y | x), whose negative gradient is what classifier guidance
    adds (Dhariwal and Nichol, 2021, algorithm 1).

    Args:
        logits: what the network says, one row an image.
        probabilities: the target's row, or a row an image; non-negative, sum 1.
    """
    return -(probabilities.to(logits) * logits.log_softmax(dim=1)).sum(dim=1)


def distillation(
    student: Logits,
    teacher: Logits,
    *,
    teacher_temperature: float,
    student_temperature: float,
    reduction: Literal["sum", "mean"] = "sum",
) -> PerImage:
    """KL(softmax(teacher / T) || softmax(student / S)) of each image (PPAP, eq. 8), in nats.

    Args:
        student: logits of the expert on the noised image.
        teacher: logits of the off-the-shelf network on the clean image; no gradient flows into
            them unless they ask for one.
        teacher_temperature: T > 0; below 1 it sharpens what the teacher says. PPAP's code uses
            0.25.
        student_temperature: S > 0.
        reduction: over the classes. The sum is the divergence itself; the mean is what PPAP's code
            takes, smaller by the number of classes. Neither is multiplied by T^2.
    """
    says = (teacher / teacher_temperature).softmax(dim=1)
    heard = (student / student_temperature).log_softmax(dim=1)
    # A class of probability zero counts zero (its own logarithm is never taken).
    terms = F.kl_div(heard, says, reduction="none")
    return terms.sum(dim=1) if reduction == "sum" else terms.mean(dim=1)


OPEN = -1.0
"""Marks a class of which a target says nothing, where classes do not exclude each other."""


def binary_cross_entropy(logits: Logits, wanted: Float[Tensor, "one c"]) -> PerImage:
    """-sum_c p_c log s(l_c) + (1 - p_c) log s(-l_c) of each image, in nats, s being the sigmoid.

    For networks whose classes do not exclude each other: each is told apart from its absence. For
    one wanted class it is -log p(y | x).

    Args:
        logits: what the network says, one row an image.
        wanted: the target's row, or a row an image: probabilities, and :data:`OPEN` for classes
            that do not matter.
    """
    told = (wanted >= 0).expand(logits.shape)
    probabilities = wanted.to(logits).clamp_min(0).expand(logits.shape)
    each = F.binary_cross_entropy_with_logits(logits, probabilities, reduction="none")
    return (each * told).sum(dim=1)


def binary_distillation(student: Logits, teacher: Logits) -> PerImage:
    """The divergence of each class's yes or no, KL(s(teacher) || s(student)), summed, in nats."""
    yes = teacher.sigmoid()
    terms = yes * (F.logsigmoid(teacher) - F.logsigmoid(student))
    terms = terms + (1 - yes) * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    return terms.sum(dim=1)


def one_hot_logits(labels: Int64[Tensor, " b"], classes: int, temperature: float = 1.0) -> Logits:
    """Logits whose softmax at ``temperature`` is one-hot to well within 1e-6.

    Args:
        labels: in [0, classes).
    """
    sure: Tensor = F.one_hot(labels, classes).to(torch.get_default_dtype())
    return sure * (_SURE * temperature)
