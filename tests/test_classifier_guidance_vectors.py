"""Classifier guidance against published code: noise-aware (ADM, TFG) and off the shelf (EluCD)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
import vectors
from analytic import NOTHING, Analytic, Likelihood
from torch import Tensor
from torch.nn import functional as F

from ppap_host.backbones.backbone import Prediction
from ppap_host.backbones.noise import CLEAN, DiscreteSchedule, NoiseLevel, NoiseRange, Walk, respace
from ppap_host.guides.guide import Guide
from ppap_host.recipes.estimate import Estimate, Step
from ppap_host.recipes.gradients import root_mean_square
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
    recipe = replace(recipe, absolute=True)
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


@vectors.take(lambda case: {"class_var", "settings"} <= case.config.keys())
@PRECISIONS
def test_vector_noise_aware_classifier_guidance(case: vectors.Case, dtype: torch.dtype) -> None:
    io, exact = case.io(dtype), case.io(torch.float64)
    schedule = DiscreteSchedule(exact["alphas_cumprod"].numpy())
    shape = tuple(case.config["image_shape"])
    for s in case.settings():
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
        estimates: list[Estimate] = []
        states = trajectory(
            backbone, walk, solver, recipe, guide, scale, io["x_T"], io["noise"], estimates.append
        )
        if len(kept) < len(walk):  # what is not asked there has its gradient all the same
            x = states[-2].clone().requires_grad_(True)
            asked = guide.loss(guide.see(x / walk.levels[-2].scale, walk.levels[-2]), NOTHING)
            kept.extend(torch.autograd.grad(-asked.sum(), x))
        found = {
            "x": states,
            "gradient": [(1.0 if plain else scale) * g for g in kept],
            "pred_xstart": [estimate.x0 for estimate in estimates],
        }
        for name, rows in found.items():
            if f"{s['id']}.{name}" in case.outputs:
                case.compare(f"{s['id']}.{name}", torch.stack(rows), dtype)


def above(level: NoiseLevel) -> Any:
    """All levels noisier than this one."""
    return NoiseRange(-math.inf, level.log_snr)


@dataclass
class PublishedVariance:
    """S + gamma sin(pi k / N) S_max, S_max from one pixel of the batch's first image so far."""

    gamma: float
    maxima: list[float] = field(default_factory=lambda: [0.0])
    added: list[float] = field(default_factory=list)

    def __call__(self, estimate: Estimate) -> Tensor:
        step = estimate.on_walk()
        variance = step.log_variance(estimate.v, estimate.x).exp()
        self.maxima.append(max(self.maxima[-1], float(variance[0, 0, 0, 0])))
        k, count = len(step.walk) - 1 - step.index, len(step.walk)
        self.added.append(max(math.sin(math.pi * k / count) * self.maxima[-1] * self.gamma, 0.0))
        return variance + self.added[-1]


@vectors.take(lambda case: {"use_ddim", "timestep_respacing"} <= case.config.keys())
@PRECISIONS
def test_vector_elucd_ddpm(case: vectors.Case, dtype: torch.dtype) -> None:
    io, exact = case.io(dtype), case.io(torch.float64)
    config = case.config
    assert not config["use_ddim"], "the published code has no such path that runs"
    schedule = DiscreteSchedule(exact["alphas_cumprod"].numpy())
    walk = schedule.walk(config["timestep_respacing"])
    assert [level.time for level in walk.levels[:-1]] == io["timestep_map"].flip(0).tolist()
    for s in case.settings():
        backbone = Analytic(
            io, config["image_shape"], learned=s["learn_sigma"], means=io["denoiser.M"][io["y"]],
            clip=(-1.0, 1.0) if s["clip_denoised"] else None,
        )  # fmt: skip
        kept: list[Tensor] = []
        strength = PublishedVariance(s["gamma_factor"])
        recipe = replace(
            ELUCD, gradient=(Kept(kept),), strength=strength,
            limit=math.inf, softplus=math.inf, joint=s["joint_temperature"],
            marginal=s["joint_temperature"] * s["margin_temperature_discount"],
        )  # fmt: skip
        estimates: list[Estimate] = []
        states = trajectory(
            backbone, walk, DDPM("large"), recipe, Logits(io, io["y"]), s["classifier_scale"],
            io["x_T"], io["noise"], estimates.append,
        )  # fmt: skip
        posteriors = [walk.posterior(i) for i in range(len(walk))]
        logs = [e.on_walk().log_variance(e.v, e.x) for e in estimates]
        found = {
            "x": states,
            "pred_xstart": [e.x0 for e in estimates],
            "gradient": [s["classifier_scale"] * g for g in kept],
            "mean": [
                p.of_x0 * e.x0 + p.of_xt * e.x for p, e in zip(posteriors, estimates, strict=True)
            ],
            "log_variance": logs,
            "variance": [log.exp() for log in logs],
            "max_variance": [torch.tensor(v, dtype=torch.float64) for v in strength.maxima[1:]],
            "add_value": [torch.tensor(v, dtype=torch.float64) for v in strength.added],
        }
        for name in (n for n in case.outputs if n.startswith(f"{s['id']}.")):
            case.compare(name, torch.stack(found[name.split(".")[1]]), dtype)


