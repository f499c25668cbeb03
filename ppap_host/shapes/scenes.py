"""Random scenes of the ``shapes`` world and the captions that describe them.

A scene is a room with a floor (the plane ``z = 0``), a wall (the plane ``y = wall_y``) and one to
three coloured solids standing on the floor.  World coordinates are metres: ``x`` runs to the right
along the wall, ``y`` into the wall, ``z`` up.  The first solid is the *main* solid: it is clearly
the biggest one in the picture, lies fully inside the frame and gives the scene its class label.

Scene ``k`` of seed ``s`` is a function of ``(s, k)`` only, so data sets can be generated in any
order, in any batch size and by any number of workers.
"""

# Long because what a scene may be, and how it is told in words, is one table and its draws.
from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from torch import Tensor

from ppap_host.sampling.streams import derived

__all__ = [
    "CLASS_NAMES",
    "COLORS",
    "HUES",
    "MAX_SOLIDS",
    "SEGMENTS",
    "SHAPES",
    "VOCABULARY",
    "Scenes",
    "caption_variant",
    "sample_scenes",
]

SHAPES: tuple[str, ...] = ("sphere", "cube", "cylinder", "cone")
"""Names of the solids; the position in the tuple is the shape index."""

COLORS: tuple[str, ...] = ("red", "yellow", "green", "cyan", "blue", "purple")
"""Names of the solid colours; the position in the tuple is the colour index."""

HUES: tuple[float, ...] = (0.0, 50.0, 126.0, 182.0, 228.0, 286.0)
"""Nominal hues of the colours in degrees (HSV), a little off the multiples of 60 towards what
people call by these names: a "yellow" of 60 degrees looks lime."""

SEGMENTS: tuple[str, ...] = ("wall", "floor", *SHAPES)
"""Names of the segmentation ids 0..5."""

CLASS_NAMES: tuple[str, ...] = tuple(f"{color} {shape}" for shape in SHAPES for color in COLORS)
"""Names of the 24 classes; ``label = shape_index * 6 + color_index``."""

VOCABULARY: tuple[str, ...] = ("a", "and", ",", "small", "large", *COLORS, *SHAPES)
"""Every word of every caption.  The comma is a token of its own and follows a word directly."""

MAX_SOLIDS = 3
"""Largest number of solids in one scene."""

_SIZE_WORDS = ("", "small", "large")

_SATURATIONS = (0.84, 0.86, 0.74, 0.78, 0.80, 0.66)
_VALUES = (0.86, 0.94, 0.70, 0.82, 0.84, 0.72)
_HUE_JITTER = 6.0

# Muted paints, sRGB.  Chroma stays far below that of every solid.
_WALL_PAINTS = (
    (0.90, 0.85, 0.76),  # cream
    (0.74, 0.82, 0.89),  # sky grey
    (0.75, 0.83, 0.74),  # sage
    (0.91, 0.79, 0.76),  # blush
    (0.80, 0.77, 0.88),  # lavender
    (0.62, 0.70, 0.79),  # dusty blue
    (0.88, 0.80, 0.68),  # sand
    (0.88, 0.88, 0.88),  # white grey
    (0.68, 0.66, 0.65),  # warm grey
    (0.72, 0.84, 0.83),  # mist
    (0.57, 0.65, 0.66),  # sea stone
    (0.80, 0.69, 0.64),  # clay
    (0.91, 0.81, 0.70),  # peach
    (0.60, 0.58, 0.66),  # dusk
)
_FLOOR_PAINTS = (
    (0.83, 0.73, 0.61),  # light oak
    (0.79, 0.78, 0.76),  # concrete
    (0.88, 0.86, 0.83),  # off white
    (0.69, 0.67, 0.67),  # warm grey
    (0.70, 0.76, 0.82),  # cool grey
    (0.85, 0.75, 0.70),  # pale terracotta
    (0.69, 0.76, 0.68),  # moss grey
    (0.78, 0.72, 0.80),  # heather
    (0.63, 0.60, 0.57),  # taupe
    (0.87, 0.81, 0.69),  # straw
    (0.66, 0.76, 0.77),  # pale teal grey
    (0.88, 0.78, 0.77),  # rose
)


