"""Reading targets, and sheets for people: the only place where image files are opened."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from torch import Tensor

from ppap_host.files.errors import TargetError

MAX_PIXELS = 150_000_000
"""Largest picture that is decoded: 150 megapixels, half a gigabyte of memory as RGB."""

_READABLE = "Give an image file such as PNG, JPEG or WebP."
_PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".npy", ".png", ".tif", ".tiff", ".webp")
_MAP_MODES = ("I", "I;16", "I;16B", "I;16L", "F")


def means_file(text: str) -> bool:
    """Whether a target is meant as a file where it could be words: it is one, or looks like one.

    It looks like one by the ending of a picture, as an address, or as one long path without spaces.
    Reading it then says what is wrong with it, if anything is.
    """
    if os.path.isfile(text) or text.lower().endswith(_PICTURES):
        return True
    if "://" in text or text.startswith(("/", "./", "~/")):
        return True
    return ("/" in text or "\\" in text) and not any(c.isspace() for c in text)


@contextmanager
def _open(path: str | Path) -> Iterator[Image.Image]:
    """Opens an image file and turns every way this can fail into a TargetError."""
    path = Path(path)
    if "://" in str(path) or str(path).startswith(("http:", "https:")):
        raise TargetError(
            f"The target {str(path)!r} is an address.",
            remedy="Download the image first and give its path.",
        )
    # os.path, because Path.exists raises for names that are too long.
    if not os.path.exists(path):
        raise TargetError(f"There is no file {str(path)!r}.", remedy="Check the path.")
    if path.is_dir():
        raise TargetError(
            f"The target {str(path)!r} is a folder.", remedy="Name one image file in it."
        )
    if path.stat().st_size == 0:
        raise TargetError(f"The file {str(path)!r} is empty.", remedy=_READABLE)
    try:
        with warnings.catch_warnings():
            # Pillow warns of what it can live with; what it cannot becomes an error here.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                yield image
    except UnidentifiedImageError:
        raise TargetError(f"The file {str(path)!r} is not an image.", remedy=_READABLE) from None
    except Image.DecompressionBombError:
        raise TargetError(
            f"The image {str(path)!r} has more than {MAX_PIXELS // 1_000_000} megapixels.",
            remedy="Make it smaller first; a few hundred pixels a side are enough.",
        ) from None
    except PermissionError:
        raise TargetError(
            f"The file {str(path)!r} may not be read.", remedy="Give yourself read permission."
        ) from None
    except TargetError:
        raise
    except Exception as error:  # decoders of damaged files raise anything, struct.error included
        raise TargetError(
            f"The image {str(path)!r} is damaged or cut short ({error}).",
            remedy="Save or download it again.",
        ) from None


def read_rgb(path: str | Path, size: tuple[int, int] | None = None) -> Image.Image:
    """A photograph as people see it: RGB, upright, cropped to the aspect ratio of the results.

    EXIF orientation is applied; transparency is laid on white; grey, 16-bit, CMYK and palette
    images are converted; of an animation the first frame is taken.

    Args:
        size: (height, width); the picture is centre-cropped to this aspect ratio and resized with
            Lanczos. None leaves its size.

    Raises:
        TargetError: the file is missing, a folder, no image, damaged, or too large.
    """
    with _open(path) as image:
        if size is not None:
            # JPEG can be decoded at a fraction of its size; a no-op for other formats.
            image.draft("RGB", (4 * size[1], 4 * size[0]))
        image.load()
        upright = ImageOps.exif_transpose(image)
        rgb = _to_rgb(upright, path)
    if size is None:
        return rgb
    return ImageOps.fit(rgb, (size[1], size[0]), Image.Resampling.LANCZOS)


def _to_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    if image.mode in _MAP_MODES:
        values = np.asarray(image, dtype=np.float64)
        if not np.isfinite(values).all():
            raise TargetError(
                f"The image {str(path)!r} holds NaN or infinite values.",
                remedy="Fill or crop them, or save it with 8 bits a channel.",
            )
        grey = (
            np.clip(values / _white(image.mode, values.max()) * 255, 0, 255)
            .round()
            .astype(np.uint8)
        )
        return Image.fromarray(grey).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _white(mode: str, largest: float) -> float:
    """The value that means white: known for 16 bits, else the smallest usual one that fits."""
    if mode.startswith("I;16"):
        return 65535.0
    if mode == "F" and largest <= 1:
        return 1.0
    return 255.0 if largest <= 255 else 65535.0


def is_map(path: str | Path) -> bool:
    """Whether a file holds one number a pixel (16- or 32-bit, or ``.npy``) and not a photograph.

    Raises:
        TargetError: as :func:`read_rgb`.
    """
    if Path(path).suffix.lower() == ".npy":
        return True
    with _open(path) as image:
        return image.mode in _MAP_MODES


def read_map(path: str | Path, size: tuple[int, int] | None = None) -> NDArray[np.float32]:
    """A map of numbers, float32 [h, w]: a 16- or 32-bit single-channel image, or a 2-D ``.npy``.

    Args:
        size: (height, width) to crop (centred, aspect ratio kept) and resize to, bilinearly with
            antialiasing; None leaves it.

    Raises:
        TargetError: it cannot be read, is not two-dimensional, or holds NaN or infinity.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy":
        values = _read_npy(path)
    else:
        with _open(path) as image:
            if image.mode not in (*_MAP_MODES, "L"):
                raise TargetError(
                    f"The image {str(path)!r} has mode {image.mode}, a map has one channel.",
                    remedy="Save the map as a 16-bit grey PNG or as a 2-D .npy array.",
                )
            values = np.asarray(image)
    with np.errstate(over="ignore"):  # becomes infinite, which is refused below
        values = np.asarray(values, dtype=np.float32, order="C")
    if values.ndim != 2 or 0 in values.shape:
        raise TargetError(
            f"The map {str(path)!r} has shape {values.shape}.",
            remedy="A map is two-dimensional: (height, width).",
        )
    if not np.isfinite(values).all():
        raise TargetError(
            f"The map {str(path)!r} holds NaN or infinite values.",
            remedy="Fill or crop them: every pixel is compared.",
        )
    if size is None:
        return values
    fitted = ImageOps.fit(
        Image.fromarray(values, mode="F"), (size[1], size[0]), Image.Resampling.BILINEAR
    )
    return np.asarray(fitted, dtype=np.float32)


