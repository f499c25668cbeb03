"""Photographs as people see them, tensors and pictures, and sheets for people."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from ppap_host.files.decoding import decode, to_srgb
from ppap_host.files.reading import PICTURE_ENDINGS, local_path


def means_file(text: str) -> bool:
    """Whether a target is meant as a file where it could be words: it is one, or looks like one.

    It looks like one by the ending of a picture, as an address, or as one long path without spaces.
    Reading it then says what is wrong with it, if anything is.
    """
    if os.path.isfile(text) or text.lower().endswith(PICTURE_ENDINGS):
        return True
    if "://" in text or text.startswith(("/", "./", "~/")):
        return True
    return ("/" in text or "\\" in text) and not any(c.isspace() for c in text)


def read_rgb(path: str | Path, size: tuple[int, int] | None = None) -> Image.Image:
    """A photograph as people see it: RGB, upright, cropped to the aspect ratio of the results.

    EXIF orientation is applied and an embedded colour profile converted to sRGB; transparency is
    laid on white; grey, 16-bit, CMYK and palette images are converted; of an animation the first
    frame is taken. A guide's target is better read by :meth:`ppap_host.guides.targets.Given.photo`,
    which also says what was understood.

    Args:
        size: (height, width); the picture is centre-cropped to this aspect ratio and resized with
            Lanczos. None leaves its size.

    Raises:
        TargetError: the file is missing, not regular, no image, damaged, or too large.
    """
    rgb, _ = to_srgb(decode(Path(local_path(os.fspath(path))), near=size))
    return rgb if size is None else fitted(rgb, size)


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of a picture in the aspect ratio of (height, width), resized with Lanczos."""
    return ImageOps.fit(image, (size[1], size[0]), Image.Resampling.LANCZOS)


def in_rgb(x: Tensor) -> Tensor:
    """Pictures or videos [b, 3, ...]: those of one channel as grey, any others as they are."""
    return x.expand(-1, 3, *x.shape[2:]) if x.shape[1] == 1 else x


def to_unit(pixels: UInt8[Tensor, "*b c h w"]) -> Float[Tensor, "*b c h w"]:
    """RGB in [-1, 1], float32, from 8 bits."""
    return pixels.float() / 127.5 - 1


def to_pixels(x: Float[Tensor, "*b c h w"]) -> UInt8[Tensor, "*b c h w"]:
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
            shown = shortened(label, cell, font)
            draw.text((x, y + cell + 4), shown, fill=(90, 86, 82), font=font)
        y += cell + caption + margin
    if left:
        text = f"and {left} more pictures, which are not shown"
        draw.text((margin, y), text, fill=(40, 38, 36), font=bold)
    return sheet


def shortened(label: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """A text in a line, cut and marked with dots where it is wider than ``width`` pixels."""
    shown = label[: max(width, 0)]  # no character is narrower than a pixel; there may be millions
    if shown == label and font.getlength(label) <= width:
        return label
    while shown and font.getlength(shown + "...") > width:
        shown = shown[:-1]
    return shown.rstrip() + "..."


def _enlarge(image: Image.Image, cell: int) -> Image.Image:
    factor = cell / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    smooth = Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.BICUBIC
    return image.resize(size, smooth)
