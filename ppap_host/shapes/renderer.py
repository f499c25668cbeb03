"""Analytic ray caster of the ``shapes`` world in plain torch.

Every surface is intersected in closed form, so depth and segmentation are exact at pixel centres.
Soft shadows are closed-form too: for each solid the *angular clearance* between the direction to
the centre of the key light and the silhouette of the solid is computed, and the share of the light
that is visible follows from clearance and angular radius of the light.  No random numbers and no
reductions over the batch occur; pictures do not depend on the batch they are rendered in.

Colours are anti-aliased adaptively: one ray per pixel first, then a grid of rays in those pixels
whose colour differs from a neighbour's.
"""

# Long because it is one ray caster: every solid is intersected, shaded and shadowed alike.
from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ppap_host.shapes.scenes import MAX_SOLIDS, SHAPES, Scenes

__all__ = ["Render", "render"]

_WALL, _FLOOR, _FIRST_SOLID = 0, 1, 2
_SPHERE, _CUBE, _CYLINDER, _CONE = range(4)

# Rays per chunk: keeps the temporaries in the processor cache.
_CHUNK_RAYS = 1 << 15
# Pixels per row of the anti-aliasing pass; rows are padded, so not too many.
_ROW_PIXELS = 64
# Colour step (display values in [0, 1]) between neighbours from which on pixels are supersampled.
_EDGE_STEP = 0.045

_Vec = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Render:
    """Pictures of ``B`` scenes with their exact geometry."""

    rgb: Tensor
    """float32 [B, 3, H, W] in [-1, 1], sRGB-encoded."""
    depth: Tensor
    """float32 [B, 1, H, W], z-depth: metres along the view axis, at pixel centres."""
    segmentation: Tensor
    """uint8 [B, H, W], index into ``SEGMENTS``, at pixel centres."""


