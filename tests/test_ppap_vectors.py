"""PPAP's guided pixel-space sampler, whole trajectories, against the published code."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from worlds import GaussianBackbone, QuadraticGuide

from ppap_host.backbones.backbone import Backbone, Prediction
from ppap_host.backbones.noise import DiscreteSchedule, NoiseLevel, Walk, uniform_ranges
from ppap_host.experts.patches import Patch
from ppap_host.experts.sets import ExpertSet, WithExperts
from ppap_host.guides.guide import Guide
from ppap_host.recipes.estimate import Estimate
from ppap_host.recipes.presets import NAIVE
from ppap_host.recipes.recipe import Recipe
from ppap_host.sampling.evaluator import Denoiser, Evaluator, Guidance, Health
from ppap_host.sampling.loop import Event, sample
from ppap_host.sampling.solvers import DDPM

VECTORS = Path(os.environ.get("PPAP_VECTORS", Path(__file__).parents[2] / "shared" / "vectors"))


def cases() -> list[Any]:
    """Case folders of trajectories guided by several experts."""
    found = []
    for path in sorted(VECTORS.glob("guidance/*/case.json")):
        case = json.loads(path.read_text())
        if {"n_experts", "timestep_respacing", "guidance_scale"} <= case.get("config", {}).keys():
            found.append(pytest.param(path.parent, id=path.parent.name))
    reason = f"no such vectors in {VECTORS}; set PPAP_VECTORS"
    return found or [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="absent")]


class Analytic(Backbone):
    """The vectors' denoiser: x_0 = sqrt(abar) (g x + A B^T x) + (1 - abar) m, unclipped."""

    name = "analytic"
    clip = None

    def __init__(self, io: dict[str, Tensor], shape: tuple[int, int, int], learned: bool) -> None:
        self.weights = {k.removeprefix("denoiser."): v for k, v in io.items() if "denoiser." in k}
        self.state_shape, self.learned = shape, learned
        self.schedule = DiscreteSchedule(io["alphas_cumprod"].numpy())

    def walk(self, steps: int | str) -> Walk:
        return self.schedule.walk(steps)

    def levels(self) -> tuple[NoiseLevel, ...]:
        return self.schedule.levels()

    def predict(self, x: Tensor, level: NoiseLevel, condition: Any = None) -> Prediction:
        w = {key: value.to(x) for key, value in self.weights.items()}
        flat = x.flatten(1)
        mixed = w["g"] * flat + flat @ w["B"] @ w["A"].T
        x0 = level.alpha * mixed + level.sigma**2 * w["M"][0]
        eps = ((flat - level.alpha * x0) / level.sigma).view_as(x)
        v = torch.tanh(w["vw"] * flat + w["vb"]).view_as(x) if self.learned else None
        return Prediction(eps, v)

    def to(self, device: torch.device, dtype: torch.dtype) -> Backbone:
        return self


@dataclass(frozen=True)
class DynamicThreshold:
    """Saharia et al. (2022, section 2.3): x_0 clipped to its own quantile and divided by it.

    The quantile of |x_0| over an image is kept in [1, ``largest``].
    """

    denoise: Denoiser
    quantile: float
    largest: float

    def __call__(self, x: Tensor, level: NoiseLevel) -> Prediction:
        prediction = self.denoise(x, level)
        x0 = (x - level.sigma * prediction.eps) / level.alpha
        bound = x0.abs().flatten(1).quantile(self.quantile, dim=1).clamp(1, self.largest)
        bound = bound.view(-1, 1, 1, 1)
        x0 = x0.clamp(-bound, bound) / bound
        return replace(prediction, eps=(x - level.alpha * x0) / level.sigma)


@dataclass(frozen=True)
class NormMatched:
    """The gradient at the norm of the posterior mean before guidance.

    As published: the norm of the gradient is that of the whole batch, the mean's that of the first
    image, so that an image's result depends on the others.
    """

    walk: Walk

    def __call__(self, gradient: Tensor, estimate: Estimate) -> Tensor:
        posterior = self.walk.posterior(self.walk.levels.index(estimate.level))
        mean = posterior.of_x0 * estimate.x0 + posterior.of_xt * estimate.x
        return gradient / gradient.norm() * mean[0].norm()


class LinearGuide(QuadraticGuide):
    """|| D - E x ||^2 with a matrix E of the expert; keeps the gradients' inputs."""

    name = "linear"

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.layer = network.eval().requires_grad_(False)

    def network(self) -> nn.Module:
        return self.layer

    def prepare(self, x: Tensor) -> Tensor:
        return x.flatten(1)

    def see(self, x: Tensor, level: NoiseLevel | None = None) -> Tensor:
        return Guide.see(self, x, level)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (target.to(output) - output).square().sum(dim=1)


