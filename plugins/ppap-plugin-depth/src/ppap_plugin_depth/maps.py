"""Depth maps as people have them: which way, in which unit, and with which holes.

What a file means cannot be seen from its numbers alone. A head says it (``depth,unit=mm:room.png``,
``disparity:``, ``inverse:``); without one a map counts as depth, and that is doubted aloud.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor

from ppap_host.files.decoding import Decoded
from ppap_host.files.errors import TargetError
from ppap_host.guides.targets import Given, Reading, fit_numbers, how_fitted, is_grey, origin
from ppap_plugin_depth.losses import least_known

KINDS = ("depth", "disparity", "inverse")
"""What a head can call a map."""

UNITS = {
    "m": 1.0, "dm": 0.1, "cm": 0.01, "mm": 0.001, "km": 1000.0, "ft": 0.3048, "in": 0.0254,
    "kitti": 1 / 256, "tum": 1 / 5000,
}  # fmt: skip
"""Metres of one stored unit. KITTI's PNGs hold 256 a metre, those of TUM's RGB-D set 5000."""

FARTHEST_MEDIAN = 100.0
"""Metres. A map whose median is farther away is one of another unit, or needs to be said."""

_NEVER = 1e9
"""From here on renderers mean "nothing there"."""

_HALF = 65504.0
"""Largest number of 16-bit floats, what infinity becomes in some EXR files."""


_SAMPLE = 1024
"""Sides of the middle of a picture that is looked at to see what it may be."""


@dataclass(frozen=True, eq=False)
class DepthMap(Reading):
    """A map as a network's output is compared with it.

    Attributes:
        value: metres for metric networks, else inverse depth in any unit, larger is nearer; NaN
            where nothing is known.
    """

    value: Float[Tensor, "1 h w"]


def holds_numbers(decoded: Decoded) -> bool:
    """Whether a target of no kind holds one number a pixel with more than a picture's 8 bits.

    So does an array that is no picture: reading it as a map says what is wrong with it.
    """
    image, values = decoded.image, decoded.pixels
    if isinstance(values, np.ndarray):
        picture = values.ndim == 3 and {values.shape[0], values.shape[2]} & {3, 4}
        return not picture or decoded.numbers() is not None
    return image is not None and (image.mode == "F" or image.mode.startswith("I"))


def read_depth(given: Given, size: tuple[int, int], metric: bool) -> DepthMap:
    """Reads a map of depth, disparity or inverse depth; no kind means depth.

    Zero, NaN, infinity, what is transparent, and in 16-bit depth 65535 are holes. In maps that are
    stretched to all of their 8 or 16 bits, as those of MiDaS and ControlNet, zero is a value: the
    farthest of disparity and inverse depth, the nearest of depth.

    Settings: ``unit``, one of :data:`UNITS` or a number of metres (of disparity: pixels), which
    only metric networks need; ``focal`` (pixels of the map), ``baseline`` (metres) and ``doffs``
    (pixels), which turn disparity into metres; ``holes``, another number that means a hole;
    ``key``.

    Args:
        size: (height, width); the map is cropped to this aspect ratio and resized.
        metric: whether metres are wanted.

    Raises:
        TargetError: it cannot be read, has colours, is a hole everywhere, or does not say enough.
    """
    common = ("unit", "holes", "key")
    own = (*common, "focal", "baseline", "doffs") if given.kind == "disparity" else common
    given.expect(KINDS, own)
    # Before the file, and also where they are not needed: what makes no sense.
    _unit(given, 1.0)
    for name in ("holes", "doffs", "focal", "baseline"):
        number = given.number(name)
        if number is not None and number <= 0 and name in ("focal", "baseline"):
            raise given.bad_setting(name, "It is above zero.")
    values, clear, decoded = given.numbers()
    stored = values.astype(np.float64)
    full = _full_range(decoded, values)
    kind = given.kind or "depth"
    stretched = _is_stretched(decoded, stored, full)
    if kind != "inverse" and "unit" in given.settings:
        stretched = False  # what has a unit was not stretched
    doubts = [] if given.kind else _check_guess(given, decoded, stretched)
    doubts += _odd_values(given, decoded, stored, kind, stretched)
    half = values.dtype == np.float16
    known = _known(given, decoded, stored, clear, kind, full, stretched, half)
    if not known.any():
        raise TargetError(
            f"{decoded.name} holds nothing to compare: all of it is holes (0, negative, NaN or "
            "infinity).",
            remedy="Check how it was written; depth is above zero, and a camera's z that is below "
            "zero needs its sign changed.",
        )
    if metric:
        numbers, what, unsure = _metres(given, decoded, stored, known, kind, stretched, values)
        doubts = unsure or doubts  # the unit is said with the kind
        known &= np.isfinite(numbers)
        seen = numbers[known]
        if seen.size and seen.max() > 10 * FARTHEST_MEDIAN and seen.max() > 100 * np.median(seen):
            most = f"{stored[known].max():g}"
            doubts.append(
                f"{decoded.name} holds numbers up to {most}, {seen.max():.3g} m. If they mark what "
                f"is not known, say {given.as_(f'{kind},holes={most}')}."
            )
        middle = float(np.median(seen)) if seen.size else 1.0
        if not 0.05 <= middle <= FARTHEST_MEDIAN:
            doubts.append(f"{decoded.name} is {middle:.3g} m away as it was read (its median).")
        span = f"{seen.min():.3g} to {seen.max():.3g} m" if seen.size else ""
    else:
        numbers, what = _nearness(given, stored, known, kind, stretched or _is_8_bit(values))
        seen = stored[known]
        span = f"stored {seen.min():.6g} to {seen.max():.6g}"
    value = _fitted(numbers, known, size)
    if not np.isfinite(value).any():
        raise TargetError(
            f"{decoded.name} knows too few pixels: none is left at {size[1]} x {size[0]}.",
            remedy="Fill its holes first, or crop it to where it is known.",
        )
    words = [f"{what} from {origin(given, decoded)}", span, *decoded.notes]
    holes = 1 - float(known.mean())
    if holes:
        percent = f"{100 * holes:.0f}" if holes >= 0.005 else f"{100 * holes:.2g}"
        words.append(f"{percent} % of it holes, which are not compared")
    compared = value[np.isfinite(value)]
    if np.ptp(compared) <= 1e-5 * np.abs(compared).max():
        doubts.append(
            f"{decoded.name} is the same everywhere that it is compared, so that it shows no shape."
        )
    if holes > 0.5:
        doubts.append(
            f"{100 * holes:.0f} % of {decoded.name[0].lower()}{decoded.name[1:]} counts as holes "
            "(0, NaN or infinity) and is not compared."
        )
    understood = "; ".join([", ".join(words), how_fitted(decoded.original, size)])
    return DepthMap(given, understood, given.files, tuple(doubts), torch.from_numpy(value)[None])


def _is_8_bit(values: NDArray[Any]) -> bool:
    return values.dtype.kind in "bui" and values.dtype.itemsize == 1


def _full_range(decoded: Decoded, values: NDArray[Any]) -> float | None:
    """The largest number that a type of whole numbers with 8 or 16 bits holds, and 1 of floats,
    which are stretched to [0, 1]; None of others."""
    if values.dtype.kind == "f":
        return 1.0
    if values.dtype.kind not in "ui" or (values.dtype.itemsize > 2 and decoded.image is None):
        return None
    return float(round((255 if values.dtype.itemsize == 1 else 65535) / decoded.step))


def _is_stretched(decoded: Decoded, stored: NDArray[np.float64], full: float | None) -> bool:
    """Whether numbers go from one end of their range to the other, as pictures of depth do."""
    if full is None or not np.isfinite(stored).all():
        return False
    low, high = float(stored.min()), float(stored.max())
    if full == 1:  # the mean of several estimates, as of Marigold, ends a little before
        return 0 <= low <= 0.02 and 0.98 <= high <= 1
    return low <= decoded.loss and high >= full - decoded.loss


def _check_guess(given: Given, decoded: Decoded, stretched: bool) -> list[str]:
    """What is doubted of a map of no kind; an error where nothing speaks for depth."""
    ways = (
        f"{given.as_('depth')} if larger is farther, {given.as_('disparity')} or "
        f"{given.as_('inverse')} if larger is nearer"
    )
    pfm = decoded.format == "PNM"
    if stretched or (pfm and decoded.image is not None and decoded.image.mode == "F"):
        why = "is stretched to its full range" if stretched else "is a PFM"
        raise TargetError(
            f"{decoded.name} {why}, and such maps hold depth as often as its inverse.",
            remedy=f"Say which: {ways}.",
        )
    return [
        f"{decoded.name} was taken for depth, larger is farther, which its numbers do not show. "
        f"Say {ways}."
    ]


def _odd_values(
    given: Given, decoded: Decoded, stored: NDArray[np.float64], kind: str, stretched: bool
) -> list[str]:
    """What is doubted of numbers below zero in depth, and of zero in inverse depth."""
    negative = np.unique(stored[stored < 0])
    if kind == "depth" and len(negative) > 1:  # one of them marks holes
        share = 100 * float((stored < 0).mean())
        return [
            f"{share:.2g} % of {decoded.name[0].lower()}{decoded.name[1:]} is below zero, which no "
            f"depth is; it counts as holes. If it is inverse depth, say {given.as_('inverse')}."
        ]
    zeros = float((stored == 0).mean())
    if kind == "inverse" and zeros > 0.01 and not stretched and not negative.size:
        return [
            f"{100 * zeros:.2g} % of {decoded.name[0].lower()}{decoded.name[1:]} is zero and was "
            f"taken for infinitely far. If nothing is known there, say "
            f"{given.as_('inverse,holes=0')}."
        ]
    return []


def _known(
    given: Given,
    decoded: Decoded,
    stored: NDArray[np.float64],
    clear: NDArray[np.bool_] | None,
    kind: str,
    full: float | None,
    stretched: bool,
    half: bool,
) -> NDArray[np.bool_]:
    known: NDArray[np.bool_] = np.isfinite(stored) & (np.abs(stored) < _NEVER)
    if clear is not None:
        known &= ~clear
    for marked in (given.number("holes"), decoded.nodata):
        if marked is not None:
            known &= ~np.isclose(stored, marked, rtol=1e-6, atol=0)  # as floats of 32 bits hold it
    if kind == "inverse" or stretched:
        return known
    known &= stored > 0
    if kind == "depth" and full == 65535:
        known &= stored < full
    if kind == "depth" and (decoded.format == "EXR" or half):
        known &= stored < _HALF
    return known


def _nearness(
    given: Given,
    stored: NDArray[np.float64],
    known: NDArray[np.bool_],
    kind: str,
    picture: bool,
) -> tuple[NDArray[np.float64], str]:
    """Inverse depth in any unit, its mean size one, and in words what it was."""
    if kind == "depth" and picture and "unit" not in given.settings:
        # Its zero is no distance, so its reciprocal would say nothing.
        near = stored[known].max() - stored
        return near, "depth (a picture of it, larger is farther)"
    with np.errstate(divide="ignore", invalid="ignore"):
        near = 1 / stored if kind == "depth" else stored + (given.number("doffs") or 0.0)
    size = np.abs(near[known]).mean()
    what = {
        "depth": "depth (larger is farther)",
        "disparity": "disparity (larger is nearer)",
        "inverse": "inverse depth (larger is nearer)",
    }[kind]
    return near / (size if size > 0 else 1.0), what


def _metres(
    given: Given,
    decoded: Decoded,
    stored: NDArray[np.float64],
    known: NDArray[np.bool_],
    kind: str,
    stretched: bool,
    values: NDArray[Any],
) -> tuple[NDArray[np.float64], str, list[str]]:
    """Metres, in words what they were made from, and doubts."""
    if kind == "disparity":
        focal, baseline = given.number("focal"), given.number("baseline")
        if not focal or not baseline:
            raise TargetError(
                f"{decoded.name} holds disparities, and this network compares metres.",
                remedy="Give what turns one into the other: disparity,focal=PIXELS,"
                "baseline=METRES:FILE; or use a network of relative depth.",
            )
        pixels = stored * _unit(given, 1.0) + (given.number("doffs") or 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            metres = np.where(pixels > 0, focal * baseline / pixels, np.nan)
        far = float(np.nanmedian(np.where(known, metres, np.nan)))
        if far > FARTHEST_MEDIAN:
            raise TargetError(
                f"{decoded.name} is {far:.4g} m away with this camera (its median).",
                remedy="The baseline is in metres, and Middlebury's files have millimetres; the "
                "focal length is in pixels of the map.",
            )
        return metres, f"disparity (focal length {focal:g}, baseline {baseline:g} m)", []
    if kind == "inverse":
        if "unit" not in given.settings:
            raise TargetError(
                f"{decoded.name} holds inverse depth, whose unit only metric networks need.",
                remedy="If it is 1 / metres, give inverse,unit=m:FILE; if it comes from MiDaS and "
                "its like, it has no unit: use a network of relative depth.",
            )
        with np.errstate(divide="ignore", invalid="ignore"):
            metres = np.where(stored > 0, _unit(given, 1.0) / stored, np.nan)
        return metres, f"inverse depth in 1 / ({_called(given.settings['unit'])})", []
    median = float(np.median(stored[known]))
    if "unit" in given.settings:
        metres = stored * _unit(given, 1.0)
        return metres, f"depth in {_called(given.settings['unit'])}", []
    whole = bool((stored[known] == np.round(stored[known])).all())
    if median <= FARTHEST_MEDIAN and values.dtype.kind == "f" and not stretched:
        near = float(stored[known].max()) <= 1
        doubt = (
            f"{decoded.name} was taken for metres, and nothing in it is farther than one. If it is "
            f"brought to [0, 1], it has no unit; if it is metres, say {given.as_('depth,unit=m')}."
        )
        return stored, "depth in metres", [doubt] if near else []
    if (
        whole
        and not stretched
        and not _is_8_bit(values)
        and 0.05 <= median / 1000 <= FARTHEST_MEDIAN
    ):
        doubt = (
            f"{decoded.name} was taken for millimetres, as most whole numbers of depth are "
            f"(the median is then {median / 1000:.3g} m). Say the unit: "
            f"{given.as_('depth,unit=mm')}; KITTI's is unit=kitti, TUM's unit=tum."
        )
        return stored / 1000, "depth in millimetres", [doubt]
    raise TargetError(
        f"{decoded.name} does not say its unit, and this network compares metres: its median is "
        f"{median:g}{', and it is stretched to its full range' if stretched else ''}.",
        remedy=f"Say it: {given.as_('depth,unit=mm')} or {given.as_('depth,unit=m')}; known are "
        f"{', '.join(UNITS)} and a number of metres.",
    )


def _called(unit: str) -> str:
    if unit in ("kitti", "tum"):
        return f"1/{1 / UNITS[unit]:.0f} m ({unit.upper()})"
    return unit if unit in UNITS else f"{unit} m"


def _unit(given: Given, default: float) -> float:
    """How many metres, or pixels of disparity, one stored unit is."""
    name = given.settings.get("unit")
    if name is None:
        return default
    if name in UNITS:
        return UNITS[name]
    try:
        value = float(name)
    except ValueError:
        value = float("nan")
    if not (np.isfinite(value) and value > 0):
        raise given.bad_setting("unit", f"Give {', '.join(UNITS)}, or a number of metres.")
    return value


def _fitted(
    numbers: NDArray[np.float64], known: NDArray[np.bool_], size: tuple[int, int]
) -> NDArray[np.float32]:
    """Cropped and resized, NaN where a pixel is a hole: see :func:`least_known`."""
    filled = np.where(known, numbers, 0).astype(np.float32)
    if known.all():
        return fit_numbers(filled, size, Resampling.BILINEAR).copy()
    if filled.shape == size:
        return np.where(known, filled, np.float32(np.nan))
    weight = fit_numbers(known.astype(np.float32), size, Resampling.BILINEAR)
    amount = fit_numbers(filled, size, Resampling.BILINEAR)
    least = least_known(float(known.mean()))
    return np.where(weight >= least, amount / np.maximum(weight, least), np.nan).astype(np.float32)


def picture_doubt(given: Given, decoded: Decoded) -> str:
    """What is doubted of a photograph that may be a picture of depth; "" if it is not like one.

    Raises:
        TargetError: its channels are the bytes of one number, as CARLA packs depth.
    """
    said = (
        f"If it is a map, say {given.as_('disparity')} (near is white) or {given.as_('depth')} "
        f"(far is white); {given.as_('photo')} says that it is none."
    )
    image = decoded.image
    if image is None:
        return ""
    left, top = ((side - min(side, _SAMPLE)) // 2 for side in image.size)
    part = image.crop(
        (left, top, left + min(image.width, _SAMPLE), top + min(image.height, _SAMPLE))
    )
    plain = part.convert("RGBA").convert("RGB")
    rgb = np.asarray(plain)
    if is_grey(plain):
        return (
            f"{given.source} is grey and was taken for a photograph, whose depth the network "
            f"estimates. {said}"
        )
    if decoded.exact and image.mode in ("RGB", "RGBA") and _is_packed(rgb):
        raise TargetError(
            f"{given.source} looks like numbers in several bytes, one in each channel.",
            remedy="Put them together (such as R + 256 G + 65536 B) and save them as .npy; or "
            f"give {given.as_('photo')} if it is a photograph.",
        )
    if (decoded.exact and _is_painted(rgb)) or _follows_a_course(plain):
        return (
            f"{given.source} was taken for a photograph, and has few colours, which follow "
            "each other as in pictures of depth for people. Those cannot be read: give the map "
            f"that it was painted from. {given.as_('photo')} says that it is a photograph."
        )
    return ""


def _is_packed(rgb: NDArray[np.uint8]) -> bool:
    """Whether one channel holds the lower digits of a number whose higher ones are green.

    It jumps nearly everywhere while green is calm, or where green rises or falls by one.
    """
    steps = np.diff(rgb.astype(np.int16), axis=1)
    green = steps[..., 1]
    for low in (steps[..., 0], steps[..., 2]):
        jumps = np.abs(low) > 100
        if jumps.sum() <= max(8, jumps.size // 500):
            continue
        carried = (green == -np.sign(low))[jumps].mean() > 0.8
        if carried or (jumps.mean() > 0.1 and (np.abs(green[jumps]) < 16).mean() > 0.8):
            return True
    return False


def _follows_a_course(picture: Image.Image) -> bool:
    """Whether one number says what colour there is, and not along a straight line.

    So it is in pictures painted by a colour map, also after loss or resizing. The number is the
    brightness; of maps with two arms, such as coolwarm, brightness and the arm; or the hue, of
    which there are many. Within 10 (35 by hue) of 255, summed over the channels, where photographs
    have 12 (36) and more, or colours along a line, as tinted ones.
    """
    small = picture.reduce(2) if min(picture.size) > 1 else picture
    rgb = np.asarray(small).reshape(-1, 3).astype(float)
    light = np.asarray(small.convert("L")).reshape(-1) // 4
    off_the_line = float(np.sqrt(np.linalg.eigvalsh(np.cov(rgb.T, bias=True))[1].clip(0)))
    arms = light + np.uint8(64) * (rgb[:, 0] > rgb[:, 2])
    if (off_the_line >= 16 and _left_open(rgb, light) < 10) or (
        off_the_line >= 40 and _left_open(rgb, arms) < 10
    ):
        return True
    hue, saturation, value = np.asarray(small.convert("HSV")).reshape(-1, 3).T
    vivid = (saturation > 64) & (value > 64)
    if vivid.mean() < 0.6:
        return False
    there = np.bincount(hue[vivid] // 8, minlength=32) > 0.003 * vivid.sum()
    return bool(there.sum() >= 15) and _left_open(rgb[vivid], hue[vivid] // 8) < 35


def _left_open(rgb: NDArray[Any], of: NDArray[np.uint8]) -> float:
    """Mean distance of colours from the mean of all that share a bin."""
    count = np.maximum(np.bincount(of), 1)
    means = np.stack([np.bincount(of, channel) / count for channel in rgb.T], axis=1)
    return float(np.abs(rgb - means[of]).sum(axis=1).mean())


def _is_painted(rgb: NDArray[np.uint8]) -> bool:
    """Whether all colours lie closely along one line, as those of a colour map."""
    colours = np.unique(rgb.reshape(-1, 3), axis=0).astype(np.int16)
    if not 64 <= len(colours) <= 256:
        return False
    apart = np.abs(colours[:, None] - colours[None]).sum(axis=2)
    np.fill_diagonal(apart, 1000)
    return bool(np.median(apart.min(axis=1)) <= 6 and np.ptp(colours, axis=0).sum() > 250)
