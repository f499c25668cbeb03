"""The sampling loop.

There is one loop. At every step the backbone is evaluated
(:class:`~ppap_host.sampling.evaluator.Evaluator`), each guide's gradient changes the estimate as
its recipe says, and a solver takes the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ppap_host.backbones.backbone import Backbone
from ppap_host.backbones.noise import NoiseLevel, Walk
from ppap_host.recipes.estimate import Estimate, Step
from ppap_host.sampling.balance import Balance, without_conflict
from ppap_host.sampling.evaluator import Denoiser, Evaluator, Guidance, Health
from ppap_host.sampling.solvers import Solver
from ppap_host.sampling.streams import Draw, ImageNoise, Stream


@dataclass(frozen=True)
class StepReport:
    """What a watcher of the loop is told after each step.

    Attributes:
        step, steps: 0-based index and number of steps.
        x: the state after the step.
        estimate: what the step was based on.
    """

    step: int
    steps: int
    x: Tensor
    estimate: Estimate


def sample(
    backbone: Backbone,
    denoise: Denoiser,
    walk: Walk,
    solver: Solver,
    draw: Draw,
    guidance: Sequence[Guidance] = (),
    *,
    device: torch.device | str = "cpu",
    watch: Callable[[StepReport], None] | None = None,
    start: Tensor | None = None,
    health: Health | None = None,
    balance: Balance = without_conflict,
    stream: Stream | None = None,
) -> Float[Tensor, "b c h w"]:
    """Runs the reverse process for one batch.

    Args:
        backbone: the model, for its clipping and decoder.
        denoise: its prediction at a state and level
            (:class:`~ppap_host.backbones.backbone.ClassifierFree`).
        walk: the noise levels.
        solver: how a step is taken.
        draw: standard normal noise for the batch; its first draw is the initial state.
        guidance: the guides, applied in this order.
        watch: called after every step.
        start: the initial state instead of a first draw, in the schedule's own scale.
        health: counts what went wrong without stopping.
        balance: how several guides make room for each other (:mod:`ppap_host.sampling.balance`).
        stream: noise for what recipes draw themselves, by name; None takes ``draw.stream`` where
            there is one.

    Returns:
        The clean states in the backbone's ``state_dtype``; RGB in about [-1, 1] for pixel models.
    """
    health = Health() if health is None else health
    if stream is None and isinstance(draw, ImageNoise):
        stream = draw.stream
    evaluator = Evaluator(
        backbone,
        denoise,
        guidance,
        ancestral=solver.ancestral,
        health=health,
        balance=balance,
        stream=stream,
    )
    if start is None:
        start = backbone.start_temperature * walk.levels[0].scale * draw()
    x = start.to(device=device, dtype=backbone.state_dtype)
    memory: Any = None
    for i in range(len(walk)):
        step = Step(walk, i, backbone.fixed_variance)
        x, estimate, memory = take_step(solver, x, step, evaluator, draw, memory)
        if watch is not None:
            watch(StepReport(i, len(walk), x, estimate))
    return x


def take_step(
    solver: Solver, x: Tensor, step: Step, evaluator: Evaluator, draw: Draw, memory: Any = None
) -> tuple[Tensor, Estimate, Any]:
    """One step with all that recipes do around the solver's own, as often as they repeat it.

    Args:
        x: the state at ``step.now``.
        memory: what the step before returned, None at the first.

    Returns:
        The state at ``step.then``, the estimate that it was based on, and the new memory.
    """
    for repeats_left in reversed(range(evaluator.recurrence(step))):
        then, estimate, after = _taken_once(solver, x, step, evaluator, draw, memory)
        if repeats_left:
            x = step.back(then, evaluator.noise("recurrence", then))
    return then, estimate, after


def _taken_once(
    solver: Solver, x: Tensor, step: Step, evaluator: Evaluator, draw: Draw, memory: Any
) -> tuple[Tensor, Estimate, Any]:
    evaluations = 0

    def evaluate(x: Tensor, level: NoiseLevel) -> Estimate:
        nonlocal evaluations
        evaluations += 1
        return evaluator(x, level, step, first=evaluations == 1)

    x = evaluator.entering(x, step)
    x, estimate, memory = solver.step(x, step.index, step.walk, evaluate, draw, memory)
    if estimate.next_shift is not None:
        x = x + estimate.next_shift
    return x.detach(), estimate, memory