def render(scenes: Scenes, size: int = 64, supersample: int = 3) -> Render:
    """Render a batch of scenes.

    Pixel ``(i, j)`` has its centre at ``x = (2 j + 1) / size - 1`` and ``y = 1 - (2 i + 1) / size``
    on the image plane, whose frame is ``[-1, 1]^2``.

    Args:
        scenes: batch of ``B`` scenes.
        size: height and width of the pictures in pixels, >= 1.
        supersample: pixels on edges get ``supersample ** 2`` rays; 1 turns anti-aliasing off.

    Returns:
        Pictures, depth maps and segmentation maps as CPU tensors.

    Raises:
        ValueError: if ``size`` or ``supersample`` is less than 1.
    """
    if size < 1 or supersample < 1:
        raise ValueError(f"size and supersample must be >= 1, got {size} and {supersample}")
    count = len(scenes)
    rgb = torch.empty(count, 3, size, size)
    depth = torch.empty(count, 1, size, size)
    segmentation = torch.empty(count, size, size, dtype=torch.uint8)
    step = max(1, _CHUNK_RAYS // (size * size))

    def run(start: int) -> None:
        part = slice(start, min(start + step, count))
        # Inference mode is a property of the thread.
        with torch.inference_mode():
            _render_chunk(
                scenes[part], size, supersample, rgb[part], depth[part], segmentation[part]
            )

    starts = range(0, count, step)
    with _one_thread_per_operation() as threads:
        if min(threads, len(starts)) <= 1:
            for start in starts:
                run(start)
        else:
            with ThreadPoolExecutor(min(threads, len(starts))) as pool:
                list(pool.map(run, starts))
    return Render(rgb, depth, segmentation)


@contextmanager
def _one_thread_per_operation() -> Iterator[int]:
    """Run torch operations on one thread each; give the number of threads that were in use.

    The temporaries are so small that a barrier per operation costs more than the operation, ten
    times as much when the processor is shared; chunks are rendered in parallel instead.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield 1
        return
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _render_chunk(
    scenes: Scenes, size: int, supersample: int, rgb: Tensor, depth: Tensor, segmentation: Tensor
) -> None:
    """Render into the given slices of the result."""
    count, pixels = len(scenes), size * size
    rows = _Rows.of(scenes)
    centres = (torch.arange(size, dtype=torch.float32) * 2.0 + 1.0) / size - 1.0
    x = centres.repeat(size).expand(count, pixels)
    y = (-centres).repeat_interleave(size).expand(count, pixels)
    color, t, kind = _trace(rows, x, y)
    depth.view(count, pixels).copy_(t)
    segmentation.view(count, pixels).copy_(kind)

    image = torch.stack(color, dim=1)
    if supersample > 1:
        edge = _edges(image.view(count, 3, size, size)).view(count, pixels)
        _refine(rows, image, edge, size, supersample)
    rgb.view(count, 3, pixels).copy_(image.mul_(2.0).sub_(1.0).clamp_(-1.0, 1.0))


def _edges(image: Tensor) -> Tensor:
    """Pixels [b, h, w] that differ visibly from a neighbour in the picture [b, 3, h, w]."""
    edge = torch.zeros_like(image[:, 0], dtype=torch.bool)
    down = (image[:, :, 1:] - image[:, :, :-1]).abs_().amax(dim=1) > _EDGE_STEP
    across = (image[..., 1:] - image[..., :-1]).abs_().amax(dim=1) > _EDGE_STEP
    edge[:, 1:] |= down
    edge[:, :-1] |= down
    edge[..., 1:] |= across
    edge[..., :-1] |= across
    return edge


def _refine(rows: _Rows, image: Tensor, edge: Tensor, size: int, supersample: int) -> None:
    """Replace the colours of the edge pixels in ``image`` [b, 3, pixels] by averages of rays."""
    scene, pixel = edge.nonzero(as_tuple=True)
    if scene.numel() == 0:
        return
    # Pack the pixels of each scene into rows of _ROW_PIXELS, so that all rays of a row share one
    # scene and its parameters broadcast.
    per_scene = edge.sum(dim=1)
    rows_per_scene = (per_scene + _ROW_PIXELS - 1) // _ROW_PIXELS
    first_row = rows_per_scene.cumsum(0) - rows_per_scene
    first_pixel = per_scene.cumsum(0) - per_scene
    rank = torch.arange(scene.numel()) - first_pixel[scene]
    slot = first_row[scene] * _ROW_PIXELS + rank
    total = int(rows_per_scene.sum())
    # Padding repeats pixel 0 and is dropped at the end.
    packed = torch.zeros(total * _ROW_PIXELS, dtype=torch.int64)
    packed[slot] = pixel
    packed = packed.view(total, _ROW_PIXELS)
    row_scene = torch.arange(len(edge)).repeat_interleave(rows_per_scene)

    k = torch.arange(supersample, dtype=torch.float32)
    offset = (k + 0.5) * (2.0 / (size * supersample))
    left = (packed % size).to(torch.float32) * (2.0 / size) - 1.0
    top = 1.0 - (packed // size).to(torch.float32) * (2.0 / size)
    rays = supersample * supersample
    # Sub-rays are the leading dimension of a row: averages then run over whole vectors.
    x = (left[:, None] + offset.repeat(supersample)[:, None]).view(total, -1)
    y = (top[:, None] - offset.repeat_interleave(supersample)[:, None]).view(total, -1)
    step = max(1, _CHUNK_RAYS // (rays * _ROW_PIXELS))
    for start in range(0, total, step):
        part = slice(start, min(start + step, total))
        color, _, _ = _trace(rows.select(row_scene[part]), x[part], y[part])
        lo, hi = part.start * _ROW_PIXELS, part.stop * _ROW_PIXELS
        here = ((slot >= lo) & (slot < hi)).nonzero()[:, 0]
        for channel, value in enumerate(color):
            value = value.view(-1, rays, _ROW_PIXELS)
            mean = value[:, 0].clone()
            for i in range(1, rays):
                mean += value[:, i]
            mean *= 1.0 / rays
            image[scene[here], channel, pixel[here]] = mean.reshape(-1)[slot[here] - lo]


# ------------------------------------------------------------------------------------ parameters


@dataclass
class _Rows:
    """Parameters of ``r`` rows of rays; all rays of a row belong to the same scene."""

    numbers: Tensor  # [k, r]
    shape: Tensor  # int64 [3, r], -1 where there is no solid

    @staticmethod
    def of(scenes: Scenes) -> _Rows:
        count = len(scenes)
        parts = [
            scenes.camera_position,
            scenes.camera_axes.reshape(count, 9),
            scenes.tan_half_fov[:, None],
            scenes.light_position,
            scenes.light_color,
            scenes.light_reference[:, None],
            scenes.light_radius[:, None],
            scenes.ambient_color,
            scenes.wall_y[:, None],
            scenes.wall_albedo,
            scenes.floor_albedo,
            scenes.floor_roughness[:, None],
            scenes.vignette[:, None],
            # Solid fields are attribute-major: x of the three solids, then y of the three ...
            scenes.position[..., 0],
            scenes.position[..., 1],
            scenes.radius,
            scenes.height,
            scenes.yaw.cos(),
            scenes.yaw.sin(),
            scenes.albedo[..., 0],
            scenes.albedo[..., 1],
            scenes.albedo[..., 2],
            scenes.roughness,
            scenes.metalness,
        ]
        shape = torch.where(scenes.solid_mask, scenes.shape, -1)
        return _Rows(torch.cat(parts, dim=1).T.contiguous(), shape.T.contiguous())

    def select(self, index: Tensor) -> _Rows:
        return _Rows(self.numbers[:, index], self.shape[:, index])

    def scalar(self, i: int) -> Tensor:
        """Parameter ``i`` as [r, 1]."""
        return self.numbers[i, :, None]

    def vector(self, i: int) -> _Vec:
        return self.scalar(i), self.scalar(i + 1), self.scalar(i + 2)

    def solids(self, i: int) -> Tensor:
        """Solid attribute ``i`` as [3, r]."""
        lo = _SOLIDS + MAX_SOLIDS * i
        return self.numbers[lo : lo + MAX_SOLIDS]


# Offsets into _Rows.numbers.
_CAMERA, _RIGHT, _UP, _FORWARD, _TAN = 0, 3, 6, 9, 12
_LIGHT, _LIGHT_COLOR, _LIGHT_REF, _LIGHT_RADIUS, _AMBIENT = 13, 16, 19, 20, 21
_WALL_Y, _WALL_ALBEDO, _FLOOR_ALBEDO, _FLOOR_ROUGH, _VIGNETTE = 24, 25, 28, 31, 32
_SOLIDS = 33
_X, _Y, _RADIUS, _HEIGHT, _COS, _SIN, _ALBEDO, _ROUGH, _METAL = 0, 1, 2, 3, 4, 5, 6, 9, 10


@dataclass
class _Group:
    """All solids of one shape in a set of rows; ``g`` of them."""

    kind: int
    slot: Tensor  # int64 [g], which solid of its row
    row: Tensor  # int64 [g]
    flat: Tensor  # int64 [g], slot * r + row
    x: Tensor  # [g, 1]
    y: Tensor
    radius: Tensor
    height: Tensor
    cos: Tensor
    sin: Tensor


def _groups(rows: _Rows) -> list[_Group]:
    found = []
    count = rows.shape.shape[1]
    for kind in range(len(SHAPES)):
        slot, row = (rows.shape == kind).nonzero(as_tuple=True)
        if slot.numel() == 0:
            continue
        columns = [rows.solids(i)[slot, row][:, None] for i in (_X, _Y, _RADIUS, _HEIGHT)]
        turn = [rows.solids(i)[slot, row][:, None] for i in (_COS, _SIN)]
        found.append(_Group(kind, slot, row, slot * count + row, *columns, *turn))
    return found


# ---------------------------------------------------------------------------------------- tracing


def _trace(rows: _Rows, x: Tensor, y: Tensor) -> tuple[_Vec, Tensor, Tensor]:
    """Trace rays through image-plane points ``x``, ``y`` [r, n].

    Returns:
        Display colour (three times [r, n], about [0, 1]), z-depth [r, n], segment ids [r, n].
    """
    count, n = x.shape
    groups = _groups(rows)
    eye = rows.vector(_CAMERA)
    right, up, forward = rows.vector(_RIGHT), rows.vector(_UP), rows.vector(_FORWARD)
    tan = rows.scalar(_TAN)
    # The view-axis component of a direction is 1, so ray parameters are z-depths.
    dx, dy, dz = (
        (f + (x * tan) * a) + (y * tan) * b for a, b, f in zip(right, up, forward, strict=True)
    )

    # Background.  Rays that rise always meet the wall; the clamp only guards the division.
    t_wall = (rows.scalar(_WALL_Y) - eye[1]) / dy.clamp(min=1e-3)
    t_floor = torch.where(dz < -1e-6, -eye[2] / dz, torch.inf)
    is_floor = t_floor < t_wall
    t = torch.where(is_floor, t_floor, t_wall)
    surface = is_floor.to(torch.int64)  # 0 wall, 1 floor, 2.. solids
    nx = torch.zeros_like(t)
    nz = is_floor.to(torch.float32)
    ny = nz - 1.0

    # Solids.
    hits = torch.full((MAX_SOLIDS * count, n), torch.inf)
    # Read only where there is a hit.
    normals = [torch.empty(MAX_SOLIDS * count, n) for _ in range(3)]
    for group in groups:
        ray = (dx[group.row], dy[group.row], dz[group.row])
        origin = (eye[0][group.row] - group.x, eye[1][group.row] - group.y, eye[2][group.row])
        t_solid, normal = _INTERSECT[group.kind](group, origin, ray)
        hits[group.flat] = t_solid
        for target, value in zip(normals, normal, strict=True):
            target[group.flat] = value
    for j in range(MAX_SOLIDS):
        part = slice(j * count, (j + 1) * count)
        nearer = hits[part] < t
        t = torch.where(nearer, hits[part], t)
        surface = torch.where(nearer, _FIRST_SOLID + j, surface)
        nx = torch.where(nearer, normals[0][part], nx)
        ny = torch.where(nearer, normals[1][part], ny)
        nz = torch.where(nearer, normals[2][part], nz)

    color = _shade(rows, groups, (dx, dy, dz), t, (nx, ny, nz), surface)
    dim = 1.0 - rows.scalar(_VIGNETTE) * (0.5 * (x * x + y * y))
    display = tuple(_display(c * dim) for c in color)
    table = torch.cat(
        [
            torch.tensor([[_WALL, _FLOOR]]).expand(count, 2),
            (rows.shape + _FIRST_SOLID).T,
        ],
        dim=1,
    )
    return (display[0], display[1], display[2]), t, table.gather(1, surface)


def _intersect_sphere(g: _Group, o: _Vec, d: _Vec) -> tuple[Tensor, _Vec]:
    oz = o[2] - g.radius
    a = _dot(d, d)
    middle = -(d[0] * o[0] + d[1] * o[1] + d[2] * oz) / a
    # Squared distance of the ray from the centre, free of the cancellation in b^2 - a c.
    mx, my, mz = o[0] + middle * d[0], o[1] + middle * d[1], oz + middle * d[2]
    disc = g.radius * g.radius - (mx * mx + my * my + mz * mz)
    t = middle - (disc.clamp(min=0.0) / a).sqrt()
    inverse = 1.0 / g.radius
    normal = (
        (o[0] + t * d[0]) * inverse,
        (o[1] + t * d[1]) * inverse,
        (oz + t * d[2]) * inverse,
    )
    return torch.where((disc > 0.0) & (t > 0.0), t, torch.inf), normal


def _intersect_cube(g: _Group, o: _Vec, d: _Vec) -> tuple[Tensor, _Vec]:
    ox, oy = g.cos * o[0] + g.sin * o[1], g.cos * o[1] - g.sin * o[0]
    oz = o[2] - g.radius
    dx, dy = g.cos * d[0] + g.sin * d[1], g.cos * d[1] - g.sin * d[0]
    dz = d[2]
    near, far = None, None
    for p, q in ((ox, dx), (oy, dy), (oz, dz)):
        inverse = 1.0 / q
        middle = -p * inverse
        half = g.radius * inverse.abs()
        near = middle - half if near is None else torch.maximum(near, middle - half)
        far = middle + half if far is None else torch.minimum(far, middle + half)
    assert near is not None and far is not None
    t = torch.where((near < far) & (near > 0.0), near, torch.inf)
    inverse = 1.0 / g.radius
    px = _edge_power((ox + near * dx) * inverse)
    py = _edge_power((oy + near * dy) * inverse)
    pz = _edge_power((oz + near * dz) * inverse)
    scale = (px * px + py * py + pz * pz).clamp(min=1e-12).rsqrt()
    px, py = px * scale, py * scale
    return t, (g.cos * px - g.sin * py, g.sin * px + g.cos * py, pz * scale)


def _intersect_cylinder(g: _Group, o: _Vec, d: _Vec) -> tuple[Tensor, _Vec]:
    a = d[0] * d[0] + d[1] * d[1]
    b = d[0] * o[0] + d[1] * o[1]
    c = o[0] * o[0] + o[1] * o[1] - g.radius * g.radius
    disc = b * b - a * c
    side = (-b - disc.clamp(min=0.0).sqrt()) / a
    z = o[2] + side * d[2]
    on_side = (disc > 0.0) & (side > 0.0) & (z >= 0.0) & (z <= g.height)
    top = (g.height - o[2]) / d[2]
    px, py = o[0] + top * d[0], o[1] + top * d[1]
    on_top = (top > 0.0) & (px * px + py * py <= g.radius * g.radius)
    t = torch.where(on_side, side, torch.where(on_top, top, torch.inf))
    t_safe = torch.where(on_side, side, top)
    inverse = 1.0 / g.radius
    px, py = (o[0] + t_safe * d[0]) * inverse, (o[1] + t_safe * d[1]) * inverse
    pz = ((o[2] + t_safe * d[2]) * (2.0 / g.height) - 1.0).clamp(-1.0, 1.0)
    # Measure the distance from the rim in radii on both sides of it.
    pz = (1.0 - (1.0 - pz) * (0.5 * g.height * inverse)).clamp(min=-1.0)
    radial = _edge_power((px * px + py * py).sqrt().clamp(max=1.0))
    pz = _edge_power(pz).clamp(min=0.0)
    scale = (radial * radial + pz * pz).clamp(min=1e-12).rsqrt()
    radial = radial * scale
    return t, (px * radial, py * radial, pz * scale)


def _intersect_cone(g: _Group, o: _Vec, d: _Vec) -> tuple[Tensor, _Vec]:
    slope = g.radius / g.height
    k = slope * slope
    # Measure the ray from a point near the solid: single precision then suffices near the apex.
    shift = _dot(o, o).sqrt()
    ox, oy = o[0] + shift * d[0], o[1] + shift * d[1]
    oh = g.height - (o[2] + shift * d[2])
    a = d[0] * d[0] + d[1] * d[1] - k * (d[2] * d[2])
    koh = k * oh
    b = d[0] * ox + d[1] * oy + koh * d[2]
    c = ox * ox + oy * oy - koh * oh
    disc = b * b - a * c
    # Stable roots: a may vanish.
    root = disc.clamp(min=0.0).sqrt()
    q = -(b + torch.where(b < 0.0, -root, root))
    best = torch.full_like(q, torch.inf)
    for t in (q / a, c / q):
        below = oh - t * d[2]
        valid = (disc > 0.0) & (t > -shift) & (below >= 0.0) & (below <= g.height)
        best = torch.where(valid, torch.minimum(best, t), best)
    t = torch.where(best < torch.inf, best, 0.0)
    best = best + shift
    px, py = ox + t * d[0], oy + t * d[1]
    cos = (1.0 + k).rsqrt()
    scale = cos * (px * px + py * py).clamp(min=1e-12).rsqrt()
    return best, (px * scale, py * scale, (slope * cos).expand_as(px))


_INTERSECT = {
    _SPHERE: _intersect_sphere,
    _CUBE: _intersect_cube,
    _CYLINDER: _intersect_cylinder,
    _CONE: _intersect_cone,
}


def _edge_power(p: Tensor) -> Tensor:
    """Odd high power; turns coordinates on a sharp solid into normals of a slightly rounded one."""
    square = p * p
    fourth = square * square
    eighth = fourth * fourth
    return eighth * eighth * p


# ---------------------------------------------------------------------------------------- shading


def _shade(
    rows: _Rows,
    groups: list[_Group],
    ray: _Vec,
    t: Tensor,
    normal: _Vec,
    surface: Tensor,
) -> _Vec:
    """Linear colour of the hit points, three times [r, n]."""
    count, n = t.shape
    eye = rows.vector(_CAMERA)
    p = tuple(e + t * d for e, d in zip(eye, ray, strict=True))
    p = (p[0], p[1], p[2].clamp(min=0.0))
    nx, ny, nz = normal

    # Key light: a sphere that is large enough to make soft shadows.
    light = rows.vector(_LIGHT)
    lx, ly, lz = (a - b for a, b in zip(light, p, strict=True))
    inverse_square = 1.0 / (lx * lx + ly * ly + lz * lz)
    inverse = inverse_square.sqrt()
    lx, ly, lz = lx * inverse, ly * inverse, lz * inverse
    reference = rows.scalar(_LIGHT_REF)
    falloff = (reference * reference) * inverse_square
    n_dot_l = nx * lx + ny * ly + nz * lz
    # Part of a large light is still up where its centre has set: a soft maximum with zero.
    wrapped = 0.5 * (n_dot_l + (n_dot_l * n_dot_l + 0.02).sqrt())
    sharpness = 1.0 / (rows.scalar(_LIGHT_RADIUS) * inverse)

    visible = torch.ones(MAX_SOLIDS * count, n)
    occlusion = torch.zeros(MAX_SOLIDS * count, n)
    for g in groups:
        q = (p[0][g.row] - g.x, p[1][g.row] - g.y, p[2][g.row])
        to_light = (lx[g.row], ly[g.row], lz[g.row])
        own = surface[g.row] == (g.slot + _FIRST_SOLID)[:, None]
        clearance = _CLEARANCE[g.kind](g, q, to_light)
        share = (clearance * sharpness[g.row]).clamp(-1.0, 1.0)
        share = 0.5 + share * (0.75 - 0.25 * (share * share))
        # The light hangs higher than every solid: a ray that sinks towards it meets none.
        visible[g.flat] = torch.where(own | (to_light[2] < 0.0), 1.0, share)
        # Ambient occlusion by a sphere that stands for the solid.
        centre, radius = _PROXY[g.kind]
        qz = centre * g.height - q[2]
        square = q[0] * q[0] + q[1] * q[1] + qz * qz
        toward = nz[g.row] * qz - nx[g.row] * q[0] - ny[g.row] * q[1]
        size = radius * g.radius
        ratio = ((size * size) / square).clamp(max=1.0)
        blocked = (toward * square.rsqrt()).clamp(0.0, 1.0) * ratio
        occlusion[g.flat] = torch.where(own, 0.0, blocked)
    visible = visible.view(MAX_SOLIDS, count, n)
    lit = visible[0] * visible[1] * visible[2]
    occlusion = occlusion.view(MAX_SOLIDS, count, n)

    key = wrapped * falloff * lit
    # Floor and wall shade each other in the corner, and the undersides of solids.
    reach = 0.32 * reference * 0.15
    low = p[2] * (1.0 / reach)
    back = (rows.scalar(_WALL_Y) - p[1]) * (1.0 / reach)
    open_sky = (1.0 - 0.40 * (1.0 - nz) / (1.0 + low * low)) * (
        1.0 - 0.34 * (1.0 + ny) / (1.0 + back * back)
    )
    shade = open_sky
    for j in range(MAX_SOLIDS):
        shade = shade * (1.0 - 0.85 * occlusion[j])
    up = 0.5 + 0.5 * nz

    # Materials by surface: wall, floor, solids.
    def per_surface(wall: Tensor, floor: Tensor, solid: Tensor) -> Tensor:
        return torch.cat([wall, floor, solid.T], dim=1).gather(1, surface)

    ones = torch.ones_like(reference)
    rough = per_surface(ones * 0.9, rows.scalar(_FLOOR_ROUGH), rows.solids(_ROUGH))
    metal = per_surface(ones * 0.0, ones * 0.0, rows.solids(_METAL))
    wall_albedo, floor_albedo = rows.vector(_WALL_ALBEDO), rows.vector(_FLOOR_ALBEDO)

    # View vector, reflection and half vector.
    length = _dot(ray, ray).rsqrt()
    vx, vy, vz = -ray[0] * length, -ray[1] * length, -ray[2] * length
    n_dot_v = (nx * vx + ny * vy + nz * vz).clamp(min=0.0)
    hx, hy, hz = lx + vx, ly + vy, lz + vz
    n_dot_h = nx * hx + ny * hy + nz * hz
    h_square = hx * hx + hy * hy + hz * hz
    cos_square = ((n_dot_h * n_dot_h) / h_square).clamp(max=1.0)
    # Microfacet lobe (GGX), widened by the size of the light.
    alpha = rough * rough + 0.02
    alpha_square = alpha * alpha
    denominator = cos_square * (alpha_square - 1.0) + 1.0
    lobe = alpha_square / (denominator * denominator) * 0.32
    lobe = lobe / (0.35 + 0.65 * n_dot_v) * (n_dot_l * 4.0).clamp(0.0, 1.0)
    gloss = 1.0 - rough
    grazing = 1.0 - n_dot_v
    grazing_square = grazing * grazing
    fresnel = grazing_square * grazing_square * grazing * gloss

    # Room as seen in reflections: floor below, wall ahead, a wide soft box above.
    rz = 2.0 * n_dot_v * nz - vz
    horizon = _smooth((rz + 0.25) * 2.0)
    box = _smooth((rz - 0.45) * 2.2)
    on_solid = (surface >= _FIRST_SOLID).to(torch.float32)
    mirror = gloss * on_solid * open_sky

    light_color, ambient = rows.vector(_LIGHT_COLOR), rows.vector(_AMBIENT)
    out = []
    for c in range(3):
        albedo = per_surface(wall_albedo[c], floor_albedo[c], rows.solids(_ALBEDO + c))
        # Light from the floor below, and from solids near by: a hint of their colour.
        bounce = floor_albedo[c] * (0.42 * ambient[c] + 0.10 * light_color[c])
        around = shade * (bounce + up * (ambient[c] - bounce))
        for j in range(MAX_SOLIDS):
            glow = rows.solids(_ALBEDO + c)[j][:, None] * (0.16 * light_color[c] + 0.2 * ambient[c])
            around = around + occlusion[j] * glow
        diffuse = albedo * (key * (light_color[c] * 0.40) + around) * (1.0 - 0.72 * metal)
        base = 0.04 + metal * (albedo * 0.95 - 0.04)
        reflectance = base + (1.0 - base) * fresnel
        room = bounce * 1.2 + horizon * (wall_albedo[c] * ambient[c] * 1.3 - bounce * 1.2)
        room = room + box * (0.9 * ambient[c])
        specular = lobe * base * (lit * falloff) * (light_color[c] * 0.40)
        out.append(diffuse + specular + reflectance * room * mirror * 1.25)
    return out[0], out[1], out[2]


def _clearance_sphere(g: _Group, q: _Vec, d: _Vec) -> Tensor:
    """Sine of the angle from the light direction to the silhouette; negative in the shadow."""
    ox, oy, oz = -q[0], -q[1], g.radius - q[2]
    square = (ox * ox + oy * oy + oz * oz).clamp(min=1e-6)
    b = ox * d[0] + oy * d[1] + oz * d[2]
    across = (square - b * b).clamp(min=0.0).sqrt()
    tangent = (square - g.radius * g.radius).clamp(min=0.0).sqrt()
    return _angle_sine(across, tangent, b, g.radius, square)


def _angle_sine(
    across: Tensor, tangent: Tensor, b: Tensor, radius: Tensor, square: Tensor
) -> Tensor:
    """Sine of the angle between a direction and the silhouette of a circle, 1 beyond 90 degrees."""
    sine = (across * tangent - b * radius) / square
    return torch.where(b * tangent + across * radius < 0.0, 1.0, sine)


def _clearance_cylinder(g: _Group, q: _Vec, d: _Vec) -> Tensor:
    square = (q[0] * q[0] + q[1] * q[1]).clamp(min=1e-6)
    b = -(q[0] * d[0] + q[1] * d[1])
    across = (q[0] * d[1] - q[1] * d[0]).abs()
    radius_square = g.radius * g.radius
    tangent = (square - radius_square).clamp(min=0.0).sqrt()
    beside = _angle_sine(across, tangent, b, g.radius, square)
    # Over the top: height of the light ray where it enters the cylinder.
    flat_square = (d[0] * d[0] + d[1] * d[1]).clamp(min=1e-6)
    chord = (radius_square * flat_square - across * across).clamp(min=0.0).sqrt()
    enter = ((b - chord) / flat_square).clamp(min=1e-3)
    above = (q[2] - g.height) / enter + d[2]
    return torch.maximum(beside, above)


def _clearance_cone(g: _Group, q: _Vec, d: _Vec) -> Tensor:
    slope = g.radius / g.height
    square = (q[0] * q[0] + q[1] * q[1]).clamp(min=1e-6)
    b = -(q[0] * d[0] + q[1] * d[1])
    across = (q[0] * d[1] - q[1] * d[0]).abs()
    # Radius of the cone at the height of the point; negative above the apex.
    w = g.radius - slope * q[2]
    open_square = square - w * w
    tangent = open_square.clamp(min=1e-8).sqrt()
    beside = (across * tangent - b * w) / square + slope * d[2]
    ahead = (b * tangent + w * across > 0.0) & ((w > 0.0) | (open_square > 0.0))
    return torch.where(ahead, beside * (1.0 + slope * slope).rsqrt(), 1.0)


def _clearance_cube(g: _Group, q: _Vec, d: _Vec) -> Tensor:
    # Along the ray, the distance to each face plane over the ray parameter t is s + a u with
    # u = 1 / t.  The clearance is the minimum over u >= 0 of the maximum over the five planes (the
    # bottom is never crossed): a linear programme in one unknown, solved by its dual, in which each
    # pair of planes with slopes of opposite sign gives a lower bound.
    qx, qy = g.cos * q[0] + g.sin * q[1], g.cos * q[1] - g.sin * q[0]
    dx, dy = g.cos * d[0] + g.sin * d[1], g.cos * d[1] - g.sin * d[0]
    r = g.radius
    # By symmetry take the point into the first quadrant: two slopes are then always negative.
    dx = torch.where(qx < 0.0, -dx, dx)
    dy = torch.where(qy < 0.0, -dy, dy)
    qx, qy = qx.abs(), qy.abs()
    rising = ((dx, qx - r), (dy, qy - r), (d[2], q[2] - g.height))
    falling = ((-dx, -qx - r), (-dy, -qy - r))
    best: Tensor | None = None
    for i, (s1, a1) in enumerate(rising):
        # A plane that only comes nearer with t bounds the clearance by its value at t = infinity.
        bound = torch.where(a1 >= 0.0, s1, s1 + 1e4 * a1)
        best = bound if best is None else torch.maximum(best, bound)
        outside = a1 > 0.0
        others = (*falling, *(rising[k] for k in range(3) if k != i))
        for k, (s2, a2) in enumerate(others):
            cross = (s2 * a1 - s1 * a2) / (a1 - a2)
            valid = outside if k < 2 else outside & (a2 <= 0.0)
            best = torch.where(valid, torch.maximum(best, cross), best)
    assert best is not None
    return best


_CLEARANCE = {
    _SPHERE: _clearance_sphere,
    _CUBE: _clearance_cube,
    _CYLINDER: _clearance_cylinder,
    _CONE: _clearance_cone,
}

# Sphere that stands for each shape in ambient occlusion: height of its centre as a share of the
# solid's height, radius as a multiple of the solid's radius.
_PROXY = {_SPHERE: (0.5, 1.0), _CUBE: (0.5, 1.12), _CYLINDER: (0.4, 1.08), _CONE: (0.24, 0.72)}


def _smooth(x: Tensor) -> Tensor:
    """Smoothstep of x clamped to [0, 1]."""
    x = x.clamp(0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)


def _display(linear: Tensor) -> Tensor:
    """Tone-map linear light and encode it as sRGB; [0, inf) to [0, 1)."""
    # Almost linear up to mid-tones, then a soft shoulder: highlights keep their hue.
    mapped = linear * (1.0 + 0.12 * linear) / (1.0 + 0.42 * linear + 0.12 * linear * linear)
    mapped = mapped * 1.18
    # sRGB transfer curve by nested square roots: fast, and exactly rounded on every machine.
    one = mapped.clamp(0.0, 1.0).sqrt()
    two = one.sqrt()
    four = two.sqrt()
    return 0.662002687 * one + 0.684122060 * two - 0.323583601 * four - 0.0225411470 * mapped


def _dot(a: _Vec, b: _Vec) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
