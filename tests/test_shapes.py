"""Tests of the shapes world: scenes, captions and the ray caster."""

from __future__ import annotations

import functools
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from ppap_host.files.errors import OptionError
from ppap_host.shapes.backbone import ShapesBackbone
from ppap_host.shapes.renderer import Render, render
from ppap_host.shapes.scenes import (
    CLASS_NAMES,
    COLORS,
    SEGMENTS,
    SHAPES,
    VOCABULARY,
    Scenes,
    caption_variant,
    sample_scenes,
)


@functools.lru_cache(maxsize=4)
def scenes_and_render(count: int = 300) -> tuple[Scenes, Render]:
    scenes = sample_scenes(11, 0, count)
    return scenes, render(scenes, 64, supersample=1)


def quantise(rgb: Tensor) -> Tensor:
    return ((rgb + 1.0) * 127.5).round().to(torch.uint8)


def world_points(scenes: Scenes, depth: Tensor) -> Tensor:
    """World coordinates [b, h, w, 3], float64, of the pixels of z-depth maps [b, 1, h, w]."""
    size = depth.shape[-1]
    centres = (torch.arange(size, dtype=torch.float64) * 2 + 1) / size - 1
    y, x = torch.meshgrid(-centres, centres, indexing="ij")
    camera = torch.stack([x, y, torch.ones_like(x)], dim=-1)
    tan = scenes.tan_half_fov.double()[:, None, None, None]
    camera = camera * torch.cat([tan, tan, torch.ones_like(tan)], dim=-1)
    axes = scenes.camera_axes.double()
    world = torch.einsum("bhwk,bkc->bhwc", camera, axes)
    return scenes.camera_position.double()[:, None, None] + depth[:, 0, ..., None].double() * world


def words(caption: str) -> list[str]:
    return re.findall(r"[a-z]+|,", caption)


def test_names() -> None:
    assert len(SHAPES) == 4 and len(COLORS) == 6 and len(CLASS_NAMES) == 24
    assert SEGMENTS == ("wall", "floor", "sphere", "cube", "cylinder", "cone")
    assert CLASS_NAMES[2 * 6 + 4] == "blue cylinder"
    assert len(set(VOCABULARY)) == len(VOCABULARY)


def test_sampling_is_independent_of_batches() -> None:
    batch = sample_scenes(3, 5, 7)
    single = sample_scenes(3, 9, 1)
    for name, value in vars(batch).items():
        assert torch.equal(value[4:5], getattr(single, name)), name
    other = sample_scenes(4, 9, 1)
    assert not torch.equal(single.camera_position, other.camera_position)
    assert len(sample_scenes(3, 5, 0)) == 0
    assert len(render(sample_scenes(3, 5, 0)).rgb) == 0


def test_argument_errors() -> None:
    with pytest.raises(ValueError, match="seed"):
        sample_scenes(-1, 0, 1)
    with pytest.raises(ValueError, match="negative"):
        sample_scenes(0, 0, -1)
    with pytest.raises(ValueError, match="size"):
        render(sample_scenes(0, 0, 1), 0)
    with pytest.raises(IndexError):
        sample_scenes(0, 0, 2)[2]


def test_indexing() -> None:
    scenes = sample_scenes(0, 0, 5)
    assert len(scenes[1:3]) == 2
    assert torch.equal(scenes[-1].albedo, scenes[4:].albedo)
    assert [len(s) for s in scenes] == [1] * 5


def test_ranges() -> None:
    scenes, out = scenes_and_render()
    assert out.rgb.shape == (300, 3, 64, 64) and out.rgb.dtype == torch.float32
    assert out.depth.shape == (300, 1, 64, 64) and out.depth.dtype == torch.float32
    assert out.segmentation.shape == (300, 64, 64) and out.segmentation.dtype == torch.uint8
    assert out.rgb.isfinite().all() and out.rgb.abs().max() <= 1.0
    assert out.depth.min() > 0.3 and out.depth.max() < 30.0
    # No hard black, hardly anything blown out.
    assert (out.rgb.amax(dim=1) < -0.95).float().mean() < 1e-3
    assert (out.rgb.amin(dim=1) > 0.98).float().mean() < 2e-3
    assert set(scenes.labels.tolist()) == set(range(24))
    assert scenes.count.unique().tolist() == [1, 2, 3]


def test_depth_of_floor_and_wall() -> None:
    scenes, out = scenes_and_render()
    p = world_points(scenes, out.depth)
    floor = out.segmentation == 1
    wall = out.segmentation == 0
    assert floor.any() and wall.any()
    assert p[..., 2][floor].abs().max() < 1e-4
    gap = p[..., 1] - scenes.wall_y.double()[:, None, None]
    assert gap[wall].abs().max() < 1e-4
    # The nearer of the two planes is seen.
    assert p[..., 2].min() > -1e-4 and gap.max() < 1e-4


