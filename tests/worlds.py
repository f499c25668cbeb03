"""Analytic models for tests: Gaussian data, whose diffusion is known in closed form."""

from __future__ import annotations

import math

import torch
from PIL import Image
from torch import Tensor, nn

from ppap_host.backbone import Backbone, Condition, Prediction
from ppap_host.guide import Guide, Target
from ppap_host.noise import DiscreteSchedule, NoiseLevel, Walk, cosine_betas


class GaussianBackbone(Backbone):
    """The exact denoiser of images whose pixels are independent N(mean, spread^2)."""

    name = "gaussian"
    clip = None

    def __init__(
        self, mean: float = 0.3, spread: float = 0.5, shape: tuple[int, int, int] = (3, 4, 4)
    ) -> None:
        self.mean, self.spread, self.state_shape = mean, spread, shape
        self.schedule = DiscreteSchedule.from_betas(cosine_betas(1000)[:980])
        self.evaluations = 0

    def walk(self, steps: int | str) -> Walk:
        return self.schedule.walk(steps)

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

    def read_target(self, text: str, size: tuple[int, int]) -> Target:
        return Target(text, torch.full((1, 3, *size), float(text)))

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