@dataclass(frozen=True)
class Scenes:
    """A batch of ``B`` scenes, stored as CPU tensors with a leading batch dimension.

    Lengths are metres, angles radians, reflectances linear (not sRGB) values in [0, 1].  Entries of
    per-solid fields beyond ``count`` are zero and meaningless.
    """

    camera_position: Tensor
    """float32 [B, 3], optical centre."""
    camera_axes: Tensor
    """float32 [B, 3, 3], unit rows: right, up, forward (the view axis)."""
    tan_half_fov: Tensor
    """float32 [B], tangent of half of the (square) field of view."""
    light_position: Tensor
    """float32 [B, 3], centre of the key light."""
    light_color: Tensor
    """float32 [B, 3], linear irradiance of the key light at the main solid."""
    light_reference: Tensor
    """float32 [B], distance at which ``light_color`` holds; it falls off with distance squared."""
    light_radius: Tensor
    """float32 [B], radius of the spherical key light (sets the softness of the shadows)."""
    ambient_color: Tensor
    """float32 [B, 3], linear irradiance of the ambient light."""
    wall_y: Tensor
    """float32 [B], position of the wall plane."""
    wall_albedo: Tensor
    """float32 [B, 3]."""
    floor_albedo: Tensor
    """float32 [B, 3]."""
    floor_roughness: Tensor
    """float32 [B], in (0, 1]."""
    vignette: Tensor
    """float32 [B], relative darkening at the corners of the frame."""
    count: Tensor
    """int64 [B], number of solids, 1..3."""
    shape: Tensor
    """int64 [B, 3], index into ``SHAPES``."""
    color: Tensor
    """int64 [B, 3], index into ``COLORS``."""
    size_word: Tensor
    """int64 [B, 3], 0 (none), 1 (small) or 2 (large)."""
    position: Tensor
    """float32 [B, 3, 2], x and y of the axis of each solid."""
    radius: Tensor
    """float32 [B, 3], radius of sphere, cylinder or cone base; half of the side of a cube."""
    height: Tensor
    """float32 [B, 3]."""
    yaw: Tensor
    """float32 [B, 3], rotation about the vertical."""
    albedo: Tensor
    """float32 [B, 3, 3], colour of each solid."""
    roughness: Tensor
    """float32 [B, 3], in (0, 1]."""
    metalness: Tensor
    """float32 [B, 3], 0 (dielectric) to 1 (metal)."""

    def __len__(self) -> int:
        return int(self.count.shape[0])

    def __getitem__(self, index: int | slice | Sequence[int] | Tensor) -> Scenes:
        """Return a sub-batch; an ``int`` gives a batch of one.

        Raises:
            IndexError: if an integer index is out of range.
        """
        if isinstance(index, int):
            size = len(self)
            if not -size <= index < size:
                raise IndexError(f"scene {index} of a batch of {size}")
            index = slice(index % size, index % size + 1)
        return Scenes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def __iter__(self) -> Iterator[Scenes]:
        return (self[i] for i in range(len(self)))

    @property
    def labels(self) -> Tensor:
        """Class of the main solid, int64 [B] in 0..23 (see ``CLASS_NAMES``)."""
        return self.shape[:, 0] * len(COLORS) + self.color[:, 0]

    @property
    def solid_mask(self) -> Tensor:
        """bool [B, 3], true where a solid exists."""
        return torch.arange(MAX_SOLIDS) < self.count[:, None]

    def captions(self) -> list[str]:
        """Full captions, such as ``"a red cube, a small blue sphere and a green cone"``."""
        return [
            _join(
                [
                    _phrase(shape[j], color[j], word[j], with_color=True, with_size=True)
                    for j in range(count)
                ]
            )
            for count, shape, color, word in zip(
                self.count.tolist(),
                self.shape.tolist(),
                self.color.tolist(),
                self.size_word.tolist(),
                strict=True,
            )
        ]


def caption_variant(scenes: Scenes, i: int, rng: np.random.Generator) -> str:
    """Draw a caption of scene ``i`` for the training of text conditioning.

    Most draws are full captions.  Some name the main solid only, some leave out all colour words,
    some leave out all size words; these choices are independent of each other.  Every variant
    is true of the picture.

    Args:
        scenes: batch of scenes.
        i: index into the batch.
        rng: source of randomness; advanced by exactly three numbers.
    """
    main_only, drop_color, drop_size = (rng.random(3) < (0.15, 0.10, 0.15)).tolist()
    count = 1 if main_only else int(scenes.count[i])
    return _join(
        [
            _phrase(
                int(scenes.shape[i, j]),
                int(scenes.color[i, j]),
                int(scenes.size_word[i, j]),
                with_color=not drop_color,
                with_size=not drop_size,
            )
            for j in range(count)
        ]
    )


