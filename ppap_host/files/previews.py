"""What is made, as pictures for people and as files: images, and what is no image."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ppap_host.files.images import from_tensor, in_rgb, to_pixels, to_unit

SIDE = 192
"""Pixels of a side of a drawn preview."""
_MOST_FRAMES, _PAPER, _INK, _LINE = 9, (255, 255, 255), (28, 64, 120), (205, 203, 198)


def is_image(shape: tuple[int, ...], makes: str) -> bool:
    """Whether samples of this shape [c, h, w] are pictures that a PNG holds: grey or RGB."""
    return makes == "images" and len(shape) == 3 and shape[0] in (1, 3)


def is_saturated(pixels: NDArray[np.uint8]) -> bool:
    """Whether most pixels of a picture, [h, w, c], are at the bounds in some colour."""
    return bool(np.isin(pixels, (0, 255)).any(axis=2).mean() > 0.5)


def of_saturated(indices: Sequence[int]) -> list[str]:
    """What to warn of, where these images of all are saturated."""
    if not indices:
        return []
    shown = ", ".join(map(str, indices[:8])) + (", ..." if len(indices) > 8 else "")
    return [
        f"Most pixels of {len(indices)} images ({shown}) are at the bounds of what can be shown: a "
        "guide or --cfg is too strong, or the backbone does not fit its schedule."
    ]


def previews(x: Tensor, makes: str) -> list[Image.Image]:
    """One picture a sample, [b, ...].

    Images as they are, and of a video up to nine frames, evenly spread, in rows. Sound is drawn as
    its course, vectors as bars, anything else as a grey map of its rows.
    """
    if is_image(tuple(x.shape[1:]), makes):
        return from_tensor(in_rgb(x))
    if makes == "video" and x.ndim == 5 and x.shape[1] in (1, 3):
        return [_frames(row) for row in in_rgb(x)]
    rows = x.detach().float().nan_to_num(0.0).cpu()
    if x.ndim == 2:
        return [_bars(row.numpy()) for row in rows]
    if makes == "audio":
        return [_course(row.numpy()) for row in rows]
    return [_map(row.reshape(row.shape[0], -1)) for row in rows]


def array_bytes(x: Tensor) -> bytes:
    """A sample as the content of a ``.npy`` file, float32."""
    buffer = io.BytesIO()
    np.save(buffer, x.detach().float().cpu().numpy(), allow_pickle=False)
    return buffer.getvalue()


def film_bytes(x: Tensor, fps: float) -> bytes:
    """A video [3, f, h, w] in [-1, 1] as the content of an animated WebP file, without loss."""
    first, *others = from_tensor(x.transpose(0, 1))
    buffer = io.BytesIO()
    first.save(
        buffer, "WEBP", save_all=True, append_images=others, lossless=True, loop=0,
        duration=round(1000 / fps),
    )  # fmt: skip
    return buffer.getvalue()


def _frames(film: Tensor) -> Image.Image:
    count = film.shape[1]
    number = min(count, _MOST_FRAMES)
    chosen = [round(i * (count - 1) / max(number - 1, 1)) for i in range(number)]
    pictures = from_tensor(film[:, chosen].transpose(0, 1))
    across = math.ceil(math.sqrt(number))
    width, height = pictures[0].size
    down = math.ceil(number / across)
    sheet = Image.new("RGB", (across * (width + 1) - 1, down * (height + 1) - 1), _PAPER)
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % across * (width + 1), i // across * (height + 1)))
    return sheet


def _bars(values: NDArray[np.float32]) -> Image.Image:
    picture, draw, largest = _axes(values)
    step = SIDE / len(values)
    for i, value in enumerate(values):
        top, bottom = sorted((_height(0.0, largest), _height(value, largest)))
        right = max((i + 0.85) * step, i * step + 1)
        draw.rectangle(((i + 0.15) * step, top, right, bottom), fill=_INK)
        if len(values) <= 4:
            draw.text((i * step + 4, SIDE - 16), f"{value:.3g}", fill=_INK)
    return picture


def _course(sound: NDArray[np.float32]) -> Image.Image:
    picture, draw, largest = _axes(sound)
    for channel in sound:
        edges = np.linspace(0, len(channel), min(SIDE, len(channel)) + 1).astype(int)
        for i, (a, b) in enumerate(pairwise(edges)):
            # A column reaches from the lowest to the highest sample, and to where the next begins.
            part = channel[a : b + 1]
            left = i * SIDE / (len(edges) - 1)
            ends = _height(part.max(), largest), _height(part.min(), largest)
            draw.rectangle((left, ends[0], left + SIDE / (len(edges) - 1), ends[1]), fill=_INK)
    return picture


def _map(rows: Tensor) -> Image.Image:
    largest = float(rows.abs().max()) or 1.0
    return from_tensor((rows / largest).expand(1, 3, *rows.shape))[0]


def _axes(values: NDArray[np.float32]) -> tuple[Image.Image, ImageDraw.ImageDraw, float]:
    """An empty picture with a line at zero, and the value at its upper edge, which it says."""
    largest = max(1.0, math.ceil(float(np.abs(values).max())))
    picture = Image.new("RGB", (SIDE, SIDE), _PAPER)
    draw = ImageDraw.Draw(picture)
    middle = _height(0.0, largest)
    draw.line((0, middle, SIDE, middle), fill=_LINE)
    draw.text((3, 2), f"±{largest:g}", fill=_LINE, font=ImageFont.load_default(11))
    return picture, draw, largest


def _height(value: float, largest: float) -> float:
    return float((1 - value / largest) * (SIDE - 1) / 2)


def as_written(x: Tensor, makes: str) -> Tensor:
    """The samples as their files hold them: images with 8 bits, anything else in float32."""
    if not is_image(tuple(x.shape[1:]), makes):
        return x.detach().float()
    return to_unit(to_pixels(x))
