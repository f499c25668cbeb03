"""Classifier guidance against published code: noise-aware (ADM, TFG) and off the shelf (EluCD)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from analytic import NOTHING, Analytic, Case, Likelihood, cases, settings
from torch import Tensor
from torch.nn import functional as F

from ppap_host.backbones.backbone import Prediction
from ppap_host.backbones.noise import CLEAN, DiscreteSchedule, NoiseLevel, NoiseRange, Walk, respace
from ppap_host.guides.guide import Guide
from ppap_host.recipes.estimate import Estimate, Step
from ppap_host.recipes.places import Score
from ppap_host.recipes.presets import ELUCD, ELUCD_EDM, NAIVE
from ppap_host.recipes.recipe import Recipe
from ppap_host.recipes.strengths import LinearSine
from ppap_host.sampling.evaluator import Evaluator, Guidance, Health
from ppap_host.sampling.loop import take_step
from ppap_host.sampling.solvers import DDIM, DDPM, Churn, Heun, Solver

PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@dataclass(frozen=True)
class Kept:
    """Leaves the gradient as it is, and keeps a copy."""

    gradients: list[Tensor]

    def __call__(self, gradient: Tensor, estimate: Estimate) -> Tensor:
        self.gradients.append(gradient.clone())
        return gradient


class Logits(Likelihood):
    """A linear classifier with EluCD's two temperatures."""

    def __init__(
        self, io: dict[str, Tensor], labels: Tensor, joint: float = 1.0, marginal: float = 1.0
    ) -> None:
        self.io, self.labels = io, labels
        self.temperatures = joint, marginal
        super().__init__(self._score)

    def _score(self, u: Tensor, level: NoiseLevel | None) -> Tensor:
        logits = F.linear(u.flatten(1), self.io["classifier.W"], self.io["classifier.b"])
        joint, marginal = self.temperatures
        chosen = logits.gather(1, self.labels[:, None])[:, 0]
        return joint * chosen - torch.logsumexp(marginal * logits, dim=1)

    def tempered(self, joint: float, marginal: float) -> Guide:
        return Logits(self.io, self.labels, joint, marginal)


def bayes(io: dict[str, Tensor], labels: Tensor, table: Tensor) -> Likelihood:
    """The exact classifier of a mixture of Gaussians under noise."""
    means, priors, spread = io["classifier.mu"], io["classifier.b"], io["classifier.s2"]

    def log_likelihood(u: Tensor, level: NoiseLevel | None) -> Tensor:
        assert level is not None
        abar = float(table[int(level.time)])
        x = u.flatten(1) * level.scale
        inner = math.sqrt(abar) * x @ means.T - abar * means.square().sum(dim=1) / 2
        logits = inner / (abar * spread + 1 - abar) + priors
        return -F.cross_entropy(logits, labels, reduction="none")

    return Likelihood(log_likelihood)


def trajectory(
    backbone: Analytic, walk: Walk, solver: Solver, recipe: Recipe, guide: Guide, scale: float,
    start: Tensor, noise: Tensor, watch: Any = None,
) -> list[Tensor]:  # fmt: skip
    """All states of a run by the loop's own steps."""
    evaluator = Evaluator(
        backbone, backbone.predict, [Guidance(guide, NOTHING, recipe, scale)],
        ancestral=solver.ancestral, health=Health(),
    )  # fmt: skip
    states, draws = [start], iter([*noise, torch.zeros_like(start)])
    for i in range(len(walk)):
        step = Step(walk, i, backbone.fixed_variance)
        x, estimate, _ = take_step(solver, states[-1], step, evaluator, draws.__next__)
        if watch is not None:
            watch(estimate)
        states.append(x)
    return states


@pytest.mark.parametrize(
    "case",
    cases(lambda case: "class_var" in case["config"] and "settings" in case["config"]),
)
@PRECISIONS
def test_vector_noise_aware_classifier_guidance(case: Case, dtype: torch.dtype) -> None:
    io, exact = case.io(dtype), case.io(torch.float64)
    schedule = DiscreteSchedule(exact["alphas_cumprod"].numpy())
    shape = tuple(case.config["image_shape"])
    for s in settings(case):
        times = io[f"{s['id']}.timestep_map"].tolist()
        plain = s["sampler"] == "tfg_cg"
        ordered = times if plain else times[::-1]
        walk = Walk((*(schedule.level(t) for t in ordered), CLEAN))
        if not plain:
            assert times == respace(len(schedule), s["timestep_respacing"])
        learned = s.get("variance") == "learned_range"
        backbone = Analytic(
            io, shape, learned=learned, clip=(-1.0, 1.0) if s.get("clip_denoised") else None
        )
        # TFG's code has one class for the whole batch.
        labels = io["y"][:1].expand(shape[0]) if plain else io["y"]
        guide = bayes(io, labels, exact["alphas_cumprod"])
        kept: list[Tensor] = []
        recipe = replace(NAIVE, gradient=(Kept(kept),))
        if plain:
            recipe = replace(recipe, place=Score())
        scale = s["guidance_strength"] if plain else s["classifier_scale"]
        if s["sampler"] == "ddpm":
            variance = "small" if s["variance"] == "fixed_small" else "large"
            backbone.fixed_variance = variance
            solver: Solver = DDPM(variance)
            if variance == "small":
                # As published the last step of the small variance is not guided: V_0 is zero.
                recipe = replace(recipe, interval=above(walk.levels[-2]))
        else:
            solver = DDIM(s["eta"])
        used = io["noise"]
        states = trajectory(backbone, walk, solver, recipe, guide, scale, io["x_T"], used)
        case.close(f"{s['id']}.x", torch.stack(states), dtype)
        factor = 1.0 if plain else scale
        missing = len(walk) - len(kept)
        found = torch.stack(kept) * factor
        wanted = f"{s['id']}.gradient"
        if not missing:
            case.close(wanted, found, dtype)


