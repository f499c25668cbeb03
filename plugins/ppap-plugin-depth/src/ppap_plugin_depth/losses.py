"""Losses and measures between depth maps, each per image.

Relative models predict inverse depth up to an unknown scale and shift (Ranftl et al., 2020,
"Towards robust monocular depth estimation", the MiDaS paper), so their maps are compared after both
have been normalised. Metric models predict metres and are compared as they are.

Where a target is NaN nothing is known of it, and nothing is compared.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

Maps = Float[Tensor, "b h w"]
PerImage = Float[Tensor, " b"]

FARTHEST = 20.0
"""Depths beyond so many times the nearest are left out of relative measures: their inverse depth
is so close to an unknown zero that its reciprocal says nothing."""

_NEAREST_METRES = 1e-3


def normalised(maps: Maps, smallest_scale: float = 1e-5) -> Maps:
    """(d - t(d)) / s(d) with t the median and s the mean absolute deviation (MiDaS, eq. 5).

    The scale is positive, so an inverted map does not pass for a right one, which a least-squares
    alignment (eq. 4) would allow. A constant map becomes zero.
    """
    maps = maps.float()
    centred = maps - maps.flatten(1).median(dim=1).values[:, None, None]
    scale = centred.abs().mean(dim=(1, 2), keepdim=True)
    return centred / scale.clamp_min(smallest_scale)


def scale_and_shift_invariant(
    prediction: Maps,
    target: Maps,
    *,
    trim: float = 0.0,
    gradient_weight: float = 0.5,
    scales: int = 4,
) -> PerImage:
    """MiDaS's loss between maps of inverse depth (eq. 12): L_ssi + alpha L_reg.

    Args:
        prediction, target: inverse depth in any unit.
        trim: share of the largest residuals to leave out (eq. 7; 0.2 in the paper, against wrong
            labels). Guidance must not leave them out: they are what is to be mended.
        gradient_weight: alpha, the weight of the multi-scale gradient matching term (eq. 11).
        scales: resolutions of that term, each half the one before.
    """
    difference = normalised(prediction) - normalised(target)
    residuals = difference.abs().flatten(1)
    if trim:
        kept = residuals.shape[1] - int(trim * residuals.shape[1])
        # Divided by all pixels, as in eq. 7.
        data = residuals.topk(kept, dim=1, largest=False).values.sum(dim=1) / residuals.shape[1]
    else:
        data = residuals.mean(dim=1)
    if not gradient_weight:
        return 0.5 * data
    regularity = torch.zeros_like(data)
    for scale in range(scales):
        step = 2**scale
        coarse = difference[:, ::step, ::step]
        if min(coarse.shape[1:]) < 2:
            break
        across = (coarse[:, :, 1:] - coarse[:, :, :-1]).abs().mean(dim=(1, 2))
        down = (coarse[:, 1:] - coarse[:, :-1]).abs().mean(dim=(1, 2))
        regularity = regularity + across + down
    return 0.5 * data + gradient_weight * regularity


def smooth_invariant(prediction: Maps, target: Maps, smallest_scale: float = 1e-5) -> PerImage:
    """Mean squared difference of two standardised maps of inverse depth, halved: 1 - correlation.

    MiDaS's loss with the squared error of its eq. 3, but aligned by mean and standard deviation,
    which like eq. 5 keeps the scale positive. For guidance: its gradient is smooth and fades as the
    maps agree. The absolute error of :func:`scale_and_shift_invariant` has a gradient of signs,
    which never fades; sampling then dances around the target, and rounding errors grow until the
    same image made in another batch differs visibly.

    Args:
        prediction, target: inverse depth in any unit; a constant map counts as uncorrelated.

    Returns:
        0 where one map is the other scaled and shifted, 1 for unrelated ones, 2 for inverted ones.
    """
    known = target.isfinite()
    standard = []
    for maps in (prediction.float(), target.float()):
        centred = torch.where(known, maps - _mean(maps, known), 0)
        spread = _mean(centred.square(), known).clamp_min(smallest_scale**2)
        standard.append(centred / spread.sqrt())
    return 1 - _mean(standard[0] * standard[1], known)[:, 0, 0]


def _mean(maps: Maps, known: Bool[Tensor, "b h w"]) -> Float[Tensor, "b 1 1"]:
    """Over the pixels that are known; 0 where none is."""
    total = torch.where(known, maps, 0).sum(dim=(1, 2), keepdim=True)
    return total / known.sum(dim=(1, 2), keepdim=True).clamp_min(1)


def squared_error(student: Maps, teacher: Maps) -> PerImage:
    """PPAP's published distillation loss for depth: mean squared difference of the two maps.

    Go et al. (2023, section 4.3), and the code published with it: maps are compared as they come
    out of the network, without alignment, so the unit of the network sets the size of the loss.

    Args:
        student, teacher: two outputs of one network; half precision is compared in single.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    return (student.to(dtype) - teacher.to(dtype)).square().mean(dim=(1, 2))


