"""PPAP's sampler, low-rank factors and routing against the published code."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import vectors
from analytic import Analytic
from torch import Tensor, nn
from torch.func import functional_call
from worlds import GaussianBackbone, QuadraticGuide

from ppap_host.backbones.backbone import Prediction
from ppap_host.backbones.noise import (
    DiscreteSchedule,
    NoiseLevel,
    Walk,
    linear_betas,
    uniform_ranges,
)
from ppap_host.experts.patches import Patch
from ppap_host.experts.sets import ExpertSet, WithExperts
from ppap_host.guides.guide import Guide
from ppap_host.recipes.estimate import Estimate
from ppap_host.recipes.presets import NAIVE
from ppap_host.recipes.recipe import Recipe
from ppap_host.sampling.evaluator import Evaluator, Guidance, Health
from ppap_host.sampling.loop import sample
from ppap_host.sampling.reading import Denoiser
from ppap_host.sampling.solvers import DDPM


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
    backbone = Analytic(io, config["image_shape"], learned=config.get("learn_sigma", False))
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
    recipe: Recipe = replace(NAIVE, gradient=(Kept(gradients), NormMatched(walk)), absolute=True)
    guidance = Guidance(guide, io["target"].to(dtype), recipe, config["guidance_scale"])
    return Setting(backbone, denoise, walk, guide, guidance, gradients, iter(io["noise"].to(dtype)))


@vectors.take(
    lambda case: {"n_experts", "timestep_respacing", "guidance_scale"} <= case.config.keys()
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_vector_guided_trajectory(case: vectors.Case, dtype: torch.dtype) -> None:
    """In float32 through the loop as users run it, in float64 through the same solver by hand."""
    io = case.recorded
    s = setting(case.config, case.io(torch.float64), dtype)
    assert [level.time for level in s.walk.levels[:-1]] == io["timestep_map"].flip(0).tolist()
    solver = DDPM(s.backbone.fixed_variance)
    states = [io["x_T"].to(dtype)]
    served = [s.guide.experts.serving(level) for level in s.walk.levels[:-1]]
    if dtype is torch.float32:
        s.backbone.state_dtype = torch.float32
        sample(
            s.backbone, s.denoise, s.walk, solver, s.draws.__next__, [s.guidance], start=states[0],
            watch=lambda event: states.append(event.x_next),
        )  # fmt: skip
    else:
        evaluator = Evaluator(
            s.backbone, s.denoise, [s.guidance], ancestral=solver.ancestral, health=Health()
        )
        for i in range(len(s.walk)):
            x, *_ = solver.step(states[-1], i, s.walk, evaluator, s.draws.__next__, None)
            states.append(x)
    case.compare("expert", torch.tensor(served))
    case.compare("x", torch.stack(states), dtype)
    case.compare("gradient_raw", torch.stack(s.gradients), dtype)


@vectors.take(lambda case: "lora_alpha" in case.config)
def test_vector_low_rank_merging(case: vectors.Case) -> None:
    io, config = case.io(torch.float64), case.config
    scaling = config["lora_alpha"] / config["r (gamma)"]

    def merged(name: str, layer: nn.Module, scaling: float) -> tuple[Tensor, Tensor]:
        """The weight, and the output with it."""
        layer = layer.double().requires_grad_(False)
        layer.load_state_dict({k: io[f"{name}.{k}"] for k in layer.state_dict()})
        factors = (io[f"{name}.A"], io[f"{name}.B"])
        laid = Patch({"weight": factors}, {}, scaling).merged(layer)
        return laid["weight"], functional_call(layer, laid, (io[f"{name}.x"],))

    for c in config["convs"]:
        layer = nn.Conv2d(
            c["cin"], c["cout"], c["k"], stride=c["stride"], padding=c["pad"], bias=c["bias"]
        )
        weight, out = merged(f"conv.{c['id']}", layer, scaling)
        case.compare(f"conv.{c['id']}.weight_merged", weight, torch.float64)
        case.compare(f"conv.{c['id']}.out", out, torch.float64)
    layer = nn.Linear(config["linear"]["in"], config["linear"]["out"])
    weight, out = merged("lin", layer, scaling)
    case.compare("lin.weight_merged", weight, torch.float64)
    case.compare("lin.out_merged", out, torch.float64)
    # The published code forgets the scaling where it has not merged.
    unscaled = merged("lin", layer, 1.0)[1]
    case.compare("lin.out_unmerged_reference", unscaled, torch.float64)


@vectors.take(lambda case: {"num_timesteps", "n_experts"} == case.config.keys())
def test_vector_routing(case: vectors.Case) -> None:
    io, total = case.recorded, case.config["num_timesteps"]
    schedule = DiscreteSchedule.from_betas(linear_betas(total))
    for n in case.config["n_experts"]:
        experts = ExpertSet(uniform_ranges(schedule.levels(), n), [Patch({}, {})] * n)
        served = torch.tensor([experts.serving(schedule.level(t)) for t in io["t"].tolist()])
        case.compare(f"n{n}.index_trained", served)
        first = [int((served == i).nonzero()[0]) for i in range(n)]
        case.compare(f"n{n}.boundaries", torch.tensor([*first, total]))
        # The published router is off by one where a range begins, and nowhere else.
        differs = io["t"][served != io[f"n{n}.index_reference"]]
        case.compare(f"n{n}.mismatch_t", differs)
        case.met(f"n{n}.index_reference")


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
