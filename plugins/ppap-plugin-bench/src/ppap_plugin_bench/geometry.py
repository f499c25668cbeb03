"""Judges that see geometry: which solids a picture of the built-in world shows, and how good.

A class judge takes a soft lump of two colours for what it is meant to be, and so does a distance in
its features. Here a picture is taken apart: the segment judge says where solids are, hues cut them
into regions, and touching regions are joined to one solid where their union looks more like a
rendered solid than they do. What comes out can be compared with renders, solid by solid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import combinations, permutations

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from ppap_host.files.images import to_unit
from ppap_host.shapes.judges import Judges
from ppap_host.shapes.renderer import render
from ppap_host.shapes.scenes import (
    COLORS,
    HUES,
    MAX_SOLIDS,
    SEGMENTS,
    SHAPES,
    Scenes,
    sample_scenes,
)
from ppap_plugin_bench.evaluation import Measure, bootstrap_measure

SILHOUETTE_SEED, SILHOUETTE_SCENES = 1_000_060, 3000
"""The scenes whose solids are the models that solids in pictures are compared with."""

MIN_PIXELS = 20
"""A region of fewer is no solid: the smallest ones of renders have about 25."""

HUE_TOLERANCE = 25.0
"""Degrees of hue around a colour's own. Of the pixels of rendered solids 0.5 % are farther than
18."""

MIN_CHROMA = 0.08
"""Largest less smallest of R, G and B, in [0, 1], from which on a pixel has a hue."""

PURE = 0.95
"""Share of a solid's pixels in its dominant hue from which on it counts as of one colour."""

WELL_SHAPED = 0.94
"""Fit from which on a solid counts as well shaped: four of five in renders."""

STRAIGHT = 0.5
"""How far from the straight line, in pixels, the room's edge may lie."""

SIZES = {0: (0.13, 0.6), 1: (0.0, 0.3)}
"""Area of the second solid over that of the first that its size word allows (0: none, 1: small).
All pairs of renders lie within, as far as neither hides the other."""

_WALL, _FLOOR = SEGMENTS.index("wall"), SEGMENTS.index("floor")
_FIRST_SOLID = len(SEGMENTS) - len(SHAPES)
_NEIGHBOURS = np.ones((3, 3), dtype=bool)
_NO_COLOR = -1

Mask = NDArray[np.bool_]


# Silhouettes

_GRID, _AREA = 32, 0.28  # side of a normalised silhouette, and the share of it that is filled


def normalised(masks: Bool[Tensor, "n h w"]) -> Bool[Tensor, "n 32 32"]:
    """Silhouettes moved to the middle and scaled to one area; none may be empty."""
    x = masks.float()
    rows, columns = (torch.arange(side, dtype=torch.float32) for side in x.shape[1:])
    area = x.sum(dim=(1, 2))
    middle = [(x.sum(dim=d) * at).sum(dim=1) / area for d, at in ((2, rows), (1, columns))]
    # Pixels of the mask for one of the grid.
    step = (area / (_AREA * _GRID**2)).sqrt()
    offsets = (torch.arange(_GRID) - (_GRID - 1) / 2) * step[:, None]
    y, x_at = (
        (2 * (centre[:, None] + offsets) + 1) / side - 1
        for centre, side in zip(middle, x.shape[1:], strict=True)
    )
    grid = torch.stack(
        [x_at[:, None, :].expand(-1, _GRID, -1), y[:, :, None].expand(-1, -1, _GRID)], dim=-1
    )
    sampled = torch.nn.functional.grid_sample(x[:, None], grid, align_corners=False)
    return sampled[:, 0] >= 0.5


_SOLID_FIELDS = (
    "shape", "color", "size_word", "position", "radius", "height", "yaw", "albedo", "roughness",
    "metalness",
)  # fmt: skip


def alone(scenes: Scenes, which: int) -> Scenes:
    """Of the scenes that have a solid number ``which``, the same with no other solid."""
    have = scenes[(scenes.count > which).nonzero()[:, 0]]
    order = [which, *(j for j in range(MAX_SOLIDS) if j != which)]
    fields = {name: getattr(have, name)[:, order] for name in _SOLID_FIELDS}
    return replace(have, count=torch.ones_like(have.count), **fields)