def test_solid_pixels_lie_on_a_solid_of_their_segment() -> None:
    scenes, out = scenes_and_render()
    p = world_points(scenes, out.depth)
    best = torch.full((len(SHAPES), *p.shape[:3]), torch.inf, dtype=torch.float64)
    for j in range(3):
        q = p[..., :2] - scenes.position[:, j].double()[:, None, None]
        r, h, yaw = (
            v[:, j].double()[:, None, None] for v in (scenes.radius, scenes.height, scenes.yaw)
        )
        z, rho = p[..., 2], q.norm(dim=-1)
        x = yaw.cos() * q[..., 0] + yaw.sin() * q[..., 1]
        y = yaw.cos() * q[..., 1] - yaw.sin() * q[..., 0]
        residuals = (
            (torch.stack([q[..., 0], q[..., 1], z - r], dim=-1).norm(dim=-1) - r).abs(),
            (torch.stack([x.abs(), y.abs(), (z - r).abs()]).amax(dim=0) - r).abs(),
            torch.maximum(rho - r, z - h).abs(),
            (rho - r * (1 - z / h)).abs(),
        )
        for k, residual in enumerate(residuals):
            here = (scenes.solid_mask[:, j] & (scenes.shape[:, j] == k))[:, None, None]
            best[k] = torch.where(here, torch.minimum(best[k], residual), best[k])
    for k in range(len(SHAPES)):
        mask = out.segmentation == k + 2
        assert mask.any()
        assert best[k][mask].max() < 5e-4, SHAPES[k]


def test_nearest_point_of_a_sphere() -> None:
    scenes = sample_scenes(2, 0, 200)
    scenes = scenes[(scenes.shape[:, 0] == 0) & (scenes.count == 1)]
    assert len(scenes) > 3
    out = render(scenes, 256, supersample=1)
    for scene, depth, ids in zip(scenes, out.depth, out.segmentation, strict=True):
        centre = torch.cat([scene.position[0, 0], scene.radius[0, :1]])
        range_ = (world_points(scene, depth[None])[0] - scene.camera_position[0]).norm(dim=-1)
        expected = (centre - scene.camera_position[0]).norm() - scene.radius[0, 0]
        nearest = range_[ids == 2].min()
        assert float(nearest - expected) == pytest.approx(0.0, abs=2e-3)


def test_segments_match_scene() -> None:
    scenes, out = scenes_and_render()
    for i in range(len(scenes)):
        present = set(out.segmentation[i].unique().tolist()) - {0, 1}
        assert present == {2 + k for k in scenes.shape[i, : int(scenes.count[i])].tolist()}


def test_main_solid_is_biggest_and_inside_the_frame() -> None:
    scenes, out = scenes_and_render()
    p = world_points(scenes, out.depth)
    solid = out.segmentation >= 2
    distance = torch.stack(
        [
            (p[..., :2] - scenes.position[:, j].double()[:, None, None]).norm(dim=-1)
            / scenes.radius[:, j].double().clamp(min=1e-9)[:, None, None]
            for j in range(3)
        ]
    )
    distance[~scenes.solid_mask.T] = torch.inf
    owner = distance.argmin(dim=0)
    area = torch.stack([((owner == j) & solid).sum(dim=(1, 2)) for j in range(3)], dim=1)
    assert (area[:, 0] > 1.25 * area[:, 1:].amax(dim=1)).float().mean() >= 0.97
    assert (area[:, 0] > 150).float().mean() >= 0.97
    seen = area[:, 1:][scenes.solid_mask[:, 1:]]
    assert (seen >= 12).float().mean() >= 0.97
    main = (owner == 0) & solid
    border = main[:, 0].any(-1) | main[:, -1].any(-1) | main[..., 0].any(-1) | main[..., -1].any(-1)
    assert border.float().mean() <= 0.01


def test_solids_do_not_intersect() -> None:
    scenes, _ = scenes_and_render()
    foot = scenes.radius * torch.where(scenes.shape == 1, 2.0**0.5, 1.0)
    for i in range(3):
        inside = scenes.position[:, i, 1] + foot[:, i] < scenes.wall_y
        assert inside[scenes.solid_mask[:, i]].all()
        for j in range(i):
            gap = (scenes.position[:, i] - scenes.position[:, j]).norm(dim=-1)
            both = scenes.solid_mask[:, i]
            assert (gap > foot[:, i] + foot[:, j])[both].all()


