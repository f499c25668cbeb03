"""Losses and measures between a network's logits and a target's value.

The value names the probability of some classes and leaves the others together; see
:mod:`ppap_plugin_segmentation.targets`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from ppap_plugin_segmentation.targets import resized

Maps = Float[Tensor, "b c h w"]
PerImage = Float[Tensor, " b"]

# Far below any log probability, and unlike -inf without NaN in gradients.
_NOTHING = -1e4


def cross_entropy(logits: Maps, value: Float[Tensor, "one c h2 w2"]) -> PerImage:
    """Mean over the compared pixels of the cross entropy above the target's own entropy.

    That is the Kullback-Leibler divergence of what is seen from what is wanted: its gradient is
    that of the cross entropy, its least value zero also for soft targets. Classes that the target
    does not tell apart are one outcome, so for a mask of one class this is the binary cross entropy
    of the class's probability.

    Args:
        value: a target's value, for each image or one for all, of any size.

    Returns:
        Nats a pixel; 0 where there is nothing to compare.
    """
    value = resized(value.to(logits.dtype), logits.shape[-2:]).float().expand(logits.shape)
    named = value >= 0
    wanted = value.clamp_min(0)
    seen = F.log_softmax(logits.float(), dim=1)
    rest_seen = seen.masked_fill(named, _NOTHING).logsumexp(dim=1)
    # Rounding may leave a little where every class is named.
    rest_wanted = (1 - wanted.sum(dim=1)).clamp_min(0) * (~named).any(dim=1)
    each = (torch.special.xlogy(wanted, wanted) - wanted * seen).sum(dim=1)
    each = each + torch.special.xlogy(rest_wanted, rest_wanted) - rest_wanted * rest_seen
    compared = named.any(dim=1)
    total: Tensor = (each * compared).sum(dim=(1, 2))
    return total / compared.sum(dim=(1, 2)).clamp_min(1)


def divergence(student: Maps, teacher: Maps) -> PerImage:
    """Mean over pixels of KL(softmax(teacher) || softmax(student)), in nats."""
    seen, wanted = F.log_softmax(student.float(), dim=1), F.log_softmax(teacher.float(), dim=1)
    return (wanted.exp() * (wanted - seen)).sum(dim=1).mean(dim=(1, 2))


def outcomes(value: Maps) -> Int[Tensor, "b h w"]:
    """The likeliest outcome of each pixel: a class, C for "any of the rest", -1 if not compared."""
    named = value >= 0
    rest = 1 - value.clamp_min(0).sum(dim=1)
    rest = torch.where((~named).any(dim=1), rest, torch.full_like(rest, -2.0))
    found = torch.cat([value, rest[:, None]], dim=1).argmax(dim=1)
    return found.masked_fill(~named.any(dim=1), -1)


def measures(logits: Maps, value: Float[Tensor, "one c h2 w2"]) -> dict[str, list[float]]:
    """Mean intersection over union, "miou", and "pixel-accuracy" of each image.

    The mean goes over the classes that the target names and that are in the target or in what the
    network sees; for a mask of one class it is that class's IoU (1 if it is in neither, as wanted).
    Pixels that are not compared do not count; without any, both are NaN.
    """
    count = logits.shape[1]
    value = resized(value.to(logits.dtype), logits.shape[-2:]).float().expand(logits.shape)
    named, truth = value >= 0, outcomes(value)
    best = logits.argmax(dim=1)
    seen = torch.where(named.gather(1, best[:, None])[:, 0], best, count)
    ious, accuracies = [], []
    for s, t in zip(seen, truth, strict=True):
        compared = t >= 0
        ious.append(_mean_iou(s[compared], t[compared], count))
        right = (s == t)[compared].double()
        accuracies.append(right.mean().item() if len(right) else math.nan)
    return {"miou": ious, "pixel-accuracy": accuracies}


def _mean_iou(seen: Int[Tensor, " n"], truth: Int[Tensor, " n"], count: int) -> float:
    if not len(truth):
        return math.nan
    agreed: Bool[Tensor, " n"] = seen == truth
    in_both = torch.bincount(truth[agreed], minlength=count + 1)[:count].double()
    in_either = (
        torch.bincount(seen, minlength=count + 1) + torch.bincount(truth, minlength=count + 1)
    )[:count].double() - in_both
    there = in_either > 0
    return (in_both[there] / in_either[there]).mean().item() if bool(there.any()) else 1.0