class Silhouettes:
    """Outlines of rendered solids, each whole and alone, by shape."""

    def __init__(self, seed: int = SILHOUETTE_SEED, scenes: int = SILHOUETTE_SCENES) -> None:
        drawn = sample_scenes(seed, 0, scenes)
        found: list[list[Tensor]] = [[] for _ in SHAPES]
        for which in range(MAX_SOLIDS):
            single = alone(drawn, which)
            masks = render(single, supersample=1).segmentation >= _FIRST_SOLID
            seen = masks.sum(dim=(1, 2)) >= MIN_PIXELS
            for shape, models in enumerate(found):
                models.append(normalised(masks[seen & (single.shape[:, 0] == shape)]))
        self._models = [torch.cat(models).flatten(1).float() for models in found]

    def fits(self, masks: Bool[Tensor, "n h w"]) -> Float[Tensor, "n 4"]:
        """Intersection over union of each mask with the nearest silhouette of each shape.

        Both are moved to the middle and scaled to one area first; size is not compared.
        """
        x = normalised(masks).flatten(1).float()
        area = x.sum(dim=1, keepdim=True)
        best = []
        for models in self._models:
            both = x @ models.T
            best.append((both / (area + models.sum(dim=1) - both)).amax(dim=1))
        return torch.stack(best, dim=1)


@cache
def silhouettes() -> Silhouettes:
    """Those that pictures are compared with; made once."""
    return Silhouettes()


# Pictures


@dataclass(frozen=True)
class Solid:
    """A solid that was found in a picture.

    Attributes:
        mask: bool [h, w], its pixels.
        shape: index into ``SHAPES``.
        color: index into ``COLORS``, its dominant hue; -1 if it has none.
        purity: share of its pixels in its dominant hue.
        fit: intersection over union with the nearest rendered solid of its shape.
    """

    mask: Mask
    shape: int
    color: int
    purity: float
    fit: float

    @property
    def area(self) -> int:
        """In pixels."""
        return int(self.mask.sum())


@dataclass(frozen=True)
class Reading:
    """What was read in a set of n pictures.

    Attributes:
        solids: of each picture.
        straightness: share of the columns where wall meets floor in which the edge between them
            lies within :data:`STRAIGHT` of the best straight line; NaN where too little of it is
            seen. Float [n].
        power: of each picture at the Nyquist frequency and at the one below, [n, 2, 2], vertical
            frequencies first.
    """

    solids: Sequence[Sequence[Solid]]
    straightness: Tensor
    power: Tensor

    def __len__(self) -> int:
        return len(self.solids)

    def __getitem__(self, rows: Tensor) -> Reading:
        """Of the pictures with these indices."""
        solids = [self.solids[k] for k in rows.tolist()]
        return Reading(solids, self.straightness[rows], self.power[rows])


def color_indices(pixels: UInt8[Tensor, "n 3 h w"]) -> NDArray[np.int64]:
    """Each pixel's colour as an index into ``COLORS``, -1 where it has none, [n, h, w]."""
    r, g, b = (pixels.float() / 255).unbind(dim=1)
    most = torch.stack([r, g, b]).amax(dim=0)
    chroma = most - torch.stack([r, g, b]).amin(dim=0)
    step = chroma.clamp_min(1e-6)
    hue = torch.where(
        most == r,
        (g - b) / step,
        torch.where(most == g, (b - r) / step + 2, (r - g) / step + 4),
    )
    off = (60 * hue[:, None] - torch.tensor(HUES).view(1, -1, 1, 1) + 180) % 360 - 180
    nearest = off.abs().min(dim=1)
    grey = (chroma < MIN_CHROMA) | (nearest.values > HUE_TOLERANCE)
    return nearest.indices.masked_fill(grey, _NO_COLOR).numpy()


def read(pixels: UInt8[Tensor, "n 3 64 64"], judges: Judges) -> Reading:
    """Takes pictures apart."""
    models = silhouettes()
    solids, straight = [], []
    for part in pixels.split(64):
        x = to_unit(part)
        # Mirrored as well: two opinions.
        both = (judges.segment(x), judges.segment(x.flip(-1)).flip(-1))
        logs = torch.stack([scores.log_softmax(dim=1) for scores in both]).mean(dim=0).cpu()
        colors = color_indices(part)
        for scores, hues in zip(logs, colors, strict=True):
            solids.append(_solids(scores, hues, models))
            straight.append(_straightness(scores.numpy()))
    return Reading(solids, torch.tensor(straight, dtype=torch.float64), _power(pixels))


