"""Opening pictures and maps that are not ours: known by content, within a budget, never guessed.

Only the formats of :data:`PICTURES` and :data:`MAPS` are opened, whatever a file is called. A file
that is none, is no regular file, or holds more than it may is refused before it is unpacked.
"""

# Long because every promised format is opened, checked and turned to pixels in one place.
from __future__ import annotations

import io
import math
import os
import re
import stat
import unicodedata
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from ppap_host.files.errors import TargetError, foreign, nearest
from ppap_host.files.reading import require_regular

PICTURES = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF")
"""What Pillow is let open, by its own names; with the extra ``formats`` HEIF as well. PPM is PNM,
and holds PFM."""

MAPS = ("npy", "npz", "EXR")
"""What is read as arrays; EXR with the extra ``formats``."""

PROMISED = "PNG, JPEG, WebP, TIFF, BMP, GIF, PNM or AVIF"
"""The same for people."""

MAX_PIXELS = 150_000_000
"""Largest picture that is decoded: 150 megapixels, half a gigabyte of memory as RGB."""

MAX_BYTES = 1 << 30
"""Largest file that is opened: one gigabyte holds 150 megapixels of RGB, or of 32 bits, plain."""

_EXTRA = "Install what reads it (pip install 'ppap-host[formats]')"
_TRANSPOSED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_ORIENTATION = 0x0112
_REDUCED, _PHOTOMETRIC, _NODATA = 0x00FE, 0x0106, 0xA481  # tags of TIFF, the last one GDAL's
LOSS = 8
"""By how much lossy compression moves the channels of a grey picture apart, of 255."""
_WIDE = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
"""Pillow's modes of one number a pixel with more than 8 bits."""

_ARRAYS = (b"\x93NUMPY", b"\x76\x2f\x31\x01", b"PK\x03\x04")
"""How the files of :data:`MAPS` begin."""

# What a file is by its first bytes, if it is none that is opened: (where, bytes, name, remedy).
# Texts stand in lower case.
_SAVE_AS = f"Save it as {PROMISED}."
_ONE_MAP = "Save one map as .npy (numpy.save)."
_ODD_TIFF = (
    "a TIFF of a kind that is not read, such as 64-bit floats, colours in floats, or a camera's "
    "raw file",
    "Save a photograph with 8 bits a channel, a map as 32-bit floats or .npy.",
)
_HEIC = f"{_EXTRA}, or save it as JPEG."
_DRAW = "Masks in JSON (run lengths, polygons) are drawn first, and saved as PNG or .npy."
_DEVELOP = "Develop it, and save it as PNG or JPEG."
_HEIF = (b"ftyphe", b"ftypmif1", b"ftypmsf1")
_OTHERS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"%!", "PostScript", _SAVE_AS),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript (EPS)", _SAVE_AS),
    (0, b"%pdf", "a PDF", _SAVE_AS),
    (0, b"8bps", "a Photoshop document", _SAVE_AS),
    (0, b"\x00\x00\x00\x0cjP  ", "JPEG 2000", _SAVE_AS),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000", _SAVE_AS),
    (0, b"\x00\x00\x00\x0cJXL ", "JPEG XL", _SAVE_AS),
    (0, b"\xff\x0a", "JPEG XL", _SAVE_AS),
    (0, b"#?radiance", "Radiance HDR", _SAVE_AS),
    (0, b"PF", "a PFM with three channels", "Save one channel as PFM (Pf) or .npy."),
    (0, b"\x89HDF", "HDF5", _ONE_MAP),
    (0, b"MATLAB", "a MATLAB file", _ONE_MAP),
    (0, b"\x80", "a pickle", f"Pickles are never opened. {_ONE_MAP}"),
    (0, b"PIEH", "optical flow or depth in the format of Middlebury and Sintel", _ONE_MAP),
    (0, b"gimp xcf", "a GIMP document", _SAVE_AS),
    (0, b"FUJIFILMCCD-RAW", "a camera's raw file", _DEVELOP),
    (4, b"ftypcrx", "a camera's raw file", _DEVELOP),
    *((4, brand, "HEIC", _HEIC) for brand in _HEIF),
    (4, b"ftypavif", "AVIF, which this version of Pillow does not read", "Save it as PNG."),
    (4, b"ftyp", "a film", "Save one of its frames as PNG."),
    (0, b"\x1aE\xdf\xa3", "a film", "Save one of its frames as PNG."),
    (0, b"PK\x03\x04", "a zip archive without arrays", "Take the file out of it."),
    (0, b"\x1f\x8b", "a gzip archive", "Unpack it first."),
    (0, b"\x76\x2f\x31\x01", "OpenEXR", f"{_EXTRA}, or save it as .npy."),
    (0, b"ii*\x00", _ODD_TIFF[0], _ODD_TIFF[1]),
    (0, b"mm\x00*", _ODD_TIFF[0], _ODD_TIFF[1]),
    (0, b"<svg", "an SVG", _SAVE_AS),
    (0, b"<?xml", "XML, perhaps an SVG", _SAVE_AS),
    (0, b"<!doctype", "a web page", "Download the picture itself."),
    (0, b"<html", "a web page", "Download the picture itself."),
    (8, b'{"', "safetensors", _ONE_MAP),
    (0, b"{", "JSON", _DRAW),
    (0, b"[", "JSON", _DRAW),
    (0, b"version https://git-lfs", "a pointer to a file in Git LFS", "Fetch it: git lfs pull."),
)


