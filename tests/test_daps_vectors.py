"""DAPS against its published code: four priors, Langevin, Hamiltonian and Metropolis chains."""

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
from ppap_host.recipes.ascents import Pull
from ppap_host.recipes.chains import Chain, Solved
from ppap_host.recipes.estimate import Estimate, Step
from ppap_host.recipes.places import Renoised
from ppap_host.recipes.presets import DAPS
from ppap_host.recipes.strengths import Constant
from ppap_host.sampling.evaluator import Evaluator, Guidance, Health
from ppap_host.sampling.loop import take_step
from ppap_host.sampling.solvers import DDIM

PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


class Unscaled(Analytic):
    """Of states x_0 + sigma noise; every noise is known."""

    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition = {}) -> Prediction:  # noqa: B006
        x0 = self.clean(x / level.scale, 1 / level.scale, (level.sigma / level.scale) ** 2)
        return Prediction((x - x0) / level.sigma)

    def level_at(self, s: float) -> NoiseLevel:
        return NoiseLevel(1.0, s, s)


def flow(settings: dict[str, Any], steps: int | None = None) -> Solved:
    """A grid of noise as the published schedulers make it."""
    kind, *power = settings.get("timestep", "ve").split("-")
    kind = "poly" if settings["name"] == "edm" else "ve"
    return Solved(
        settings["num_steps"] if steps is None else steps, settings["sigma_min"], kind,
        float(power[0]) if power else 7.0,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Watched(Chain):
    """Keeps where it starts, how large its updates are, and where each begins and ends."""

    kept: Any = None

    def __hash__(self) -> int:
        return id(self)

    def __call__(self, pull: Pull, start: Tensor, estimate: Estimate) -> Tensor:
        at: list[Tensor] = []

        def watched(point: Tensor) -> tuple[Tensor, Tensor]:
            at.append(point)
            return pull(point)

        way = super().__call__(watched, start, estimate)
        self.kept["x0hat"].append(at[0])
        self.kept["x0y"].append(start + way)
        self.kept["mcmc"].append(torch.stack([*at[1:], start + way]))
        self.kept["lr"].append(torch.tensor(self.size(estimate), dtype=torch.float64))
        noises = self.flow.noises(estimate.level.sigma)
        in_squares = self.flow.spacing == "ve"
        self.kept["inner_times"].append(
            torch.tensor([s**2 if in_squares else s for s in noises], dtype=torch.float64)
        )
        return way


@vectors.take(lambda case: case.holds("measurement", "s0.x0hat", "s0.x0y"))
@PRECISIONS
def test_vector_daps(case: vectors.Case, dtype: torch.dtype) -> None:
    io = case.io(dtype)
    io |= {"denoiser.M": io["denoiser.m"][None], "obs": io["measurement"]}
    io["alphas_cumprod"] = torch.ones(1)
    for s in case.settings():
        grid = flow(s["annealing"]).noises(s["annealing"]["sigma_max"])[:-1]
        walk = Walk((*(NoiseLevel(1.0, sigma, sigma) for sigma in grid), CLEAN))
        kept, chain = defaultdict[str, list[Tensor]](list), s["mcmc"]
        backbone = Unscaled(io, case.config["image_shape"])
        metropolis = chain["mc_algo"] == "mh"
        # The published Langevin and Hamiltonian chains lack the 1/2 that the Metropolis test has.
        scale = 1 / (chain["tau"] ** 2 * (2 if metropolis else 1))
        ascent = Watched(
            steps=chain["num_steps"], rate=chain["lr"], last=chain["lr_min_ratio"], relative=False,
            kind=chain["mc_algo"], prior=chain["prior_solver"],
            prior_noise=chain["prior_sigma_min"], momentum=chain["momentum"],
            flow=flow(s["diffusion"]), kept=kept,
        )  # fmt: skip
        recipe = replace(
            DAPS, place=Renoised(clip=False), strength=Constant(), gradient=(), ascent=ascent,
            limit=math.inf, absolute=True,
        )  # fmt: skip
        noise: dict[str, Iterator[Tensor]] = {
            "normal": iter(io["noise_bank"]),
            "accepted": iter(io["uniform_bank"].double()),
        }

        def stream(name: str, noise: Any = noise) -> Any:
            if name != "accepted":
                return noise["normal"].__next__
            shape = case.config["image_shape"]
            return lambda: torch.special.ndtri(next(noise["accepted"])).view(-1, 1, 1, 1).expand(shape)  # fmt: skip  # noqa: E501

        guided = [Guidance(measurement(io, "squares"), NOTHING, recipe, scale)]
        evaluator = Evaluator(
            backbone, backbone.predict, guided, ancestral=False, health=Health(), stream=stream
        )
        x = io["x_start"]
        kept["x"].append(x)
        for i in range(len(walk)):
            x, _, _ = take_step(DDIM(), x, Step(walk, i), evaluator, lambda: io["x_start"])
            kept["x"].append(x)
        sigmas = [level.sigma for level in walk.levels]
        for name in (n for n in case.outputs if n.startswith(f"{s['id']}.")):
            key = name.split(".", 1)[1]
            ours = torch.tensor(sigmas, dtype=torch.float64)
            case.compare(name, ours if key == "sigma_steps" else torch.stack(kept[key]), dtype)
