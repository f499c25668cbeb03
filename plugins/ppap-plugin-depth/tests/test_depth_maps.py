"""Depth maps in every sign and unit, with holes, against a stereo pair and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from ppap_plugin_depth.guide import DepthGuide
from ppap_plugin_depth.losses import (
    metric_loss,
    metric_measures,
    relative_measures,
    resized,
    smooth_invariant,
)
from ppap_plugin_depth.maps import UNITS, DepthMap, read_depth

from ppap_host.files.errors import TargetError
from ppap_host.files.images import from_tensor
from ppap_host.guides.targets import Given, target
from ppap_host.shapes.renderer import render
from ppap_host.shapes.scenes import sample_scenes

SIZE = (48, 64)
Array = NDArray[Any]


def slope(low: float = 1.0, high: float = 8.0) -> Array:
    """A floor: from far at the top to near at the bottom."""
    return np.repeat(np.linspace(high, low, SIZE[0])[:, None], SIZE[1], 1)


def read(value: Any, metric: bool = False, size: tuple[int, int] = SIZE) -> DepthMap:
    return read_depth(Given.of(value), size, metric)


def correlation(a: Array, b: Array) -> float:
    known = np.isfinite(a) & np.isfinite(b)
    return float(np.corrcoef(a[known], b[known])[0, 1])


# A stereo pair of Middlebury's: its disparities, and the camera that its authors give with them


@pytest.fixture(scope="module")
def motorcycle() -> Array:
    data = pytest.importorskip("skimage.data")
    return np.asarray(np.load(Path(data.__file__).parent / "motorcycle_disp.npz")["arr_0"])


def test_disparities_of_a_stereo_pair_are_nearness(motorcycle: Array, tmp_path: Path) -> None:
    np.savez(tmp_path / "disp.npz", motorcycle)
    shape = motorcycle.shape
    found = read_depth(Given.of(f"disparity:{tmp_path / 'disp.npz'}", ("disparity",)), shape, False)
    value = found.value[0].numpy()
    unknown = ~np.isfinite(motorcycle) | (motorcycle <= 0)
    np.testing.assert_array_equal(np.isnan(value), unknown)
    assert correlation(value, np.where(unknown, np.nan, motorcycle)) > 0.9999
    assert unknown.any()
    assert f"{100 * unknown.mean():.0f} % of it holes" in found.understood
    assert not found.doubts


def test_disparities_become_the_metres_of_their_camera(motorcycle: Array) -> None:
    camera = {"focal": 994.978, "baseline": 0.193001, "doffs": 31.086}
    given = target(motorcycle, "disparity", **camera)
    value = read_depth(given, motorcycle.shape, True).value[0].numpy()
    known = np.isfinite(value)
    wanted = 994.978 * 0.193001 / (motorcycle + 31.086)
    np.testing.assert_allclose(value[known], wanted[known], rtol=1e-5)
    # The room that was photographed.
    assert 2 < np.median(value[known]) < 5


# Signs and units


@pytest.mark.parametrize("bits", [8, 16])
def test_stretched_maps_keep_their_farthest(bits: int, tmp_path: Path) -> None:
    near = 1 / slope()
    unit = (near - near.min()) / (near.max() - near.min())
    stored = (unit * (2**bits - 1)).round().astype(np.uint8 if bits == 8 else np.uint16)
    Image.fromarray(stored).save(tmp_path / "map.png")
    for kind in ("disparity", "inverse"):
        found = read(target(tmp_path / "map.png", kind))
        assert correlation(found.value[0].numpy(), near) > 0.999
        assert bool(found.value.isfinite().all())
    far = read(target(tmp_path / "map.png", "depth")).value[0].numpy()
    assert correlation(far, -unit) > 0.999


@pytest.mark.parametrize("unit", UNITS)
def test_units_of_metres(unit: str) -> None:
    stored = (slope() / UNITS[unit]).astype(np.float32)
    value = read(target(stored, "depth", unit=unit), metric=True).value[0].numpy()
    np.testing.assert_allclose(value, slope(), rtol=1e-5)
    other = read(target(stored, "depth", unit=repr(UNITS[unit])), metric=True).value[0].numpy()
    np.testing.assert_allclose(other, slope(), rtol=1e-5)


@pytest.mark.parametrize("kind", ["uint16", "int32", "int64", "float32"])
def test_whole_numbers_count_as_millimetres_and_are_doubted(kind: str) -> None:
    stored = (slope() * 1000).round().astype(kind)
    found = read(target(stored, "depth"), metric=True)
    np.testing.assert_allclose(found.value[0].numpy(), slope(), atol=0.001)
    assert "was taken for millimetres" in found.doubts[0]
    assert not read(target(stored, "depth", unit="mm"), metric=True).doubts


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (slope() * 1000 + 0.3, "does not say its unit"),
        (slope().round().astype(np.uint8), "does not say its unit"),
        (slope().astype(np.uint16), "does not say its unit"),
        (np.linspace(0, 65535, 48 * 64).reshape(SIZE).astype(np.uint16), "stretched"),
    ],
)
def test_maps_whose_unit_cannot_be_told_are_refused(values: Array, said: str) -> None:
    with pytest.raises(TargetError, match=said) as caught:
        read(target(values, "depth"), metric=True)
    assert "depth,unit=mm" in caught.value.remedy
    assert bool(read(target(values, "depth")).value.isfinite().any())


def test_relative_networks_take_any_unit() -> None:
    wanted = read(target(slope(), "depth")).value
    for factor in (0.001, 1000.0, 1 / 256):
        found = read(target(slope() * factor, "depth")).value
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"unit": "inches"}, "Give m, dm"),
        ({"unit": "-1"}, "Give m, dm"),
        ({"unit": "nan"}, "Give m, dm"),
        ({"focal": 3}, "Known: unit, holes, key"),
        ({"holes": "many"}, "Give a number"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(TargetError) as caught:
        read(target(slope(), "depth", **settings), metric=True)
    assert said in caught.value.remedy


# Holes


def holed() -> tuple[Array, Array]:
    """A map with every kind of hole, and where they are."""
    depth = slope().astype(np.float64)
    depth[:6, :8] = 0
    depth[:6, 8:16] = np.nan
    depth[:6, 16:24] = np.inf
    depth[:6, 24:32] = -1
    depth[:6, 32:40] = 1e10
    return depth, ~(np.isfinite(depth) & (depth > 0) & (depth < 1e9))


@pytest.mark.parametrize("metric", [False, True])
def test_holes_are_open(metric: bool) -> None:
    depth, holes = holed()
    found = read(target(depth, "depth"), metric)
    np.testing.assert_array_equal(found.value[0].isnan().numpy(), holes)
    assert "8 % of it holes, which are not compared" in found.understood
    named = read(target(np.where(holes, 7.77, depth), "depth", holes=7.77), metric)
    np.testing.assert_array_equal(named.value[0].isnan().numpy(), holes)
    most = np.where(slope() < 5, 0, slope())
    assert "counts as holes" in read(target(most, "depth"), metric).doubts[0]


def test_holes_do_not_bleed_when_a_map_is_made_smaller() -> None:
    depth, holes = np.full((96, 128), 3.0), np.zeros((96, 128), bool)
    holes[:, 64:] = True
    value = read(target(np.where(holes, np.nan, depth), "depth"), metric=True, size=(24, 32)).value
    assert (value[0, :, :16] == 3).all()
    assert value[0, :, 17:].isnan().all()


@pytest.mark.parametrize("loss", [smooth_invariant, metric_loss])
def test_a_loss_with_holes_is_that_of_what_is_known(loss: Any) -> None:
    """As if the holes were cut out of both maps, and without a gradient in them."""
    generator = torch.Generator().manual_seed(0)
    prediction = (torch.rand(2, 8, 12, generator=generator) + 1).requires_grad_()
    wanted = torch.rand(1, 8, 12, generator=generator) + 1
    wanted[:, :, 8:] = torch.nan
    found = loss(prediction, wanted.expand(2, -1, -1))
    expected = loss(prediction[:, :, :8], wanted[:, :, :8].expand(2, -1, -1))
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), prediction)
    assert bool(gradient.isfinite().all())
    assert (gradient[:, :, 8:] == 0).all()
    assert (gradient[:, :, :8] != 0).any()


@pytest.mark.parametrize("measures", [relative_measures, metric_measures])
def test_measures_with_holes_are_those_of_what_is_known(measures: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    prediction = torch.rand(1, 8, 12, generator=generator) + 1
    wanted = torch.rand(1, 8, 12, generator=generator) + 1
    wanted[:, :3] = torch.nan
    found, expected = measures(prediction, wanted), measures(prediction[:, 3:], wanted[:, 3:])
    assert found["abs-rel"] == pytest.approx(expected["abs-rel"])
    assert found["delta<1.25"] == pytest.approx(expected["delta<1.25"])


def test_a_target_with_holes_is_resized_without_them() -> None:
    maps = torch.full((1, 16, 16), 2.0)
    maps[:, :, 8:] = torch.nan
    small = resized(maps, (4, 4))
    assert (small[..., :2] == 2).all()
    assert small[..., 2:].isnan().all()
    assert resized(maps, (16, 16)) is maps
    # A laser knows one pixel of sixteen, everywhere.
    sparse = torch.full((1, 64, 64), torch.nan)
    sparse[:, 2::4, 2::4] = torch.linspace(2, 4, 16)[:, None]
    found = resized(sparse, (16, 16))
    torch.testing.assert_close(found[0, :, 5], torch.linspace(2, 4, 16), atol=0.05, rtol=0)


def test_the_guide_steers_by_what_is_known() -> None:
    guide = DepthGuide()
    depth, holes = holed()
    found = guide.read_target(target(depth, "depth"), SIZE)
    x = torch.zeros(1, 3, *SIZE, requires_grad=True)
    loss = guide.loss(guide.see(x), found.value)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    assert bool(loss.isfinite().all()) and bool(gradient.isfinite().all())
    shown = np.asarray(found.pictures["its depth"])
    assert (shown[holes] == 128).all()
    assert found.value.isnan().sum() == holes.sum()


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"unit": "banana"}, "depth"), ({"unit": -1}, "depth"), ({"focal": 0}, "disparity"),
        ({"focal": 5, "baseline": -0.2}, "disparity"), ({"holes": "none"}, "inverse"),
    ],
)  # fmt: skip
def test_a_setting_without_meaning_is_refused_where_it_is_not_needed_too(
    settings: dict[str, Any], kind: str
) -> None:
    with pytest.raises(TargetError, match="makes no sense"):
        DepthGuide().read_target(target(np.ones(SIZE), kind, **settings), SIZE)


def test_zeros_of_inverse_depth_are_doubted_and_can_be_holes() -> None:
    near = np.linspace(0.1, 0.9, SIZE[0] * SIZE[1]).reshape(SIZE)
    near[:9] = 0
    guide = DepthGuide()
    assert "infinitely far" in guide.read_target(target(near, "inverse"), SIZE).doubts[0]
    found = guide.read_target(target(near, "inverse", holes=0), SIZE)
    assert found.value[0].isnan().numpy().tolist() == (near == 0).tolist()


@pytest.mark.parametrize(
    "course",
    ["jet", "turbo", "viridis", "inferno", "inferno_r", "magma", "magma_r", "Spectral", "hot",
     "coolwarm"],
)  # fmt: skip
@pytest.mark.parametrize(("ending", "saved"), [("jpg", {"quality": 75}), ("webp", {"quality": 60})])
def test_a_map_painted_for_people_is_doubted_also_after_loss(
    course: str, ending: str, saved: dict[str, int], tmp_path: Path
) -> None:
    colormaps = pytest.importorskip("matplotlib").colormaps
    depth = 1 / render(sample_scenes(5, 0, 1), size=128).depth[0, 0].numpy()
    painted = colormaps[course]((depth - depth.min()) / np.ptp(depth), bytes=True)[..., :3]
    Image.fromarray(painted).save(tmp_path / f"painted.{ending}", **saved)
    Image.fromarray(painted).resize((200, 180)).save(tmp_path / "larger.png")
    guide = DepthGuide()
    for name in (f"painted.{ending}", "larger.png"):
        understood = guide.read_target(str(tmp_path / name), (64, 64))
        assert any("painted from" in doubt for doubt in understood.doubts)


def test_photographs_and_renders_are_not_taken_for_painted_maps(tmp_path: Path) -> None:
    folder = Path(pytest.importorskip("skimage.data").__file__).parent
    shown = [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.jpg"))]
    shown += [Image.open(folder / f"{name}.png") for name in ("astronaut", "coffee", "chelsea")]
    shown += from_tensor(render(sample_scenes(9, 0, 20)).rgb)
    guide = DepthGuide()
    for k, picture in enumerate(shown):
        picture.convert("RGB").save(tmp_path / f"{k}.jpg", quality=85)
        understood = guide.read_target(str(tmp_path / f"{k}.jpg"), (64, 64))
        assert not any("painted from" in doubt for doubt in understood.doubts)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("inverse", {"unit": "mm"}), ("disparity", {"focal": 1, "baseline": 0.01}),
     ("depth", {"unit": "mm"})],
)  # fmt: skip
def test_metres_that_cannot_be_meant_are_doubted(kind: str, settings: dict[str, Any]) -> None:
    values = slope() if kind == "depth" else 1 / slope()
    found = read(target(values, kind, **settings), metric=True)
    assert any("as it was read (its median)" in doubt for doubt in found.doubts)
    usual = {"inverse": {"unit": "m"}, "disparity": {"focal": 10, "baseline": 0.1}}
    assert not read(target(values, kind, **usual.get(kind, {"unit": "m"})), metric=True).doubts


@pytest.mark.parametrize("shape", [(2, *SIZE), (*SIZE, 2), (2, 3, *SIZE)])
def test_several_maps_in_an_array_are_refused_as_maps(shape: tuple[int, ...]) -> None:
    with pytest.raises(TargetError, match="a map has one number a pixel"):
        DepthGuide().read_target(np.ones(shape), SIZE)