@dataclass(frozen=True)
class Decoded:
    """What a file or an object in memory holds: its first frame, upright, numbers as stored.

    Attributes:
        name: what messages call it.
        format: such as "PNG"; "array" or "image" of what is in memory.
        pixels: a loaded picture of Pillow's, or an array [h, w] or [h, w, c].
        exact: whether the numbers are those that were saved: not after JPEG's compression.
        step: by how much Pillow's numbers grow where the stored ones grow by one (17 of 4-bit
            greys).
        narrowed: whether 16 bits in several channels were cut to 8 on reading.
        notes: what is to be said of it, such as that it has further frames.
        original: (width, height) that was stored, upright.
        space: colour space other than sRGB that the file names without a profile; "" for none.
        nodata: the number that stands where nothing is known, as GeoTIFF names it; None if none is.
    """

    name: str
    format: str
    pixels: Image.Image | NDArray[Any]
    exact: bool = True
    step: float = 1.0
    narrowed: bool = False
    notes: tuple[str, ...] = ()
    original: tuple[int, int] = (0, 0)
    space: str = ""
    nodata: float | None = None

    @property
    def image(self) -> Image.Image | None:
        """The picture, None of an array."""
        return self.pixels if isinstance(self.pixels, Image.Image) else None

    @property
    def loss(self) -> int:
        """By how much compression may have changed numbers of 8 bits."""
        return 0 if self.exact else LOSS

    def numbers(self) -> tuple[NDArray[Any], NDArray[np.bool_] | None] | None:
        """The stored numbers [h, w], one a pixel, and where they are transparent (None: nowhere).

        Three equal channels count as one. None if the pixels have colours, or a palette whose
        colours are no greys.
        """
        if isinstance(self.pixels, np.ndarray):
            return None if (one := one_channel(self.pixels)) is None else (one, None)
        image, clear = self.pixels, None
        if has_alpha(image):
            alpha = np.asarray(image.convert("RGBA").getchannel("A"))
            clear = None if alpha.min() else alpha == 0
        if image.mode == "1":
            return np.asarray(image, dtype=np.uint8), clear
        if image.mode in ("L", *_WIDE):
            values = np.asarray(image)
            if self.step == 1:
                return values, clear
            return np.round(values / self.step).astype(values.dtype), clear
        if image.mode == "LA":
            return np.asarray(image.getchannel("L")), clear
        if image.mode in ("RGB", "RGBA", "RGBX", "P", "PA"):
            one = one_channel(np.asarray(image.convert("RGB")), self.loss)
            return None if one is None else (one, clear)
        return None


def has_alpha(image: Image.Image) -> bool:
    """Whether a picture has an alpha channel or a transparent colour."""
    return "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info


def one_channel(values: NDArray[Any], loss: int = 0) -> NDArray[Any] | None:
    """[h, w] of an array that has one channel, or three equal ones; None of others.

    Args:
        loss: by how much compression may have moved 8-bit channels apart.
    """
    if values.ndim == 3 and values.shape[2] == 3:
        apart = (
            np.ptp(values, axis=2) if values.dtype != np.bool_ else values.any(2) ^ values.all(2)
        )
        if not apart.size or apart.max() > loss:
            return None
        return np.median(values, axis=2).astype(values.dtype) if loss else values[..., 0]
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    return values if values.ndim == 2 else None


# Opening