def test_labels_and_captions() -> None:
    scenes, _ = scenes_and_render()
    rng = np.random.default_rng(0)
    kinds = set()
    for i, (caption, label) in enumerate(
        zip(scenes.captions(), scenes.labels.tolist(), strict=True)
    ):
        assert set(words(caption)) <= set(VOCABULARY)
        first = re.split(r", | and ", caption)[0]
        assert re.sub(r"^a (large |small )?", "", first) == CLASS_NAMES[label]
        assert len(re.split(r", | and ", caption)) == int(scenes.count[i])
        for _ in range(4):
            variant = caption_variant(scenes, i, rng)
            assert set(words(variant)) <= set(VOCABULARY)
            # A variant only leaves words out.
            rest = iter(words(caption))
            assert all(w in rest for w in words(variant) if w not in (",", "and"))
            kinds.add((variant == caption, any(c in words(variant) for c in COLORS)))
    assert {(True, True), (False, True), (False, False)} <= kinds


def test_pictures_are_independent_of_the_batch() -> None:
    scenes = sample_scenes(7, 0, 21)
    together = render(scenes)
    for i in (0, 6, 13, 20):
        alone = render(scenes[i])
        assert torch.equal(quantise(alone.rgb[0]), quantise(together.rgb[i]))
        assert torch.equal(alone.depth[0], together.depth[i])
        assert torch.equal(alone.segmentation[0], together.segmentation[i])
    for start in (0, 7, 14):
        part = render(scenes[start : start + 7])
        assert torch.equal(quantise(part.rgb), quantise(together.rgb[start : start + 7]))


def test_threads_are_restored_and_do_not_matter() -> None:
    scenes = sample_scenes(8, 0, 17)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        many = render(scenes)
        assert torch.get_num_threads() == 3
        torch.set_num_threads(1)
        one = render(scenes)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(quantise(many.rgb), quantise(one.rgb))


def test_resolution_independence() -> None:
    scenes = sample_scenes(9, 0, 12)
    small, large = render(scenes, 64), render(scenes, 128)
    down = torch.nn.functional.avg_pool2d(large.rgb, 2)
    difference = (down - small.rgb).abs()
    assert difference.mean() < 0.006
    assert difference.amax(dim=1).flatten(1).quantile(0.999, dim=1).max() < 0.25
    depth = torch.nn.functional.avg_pool2d(large.depth, 2)
    assert (depth - small.depth).abs().median() < 2e-3


def test_shadow_is_soft_and_on_the_far_side_of_the_light() -> None:
    scenes = sample_scenes(2, 0, 60)
    scenes = scenes[scenes.count == 1]
    out = render(scenes, 64)
    luma = out.rgb.mean(dim=1)
    p = world_points(scenes, out.depth)
    good = []
    for i in range(len(scenes)):
        away = -scenes.light_position[i, :2].double()
        along = (p[i, ..., :2] * (away / away.norm())).sum(dim=-1)
        radius = float(scenes.radius[i, 0])
        ring = p[i, ..., :2].norm(dim=-1)
        near = (out.segmentation[i] == 1) & (ring < 2.2 * radius) & (ring > 1.5 * radius)
        shaded, lit = near & (along > 0.9 * ring), near & (along < -0.5 * ring)
        if shaded.sum() >= 3 and lit.sum() >= 3:
            good.append(bool(luma[i][shaded].mean() < luma[i][lit].mean() - 0.05))
    assert len(good) >= 5 and sum(good) >= 0.9 * len(good)


def test_a_walk_is_even_in_a_mean_of_time_and_log_snr() -> None:
    """Whatever the count: from step 998 to step 25, each step once; other spacings are of time."""
    backbone = ShapesBackbone()
    walk = backbone.walk(25)
    u, lam = (
        np.array([value(level) for level in walk.levels[:-1]])
        for value in (lambda level: level.time, lambda level: level.log_snr)
    )
    gone = 0.4 * (u[0] - u) / (u[0] - u[-1]) + 0.6 * (lam - lam[0]) / (lam[-1] - lam[0])
    # Rounded to whole steps, the noisiest of which are far from each other in log-SNR.
    np.testing.assert_allclose(gone[4:], np.linspace(0, 1, 25)[4:], atol=0.004)
    np.testing.assert_allclose(gone, np.linspace(0, 1, 25), atol=0.025)
    for count in (2, 3, 25, 200, 973, 974):
        times = [level.time for level in backbone.walk(count).levels[:-1]]
        assert (len(times), times[0], times[-1]) == (count, 998, 25)
        assert all(a > b for a, b in pairwise(times))
    assert [level.time for level in backbone.walk(1).levels] == [998, 0]
    assert [level.time for level in backbone.walk("ddim4").levels][-2:] == [0, 0]
    with pytest.raises(OptionError, match="from 1 to 999"):
        backbone.walk(1000)