def sample_scenes(seed: int, start: int, count: int) -> Scenes:
    """Sample scenes ``start .. start + count - 1`` of the endless sequence of ``seed``.

    Args:
        seed: >= 0.
        start: index of the first scene, >= 0.
        count: number of scenes, >= 0.

    Returns:
        A batch of ``count`` scenes.  Each depends on ``seed`` and its own index only.

    Raises:
        ValueError: if an argument is out of range.
    """
    if min(seed, start, count) < 0:
        raise ValueError(f"seed, start and count must not be negative: {seed}, {start}, {count}")
    drafts = [_draft(seed, start + i) for i in range(count)]

    def scalar(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32)

    def vector(values: list[tuple[float, ...]], width: int) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).reshape(count, width)

    # Flat rows per solid, padded to MAX_SOLIDS.
    padded = [d.solids + [_NO_SOLID] * (MAX_SOLIDS - len(d.solids)) for d in drafts]
    solids = torch.tensor(
        [[s.numbers() for s in row] for row in padded], dtype=torch.float32
    ).reshape(count, MAX_SOLIDS, 10)
    kinds = torch.tensor(
        [[(s.shape, s.color, s.size_word) for s in row] for row in padded], dtype=torch.int64
    ).reshape(count, MAX_SOLIDS, 3)
    return Scenes(
        camera_position=vector([d.camera.position for d in drafts], 3),
        camera_axes=vector(
            [(*d.camera.right, *d.camera.up, *d.camera.forward) for d in drafts], 9
        ).reshape(count, 3, 3),
        tan_half_fov=scalar([d.camera.tan_half_fov for d in drafts]),
        light_position=vector([d.light_position for d in drafts], 3),
        light_color=vector([d.light_color for d in drafts], 3),
        light_reference=scalar([d.light_reference for d in drafts]),
        light_radius=scalar([d.light_radius for d in drafts]),
        ambient_color=vector([d.ambient_color for d in drafts], 3),
        wall_y=scalar([d.wall_y for d in drafts]),
        wall_albedo=vector([d.wall_albedo for d in drafts], 3),
        floor_albedo=vector([d.floor_albedo for d in drafts], 3),
        floor_roughness=scalar([d.floor_roughness for d in drafts]),
        vignette=scalar([d.vignette for d in drafts]),
        count=torch.tensor([len(d.solids) for d in drafts], dtype=torch.int64),
        shape=kinds[..., 0].contiguous(),
        color=kinds[..., 1].contiguous(),
        size_word=kinds[..., 2].contiguous(),
        position=solids[..., 0:2].contiguous(),
        radius=solids[..., 2].contiguous(),
        height=solids[..., 3].contiguous(),
        yaw=solids[..., 4].contiguous(),
        albedo=solids[..., 5:8].contiguous(),
        roughness=solids[..., 8].contiguous(),
        metalness=solids[..., 9].contiguous(),
    )


# --------------------------------------------------------------------------------------- captions


def _phrase(shape: int, color: int, size_word: int, *, with_color: bool, with_size: bool) -> str:
    words = ["a"]
    if with_size and size_word:
        words.append(_SIZE_WORDS[size_word])
    if with_color:
        words.append(COLORS[color])
    words.append(SHAPES[shape])
    return " ".join(words)


def _join(phrases: list[str]) -> str:
    if len(phrases) == 1:
        return phrases[0]
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]


# --------------------------------------------------------------------------------------- sampling

_Vec = tuple[float, float, float]
_Box = tuple[float, float, float, float]  # x0, y0, x1, y1 on the image plane, frame = [-1, 1]^2


class _Draw:
    """Cheap scalar uniform numbers from one counter-based stream."""

    def __init__(self, seed: int, index: int) -> None:
        if max(seed, index) < 1 << 64:
            stream = np.random.Philox(key=np.array([seed, index], dtype=np.uint64))
        else:
            stream = np.random.Philox(derived("scene", seed, index))
        self._generator = np.random.Generator(stream)
        self._buffer: list[float] = []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        if not self._buffer:
            self._buffer = self._generator.random(128).tolist()
        return low + (high - low) * self._buffer.pop()

    def integer(self, n: int) -> int:
        return min(int(self.uniform() * n), n - 1)

    def sign(self) -> float:
        return -1.0 if self.uniform() < 0.5 else 1.0