def check_regular(path: Path) -> None:
    """Refuses what is no regular file that can be read whole.

    Raises:
        TargetError: it is an address, missing, a folder, a device, a pipe, empty or too large.
    """
    text = str(path)
    if text.startswith("data:"):
        raise TargetError(
            f"The target {text[:40]!r}... is a picture written as text.",
            remedy="Decode it, save it as a file, and give its path.",
        )
    if "://" in text or text.startswith(("http:", "https:")):
        address = re.sub("^(https?:)/+", r"\1//", text)  # a path has lost one of them
        raise TargetError(
            f"The target {address!r} is an address.",
            remedy="Download the image first and give its path.",
        )
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # names that are too long, or hold a zero byte
        close = _like_it(path)
        hint = f"Did you mean {close!r}?" if close else "Check the path."
        raise TargetError(f"There is no file {text!r}.", remedy=hint) from None
    if stat.S_ISDIR(found.st_mode):
        raise TargetError(f"The target {text!r} is a folder.", remedy="Name one file in it.")
    require_regular(path, TargetError, "Save what comes out of it as a file first.")
    if found.st_size == 0:
        raise TargetError(f"The file {text!r} is empty.", remedy=f"Give {PROMISED}.")
    if found.st_size > MAX_BYTES:
        raise TargetError(
            f"The file {text!r} has {found.st_size / 1e9:.1f} GB.",
            remedy=f"At most {MAX_BYTES / 1e9:.1f} GB are read; make it smaller first.",
        )


def _like_it(path: Path) -> str:
    """The file in the same folder whose name is nearly this one; "" for none."""
    try:
        there = sorted(entry.name for entry in islice(os.scandir(path.parent), 10_000))
    except (OSError, ValueError):
        return ""
    # An accent may be one character or two, and looks the same.
    plain = {unicodedata.normalize("NFC", name): name for name in there}
    wanted = unicodedata.normalize("NFC", path.name).strip(" '\"")
    found = [wanted] if wanted in plain else nearest(wanted, plain, 1, 0.8)
    return str(path.parent / plain[found[0]]) if found else ""


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns every way in which decoding can fail into a TargetError."""
    try:
        with warnings.catch_warnings():
            # Decoders warn of what they can live with; what they cannot becomes an error here.
            warnings.simplefilter("ignore")
            yield
    except TargetError:
        raise
    except (Image.DecompressionBombError, MemoryError):
        raise _too_large(name) from None
    except PermissionError:
        raise TargetError(
            f"{name} may not be read.", remedy="Give yourself read permission."
        ) from None
    except Exception as error:  # decoders of damaged files raise anything, struct.error included
        reason = " ".join(str(error).split()) or type(error).__name__
        raise TargetError(
            f"{name} is damaged or cut short ({reason[:200]}).", remedy="Save or download it again."
        ) from None


def _too_large(name: str) -> TargetError:
    return TargetError(
        f"{name} has more than {MAX_PIXELS // 1_000_000} megapixels.",
        remedy="Make it smaller first; a few hundred pixels a side are enough.",
    )


def check_header(path: Path) -> None:
    """Whether a file begins as a picture or a map that is read; nothing of it is unpacked.

    Raises:
        TargetError: as :func:`decode`, as far as that can be told.
    """
    check_regular(path)
    name = f"The file {str(path)!r}"
    with _explained(name), open(path, "rb") as file:
        head = file.read(64)
        if head.startswith(_ARRAYS) or path.suffix.lower() in (".npy", ".npz"):
            return
        try:
            with Image.open(file, formats=_openable()) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise _too_large(name)
        except UnidentifiedImageError:
            raise _unknown(name, head) from None


def decode(path: Path, near: tuple[int, int] | None = None, key: str | None = None) -> Decoded:
    """Reads the first frame of a picture, or an array.

    Args:
        near: (height, width) that will do, times four: large JPEGs are then decoded smaller.
        key: which array of a ``.npz``, or which channel of an EXR.

    Raises:
        TargetError: the file is missing, not regular, no picture or map that is read, damaged, or
            too large; or several arrays are in it and none is named.
    """
    check_regular(path)
    name = f"The file {str(path)!r}"
    with _explained(name), open(path, "rb") as file:
        head = file.read(64)
        file.seek(0)
        if head.startswith(b"\x93NUMPY"):
            return _no_key(Decoded(name, "npy", _without_batch(_read_npy(file, path))), key)
        if head.startswith(b"\x76\x2f\x31\x01"):
            return _read_exr(name, path, key)
        if head.startswith(b"PK\x03\x04"):
            return _read_npz(name, file, key)
        if path.suffix.lower() in (".npy", ".npz"):
            raise TargetError(
                f"{name} is not a readable {path.suffix.lower()} array.",
                remedy="Write it with numpy.save from a plain numeric array.",
            )
        try:
            with Image.open(file, formats=_openable()) as image:
                return _no_key(_decoded(name, image, near), key)
        except UnidentifiedImageError:
            raise _unknown(name, head) from None


def _openable() -> tuple[str, ...]:
    """The formats of Pillow's that are let open and that this Pillow has."""
    Image.init()
    wanted = [*PICTURES]
    try:
        import pillow_heif
    except ImportError:
        pass
    else:
        pillow_heif.register_heif_opener()
        wanted.append("HEIF")
    return tuple(name for name in wanted if name in Image.OPEN)


