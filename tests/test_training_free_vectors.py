"""The training-free family against the published code: DPS, FreeDoM, LGD, MPGD, UGD, TFG.

The recipes here are the published variants, slips included, composed of the same parts as the
presets, which mend them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import vectors
from analytic import NOTHING, Analytic, Bank, Likelihood, classifier, measurement
from torch import Tensor

from ppap_host.backbones.noise import CLEAN, NoiseLevel, Walk
from ppap_host.recipes.ascents import Gradient
from ppap_host.recipes.energies import MonteCarlo
from ppap_host.recipes.estimate import Estimate, Step
from ppap_host.recipes.places import CleanPoint, NextState, Place
from ppap_host.recipes.presets import DPS, FREEDOM, LGD_MC, MPGD, TFG, UGD
from ppap_host.recipes.recipe import Move, Recipe
from ppap_host.recipes.strengths import Constant, Scheduled, Strength
from ppap_host.recipes.views import Predicted, PredictedThrough
from ppap_host.sampling.evaluator import Evaluator, Guidance, Health
from ppap_host.sampling.loop import take_step
from ppap_host.sampling.solvers import DDIM

PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@dataclass(frozen=True)
class PerLoss:
    """gradient / |loss|, as published for DPS: it divides by zero when a classifier is sure."""

    def __call__(self, gradient: Tensor, estimate: Estimate) -> Tensor:
        assert estimate.loss is not None
        return gradient / estimate.loss.abs().view(-1, 1, 1, 1)


@dataclass(frozen=True)
class Published:
    """A published method: its recipe, its strength, and how its code clips."""

    recipe: Recipe
    scale: float = 1.0
    clip: bool = False
    clip_eps: bool = True


RAW = PredictedThrough(clip="none")


def dps(s: dict[str, Any]) -> Published:
    return Published(
        replace(DPS, view=RAW, gradient=(PerLoss(),), limit=math.inf), s["guidance_strength"]
    )


def freedom(s: dict[str, Any]) -> Published:
    strength = Scheduled(s["guidance_strength"], s["rho_schedule"])
    recipe = replace(
        FREEDOM, view=RAW, place=NextState(), strength=strength, gradient=(), limit=math.inf,
        recurrence=s["recur_steps"],
    )  # fmt: skip
    return Published(recipe)


def lgd(s: dict[str, Any]) -> Published:
    """Its gradient is divided by the number of samples once more than that of a mean is."""
    samples = int(s["guidance_name"].rsplit("_", 1)[1])
    energy = replace(LGD_MC.energy, samples=samples)
    recipe = replace(
        LGD_MC, view=RAW, place=NextState(), gradient=(), limit=math.inf, energy=energy
    )
    return Published(recipe, s["guidance_strength"] / samples)


def mpgd(s: dict[str, Any]) -> Published:
    """Its noise is not that of the clipped x_0, and the moved x_0 is not clipped again."""
    recipe = replace(MPGD, place=CleanPoint(keep_eps=True, clip=False), gradient=(), limit=math.inf)
    return Published(recipe, s["guidance_strength"], s["clip_x0"], clip_eps=False)


def ugd(s: dict[str, Any]) -> Published:
    """Backward guidance by plain ascent, and only where there is more than one iteration."""
    strength = Constant(s["guidance_strength"])
    backward = Move(
        Predicted(), CleanPoint(clip=False), strength, ascent=Gradient(s["iter_steps"] - 1)
    )
    recipe = replace(
        UGD, view=RAW, strength=strength, gradient=(), limit=math.inf, parameters=(),
        recurrence=s["recur_steps"], also=(backward,) if s["iter_steps"] > 1 else (),
    )  # fmt: skip
    return Published(recipe, 1.0, s["clip_x0"], clip_eps=False)


def tfg(s: dict[str, Any]) -> Published:
    back = replace(
        TFG.also[0], gradient=(), limit=math.inf, place=CleanPoint(keep_eps=True, clip=False)
    )
    recipe = replace(
        TFG, view=PredictedThrough(clip="exact"), gradient=(), limit=math.inf, also=(back,),
        recurrence=s["recur_steps"],
    )  # fmt: skip
    values = {
        "rho": s["rho"], "mu": s["mu"], "sigma": s["sigma"], "samples": s["eps_bsz"],
        "iterations": s["iter_steps"], "rho-course": s["rho_schedule"],
        "mu-course": s["mu_schedule"], "sigma-fades": s["sigma_schedule"] == "decrease",
    }  # fmt: skip
    return Published(recipe.with_values(values), 1.0, s["clip_x0"])


METHODS = {"dps": dps, "freedom": freedom, "lgd": lgd, "mpgd": mpgd, "ugd": ugd, "tfg": tfg}


def method_of(case: dict[str, Any]) -> str | None:
    """Which method a case is about, by what its settings are called."""
    rows = case["config"].get("settings", [])
    if not rows or "noise_roles" not in rows[0]:
        return None
    keys = rows[0].keys()
    if "guidance_name" in keys:
        return "lgd"
    if "rho_schedule" in keys:
        return "tfg" if "mu_schedule" in keys else "freedom"
    if "iter_steps" in keys:
        return "ugd"
    return "mpgd" if "clip_x0" in keys else "dps"


def walk_of(io: dict[str, Tensor]) -> Walk:
    """The case's own levels, from pure noise to the clean image."""
    levels = [
        NoiseLevel(math.sqrt(a), math.sqrt(1 - a), float(t))
        for a, t in zip(io["alpha_prod_ts"].tolist(), io["ts"].tolist(), strict=True)
    ]
    last = float(io["alpha_prod_t_prevs"][-1])
    end = CLEAN if last == 1 else NoiseLevel(math.sqrt(last), math.sqrt(1 - last), 0.0)
    return Walk((*levels, end))