def _solids(scores: Tensor, hues: NDArray[np.int64], models: Silhouettes) -> list[Solid]:
    """The solids of a picture.

    Args:
        scores: log probabilities of ``SEGMENTS``, [6, h, w].
        hues: as :func:`color_indices` gives them, [h, w].
    """
    there: Mask = (scores.argmax(dim=0) >= _FIRST_SOLID).numpy()
    regions: list[Mask] = []
    for color in range(_NO_COLOR, len(COLORS)):
        labels, _ = ndimage.label(there & (hues == color), _NEIGHBOURS)
        areas = np.bincount(labels.ravel())
        regions += [labels == k for k in range(1, len(areas)) if areas[k] >= MIN_PIXELS]
    if not regions:
        return []
    regions = _joined(regions, models)
    masks = torch.from_numpy(np.stack(regions))
    fits = models.fits(masks)
    found = []
    for mask, fit in zip(regions, fits, strict=True):
        logs = scores[_FIRST_SOLID:, torch.from_numpy(mask)]
        # The silhouette names the shape, and between close ones the judge's pixels do. The factor
        # and the floor name 97 % of rendered solids as they are, the judge alone 94 %.
        votes = (logs.exp().mean(dim=1) + 0.02).log()
        shape = int((fit + 0.03 * votes).argmax())
        counts = np.bincount(hues[mask & there] + 1, minlength=len(COLORS) + 1)
        most = int(counts[1:].argmax()) if counts[1:].any() else _NO_COLOR
        purity = float(counts[most + 1] / counts.sum()) if most != _NO_COLOR else 0.0
        found.append(Solid(mask, shape, most, purity, float(fit[shape])))
    return found


def _joined(regions: list[Mask], models: Silhouettes) -> list[Mask]:
    """Regions, touching ones joined as long as that makes them fit better.

    What is compared is the mean fit by area: two solids, of which one hides a part of the other,
    fit better apart; the halves of a solid of two colours fit better together.
    """
    regions = [ndimage.binary_fill_holes(mask) for mask in regions]

    def fit(masks: Sequence[Mask]) -> list[float]:
        return models.fits(torch.from_numpy(np.stack(masks))).amax(dim=1).tolist()

    fits = fit(regions)
    while True:
        # A seam of mixed colours may lie between the halves.
        near = [ndimage.binary_dilation(mask, _NEIGHBOURS, iterations=2) for mask in regions]
        pairs = [
            (i, j)
            for i, j in combinations(range(len(regions)), 2)
            if (near[i] & regions[j]).sum() >= 6
        ]
        if not pairs:
            return regions
        unions = [_union(regions[i], regions[j]) for i, j in pairs]
        gains = []
        for (i, j), together in zip(pairs, fit(unions), strict=True):
            a, b = regions[i].sum(), regions[j].sum()
            gains.append((together * (a + b) - fits[i] * a - fits[j] * b, together))
        best = max(range(len(pairs)), key=lambda k: gains[k][0])
        if gains[best][0] <= 0:
            return regions
        i, j = pairs[best]
        regions = [m for k, m in enumerate(regions) if k not in (i, j)] + [unions[best]]
        fits = [f for k, f in enumerate(fits) if k not in (i, j)] + [gains[best][1]]


def _union(a: Mask, b: Mask) -> Mask:
    """Both, with the seam between them closed."""
    padded = np.pad(a | b, 2)
    closed = ndimage.binary_closing(padded, _NEIGHBOURS)[2:-2, 2:-2]
    return np.asarray(ndimage.binary_fill_holes(closed), dtype=bool)


def _straightness(scores: NDArray[np.float32]) -> float:
    """As :attr:`Reading.straightness`, of the log probabilities of ``SEGMENTS``, [6, h, w]."""
    segments = scores.argmax(axis=0)
    steps = (segments[:-1] == _WALL) & (segments[1:] == _FLOOR)
    columns = np.flatnonzero(steps.sum(axis=0) == 1)
    if len(columns) < scores.shape[2] // 4:
        return math.nan
    rows = steps[:, columns].argmax(axis=0)
    # Between the two pixels, where floor is as likely as wall.
    lead = scores[_FLOOR] - scores[_WALL]
    above, below = lead[rows, columns], lead[rows + 1, columns]
    heights = rows + above / (above - below)
    first, last = np.triu_indices(len(columns), 1)
    slopes = (heights[last] - heights[first]) / (columns[last] - columns[first])
    lines = heights[first, None] + slopes[:, None] * (columns - columns[first, None])
    return float((np.abs(lines - heights) <= STRAIGHT).mean(axis=1).max())


def _power(pixels: Tensor) -> Tensor:
    """As :attr:`Reading.power`: the mean over columns, or rows, of the mean of R, G and B."""
    x = pixels.double().mean(dim=1) / 255
    return torch.stack(
        [
            torch.fft.rfft(x, dim=d).abs().square().movedim(d, -1)[..., [-1, -2]].mean(dim=1)
            for d in (1, 2)
        ],
        dim=1,
    )


# Scores