def _unknown(name: str, head: bytes) -> TargetError:
    """For a file that is nothing that is read: what it is, if that is known."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head[4:8] == b"ftyp" and "HEIF" in _openable() and head[4:].startswith(_HEIF):
        return TargetError(
            f"{name} is a HEIC that is damaged or of a kind that is not read.",
            remedy="Save it as JPEG or PNG.",
        )
    for at, magic, what, remedy in _OTHERS:
        if head[at:].startswith(magic) or (at == 0 and text.startswith(magic)):
            return TargetError(f"{name} is not an image that is read: it is {what}.", remedy=remedy)
    plain = text.isascii() and not set(text) & set(range(9))
    return TargetError(
        f"{name} is not an image {'but text' if plain else 'of a kind that is read'}.",
        remedy=f"Give {PROMISED}; for maps also .npy or .npz.",
    )


def _no_key(decoded: Decoded, key: str | None) -> Decoded:
    if key is not None:
        raise TargetError(
            f"{decoded.name} is {decoded.format} and holds one picture, not several by name.",
            remedy=f"Leave out {foreign(f'key={key}')}; it is for .npz and EXR.",
        )
    return decoded if any(decoded.original) else replace(decoded, original=_size(decoded.pixels))


def _without_batch(values: NDArray[Any]) -> NDArray[Any] | Image.Image:
    """An array without leading axes of length one; a picture if it is one with transparency."""
    while values.ndim > 2 and values.shape[0] == 1:
        values = values[0]
    four = values.ndim == 3 and values.shape[2] == 4 and values.dtype == np.uint8
    if four and values.any() and values.max() > 1:  # else they are truth values of four things
        return Image.fromarray(np.ascontiguousarray(values))
    return values


def _size(pixels: Image.Image | NDArray[Any]) -> tuple[int, int]:
    if isinstance(pixels, Image.Image):
        return pixels.size
    return (pixels.shape[1], pixels.shape[0]) if pixels.ndim > 1 else (pixels.size, 1)


def from_memory(value: Image.Image | NDArray[Any], name: str) -> Decoded:
    """A picture of Pillow's, or an array, as :func:`decode` reads a file.

    Raises:
        TargetError: it cannot be loaded, is too large, or holds no real numbers.
    """
    if isinstance(value, Image.Image):
        with _explained(name):
            return _no_key(_decoded(name, value, None), None)
    _check_array(name, value.shape, value.dtype)
    if isinstance(value, np.ma.MaskedArray):
        value = np.ma.filled(value.astype(np.float64), np.nan)
    return _no_key(Decoded(name, "array", _without_batch(value)), None)


def _decoded(name: str, image: Image.Image, near: tuple[int, int] | None) -> Decoded:
    """Loads the first frame of a picture that Pillow has opened."""
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError
    kind = image.format or "image"
    stored, several = image.size, bool(getattr(image, "is_animated", False))
    if several and image.tell():
        image.seek(0)
    raw, maxval = _as_stored(list(getattr(image, "tile", ())))
    exact, space = _is_exact(image, kind), _space(image, kind)
    tags = getattr(image, "tag_v2", None) or {}
    if tags.get(_REDUCED, 0) & 1:
        raise TargetError(
            f"{name} begins with a preview of its picture, as the raw files of cameras do.",
            remedy="Save the picture itself, as PNG or as a TIFF with one page.",
        )
    if near is not None and kind in ("JPEG", "MPO"):
        image.draft("RGB", (4 * near[1], 4 * near[0]))
    smaller = image.size != stored
    image.load()
    if tags.get(_PHOTOMETRIC) == 0 and image.mode.startswith("I;16"):
        # White is zero. Pillow turns such numbers only where they have 8 bits.
        image = _like(image, Image.fromarray(65535 - np.asarray(image)))
    upright, turned = _upright(image)
    notes = []
    if turned is None:
        notes.append("its EXIF data cannot be read and is left out")
    if several and kind != "MPO":  # a phone's JPEG holds its previews as further frames
        notes.append("the first of its frames")
    if not smaller:
        stored = upright.size
    elif turned in (5, 6, 7, 8):
        stored = stored[::-1]
    step = 1.0
    if raw.startswith("L;") and raw[2:3] in ("2", "4"):
        step = 255 / (2 ** int(raw[2]) - 1)
    elif maxval:
        step = (255 if upright.mode == "L" else 65535) / maxval
    narrowed = raw.endswith(("16B", "16L", "16N")) and upright.mode not in _WIDE
    return Decoded(
        name, kind.replace("PPM", "PNM"), upright, exact, step, narrowed, tuple(notes), stored,
        space, _number(tags.get(_NODATA)),
    )  # fmt: skip


def _number(text: Any) -> float | None:
    try:
        return float(str(text).strip("\0 "))
    except ValueError:
        return None


def _as_stored(tiles: list[Any]) -> tuple[str, int]:
    """How Pillow unpacks the numbers: its raw mode, and PNM's own largest value or 0."""
    args = getattr(tiles[0], "args", tiles[0][-1]) if tiles else ""
    codec = tiles[0][0] if tiles else ""
    if isinstance(args, str):
        return args, 0
    first = args[0] if args and isinstance(args[0], str) else ""
    maxval = args[1] if codec in ("ppm", "ppm_plain") and len(args) > 1 else 0
    return first, maxval if isinstance(maxval, int) and maxval not in (0, 255, 65535) else 0


