"""A world of colours for the benchmarks: Gaussian pixels, and guides that want them all alike."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from PIL.Image import Image
from ppap_plugin_bench.benchmarks.arms import Assignment
from ppap_plugin_bench.evaluation import Measure, mean_measure
from torch import Tensor, nn
from worlds import GaussianBackbone

from ppap_host.files.images import from_tensor, to_pixels, to_unit
from ppap_host.guides.guide import Guide
from ppap_host.guides.operators import LinearOperator
from ppap_host.guides.targets import Given, Target


class Identity(LinearOperator):
    """Measures everything."""

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y

    def pseudo_inverse(self, y: Tensor, ratio: float = 0.0) -> Tensor:
        return y / (1 + ratio)


class ColourGuide(Guide):
    """Wants every pixel to have one colour."""

    default_scale: Mapping[str, float] = {"": 1.0}

    def __init__(self, name: str, linear: bool = False) -> None:
        self.name, self.linear = name, linear
        self._network = nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            self._network.weight.copy_(torch.eye(3)[:, :, None, None])
            self._network.bias.zero_()  # type: ignore[union-attr]

    def network(self) -> nn.Module:
        return self._network

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        return Target(given.words, torch.full((1, 3, *size), float(given.words)))

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return 0.1 * (output - target).square().sum(dim=(1, 2, 3))

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.loss(student, teacher)

    def from_labels(self, labels: Tensor) -> Tensor:
        return labels

    def operator(self, target: Tensor) -> LinearOperator | None:
        return Identity() if self.linear else None

    def picture(self, output: Tensor) -> list[Image]:
        return from_tensor(output)

    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        return {"rmse": (output - target).square().mean(dim=(1, 2, 3)).sqrt().tolist()}


class ColourWorld:
    """Gaussian pixels, judged by their distance to the colour that was asked for."""

    objectives = {  # noqa: RUF012
        "classifier": ("Class", "closeness", True),
        "depth": ("Depth", "depth_error", False),
        "super-resolution": ("Super-resolution", "psnr", True),
    }

    def __init__(self) -> None:
        self.backbone = GaussianBackbone(shape=(3, 8, 8), mean=0.0, spread=0.2)

    def guide(self, name: str) -> Guide:
        torch.manual_seed(0)
        return ColourGuide(name)

    def features(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))

    def real(self, seed: int, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return to_pixels(0.2 * torch.randn(count, 3, 8, 8, generator=generator))

    def labelled(self, guide: str, seed: int, count: int) -> tuple[Tensor, Tensor]:
        pixels = self.real(seed, count)
        return pixels, to_unit(pixels)

    def assignment(
        self, guide: Guide, count: int, seed: int, folder: Path, *, validation: bool
    ) -> Assignment:
        colours = torch.linspace(-0.4, 0.4, 24)[:count]
        rows = [guide.read_target(f"{colour:.4f}", (8, 8)).value for colour in colours]
        targets = torch.cat(rows)
        name = self.objectives[guide.name][1]

        def judge(x: Tensor) -> dict[str, Measure]:
            error = (x - targets).abs().mean(dim=(1, 2, 3))
            return {name: mean_measure(error if name == "depth_error" else 1 - error)}

        told = {"validation": validation}
        return Assignment(targets, seed, judge, told, lambda x: ["word"] * len(x))

    def agreeing(self, guide: Guide, count: int, seed: int) -> Assignment:
        return self.assignment(guide, count, seed, Path(), validation=False)

    def quality(self, images: Tensor) -> dict[str, Measure]:
        return {"brightness": Measure(float(images.mean()))}

    def floors(self, guide: Guide, count: int) -> dict[str, Measure]:
        return {"depth_error": Measure(0.01)} if guide.name == "depth" else {}

    def pictures(self, guide: Guide, count: int) -> list[tuple[str, list[tuple[str, Image]]]]:
        return [("target", [("", p) for p in from_tensor(to_unit(self.real(1, count)))])]