def above(level: NoiseLevel) -> Any:
    """All levels noisier than this one."""
    return NoiseRange(-math.inf, level.log_snr)


@dataclass
class PublishedVariance:
    """S + gamma sin(pi k / N) S_max, S_max from one pixel of the batch's first image so far."""

    gamma: float
    largest: float = 0.0

    def __call__(self, estimate: Estimate) -> Tensor:
        step = estimate.on_walk()
        variance = step.log_variance(estimate.v, estimate.x).exp()
        self.largest = max(self.largest, float(variance[0, 0, 0, 0]))
        k, count = len(step.walk) - 1 - step.index, len(step.walk)
        return variance + max(math.sin(math.pi * k / count) * self.largest * self.gamma, 0.0)


@pytest.mark.parametrize(
    "case", cases(lambda case: {"use_ddim", "timestep_respacing"} <= case["config"].keys())
)
@PRECISIONS
def test_vector_elucd_ddpm(case: Case, dtype: torch.dtype) -> None:
    io, exact = case.io(dtype), case.io(torch.float64)
    config = case.config
    assert not config["use_ddim"], "the published code has no such path that runs"
    schedule = DiscreteSchedule(exact["alphas_cumprod"].numpy())
    walk = schedule.walk(config["timestep_respacing"])
    assert [level.time for level in walk.levels[:-1]] == io["timestep_map"].flip(0).tolist()
    for s in settings(case):
        backbone = Analytic(
            io, config["image_shape"], learned=s["learn_sigma"], means=io["denoiser.M"][io["y"]],
            clip=(-1.0, 1.0) if s["clip_denoised"] else None,
        )  # fmt: skip
        kept: list[Tensor] = []
        recipe = replace(
            ELUCD, gradient=(Kept(kept),), strength=PublishedVariance(s["gamma_factor"]),
            limit=math.inf, softplus=math.inf, joint=s["joint_temperature"],
            marginal=s["joint_temperature"] * s["margin_temperature_discount"],
        )  # fmt: skip
        x0: list[Tensor] = []

        def watch(estimate: Estimate, x0: list[Tensor] = x0) -> None:
            x0.append(estimate.x0)

        states = trajectory(
            backbone, walk, DDPM("large"), recipe, Logits(io, io["y"]), s["classifier_scale"],
            io["x_T"], io["noise"], watch,
        )  # fmt: skip
        case.close(f"{s['id']}.x", torch.stack(states), dtype)
        found = {"pred_xstart": x0, "gradient": [s["classifier_scale"] * g for g in kept]}
        for name, rows in found.items():
            key = f"{s['id']}.{name}"
            if key in io:
                case.close(key, torch.stack(rows), dtype)


class Preconditioned(Analytic):
    """The vectors' EDM denoiser: w (g x + A B^T x) + (1 - w) m, w = sd^2 / (sd^2 + sigma^2)."""

    def predict(self, x: Tensor, level: NoiseLevel, condition: Any = None) -> Prediction:
        data = float(self.weights["sigma_data"]) ** 2
        weight = data / (data + level.sigma**2)
        x0 = self.clean(x, weight, 1 - weight)
        return Prediction((x - x0) / level.sigma)


def edm_walk(s: dict[str, Any]) -> Walk:
    """Karras et al. (2022), eq. 5."""
    power = 1 / s["rho"]
    ramp = np.linspace(0, 1, s["num_steps"])
    low, high = s["sigma_min"] ** power, s["sigma_max"] ** power
    sigmas = (high + ramp * (low - high)) ** s["rho"]
    return Walk((*(NoiseLevel(1.0, float(sigma), float(sigma)) for sigma in sigmas), CLEAN))


@pytest.mark.parametrize(
    "case", cases(lambda case: {"use_classifier", "sigma_data"} <= case["config"].keys())
)
@PRECISIONS
def test_vector_elucd_edm(case: Case, dtype: torch.dtype) -> None:
    if dtype is torch.float32 and "float32_implementation" not in case.tolerance:
        pytest.skip("the case allows nothing to a state in float32; EDM's is float64")
    io = case.io(dtype)
    assert case.config["use_classifier"]
    for s in settings(case):
        backbone = Preconditioned(
            io, case.config["image_shape"], means=io["denoiser.M"][io["y"]],
            alphas_cumprod=torch.tensor([0.5]),
        )  # fmt: skip
        walk = edm_walk(s)
        recipe = replace(
            ELUCD_EDM, limit=math.inf, softplus=math.inf, joint=s["joint_temperature"],
            marginal=s["uncond_temperature"],
            strength=LinearSine(s["max_guidance"], s["add_factor"]),
        )  # fmt: skip
        churn = Churn(s["S_churn"], s["S_min"], s["S_max"], s["S_noise"])
        solver = Heun(churn, lambda sigma: NoiseLevel(1.0, sigma, sigma))
        start = io["latents"] * walk.levels[0].sigma
        states = trajectory(
            backbone, walk, solver, recipe, Logits(io, io["y"]), 1.0, start, io["noise"]
        )
        case.close(f"{s['id']}.x", torch.stack(states), dtype)