def _is_exact(image: Image.Image, kind: str) -> bool:
    if kind == "WEBP":
        file = getattr(image, "fp", None)
        return _lossless_webp(file) if file is not None else False
    if kind == "TIFF":
        return "jpeg" not in str(image.info.get("compression")) and image.info.get(
            "compression"
        ) not in ("webp", "lerc")
    return kind not in ("JPEG", "MPO", "AVIF", "HEIF")


def _lossless_webp(file: IO[bytes]) -> bool:
    """Whether the first picture in a WebP is a lossless one: its chunk is VP8L, not VP8."""
    at = file.tell()
    file.seek(0)
    head = file.read(1 << 16)
    file.seek(at)
    lossless, lossy = head.find(b"VP8L"), head.find(b"VP8 ")
    return lossless >= 0 and (lossy < 0 or lossless < lossy)


_PRIMARIES = {9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}
_CURVES = {8: "linear light", 16: "PQ (HDR)", 18: "HLG (HDR)"}
_SRGB = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)


def _space(image: Image.Image, kind: str) -> str:
    """The colour space that a file names by numbers (ITU-T H.273), its primaries, or in EXIF."""
    file = getattr(image, "fp", None)
    if image.info.get("icc_profile") or file is None:
        return ""
    if kind not in ("PNG", "AVIF", "HEIF"):
        return _named_by_exif(image)
    at = file.tell()
    file.seek(0)
    head = file.read(1 << 14)
    file.seek(at)
    if kind == "PNG":
        gamma, primaries = image.info.get("gamma"), image.info.get("chromaticity")
        _, found, body = head.partition(b"\0\0\0\4cICP")
        numbers = body[:2]
        if not found and "srgb" not in image.info:
            if isinstance(gamma, float) and abs(gamma - 1 / 2.2) > 0.02:
                return f"a gamma of {1 / max(gamma, 1e-6):.2f}"
            if primaries and max(abs(a - b) for a, b in zip(primaries, _SRGB, strict=True)) > 0.01:
                return "other primaries than those of sRGB"
    else:
        _, found, body = head.partition(b"colrnclx")
        numbers = body[1:4:2]
    if not found or len(numbers) < 2:
        return ""
    named = _PRIMARIES.get(numbers[0]), _CURVES.get(numbers[1])
    return ", ".join(part for part in named if part)


def _named_by_exif(image: Image.Image) -> str:
    """Adobe RGB, which cameras name by a rule of their own (DCF 2.0), and by no profile."""
    try:
        exif = image.getexif()
        space = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace)
        rule = str(exif.get_ifd(ExifTags.IFD.Interop).get(ExifTags.Interop.InteropIndex, ""))
    except Exception:  # what cannot be read is told of where it is turned
        return ""
    return "Adobe RGB (EXIF)" if space == 2 or rule.startswith("R03") else ""


def _upright(image: Image.Image) -> tuple[Image.Image, int | None]:
    """A loaded picture turned as its EXIF says, and that number; None if EXIF cannot be read.

    Pillow's own function also writes the EXIF data anew, which fails for what some cameras write.
    """
    try:
        orientation = int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return image, None
    turn = _TRANSPOSED.get(orientation)
    if turn is None:
        return image, 1
    return _like(image, image.transpose(turn)), orientation


def _like(image: Image.Image, made: Image.Image) -> Image.Image:
    """A picture with what is known of the one that it was made from."""
    made.info = dict(image.info)
    return made


