"""What each guide measures: its options, its operator at a size, and how its target is read."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from ppap_host.files.errors import OptionError, TargetError
from ppap_host.files.images import from_tensor, read_known, read_rgb, to_tensor
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

    def read(self, text: str, size: Size) -> Float[Tensor, "1 c h w"]:
        """The measurement y of an image of ``size`` that the target at a path gives.

        Raises:
            TargetError: it cannot be read, or is no measurement of such an image.
        """
        picture = to_tensor(read_rgb(text, size))
        return self.operator(size)(picture) if self.measures else picture

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

    def read(self, text: str, size: Size) -> Float[Tensor, "1 3 h w"]:
        """The small picture as it is, or a larger one's box average if that was asked for.

        Raises:
            TargetError: it cannot be read, or has not exactly the pixels of a measurement.
        """
        operator = self.operator(size)
        if self.measures:
            return operator(to_tensor(read_rgb(text, size)))
        # Read whole: cropped or resized it would no longer be what was measured.
        small = read_rgb(text)
        wanted = (size[1] // self.factor, size[0] // self.factor)
        if small.size != wanted:
            raise TargetError(
                f"The picture {text!r} has {small.width} x {small.height} pixels, but with factor "
                f"{self.factor} an image of {size[1]} x {size[0]} is measured as "
                f"{wanted[0]} x {wanted[1]}.",
                remedy=self._way_out(small, size),
            )
        return to_tensor(small)

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
        self.mask = options.path("mask")
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
                # The picture does not matter here.
                known = read_known(self.mask, self.mask, size)[1]
                _check_some_known(known, f"The mask {str(self.mask)!r} is white everywhere")
            elif self.box is not None:
                known = _around_a_box(size, self.box)
            else:
                raise OptionError(
                    f"Nothing says which pixels of {size[1]} x {size[0]} are known.",
                    remedy="Give --model mask=..., --model box=0.5, or a target with transparency.",
                )
            self._operators[size] = Masking(known)
        return self._operators[size]

    def read(self, text: str, size: Size) -> Float[Tensor, "1 3 h w"]:
        """The picture, 0 where it is unknown.

        Raises:
            TargetError: it cannot be read; all of it is known, or nothing; a mask has another
                shape; or a second picture is transparent elsewhere than the first one.
        """
        if self.mask is not None:
            _check_same_shape(Path(text), self.mask)
        elif self.box is None:
            return self._read_transparent(text, size)
        return self.operator(size)(to_tensor(read_rgb(text, size)))

    def _read_transparent(self, text: str, size: Size) -> Float[Tensor, "1 3 h w"]:
        picture, known = _read_rgba(text, size)
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
        return operator(picture)

    def files(self) -> Sequence[Path]:
        """The mask."""
        return () if self.mask is None else (self.mask,)


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

    def read(self, text: str, size: Size) -> Float[Tensor, "1 1 h w"]:
        """The picture's luma, which for a grey picture is the picture itself.

        Raises:
            TargetError: it cannot be read.
        """
        return self.operator(size)(to_tensor(read_rgb(text, size)))


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


def _check_same_shape(picture: Path, mask: Path) -> None:
    """Both are cropped to the images' aspect ratio, which moves them apart if theirs differ."""
    (w1, h1), (w2, h2) = read_rgb(picture).size, read_rgb(mask).size
    # Sides are whole pixels, so two sizes of one picture differ by up to one of them.
    if abs(w1 * h2 - w2 * h1) > max(w1, h1, w2, h2):
        raise TargetError(
            f"The mask {str(mask)!r} has {w2} x {h2} pixels, the picture {str(picture)!r} has "
            f"{w1} x {h1}.",
            remedy="Give a mask of the same picture: of its size, or with its aspect ratio.",
        )


def _read_rgba(text: str, size: Size) -> tuple[Float[Tensor, "1 3 h w"], Float[Tensor, "1 1 h w"]]:
    """A picture in [-1, 1] and 1 where it is at least half opaque, cropped as :func:`read_rgb`.

    Pillow resizes RGBA with every pixel weighed by its alpha, so the colours that lie hidden under
    what is transparent do not bleed into what is known.

    Raises:
        TargetError: as :func:`read_rgb`.
    """
    opaque = read_rgb(text, size)  # says what is wrong with a file that cannot be read
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(text) as image:
            if "A" not in image.getbands() and "transparency" not in image.info:
                return to_tensor(opaque), torch.ones(1, 1, *size)
            upright = ImageOps.exif_transpose(image).convert("RGBA")
    fitted = ImageOps.fit(upright, (size[1], size[0]), Image.Resampling.LANCZOS)
    alpha = to_tensor(Image.merge("RGB", [fitted.getchannel("A")] * 3))[:, :1]
    return to_tensor(fitted), (alpha > 0).float()