def _read_npy(path: Path) -> NDArray[Any]:
    if not os.path.isfile(path):
        raise TargetError(f"There is no file {str(path)!r}.", remedy="Check the path.")
    try:
        # Not numpy.load: that also opens archives and pickles.
        array = np.lib.format.open_memmap(path, mode="r")
    except PermissionError:
        raise TargetError(
            f"The file {str(path)!r} may not be read.", remedy="Give yourself read permission."
        ) from None
    except Exception as error:  # damaged headers raise anything, tokenize.TokenError included
        raise TargetError(
            f"The file {str(path)!r} is not a readable .npy array ({error}).",
            remedy="Write it with numpy.save from a plain numeric array.",
        ) from None
    if array.size > MAX_PIXELS or array.dtype.kind not in "iuf":
        raise TargetError(
            f"The array {str(path)!r} has {array.size} entries of type {array.dtype}.",
            remedy=f"A map holds real numbers, at most {MAX_PIXELS // 1_000_000} million.",
        )
    return np.asarray(array)


def read_known(
    image: Path, mask: Path, size: tuple[int, int]
) -> tuple[Float[Tensor, "1 3 h w"], Float[Tensor, "1 1 h w"]]:
    """A picture in [-1, 1] that is to be filled in, and 1 where it is known.

    Args:
        mask: white where the picture is to be made anew, black where it is kept; read and cropped
            as the picture is.
        size: (height, width).

    Raises:
        TargetError: as :func:`read_rgb`; or the mask keeps everything.
    """
    grey = to_tensor(read_rgb(mask, size)).mean(dim=1, keepdim=True)
    known = (grey < 0).float()
    if bool(known.all()):
        raise TargetError(
            f"The mask {str(mask)!r} has nothing white, so nothing is to be made anew.",
            remedy="Paint white what is to be filled in.",
        )
    return to_tensor(read_rgb(image, size)), known


