"""An analytic world to try guides, backbones and recipes in: nothing to download, nothing to train.

The images are Gaussian, smooth as pictures are, and their denoiser is known in closed form, so a
guided run on it takes well under a second.
"""

from __future__ import annotations

import math

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ppap_host.backbones.backbone import Backbone, Condition, Prediction
from ppap_host.backbones.noise import DiscreteSchedule, NoiseLevel, Walk, cosine_betas
from ppap_host.files.errors import TargetError
from ppap_host.guides.guide import Guide
from ppap_host.guides.operators import LinearOperator
from ppap_host.guides.targets import Given, Target

_LAST = 980  # of the cosine schedule's 1000 steps; what follows is all but pure noise


class GaussianWorld(Backbone):
    """The exact denoiser of smooth Gaussian images, their power falling with the frequency.

    Args:
        size: (height, width) in pixels.
        shape: of what is made where it is no RGB image: its last two sides are smooth, or its one
            side of sound and of vectors.
        mean: of every pixel.
        spread: standard deviation of a pixel.
        roughness: the frequency, in cycles an image, from which on the power falls with its square.
    """

    name = "gaussian-world"
    clip: tuple[float, float] | None = None

    def __init__(
        self,
        size: tuple[int, int] = (64, 64),
        mean: float = 0.0,
        spread: float = 0.5,
        roughness: float = 2.0,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        if shape is not None:
            size = (1, shape[-1]) if len(shape) < 3 else (shape[-2], shape[-1])
        self.state_shape = (3, *size) if shape is None else shape
        self._size = size
        self.mean, self.spread = mean, spread
        rows = torch.fft.fftfreq(size[0], dtype=torch.float64) * size[0]
        columns = torch.fft.rfftfreq(size[1], dtype=torch.float64) * size[1]
        power = 1 / (1 + (rows[:, None].square() + columns.square()) / roughness**2)
        # The columns that a real transform leaves out count twice.
        twice = torch.full_like(power, 2.0)
        twice[:, 0] = 1
        if size[1] % 2 == 0:
            twice[:, -1] = 1
        self._power = power * spread**2 / ((power * twice).sum() / math.prod(size))
        self.schedule = DiscreteSchedule.from_betas(cosine_betas(1000)[:_LAST])

    def walk(self, steps: int | str) -> Walk:
        """The cosine schedule, respaced."""
        return self.schedule.walk(steps)

    def levels(self) -> tuple[NoiseLevel, ...]:
        """All of its steps."""
        return self.schedule.levels()

    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        """The noise's exact mean given ``x``."""
        power = self._power.to(x.device, x.dtype)
        kept = level.sigma / (level.alpha**2 * power + level.sigma**2)
        planes = (x - level.alpha * self.mean).reshape(len(x), -1, *self._size)
        spectrum = torch.fft.rfft2(planes)
        return Prediction(torch.fft.irfft2(kept * spectrum, s=self._size).view_as(x))

    def to(self, device: torch.device, dtype: torch.dtype) -> Backbone:
        """There is nothing to move."""
        return self


class PullGuide(Guide):
    """Wants the image to be the target itself, -(x - y)^2 / 2; exact, without weights.

    It is the linear measurement by the identity, so that every recipe can ask it, and looks at
    whatever a backbone makes.

    Args:
        world: whose denoiser it looks through where it is told the noise, so that it knows noised
            images as well as an expert does; None takes them for clean ones.
        blind: whether it sees the same in every image, so that its gradient is zero.
        broken: indices in the batch of the images whose loss is NaN.
    """

    name = "pull"
    looks_at = None

    def __init__(
        self,
        world: Backbone | None = None,
        *,
        blind: bool = False,
        broken: tuple[int, ...] = (),
    ) -> None:
        self.world, self.blind, self.broken = world, blind, broken
        self._network = nn.Identity()

    def network(self) -> nn.Module:
        """The identity."""
        return self._network

    def prepare(self, x: Tensor) -> Tensor:
        """The image."""
        return x

    def see(self, x: Tensor, level: NoiseLevel | None = None) -> Tensor:
        """The image, or what the world predicts behind its noise."""
        if level is None or self.world is None:
            return x
        noised = level.scale * x
        return (noised - level.sigma * self.world.predict(noised, level, {}).eps) / level.alpha

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        """A number from -1 to 1: the grey of the wanted image.

        Raises:
            TargetError: it is none.
        """
        try:
            return Target(given.words, torch.full((1, 3, *size), float(given.words)))
        except ValueError:
            raise TargetError(
                f"The target {given.words!r} is no number.", remedy="Give one from -1 to 1."
            ) from None

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Half the squared difference, summed over the image."""
        loss = (output - target).square().flatten(1).sum(dim=1) / 2
        if self.blind:
            return 0.0 * loss
        factor = torch.ones_like(loss)
        factor[list(self.broken)] = math.nan
        return loss * factor

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean squared difference."""
        return (student - teacher).square().flatten(1).mean(dim=1)

    def operator(self, target: Tensor) -> LinearOperator:
        """The identity."""
        return _Itself(self.blind, self.broken)

    def picture(self, output: Tensor) -> list[Image.Image]:
        """A grey square each."""
        return [Image.new("RGB", (8, 8), (128, 128, 128)) for _ in output]

    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        """Mean absolute difference."""
        return {"error": (output - target).abs().flatten(1).mean(dim=1).tolist()}


class _Itself(LinearOperator):
    """The identity, or nothing for a blind guide, and NaN for broken images."""

    def __init__(self, blind: bool, broken: tuple[int, ...]) -> None:
        self.blind, self.broken = blind, broken

    def __call__(self, x: Tensor) -> Tensor:
        return 0 * x if self.blind else x

    def adjoint(self, y: Tensor) -> Tensor:
        return 0 * y if self.blind else y

    def pseudo_inverse(self, y: Tensor, ratio: float = 0.0) -> Tensor:
        if self.blind:
            return 0 * y
        found = y / (1 + ratio)
        for k in self.broken:
            found[k] = math.nan
        return found


def pictures(count: int, size: tuple[int, int] = (64, 64), seed: int = 0) -> Tensor:
    """Smooth coloured patterns with edges and a little grain, RGB in [-1, 1], float32 [b, 3, h, w].

    They stand for photographs where nothing but their being different from each other matters.
    """
    generator = torch.Generator().manual_seed(seed)

    def field(cells: int, width: float) -> Tensor:
        coarse = torch.randn(count, 3, cells, cells, generator=generator)
        return width * F.interpolate(coarse, size, mode="bicubic", align_corners=False)

    x = 0.3 * torch.randn(count, 3, 1, 1, generator=generator) + field(4, 0.35) + field(9, 0.12)
    height, width = size
    for image in x:
        for _ in range(3):
            at = torch.rand(4, generator=generator)
            top, left = int(at[0] * 0.7 * height), int(at[1] * 0.7 * width)
            tall, wide = int((0.15 + 0.3 * at[2]) * height), int((0.15 + 0.3 * at[3]) * width)
            colour = 1.6 * torch.rand(3, 1, 1, generator=generator) - 0.8
            image[:, top : top + tall, left : left + wide] = colour
    x = x + 0.02 * torch.randn(x.shape, generator=generator)
    return x.clamp(-1, 1)


def samples(count: int, shape: tuple[int, ...], makes: str, seed: int = 0) -> Tensor:
    """Samples that differ, of any shape, within [-1, 1], float32 [b, *shape].

    Images and the frames of videos are :func:`pictures`, in as many channels; sound is a few tones,
    anything else noise.
    """
    generator = torch.Generator().manual_seed(seed)
    if makes in ("images", "video") and len(shape) >= 3:
        channels, (height, width) = shape[0], shape[-2:]
        number = math.prod(shape[1:-2])
        planes = pictures(count * number * math.ceil(channels / 3), (height, width), seed)
        if channels == 1:
            planes = planes.mean(dim=1, keepdim=True)
        planes = planes.reshape(count, number, -1, height, width)[:, :, :channels]
        return planes.transpose(1, 2).reshape(count, *shape).contiguous()
    if makes == "audio":
        at = torch.linspace(0, 1, shape[-1])
        drawn = torch.rand(4, 2, count, *shape[:-1], 1, generator=generator)
        tones = [torch.sin(2 * math.pi * (1 + 9 * f) * (at + p)) for f, p in drawn]
        return torch.stack(tones).mean(dim=0)
    return (0.5 * torch.randn(count, *shape, generator=generator)).clamp(-1, 1)