class Preconditioned(Analytic):
    """The vectors' EDM denoiser: w (g x + A B^T x) + (1 - w) m, w = sd^2 / (sd^2 + sigma^2)."""

    def __init__(self, *args: Any, seen: list[Any], **options: Any) -> None:
        super().__init__(*args, **options)
        self.seen = seen

    def predict(self, x: Tensor, level: NoiseLevel, condition: Any = None) -> Prediction:
        data = float(self.weights["sigma_data"]) ** 2
        weight = data / (data + level.sigma**2)
        x0 = self.clean(x, weight, 1 - weight)
        self.seen.append((level, x.detach(), x0.detach()))
        return Prediction((x - x0) / level.sigma)


def edm_walk(s: dict[str, Any]) -> Walk:
    """Karras et al. (2022), eq. 5."""
    power = 1 / s["rho"]
    ramp = np.linspace(0, 1, s["num_steps"])
    low, high = s["sigma_min"] ** power, s["sigma_max"] ** power
    sigmas = (high + ramp * (low - high)) ** s["rho"]
    return Walk((*(NoiseLevel(1.0, float(sigma), float(sigma)) for sigma in sigmas), CLEAN))


@dataclass(frozen=True)
class KeptStrength:
    """A strength that keeps what it was."""

    inner: LinearSine
    values: list[float]

    def __call__(self, estimate: Estimate) -> float:
        self.values.append(self.inner(estimate))
        return self.values[-1]


@vectors.take(lambda case: {"use_classifier", "sigma_data"} <= case.config.keys())
def test_vector_elucd_edm(case: vectors.Case) -> None:
    """In float64, in which EDM keeps its states; the case allows float32 nothing else."""
    dtype = torch.float64
    io = case.io(dtype)
    assert case.config["use_classifier"]
    for s in case.settings():
        seen: list[tuple[NoiseLevel, Tensor, Tensor]] = []
        backbone = Preconditioned(
            io, case.config["image_shape"], means=io["denoiser.M"][io["y"]],
            alphas_cumprod=torch.tensor([0.5]), seen=seen,
        )  # fmt: skip
        walk, strengths = edm_walk(s), list[float]()
        recipe = replace(
            ELUCD_EDM, limit=math.inf, softplus=math.inf, joint=s["joint_temperature"],
            marginal=s["uncond_temperature"],
            strength=KeptStrength(LinearSine(s["max_guidance"], s["add_factor"]), strengths),
        )  # fmt: skip
        churn = Churn(s["S_churn"], s["S_min"], s["S_max"], s["S_noise"])
        solver = Heun(churn, lambda sigma: NoiseLevel(1.0, sigma, sigma))
        start = io["latents"] * walk.levels[0].sigma
        guide = Logits(io, io["y"])
        states = trajectory(backbone, walk, solver, recipe, guide, 1.0, start, io["noise"])
        first = [row for i, row in enumerate(seen) if i % 2 == 0]
        sigmas = [level.sigma for level in walk.levels]
        hats = [level.sigma for level, *_ in first]
        shown = [ELUCD_EDM.view.variable(unread(x, walk)) for x in states[:-1]]
        weight, bias = io["classifier.W"], io["classifier.b"]
        noise = [
            math.sqrt(max(hat**2 - sigma**2, 0)) * s["S_noise"] * z
            for hat, sigma, z in zip(hats, sigmas, io["noise"], strict=False)
        ]
        found = {
            "x": states,
            "x_hat": [x for _, x, _ in first],
            "denoised": [x0 for *_, x0 in first],
            # What is left of x_hat without the churn's noise.
            "displacement": [
                x - before - z for (_, x, _), before, z in zip(first, states, noise, strict=False)
            ],
            "lambda": [torch.tensor(v, dtype=dtype) for v in strengths],
            "t_hat": [torch.tensor(v, dtype=dtype) for v in hats],
            "rms": [root_mean_square(x).flatten() for x in states[:-1]],
            "logits": [F.linear(u.flatten(1), weight, bias) for u in shown],
        }
        for name in (n for n in case.outputs if n.startswith(f"{s['id']}.")):
            case.compare(name, torch.stack(found[name.split(".")[1]]), dtype)


def unread(x: Tensor, walk: Walk) -> Estimate:
    return Estimate(walk.levels[0], x, x, x)