def to_unit(pixels: UInt8[Tensor, "*b 3 h w"]) -> Float[Tensor, "*b 3 h w"]:
    """RGB in [-1, 1], float32, from 8 bits."""
    return pixels.float() / 127.5 - 1


def to_pixels(x: Float[Tensor, "*b 3 h w"]) -> UInt8[Tensor, "*b 3 h w"]:
    """8-bit RGB from [-1, 1]: clipped and rounded as a PNG would hold it; NaN becomes grey."""
    return ((x.detach().float().nan_to_num(0.0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_tensor(image: Image.Image) -> Float[Tensor, "1 3 h w"]:
    """An RGB picture as a tensor in [-1, 1]."""
    return to_unit(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None])


def from_tensor(x: Float[Tensor, "b 3 h w"]) -> list[Image.Image]:
    """Pictures from RGB in [-1, 1]: clipped, rounded to 8 bits."""
    rows = to_pixels(x).cpu().permute(0, 2, 3, 1)
    return [Image.fromarray(row.contiguous().numpy()) for row in rows]


SHEET_SIDE = 12_000
"""Most pixels of a sheet's side: what programs still open, in half a gigabyte of memory."""


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[tuple[str, Image.Image]]]], cell: int = 192
) -> Image.Image:
    """A labelled sheet for people, at most :data:`SHEET_SIDE` pixels high and wide.

    What does not fit is left out, and the last line says how much.

    Args:
        rows: (title of the row, [(label, picture), ...]) from top to bottom.
        cell: side of a cell in pixels; pictures are scaled to fit it.
    """
    margin, caption, title = 14, 24, 34
    font, bold = ImageFont.load_default(13), ImageFont.load_default(16)
    across = max(1, (SHEET_SIDE - margin) // (cell + margin))
    down = max(1, (SHEET_SIDE - margin - title) // (title + cell + caption + margin))
    left = sum(len(pictures) for _, pictures in rows[down:])
    left += sum(max(0, len(pictures) - across) for _, pictures in rows[:down])
    rows = [(name, pictures[:across]) for name, pictures in rows[:down]]
    columns = max((len(pictures) for _, pictures in rows), default=1)
    width = margin + columns * (cell + margin)
    height = margin + len(rows) * (title + cell + caption + margin) + (title if left else 0)
    sheet = Image.new("RGB", (width, height), (250, 249, 246))
    draw = ImageDraw.Draw(sheet)
    y = margin
    for name, pictures in rows:
        draw.text((margin, y + 4), name, fill=(40, 38, 36), font=bold)
        y += title
        for column, (label, picture) in enumerate(pictures):
            x = margin + column * (cell + margin)
            fitted = _enlarge(picture.convert("RGB"), cell)
            sheet.paste(fitted, (x + (cell - fitted.width) // 2, y + (cell - fitted.height) // 2))
            shown = _shortened(label, cell, font)
            draw.text((x, y + cell + 4), shown, fill=(90, 86, 82), font=font)
        y += cell + caption + margin
    if left:
        text = f"and {left} more pictures, which are not shown"
        draw.text((margin, y), text, fill=(40, 38, 36), font=bold)
    return sheet


def _shortened(label: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The label, cut and marked with dots where it is wider than ``width`` pixels."""
    if font.getlength(label) <= width:
        return label
    while label and font.getlength(label + "...") > width:
        label = label[:-1]
    return label.rstrip() + "..."


def _enlarge(image: Image.Image, cell: int) -> Image.Image:
    factor = cell / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    smooth = Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BICUBIC
    return image.resize(size, smooth)
