"""The guides that restore pictures: one class, and a factory for each measurement."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor, nn

from ppap_host.backbones.backbone import Backbone
from ppap_host.files.errors import OptionError
from ppap_host.guides.guide import Guide, PatchPlan
from ppap_host.guides.operators import LinearOperator
from ppap_host.guides.targets import Given, Target
from ppap_plugin_restore.operators import Measurement, least_residual
from ppap_plugin_restore.problems import (
    Colourising,
    Deblurring,
    Inpainting,
    MotionDeblurring,
    Problem,
    Size,
    SuperResolution,
)

IMPOSSIBLE = 0.01
"""A measurement that is as far as this from that of any image is warned of; RMSE in [0, 1].

Four photographs and a render, 64 x 64 pixels: blurred and kept as JPEG of quality 75 they are at
most 0.0072 away, and sharp, at least 0.018.
"""

BEST_PSNR = 100.0
"""What a residual of nothing counts as, in dB: records hold no infinity."""


class _Measuring(nn.Module):
    """A measurement as a network without parameters.

    Args:
        operator: the measurement of images of a size.
    """

    def __init__(self, operator: Callable[[Size], LinearOperator]) -> None:
        super().__init__()
        self._operator = operator

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """What is measured of the images."""
        return self._operator((x.shape[-2], x.shape[-1]))(x)


class RestorationGuide(Guide):
    """Steers towards images x with A x = y, for a linear measurement A and its given result y.

    A takes the place of the network; its output and the target's value are measurements in the
    images' own range [-1, 1], [b, c, h, w]. Up to a factor, -loss is log p(y | x) for Gaussian
    noise, as in DPS (Chung et al., 2023).

    Args:
        problem: says what A is and how y is read.
    """

    averages_pixels = True
    target_kinds = ("photo",)

    def __init__(self, problem: Problem) -> None:
        self.name = problem.name
        self.problem = problem
        self._network = _Measuring(problem.operator).eval()

    def network(self) -> nn.Module:
        """A: from RGB [b, 3, h, w] to measurements; it has no parameters."""
        return self._network

    def prepare(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """The images themselves, in single precision at least."""
        return x.to(torch.promote_types(x.dtype, torch.float32))

    def through(
        self, network: Callable[[Tensor], Tensor], x: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, "b c h2 w2"]:
        """A x in single precision at least, also for images in half: residuals become small."""
        return network(self.prepare(x))

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        """Understands a measured picture, or a clean one (option ``measure``).

        A super-resolution's small picture is taken as it is. All others are cropped to the images'
        aspect ratio and resized to their pixels.

        Raises:
            TargetError: it cannot be read, or is no measurement of an image of this size.
            OptionError: the options do not fit the size of the images.
        """
        with torch.no_grad():
            photo, value = self.problem.read(given, size)
            if not self.problem.measures:
                photo = photo.doubting(*self._doubts(given, value))
        (measured,) = self.picture(value)
        if self.problem.measures:
            pictures = {"target": photo.image, "its measurement": measured}
            return photo.target(value, pictures, "its measurement is made of it")
        return photo.target(value, {"target": measured})

    def loss(
        self, output: Float[Tensor, "b c h w"], target: Float[Tensor, "one c h w"]
    ) -> Float[Tensor, " b"]:
        """Mean squared residual of what was measured."""
        squares = (output - target.to(output)).square().mean(dim=(1, 2, 3))
        return squares / self._measurement(output).share

    def distance(
        self, student: Float[Tensor, "b c h w"], teacher: Float[Tensor, "b c h w"]
    ) -> Float[Tensor, " b"]:
        """As :meth:`loss`."""
        return self.loss(student, teacher)

    def usual_recipe(self, backbone: Backbone) -> str | None:
        """PiGDM on pixels: a linear measurement is its case. Latents have no pseudo-inverse.

        Pictures that are read from files have the noise of their 8 bits, and more.
        """
        if backbone.latent:
            return None
        return "pigdm" if self.problem.measures else "pigdm:noise=0.01"

    def operator(self, target: Float[Tensor, "b c h w"]) -> LinearOperator:
        """A of the images that have such a measurement."""
        return self._measurement(target)

    def picture(self, output: Float[Tensor, "b c h w"]) -> list[Image]:
        """The measurements as large as the images: small ones in squares, the unknown in grey."""
        return self.problem.picture(output)

    def measure(
        self, output: Float[Tensor, "b c h w"], target: Float[Tensor, "one c h w"]
    ) -> dict[str, list[float]]:
        """How well the measurement is met, not how good the picture is.

        "psnr" in dB, at most 100, and "rmse", both for images in [0, 1] and over what was measured.
        """
        squares = self.loss(output.detach().double(), target.double())
        rmse = [math.sqrt(value) / 2 for value in squares.tolist()]
        floor = 10 ** (-BEST_PSNR / 20)
        return {"psnr": [-20 * math.log10(max(value, floor)) for value in rmse], "rmse": rmse}

    def patch_plan(self, network: nn.Module) -> PatchPlan:
        """There is nothing to tune.

        Raises:
            OptionError: always.
        """
        raise OptionError(
            f"The guide {self.name!r} measures images without a network, so no expert can learn "
            "from it.",
            remedy="Use it with a recipe that shows it predicted images, such as x0.",
        )

    def files(self) -> Sequence[Path]:
        """The files that its options name, such as a mask."""
        return self.problem.files()

    def _doubts(self, given: Given, y: Float[Tensor, "1 c h w"]) -> tuple[str, ...]:
        """Whether an image can have such a measurement."""
        off = float(least_residual(self._measurement(y), y))
        if off < IMPOSSIBLE:
            return ()
        return (
            f"{given.source} is no picture that the guide {self.name!r} measures: what it measures "
            f"of any image is at least {255 * off:.0f} of 255 grey levels away from it (root mean "
            "square). If it is a picture as it was before, give --model measure=yes; if it was "
            "measured otherwise, say how with the guide's options.",
        )

    def _measurement(self, y: Tensor) -> Measurement:
        return self.problem.operator(self.problem.image_size((y.shape[-2], y.shape[-1])))


def super_resolution(model: str | None = None) -> RestorationGuide:
    """Options: ``factor`` (4), ``measure``."""
    return RestorationGuide(SuperResolution(model))


def inpainting(model: str | None = None) -> RestorationGuide:
    """Options: ``mask`` (a path), ``box`` (a part of the shorter side), ``measure``."""
    return RestorationGuide(Inpainting(model))


def deblur(model: str | None = None) -> RestorationGuide:
    """Options: ``sigma`` (1.5 for 64 pixels), ``measure``."""
    return RestorationGuide(Deblurring(model))


def motion_deblur(model: str | None = None) -> RestorationGuide:
    """Options: ``length`` (9 for 64 pixels), ``angle`` (45), ``measure``."""
    return RestorationGuide(MotionDeblurring(model))


def colourise(model: str | None = None) -> RestorationGuide:
    """Options: ``measure``, which changes nothing but the pictures shown."""
    return RestorationGuide(Colourising(model))