def guide_of(setting: dict[str, Any], io: dict[str, Tensor], images: int) -> Likelihood:
    if setting["guide"] == "classifier":
        return classifier(io, torch.full((images,), setting["target"]))
    return measurement(io, setting["guide"])


class Kept(defaultdict[str, list[Any]]):
    """What the parts of one recipe have done, in order, by the names of the vectors."""

    def __init__(self) -> None:
        super().__init__(list)

    def watching(self, recipe: Recipe) -> Recipe:
        """The recipe with all its moves watched."""
        first, *others = recipe.moves
        also = tuple(
            replace(m, place=Watched(m.place, self, "0"), strength=Noted(m.strength, self, "mu"))
            for m in others
        )
        return replace(
            recipe, also=also, gradient=(Seen(self), *first.gradient),
            place=Watched(first.place, self, "t"), strength=Noted(first.strength, self, "rho"),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Watched(Place):
    """A place that keeps how far it was moved and what came of it."""

    inner: Place
    kept: Kept
    name: str

    def __call__(self, estimate: Estimate, gradient: Tensor, ancestral: bool) -> Estimate:
        after = self.inner(estimate, gradient, ancestral)
        self.kept[f"Delta_{self.name}"].append(gradient)
        self.kept["x0"].append(after.x0)
        self.kept["epsilon_hat"].append(after.eps)
        return after

    def unit(self, estimate: Estimate) -> float:
        return self.inner.unit(estimate)

    def __getattribute__(self, name: str) -> Any:
        if name in ("enters", "once"):
            return getattr(object.__getattribute__(self, "inner"), name)
        return object.__getattribute__(self, name)


@dataclass(frozen=True, eq=False)
class Noted:
    """A strength that keeps what it was."""

    inner: Strength
    kept: Kept
    name: str

    def __call__(self, estimate: Estimate) -> Any:
        value = self.inner(estimate)
        self.kept[self.name].append(value)
        return value


@dataclass(frozen=True, eq=False)
class Seen:
    """Leaves the gradient as it is, and keeps it and the loss it is of."""

    kept: Kept

    def __call__(self, gradient: Tensor, estimate: Estimate) -> Tensor:
        assert estimate.loss is not None
        self.kept["gradient"].append(gradient)
        self.kept["logp_norm"].append(-estimate.loss)
        return gradient


def found_in(kept: Kept) -> dict[str, list[Any]]:
    """What the vectors record of a method, from what its parts have done; a row a repetition."""
    count = len(kept["Delta_t"] or kept["x0"])

    def last(name: str) -> list[Any]:
        each = len(kept[name]) // count
        return kept[name][each - 1 :: each] if each else []

    nothing = [torch.zeros_like(x) for x in kept["x0"][:count]]
    backward = kept["Delta_0"] or nothing
    return {
        "guidance": kept["gradient"], "logp_norm": kept["logp_norm"], "rho": kept["rho"],
        "Delta_t": kept["Delta_t"], "Delta_0": backward, "delta_x0": backward,
        "x0": last("x0"), "epsilon_hat": last("epsilon_hat"), "mu": last("mu"),
    }  # fmt: skip


@vectors.take(lambda case: method_of(case.content) is not None)
@PRECISIONS
def test_vector_training_free_guidance(case: vectors.Case, dtype: torch.dtype) -> None:
    method, io = METHODS[str(method_of(case.content))], case.io(dtype)
    walk, shape = walk_of(case.io(torch.float64)), tuple(case.config["image_shape"])
    for s in case.settings():
        published, kept = method(s), Kept()
        bound = s.get("clip_sample_range", 1.0)
        backbone = Analytic(
            io, shape, clip=(-bound, bound) if published.clip else None,
            clip_eps=published.clip_eps,
        )  # fmt: skip
        bank = Bank(io["noise_bank"], s["noise_roles"])
        # A repetition is a step of its own here, so that its state can be seen; that the loop
        # repeats as is done here is tested in test_universal_guidance_vectors.py.
        repeats, renoise, mc = published.recipe.recurrence, bank.of("renoise"), bank.of("mc")
        recipe = kept.watching(replace(published.recipe, recurrence=1, absolute=True))
        guidance = Guidance(guide_of(s, io, shape[0]), NOTHING, recipe, published.scale)
        solver = DDIM(s["eta"])
        evaluator = Evaluator(
            backbone, backbone.predict, [guidance], ancestral=solver.ancestral, health=Health(),
            stream=lambda name, mc=mc: mc.__next__,
        )  # fmt: skip
        draw = bank.of("ddim").__next__
        single = s["mode"] == "step"
        steps = [s["t_index"]] if single else range(len(walk))
        x, states, repetitions, stds = io["x_T"], [], [], []
        for i in steps:
            step = Step(walk, i)
            x = io["x_in"][i] if single else x
            states += [] if single else [x]
            for _ in range(repeats):
                then = take_step(solver, x, step, evaluator, draw)[0]
                repetitions.append(then)
                x = step.back(then, next(renoise)) if repeats > 1 else then
                if isinstance(recipe.energy, MonteCarlo):
                    stds.append(recipe.energy.deviation(walk.levels[i]))
            x = then
        states.append(x)
        found = found_in(kept) | {"std": stds, "x_prev_per_repetition": repetitions}
        found["x"] = states
        if "guidance_name" in s:  # as published, once more divided by their number
            samples = int(s["guidance_name"].rsplit("_", 1)[1])
            found["guidance"] = [g / samples for g in found["guidance"]]
        for name in (n for n in case.outputs if n.startswith(f"{s['id']}.")):
            rows = found[name.split(".", 1)[1]]
            ours = torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in rows])
            case.compare(name, ours, dtype)