def metric_loss(prediction: Maps, target: Maps) -> PerImage:
    """Mean absolute difference of log depth (Eigen et al., 2014, without the scale invariance).

    Args:
        prediction, target: metres; what is nearer than a millimetre counts as a millimetre.
    """
    known = target.isfinite()
    logs = [maps.float().clamp_min(_NEAREST_METRES).log() for maps in (prediction, target)]
    apart = torch.where(known, logs[0] - logs[1].nan_to_num(), 0).abs()
    return _mean(apart, known)[:, 0, 0]


def aligned(prediction: Maps, target: Maps) -> Maps:
    """``prediction`` scaled and shifted to ``target`` by least squares (MiDaS, eq. 4)."""
    known, d, t = target.isfinite(), prediction.double(), target.double()
    centred_d, centre_t = d - _mean(d, known), _mean(t, known)
    variance = _mean(centred_d.square(), known)
    covariance = _mean(centred_d * (t - centre_t), known)
    return covariance / variance.clamp_min(1e-12) * centred_d + centre_t


def relative_measures(prediction: Maps, target: Maps) -> dict[str, list[float]]:
    """Absolute relative error and delta < 1.25 of depth, after alignment of inverse depth.

    The protocol of MiDaS, section 6: align inverse depth, take the reciprocal, measure depth.
    NaN for a target that is nowhere positive.
    """
    target = target.double()
    floor = target.nan_to_num(0.0).amax(dim=(1, 2), keepdim=True) / FARTHEST
    counts = (target > 0) & (target >= floor)
    estimate = torch.maximum(aligned(prediction, target), floor)
    return _depth_measures(target / estimate, counts)


def metric_measures(prediction: Maps, target: Maps) -> dict[str, list[float]]:
    """Absolute relative error and delta < 1.25 of depth in metres."""
    target = target.double()
    ratio = prediction.double().clamp_min(_NEAREST_METRES) / target.clamp_min(_NEAREST_METRES)
    return _depth_measures(ratio, target > 0)


def _depth_measures(ratio: Tensor, counts: Tensor) -> dict[str, list[float]]:
    """From the ratio of estimated to true depth [b, h, w], over the pixels that count."""
    absolute, delta = [], []
    for values, mask in zip(ratio, counts, strict=True):
        counted = values[mask]
        absolute.append((counted - 1).abs().mean().item() if len(counted) else math.nan)
        near = torch.maximum(counted, 1 / counted) < 1.25
        delta.append(near.double().mean().item() if len(counted) else math.nan)
    return {"abs-rel": absolute, "delta<1.25": delta}


def resized(maps: Maps, size: torch.Size | tuple[int, int]) -> Float[Tensor, "b height width"]:
    """``maps`` at another (height, width), bilinear with antialiasing; NaN where most was NaN.

    Where little is known everywhere, as of depth from a laser, less will do: :func:`least_known`.
    """
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    known = maps.isfinite()
    both = torch.stack([torch.where(known, maps, 0), known.to(maps.dtype)], dim=1)
    fitted, weight = F.interpolate(both, tuple(size), mode="bilinear", antialias=True).unbind(1)
    least = known.flatten(1).double().mean(dim=1).tolist()
    enough = weight.new_tensor([least_known(share) for share in least])[:, None, None]
    return torch.where(weight >= enough, fitted / weight.maximum(enough), torch.nan)


def least_known(share: float) -> float:
    """The part of a resized pixel that has to be known for it to count: half of it, or of what is
    known of the whole map if that is less than half."""
    return 0.5 if share >= 0.5 else max(share / 2, 1e-6)
