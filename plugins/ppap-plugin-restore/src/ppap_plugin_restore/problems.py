"""What each guide measures: its options, its operator at a size, and how its target is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ppap_host.files.decoding import has_alpha, to_srgb
from ppap_host.files.errors import OptionError, TargetError
from ppap_host.files.images import fitted, from_tensor, to_tensor
from ppap_host.guides.targets import Given, Photo, check_same_shape, known_by
from ppap_plugin_restore.operators import (
    BoxDownsample,
    GaussianBlur,
    Greyscale,
    Masking,
    Measurement,
    MotionBlur,
)
from ppap_plugin_restore.options import Options

Size = tuple[int, int]
"""(height, width) in pixels."""

WORLD = 64
"""Shorter side, in pixels, of the images that the blurs' defaults are meant for."""


class Problem(ABC):
    """A linear inverse problem with its options.

    Attributes:
        name: of the guide.
        keys: its options, beside ``measure``.
        measures: whether targets are clean pictures which are to be measured first.
    """

    name: str
    keys: tuple[str, ...] = ()

    def __init__(self, model: str | None) -> None:
        """Reads the --model option.

        Raises:
            OptionError: it does not fit; see :class:`ppap_plugin_restore.options.Options`.
        """
        options = Options(self.name, model, (*self.keys, "measure"))
        self.measures = options.flag("measure")
        self._configure(options)

    def _configure(self, options: Options) -> None:  # noqa: B027
        """Reads the problem's own options."""

    @abstractmethod
    def operator(self, size: Size) -> Measurement:
        """A, for images of this size.

        Raises:
            OptionError: the options do not fit this size, or nothing says what is known of it.
        """

    def image_size(self, measured: Size) -> Size:
        """The size of the images whose measurement has this size."""
        return measured

    def read(self, given: Given, size: Size) -> tuple[Photo, Float[Tensor, "1 c h w"]]:
        """A target as a photograph, and the measurement y of an image of ``size`` that it gives.

        Raises:
            TargetError: it cannot be read, or is no measurement of such an image.
        """
        photo = given.photo(size)
        return photo, self.operator(size)(photo.pixels) if self.measures else photo.pixels

    def files(self) -> Sequence[Path]:
        """The files that its options name."""
        return ()

    def picture(self, y: Float[Tensor, "b c h w"]) -> list[Image.Image]:
        """Measurements for people, as large as the images."""
        return from_tensor(y.expand(-1, 3, -1, -1))