@dataclass
class _Camera:
    position: _Vec
    right: _Vec
    up: _Vec
    forward: _Vec
    tan_half_fov: float

    def project(self, point: _Vec) -> tuple[float, float]:
        d = (
            point[0] - self.position[0],
            point[1] - self.position[1],
            point[2] - self.position[2],
        )
        depth = max(_dot(d, self.forward), 1e-3) * self.tan_half_fov
        return _dot(d, self.right) / depth, _dot(d, self.up) / depth

    def depth(self, point: _Vec) -> float:
        e = self.position
        return _dot((point[0] - e[0], point[1] - e[1], point[2] - e[2]), self.forward)


@dataclass
class _Solid:
    shape: int
    color: int
    size_word: int
    x: float
    y: float
    radius: float
    height: float
    yaw: float
    albedo: _Vec
    roughness: float
    metalness: float

    def numbers(self) -> tuple[float, ...]:
        return (
            *(self.x, self.y, self.radius, self.height, self.yaw),
            *(*self.albedo, self.roughness, self.metalness),
        )

    def footprint(self) -> float:
        """Radius of the circle around the axis that contains the solid, metres."""
        return self.radius * (math.sqrt(2.0) if self.shape == 1 else 1.0)

    def box(self, camera: _Camera) -> _Box:
        """Bounding box on the image plane."""
        x, y, r, h = self.x, self.y, self.radius, self.height
        points: list[_Vec]
        if self.shape == 0:
            # Points of the silhouette circle, pushed out a little as it lies nearer than the
            # centre.
            centre = (x, y, r)
            distance = math.dist(centre, camera.position)
            s = r / math.sqrt(max(1.0 - (r / distance) ** 2, 0.05))
            points = [
                (
                    x + s * (a * camera.right[0] + b * camera.up[0]),
                    y + s * (a * camera.right[1] + b * camera.up[1]),
                    r + s * (a * camera.right[2] + b * camera.up[2]),
                )
                for a, b in ((1, 0), (-1, 0), (0, 1), (0, -1))
            ]
        elif self.shape == 1:
            s = r * math.sqrt(2.0)
            points = [
                (x + s * math.cos(t), y + s * math.sin(t), z)
                for t in (self.yaw + (0.25 + 0.5 * k) * math.pi for k in range(4))
                for z in (0.0, h)
            ]
        else:
            points = [
                (x + r * c, y + r * s, z)
                for c, s in _CIRCLE
                for z in ((0.0, h) if self.shape == 2 else (0.0,))
            ]
            if self.shape == 3:
                points.append((x, y, h))
        projected = [camera.project(p) for p in points]
        xs = [p[0] for p in projected]
        ys = [p[1] for p in projected]
        return min(xs), min(ys), max(xs), max(ys)


_CIRCLE = tuple((math.cos(k * math.pi / 6), math.sin(k * math.pi / 6)) for k in range(12))
_NO_SOLID = _Solid(0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0, (0.0, 0.0, 0.0), 0.0, 0.0)
# Share of its bounding box that a solid typically fills.
_FILL = (0.785, 0.78, 0.88, 0.54)


@dataclass
class _Draft:
    camera: _Camera
    light_position: _Vec
    light_color: _Vec
    light_reference: float
    light_radius: float
    ambient_color: _Vec
    wall_y: float
    wall_albedo: _Vec
    floor_albedo: _Vec
    floor_roughness: float
    vignette: float
    solids: list[_Solid] = field(default_factory=list)


def _dot(a: _Vec, b: _Vec) -> float:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _linear(rgb: Sequence[float]) -> _Vec:
    """sRGB in [0, 1] to linear."""
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb)
    return r, g, b


def _paint(draw: _Draw, palette: Sequence[_Vec]) -> _Vec:
    base = palette[draw.integer(len(palette))]
    shift = draw.uniform(-0.11, -0.01)
    r, g, b = (min(max(c + shift + draw.uniform(-0.012, 0.012), 0.0), 0.92) for c in base)
    return _linear((r, g, b))


