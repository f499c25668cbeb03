"""Plugins that are sound and unlike the usual: the conformance kit must pass them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from broken_plugins import SoundGuide
from PIL import Image
from torch import Tensor, nn

from ppap_host.backbones.backbone import Backbone
from ppap_host.files.errors import TargetError
from ppap_host.guides.functions import as_guide
from ppap_host.guides.guide import Guide
from ppap_host.guides.rewards import RewardGuide
from ppap_host.guides.targets import Given, Target
from ppap_host.recipes.estimate import Estimate
from ppap_host.recipes.gradients import root_mean_square
from ppap_host.recipes.presets import BEST_OF_N, FK, UNICODE
from ppap_host.recipes.recipe import Recipe
from ppap_host.recipes.selections import FeynmanKac, Selected, Selection, drawn
from ppap_host.recipes.views import Predicted
from ppap_host.testing import GaussianWorld


def seeded(network: nn.Module, size: float = 0.3) -> nn.Module:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return network.eval()


class Counts(Guide):
    """How many things there are, from 0 to 3: logits; a target is a share of each number."""

    name = "counts"

    def __init__(self) -> None:
        self._network = seeded(nn.Sequential(
            nn.Conv2d(3, 8, 5, padding=2), nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(32, 4),
        ))  # fmt: skip

    def network(self) -> nn.Module:
        return self._network

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        try:
            shares = torch.tensor([[float(word) for word in given.words.split()]])
        except ValueError:
            shares = torch.zeros(0)
        if shares.shape != (1, 4):
            raise TargetError(f"{given.words!r} is no share of each.", remedy="Give four numbers.")
        return Target(given.words, shares / shares.sum())

    def as_target(self, output: Tensor) -> Tensor:
        return output.softmax(dim=1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return -(target * output.log_softmax(dim=1)).sum(dim=1)

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student.softmax(dim=1) - teacher.softmax(dim=1)).square().sum(dim=1)

    def picture(self, output: Tensor) -> list[Image.Image]:
        return []

    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        most = target.expand_as(output).argmax(dim=1)
        return {"probability": output.softmax(1).gather(1, most[:, None])[:, 0].tolist()}


class Counted(Counts):
    """The same with one number as a target: a class among a few."""

    name = "counted"

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        if given.words not in ("0", "1", "2", "3"):
            raise TargetError(f"{given.words!r} is no number.", remedy="Give one from 0 to 3.")
        return Target(given.words, torch.tensor([int(given.words)]))

    def as_target(self, output: Tensor) -> Tensor:
        return output.argmax(dim=1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        wanted = target.expand(len(output))
        return nn.functional.cross_entropy(output, wanted, reduction="none")

    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        wanted = target.expand(len(output))
        return {"probability": output.softmax(1).gather(1, wanted[:, None])[:, 0].tolist()}


class AtMost(Counts):
    """A hinge: content once one number is likelier than a half; its target is never an output."""

    name = "at-most"

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        return Counted.understand(self, given, size)  # type: ignore[arg-type]

    def as_target(self, output: Tensor) -> Tensor:
        return output.argmax(dim=1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        wanted = target.expand(len(output))[:, None]
        return (0.9 - output.softmax(dim=1).gather(1, wanted)[:, 0]).clamp_min(-0.5)

    measure = Counted.measure  # type: ignore[assignment]


class Aesthetics(RewardGuide):
    """A score of a small network."""

    name = "aesthetics"

    def __init__(self) -> None:
        self._network = seeded(nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
            nn.Linear(128, 1),
        ))  # fmt: skip

    def network(self) -> nn.Module:
        return self._network

    def prepare(self, x: Tensor) -> Tensor:
        return (x + 1) / 2

    def value(self, output: Tensor) -> Tensor:
        return output[:, 0]


class Redness(RewardGuide):
    """A value without weights."""

    name = "redness"

    def __init__(self) -> None:
        self._network = nn.Identity().eval()

    def network(self) -> nn.Module:
        return self._network

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def value(self, output: Tensor) -> Tensor:
        return output[:, 0].mean(dim=(1, 2)) - output[:, 2].mean(dim=(1, 2))


class Grey(SoundGuide):
    """Looks at one channel."""

    name = "grey"
    channels = 1

    def __init__(self) -> None:
        self._network = seeded(nn.Conv2d(1, 2, 3, padding=1))


class Film(RewardGuide):
    """How much moves in a video."""

    name = "film"
    looks_at = "video"

    def __init__(self) -> None:
        self._network = seeded(nn.Conv3d(3, 4, (2, 3, 3)))

    def network(self) -> nn.Module:
        return self._network

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def value(self, output: Tensor) -> Tensor:
        return output.square().flatten(1).mean(dim=1)


class Near(Guide):
    """What a network says of sound or points, near to what it says of others."""

    name = "near"
    channels = None

    def __init__(self, looks_at: str, network: nn.Module) -> None:
        self.looks_at, self._network = looks_at, seeded(network)

    def network(self) -> nn.Module:
        return self._network

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        try:
            value = float(given.words)
        except ValueError:
            raise TargetError(f"{given.words!r} is no number.", remedy="Give one.") from None
        return Target(given.words, torch.full((1, 1), value))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().flatten(1).sum(dim=1)

    distance = loss

    def picture(self, output: Tensor) -> list[Image.Image]:
        return []

    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        return {"miss": self.loss(output, target).sqrt().tolist()}


class BlackBox(RewardGuide):
    """How even a picture is in eight shades: no gradient at all."""

    name = "black-box"
    differentiable = False
    _network = nn.Identity().eval()

    def network(self) -> nn.Module:
        return self._network

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def value(self, output: Tensor) -> Tensor:
        shades = (4 * output.detach()).round()
        return -(shades[..., 1:] != shades[..., :-1]).to(output).mean(dim=(1, 2, 3))


class Detector(RewardGuide):
    """How sure it is of the surest place, in the middle of a picture of four channels."""

    name = "detector"
    channels = 4

    def __init__(self) -> None:
        self._network = seeded(nn.Conv2d(4, 1, 5, stride=2))

    def network(self) -> nn.Module:
        return self._network

    def prepare(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return x[..., height // 4 : 3 * height // 4, width // 4 : 3 * width // 4]

    def value(self, output: Tensor) -> Tensor:
        return torch.sigmoid(3 * output).flatten(1).amax(dim=1)


class Opacity(Redness):
    """A mean over the pixels of a fourth channel, in large units."""

    name = "opacity"
    channels = 4

    def value(self, output: Tensor) -> Tensor:
        return 1e4 * output[:, 3].mean(dim=(1, 2))


class Halves(Guide):
    """How bright either half is; what is not asked for is NaN in the target."""

    name = "halves"

    def __init__(self) -> None:
        self._network = nn.AdaptiveAvgPool2d((1, 2)).eval()

    network, prepare, picture = Redness.network, Redness.prepare, Counts.picture

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        try:
            wanted = torch.tensor([[float(word) for word in given.words.split()]])
        except ValueError:
            wanted = torch.zeros(0)
        if wanted.shape != (1, 2):
            raise TargetError(f"{given.words!r} is not two numbers.", remedy="Give two.")
        return Target(given.words, wanted)

    def as_target(self, output: Tensor) -> Tensor:
        return output.mean(dim=1).flatten(1)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        gap = (output.mean(dim=1).flatten(1) - target.nan_to_num()).square()
        return torch.where(target.isnan(), 0.0, gap).sum(dim=1)

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        return (student - teacher).square().flatten(1).mean(dim=1)

    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        gap = (output.mean(dim=1).flatten(1) - target).abs()
        return {"left": gap[:, 0].tolist(), "right": gap[:, 1].tolist()}


def sound() -> Guide:
    return Near("audio", nn.Sequential(nn.Conv1d(1, 4, 9), nn.SiLU(), nn.Flatten()))


def points() -> Guide:
    return Near("vectors", nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)))


def reward_of_a_function() -> Guide:
    from ppap_host.guides.functions import Reward

    return as_guide(Reward(brightness), "brightness")


def brightness(x: Tensor) -> Tensor:
    return x.mean(dim=(1, 2, 3))


GUIDES = {
    "soft targets": (Counts, None),
    "soft targets, one named": (Counts, "1 2 5 1"),
    "a chosen class": (Counted, None),
    "a chosen class, named": (Counted, "2"),
    "a hinge": (AtMost, "3"),
    "a reward": (Aesthetics, None),
    "a reward without weights": (Redness, None),
    "a function that rewards": (reward_of_a_function, None),
    "one channel": (Grey, None),
    "a reward of video": (Film, None),
    "sound": (sound, None),
    "vectors": (points, None),
    "a black box": (BlackBox, None),
    "four channels, a crop": (Detector, None),
    "large units": (Opacity, None),
    "half a target": (Halves, "0.3 nan"),
    "two numbers": (Halves, None),
}


def world(*shape: int) -> Backbone:
    return GaussianWorld(shape=shape)


BACKBONES = {
    "grey images": (1, 8, 8), "video": (3, 2, 8, 8), "sound": (1, 64), "vectors": (6,),
    "four channels": (4, 8, 8), "a number": (1,), "arrays": (1, 2, 2, 4, 4),
}  # fmt: skip


class Tempered(Selection):
    """Particles that live on in proportion to their worth, without looking back."""

    size, needs = 3, "noise"

    def __call__(
        self, rewards: Tensor, before: Any, i: int, steps: int, uniforms: Tensor, **told: Tensor
    ) -> Selected:
        weights = torch.softmax(rewards.nan_to_num(-1e9, 1e9, -1e9), dim=1)
        return Selected(drawn(weights, uniforms))


class Rescaled:
    """Classifier-free guidance brought back to the conditional branch's size (Lin et al., 2024)."""

    def __call__(self, estimate: Estimate) -> Tensor:
        assert estimate.conditional is not None
        size = root_mean_square(estimate.conditional) / root_mean_square(estimate.eps)
        return estimate.eps * size


RECIPES: dict[str, Recipe] = {
    "a population": FK,
    "the best of several": BEST_OF_N,
    "a population of one's own": Recipe("own", view=Predicted(), selection=Tempered()),
    "a blend of branches": Recipe("rescaled", blend=Rescaled()),
    "twisted particles": replace(UNICODE, selection=FeynmanKac(
        3, "diff", corrected=True, final_draw=True
    )),
}  # fmt: skip
