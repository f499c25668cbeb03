"""Universal Guidance's own code: forward, backward by Adam, recurrence, latent and pixel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import vectors
from analytic import NOTHING, Analytic, Likelihood, measurement
from torch import Tensor

from ppap_host.backbones.backbone import ClassifierFree, Condition, Prediction
from ppap_host.backbones.noise import CLEAN, DiscreteSchedule, NoiseLevel, Walk
from ppap_host.recipes.ascents import Adam
from ppap_host.recipes.estimate import Step
from ppap_host.recipes.places import CleanPoint, Score
from ppap_host.recipes.recipe import Move, Recipe
from ppap_host.recipes.strengths import Constant
from ppap_host.recipes.views import Predicted, PredictedThrough
from ppap_host.sampling.evaluator import Evaluator, Guidance, Health
from ppap_host.sampling.loop import take_step
from ppap_host.sampling.solvers import DDIM

PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def original(case: vectors.Case) -> bool:
    return {"A", "B", "B_chain"} <= case.config.keys()


class Latent(Analytic):
    """Conditioned on vectors, decoded by a scale for each entry, one evaluation a branch."""

    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:  # type: ignore[override]
        self.means = condition["mean"]
        return super().predict(x, level)

    def decode(self, x0: Tensor) -> Tensor:
        return (x0.flatten(1) * self.weights["dec"]).view_as(x0)


def forward(weight: float) -> Recipe:
    return Recipe("forward", PredictedThrough(clip="none"), Score(), Constant(weight))


@vectors.take(original, lambda name: name.startswith("a"))
@PRECISIONS
def test_vector_latent_forward_guidance(case: vectors.Case, dtype: torch.dtype) -> None:
    io = case.io(dtype)
    guide = measurement(io, "squares", prefix="")
    table = case.io(torch.float64)["alphas_cumprod"]
    schedule = DiscreteSchedule(table.numpy())
    conditions = [{"mean": io[key]} for key in ("cond", "uncond")]
    for s in case.settings("A"):
        backbone = Latent(io, case.config["image_shape"], alphas_cumprod=table)
        backbone.weights["dec"] = io["dec"]
        times = io[f"{s['id']}.timesteps"].tolist()
        walk = Walk((*(schedule.level(t) for t in reversed(times)), schedule.level(0)))
        scale = s["cfg_scale"] if s["original_guidance"] else 1.0
        denoise = ClassifierFree(backbone, *conditions, scale)
        recipe = forward(s["optim_forward_guidance_wt"])
        found, _ = repetitions(case, s, backbone, denoise, walk, recipe, guide, DDIM(s["eta"]), io)
        case.compare(f"{s['id']}.x_prev", torch.stack(found), dtype)


@vectors.take(original, lambda name: name.startswith("b"))
def test_vector_pixel_forward_and_backward_guidance(case: vectors.Case) -> None:
    """In float64, as the case asks for: Adam's first step is a sign."""
    dtype = torch.float64
    io = case.io(dtype)
    guide = measurement(io, "squares", prefix="")
    table = case.io(torch.float64)["b.alphas_cumprod"]
    schedule = DiscreteSchedule(table.numpy())
    for s in case.settings("B"):
        backbone = Analytic(
            io, case.config["image_shape"], alphas_cumprod=table, means=io["m0"],
            clip=(-1.0, 1.0), clip_eps=False,
        )  # fmt: skip
        adam = Adam(s["max_iters"], s["lr"], s["loss_cutoff"])
        backward = Move(Predicted(), CleanPoint(), ascent=adam)
        if s["forward"]:
            recipe = Recipe(
                "ugd", PredictedThrough(clip="none"), Score(), Constant(s["wt"]), also=(backward,)
            )
        else:
            recipe = Recipe("ugd", Predicted(), CleanPoint(), ascent=adam)
        levels = [schedule.level(t) for t in reversed(range(len(schedule)))]
        walk = Walk((*levels, CLEAN))
        solver = DDIM(eta=1.0 if s["sampling_type"] == "ddpm" else 0.0)
        rows = repetitions(case, s, backbone, backbone.predict, walk, recipe, guide, solver, io)
        for name, found in zip(("x", "pred_xstart"), rows, strict=True):
            last = found[s["num_steps"] - 1 :: s["num_steps"]]
            case.compare(f"{s['id']}.{name}", torch.stack(last), dtype)


def repetitions(
    case: vectors.Case, s: dict[str, Any], backbone: Any, denoise: Any, walk: Walk, recipe: Recipe,
    guide: Any, solver: DDIM, io: dict[str, Tensor],
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """The state after every repetition of every step, by the loop's own steps, and its x_0.

    Each repetition is a step of its own here, so that its state can be seen; the recorded noise
    leads back in between.
    """
    guidance = [Guidance(guide, NOTHING, replace(recipe, absolute=True), 1.0)]
    draws = iter(io["noise_bank"])
    x, found, predicted = io["x_T"], [], []
    for i in range(len(walk)):
        for _ in range(s["num_steps"]):
            step = Step(walk, i)
            evaluator = Evaluator(backbone, denoise, guidance, ancestral=False, health=Health())
            first, second = next(draws), next(draws)
            then, estimate, _ = take_step(solver, x, step, evaluator, lambda z=first: z)
            found.append(then)
            predicted.append(estimate.x0)
            x = step.back(then, second)
        x = then
    return found, predicted


def test_a_step_is_repeated_as_the_vectors_repeat_it() -> None:
    """What the cases above do by hand is what the loop does by itself."""
    io = {
        "denoiser.g": torch.full((12,), 0.5), "denoiser.A": torch.zeros(12, 1),
        "denoiser.B": torch.zeros(12, 1), "denoiser.M": torch.zeros(1, 12),
    }  # fmt: skip
    table = torch.linspace(0.99, 0.05, 5, dtype=torch.float64)
    backbone = Analytic(io, (3, 2, 2), alphas_cumprod=table)
    walk = backbone.walk(5)
    draws = torch.randn(16, 1, 3, 2, 2)
    recurrent = Recipe("again", Predicted(), CleanPoint(), recurrence=3, absolute=True)
    guide = Likelihood(lambda u, level: -u.flatten(1).square().sum(dim=1))
    renoise = iter(draws)
    evaluator = Evaluator(
        backbone, backbone.predict, [Guidance(guide, NOTHING, recurrent, 0.1)], ancestral=False,
        health=Health(), stream=lambda name: renoise.__next__,
    )  # fmt: skip
    step = Step(walk, 1)
    together, _, _ = take_step(DDIM(), draws[-1], step, evaluator, lambda: draws[0])
    x, by_hand = draws[-1], iter(draws)
    for again in range(3):
        then, _, _ = take_step(
            DDIM(), x, step,
            Evaluator(
                backbone, backbone.predict,
                [Guidance(guide, NOTHING, replace(recurrent, recurrence=1), 0.1)],
                ancestral=False, health=Health(),
            ),
            lambda: draws[0],
        )  # fmt: skip
        if again < 2:
            x = step.back(then, next(by_hand))
    assert torch.equal(together, then)
