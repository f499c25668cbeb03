"""The guide with its bundled network: targets, pictures, measures, and how good it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ppap_plugin_depth.guide import BUNDLED, DepthGuide

from ppap_host.files.errors import TargetError
from ppap_host.files.images import from_tensor
from ppap_host.shapes.renderer import Render, render
from ppap_host.shapes.scenes import sample_scenes


@pytest.fixture(scope="module")
def guide() -> DepthGuide:
    return DepthGuide()


@pytest.fixture(scope="module")
def views() -> Render:
    return render(sample_scenes(7001, 0, 96))


def test_bundled_network_is_small_and_half_precision() -> None:
    assert (BUNDLED / "model.safetensors").stat().st_size < 3e6


def test_accuracy_on_fresh_renders(guide: DepthGuide, views: Render) -> None:
    with torch.no_grad():
        output = guide.see(views.rgb)
    measured = guide.measure(output, 1 / views.depth[:, 0])
    assert np.mean(measured["abs-rel"]) < 0.06
    assert np.mean(measured["delta<1.25"]) > 0.95
    # Its unit is about 1 / metres, unaligned.
    assert (output * views.depth[:, 0]).median().item() == pytest.approx(1, abs=0.1)


def test_loss_prefers_the_right_picture(guide: DepthGuide, views: Render) -> None:
    with torch.no_grad():
        output = guide.see(views.rgb[:16])
        table = torch.stack([guide.loss(output, one[None]) for one in output])
    assert table.argmin(dim=1).tolist() == list(range(16))
    torch.testing.assert_close(table.diag(), torch.zeros(16))
    torch.testing.assert_close(guide.distance(output[:4], output[4:8]), table[4:8, :4].diag())


def test_an_image_target_is_seen_by_the_guide(
    guide: DepthGuide, views: Render, tmp_path: Path
) -> None:
    path = tmp_path / "room.png"
    from_tensor(views.rgb[:1])[0].save(path)
    target = guide.read_target(str(path), (64, 64))
    with torch.no_grad():
        seen = guide.see(views.rgb[:1])
    # The file is rounded to 8 bits.
    assert guide.loss(seen, target.value).item() < 0.02
    assert target.value.shape == (1, 64, 64)
    assert set(target.pictures) == {"target", "its depth"}
    assert list(target.files) == [path]
    assert not target.value.requires_grad


@pytest.mark.parametrize("suffix", [".npy", ".png", ".tiff"])
def test_a_depth_map_of_any_unit_agrees_with_the_image(
    guide: DepthGuide, views: Render, tmp_path: Path, suffix: str
) -> None:
    depth = views.depth[0, 0].numpy()
    path = tmp_path / f"depth{suffix}"
    if suffix == ".npy":
        np.save(path, depth)
    elif suffix == ".png":
        Image.fromarray((depth * 1000).round().astype(np.uint16)).save(path)
    else:
        Image.fromarray(depth * 0.3).save(path)
    target = guide.read_target(str(path), (64, 64))
    with torch.no_grad():
        output = guide.see(views.rgb[:8])
    losses = guide.loss(output, target.value)
    assert losses.argmin().item() == 0
    assert guide.measure(output[:1], target.value)["abs-rel"][0] < 0.1
    assert set(target.pictures) == {"its depth"}


def test_a_larger_map_is_fitted_to_the_output(guide: DepthGuide, views: Render) -> None:
    large = torch.nn.functional.interpolate(1 / views.depth[:1], (256, 256))[:, 0]
    with torch.no_grad():
        losses = guide.loss(guide.see(views.rgb[:8]), large)
    assert losses.argmin().item() == 0


def test_bad_targets_are_said(guide: DepthGuide, tmp_path: Path) -> None:
    holes = tmp_path / "holes.npy"
    np.save(holes, np.array([[-1.0, 0.0], [np.nan, np.inf]], dtype=np.float32))
    with pytest.raises(TargetError, match="all of it is holes"):
        guide.read_target(str(holes), (64, 64))
    text = tmp_path / "words.txt"
    text.write_text("a red cube")
    for target in (str(tmp_path / "absent.png"), str(text), "https://example.org/a.png"):
        with pytest.raises(TargetError):
            guide.read_target(target, (64, 64))


def test_pictures_show_the_near_brighter(guide: DepthGuide) -> None:
    nearness = torch.linspace(0, 5, 64).expand(2, 32, 64)
    pictures = guide.picture(nearness)
    assert len(pictures) == 2
    assert pictures[0].size == (64, 32)
    lightness = np.asarray(pictures[0].convert("L"), dtype=float)[0]
    assert (np.diff(lightness) >= 0).all()
    assert lightness[-1] - lightness[0] > 200
    flat = np.asarray(guide.picture(torch.full((1, 4, 4), 3.0))[0])
    assert flat.std(axis=(0, 1)).max() == 0
