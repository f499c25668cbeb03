"""FK steering and SVDD against their published codes: weights, choices and whole runs."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
import torch
import vectors
from analytic import NOTHING, Analytic, Likelihood
from torch import Tensor

from ppap_host.backbones.backbone import ClassifierFree, Condition, Prediction
from ppap_host.backbones.noise import CLEAN, NoiseLevel, Walk
from ppap_host.recipes.presets import FK, SVDD
from ppap_host.recipes.selections import Branched, FeynmanKac, Selected
from ppap_host.recipes.views import Noisy, Predicted
from ppap_host.sampling.evaluator import Guidance
from ppap_host.sampling.loop import stream
from ppap_host.sampling.solvers import DDIM

PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def steering(s: dict[str, Any], size: int) -> FeynmanKac:
    """The published code with these settings."""
    return FeynmanKac(
        size=size, potential=s["potential_type"], factor=s["lmbda"], start=s["resampling_t_start"],
        end=s["resampling_t_end"], period=s["resample_frequency"], floor=s["reward_min_value"],
        adaptive=s["adaptive_resampling"], relative=False, published=s["variant"],
        adaptive_last=s.get("adaptive_resample_at_end", True),
    )  # fmt: skip


class Told(defaultdict[str, list[Tensor]]):
    """What selections did, row by row, by the names of the vectors."""

    def __init__(self, size: int) -> None:
        super().__init__(list)
        self.ancestors = torch.arange(size)

    def add(self, selected: Selected | None, start: Any, size: int) -> None:
        nothing, own = torch.zeros(size, dtype=torch.float64), torch.arange(size)
        weights, ess, drawn, index, after = nothing, nothing[0], nothing[0], own, start
        if selected is not None:
            weights, index, after = selected.weights[0], selected.index[0], selected.after
            ess, drawn = selected.ess[0], selected.drawn[0]
        self.ancestors = self.ancestors[index]
        for name, value in (
            ("active", torch.tensor(selected is not None)), ("weights", weights), ("ess", ess),
            ("resampled", drawn), ("indices", index), ("population_rs", after.reward[0]),
            ("product", after.product[0].exp()), ("ancestors", self.ancestors),
        ):  # fmt: skip
            self[name].append(value)


def compare(case: vectors.Case, name: str, kept: Any, dtype: torch.dtype) -> None:
    for output in (n for n in case.outputs if n.startswith(f"{name}.")):
        key = output.split(".", 1)[1]
        if key == "uniforms":  # what the draws were made with: given, not found
            case.met(output)
            continue
        theirs = case.recorded[output]
        ours = torch.stack(kept[key]).to(theirs.dtype if not theirs.is_floating_point() else dtype)
        case.compare(output, ours, dtype)


def is_steering(case: vectors.Case) -> bool:
    return case.holds("rewards.r") and "num_particles" in case.config


@vectors.take(is_steering, lambda name: not name.startswith("t"))
def test_vector_fk_selections(case: vectors.Case) -> None:
    """In float64: weights reach 1e10, their product more than float32 holds."""
    size, steps, io = (
        case.config["num_particles"],
        case.config["time_steps"],
        case.io(torch.float64),
    )
    for s in case.settings():
        selection, rewards = steering(s, size), io[f"rewards.{s['rewards']}"]
        kept, state = Told(size), selection.begin(1, rewards)
        for i in range(steps):
            selected = None
            if selection.active(i, steps):
                uniforms = io[f"{s['id']}.uniforms"][i][None]
                selected = selection(rewards[i][None], state, i, steps, uniforms)
                state = selected.after
            kept.add(selected, state, size)
        compare(case, s["id"], kept, torch.float64)


@vectors.take(is_steering, lambda name: name.startswith("t"))
@PRECISIONS
def test_vector_fk_trajectories(case: vectors.Case, dtype: torch.dtype) -> None:
    """Whole runs by the loop: a batch of one image, its particles those of the case."""
    io, told = case.io(dtype), case.config["trajectory"]
    table, times = case.recorded["alphas_cumprod"].tolist(), case.recorded["ts"].tolist()
    levels = [NoiseLevel(math.sqrt(table[t]), math.sqrt(1 - table[t]), float(t)) for t in times]
    walk, size = Walk((*levels, CLEAN)), told["num_particles"]
    io["denoiser.M"] = io["denoiser.m"][None]
    backbone = Analytic(io, told["image_shape"], alphas_cumprod=case.recorded["alphas_cumprod"])
    for s in told["settings"]:
        seen, asked, chosen = list[Tensor](), list[Tensor](), list[Selected]()

        def reward(u: Tensor, level: Any = None, seen: list[Tensor] = seen) -> Tensor:
            seen.append(u)
            return u.flatten(1) @ io["reward.c"] - 0.5 * u.flatten(1).square().mean(dim=1)

        class Watched(FeynmanKac):
            def __call__(self, *args: Any, chosen: list[Selected] = chosen) -> Selected:
                chosen.append(super().__call__(*args))
                return chosen[-1]

        def denoise(x: Tensor, level: NoiseLevel, asked: list[Tensor] = asked) -> Prediction:
            asked.append(x)
            return backbone.predict(x, level)

        selection = Watched(**vars(steering(s, size)))
        shares = case.recorded[f"{s['id']}.uniforms"].double()
        active = [u for i, u in enumerate(shares) if selection.active(i, len(walk))]
        kept, rows = Told(size), torch.cat([io["x_T"][None], io["noise"]])

        def streams(name: str, active: Any = active, rows: Tensor = rows) -> Any:
            """Slot j's noise, and the normal draws whose shares are its uniforms."""
            _, particle, j = name.rpartition("particle ")
            slot = int(j) if particle else 0
            if not name.startswith("selection"):
                return iter(rows[:, slot : slot + 1]).__next__
            normal = [torch.special.ndtri(u[slot].clamp(1e-12, 1 - 1e-12)) for u in active]
            return iter(z.expand(1, *told["image_shape"]) for z in normal).__next__

        guided = [Guidance(Likelihood(reward), NOTHING, replace(FK, selection=selection), 1.0)]
        solver = DDIM(float(told["eta"]))
        for _ in stream(backbone, denoise, walk, solver, streams(""), guided, streams=streams):
            pass
        at, state = iter(chosen), selection.begin(1, io["x_T"])
        for i in range(len(walk)):
            selected = next(at) if selection.active(i, len(walk)) else None
            state = state if selected is None else selected.after
            kept.add(selected, state, size)
        levels = walk.levels[:-1]
        x0 = [backbone.clean(x, at.alpha, at.sigma**2) for x, at in zip(asked, levels, strict=True)]
        # The last states that are looked at are the images.
        kept["x"], kept["x0_preds"] = [*asked, seen[-1]], x0
        kept["rewards"] = [reward(x) for x in x0]
        compare(case, s["id"], kept, dtype)


