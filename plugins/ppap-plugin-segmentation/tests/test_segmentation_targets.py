"""Targets: label maps, masks of one class, and what is compared with them and how."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from ppap_plugin_segmentation.labelmaps import Conventions, read_labels
from ppap_plugin_segmentation.losses import cross_entropy, divergence, measures, outcomes
from ppap_plugin_segmentation.targets import (
    APART,
    one_class,
    one_hot,
    resized,
    split_class,
)
from torch.nn import functional as F

from ppap_host.files.errors import TargetError
from ppap_host.guides.targets import Given

NAMES = ("wall", "floor", "sphere", "cube", "traffic light")
SIZE = (16, 16)

Labels = np.ndarray[Any, np.dtype[Any]]


def _labels(seed: int = 0, side: int = 16) -> Labels:
    blocks = np.random.default_rng(seed).integers(0, len(NAMES), (4, 4))
    return np.kron(blocks, np.ones((side // 4, side // 4), dtype=np.int64)).astype(np.uint8)


def _logits(seed: int, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(count, len(NAMES), 16, 16, generator=generator)


# --- reading label maps


def _read(
    target: Path | str, names: Sequence[str] = NAMES, size: tuple[int, int] = SIZE
) -> torch.Tensor | None:
    """The indices of a label map, None for a photograph."""
    given = Given.of(str(target), ("photo", "labels", "mask"))
    found, _ = read_labels(given, size, Conventions(tuple(names)))
    return None if found is None else found.indices


def _as_palette(labels: Labels) -> Image.Image:
    image = Image.fromarray(labels).convert("P")
    image.putpalette([(i * 53) % 256 for i in range(768)])
    image.putdata(labels.flatten().tolist())
    return image


@pytest.mark.parametrize("kind", ["grey.png", "palette.png", "wide.png", "whole.npy", "real.npy"])
def test_a_label_map_of_any_kind_is_read_unmixed(tmp_path: Path, kind: str) -> None:
    labels, path = _labels(side=32), tmp_path / kind
    labels[:8, :8] = 255
    if kind == "wide.png":
        Image.fromarray(labels.astype(np.uint16)).save(path)
    elif kind == "palette.png":
        _as_palette(labels).save(path)
    elif kind == "grey.png":
        Image.fromarray(labels).save(path)
    else:
        np.save(path, labels.astype(np.float32 if kind == "real.npy" else np.int64))
    found = _read(path)
    assert found is not None
    expected = np.where(labels == 255, -1, labels.astype(np.int64))[::2, ::2]
    np.testing.assert_array_equal(found[0].numpy(), expected)


def test_a_label_map_is_cropped_to_the_aspect_ratio(tmp_path: Path) -> None:
    labels = np.zeros((16, 32), dtype=np.int64)
    labels[:, 8:24] = 3
    np.save(tmp_path / "wide.npy", labels)
    found = _read(tmp_path / "wide.npy")
    assert found is not None
    assert found.unique().tolist() == [3]


def _photograph(path: Path) -> None:
    ramp = np.linspace(0, 250, 256).reshape(16, 16).astype(np.uint8)
    Image.fromarray(ramp).save(path)


def test_photographs_are_no_label_maps(tmp_path: Path) -> None:
    for name in ("grey.png", "grey.jpg"):
        _photograph(tmp_path / name)
        assert _read(tmp_path / name) is None
    # A JPEG never holds labels: its compression would have changed them. Nor a photograph so dark.
    Image.fromarray(_labels()).save(tmp_path / "dark.jpg", quality=100)
    with pytest.raises(TargetError, match="changes numbers"):
        _read(tmp_path / "dark.jpg")
    photograph = Image.open(tmp_path / "grey.png").convert("RGB").quantize(64)
    photograph.save(tmp_path / "palette.png")
    assert _read(tmp_path / "palette.png") is None


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda m: np.where(m == 0, 7, m), "index 7, but the network has 5 classes"),
        (lambda m: m + 0.5, "no class indices"),
        (lambda m: m * 0 + 255, "nothing to compare"),
        (lambda m: m[0], "shape"),
    ],
)
def test_bad_label_maps_are_said(
    tmp_path: Path, make: Callable[[Labels], Labels], complaint: str
) -> None:
    np.save(tmp_path / "map.npy", make(_labels()))
    with pytest.raises(TargetError, match=complaint) as caught:
        _read(tmp_path / "map.npy")
    assert caught.value.remedy


def test_a_16_bit_map_with_an_index_too_high_is_said(tmp_path: Path) -> None:
    Image.fromarray(_labels().astype(np.uint16) + 40).save(tmp_path / "map.png")
    with pytest.raises(TargetError, match="index 44"):
        _read(tmp_path / "map.png")


@pytest.mark.parametrize("mode", ["L", "1"])
def test_a_mask_without_a_class_is_said(tmp_path: Path, mode: str) -> None:
    mask = Image.fromarray(np.where(_labels() > 2, 255, 0).astype(np.uint8)).convert(mode)
    mask.save(tmp_path / "mask.png")
    with pytest.raises(TargetError, match="black and white") as caught:
        _read(tmp_path / "mask.png")
    assert "light=" in caught.value.remedy


def test_255_is_a_class_where_the_network_has_so_many(tmp_path: Path) -> None:
    np.save(tmp_path / "map.npy", np.full((4, 4), 255))
    found = _read(tmp_path / "map.npy", [str(i) for i in range(300)])
    assert found is not None
    assert found.unique().tolist() == [255]


def test_files_that_are_no_images_are_said(tmp_path: Path) -> None:
    (tmp_path / "words.png").write_text("a red cube")
    Image.fromarray(_labels()).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    for name in ("absent.png", "absent.npy", "words.png", "cut.png"):
        with pytest.raises(TargetError):
            _read(tmp_path / name)


# --- one class


@pytest.mark.parametrize(
    ("text", "index"),
    [("cube", 3), (" Cube ", 3), ("traffic-light", 4), ("Traffic_Light", 4), ("2", 2), ("5", None),
     ("cone", None), ("-1", None), ("trash can", 5), ("Ash\uff43an", 5), ("lamp", None)],
)  # fmt: skip
def test_classes_go_by_name_or_number(text: str, index: int | None) -> None:
    """By any of their names; one that two classes have is refused, as of all guides."""
    names = NAMES if text == "5" else (*NAMES, "ashcan, trash can", "lamp", "lamp")
    given = Given("mask.png", "mask", {"of": text})
    if index is not None:
        found = split_class(given, names)
        assert found is not None and found[0] == index
        return
    with pytest.raises(TargetError, match="means 2 classes" if text == "lamp" else "no class"):
        split_class(given, names)


def test_a_class_and_its_mask_are_told_apart_from_paths(tmp_path: Path) -> None:
    def split(text: str) -> tuple[int, str] | None:
        found = split_class(Given.of(text, ("photo", "labels", "mask")), NAMES)
        return None if found is None else (found[0], found[1].text)

    assert split("cube=a/mask.png") == (3, "mask,of=cube:a/mask.png")
    assert split("cube=mask,invert=yes:a.png") == (3, "mask,invert=yes,of=cube:a.png")
    assert split("mask,of=cube,invert=yes:a.png") == (3, "mask,of=cube,invert=yes:a.png")
    assert split("cube=a=b.png") == (3, "mask,of=cube:a=b.png")
    assert split("a/cube=mask.png") is None
    assert split("mask.png") is None
    assert split("photo:cube=mask.png") is None
    odd = tmp_path / "a=b.png"
    odd.touch()
    assert split(str(odd)) is None


def test_an_unknown_class_gets_suggestions() -> None:
    with pytest.raises(TargetError, match="'sphre'") as caught:
        split_class(Given.of("sphre=mask.png"), NAMES)
    assert "'sphere'" in caught.value.remedy
    assert "traffic light" in caught.value.remedy
    with pytest.raises(TargetError, match="names no file"):
        split_class(Given.of("cube="), NAMES)


def test_white_is_the_class(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32), dtype=np.uint8)
    pixels[:, 16:] = 255
    for mode in ("L", "1", "RGB"):
        Image.fromarray(pixels).convert(mode).save(tmp_path / "mask.png")
        mask = Given.of(tmp_path / "mask.png").mask(SIZE).share
        assert mask.shape == (1, 16, 16)
        assert mask[0, :, :6].max() < 0.02
        assert mask[0, :, 10:].min() > 0.98
    Image.fromarray(pixels * 0).save(tmp_path / "nowhere.png")
    assert Given.of(tmp_path / "nowhere.png").mask(SIZE).share.max() == 0


def test_class_indices_in_place_of_a_mask_are_said(tmp_path: Path) -> None:
    Image.fromarray(_labels()).save(tmp_path / "map.png")
    with pytest.raises(TargetError, match="no white pixel"):
        Given.of(tmp_path / "map.png").mask(SIZE)


# --- the value


def test_a_label_map_asks_for_the_cross_entropy_of_its_compared_pixels() -> None:
    labels = torch.from_numpy(_labels().astype(np.int64))[None].repeat(2, 1, 1)
    labels[0, :5] = -1
    logits = _logits(0)
    expected = [
        F.cross_entropy(logits[i : i + 1], labels[i : i + 1], ignore_index=-1).item()
        for i in range(2)
    ]
    found = cross_entropy(logits, one_hot(labels, len(NAMES)))
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_one_class_asks_for_its_binary_cross_entropy() -> None:
    logits, mask = _logits(1), (torch.rand(1, 16, 16) > 0.5).float()
    seen = logits.double().softmax(dim=1)[:, 3]
    expected = F.binary_cross_entropy(seen, mask.double().expand_as(seen), reduction="none")
    found = cross_entropy(logits, one_class(mask, 3, len(NAMES)))
    assert found.tolist() == pytest.approx(expected.mean(dim=(1, 2)).tolist(), rel=1e-5)


def test_one_class_leaves_open_which_other_is_there() -> None:
    value = one_class(torch.zeros(1, 16, 16), 3, len(NAMES))
    for index, loss in ((0, 0.0), (4, 0.0), (3, 20.0)):
        sure = one_hot(torch.full((1, 16, 16), index), len(NAMES)) * 20
        assert cross_entropy(sure, value).item() == pytest.approx(loss, abs=1.5)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), other=st.integers(0, 1000))
def test_a_soft_target_is_a_divergence_least_at_itself(seed: int, other: int) -> None:
    a, b = _logits(seed), _logits(other + 2000)
    found = cross_entropy(a, b.softmax(dim=1))
    torch.testing.assert_close(found, divergence(a, b), rtol=1e-4, atol=1e-5)
    assert found.min() > 0.1
    assert cross_entropy(b, b.softmax(dim=1)).abs().max() < 1e-5


def test_the_divergence_takes_the_teacher_as_truth() -> None:
    student, teacher = _logits(5), _logits(6)
    expected = F.kl_div(
        student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True
    )
    torch.testing.assert_close(divergence(student, teacher), expected.sum(1).mean(dim=(1, 2)))


@pytest.mark.parametrize("strength", [0.0, 1.0, 1e3, 1e4])
def test_losses_and_gradients_are_finite_however_sure_the_network(strength: float) -> None:
    labels = torch.from_numpy(_labels().astype(np.int64))[None]
    values = [
        one_hot(labels, len(NAMES)),
        one_class((labels == 3).float(), 3, len(NAMES)),
        one_hot(labels * 0 - 1, len(NAMES)),
        _logits(4, 1).softmax(dim=1),
    ]
    for value in values:
        logits = (strength * _logits(9)).requires_grad_()
        losses = cross_entropy(logits, value)
        (gradient,) = torch.autograd.grad(losses.sum(), logits)
        assert torch.isfinite(losses).all()
        assert (losses >= -1e-5).all()
        assert torch.isfinite(gradient).all()


def test_what_is_not_compared_has_no_gradient() -> None:
    labels = torch.from_numpy(_labels().astype(np.int64))[None]
    labels[:, :, :7] = -1
    logits = _logits(2, 1).requires_grad_()
    loss = cross_entropy(logits, one_hot(labels, len(NAMES))).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[..., :7].abs().max() == 0
    assert gradient[..., 7:].abs().min() > 0


def test_each_image_may_have_a_target_of_its_own_kind() -> None:
    labels = torch.from_numpy(_labels().astype(np.int64))[None]
    values = torch.cat([
        one_hot(labels, len(NAMES)),
        one_class((labels == 1).float(), 1, len(NAMES)),
        _logits(7, 1).softmax(dim=1),
    ])  # fmt: skip
    logits = _logits(8, 3)
    alone = [cross_entropy(logits[i : i + 1], values[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(cross_entropy(logits, values), torch.cat(alone))
    each = [measures(logits[i : i + 1], values[i : i + 1])["miou"][0] for i in range(3)]
    assert measures(logits, values)["miou"] == pytest.approx(each)


def test_resizing_gives_shares_of_area_and_keeps_distributions() -> None:
    labels = torch.from_numpy(_labels().astype(np.int64))[None]
    value = one_hot(labels, len(NAMES))
    assert resized(value, (16, 16)) is value
    for side in (5, 8, 40):
        found = resized(value, (side, side))
        torch.testing.assert_close(found.sum(dim=1), torch.ones(1, side, side))
        assert found.min() >= 0
    # Blocks of four pixels become blocks of one or of sixteen.
    assert (resized(value, (64, 64)).argmax(1)[:, 8::16, 8::16] == labels[:, 2::4, 2::4]).all()


def test_resizing_keeps_marks_apart() -> None:
    mask = one_class(torch.rand(1, 16, 16), 2, len(NAMES))
    found = resized(mask, (6, 6))
    assert (found[:, [0, 1, 3, 4]] == APART).all()
    assert ((found[:, 2] >= 0) & (found[:, 2] <= 1)).all()
    labels = torch.zeros(1, 16, 16, dtype=torch.int64)
    labels[:, :, :8] = -1
    halves = resized(one_hot(labels, len(NAMES)), (8, 8))
    assert (halves[..., :3] == APART).all()
    torch.testing.assert_close(halves[:, 0, :, 5:], torch.ones(1, 8, 3))


def test_half_precision_is_compared_in_single() -> None:
    logits, value = _logits(3), _logits(4, 1).softmax(dim=1)
    found = cross_entropy(logits.half(), value)
    torch.testing.assert_close(found, cross_entropy(logits, value), rtol=1e-2, atol=0)


# --- measures


def test_measures_worked_by_hand() -> None:
    truth = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 2]]])
    seen = torch.tensor([[[0, 0, 0, 1], [0, 0, 1, 1]]])
    found = measures(one_hot(seen, 4) * 9, one_hot(truth, 4))
    # Class 0: 4 / 5; class 1: 2 / 4; class 2: 0 / 1; class 3 is nowhere.
    assert found["miou"] == [pytest.approx((0.8 + 0.5 + 0) / 3)]
    assert found["pixel-accuracy"] == [pytest.approx(6 / 8)]
    truth[0, 0, 2] = truth[0, 1, 3] = -1
    found = measures(one_hot(seen, 4) * 9, one_hot(truth, 4))
    assert found == {"miou": [1.0], "pixel-accuracy": [1.0]}


def test_measures_of_one_class_are_its_own() -> None:
    seen = one_hot(torch.tensor([[[0, 3, 3, 2]]]), 4) * 9
    found = measures(seen, one_class(torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]), 3, 4))
    assert found["miou"] == [pytest.approx(1 / 3)]
    assert found["pixel-accuracy"] == [pytest.approx(2 / 4)]
    nowhere = one_class(torch.zeros(1, 1, 4), 1, 4)
    assert measures(seen, nowhere) == {"miou": [1.0], "pixel-accuracy": [1.0]}


def test_nothing_to_compare_is_nan() -> None:
    found = measures(_logits(0, 1), torch.full((1, len(NAMES), 16, 16), APART))
    assert all(math.isnan(v[0]) for v in found.values())


def test_outcomes_name_the_rest() -> None:
    mask = one_class(torch.tensor([[[0.9, 0.1]]]), 1, 4)
    assert outcomes(mask).tolist() == [[[1, 4]]]
    assert outcomes(torch.full((1, 4, 1, 1), APART)).tolist() == [[[-1]]]
    assert outcomes(one_hot(torch.tensor([[[2]]]), 4)).tolist() == [[[2]]]