# Arrays


def _check_array(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "biuf":
        raise TargetError(
            f"{name} has entries of type {dtype}.", remedy="A map holds real numbers."
        )
    count = math.prod(int(side) for side in shape)
    if (
        math.prod(int(side) for side in shape[:2]) > MAX_PIXELS
        or count * dtype.itemsize > MAX_BYTES
    ):
        raise _too_large(name)


def _read_npy(file: IO[bytes], path: Path) -> NDArray[Any]:
    name = f"The file {str(path)!r}"
    try:
        # Not numpy.load: that also opens archives and pickles.
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # damaged headers raise anything, tokenize.TokenError included
        reason = " ".join(str(error).split())
        raise TargetError(
            f"{name} is not a readable .npy array ({reason[:200]}).",
            remedy="Write it with numpy.save from a plain numeric array.",
        ) from None
    _check_array(name, array.shape, array.dtype)
    return np.array(array)


def _read_npz(name: str, file: IO[bytes], key: str | None) -> Decoded:
    with zipfile.ZipFile(file) as archive:
        members = {
            item.filename.removesuffix(".npy"): item
            for item in archive.infolist()
            if item.filename.endswith(".npy")
        }
        if not members:
            if any(item.filename.endswith("data.pkl") for item in archive.infolist()):
                raise TargetError(
                    f"{name} is what torch.save writes, which may hold code and is not opened.",
                    remedy=_ONE_MAP,
                )
            raise _unknown(name, b"PK\x03\x04")
        chosen = _chosen(name, key, list(members), "array")
        what = f"The array {chosen!r} of {name[0].lower()}{name[1:]}"
        with archive.open(members[chosen]) as member:
            # The header says how much there will be; nothing else is unpacked before it is known.
            version = np.lib.format.read_magic(member)
            read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                version, np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read(member)
            _check_array(what, shape, dtype)
        with archive.open(members[chosen]) as member:
            values = _without_batch(np.lib.format.read_array(member, allow_pickle=False))
    note = (f"its array {chosen!r}",)
    return Decoded(name, "npz", values, notes=note, original=_size(values))


def _chosen(name: str, key: str | None, there: list[str], what: str) -> str:
    """One of several names: the one asked for, or the only one."""
    if key in there:
        return str(key)
    if key is None and len(there) == 1:
        return there[0]
    listed = ", ".join(there[:12]) + (", ..." if len(there) > 12 else "")
    said = f"has no {what} {key!r}" if key is not None else f"holds {len(there)} {what}s"
    likely = [n for n in there if re.search(r"(^|[._])(z|depth|disp\w*|masks?|labels?)$", n, re.I)]
    raise TargetError(
        f"{name} {said}: there are {listed}.",
        remedy="Name one of them with key=NAME before the colon, as in "
        f"{foreign(f'depth,key={(likely or there)[0]}:FILE')}.",
    )


def _read_exr(name: str, path: Path, key: str | None) -> Decoded:
    """Colours as [h, w, 3] in linear light, or one channel as [h, w]; NaN where none is stored."""
    try:
        import OpenEXR
    except ImportError:
        raise _unknown(name, b"\x76\x2f\x31\x01") from None
    with OpenEXR.File(str(path), header_only=True) as file:
        pixels = 0
        for part in file.parts:
            (left, top), size, shown = _exr_windows(part.header)
            pixels += max(size[0] * size[1] * len(part.header["channels"]), shown[0] * shown[1])
        if pixels > MAX_PIXELS:
            raise _too_large(name)
    with OpenEXR.File(str(path), separate_channels=True) as file:
        several = len(file.parts) > 1
        there = {
            f"{part.name()}.{channel}" if several else channel: (part, channel)
            for part in file.parts
            for channel in part.channels
        }
        wanted, note = _exr_channels(name, list(there), key)
        layers = []
        for part, channel in (there[one] for one in wanted):
            (left, top), size, shown = _exr_windows(part.header)
            values = np.asarray(part.channels[channel].pixels)
            if values.shape != (size[1], size[0]):
                raise ValueError("its channels are smaller than its window")
            whole = np.full((shown[1], shown[0]), np.nan, np.float32)
            rows, columns = _overlap(top, size[1], shown[1]), _overlap(left, size[0], shown[0])
            whole[rows[0], columns[0]] = values[rows[1], columns[1]]
            layers.append(whole)
    found = np.stack(layers, axis=-1) if len(layers) > 1 else layers[0]
    return Decoded(name, "EXR", found, notes=(note,) if note else (), original=_size(found))


def _exr_windows(
    header: dict[str, Any],
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Of a part: (left, top) of its data in what is shown, (width, height) of both."""
    (low, high), (first, last) = header["dataWindow"], header["displayWindow"]
    size = (int(high[0]) - int(low[0]) + 1, int(high[1]) - int(low[1]) + 1)
    shown = (int(last[0]) - int(first[0]) + 1, int(last[1]) - int(first[1]) + 1)
    if min(*size, *shown) < 1:
        raise ValueError("its windows are empty")
    return (int(low[0]) - int(first[0]), int(low[1]) - int(first[1])), size, shown


def _exr_channels(name: str, there: list[str], key: str | None) -> tuple[list[str], str]:
    """Which channels are read, and what is said of them: one, or the colours of a layer."""
    prefixes = dict.fromkeys(one[: len(one) - len(one.rpartition(".")[2])] for one in there)
    colours = {
        prefix.removesuffix(".") or "RGB": [f"{prefix}{c}" for c in "RGB"]
        for prefix in prefixes
        if {f"{prefix}{c}" for c in "RGB"} <= set(there)
    }
    if key is None and len(colours) == len(prefixes) == 1 and len(there) in (3, 4):
        (only,) = colours.values()
        if set(there) <= {*only, f"{only[0][:-1]}A"}:
            return only, ""
    if key in colours:
        return colours[key], f"its channels {key!r}"
    chosen = _chosen(name, key, there, "channel")
    return [chosen], f"its channel {chosen!r}"


def _overlap(at: int, length: int, shown: int) -> tuple[slice, slice]:
    """Where a row of a data window lies in the display window, and which part of it."""
    start, end = max(at, 0), min(at + length, shown)
    end = max(start, end)
    return slice(start, end), slice(start - at, end - at)


# Colours


def to_srgb(decoded: Decoded, bounds: tuple[float, float] | None = None) -> tuple[Image.Image, str]:
    """A picture as people see it, RGB with 8 bits in sRGB, and in words what its colours were.

    Transparency is laid on white. An embedded ICC profile is converted (perceptual intent of Little
    CMS); colours without one count as sRGB.

    Args:
        bounds: which numbers of an array mean black and white; without them 0 and 255 of whole
            numbers with 8 bits, 0 and 65535 with 16, and 0 and 1 of others.

    Raises:
        TargetError: an array is no picture, or its numbers lie outside what they can be.
    """
    if isinstance(decoded.pixels, np.ndarray):
        return _array_to_srgb(decoded, decoded.pixels, bounds)
    if bounds is not None:
        raise TargetError(
            f"{decoded.name} is {decoded.format}, whose white is known.",
            remedy="Leave out range; it is for arrays and tensors.",
        )
    with _explained(decoded.name):
        return _image_to_srgb(decoded, decoded.pixels)


def _image_to_srgb(decoded: Decoded, image: Image.Image) -> tuple[Image.Image, str]:
    if image.mode in _WIDE:
        return _wide_to_srgb(decoded, image)
    words = {"L": "grey", "1": "black and white", "LA": "grey", "P": "RGB of a palette"}
    what = words.get(image.mode, image.mode.removesuffix("A").removesuffix("X") or image.mode)
    if decoded.narrowed:
        what = f"16-bit {what}"
    alpha = image.convert("RGBA").getchannel("A") if has_alpha(image) else None
    rgb, managed = _managed(image, decoded.space)
    if alpha is not None and np.asarray(alpha).min() < 255:
        white = Image.new("RGB", rgb.size, (255, 255, 255))
        rgb, managed = Image.composite(rgb, white, alpha), f"{managed}, transparency on white"
    return rgb, f"{what}, {managed}"


def _managed(image: Image.Image, named: str = "") -> tuple[Image.Image, str]:
    """RGB in sRGB, and what was done to get there.

    Args:
        named: the colour space that a picture without a profile names.
    """
    profile = image.info.get("icc_profile")
    plain = image.convert("RGB") if image.mode != "LAB" else _from_lab(image)
    if not profile and image.mode == "CMYK":
        return plain, "taken for sRGB, though its inks (CMYK) have no profile"
    if not profile:
        return plain, f"taken for sRGB, though it names {named}" if named else "sRGB"
    try:
        embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        called = " ".join(ImageCms.getProfileDescription(embedded).split()) or "without a name"
        space = embedded.profile.xcolor_space.strip()
        source = image
        if space == "RGB":
            source = plain
        elif space == "GRAY":
            source = image.convert("L")
        elif space.upper() != image.mode:
            raise ValueError(f"it is for {space}")
        converted = ImageCms.profileToProfile(
            source, embedded, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:80]
        return plain, f"taken for sRGB, since its colour profile cannot be used ({reason})"
    assert converted is not None
    if "sRGB" in called:
        return converted, "sRGB"
    return converted, f"brought from the profile {called[:60]!r} to sRGB"


def _from_lab(image: Image.Image) -> Image.Image:
    found = ImageCms.profileToProfile(
        image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert found is not None
    return found


def _wide_to_srgb(decoded: Decoded, image: Image.Image) -> tuple[Image.Image, str]:
    values = np.asarray(image, dtype=np.float64)
    _check_finite(decoded.name, values)
    if values.min() < 0:
        raise TargetError(
            f"{decoded.name} holds numbers below zero, which no photograph has.",
            remedy="Save it with 8 bits a channel, or as .npy and give range, as in range=-1..1.",
        )
    white = _white(image.mode, float(values.max()))
    grey, managed = _managed(_like(image, _grey(values / white).convert("L")), decoded.space)
    bits = f"grey of {'32' if image.mode in 'IF' else '16'} bits, white at {white:g}"
    return grey, bits if managed == "sRGB" else f"{bits}, {managed}"


def _white(mode: str, largest: float) -> float:
    """The value that means white: known for 16 bits, else the smallest usual one that fits."""
    if mode.startswith("I;16"):
        return 65535.0
    if mode == "F" and largest <= 1:
        return 1.0
    return 255.0 if largest <= 255 else 65535.0


def _grey(unit: NDArray[np.floating[Any]]) -> Image.Image:
    bits = np.clip(unit * 255, 0, 255).round().astype(np.uint8)
    return Image.fromarray(bits).convert("RGB")


def _check_finite(name: str, values: NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        raise TargetError(
            f"{name} holds NaN or infinite values.",
            remedy="Fill or crop them, or save it with 8 bits a channel.",
        )


def _array_to_srgb(
    decoded: Decoded, values: NDArray[Any], bounds: tuple[float, float] | None
) -> tuple[Image.Image, str]:
    shape = values.shape
    if not (values.ndim == 2 or (values.ndim == 3 and shape[2] in (1, 3, 4))) or 0 in shape:
        first = values.ndim == 3 and shape[0] in (1, 3, 4)
        raise TargetError(
            f"{decoded.name} has the shape {shape}; a photograph has (height, width, 3).",
            remedy="Move its first axis to the end (numpy.moveaxis(a, 0, -1))."
            if first
            else "Give an array of that shape, uint8 or floats in [0, 1].",
        )
    if decoded.format == "EXR":
        values = np.nan_to_num(values, posinf=np.inf)
        over = 100 * float((values > 1).mean())
        values = _linear_to_srgb(values)
        what = "linear light brought to sRGB, cut at 0 and 1"
        what += f" ({over:.0f} % is brighter)" if over >= 0.5 else ""
    else:
        _check_finite(decoded.name, values)
        low, high = bounds or _usual_bounds(decoded.name, values)
        inside = low <= float(values.min()) and float(values.max()) <= high
        if not inside:
            raise TargetError(
                f"{decoded.name} holds values from {float(values.min()):g} to "
                f"{float(values.max()):g}, which are not from {low:g} to {high:g}.",
                remedy="Say which values are black and white with range, as in range=-1..1.",
            )
        values = (values.astype(np.float64) - low) / (high - low)
        what = f"{'grey' if values.ndim == 2 or shape[2] == 1 else 'RGB'} from {low:g} to {high:g}"
    if values.ndim == 2 or shape[2] == 1:
        return _grey(values.reshape(shape[:2])), what
    bits = np.clip(values * 255, 0, 255).round().astype(np.uint8)
    image = Image.fromarray(bits)
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image, what = Image.alpha_composite(white, image), f"{what}, transparency on white"
    return image.convert("RGB"), what


def _usual_bounds(name: str, values: NDArray[Any]) -> tuple[float, float]:
    if values.dtype == np.bool_:
        return 0.0, 1.0
    if values.dtype.kind == "f":
        return 0.0, 1.0
    if values.dtype.itemsize <= 2 and values.dtype.kind == "u":
        return 0.0, 255.0 if values.dtype.itemsize == 1 else 65535.0
    raise TargetError(
        f"{name} holds whole numbers of type {values.dtype}, whose white is not known.",
        remedy="Give uint8, or say it with range, as in range=0..255.",
    )


def _linear_to_srgb(values: NDArray[Any]) -> NDArray[np.float64]:
    """The transfer function of sRGB (IEC 61966-2-1)."""
    light = np.clip(values.astype(np.float64), 0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
