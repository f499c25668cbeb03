"""The check that counts: a guided run, in an analytic world."""

from __future__ import annotations

import torch
from torch import Tensor

from ppap_host.backbones.backbone import ClassifierFree
from ppap_host.recipes.presets import X0
from ppap_host.sampling.evaluator import Guidance, Health
from ppap_host.sampling.loop import sample
from ppap_host.sampling.solvers import DDIM
from ppap_host.sampling.streams import ImageNoise
from ppap_host.testing.checks import CannotCheck, Suite, require
from ppap_host.testing.guide_subject import GuideUnderTest
from ppap_host.testing.worlds import GaussianWorld

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
    """A guided run in an analytic world ends with a smaller loss and a better measure."""
    guide, target = subject.guide, subject.target
    better = _directions(subject)
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
            for name, sign in better.items()
            if sign * (_mean(now[name]) - _mean(measured[name])) > 0
        ]
        if float(after.mean()) < float(before.mean()) and (moved or not better):
            if not better:
                raise CannotCheck("no measure tells a met target from a missed one")
            return
        told.append(f"at scale {scale:g} {float(after.mean()):.4g}")
    require(
        False,
        f"Without guidance the mean loss is {float(before.mean()):.4g}, {', '.join(told)}, and no "
        "measure moves towards the target with it.",
    )


def _run(subject: GuideUnderTest, scale: float) -> Tensor:
    world = GaussianWorld(subject.size)
    guidance = [Guidance(subject.guide, subject.target, X0, scale)] if scale else []
    return sample(
        world,
        ClassifierFree(world, {}, {}),
        world.walk(_STEPS),
        DDIM(),
        ImageNoise(subject.seed, range(_IMAGES), world.state_shape),
        guidance,
        health=Health(),
    )


def _directions(subject: GuideUnderTest) -> dict[str, int]:
    """For each measure whether it rises (1) or falls (-1) as a target is met."""
    guide, output = subject.guide, subject.output
    found: dict[str, float] = {}
    with torch.no_grad():
        for k in range(len(output)):
            target = guide.as_target(output[k : k + 1])
            for name, values in guide.measure(output, target).items():
                rest = values[:k] + values[k + 1 :]
                found[name] = found.get(name, 0.0) + values[k] - _mean(rest)
    return {name: 1 if gap > 0 else -1 for name, gap in found.items() if gap}


def _mean(values: list[float]) -> float:
    sound = [value for value in values if value == value]
    return sum(sound) / len(sound) if sound else float("nan")