def _box_area(box: _Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def _box_overlap(a: _Box, b: _Box) -> float:
    return _box_area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def _new_solid(draw: _Draw, shape: int, color: int, scale: float) -> _Solid:
    hue = HUES[color] + draw.uniform(-_HUE_JITTER, _HUE_JITTER)
    saturation = _SATURATIONS[color] + draw.uniform(-0.06, 0.06)
    value = _VALUES[color] + draw.uniform(-0.06, 0.05)
    albedo = _linear(colorsys.hsv_to_rgb((hue % 360.0) / 360.0, saturation, value))
    # Relative sizes give the four shapes about the same visual weight.
    if shape == 0:
        radius = 0.92 * scale
        height = 2.0 * radius
    elif shape == 1:
        radius = 0.76 * scale
        height = 2.0 * radius
    elif shape == 2:
        radius = draw.uniform(0.66, 0.78) * scale
        height = draw.uniform(1.55, 2.0) * scale
    else:
        radius = draw.uniform(0.80, 0.95) * scale
        height = draw.uniform(1.75, 2.2) * scale
    finish = draw.uniform()
    if finish < 0.34:  # matte
        roughness, metalness = draw.uniform(0.55, 0.75), 0.0
    elif finish < 0.72:  # glossy, like glazed ceramic
        roughness, metalness = draw.uniform(0.16, 0.30), 0.0
    else:  # anodised metal
        roughness, metalness = draw.uniform(0.26, 0.40), draw.uniform(0.5, 0.75)
    yaw = draw.uniform(-math.pi, math.pi)
    return _Solid(shape, color, 0, 0.0, 0.0, radius, height, yaw, albedo, roughness, metalness)


def _place_camera(draw: _Draw, solid: _Solid, extent: float) -> _Camera:
    """Camera that sees ``solid`` (at the origin) about ``extent`` frame heights large."""
    azimuth = math.radians(draw.uniform(-28.0, 28.0))
    elevation = math.radians(12.0 + 26.0 * draw.uniform() ** 1.3)
    tan_half_fov = math.tan(math.radians(draw.uniform(12.0, 20.0)))
    # Vertical span as seen from above: height plus foreshortened base.
    span = solid.height * math.cos(elevation) + 2.0 * solid.radius * math.sin(elevation)
    span = max(span, 2.0 * solid.footprint() * 0.9) if solid.shape != 0 else solid.height
    distance = span / (2.0 * tan_half_fov * extent) + solid.radius * 0.6
    ce, se = math.cos(elevation), math.sin(elevation)
    forward = (math.sin(azimuth) * ce, math.cos(azimuth) * ce, -se)
    right = (math.cos(azimuth), -math.sin(azimuth), 0.0)
    up = (math.sin(azimuth) * se, math.cos(azimuth) * se, ce)
    # Shift of the whole camera in its image plane moves the solid off the centre of the frame.
    half = distance * tan_half_fov
    free = max(0.86 - extent, 0.0)
    dx = draw.uniform(-1.0, 1.0) * min(free, 0.42) * half
    dy = draw.uniform(-0.75, 0.75) * min(free, 0.34) * half + 0.04 * half
    middle = solid.height * 0.5
    x, y, z = (
        p - distance * f + dx * r + dy * u
        for p, f, r, u in zip((0.0, 0.0, middle), forward, right, up, strict=True)
    )
    return _Camera((x, y, max(z, 0.12)), right, up, forward, tan_half_fov)


def _place_secondary(
    draw: _Draw, camera: _Camera, solids: list[_Solid], wall_y: float, main_scale: float
) -> _Solid | None:
    """One more solid that is visibly smaller than the main one and hardly overlaps the others."""
    main = solids[0]
    taken = {(s.shape, s.color) for s in solids}
    shape, color = draw.integer(len(SHAPES)), draw.integer(len(COLORS))
    while (shape, color) in taken:
        color = (color + 1) % len(COLORS)
    small = draw.uniform() < 0.5
    scale = main_scale * (draw.uniform(0.34, 0.47) if small else draw.uniform(0.56, 0.74))
    solid = _new_solid(draw, shape, color, scale)
    boxes = [s.box(camera) for s in solids]
    main_area = _box_area(boxes[0]) * _FILL[main.shape]
    for _ in range(24):
        angle = draw.uniform(-math.pi, math.pi)
        reach = main.footprint() + solid.footprint()
        reach += draw.uniform(0.08, 1.0) * draw.uniform(0.3, 2.2) * main_scale
        solid.x = main.x + reach * math.cos(angle)
        solid.y = main.y + reach * math.sin(angle)
        if solid.y + solid.footprint() > wall_y - 0.1:
            continue
        if any(
            math.hypot(solid.x - s.x, solid.y - s.y)
            < solid.footprint() + s.footprint() + 0.12 * main_scale
            for s in solids
        ):
            continue
        if camera.depth((solid.x, solid.y, solid.height)) < 2.0 * solid.footprint() + 0.2:
            continue
        box = solid.box(camera)
        area = _box_area(box)
        if _box_overlap(box, (-0.99, -0.99, 0.99, 0.99)) < 0.93 * area:
            continue
        if min(box[2] - box[0], box[3] - box[1]) < 0.22:
            continue
        if area * _FILL[shape] > (0.26 if small else 0.50) * main_area:
            continue
        nearer = camera.depth((solid.x, solid.y, 0.0))
        for s, other in zip(solids, boxes, strict=True):
            overlap = _box_overlap(box, other)
            in_front = nearer < camera.depth((s.x, s.y, 0.0))
            hidden = _box_area(other) if in_front else area
            limit = 0.10 if (s is main and in_front) else 0.22
            if overlap > limit * hidden:
                break
        else:
            solid.size_word = 1 if small else 0
            return solid
    return None


def _draft(seed: int, index: int) -> _Draft:
    draw = _Draw(seed, index)
    shape, color = draw.integer(len(SHAPES)), draw.integer(len(COLORS))
    scale = draw.uniform(0.32, 0.52)
    main = _new_solid(draw, shape, color, scale)
    wanted = (1, 2, 2, 3, 3)[draw.integer(5)]
    # Room for company: pictures with more solids show the main one smaller.
    low, high = ((0.48, 0.74), (0.44, 0.62), (0.40, 0.54))[wanted - 1]
    extent = draw.uniform(low, high)
    camera = _place_camera(draw, main, extent)
    for _ in range(20):
        box = main.box(camera)
        if max(-box[0], -box[1], box[2], box[3]) < 0.93:
            break
        extent *= 0.95
        camera = _place_camera(draw, main, extent)
    box = main.box(camera)
    if max(box[2] - box[0], box[3] - box[1]) > 1.22:
        main.size_word = 2

    wall_y = main.footprint() + scale * (0.7 + 5.5 * draw.uniform() ** 1.5)
    solids = [main]
    for _ in range(6):
        if len(solids) == wanted:
            break
        solid = _place_secondary(draw, camera, solids, wall_y, scale)
        if solid is not None:
            solids.append(solid)

    # The key light stands on the camera's side of the room, off to one side, never behind the
    # wall; so every picture has a lit side, a shaded side and a readable shadow.
    side = draw.sign()
    view = math.degrees(math.atan2(camera.position[0], -camera.position[1]))
    azimuth = view + side * draw.uniform(32.0, 96.0)
    azimuth = math.radians(min(max(azimuth, -100.0), 100.0))
    elevation = math.radians(draw.uniform(32.0, 58.0))
    distance = scale * draw.uniform(6.0, 11.0)
    ce = math.cos(elevation)
    light = (
        distance * ce * math.sin(azimuth),
        min(-distance * ce * math.cos(azimuth), wall_y - 0.8 * scale),
        main.height * 0.5 + distance * math.sin(elevation),
    )
    warmth = draw.uniform(-0.45, 1.0)
    power = draw.uniform(2.3, 3.0)
    if warmth > 0.0:
        tint = (1.0 + 0.05 * warmth, 1.0 - 0.03 * warmth, 1.0 - 0.20 * warmth)
        sky = (1.0 - 0.06 * warmth, 1.0, 1.0 + 0.08 * warmth)
    else:
        tint = (1.0 + 0.10 * warmth, 1.0 + 0.02 * warmth, 1.0 - 0.06 * warmth)
        sky = (1.0 - 0.04 * warmth, 1.0, 1.0 + 0.03 * warmth)
    fill = draw.uniform(0.36, 0.62)
    return _Draft(
        camera=camera,
        light_position=light,
        light_color=(power * tint[0], power * tint[1], power * tint[2]),
        light_reference=distance,
        light_radius=distance * draw.uniform(0.07, 0.17),
        ambient_color=(fill * sky[0], fill * sky[1], fill * sky[2]),
        wall_y=wall_y,
        wall_albedo=_paint(draw, _WALL_PAINTS),
        floor_albedo=_paint(draw, _FLOOR_PAINTS),
        floor_roughness=draw.uniform(0.35, 0.7),
        vignette=draw.uniform(0.08, 0.22),
        solids=solids,
    )
