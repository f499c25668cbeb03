"""Analytic models for tests: Gaussian data, whose diffusion is known in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor, nn

from ppap_host.backbones.backbone import Backbone, Condition, Prediction
from ppap_host.backbones.noise import DiscreteSchedule, NoiseLevel, Walk, cosine_betas
from ppap_host.guides.guide import Guide
from ppap_host.guides.targets import Given, Target


class GaussianBackbone(Backbone):
    """The exact denoiser of images whose pixels are independent N(mean, spread^2)."""

    name = "gaussian"
    clip = None

    def __init__(
        self, mean: float = 0.3, spread: float = 0.5, shape: tuple[int, ...] = (3, 4, 4)
    ) -> None:
        self.mean, self.spread, self.state_shape = mean, spread, shape
        self.schedule = DiscreteSchedule.from_betas(cosine_betas(1000)[:980])
        self.evaluations = 0

    def walk(self, steps: int | str) -> Walk:
        return self.schedule.walk(steps)

    def levels(self) -> tuple[NoiseLevel, ...]:
        return self.schedule.levels()

    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        self.evaluations += 1
        variance = level.alpha**2 * self.spread**2 + level.sigma**2
        return Prediction(level.sigma * (x - level.alpha * self.mean) / variance)

    def flow(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """Where the probability-flow ODE carries ``x`` from ``level`` to the clean end."""
        total = math.sqrt(level.alpha**2 * self.spread**2 + level.sigma**2)
        return self.mean + self.spread * (x - level.alpha * self.mean) / total

    def to(self, device: torch.device, dtype: torch.dtype) -> Backbone:
        return self


class ClassBackbone(GaussianBackbone):
    """Three classes, each of another mean; ``shade`` is added to all of them."""

    name = "classes"
    class_count = 3
    default_cfg = 2.0

    def __init__(self, checkpoint: str | None = None, shade: str = "0") -> None:
        super().__init__(spread=0.05)
        self.shade = float(shade)

    def encode_classes(self, labels: Sequence[int | None]) -> Condition:
        means = [-0.9 if k is None else 0.3 * k - 0.3 for k in labels]
        return {"mean": torch.tensor(means) + self.shade}

    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        variance = level.alpha**2 * self.spread**2 + level.sigma**2
        mean = condition["mean"].view(-1, 1, 1, 1)
        return Prediction(level.sigma * (x - level.alpha * mean) / variance)


class FillingBackbone(GaussianBackbone):
    """Keeps what is known of an image and draws the rest."""

    name = "filling"

    def __init__(self, checkpoint: str | None = None) -> None:
        super().__init__(mean=-0.5, spread=0.05, shape=(3, 8, 8))

    def inpainting(self, images: Tensor, known: Tensor) -> Condition:
        return {"image": images * known, "known": known}

    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        free = super().predict(x, level, {}).eps
        kept = (x - level.alpha * condition["image"]) / level.sigma
        return Prediction(torch.where(condition["known"] > 0, kept, free))


class LatentBackbone(GaussianBackbone):
    """Decodes each cell of its latents to 2 x 2 pixels; keeps the levels it is asked at."""

    name = "latent"

    def __init__(self, checkpoint: str | None = None) -> None:
        super().__init__(mean=0.1)
        self.seen: list[NoiseLevel] = []

    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        self.seen.append(level)
        return super().predict(x, level, condition)

    def decode(self, x0: Tensor) -> Tensor:
        return x0.flip(1).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    @property
    def decoded_shape(self) -> tuple[int, ...]:
        return 3, 8, 8

    @property
    def image_size(self) -> tuple[int, int]:
        return 8, 8


class QuadraticGuide(Guide):
    """log p(y | x_0) = -(x_0 - y)^2 / (2 noise^2), exact at every noise level of a Gaussian world.

    Args:
        world: whose posterior of x_0 makes the likelihood at x_t exact; None looks at what it is
            shown as if it were clean.
        broken: image indices whose loss is NaN.
    """

    name = "quadratic"

    def __init__(
        self,
        noise: float = 0.4,
        world: GaussianBackbone | None = None,
        broken: tuple[int, ...] = (),
    ) -> None:
        self.noise, self.world, self.broken = noise, world, broken
        self.calls = 0
        self._variance = noise**2

    def network(self) -> nn.Module:
        return nn.Identity()

    def see(self, x: Tensor, level: NoiseLevel | None = None) -> Tensor:
        self.calls += 1
        self._variance = self.noise**2
        if level is None or self.world is None:
            return x
        spread, mean = self.world.spread, self.world.mean
        total = level.alpha**2 * spread**2 + level.sigma**2
        self._variance += spread**2 * level.sigma**2 / total
        return mean + level.alpha * spread**2 / total * (x * level.scale - level.alpha * mean)

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        return Target(given.words, torch.full((1, 3, *size), float(given.words)))

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        loss = (output - target).square().sum(dim=(1, 2, 3)) / (2 * self._variance)
        factor = torch.ones(len(loss))
        factor[list(self.broken)] = float("nan")
        return loss * factor

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).square().mean(dim=(1, 2, 3))

    def picture(self, output: Tensor) -> list[Image.Image]:
        return [Image.new("RGB", (4, 4)) for _ in output]

    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        return {"error": (output - target).abs().mean(dim=(1, 2, 3)).tolist()}


class ColourGuide(Guide):
    """Mean colour by a small network with convolution, batch normalisation and linear layer."""

    name = "colour"

    def __init__(self, model: str | None = None) -> None:
        generator = torch.Generator().manual_seed(int(model or 0))
        self._network = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 3),
        ).eval()
        with torch.no_grad():
            # Not what the global generator makes of it: two processes must agree.
            for parameter in self._network.parameters():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        self._network.requires_grad_(False)

    def network(self) -> nn.Module:
        return self._network

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        return Target(given.words, torch.full((1, 3), float(given.words)))

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().sum(dim=1)

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).square().sum(dim=1)

    def from_labels(self, labels: Tensor) -> Tensor:
        return labels

    def picture(self, output: Tensor) -> list[Image.Image]:
        return [Image.new("RGB", (4, 4)) for _ in output]

    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        return {"error": (output - target).abs().mean(dim=1).tolist()}


def small_gaussian(checkpoint: str | None = None) -> GaussianBackbone:
    """A Gaussian world of 8 x 8 pixels; ``checkpoint`` is its mean."""
    return GaussianBackbone(mean=float(checkpoint or 0.1), shape=(3, 8, 8))


class Exploding(Backbone):
    """A variance-preserving backbone in variance-exploding form: the state is x_t / alpha.

    Karras et al. (2022), table 1: the same model with another way to write its states, as EDM has
    them: x = x_0 + s eps with s = sigma / alpha.
    """

    name = "exploding"

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.state_shape, self.clip = backbone.state_shape, backbone.clip

    def _level(self, level: NoiseLevel) -> NoiseLevel:
        return NoiseLevel(1.0, level.sigma / level.alpha, level.time)

    def walk(self, steps: int | str) -> Walk:
        return Walk(tuple(self._level(level) for level in self.backbone.walk(steps).levels))

    def levels(self) -> tuple[NoiseLevel, ...]:
        return tuple(self._level(level) for level in self.backbone.levels())

    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        alpha = 1 / math.hypot(1.0, level.sigma)
        preserving = NoiseLevel(alpha, alpha * level.sigma, level.time)
        return self.backbone.predict(alpha * x, preserving, condition)

    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        return self.backbone.encode_prompts(prompts)

    def to(self, device: torch.device, dtype: torch.dtype) -> Backbone:
        self.backbone.to(device, dtype)
        return self