SCORES = {
    "purity": "share of a solid's pixels in its dominant hue",
    "pure": f"share of solids with at least {PURE:.0%} of their pixels in one hue",
    "shape_fit": "IoU of a solid with the nearest rendered solid of its shape",
    "well_shaped": f"share of solids whose fit is at least {WELL_SHAPED}",
    "solids": "number of solids: 1 less the total variation from renders",
    "straightness": f"share of the room's edge within {STRAIGHT} pixels of a straight line",
    "no_grid": "1, or what Nyquist's frequency has too much of, inverted",
}
"""What :func:`scores` tells, each in [0, 1] and the higher the better."""


def total_variation(a: Tensor, b: Tensor) -> float:
    """Of the distributions of two sets of small whole numbers: half the sum of differences."""
    length = int(max(a.max(), b.max())) + 1
    shares = [torch.bincount(x, minlength=length).double() / len(x) for x in (a, b)]
    return float((shares[0] - shares[1]).abs().sum() / 2)


def nyquist_ratio(reading: Reading) -> dict[str, Measure]:
    """Power at the Nyquist frequency over its neighbours', "vertical" and "horizontal".

    Both its neighbours are one, since frequencies above it are those below, mirrored. What has no
    grid of 2 x 2 pixels has about 1.
    """

    def ratio(which: int) -> Callable[[Tensor], float]:
        def of(rows: Tensor) -> float:
            at, beside = reading.power[rows, which].mean(dim=0).tolist()
            return float(at / beside) if beside else math.nan

        return of

    return {
        name: bootstrap_measure(ratio(k), len(reading))
        for k, name in enumerate(("vertical", "horizontal"))
    }


def scores(reading: Reading, reference: Reading) -> dict[str, Measure]:
    """:data:`SCORES` of pictures, with standard errors from resampling pictures.

    Args:
        reference: of renders, whose numbers of solids are compared with.

    Returns:
        NaN for what no picture shows.
    """
    counts = torch.tensor([len(found) for found in reading.solids])
    wanted = torch.tensor([len(found) for found in reference.solids])
    each: dict[str, Callable[[Solid], float]] = {
        "purity": lambda s: s.purity,
        "pure": lambda s: float(s.purity >= PURE),
        "shape_fit": lambda s: s.fit,
        "well_shaped": lambda s: float(s.fit >= WELL_SHAPED),
    }
    found = {}
    for name, value in each.items():
        sums = torch.tensor([sum(map(value, of)) for of in reading.solids], dtype=torch.float64)
        found[name] = bootstrap_measure(partial(_per_solid, sums, counts), len(reading))
    found["solids"] = bootstrap_measure(
        lambda rows: 1 - total_variation(counts[rows], wanted), len(reading)
    )
    seen = reading.straightness[~reading.straightness.isnan()]
    found["straightness"] = (
        bootstrap_measure(lambda rows: float(seen[rows].mean()), len(seen))
        if len(seen)
        else Measure(math.nan)
    )
    worst = max(nyquist_ratio(reading).values(), key=lambda m: m.value)
    found["no_grid"] = Measure(
        1 / max(1.0, worst.value),
        None if worst.error is None else worst.error / max(1.0, worst.value) ** 2,
    )
    return found


def _share(a: Tensor, b: Tensor) -> float:
    return float(a / b) if b else math.nan


def _per_solid(sums: Tensor, counts: Tensor, rows: Tensor) -> float:
    return _share(sums[rows].sum(), counts[rows].sum())


# Prompts of two objects


def two_objects(reading: Reading, scenes: Scenes) -> dict[str, Tensor]:
    """Which pictures show the two solids that their scenes have.

    Args:
        scenes: n scenes of two solids; the pictures were asked for by their captions.

    Returns:
        Truth values [n]. ``right``: two different solids have the shapes, the colours and the
        relative size (:data:`SIZES`) that are wanted. ``shapes`` and ``colors``: two different
        solids have these. ``named``: both at once. ``just_two``: as ``right``, and there is nothing
        else.
    """
    rows: dict[str, list[bool]] = {
        name: [] for name in ("right", "just_two", "named", "shapes", "colors")
    }
    for solids, shape, color, word in zip(
        reading.solids,
        scenes.shape.tolist(),
        scenes.color.tolist(),
        scenes.size_word.tolist(),
        strict=True,
    ):
        low, high = SIZES[word[1]]
        pairs = [
            (
                [s.shape for s in pair] == shape[:2],
                [s.color for s in pair] == color[:2],
                low <= pair[1].area / pair[0].area <= high,
            )
            for pair in permutations(solids, 2)
        ]
        right = any(all(pair) for pair in pairs)
        rows["right"].append(right)
        rows["just_two"].append(right and len(solids) == 2)
        rows["named"].append(any(a and b for a, b, _ in pairs))
        rows["shapes"].append(any(a for a, _, _ in pairs))
        rows["colors"].append(any(b for _, b, _ in pairs))
    return {name: torch.tensor(values) for name, values in rows.items()}