class Conditional(Analytic):
    """Two means, one a branch, told by the condition."""

    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:  # type: ignore[override]
        self.means = condition["mean"]
        return super().predict(x, level)


def is_svdd(case: vectors.Case) -> bool:
    return case.holds("value.c1", "alpha.uniforms")


@vectors.take(is_svdd)
@PRECISIONS
def test_vector_svdd(case: vectors.Case, dtype: torch.dtype) -> None:
    io, config = case.io(dtype), case.config
    table, times = case.recorded["alphas_cumprod"].tolist(), case.recorded["ts"].tolist()
    io["denoiser.M"] = io["denoiser.m_uncond"][None]
    backbone = Conditional(
        io, config["image_shape"], alphas_cumprod=case.recorded["alphas_cumprod"]
    )
    backbone.state_dtype = dtype
    means = [{"mean": io[f"denoiser.m_{branch}"][None]} for branch in ("cond", "uncond")]
    for s in config["settings"]:
        before = times[-1] - config["train_steps"] // s["inference_steps"]
        abars = [*(table[t] for t in times), table[max(before, 0)]]
        walk = Walk(tuple(
            NoiseLevel(math.sqrt(a), math.sqrt(1 - a), float(t))
            for a, t in zip(abars, [*times, 0], strict=True)
        ))  # fmt: skip

        kept, asked, seen = defaultdict[str, list[Tensor]](list), list[Tensor](), list[Tensor]()

        def value(u: Tensor, level: NoiseLevel | None, s: Any = s, seen: Any = seen) -> Tensor:
            seen.append(u)
            pixels = (u / 2 + 0.5).clamp(0, 1).flatten(1)
            if s["reward_path"] == "uint8":
                pixels = (255 * pixels).round() / 255
            found = pixels @ io["value.c1"]
            if s["variant"] == "MC":
                assert level is not None
                found = found + level.time / config["train_steps"] * (pixels @ io["value.c2"])
            return found

        class Watched(Branched):
            def chosen(self, values: Tensor, *args: Any, kept: Any = kept) -> Tensor:
                kept["values"].append(values)
                kept["indices"].append(super().chosen(values, *args))
                return kept["indices"][-1]

        recipe = replace(
            SVDD, view=Noisy() if s["variant"] == "MC" else Predicted(),
            selection=Watched(s["candidates"], float(s["alpha"])),
        )  # fmt: skip
        free = ClassifierFree(backbone, *means, s["guidance_scale"])

        def denoise(x: Tensor, level: NoiseLevel, free: Any = free, asked: Any = asked) -> Any:
            asked.append(x)
            return free(x, level)

        noise = iter([io["x_T"], *io["noise_bank"]])
        guided = [Guidance(Likelihood(value), NOTHING, recipe, 1.0)]
        events = list(stream(
            backbone, denoise, walk, DDIM(float(s["eta"])), noise.__next__, guided,
            streams=lambda name, noise=noise: noise.__next__,
        ))  # fmt: skip
        # Candidates are shown to the network, or to the guide; the chosen ones not again.
        candidates = torch.stack(seen if s["variant"] == "MC" else asked[1:])
        kept["candidates"] = list(candidates.unflatten(0, (len(walk) - 1, -1)))
        kept["x"] = [io["x_T"], *(event.x_next for event in events)]
        compare(case, s["id"], kept, dtype)
    values, uniforms = case.recorded["s0.values"], case.recorded["alpha.uniforms"]
    weights, indices = [], []
    for alpha, shares in zip(config["alphas_for_alpha_cases"], uniforms, strict=True):
        selection = Branched(len(values[0]), float(alpha))
        weights.append(torch.stack([selection.weights(v) for v in values]))
        rows = zip(values, shares, strict=True)
        indices.append(torch.stack([selection.chosen(v, u[: v.shape[1]]) for v, u in rows]))
    case.compare("alpha.weights", torch.stack(weights), dtype)
    case.compare("alpha.indices", torch.stack(indices), dtype)
