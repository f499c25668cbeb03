"""The models that the conformance vectors of guidance are made with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ppap_host.backbones.backbone import Backbone, Condition, Prediction
from ppap_host.backbones.noise import DiscreteSchedule, NoiseLevel, Walk
from ppap_host.guides.guide import Guide
from ppap_host.guides.targets import Given, Target


class Analytic(Backbone):
    """The vectors' denoiser: x_0 = sqrt(abar) (g x + A B^T x) + (1 - abar) m, unclipped.

    Args:
        io: with denoiser.g, A, B and M (one mean, or one a class), perhaps vw and vb.
        alphas_cumprod: of the schedule.
        means: the mean of each image, [b, d]; None for the first of M.
    """

    name = "analytic"
    clip = None

    def __init__(
        self,
        io: dict[str, Tensor],
        shape: Sequence[int],
        *,
        alphas_cumprod: Tensor | None = None,
        learned: bool = False,
        means: Tensor | None = None,
        clip: tuple[float, float] | None = None,
        clip_eps: bool = True,
    ) -> None:
        self.weights = {k.removeprefix("denoiser."): v for k, v in io.items() if "denoiser." in k}
        channels, height, width = shape[-3:]
        self.state_shape, self.learned, self.means = (channels, height, width), learned, means
        self.clip, self.clip_eps = clip, clip_eps
        self.state_dtype = self.weights["g"].dtype
        table = io["alphas_cumprod"] if alphas_cumprod is None else alphas_cumprod
        self.schedule = DiscreteSchedule(table.double().numpy())

    def walk(self, steps: int | str) -> Walk:
        return self.schedule.walk(steps)

    def levels(self) -> tuple[NoiseLevel, ...]:
        return self.schedule.levels()

    def clean(self, x: Tensor, signal: float, mean: float) -> Tensor:
        """signal * (g x + A B^T x) + mean * m."""
        w = {key: value.to(x) for key, value in self.weights.items()}
        flat = x.flatten(1)
        means = w["M"][0] if self.means is None else self.means.to(x)
        return (signal * (w["g"] * flat + flat @ w["B"] @ w["A"].T) + mean * means).view_as(x)

    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition = {}) -> Prediction:  # noqa: B006
        x0 = self.clean(x, level.alpha, level.sigma**2)
        eps = (x - level.alpha * x0) / level.sigma
        if not self.learned:
            return Prediction(eps)
        w = {key: self.weights[key].to(x) for key in ("vw", "vb")}
        return Prediction(eps, torch.tanh(w["vw"] * x.flatten(1) + w["vb"]).view_as(x))

    def to(self, device: torch.device, dtype: torch.dtype) -> Backbone:
        return self


class Likelihood(Guide):
    """A guide whose loss is minus the log likelihood that it is given."""

    name = "likelihood"

    def __init__(self, log_likelihood: Callable[[Tensor, NoiseLevel | None], Tensor]) -> None:
        self.log_likelihood = log_likelihood
        self._level: NoiseLevel | None = None

    def network(self) -> nn.Module:
        return nn.Identity()

    def see(self, x: Tensor, level: NoiseLevel | None = None) -> Tensor:
        self._level = level
        return x

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return -self.log_likelihood(output, self._level)

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        raise NotImplementedError

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).square().flatten(1).sum(dim=1)

    def picture(self, output: Tensor) -> list[Image.Image]:
        return [Image.new("RGB", (4, 4)) for _ in output]

    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        return {}


def classifier(io: dict[str, Tensor], labels: Tensor) -> Likelihood:
    """log softmax(W u + b) at the labels."""
    weight, bias = io["classifier.W"], io["classifier.b"]

    def log_likelihood(u: Tensor, level: NoiseLevel | None) -> Tensor:
        logits = F.linear(u.flatten(1), weight, bias)
        return -F.cross_entropy(logits, labels, reduction="none")

    return Likelihood(log_likelihood)


def measurement(io: dict[str, Tensor], kind: str, prefix: str = "operator.") -> Likelihood:
    """Of obs = P u Q: "residual_norm" -||r||, "quadratic" -||r||^2 / 2, "squares" -||r||^2."""
    left, right, observed = io[f"{prefix}P"], io[f"{prefix}Q"], io["obs"]

    def log_likelihood(u: Tensor, level: NoiseLevel | None) -> Tensor:
        squares = (observed - left @ u @ right).square().sum(dim=(1, 2, 3))
        return {"residual_norm": -squares.sqrt(), "quadratic": -squares / 2, "squares": -squares}[
            kind
        ]

    return Likelihood(log_likelihood)


NOTHING = torch.zeros(1)
"""The target of guides that carry theirs in themselves."""


class Bank:
    """Recorded noise, handed out by what it is for.

    Args:
        noise: all draws in the order in which the reference made them.
        roles: what each was for.
    """

    def __init__(self, noise: Tensor, roles: Sequence[str]) -> None:
        self.noise, self.roles = noise, list(roles)

    def of(self, role: str) -> Iterator[Tensor]:
        """The draws for one purpose in their order; zeros when they run out."""
        for draw, what in zip(self.noise, self.roles, strict=False):
            if what == role:
                yield draw
        while True:
            yield torch.zeros_like(self.noise[0])
