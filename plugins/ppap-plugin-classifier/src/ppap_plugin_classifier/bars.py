"""What a classifier sees, as a small bar chart for people."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from ppap_host.files.images import shortened

SIDE = 192
"""Of a chart, in pixels; it is still legible at two thirds of that."""

_PAPER, _INK, _GROOVE = (250, 249, 246), (40, 38, 36), (226, 222, 214)
# The most likely class in a strong blue, the others in a pale one, apart by lightness alone.
_FIRST, _OTHER = (31, 95, 166), (140, 172, 208)


def percent(probability: float) -> str:
    """In whole percent; what is nearly none or nearly all is said as such."""
    if 0 < probability < 0.01:
        return "<1%"
    if 0.99 < probability < 1:
        return ">99%"
    return f"{100 * probability:.0f}%"


def chart(rows: Sequence[tuple[str, float]]) -> Image.Image:
    """A square picture with one label, bar and percentage a row.

    Args:
        rows: (label, probability in [0, 1]), at most three, the most likely one first. A label
            that is too wide is cut and marked with dots.
    """
    picture = Image.new("RGB", (SIDE, SIDE), _PAPER)
    draw = ImageDraw.Draw(picture)
    font, small = ImageFont.load_default(21), ImageFont.load_default(17)
    margin, height, numbers = 10, (SIDE - 8) // 3, 50
    for k, (label, probability) in enumerate(rows):
        top = 8 + k * height
        draw.text((margin, top), shortened(label, SIDE - 2 * margin, font), fill=_INK, font=font)
        left, right = margin, SIDE - margin - numbers
        bar = (left, top + 30, right, top + 46)
        draw.rectangle(bar, fill=_GROOVE)
        # In this order NaN, which is written beside it, has no bar.
        filled = left + round((right - left) * min(max(0.0, probability), 1.0))
        if filled > left:
            draw.rectangle((left, bar[1], filled, bar[3]), fill=_FIRST if k == 0 else _OTHER)
        end = (SIDE - margin, top + 38)
        draw.text(end, percent(probability), fill=_INK, font=small, anchor="rm")
    return picture
