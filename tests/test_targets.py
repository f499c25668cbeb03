"""Targets as they are given: heads, settings, things in memory, and what is said of them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image

from ppap_host.files.errors import TargetError
from ppap_host.files.images import from_tensor, read_rgb, to_tensor
from ppap_host.files.models import own_path
from ppap_host.guides.functions import FunctionGuide
from ppap_host.guides.targets import KINDS, Given, how_fitted, read_known, target

TAKEN = ("photo", "depth", "mask")


def rgb(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray[Any, Any]:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


# Heads


@pytest.mark.parametrize(
    ("text", "kind", "settings", "value"),
    [
        ("room.png", None, {}, "room.png"),
        ("depth:room.png", "depth", {}, "room.png"),
        ("depth,unit=mm:room.png", "depth", {"unit": "mm"}, "room.png"),
        ("depth,unit=mm,holes=7:a,b=c.png", "depth", {"unit": "mm", "holes": "7"}, "a,b=c.png"),
        ("photo:C:\\rooms\\one.png", "photo", {}, "C:\\rooms\\one.png"),
        ("mask,key=D:/a.txt:b.png", "mask", {"key": "D:/a.txt"}, "b.png"),
        ("C:\\rooms\\one.png", None, {}, "C:\\rooms\\one.png"),
        ("rooms:one.png", None, {}, "rooms:one.png"),
        ("Depth:room.png", None, {}, "Depth:room.png"),
        ("./depth:room.png", None, {}, "./depth:room.png"),
        ("mask,2.png", None, {}, "mask,2.png"),
        ("depth:photo:room.png", "depth", {}, "photo:room.png"),
    ],
)
def test_a_head_is_told_from_a_file_name(
    text: str, kind: str | None, settings: dict[str, str], value: str
) -> None:
    given = Given.of(text, TAKEN)
    assert (given.kind, given.settings, given.value, given.text) == (kind, settings, value, text)


@settings(deadline=None)
@drawn(
    st.sampled_from(TAKEN),
    st.dictionaries(
        st.from_regex(r"[a-z][\w-]{0,5}", fullmatch=True),
        st.text(
            st.characters(exclude_characters=",:\n\r", exclude_categories=["Z", "C"]), max_size=6
        ),
        max_size=3,
    ),
    st.text(min_size=1, max_size=20).filter(str.strip),
)
def test_what_is_written_is_read_again(kind: str, named: dict[str, str], value: str) -> None:
    written = ",".join([kind, *(f"{k}={v}" for k, v in named.items())]) + ":" + value
    given = Given.of(written, TAKEN)
    assert (given.kind, given.settings, given.value, given.text) == (kind, named, value, written)


def test_guides_whose_targets_are_words_have_no_heads(tmp_path: Path) -> None:
    given = Given.of("depth: a room", ())
    assert (given.kind, given.words, given.means_file) == (None, "depth: a room", False)
    Image.fromarray(rgb()).save(tmp_path / "room.png")
    with pytest.raises(TargetError) as caught:
        Given.of(f"photo:{tmp_path}/room.png").photo()
    assert caught.value.remedy == f"This guide's targets have no heads: give '{tmp_path}/room.png'."


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("labels:street.png", "which is not what this guide takes"),
        ("depth:", "names no file"),
        ("depth,unit=mm:", "names no file"),
        ("depth,mm:room.png", "something else than settings"),
        ("depth,unit=m,unit=mm:room.png", "gives a setting twice"),
    ],
)
def test_a_head_that_nearly_fits_is_refused(text: str, said: str) -> None:
    with pytest.raises(TargetError, match=said) as caught:
        Given.of(text, TAKEN)
    assert caught.value.remedy


def test_a_file_that_is_called_like_a_head_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(rgb()).save("photo:room.png")
    with pytest.raises(TargetError) as caught:
        Given.of("photo:room.png", TAKEN).photo()
    assert "write ./photo:room.png for it" in caught.value.remedy
    assert Given.of("./photo:room.png", TAKEN).photo().image.size == (64, 48)


def test_settings_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", rgb())
    for head, said in (
        ("photo,rang=0..1", "Did you mean 'range'"),
        ("photo,range=1..0", "range=0..255"),
        ("photo,range=0", "range=0..255"),
        ("mask,invert=maybe", "invert=yes or invert=no"),
        ("mask,white=bright", "Give a number"),
    ):
        given = Given.of(f"{head}:{tmp_path}/a.npy", TAKEN)
        with pytest.raises(TargetError) as caught:
            given.mask((8, 8)) if head.startswith("mask") else given.photo()
        assert said in caught.value.remedy


def test_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.fromarray(rgb()).save(tmp_path / "room.png")
    assert Given.of("~/room.png", TAKEN).photo().files == (tmp_path / "room.png",)
    assert Given.of("photo:~/room.png", TAKEN).means_file
    assert read_rgb("~/room.png").size == (64, 48)


def test_an_address_of_a_file_is_its_path(tmp_path: Path) -> None:
    path = tmp_path / "räum, 1=a.png"
    Image.fromarray(rgb()).save(path)
    for given in (path.as_uri(), f"photo:{path.as_uri()}", {"path": path.as_uri()}):
        assert Given.of(given, TAKEN).photo().files == (path,)
    assert read_rgb(path.as_uri()).size == (64, 48)
    assert own_path(path.as_uri()) == path


def test_files_that_have_moved_are_read_where_they_are(tmp_path: Path) -> None:
    Image.fromarray(rgb()).save(tmp_path / "copy.png")
    moved = {"gone.png": str(tmp_path / "copy.png")}
    given = Given.of("photo:gone.png", TAKEN, moved)
    assert given.photo().files == (tmp_path / "copy.png",)
    assert given.text == "photo:gone.png"
    # What a record does not hold is not read for it.
    other = Given.of(str(tmp_path / "copy.png"), TAKEN, moved)
    assert not other.is_file
    with pytest.raises(TargetError, match="does not hold it"):
        other.photo()


# In memory


def test_a_photograph_is_the_same_whatever_holds_it(tmp_path: Path) -> None:
    pixels, size = rgb(), (24, 24)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "room.png")
    np.save(tmp_path / "room.npy", pixels)
    unit = to_tensor(picture)
    wanted = read_rgb(tmp_path / "room.png", size).tobytes()
    for value in (
        str(tmp_path / "room.png"), tmp_path / "room.png", tmp_path / "room.npy", picture,
        pixels, pixels / 255, (pixels / 255).astype(np.float32), unit, unit[0], unit.double(),
        unit.requires_grad_(), torch.tensor(pixels).permute(2, 0, 1),
        target((unit.detach() + 1) / 2, range=(0, 1)), target(pixels.astype(int), range=(0, 255)),
        target(picture, "photo"),
    ):  # fmt: skip
        photo = Given.of(value).photo(size)
        assert photo.image.tobytes() == wanted
        assert photo.understood.startswith("photograph from ")
        assert photo.understood.endswith("the middle 48 x 48 of 64 x 48, resized to 24 x 24")
    half = Given.of(unit.detach().half()).photo(size).image
    assert (
        np.abs(np.asarray(half, int) - np.asarray(read_rgb(tmp_path / "room.png", size))).max() < 2
    )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.rand(3, 8, 8), "no negative values"),
        (torch.randn(3, 8, 8) * 9, "not from -1 to 1"),
        (torch.randn(2, 3, 8, 8), "has the shape"),
        (torch.randn(4, 8, 8), "has the shape"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "whole numbers"),
        (torch.full((3, 8, 8), torch.nan), "NaN"),
        (np.random.default_rng(0).normal(size=(8, 8, 3)), "not from 0 to 1"),
        (np.zeros((8, 8, 3), int), "white is not known"),
        (np.zeros((3, 8, 8), np.uint8), "the shape"),
        (np.zeros((8, 8, 3), complex), "type complex128"),
        (np.full((8, 8, 3), np.nan), "NaN"),
        (np.zeros((0, 8, 3), np.uint8), "the shape"),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_what_cannot_be_a_photograph_in_memory_is_refused(value: Any, said: str) -> None:
    with pytest.raises(TargetError, match=said) as caught:
        Given.of(value).photo((8, 8))
    assert caught.value.remedy


@pytest.mark.parametrize("value", [3, None, ["a.png"], b"a.png"], ids=str)
def test_what_is_no_target_is_refused(value: Any) -> None:
    with pytest.raises(TargetError, match="cannot be a"):
        Given.of(value)


def test_settings_belong_to_a_kind() -> None:
    with pytest.raises(TargetError, match="none is named"):
        target("room.png", unit="mm")
    given = target("room.png", "depth", unit="mm", holes=0.5)
    assert given.text == "depth,unit=mm,holes=0.5:room.png"
    assert target("a.png", "mask", invert=True).settings == {"invert": "yes"}
    with pytest.raises(TargetError, match="photograph"):
        Given.of(given).photo()


@pytest.mark.parametrize(
    "value",
    [
        rgb(), rgb() / 255, rgb()[..., 0].astype(np.int64), to_tensor(Image.fromarray(rgb())),
        Image.fromarray(rgb()), Image.fromarray(rgb()).quantize(8),
        Image.fromarray(rgb()[..., 0].astype(np.uint16)), Image.fromarray(rgb()).convert("CMYK"),
        Image.fromarray(rgb()[..., 0].astype(np.float32)),
    ],
    ids=lambda v: f"{type(v).__name__} {getattr(v, 'dtype', None) or getattr(v, 'mode', '')}",
)  # fmt: skip
def test_what_is_in_memory_can_be_kept_and_read_again(value: Any, tmp_path: Path) -> None:
    given = Given.of(value)
    suffix, data = given.encoded()
    path = tmp_path / f"copy{suffix}"
    path.write_bytes(data)
    again = Given.of(path)
    try:
        numbers = given.numbers()[0]
    except TargetError:
        assert again.photo().image.tobytes() == given.photo().image.tobytes()
    else:
        np.testing.assert_array_equal(again.numbers()[0], numbers)


def test_a_guide_reads_whatever_is_given() -> None:
    guide = FunctionGuide(lambda x, y: (x - y).square().mean((1, 2, 3)), "near", targeted=True)
    picture = Image.fromarray(rgb())
    found = guide.read_target(picture, (48, 64))
    torch.testing.assert_close(found.value, to_tensor(picture))
    assert found.text == "a picture in memory, 64 x 48, RGB"
    assert found.understood.startswith("photograph from a picture in memory")
    assert found.given is not None and found.given.in_memory
    with pytest.raises(TargetError, match="cannot take the target ''"):
        guide.read_target("", (48, 64))


# Masks


def halves(dtype: str = "uint8", yes: float = 255) -> np.ndarray[Any, Any]:
    values = np.zeros((16, 16), dtype)
    values[:, 8:] = yes
    return values


@pytest.mark.parametrize(
    ("values", "share"),
    [
        (halves(), 0.5), (halves("uint8", 1), 0.5), (halves("uint16", 100), 0.5),
        (halves("uint16", 65535), 0.5), (halves("int64", 1), 0.5), (halves("int32", 255), 0.5),
        (halves("float32", 1), 0.5), (halves("float64", 255), 0.5),
        (halves("float64", 0.75), 0.375), (halves("bool", True), 0.5),
        (halves("uint8", 0), 0.0), (np.full((4, 4), 255, np.uint8), 1.0),
        (np.full((4, 4), 65535, np.uint16), 1.0), (np.ones((4, 4), bool), 1.0),
        (np.ones((4, 4)), 1.0), (np.repeat(halves()[..., None], 3, 2), 0.5),
    ],
)  # fmt: skip
def test_masks_of_any_numbers(values: np.ndarray[Any, Any], share: float) -> None:
    found = Given.of(values).mask(values.shape[:2])  # type: ignore[arg-type]
    assert found.share.mean().item() == pytest.approx(share, abs=1e-6)
    assert f"mask with {100 * share:.0f} % white" in found.understood or share == 0.375


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (halves("uint8", 100) + np.tri(16, dtype=np.uint8) * 7, "no white pixel"),
        (halves("float64", 0.25), "no white pixel"),
        (np.full((4, 4), 7, np.uint8), "no white pixel"),
        (halves("float32", np.nan), "NaN"),
        (-halves("int64", 1), "below zero"),
        (rgb(16, 16), "several colours"),
        (halves("uint16", 300) + np.tri(16, dtype=np.uint16), "no white pixel"),
    ],
)
def test_what_is_no_mask_is_refused(values: np.ndarray[Any, Any], said: str) -> None:
    with pytest.raises(TargetError, match=said) as caught:
        Given.of(values).mask((16, 16))
    assert caught.value.remedy


def test_another_white_can_be_named() -> None:
    values = halves("uint8", 100)
    values[0, :8] = 50
    share = target(values, "mask", white=100).mask((16, 16)).share
    assert share[0, 0].unique().tolist() == [0.5, 1.0]


def test_a_soft_mask_and_a_label_map_are_doubted() -> None:
    ramp = np.tile(np.linspace(0, 1, 16), (16, 1))
    assert "neither black nor white" in Given.of(ramp).mask((16, 16)).doubts[0]
    pale = halves("uint8", 100) + np.uint8(50)
    assert "neither black nor white" in Given.of(pale).mask((16, 16)).doubts[0]
    assert "If it is a label map" in Given.of(halves("uint8", 3)).mask((16, 16)).doubts[0]
    assert not Given.of(halves("uint16", 100)).mask((16, 16)).doubts


def test_shrinking_a_mask_gives_shares_of_area() -> None:
    values = np.zeros((8, 8), np.uint8)
    values[:, :3] = 255
    share = Given.of(values).mask((2, 2)).share
    torch.testing.assert_close(share, torch.tensor([[[0.75, 0.0], [0.75, 0.0]]]))


def test_a_picture_to_fill_in_and_its_mask(tmp_path: Path) -> None:
    Image.fromarray(rgb()).save(tmp_path / "room.png")
    holes = np.zeros((48, 64, 4), np.uint8)
    holes[:, 32:] = (255, 0, 0, 255)
    Image.fromarray(holes).save(tmp_path / "layer.png")
    photo, mask, known = read_known(
        Given.of(tmp_path / "room.png"), Given.of(tmp_path / "layer.png"), (48, 64)
    )
    assert (known[..., :32] == 1).all() and (known[..., 32:] == 0).all()
    assert from_tensor(photo.pixels)[0].tobytes() == rgb().tobytes()
    assert "mask with 50 % white" in mask.understood
    Image.new("L", (64, 48)).save(tmp_path / "black.png")
    with pytest.raises(TargetError, match="nothing white"):
        read_known(Given.of(tmp_path / "room.png"), Given.of(tmp_path / "black.png"), (48, 64))
    Image.new("L", (64, 64), 255).save(tmp_path / "square.png")
    with pytest.raises(TargetError, match="64 x 64 pixels, the picture"):
        read_known(Given.of(tmp_path / "room.png"), Given.of(tmp_path / "square.png"), (48, 64))


# Words


@pytest.mark.parametrize(
    ("original", "size", "said"),
    [
        ((64, 48), (48, 64), "64 x 48 pixels as they are"),
        ((64, 48), None, "64 x 48 pixels as they are"),
        ((640, 480), (48, 64), "640 x 480 resized to 64 x 48"),
        ((640, 480), (64, 64), "the middle 480 x 480 of 640 x 480, resized to 64 x 64"),
        ((3, 300), (64, 64), "the middle 3 x 3 of 3 x 300, resized to 64 x 64"),
    ],
)
def test_how_a_picture_is_fitted(
    original: tuple[int, int], size: tuple[int, int] | None, said: str
) -> None:
    assert how_fitted(original, size) == said


def test_every_kind_says_what_it_means() -> None:
    assert set(KINDS) == {"photo", "depth", "disparity", "inverse", "labels", "mask"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
@pytest.mark.parametrize("read", ["photo", "mask", "numbers"])
def test_pipes_and_devices_are_never_waited_for(tmp_path: Path, read: str) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.npy").symlink_to("/dev/zero")
    for name in ("pipe.png", "zero.npy"):
        given = Given.of(tmp_path / name)
        with pytest.raises(TargetError, match="not a regular file"):
            given.mask((8, 8)) if read == "mask" else getattr(given, read)()


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"path": "room.png", "as": "depth", "unit": "mm"}, "depth,unit=mm:room.png"),
        ({"path": "room.png", "as": "depth", "holes": 0.5}, "depth,holes=0.5:room.png"),
        ({"path": "a.png", "as": "mask", "invert": True}, "mask,invert=yes:a.png"),
        ({"path": "a.npy", "as": "photo", "range": [0, 255]}, "photo,range=0..255:a.npy"),
    ],
)
def test_a_table_is_what_a_text_is(table: dict[str, Any], text: str) -> None:
    found, written = Given.of(table), Given.of(text, KINDS)
    assert (found.value, found.kind, found.settings) == (
        written.value, written.kind, written.settings
    )  # fmt: skip
    assert Given.of(found.table) == found or Given.of(found.table).text == text


def test_a_table_holds_what_a_text_cannot() -> None:
    odd = {"path": "depth:a,b.png", "as": "labels", "palette": "my: own, colours.txt"}
    assert Given.of(odd, KINDS).table == odd


@pytest.mark.parametrize(
    "table",
    [
        {}, {"as": "depth"}, {"path": 3}, {"path": "", "as": "depth"}, {"path": "a", "unit": "mm"},
        {"path": "a", "as": 3}, {"path": "a", "as": "depth", "unit": {"mm": 1}},
        {"path": "a", "as": "depth", "unit": None}, {"path": "a", "as": "dpeth"},
    ],
)  # fmt: skip
def test_a_table_that_is_no_target_is_refused(table: dict[str, Any]) -> None:
    with pytest.raises(TargetError) as caught:
        Given.of(table, ("photo", "depth"))
    assert caught.value.remedy


def test_masked_arrays_know_their_holes() -> None:
    values = np.ma.masked_greater(np.arange(6.0).reshape(2, 3) + 1, 4)
    numbers, _, _ = target(values, "depth").numbers()
    assert np.isnan(numbers).tolist() == values.mask.tolist()


def test_a_photograph_that_is_half_transparent_is_doubted(tmp_path: Path) -> None:
    """So is one whose depth is in its alpha channel; a soft edge is not."""
    alpha = np.linspace(1, 254, 48 * 64).reshape(48, 64, 1).astype(np.uint8)
    edge = np.where(np.arange(64)[None, :, None] < 4, alpha, 255).astype(np.uint8)
    for name, layer, doubted in (("depth", alpha, True), ("edge", edge, False)):
        Image.fromarray(np.dstack([rgb(), layer])).save(tmp_path / f"{name}.png")
        doubts = Given.of(tmp_path / f"{name}.png").photo().doubts
        assert any("half transparent" in doubt for doubt in doubts) == doubted


def test_an_array_with_transparency_is_read_as_the_picture_that_it_is(tmp_path: Path) -> None:
    pixels = np.dstack([rgb(), np.where(np.arange(64)[None] < 30, 0, 255).repeat(48, 0)])
    pixels = pixels.astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "layer.png")
    np.save(tmp_path / "layer.npy", pixels)
    photos = [
        Given.of(value).photo()
        for value in (tmp_path / "layer.png", tmp_path / "layer.npy", pixels)
    ]
    assert len({photo.image.tobytes() for photo in photos}) == 1
    masks = [
        replace(Given.of(value), kind="mask", settings={"by": "alpha"}).mask((48, 64)).share
        for value in (tmp_path / "layer.png", tmp_path / "layer.npy", pixels)
    ]
    assert masks[0].mean() == pytest.approx(34 / 64)
    assert all(torch.equal(mask, masks[0]) for mask in masks)


def test_inks_without_a_profile_are_doubted(tmp_path: Path) -> None:
    Image.fromarray(rgb()).convert("CMYK").save(tmp_path / "ink.tif")
    photo = Given.of(tmp_path / "ink.tif").photo()
    assert "inks (CMYK) have no profile" in photo.understood and "in sRGB" in photo.doubts[0]
    assert np.abs(np.asarray(photo.image).astype(int) - rgb()).max() <= 2


@pytest.mark.parametrize("text", ["Photo:room.png", "image,unit=mm:room.png"])
def test_a_head_that_is_none_is_told_where_the_file_is_there(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(rgb()).save("room.png")
    with pytest.raises(TargetError) as caught:
        Given.of(text, TAKEN).photo()
    assert "known are photo" in caught.value.remedy


def test_an_address_is_told_as_it_was_given() -> None:
    with pytest.raises(TargetError, match=r"'http://example\.org/a\.png' is an address"):
        Given.of("http://example.org/a.png").photo()