@dataclass(frozen=True)
class Kept:
    """Leaves the gradient as it is, and keeps a copy."""

    gradients: list[Tensor]

    def __call__(self, gradient: Tensor, estimate: Estimate) -> Tensor:
        self.gradients.append(gradient.clone())
        return gradient


@dataclass
class Setting:
    """One case, ready to run in a precision."""

    backbone: Analytic
    denoise: Denoiser
    walk: Walk
    guide: WithExperts
    guidance: Guidance
    gradients: list[Tensor]
    draws: Iterator[Tensor]


def setting(config: dict[str, Any], io: dict[str, Tensor], dtype: torch.dtype) -> Setting:
    backbone = Analytic(io, tuple(config["image_shape"][1:]), config.get("learn_sigma", False))
    walk = backbone.walk(config["timestep_respacing"])
    denoise: Denoiser = backbone.predict
    if "dynamic_thresholding_p" in config:
        p, c = (config[f"dynamic_thresholding_{key}"] for key in "pc")
        denoise = DynamicThreshold(denoise, p, c)
    matrices = io["experts"].to(dtype)
    count, out, inner = matrices.shape
    assert count == config["n_experts"]
    experts = ExpertSet(
        uniform_ranges(backbone.levels(), count), [Patch({}, {"weight": m}) for m in matrices]
    )
    guide = WithExperts(LinearGuide(nn.Linear(inner, out, bias=False, dtype=dtype)), experts)
    gradients: list[Tensor] = []
    recipe: Recipe = replace(NAIVE, gradient=(Kept(gradients), NormMatched(walk)))
    guidance = Guidance(guide, io["target"].to(dtype), recipe, config["guidance_scale"])
    return Setting(backbone, denoise, walk, guide, guidance, gradients, iter(io["noise"].to(dtype)))


@pytest.mark.parametrize("folder", cases())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_vector_guided_trajectory(folder: Path, dtype: torch.dtype, record_property: Any) -> None:
    """In float32 through the loop as users run it, in float64 through the same solver by hand."""
    case, io = json.loads((folder / "case.json").read_text()), load_file(folder / "io.safetensors")
    s = setting(case["config"], io, dtype)
    assert [level.time for level in s.walk.levels[:-1]] == io["timestep_map"].flip(0).tolist()
    solver = DDPM(s.backbone.fixed_variance)
    states = [io["x_T"].to(dtype)]
    served = [s.guide.experts.serving(level) for level in s.walk.levels[:-1]]
    if dtype is torch.float32:

        def watch(report: Event) -> None:
            states.append(report.x_next)

        draw = s.draws.__next__
        sample(s.backbone, s.denoise, s.walk, solver, draw, [s.guidance], start=states[0], watch=watch)  # fmt: skip  # noqa: E501
        exact, stored = (case["tolerance"]["float32_implementation"],) * 2
    else:
        evaluator = Evaluator(
            s.backbone, s.denoise, [s.guidance], ancestral=solver.ancestral, health=Health()
        )

        for i in range(len(s.walk)):
            x, *_ = solver.step(states[-1], i, s.walk, evaluator, s.draws.__next__, None)
            states.append(x)
        exact, stored = (case["tolerance"][k] for k in ("float64", "float32_stored_outputs"))
    assert served == io["expert"].tolist()
    found, wanted = torch.stack(states).double(), io["x"].double()
    record_property("largest_error", float((found - wanted).abs().max()))
    torch.testing.assert_close(found, wanted, **exact)
    raw = torch.stack(s.gradients).double()
    torch.testing.assert_close(raw, io["gradient_raw"].double(), **stored)


def test_dynamic_thresholding_bounds_every_image_by_itself() -> None:
    world = GaussianBackbone(spread=3.0)
    level = world.levels()[400]
    x = torch.randn(2, *world.state_shape) * torch.tensor([1.0, 20.0]).view(2, 1, 1, 1)

    def denoise(x: Tensor, level: NoiseLevel) -> Prediction:
        return world.predict(x, level, {})

    bounded = DynamicThreshold(denoise, 0.9, math.inf)(x, level)
    x0 = (x - level.sigma * bounded.eps) / level.alpha
    torch.testing.assert_close(x0.abs().amax(dim=(1, 2, 3)), torch.ones(2))
    alone = DynamicThreshold(denoise, 0.9, math.inf)(x[1:], level)
    torch.testing.assert_close(alone.eps[0], bounded.eps[1])
