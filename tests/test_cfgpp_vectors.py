"""CFG++ against its published code: DDIM and its inversion, Euler, DPM-Solver++, 2S ancestral."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import vectors
from analytic import Analytic
from torch import Tensor

from ppap_host.backbones.backbone import ClassifierFree, Condition, Prediction
from ppap_host.backbones.noise import CLEAN, NoiseLevel, Walk
from ppap_host.recipes.estimate import Estimate, Step
from ppap_host.recipes.presets import CFG_PP
from ppap_host.sampling.evaluator import Evaluator, Health
from ppap_host.sampling.loop import take_step
from ppap_host.sampling.solvers import DDIM, DPMSolverPP2M, Evaluate, Solver
from ppap_host.sampling.streams import Draw

PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


class Branches(Analytic):
    """Two denoisers, asked at the level's time and its own table, wherever the state is scaled."""

    def __init__(self, io: dict[str, Tensor], shape: Any, table: Tensor) -> None:
        super().__init__(io, shape, alphas_cumprod=table)
        other = {k.replace("_cond.", "."): v for k, v in io.items() if "_cond." in k}
        self.conditional = Analytic(other, shape, alphas_cumprod=table)
        self.table = table.tolist()
        self.kept = defaultdict[str, list[Any]](list)

    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:  # type: ignore[override]
        abar, y = self.table[int(level.time)], x / level.scale
        at = NoiseLevel(math.sqrt(abar), math.sqrt(1 - abar), level.time)
        eps = [super().predict(y, at).eps, self.conditional.predict(y, at).eps]
        which = condition["conditional"].view(-1, 1, 1, 1).to(x)
        found = torch.lerp(*eps, which)
        conditional, unconditional = found.chunk(2)
        self.kept["t"].append(torch.tensor(int(level.time)))
        self.kept["eps_uc"].append(unconditional)
        self.kept["eps_c"].append(conditional)
        return Prediction(found)


class Mixed2M(DPMSolverPP2M):
    """As in the published file for SD 1.5: its correction sets the guided x_0 against U before."""

    def step(
        self, x: Tensor, i: int, walk: Walk, evaluate: Evaluate, draw: Draw, memory: Any
    ) -> tuple[Tensor, Estimate, Any]:
        then, estimate, after = super().step(x, i, walk, evaluate, draw, memory)
        if memory is not None and walk.levels[i + 1].sigma and estimate.offset is not None:
            h = walk.levels[i + 1].log_snr / 2 - after[0]
            r = (after[0] - memory[0]) / h
            then = then - walk.levels[i + 1].alpha * math.expm1(-h) * estimate.offset / (2 * r)
        return then, estimate, after


class TwoSAncestral(Solver):
    """DPM-Solver++(2S) with noise, of states that are not scaled: a sampler of one's own."""

    name = "dpm++2s-a"

    def __init__(self, level_at: Callable[[float], NoiseLevel]) -> None:
        self.level_at = level_at

    def step(
        self, x: Tensor, i: int, walk: Walk, evaluate: Evaluate, draw: Draw, memory: Any
    ) -> tuple[Tensor, Estimate, Any]:
        sigma, then = walk.levels[i].sigma, walk.levels[i + 1].sigma
        estimate = evaluate(x, walk.levels[i])
        up = math.sqrt(then**2 * (sigma**2 - then**2) / sigma**2)
        down = math.sqrt(then**2 - up**2)
        if not down:
            return estimate.x0, estimate, None
        h, middle = math.log(sigma / down), math.sqrt(sigma * down)
        x2 = (middle / sigma) * x - math.expm1(-h / 2) * estimate.x0
        clean = evaluate(x2, self.level_at(middle)).x0
        x = (down / sigma) * x - math.expm1(-h) * clean
        return (x + up * draw().to(x) if then else x), estimate, None


def compare(case: vectors.Case, s: dict[str, Any], kept: Any, dtype: torch.dtype) -> None:
    for name in (n for n in case.outputs if n.startswith(f"{s['id']}.")):
        rows = kept[name.split(".", 1)[1]]
        case.compare(name, rows if isinstance(rows, Tensor) else torch.stack(rows), dtype)


class Trial:
    """One setting: both denoisers, and the steps that it takes of them."""

    def __init__(self, case: vectors.Case, s: dict[str, Any], dtype: torch.dtype) -> None:
        io, table = case.io(dtype), case.recorded["alphas_cumprod"].double()
        self.backbone, self.x = Branches(io, case.config["image_shape"], table), io["x_T"]
        self.kept, self.plus = self.backbone.kept, "++" in s["solver"] or "cfgpp" in s["solver"]
        flags = ({"conditional": torch.tensor([1.0])}, {"conditional": torch.tensor([0.0])})
        self.denoise = ClassifierFree(self.backbone, *flags, s["cfg_guidance"], both=True)
        self.noise, self.memory = iter(io.get("noise_bank", ())), None

    def inverted(self, x: Tensor, level: NoiseLevel) -> Prediction:
        """The branches with their roles swapped, as on the way back to noise."""
        told = self.denoise(x, level)
        assert told.unconditional is not None
        if not self.plus:
            return told
        return Prediction(told.unconditional, unconditional=told.eps)

    def step(self, solver: Solver, step: Step, denoise: Any = None) -> None:
        evaluator = Evaluator(
            self.backbone, denoise or self.denoise, [], ancestral=solver.ancestral,
            health=Health(), process=CFG_PP if self.plus else None,
        )  # fmt: skip
        nothing = torch.zeros_like(self.x)
        self.x, estimate, self.memory = take_step(
            solver, self.x, step, evaluator, lambda: next(self.noise, nothing), self.memory
        )
        self.kept["x"].append(self.x)
        self.kept["x0"].append(estimate.x0)


