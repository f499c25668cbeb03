"""DSG against its published code: linear measurements, a function of faces, time travel."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import vectors
from analytic import NOTHING, Analytic, measurement
from torch import Tensor

from ppap_host.backbones.backbone import Condition, Prediction
from ppap_host.backbones.noise import CLEAN, NoiseLevel, Walk
from ppap_host.recipes.estimate import Estimate, Step
from ppap_host.recipes.places import Sphere
from ppap_host.recipes.presets import DSG
from ppap_host.recipes.views import PredictedThrough
from ppap_host.sampling.evaluator import Evaluator, Guidance, Health
from ppap_host.sampling.loop import take_step
from ppap_host.sampling.solvers import DDIM, DDPM, Solver

PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
# Of the published function with time travel, in steps of a hundred.
GUIDED = range(30, 70)
# Of the published function for faces, in steps of a thousand.
EVERY = 10
TINY = 1e-20


class Varied(Analytic):
    """Its learned variance is the same for every state."""

    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition = {}) -> Prediction:  # noqa: B006
        v = self.weights.get("v")
        eps = super().predict(x, level).eps
        return Prediction(eps, None if v is None else v.to(x).view(1, *x.shape[1:]).expand_as(x))


@dataclass(frozen=True, eq=False)
class Seen:
    """Leaves the gradient as it is, and keeps it and the loss it is of."""

    kept: defaultdict[str, list[Tensor]]

    def __call__(self, gradient: Tensor, estimate: Estimate) -> Tensor:
        assert estimate.loss is not None
        self.kept["grad"].append(-gradient)
        self.kept["loss"].append(estimate.loss)
        return gradient


class Trial:
    """One setting of a case: its steps, guided and not, with the recorded noise."""

    def __init__(
        self, case: vectors.Case, dtype: torch.dtype, rate: float, least: float, clip: bool = False,
        learned: bool = False,
    ) -> None:  # fmt: skip
        self.io, self.kept = case.io(dtype), defaultdict[str, list[Tensor]](list)
        shape = case.config["image_shape"]
        self.backbone = Varied(self.io, shape, clip=(-1.0, 1.0) if clip else None)
        if learned:
            self.backbone.weights["v"] = self.io["variance.v"]
        recipe = replace(
            DSG, view=PredictedThrough("exact" if clip else "none"), gradient=(Seen(self.kept),),
            limit=math.inf, absolute=True, place=Sphere(rate, own_radius=False, least=least),
        )  # fmt: skip
        self.guidance = [Guidance(measurement(self.io, "residual_norm"), NOTHING, recipe, 1.0)]
        self.noise: Iterator[Tensor] = iter(self.io["noise_bank"])

    def step(
        self, solver: Solver, x: Tensor, step: Step, z: Tensor, guided: bool
    ) -> tuple[Tensor, Estimate]:
        evaluator = Evaluator(
            self.backbone, self.backbone.predict, self.guidance if guided else [],
            ancestral=solver.ancestral, health=Health(),
        )  # fmt: skip
        then, estimate, _ = take_step(solver, x, step, evaluator, lambda: z)
        return then, estimate


def level(abar: float, time: float = 0.0) -> NoiseLevel:
    return NoiseLevel(math.sqrt(abar), math.sqrt(1 - abar), float(time)) if abar < 1 else CLEAN


def compare(case: vectors.Case, s: dict[str, Any], kept: Any, dtype: torch.dtype) -> None:
    for name in (n for n in case.outputs if n.startswith(f"{s['id']}.")):
        rows = kept[name.split(".", 1)[1]]
        ours = rows if isinstance(rows, Tensor) else torch.stack(rows)
        case.compare(name, ours.double(), dtype)


@vectors.take(lambda case: case.holds("obs", "s0.unguided", "s0.sigma"))
@PRECISIONS
def test_vector_dsg_of_linear_measurements(case: vectors.Case, dtype: torch.dtype) -> None:
    table = case.recorded["alphas_cumprod"].double()[case.recorded["timestep_map"]].tolist()
    times = case.recorded["timestep_map"].tolist()
    levels = [level(a, t) for a, t in zip(table, times, strict=True)]
    walk = Walk((*reversed(levels), CLEAN))
    for s in case.settings():
        learned = s["model_var_type"].startswith("learned")
        trial = Trial(case, dtype, s["guidance_scale"], 1e-8, s["clip_denoised"], learned)
        kept, solver = trial.kept, DDPM() if s["sampler"] == "ddpm" else DDIM(float(s["eta"]))
        x = trial.io["x_T"]
        kept["x"].append(x)
        for i in range(len(walk)):
            step, z = Step(walk, i), next(trial.noise)
            plain, _ = trial.step(solver, x, step, z, guided=False)
            guided, estimate = trial.step(solver, x, step, z, guided=True)
            x = plain if (len(walk) - 1 - i) % s["interval"] else guided
            deviation = torch.as_tensor(estimate.deviation, dtype=dtype).expand_as(x)[:, 0, 0, 0]
            mean = plain if estimate.mean is None else estimate.mean
            for name, value in (
                ("x", x), ("x0", estimate.x0), ("mean", mean), ("unguided", plain),
                ("sigma", deviation),
            ):  # fmt: skip
                kept[name].append(value)
        compare(case, s, kept, dtype)


@vectors.take(lambda case: case.holds("obs", "s0.grad", "betas"))
@PRECISIONS
def test_vector_dsg_of_a_function(case: vectors.Case, dtype: torch.dtype) -> None:
    table = case.recorded["alphas_cumprod"].tolist()
    for s in case.settings():
        times = list(range(0, len(table), len(table) // s["timesteps"]))[::-1]
        walk = Walk((*(level(table[t], t) for t in times), CLEAN))
        trial = Trial(case, dtype, case.config["guidance_rate"], TINY)
        x, kept = trial.io["x_T"], trial.kept
        kept["x"].append(x)
        for i, t in enumerate(times):
            step, z = Step(walk, i), next(trial.noise)
            solver = DDIM(float(case.config["eta"]))
            guided, estimate = trial.step(solver, x, step, z, guided=True)
            plain, _ = trial.step(solver, x, step, z, guided=False)
            x = guided if t > s["stop"] and t % EVERY == 0 else plain
            kept["x"].append(x)
            kept["x0"].append(estimate.x0)
        compare(case, s, kept, dtype)


@vectors.take(lambda case: case.holds("obs", "p0.pred_x0", "a_prev"))
@PRECISIONS
def test_vector_dsg_with_time_travel(case: vectors.Case, dtype: torch.dtype) -> None:
    now, before = case.recorded["a"].tolist(), case.recorded["a_prev"].tolist()
    times = case.recorded["timesteps"].tolist()
    for s in case.settings():
        i = s["index"]
        step = Step(Walk((level(now[i], times[i]), level(before[i]))), 0)
        trial = Trial(case, dtype, s["guidance_rate"], TINY)
        x = trial.io["x_in"]
        for _ in range(s["noise_draws"] // 2):
            z, back = next(trial.noise), next(trial.noise)
            then, estimate = trial.step(DDIM(float(s["eta"])), x, step, z, guided=i in GUIDED)
            x = step.back(then, back)
        compare(case, s, {"out": then, "pred_x0": estimate.x0}, dtype)
