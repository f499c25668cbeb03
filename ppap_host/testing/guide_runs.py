"""The check that counts: a guided run, in an analytic world."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppap_host.backbones.backbone import ClassifierFree
from ppap_host.recipes.presets import BEST_OF_N, X0
from ppap_host.sampling.evaluator import Guidance, Health
from ppap_host.sampling.loop import sample
from ppap_host.sampling.solvers import DDIM
from ppap_host.sampling.streams import ImageNoise
from ppap_host.testing.checks import CannotCheck, Suite, require
from ppap_host.testing.guide_losses import makes_targets
from ppap_host.testing.guide_subject import GuideUnderTest

CLAIMS = Suite[GuideUnderTest]()

_STEPS, _IMAGES = 10, 3
_FACTORS = 1.0, 4.0, 0.25
"""Of the usual scale."""


@CLAIMS.claim(
    "guided-run",
    why="That is what a guide is for.",
    remedy="If the checks of the gradient pass, default_scale may be far off: 1 suits most guides.",
)
def guided_run(subject: GuideUnderTest) -> None:
    """A guided run in an analytic world ends with a smaller loss and a better measure.

    Better is what comes nearer to the measure of the output that the target was made of; where
    there is none, what moves as it does between met and missed targets.
    """
    guide, target = subject.guide, subject.target
    better = _directions(subject)
    met = _met(subject)
    plain = _run(subject, 0.0)
    before = guide.loss(guide.see(plain), target)
    measured = guide.measure(guide.see(plain), target)
    told = []
    for factor in _FACTORS:
        scale = factor * guide.usual_scale("x0")
        made = _run(subject, scale)
        seen = guide.see(made)
        after = guide.loss(seen, target)
        now = guide.measure(seen, target)
        moved = [
            name
            for name in now
            if _nearer(measured[name], now[name], better.get(name), met.get(name))
        ]
        if float(after.mean()) < float(before.mean()) and (moved or not (better or met)):
            if not (better or met):
                raise CannotCheck("no measure tells a met target from a missed one")
            return
        told.append(f"at scale {scale:g} {float(after.mean()):.4g}")
    require(
        False,
        f"Without guidance the mean loss is {float(before.mean()):.4g}, {', '.join(told)}, and no "
        "measure moves towards the target with it.",
    )


def _run(subject: GuideUnderTest, scale: float) -> Tensor:
    world = subject.world
    recipe = X0 if subject.guide.differentiable else BEST_OF_N
    guidance = [Guidance(subject.guide, subject.target, recipe, scale)] if scale else []
    return sample(
        world,
        ClassifierFree(world, {}, {}),
        world.walk(_STEPS),
        DDIM(),
        ImageNoise(subject.seed, range(_IMAGES), world.state_shape),
        guidance,
        health=Health(),
    )


def _nearer(before: list[float], now: list[float], sign: int | None, met: float | None) -> bool:
    """Whether a measure has come nearer to its target."""
    if met is not None:

        def away(values: list[float]) -> float:
            return _mean([abs(value - met) for value in values])

        if away(now) < away(before):
            return True
    return sign is not None and sign * (_mean(now) - _mean(before)) > 0


def _met(subject: GuideUnderTest) -> dict[str, float]:
    """Each measure of the very output that the target was made of; none of a named target."""
    guide = subject.guide
    if subject.named:
        return {}
    with torch.no_grad():
        output = guide.see(subject.other())
        found = guide.measure(output, subject.target)
    return {name: values[0] for name, values in found.items()}


def _directions(subject: GuideUnderTest) -> dict[str, int]:
    """For each measure whether it rises (1) or falls (-1) as a target is met.

    An output is compared with others by the target that was made of it. Where that tells nothing,
    as with one target for all, a measure is to go the way that it goes as the loss falls.
    """
    guide, output = subject.guide, subject.output
    if guide.rewards:
        return {"value": 1}
    found: dict[str, float] = {}
    with torch.no_grad():
        made = not subject.named or makes_targets(subject)
        for k in range(len(output)) if made else ():
            target = guide.as_target(output[k : k + 1])
            for name, values in guide.measure(output, target).items():
                rest = values[:k] + values[k + 1 :]
                found[name] = found.get(name, 0.0) + values[k] - _mean(rest)
        losses = guide.loss(output, subject.target).double()
        for name, values in guide.measure(output, subject.target).items():
            measured = torch.tensor(values, dtype=torch.float64)
            if not abs(found.get(name, 0.0)) > 1e-6 * float(measured.abs().sum()):
                centred = measured - measured.mean()
                together = float((centred * (losses - losses.mean())).sum())
                found[name] = -together if math.isfinite(together) else 0.0
    return {name: 1 if gap > 0 else -1 for name, gap in found.items() if gap}


def _mean(values: list[float]) -> float:
    sound = [value for value in values if value == value]
    return sum(sound) / len(sound) if sound else float("nan")
