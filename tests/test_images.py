"""Any picture is read as people see it, any other file is refused by name, and writing is safe."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ppap_host.files import images
from ppap_host.files.decoding import PICTURES, decode
from ppap_host.files.errors import OutputError, TargetError
from ppap_host.files.images import (
    contact_sheet,
    from_tensor,
    means_file,
    read_rgb,
    to_tensor,
)
from ppap_host.files.writing import read_png_record, write_file, write_png
from ppap_host.guides.targets import Given, fit_numbers


def read_map(path: Path | str) -> np.ndarray:
    """The numbers of a map as they are stored."""
    return Given.of(path).numbers()[0]


RED, GREEN, BLUE, WHITE = (220, 30, 40), (20, 190, 60), (30, 60, 210), (255, 255, 255)
QUARTERS = (RED, GREEN, BLUE, WHITE)
SAVED_AS = {"PNG": 0, "BMP": 0, "TIFF": 0, "GIF": 4, "JPEG": 8, "WEBP": 30}
"""Format -> how far a colour may be off."""

several = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def quarters(width: int = 64, height: int = 48) -> Image.Image:
    """Red, green / blue, white."""
    image = Image.new("RGB", (width, height), WHITE)
    w, h = width // 2, height // 2
    for colour, corner in zip(QUARTERS, ((0, 0), (w, 0), (0, h)), strict=False):
        image.paste(colour, (*corner, corner[0] + w, corner[1] + h))
    return image


def centres(image: Image.Image) -> list[tuple[int, int, int]]:
    """Colours in the middle of the four quarters, as ``QUARTERS`` has them."""
    w, h = image.size
    found = [image.getpixel((x, y)) for y in (h // 4, 3 * h // 4) for x in (w // 4, 3 * w // 4)]
    return [tuple(colour) for colour in found]  # type: ignore[arg-type,misc]


def near(got: object, wanted: object, tolerance: int) -> bool:
    return bool(np.abs(np.subtract(got, wanted)).max() <= tolerance)


def refused(path: Path | str, read: Callable[..., object] = read_rgb) -> TargetError:
    with pytest.raises(TargetError) as caught:
        read(path)
    assert Path(path).name in caught.value.message
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    return caught.value


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


# Reading photographs


@pytest.mark.parametrize("format", SAVED_AS)
def test_every_format_keeps_its_colours(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"picture.{format.lower()}"
    quarters().save(path, format=format)
    image = read_rgb(path)
    assert (image.mode, image.size) == ("RGB", (64, 48))
    assert near(centres(image), QUARTERS, SAVED_AS[format])
    assert decode(path).exact == (format not in ("JPEG", "WEBP"))


def test_the_content_and_not_the_name_says_what_a_file_is(tmp_path: Path) -> None:
    path = tmp_path / "really-a-png.jpg"
    quarters().save(path, format="PNG")
    assert centres(read_rgb(path)) == list(QUARTERS)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_cameras_held_any_way_give_upright_pictures(
    tmp_path: Path, orientation: int, format: str
) -> None:
    # How a camera stores an upright picture under each tag: the inverse of what a viewer does.
    T = Image.Transpose
    stored = {
        1: None, 2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM,
        5: T.TRANSPOSE, 6: T.ROTATE_90, 7: T.TRANSVERSE, 8: T.ROTATE_270,
    }[orientation]  # fmt: skip
    image = quarters() if stored is None else quarters().transpose(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo"
    image.save(path, format=format, exif=exif)
    upright = read_rgb(path)
    assert upright.size == (64, 48)
    assert near(centres(upright), QUARTERS, SAVED_AS[format])


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    half = Image.new("RGBA", (8, 8), (200, 0, 0, 128))
    half.save(tmp_path / "half.png")
    assert near(read_rgb(tmp_path / "half.png").getpixel((4, 4)), (227, 127, 127), 1)
    Image.new("LA", (8, 8), (0, 0)).save(tmp_path / "clear.png")
    assert read_rgb(tmp_path / "clear.png").getpixel((4, 4)) == WHITE
    Image.new("RGBA", (8, 8), (9, 8, 7, 0)).save(tmp_path / "clear.webp")
    assert read_rgb(tmp_path / "clear.webp").getpixel((4, 4)) == WHITE


def test_grey_pictures(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 77).save(tmp_path / "grey.png")
    assert read_rgb(tmp_path / "grey.png").getpixel((0, 0)) == (77, 77, 77)
    Image.new("LA", (8, 8), (77, 255)).save(tmp_path / "opaque.png")
    assert read_rgb(tmp_path / "opaque.png").getpixel((0, 0)) == (77, 77, 77)
    stripes = Image.new("1", (8, 8), 0)
    stripes.paste(1, (4, 0, 8, 8))
    stripes.save(tmp_path / "bit.png")
    bit = read_rgb(tmp_path / "bit.png")
    assert (bit.getpixel((0, 0)), bit.getpixel((7, 0))) == ((0, 0, 0), WHITE)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize(("stored", "seen"), [(65535, 255), (32896, 128), (257, 1), (200, 1)])
def test_sixteen_bits_are_brought_to_eight(
    tmp_path: Path, suffix: str, stored: int, seen: int
) -> None:
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(np.full((8, 8), stored, np.uint16)).save(path)
    assert read_rgb(path).getpixel((0, 0)) == (seen, seen, seen)


@pytest.mark.parametrize(
    ("values", "seen"),
    [
        (np.full((8, 8), 0.5, np.float32), 128),
        (np.full((8, 8), 200.0, np.float32), 200),
        (np.full((8, 8), 200, np.int32), 200),
        (np.full((8, 8), 65535, np.int32), 255),
    ],
)
def test_thirty_two_bits_take_the_smallest_usual_white(
    tmp_path: Path, values: np.ndarray, seen: int
) -> None:
    Image.fromarray(values).save(tmp_path / "deep.tiff")
    assert read_rgb(tmp_path / "deep.tiff").getpixel((0, 0)) == (seen, seen, seen)


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_printing_inks(tmp_path: Path, format: str) -> None:
    path = tmp_path / "print"
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(path, format=format)
    assert near(read_rgb(path).getpixel((8, 8)), (255, 0, 0), 8)


def test_palettes(tmp_path: Path) -> None:
    palette = quarters().quantize(8)
    for name in ("p.png", "p.gif", "p.bmp", "p.tiff"):
        palette.save(tmp_path / name)
        assert near(centres(read_rgb(tmp_path / name)), QUARTERS, 4), name


@pytest.mark.parametrize("name", ["p.png", "p.gif"])
def test_palettes_with_a_transparent_entry(tmp_path: Path, name: str) -> None:
    image = Image.new("P", (16, 16), 0)
    image.putpalette([*BLUE, *RED])
    image.paste(1, (8, 0, 16, 16))
    image.save(tmp_path / name, transparency=0)
    rgb = read_rgb(tmp_path / name)
    assert (rgb.getpixel((2, 2)), rgb.getpixel((12, 2))) == (WHITE, RED)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_an_animation_shows_its_first_frame(tmp_path: Path, format: str) -> None:
    first, second = (Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE))
    first.save(tmp_path / "film", format=format, save_all=True, append_images=[second])
    assert near(read_rgb(tmp_path / "film").getpixel((8, 8)), RED, SAVED_AS[format])


@several
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    mode=st.sampled_from(["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK"]),
    size=st.none() | st.tuples(st.integers(1, 64), st.integers(1, 64)),
)
def test_any_size_and_mode_gives_the_asked_size(
    tmp_path: Path, width: int, height: int, mode: str, size: tuple[int, int] | None
) -> None:
    white = {"CMYK": (0, 0, 0, 0), "I;16": 65535, "1": 1, "RGB": WHITE, "RGBA": (*WHITE, 255)}
    image = Image.new(mode, (width, height), white.get(mode, (255, 255) if mode == "LA" else 255))
    if mode == "P":
        image.putpalette([255] * 768)
    path = tmp_path / "any"
    image.save(path, format="TIFF" if mode == "CMYK" else "PNG")
    rgb = read_rgb(path, size)
    assert rgb.mode == "RGB"
    assert rgb.size == ((width, height) if size is None else (size[1], size[0]))
    assert rgb.getextrema() == ((255, 255),) * 3


def test_the_middle_is_kept_and_nothing_is_stretched(tmp_path: Path) -> None:
    wide = Image.new("RGB", (300, 100), BLUE)
    wide.paste(RED, (100, 0, 200, 100))
    wide.save(tmp_path / "wide.png")
    middle = np.asarray(read_rgb(tmp_path / "wide.png", (32, 32)))
    assert near(middle, RED, 16)
    assert near(middle[:, 2:-2], RED, 1)


def test_a_large_jpeg_is_not_spoiled_by_decoding_it_smaller(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    quarters(2048, 1536).transpose(Image.Transpose.ROTATE_90).save(
        tmp_path / "large.jpg", quality=95, exif=exif
    )
    image = read_rgb(tmp_path / "large.jpg", (48, 64))
    assert image.size == (64, 48)
    assert near(centres(image), QUARTERS, 4)


# Refusing files


def test_a_missing_file(tmp_path: Path) -> None:
    assert "There is no file" in refused(tmp_path / "none.png").message
    assert "There is no file" in refused(tmp_path / "none.npy", read_map).message


@pytest.mark.parametrize("read", [read_rgb, read_map])
@pytest.mark.parametrize("name", ["x" * 300, "x\0y", "a red cube\nand a cone"])
def test_text_that_can_be_no_file(name: str, read: Callable[..., object]) -> None:
    with pytest.raises(TargetError, match="There is no file"):
        read(name)


@pytest.mark.parametrize("written", ["'rôom.png'", "ro\u0302om.png", "rôom.PNG", "rôom.png "])
def test_a_name_that_is_nearly_a_files_is_told(tmp_path: Path, written: str) -> None:
    (tmp_path / "rôom.png").touch()
    assert "rôom.png" in refused(tmp_path / written).remedy


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    assert "is a folder" in refused(tmp_path / "folder.png").message


def test_an_address() -> None:
    assert "Download" in refused("https://example.com/room.png").remedy
    assert "Decode" in refused("data:image/png;base64,iVBORw0KGgo=").remedy


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    assert "is empty" in refused(tmp_path / "empty.png").message


@pytest.mark.parametrize("content", [b"just words\n", b"\x89PNG", b"\x00" * 100, b"%PDF-1.7\n"])
@pytest.mark.parametrize("read", [read_rgb, read_map])
def test_something_else_called_png(
    tmp_path: Path, content: bytes, read: Callable[..., object]
) -> None:
    (tmp_path / "words.png").write_bytes(content)
    assert "is not an image" in refused(tmp_path / "words.png", read).message


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("kept", [0.4, 0.7, 0.9])
def test_a_download_that_broke_off(tmp_path: Path, format: str, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), format)
    path = tmp_path / "cut.image"
    path.write_bytes(data[: int(len(data) * kept)])
    error = refused(path)
    assert "damaged or cut short" in error.message
    assert "again" in error.remedy


def bomb(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000)))


@pytest.mark.parametrize("size", [(30_000, 30_000), (15_001, 10_000), (2**31 - 1, 1)])
@pytest.mark.parametrize("read", [read_rgb, read_map])
def test_a_decompression_bomb_is_not_unpacked(
    tmp_path: Path, size: tuple[int, int], read: Callable[..., object]
) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb(*size))
    error = refused(tmp_path / "bomb.png", read)
    assert "150 megapixels" in error.message
    assert "smaller" in error.remedy


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize("name", ["secret.png", "secret.npy"])
def test_a_file_that_may_not_be_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(encoded(quarters(), "PNG"))
    path.chmod(0)
    assert "may not be read" in refused(path, read_map).message


@several
@given(data=st.data(), format=st.sampled_from(sorted(SAVED_AS)))
def test_damage_anywhere_is_survived_or_refused(
    tmp_path: Path, data: st.DataObject, format: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if format in ("GIF", "BMP") else {"exif": exif}
    content = bytearray(encoded(quarters(16, 12), format, **options))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged"
    path.write_bytes(content)
    with contextlib.suppress(TargetError):
        assert read_rgb(path, (8, 8)).size == (8, 8)


# Maps


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.float32, np.float64, ">f4"])
def test_an_array_is_read_as_it_is(tmp_path: Path, kind: str) -> None:
    values = np.arange(12).reshape(3, 4).astype(kind)
    np.save(tmp_path / "map.npy", values)
    read = read_map(tmp_path / "map.npy")
    assert read.dtype == values.dtype
    np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int32, np.float32])
def test_an_image_of_numbers_is_read_as_it_is(tmp_path: Path, kind: type) -> None:
    values = (np.arange(12).reshape(3, 4) * 20).astype(kind)
    Image.fromarray(values).save(tmp_path / "map.tiff")
    np.testing.assert_array_equal(read_map(tmp_path / "map.tiff"), values)


def test_the_columns_of_a_fortran_array_stay_columns(tmp_path: Path) -> None:
    values = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.save(tmp_path / "map.npy", values)
    np.testing.assert_array_equal(read_map(tmp_path / "map.npy"), values)


@several
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_a_resized_map_keeps_its_unit(shape: tuple[int, int], size: tuple[int, int]) -> None:
    for filter in (Image.Resampling.BILINEAR, Image.Resampling.BOX, Image.Resampling.NEAREST):
        read = fit_numbers(np.full(shape, 3.25, np.float32), size, filter)
        assert read.shape == size
        np.testing.assert_allclose(read, 3.25, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_photograph_has_no_holes(tmp_path: Path, bad: float) -> None:
    values = np.zeros((4, 4), np.float32)
    values[1, 2] = bad
    np.save(tmp_path / "map.npy", values)
    Image.fromarray(values).save(tmp_path / "map.tiff")
    for name in ("map.npy", "map.tiff"):
        assert "NaN or infinite" in refused(tmp_path / name).message
        np.testing.assert_array_equal(read_map(tmp_path / name), values)


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(4),
        np.zeros((2, 3, 4)),
        np.zeros(()),
        np.zeros((0, 4)),
        np.zeros((2, 2), complex),
        np.array([["a", "b"]]),
        np.zeros((2, 2), "datetime64[s]"),
        np.zeros((2, 2), [("x", "f4")]),
    ],
    ids=["1d", "3d", "0d", "empty", "complex", "text", "dates", "records"],
)
def test_arrays_that_are_no_maps(tmp_path: Path, values: np.ndarray) -> None:
    np.save(tmp_path / "map.npy", values)
    refused(tmp_path / "map.npy", read_map)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    import pickle

    sprung = tmp_path / "sprung"
    np.save(tmp_path / "object.npy", np.array([[Trap(sprung)]], dtype=object), allow_pickle=True)
    (tmp_path / "bare.npy").write_bytes(pickle.dumps(Trap(sprung)))
    for name in ("object.npy", "bare.npy"):
        refused(tmp_path / name, read_map)
        assert not sprung.exists()


def test_files_that_are_no_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "archive.npz", a=np.zeros((2, 2)), b=np.ones((2, 2)))
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    np.save(tmp_path / "cut.npy", np.zeros((64, 64)))
    data = (tmp_path / "cut.npy").read_bytes()
    (tmp_path / "cut.npy").write_bytes(data[:-100])
    (tmp_path / "head.npy").write_bytes(data[:40])
    (tmp_path / "garbled.npy").write_bytes(data[:10] + b"((((((" + data[16:])
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04 not one")
    (tmp_path / "words.npy").write_bytes(b"words")
    (tmp_path / "empty.npy").write_bytes(b"")
    for path in tmp_path.glob("*.npy"):
        refused(path, read_map)


def test_a_colour_picture_is_no_map(tmp_path: Path) -> None:
    quarters().save(tmp_path / "colour.png")
    error = refused(tmp_path / "colour.png", read_map)
    assert "colours (RGB)" in error.message
    assert "16-bit" in error.remedy


# Archives of arrays, and other containers


def test_an_array_is_taken_out_of_its_archive(tmp_path: Path) -> None:
    a, b = np.arange(6.0).reshape(2, 3), np.ones((2, 3), np.uint8)
    np.savez_compressed(tmp_path / "one.npz", depth=a)
    np.savez(tmp_path / "two.npz", depth=a, valid=b)
    np.testing.assert_array_equal(read_map(tmp_path / "one.npz"), a)
    assert decode(tmp_path / "one.npz").notes == ("its array 'depth'",)
    error = refused(tmp_path / "two.npz", read_map)
    assert "holds 2 arrays: there are depth, valid" in error.message
    assert "key=depth" in error.remedy
    np.testing.assert_array_equal(decode(tmp_path / "two.npz", key="valid").pixels, b)
    with pytest.raises(TargetError, match="no array 'mask'"):
        decode(tmp_path / "two.npz", key="mask")
    np.save(tmp_path / "a.npy", a)
    with pytest.raises(TargetError, match="one picture"):
        decode(tmp_path / "a.npy", key="depth")


def test_an_archive_that_grows_is_not_unpacked(tmp_path: Path) -> None:
    import zipfile

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f8", "fortran_order": False, "shape": (40_000, 40_000)}
    )
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", header.getvalue() + bytes(1 << 20))
    assert "150 megapixels" in refused(tmp_path / "bomb.npz", read_map).message


def test_pickles_in_archives_are_never_opened(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    np.savez(tmp_path / "object.npz", a=np.array([[Trap(sprung)]], dtype=object))
    refused(tmp_path / "object.npz", read_map)
    assert not sprung.exists()


def test_formats_of_many_channels_keep_their_order(tmp_path: Path) -> None:
    OpenEXR = pytest.importorskip("OpenEXR")
    depth = np.arange(12, dtype=np.float32).reshape(3, 4)
    colours = np.random.default_rng(0).random((3, 4, 3), np.float32)
    OpenEXR.File({}, {"Z": depth, "RGB": colours}).write(str(tmp_path / "both.exr"))
    np.testing.assert_array_equal(decode(tmp_path / "both.exr", key="Z").pixels, depth)
    np.testing.assert_array_equal(decode(tmp_path / "both.exr", key="G").pixels, colours[..., 1])
    assert "holds 4 channels" in refused(tmp_path / "both.exr").message
    # A data window inside the picture: there is nothing around it.
    header = {
        "dataWindow": ((1, 1), (4, 3)), "displayWindow": ((0, 0), (5, 4)),
    }  # fmt: skip
    OpenEXR.File(header, {"Y": depth}).write(str(tmp_path / "part.exr"))
    whole = decode(tmp_path / "part.exr").pixels
    assert isinstance(whole, np.ndarray)
    assert whole.shape == (5, 6)
    np.testing.assert_array_equal(whole[1:4, 1:5], depth)
    assert np.isnan(whole).sum() == 30 - 12


def test_a_pfm_is_the_right_way_up(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    for scale, order in ((-1, "<f4"), (1, ">f4")):
        data = b"Pf\n3 2\n%d\n" % scale + values[::-1].astype(order).tobytes()
        (tmp_path / "map.pfm").write_bytes(data)
        np.testing.assert_array_equal(read_map(tmp_path / "map.pfm"), values)
    (tmp_path / "three.pfm").write_bytes(b"PF\n1 1\n-1\n" + bytes(12))
    assert "three channels" in refused(tmp_path / "three.pfm").message


@pytest.mark.parametrize("most", [3, 100, 255, 4095, 65535])
@pytest.mark.parametrize("plain", [True, False])
def test_a_pgm_keeps_its_numbers(tmp_path: Path, most: int, plain: bool) -> None:
    values = np.array([[0, 1, 2], [most - 1, most, most // 2]])
    head = b"P%d\n3 2\n%d\n" % (2 if plain else 5, most)
    raw = values.astype("u1" if most < 256 else ">u2").tobytes()
    numbers = " ".join(map(str, values.flat)).encode() + b"\n"
    (tmp_path / "map.pgm").write_bytes(head + (numbers if plain else raw))
    np.testing.assert_array_equal(read_map(tmp_path / "map.pgm"), values)


def test_only_promised_formats_are_opened(tmp_path: Path) -> None:
    for format in ("EPS", "PDF", "ICO", "TGA", "PCX", "SGI", "DDS", "ICNS", "JPEG2000", "MSP"):
        if format not in Image.SAVE:
            Image.init()
        picture = quarters().convert("1" if format == "MSP" else "RGB")
        path = tmp_path / "picture.png"
        picture.save(path, format=format)
        assert "is not an image" in refused(path).message, format
    assert set(PICTURES) == {"PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF"}


@pytest.mark.parametrize(
    ("head", "what", "remedy"),
    [
        (b"\0\0\0\x18ftypheic", "HEIC", "ppap-host[formats]"),
        (b"\x76\x2f\x31\x01", "OpenEXR", "ppap-host[formats]"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript", "Save it as PNG"),
        (b"\x89HDF\r\n", "HDF5", "numpy.save"),
        (b"\x80\x04\x95", "a pickle", "never opened"),
        (b"<!DOCTYPE html>", "a web page", "Download the picture"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer", "git lfs pull"),
    ],
)
def test_what_a_file_really_is_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: bytes, what: str, remedy: str
) -> None:
    for extra in ("pillow_heif", "OpenEXR"):
        monkeypatch.setitem(sys.modules, extra, None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    (tmp_path / "picture.png").write_bytes(head + bytes(64))
    error = refused(tmp_path / "picture.png")
    assert f"it is {what}" in error.message
    assert remedy in error.remedy


# Tensors


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_eight_bits_survive_the_way_through_a_tensor(b: int, h: int, w: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (b, h, w, 3), np.uint8)
    x = torch.cat([to_tensor(Image.fromarray(p)) for p in pixels])
    assert x.shape == (b, 3, h, w)
    assert x.dtype == torch.float32
    assert x.min() >= -1
    assert x.max() <= 1
    np.testing.assert_array_equal(np.stack([np.asarray(i) for i in from_tensor(x)]), pixels)


def test_values_out_of_range_are_clipped() -> None:
    (image,) = from_tensor(torch.tensor([-9.0, 0.0, 9.0]).reshape(1, 3, 1, 1))
    assert image.getpixel((0, 0)) == (0, 128, 255)


# Writing

records = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("aé漢", max_size=3), inner),
    max_leaves=8,
)


@several
@given(st.dictionaries(st.text("abc漢 ", max_size=5), records, max_size=4))
def test_a_png_gives_back_its_record(tmp_path: Path, record: dict[str, object]) -> None:
    write_png(tmp_path / "x.png", quarters(), record)
    assert read_png_record(tmp_path / "x.png") == record
    assert centres(read_rgb(tmp_path / "x.png")) == list(QUARTERS)


def test_a_long_record_is_read_again(tmp_path: Path) -> None:
    record = {"prompt": "very " * 100_000}
    write_png(tmp_path / "x.png", quarters(), record)
    assert read_png_record(tmp_path / "x.png") == record


def test_the_same_picture_and_record_give_the_same_bytes(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", quarters(), {"b": 1, "a": 2})
    write_png(tmp_path / "b.png", quarters(), {"a": 2, "b": 1})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_pictures_without_a_record(tmp_path: Path) -> None:
    write_png(tmp_path / "x.png", quarters())
    quarters().save(tmp_path / "x.jpg")
    assert read_png_record(tmp_path / "x.png") is None
    (tmp_path / "words.png").write_text("words")
    for name in ("x.jpg", "words.png"):
        refused(tmp_path / name, read_png_record)


def test_a_record_is_json_whatever_it_holds(tmp_path: Path) -> None:
    record = {"loss": math.nan, "size": [math.inf, 1.5], "name": "x\udcff.png"}
    write_png(tmp_path / "x.png", quarters(), record)
    expected = {"loss": None, "size": [None, 1.5], "name": "x\udcff.png"}
    assert read_png_record(tmp_path / "x.png") == expected


def test_folders_are_made_on_the_way(tmp_path: Path) -> None:
    write_file(tmp_path / "a" / "b" / "x.txt", b"new")
    assert (tmp_path / "a" / "b" / "x.txt").read_bytes() == b"new"


def test_files_have_the_permissions_of_any_other(tmp_path: Path) -> None:
    write_file(tmp_path / "ours", b"")
    (tmp_path / "theirs").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "x.txt"
    write_file(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A real failure in the middle of the data: no file may grow beyond this.
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OutputError) as caught:
            write_file(path, bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "x.txt" in caught.value.message
    assert "--out" in caught.value.remedy
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_a_folder_or_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "folder", tmp_path / "file" / "x.png"):
        with pytest.raises(OutputError, match="Cannot write"):
            write_file(path, b"new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_an_interrupted_write_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(images.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "x.txt", b"new")
    assert list(tmp_path.iterdir()) == []


# Contact sheets


def test_a_sheet_shows_every_picture_whole() -> None:
    colours = [RED, GREEN, BLUE]
    row = [("label", Image.new("RGB", (16, 8), colour)) for colour in colours]
    sheet = contact_sheet([("first", row), ("second", row[:1])], cell=64)
    flat = [tuple(p) for p in np.asarray(sheet).reshape(-1, 3).tolist()]
    assert flat.count(RED) == 2 * 64 * 32
    assert flat.count(GREEN) == flat.count(BLUE) == 64 * 32


@pytest.mark.parametrize(
    "rows", [[], [("empty", [])], [("", [("", Image.new("L", (1, 500)))])]], ids=["no", "0", "thin"]
)
def test_odd_sheets_are_still_pictures(rows: list) -> None:
    assert min(contact_sheet(rows, cell=32).size) > 0


def test_a_sheet_is_bounded_and_says_what_it_leaves_out() -> None:
    picture = Image.new("RGB", (8, 8), RED)
    few = contact_sheet([("row", [("", picture)] * 4)] * 3, cell=64)
    many = contact_sheet([("row", [("", picture)] * 4)] * 3000, cell=64)
    wide = contact_sheet([("row", [("", picture)] * 3000)], cell=64)
    assert max(*many.size, *wide.size) <= 12_000
    # The same rows, and a line of text below the last one.
    assert many.crop((0, 0, few.width, few.height)).tobytes() == few.tobytes()
    below = np.asarray(many.crop((0, many.height - 34, many.width, many.height)))
    assert (below < 100).any()


def test_labels_of_any_language() -> None:
    picture = Image.new("RGBA", (4, 4), (*RED, 255))
    assert contact_sheet([("図 Würfel", [("🎲 куб", picture)])]).mode == "RGB"


def test_records_are_json_that_others_read(tmp_path: Path) -> None:
    write_png(tmp_path / "x.png", quarters(), {"prompt": "ein Würfel"})
    with Image.open(tmp_path / "x.png") as image:
        assert json.loads(image.text["ppap"]) == {"prompt": "ein Würfel"}


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("photo.JPG", True), ("./photo", True), ("rooms/one", True), ("/tmp/one two", True),
        ("http://a.b/c", True), ("C:\\photo", True), ("ring.npy", True),
        ("a red cube", False), ("cube", False), ("a black / white photo", False),
        ("a photo, 1/2 size", False), ("", False),
    ],
)  # fmt: skip
def test_what_means_a_file(text: str, meant: bool) -> None:
    assert means_file(text) == meant


def test_a_file_that_looks_like_a_word_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not means_file("cube")
    (tmp_path / "cube").write_bytes(b"a picture")
    assert means_file("cube")
