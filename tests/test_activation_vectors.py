"""Softplus in place of ReLU, against the numbers of EluCD's code on small ResNets."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import vectors
from torch import Tensor, nn
from torch.nn import functional as F

from ppap_host.guides.activations import softened


def smoothed(case: vectors.Case) -> bool:
    return {"layers", "planes", "softplus_beta"} <= case.config.keys()


class Ignored(nn.Module):
    """Overwrites its input and leaves it to the caller to know that."""

    def forward(self, x: Tensor) -> Tensor:
        x.relu_()
        return x


class Functional(nn.Module):
    """No module of the ReLU family: nothing to replace by walking over modules."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


WAYS: dict[str, Callable[[], nn.Module]] = {
    "module": nn.ReLU,
    "module-inplace": lambda: nn.ReLU(inplace=True),
    "function": lambda: Functional(F.relu),
    "function-of-torch": lambda: Functional(torch.relu),
    "method": lambda: Functional(Tensor.relu),
    "method-inplace": Ignored,
}


class Bottleneck(nn.Module):
    """Three convolutions with a shortcut, named as in torchvision."""

    def __init__(self, inner: int, planes: int, stride: int, first: bool, relu: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.relu = relu
        self.downsample: nn.Module = nn.Identity()
        if first:
            shortcut = nn.Conv2d(inner, 4 * planes, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * planes))

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.bn1(self.conv1(x)))
        h = self.relu(self.bn2(self.conv2(h)))
        seen: Tensor = self.relu(self.bn3(self.conv3(h)) + self.downsample(x))
        return seen


class ResNet(nn.Module):
    """The vectors' network, of any size, with ReLU in one of the ways it can be written."""

    def __init__(
        self, layers: list[int], planes: list[int], classes: int, stem: int, way: str
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = WAYS[way]()
        inner, self.stages = stem, len(layers)
        for stage, (depth, width) in enumerate(zip(layers, planes, strict=True)):
            blocks = []
            for k in range(depth):
                stride = 2 if stage and not k else 1
                blocks.append(Bottleneck(inner, width, stride, not k, WAYS[way]()))
                inner = 4 * width
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inner, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool2d(self.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in range(self.stages):
            h = self.get_submodule(f"layer{stage + 1}")(h)
        logits: Tensor = self.fc(h.mean(dim=(2, 3)))
        return logits


def temperatures(meaning: str) -> tuple[float, float]:
    """Of the joint and the marginal, from words such as "d/dx sum(l_y - logsumexp(0.5 l))"."""
    found = re.search(r"sum\(([\d.]*) ?l_y - logsumexp\(([\d.]*) ?l\)\)", meaning)
    assert found, meaning
    joint, marginal = (float(number or 1) for number in found.groups())
    return joint, marginal


def network(io: dict[str, Tensor], config: dict[str, Any], way: str) -> ResNet:
    weights = {k.removeprefix("weights."): v for k, v in io.items() if k.startswith("weights.")}
    stem = len(weights["conv1.weight"])
    layers, planes = list(config["layers"]), list(config["planes"])
    built = ResNet(layers, planes, int(config["num_classes"]), stem, way)
    missing, unexpected = built.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    return built.eval().requires_grad_(False)


@vectors.take(smoothed)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_vector_softplus(case: vectors.Case, dtype: torch.dtype, way: str) -> None:
    io = case.recorded
    resnet = network(io, case.config, way).to(dtype)
    y = io["y"][:, None]
    for setting in case.config["settings"]:
        x = io["x"].to(dtype).requires_grad_()
        with softened(float(setting["softplus_beta"])):
            logits = resnet(x)
        joint, marginal = temperatures(case.says(f"{setting['id']}.grad_joint_marginal"))
        own = logits.gather(1, y)[:, 0]
        scores = {
            "grad_logprob": own - logits.logsumexp(dim=1),
            "grad_joint_marginal": joint * own - (marginal * logits).logsumexp(dim=1),
        }
        case.compare(f"{setting['id']}.logits", logits, dtype)
        for name, score in scores.items():
            (gradient,) = torch.autograd.grad(score.sum(), x, retain_graph=True)
            case.compare(f"{setting['id']}.{name}", gradient, dtype)


@vectors.take(smoothed, vectors.nothing)
def test_vector_without_softplus_is_another(case: vectors.Case) -> None:
    # Else the comparison above could not fail.
    io = case.recorded
    plain = network(io, case.config, "module").double()(io["x"].double())
    for setting in case.config["settings"]:
        wanted = io[f"{setting['id']}.logits"].double()
        same = torch.allclose(plain, wanted, rtol=1e-6, atol=1e-7)
        assert same == math.isinf(float(setting["softplus_beta"]))