class SuperResolution(Problem):
    """The target is the box average of an image, ``factor`` times smaller."""

    name = "super-resolution"
    keys = ("factor",)

    def _configure(self, options: Options) -> None:
        self.factor = options.whole("factor", 4, low=2)

    def operator(self, size: Size) -> BoxDownsample:
        """Box averages.

        Raises:
            OptionError: the factor does not divide both sides.
        """
        if size[0] % self.factor or size[1] % self.factor:
            raise OptionError(
                f"The factor {self.factor} does not divide the image's {size[1]} x {size[0]} "
                "pixels.",
                remedy="Choose another one with --model factor=...",
            )
        return BoxDownsample(self.factor)

    def image_size(self, measured: Size) -> Size:
        """``factor`` times as large."""
        return measured[0] * self.factor, measured[1] * self.factor

    def read(self, given: Given, size: Size) -> tuple[Photo, Float[Tensor, "1 3 h w"]]:
        """The small picture as it is, or a larger one's box average if that was asked for.

        Raises:
            TargetError: it cannot be read, or has not exactly the pixels of a measurement.
        """
        operator = self.operator(size)
        if self.measures:
            photo = given.photo(size)
            return photo, operator(photo.pixels)
        # Read whole: cropped or resized it would no longer be what was measured.
        photo = given.photo()
        small = photo.image
        wanted = (size[1] // self.factor, size[0] // self.factor)
        if small.size != wanted:
            raise TargetError(
                f"The picture {given.text!r} has {small.width} x {small.height} pixels, but with "
                f"factor {self.factor} an image of {size[1]} x {size[0]} is measured as "
                f"{wanted[0]} x {wanted[1]}.",
                remedy=self._way_out(small, size),
            )
        return photo, photo.pixels

    def _way_out(self, small: Image.Image, size: Size) -> str:
        factor, rest = divmod(size[1], small.width)
        if not rest and factor > 1 and small.height * factor == size[0]:
            return f"Give --model factor={factor}, or scale the picture."
        options = f"factor={self.factor},measure=yes"
        return (
            "Scale it to that size; or, if it is a sharp picture that is to be measured first, "
            f"give --model {options}."
        )

    def picture(self, y: Float[Tensor, "b 3 h w"]) -> list[Image.Image]:
        """Every measured value as a square."""
        f = self.factor
        return from_tensor(y.repeat_interleave(f, dim=-2).repeat_interleave(f, dim=-1))


class Inpainting(Problem):
    """The target is a picture of which some pixels are known.

    Unknown is what the option ``mask`` paints white, or a hole in the middle (``box``), or else
    what is transparent in the picture itself.
    """

    name = "inpainting"
    keys = ("mask", "box")

    def _configure(self, options: Options) -> None:
        mask = options.path("mask")
        self.mask = None if mask is None else replace(Given.of(mask), kind="mask")
        self.box = options.number("box", 0.5, low=0.01, high=0.99) if "box" in options else None
        if self.mask is not None and self.box is not None:
            raise OptionError(
                "--model gives both mask and box, and one of them decides what is unknown.",
                remedy="Leave out one of them.",
            )
        self._operators: dict[Size, Masking] = {}

    def operator(self, size: Size) -> Masking:
        """Keeps what is known.

        Raises:
            OptionError: nothing says what is known: there is neither an option nor a target yet.
            TargetError: the mask cannot be read, or is all black or all white.
        """
        if size not in self._operators:
            if self.mask is not None:
                known = known_by(self.mask.mask(size))
                _check_some_known(known, f"The mask {self.mask.text!r} is white everywhere")
            elif self.box is not None:
                known = _around_a_box(size, self.box)
            else:
                raise OptionError(
                    f"Nothing says which pixels of {size[1]} x {size[0]} are known.",
                    remedy="Give --model mask=..., --model box=0.5, or a target with transparency.",
                )
            self._operators[size] = Masking(known)
        return self._operators[size]

    def read(self, given: Given, size: Size) -> tuple[Photo, Float[Tensor, "1 3 h w"]]:
        """The picture, 0 where it is unknown.

        Raises:
            TargetError: it cannot be read; all of it is known, or nothing; a mask has another
                shape; or a second picture is transparent elsewhere than the first one.
        """
        if self.mask is None and self.box is None:
            return self._read_transparent(given, size)
        photo = given.photo(size)
        if self.mask is not None:
            holes = self.mask.mask(size)
            check_same_shape(photo, holes)
            photo = photo.doubting(*holes.doubts)
            photo = replace(photo, understood=f"{photo.understood}; {holes.understood}")
        return photo, self.operator(size)(photo.pixels)

    def _read_transparent(self, given: Given, size: Size) -> tuple[Photo, Float[Tensor, "1 3 h w"]]:
        photo = given.photo(size)
        picture, known = _with_transparency(given, photo, size)
        text = given.text
        if bool(known.all()):
            raise TargetError(
                f"The picture {text!r} has nothing transparent, so nothing is to be filled in.",
                remedy="Make transparent what is unknown; or give a mask that is white there, with "
                "--model mask=PATH, or --model box=0.5 for a hole in the middle.",
            )
        _check_some_known(known, f"The picture {text!r} is transparent everywhere")
        before = self._operators.get(size)
        if before is not None and not torch.equal(before.known, known):
            raise TargetError(
                f"The picture {text!r} is transparent elsewhere than the target before it.",
                remedy="Use a guide for each, or one mask for all with --model mask=PATH.",
            )
        operator = self._operators[size] = Masking(known)
        unknown = 100 * (1 - float(known.mean()))
        said = f"{photo.understood}; {unknown:.0f} % of it is transparent and to be filled in"
        return replace(photo, understood=said), operator(picture)

    def files(self) -> Sequence[Path]:
        """The mask."""
        return () if self.mask is None else self.mask.files


class Deblurring(Problem):
    """The target is an image under a Gaussian blur."""

    name = "deblur"
    keys = ("sigma",)

    def _configure(self, options: Options) -> None:
        self.sigma = options.number("sigma", 1.5, low=0.1) if "sigma" in options else None

    def operator(self, size: Size) -> GaussianBlur:
        """The blur; without ``sigma`` its width is 1.5 pixels of 64, in proportion for others."""
        return GaussianBlur(1.5 * min(size) / WORLD if self.sigma is None else self.sigma)


class MotionDeblurring(Problem):
    """The target is an image blurred along a line."""

    name = "motion-deblur"
    keys = ("length", "angle")

    def _configure(self, options: Options) -> None:
        self.length = options.number("length", 9.0, low=1.5) if "length" in options else None
        self.angle = options.number("angle", 45.0, low=-float("inf"))

    def operator(self, size: Size) -> MotionBlur:
        """The blur; without ``length`` it is 9 pixels of 64, in proportion for others."""
        length = 9.0 * min(size) / WORLD if self.length is None else self.length
        return MotionBlur(max(length, 1.0), self.angle)


class Colourising(Problem):
    """The target is the luma of an image: a grey picture, or a colour one that is turned grey."""

    name = "colourise"

    def operator(self, size: Size) -> Greyscale:
        """Luma."""
        return Greyscale()

    def read(self, given: Given, size: Size) -> tuple[Photo, Float[Tensor, "1 1 h w"]]:
        """The picture's luma, which for a grey picture is the picture itself.

        Raises:
            TargetError: it cannot be read.
        """
        photo = given.photo(size)
        return photo, self.operator(size)(photo.pixels)


def _around_a_box(size: Size, share: float) -> Float[Tensor, "1 1 h w"]:
    """1 but for a square in the middle, its side ``share`` of the shorter side."""
    side = max(1, round(share * min(size)))
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    known = torch.ones(1, 1, *size)
    known[:, :, top : top + side, left : left + side] = 0
    return known


def _check_some_known(known: Tensor, what: str) -> None:
    if not bool(known.any()):
        raise TargetError(
            f"{what}, so nothing of the picture is known.",
            remedy="Leave some of it: without a known pixel there is nothing to restore from.",
        )


def _with_transparency(
    given: Given, photo: Photo, size: Size
) -> tuple[Float[Tensor, "1 3 h w"], Float[Tensor, "1 1 h w"]]:
    """A picture in [-1, 1], cropped as ``photo``, and 1 where it is at least half opaque.

    Pillow resizes RGBA with every pixel weighed by its alpha, so the colours that lie hidden under
    what is transparent do not bleed into what is known.
    """
    decoded = given.decoded()
    image = decoded.image
    if image is None or not has_alpha(image):
        return photo.pixels, torch.ones(1, 1, *size)
    rgba = image.convert("RGBA")
    alpha = rgba.getchannel("A")
    opaque = rgba.convert("RGB")
    opaque.info = {k: v for k, v in image.info.items() if k != "transparency"}
    colours, _ = to_srgb(replace(decoded, pixels=opaque))
    fit = fitted(Image.merge("RGBA", [*colours.split(), alpha]), size)
    known = to_tensor(Image.merge("RGB", [fit.getchannel("A")] * 3))[:, :1] > 0
    return to_tensor(fit), known.float()
