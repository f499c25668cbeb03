"""The guide with its bundled network: targets, pictures, measures, and how good it is."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import ppap_plugin_segmentation
import pytest
import torch
from PIL import Image
from ppap_plugin_segmentation.colors import IGNORED, colored, palette
from ppap_plugin_segmentation.guide import SegmentationGuide
from ppap_plugin_segmentation.shipped import BUNDLED, shapes_experts
from ppap_plugin_segmentation.targets import one_class, one_hot
from ppap_plugin_segmentation.train import build_model

from ppap_host.experts.patches import Patch
from ppap_host.files.errors import TargetError
from ppap_host.files.images import from_tensor
from ppap_host.shapes.renderer import Render, render
from ppap_host.shapes.scenes import SEGMENTS, sample_scenes

SIZE = (64, 64)


@pytest.fixture(scope="module")
def guide() -> SegmentationGuide:
    return SegmentationGuide()


@pytest.fixture(scope="module")
def views() -> Render:
    return render(sample_scenes(7002, 0, 96))


def _truth(views: Render) -> torch.Tensor:
    return torch.as_tensor(views.segmentation).long()


# --- the plugin


def test_experts_are_offered_only_where_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "shapes-5.safetensors"
    monkeypatch.setattr(ppap_plugin_segmentation, "SHAPES_EXPERTS", path)
    assert ppap_plugin_segmentation.ppap_expert_sets() == []
    path.touch()
    (entry,) = ppap_plugin_segmentation.ppap_expert_sets()
    assert entry.name == "segmentation-shapes-5"
    assert entry.load() is shapes_experts
    assert shapes_experts().name == path.name


# --- the bundled network


def test_bundled_network_is_small_and_half_precision(guide: SegmentationGuide) -> None:
    assert (BUNDLED / "model.safetensors").stat().st_size < 2.5e6
    assert guide.labels == SEGMENTS
    built = {name: p.shape for name, p in build_model().named_parameters()}
    loaded = dict(guide.network().named_parameters())
    assert {f"model.{name}": shape for name, shape in built.items()} == {
        name: p.shape for name, p in loaded.items()
    }


def test_an_expert_is_less_than_a_tenth_of_it(guide: SegmentationGuide) -> None:
    network = guide.network()
    total = sum(p.numel() for p in network.parameters())
    assert Patch.fresh(network, guide.patch_plan(network)).count() < 0.1 * total


def test_accuracy_on_fresh_renders(guide: SegmentationGuide, views: Render) -> None:
    with torch.no_grad():
        output = guide.see(views.rgb)
    measured = guide.measure(output, one_hot(_truth(views), len(SEGMENTS)))
    # Of an image: a small solid taken for another costs a third. Over all pixels it is 0.94.
    assert np.mean(measured["miou"]) > 0.83
    assert np.mean(measured["pixel-accuracy"]) > 0.975


def test_prepare_is_the_identity_at_its_own_size(guide: SegmentationGuide, views: Render) -> None:
    torch.testing.assert_close(guide.prepare(views.rgb), views.rgb)
    assert guide.prepare(torch.zeros(1, 3, 100, 80)).shape == (1, 3, 64, 64)


# --- losses


def test_loss_prefers_the_right_picture(guide: SegmentationGuide, views: Render) -> None:
    with torch.no_grad():
        output = guide.see(views.rgb[:16])
        seen = guide.as_target(output)
        table = torch.stack([guide.loss(output, one[None]) for one in seen])
    assert table.argmin(dim=1).tolist() == list(range(16))
    torch.testing.assert_close(table.diag(), torch.zeros(16), rtol=0, atol=1e-5)
    distances = guide.distance(output[:4], output[4:8])
    torch.testing.assert_close(distances, table[4:8, :4].diag(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["image", "labels", "class"])
def test_guidance_gradient_descends(guide: SegmentationGuide, views: Render, kind: str) -> None:
    truth = _truth(views)[1:2]
    with torch.no_grad():
        target = {
            "image": guide.as_target(guide.see(views.rgb[1:2])),
            "labels": one_hot(truth, len(SEGMENTS)),
            "class": one_class((truth != 0).float(), 3, len(SEGMENTS)),
        }[kind]
    x = views.rgb[:1].clone().requires_grad_()
    before = guide.loss(guide.see(x), target)
    (gradient,) = torch.autograd.grad(before.sum(), x)
    with torch.no_grad():
        after = guide.loss(guide.see(x - 0.2 * gradient / gradient.norm()), target)
    assert after.item() < before.item()


def test_labels_become_a_sure_network(guide: SegmentationGuide, views: Render) -> None:
    truth = _truth(views)[:4]
    logits = guide.from_labels(truth)
    assert logits.shape == (4, 6, 64, 64)
    hot = one_hot(truth, 6)
    torch.testing.assert_close(logits.double().softmax(dim=1), hot.double(), rtol=0, atol=1e-6)
    measured = guide.measure(logits, guide.as_target(logits))
    assert measured == {"miou": [1.0] * 4, "pixel-accuracy": [1.0] * 4}
    for wrong in (6, -1):
        with pytest.raises(ValueError, match="0 to 5"):
            guide.from_labels(torch.full((1, 2, 2), wrong))


# --- targets


def test_an_image_target_is_seen_by_the_guide(
    guide: SegmentationGuide, views: Render, tmp_path: Path
) -> None:
    path = tmp_path / "room.png"
    from_tensor(views.rgb[:1])[0].save(path)
    target = guide.read_target(str(path), SIZE)
    with torch.no_grad():
        seen = guide.see(views.rgb[:8])
    losses = guide.loss(seen, target.value)
    assert losses.argmin().item() == 0
    # The file is rounded to 8 bits.
    assert losses[0].item() < 0.01
    assert target.value.shape == (1, 6, 64, 64)
    assert set(target.pictures) == {"target", "its segments"}
    assert list(target.files) == [path]
    assert not target.value.requires_grad


@pytest.mark.parametrize("side", [64, 160])
def test_a_label_map_agrees_with_the_image(
    guide: SegmentationGuide, views: Render, tmp_path: Path, side: int
) -> None:
    path = tmp_path / "labels.png"
    labels = Image.fromarray(_truth(views)[0].numpy().astype(np.uint8))
    labels.resize((side, side), Image.Resampling.NEAREST).save(path)
    target = guide.read_target(str(path), SIZE)
    with torch.no_grad():
        output = guide.see(views.rgb[:8])
    assert guide.loss(output, target.value).argmin().item() == 0
    assert guide.measure(output[:1], target.value)["pixel-accuracy"][0] > 0.95
    assert set(target.pictures) == {"its segments"}
    assert list(target.files) == [path]


def test_a_mask_asks_for_one_class(guide: SegmentationGuide, views: Render, tmp_path: Path) -> None:
    truth = _truth(views)
    cones = (truth == SEGMENTS.index("cone")).float().mean(dim=(1, 2))
    best = int(cones.argmax())
    path = tmp_path / "mask.png"
    mask = (truth[best] == SEGMENTS.index("cone")).numpy()
    Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(path)
    target = guide.read_target(f"Cone={path}", SIZE)
    with torch.no_grad():
        output = guide.see(views.rgb)
    assert guide.loss(output, target.value).argmin().item() == best
    assert guide.measure(output[best : best + 1], target.value)["miou"][0] > 0.8
    (picture,) = target.pictures.values()
    colors = {color for _, color in picture.getcolors() or []}
    assert colors == {IGNORED, tuple(palette(6)[5].tolist())}
    assert list(target.files) == [path]


def test_bad_targets_are_said(guide: SegmentationGuide, tmp_path: Path) -> None:
    text = tmp_path / "words.txt"
    text.write_text("a red cube")
    absent = str(tmp_path / "absent.png")
    for target in (absent, f"cone={absent}", str(text), "https://example.org/a.png", ""):
        with pytest.raises(TargetError):
            guide.read_target(target, SIZE)
    with pytest.raises(TargetError) as caught:
        guide.read_target(f"come={absent}", SIZE)
    assert "'cone'" in caught.value.remedy


# --- pictures


def test_a_picture_has_the_colour_of_the_likeliest_class(guide: SegmentationGuide) -> None:
    labels = torch.arange(6).repeat_interleave(4).view(1, 4, 6).expand(2, 4, 6)
    pictures = guide.picture(guide.from_labels(labels))
    assert len(pictures) == 2
    assert pictures[0].size == (6, 4)
    np.testing.assert_array_equal(np.asarray(pictures[1]), palette(6)[labels[1].numpy()])


def test_what_is_not_compared_is_white() -> None:
    (picture,) = colored(torch.tensor([[[-1, 2]]]), 6)
    assert picture.getpixel((0, 0)) == IGNORED
    assert picture.getpixel((1, 0)) == tuple(palette(6)[2].tolist())


def test_colours_do_not_depend_on_how_many_there_are() -> None:
    many = palette(300)
    assert many.shape == (300, 3)
    np.testing.assert_array_equal(palette(6), many[:6])
    assert len({tuple(color) for color in many[:150].tolist()}) == 150


@pytest.mark.parametrize("kind", ["normal", "protanopia", "deuteranopia", "tritanopia"])
def test_the_first_colours_are_told_apart_by_the_colour_blind(kind: str) -> None:
    seen = _lab(palette(6), kind)
    assert min(float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2)) > 15


# Machado, Oliveira and Fernandes (2009), "A physiologically-based model for simulation of color
# vision deficiency", severity 1, on linear RGB.
_MACHADO = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                     [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
}  # fmt: skip
_TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)  # fmt: skip


def _lab(colors: np.ndarray, kind: str) -> np.ndarray:
    """CIELAB (D65) of sRGB colours as people of a kind of vision see them."""
    linear = np.where(
        colors / 255 <= 0.04045, colors / 255 / 12.92, ((colors / 255 + 0.055) / 1.055) ** 2.4
    )
    linear = np.clip(linear @ np.array(_MACHADO.get(kind, np.eye(3))).T, 0, 1)
    xyz = linear @ _TO_XYZ.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    lab = [116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])]
    return np.stack(lab, axis=-1)