@vectors.take(lambda case: case.config.get("timestep_spacing") is not None
              and case.config.get("set_alpha_to_one") is False
              and case.holds("denoiser_cond.g") and "rho" not in case.config)  # fmt: skip
@PRECISIONS
def test_vector_cfgpp_of_ddim_and_its_inversion(case: vectors.Case, dtype: torch.dtype) -> None:
    table = case.recorded["alphas_cumprod"].tolist()

    def level(t: int, time: int) -> NoiseLevel:
        """The sampler's own table is shifted by one against the network's."""
        abar = 1.0 if t == 0 else table[max(t - 1, 0)]
        return NoiseLevel(math.sqrt(abar), math.sqrt(1 - abar), float(time))

    for s in case.settings():
        trial = Trial(case, s, dtype)
        skip = case.config["train_steps"] // s["steps"]
        times = [skip * k + 1 for k in reversed(range(s["steps"]))]
        if s["mode"] == "sample":
            walk = Walk(tuple(level(t, t) for t in (*times, times[-1] - skip)))
            for i in range(len(walk)):
                trial.step(DDIM(), Step(walk, i))
            trial.kept["final"] = trial.kept["x0"][-1]
        else:
            for t in reversed(times):
                step = Step(Walk((level(t - skip, t), level(t, t))), 0)
                trial.step(DDIM(), step, trial.inverted)
            trial.kept["final"] = trial.x
        compare(case, s, trial.kept, dtype)


@vectors.take(lambda case: case.holds("denoiser_cond.g") and "rho" in case.config)
@PRECISIONS
def test_vector_cfgpp_of_solvers_in_sigma(case: vectors.Case, dtype: torch.dtype) -> None:
    table = case.recorded["alphas_cumprod"].double()
    known = ((1 - table) / table).sqrt()

    def level(sigma: float) -> NoiseLevel:
        """Asked at the nearest time that was trained."""
        if not sigma:
            return CLEAN
        return NoiseLevel(1.0, sigma, float((math.log(sigma) - known.log()).abs().argmin()))

    power, mixed = case.config["rho"], case.config["multistep_difference"].startswith("D")
    low, high = float(known.min()) ** (1 / power), float(known.max()) ** (1 / power)
    for s in case.settings():
        trial, n = Trial(case, s, dtype), s["steps"]
        sigmas = [*((high + k / n * (low - high)) ** power for k in range(n)), 0.0]
        walk = Walk(tuple(level(sigma) for sigma in sigmas))
        multistep = Mixed2M() if mixed else DPMSolverPP2M()
        solvers: dict[str, Solver] = {
            "euler": DDIM(), "euler_a": DDIM(1.0), "dpm++_2m": multistep,
            "dpm++_2s_a": TwoSAncestral(level),
        }  # fmt: skip
        trial.x = trial.x * math.hypot(1.0, sigmas[0])
        for i in range(len(walk)):
            trial.step(solvers[s["solver"].replace("_cfg++", "")], Step(walk, i))
        trial.kept["sigmas"] = torch.tensor(sigmas, dtype=torch.float64)
        trial.kept["final"] = trial.x
        compare(case, s, trial.kept, dtype)


@vectors.take(
    lambda case: (
        case.holds("denoiser_cond.g")
        and case.config.get("multistep_difference", "").startswith("U")
        and "rho" not in case.config
    )
)
@PRECISIONS
def test_vector_cfgpp_of_dpm_solver_for_sdxl(case: vectors.Case, dtype: torch.dtype) -> None:
    table = case.recorded["alphas_cumprod"].double()
    known = ((1 - table) / table).sqrt()
    for s in case.settings():
        trial, n = Trial(case, s, dtype), s["steps"]
        times = [case.config["train_steps"] // n * k + 1 for k in reversed(range(n))]
        sigmas = [float(known[t - 1]) for t in times]
        walk = Walk(
            tuple(NoiseLevel(1.0, v, float((v - known).abs().argmin())) for v in sigmas)
        )  # fmt: skip
        trial.x = trial.x * sigmas[0]
        for i in range(len(walk)):
            trial.step(DPMSolverPP2M(), Step(walk, i))
        trial.kept["sigmas"] = torch.tensor(sigmas, dtype=torch.float64)
        trial.kept["final"] = trial.x
        compare(case, s, trial.kept, dtype)
