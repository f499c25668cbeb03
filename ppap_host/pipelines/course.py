"""Where in its course a scheduler is, and what its step does with a prediction."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppap_host.backbones.backbone import FixedVariance
from ppap_host.backbones.noise import NoiseLevel, Walk
from ppap_host.pipelines.schedules import Schedule
from ppap_host.recipes.estimate import Estimate, Step
from ppap_host.recipes.gradients import each


class Course:
    """The noise levels of one run of a scheduler.

    A scheduler of second order asks the network twice a step, and PNDM does so in its first one:
    what it is asked at on the way belongs to the step that it is on the way of.

    Args:
        schedule: of the scheduler, which has its timesteps.

    Attributes:
        visited: the level of each call of ``step``, and the one it all ends at.
    """

    def __init__(self, schedule: Schedule, scheduler: Any, variance: FixedVariance) -> None:
        self.visited = tuple(schedule.visited(scheduler))
        self._times = [float(t) for t in scheduler.timesteps]
        self._variance = variance
        pairs = getattr(scheduler, "order", 1) == 2
        ends: list[NoiseLevel] = []
        self._calls: list[tuple[int, bool]] = []
        for i, level in enumerate(self.visited[:-1]):
            on_the_way = i % 2 == 1 if pairs else not _cleaner(self.visited[i + 1], level)
            if ends and (on_the_way or not _cleaner(level, ends[-1])):
                self._calls.append((len(ends) - 1, False))
            else:
                self._calls.append((len(ends), True))
                ends.append(level)
        if not ends or not _cleaner(self.visited[-1], ends[-1]):
            self.visited = (*self.visited[:-1], NoiseLevel(1.0, 0.0, 0.0))
        self.walk = Walk((*ends, self.visited[-1]))

    def place(self, scheduler: Any, timestep: Any, after: int) -> int:
        """Which call of ``step`` this is.

        Args:
            timestep: as the pipeline gives it.
            after: the number of the call before, -1 at the first.
        """
        for name in ("step_index", "begin_index"):
            index = getattr(scheduler, name, None)
            if index is not None:
                return min(int(index), len(self._calls) - 1)
        time = float(timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep)
        distance = [abs(t - time) for t in self._times[: len(self._calls)]]
        nearest = [i for i, d in enumerate(distance) if d == min(distance)]
        return min(nearest, key=lambda i: abs(i - after - 1))

    def level(self, index: int) -> NoiseLevel:
        """Of the state that a call is given."""
        return self.visited[index]

    def step(self, index: int) -> tuple[Step, bool]:
        """The step that a call belongs to, and whether it is the first of it."""
        number, first = self._calls[index]
        return Step(self.walk, number, self._variance), first

    def ends(self, index: int) -> bool:
        """Whether a call is the last one of its step."""
        return self.last(index) or self._calls[index + 1][1]

    def calls(self, number: int) -> list[int]:
        """The calls of a step, in order."""
        return [i for i, (step, _) in enumerate(self._calls) if step == number]

    def told(
        self, index: int, guided: Estimate, raw: Tensor, habits: Callable[[], Habits]
    ) -> tuple[Tensor, Tensor | None]:
        """What becomes of x_0, and what is added to the state after the step; as the state.

        Both are zero for images that no guide moves. What is to be added after a step of a
        scheduler that remembers becomes a change of x_0 that moves a step of DDIM as far.

        Args:
            index: of the call.
            raw: x_0 as the network's output alone has it.
            habits: of the scheduler, where they are needed.
        """
        moved = torch.zeros(len(raw), dtype=torch.bool) if guided.moved is None else guided.moved
        mine = each(moved.to(raw.device), raw)
        change = torch.where(mine, guided.x0 - raw, 0.0)
        shift = guided.next_shift
        if guided.eps_kept and not habits().draws:
            # One prediction cannot say that x_0 moves and the noise does not: what the step makes
            # of the difference is added to the state that it leads to.
            step, _ = self.step(index)
            level = guided.level
            kept = guided.eps - (guided.x - level.alpha * guided.x0) / level.sigma
            extra = torch.where(mine, step.then.sigma * kept, 0.0)
            shift = extra if shift is None else shift + extra
        if shift is None or not bool(shift.any()):
            return change, None
        if habits().remembers:
            return change + shift / self.reach(index), None
        return change, shift

    def last(self, index: int) -> bool:
        """Whether nothing follows the call."""
        return index == len(self._calls) - 1

    def reach(self, index: int) -> float:
        """How far the state after the step moves with x_0, in a step of DDIM.

        For x = alpha x_0 + sigma eps and s = sigma / alpha that is alpha_then (s_now - s_then) /
        s, where s is that of the call, which may be on the way.
        """
        step, _ = self.step(index)
        now, then, here = (x.sigma / x.alpha for x in (step.now, step.then, self.level(index)))
        return step.then.alpha * (now - then) / here


def _cleaner(a: NoiseLevel, b: NoiseLevel) -> bool:
    return a.log_snr > b.log_snr and not math.isclose(a.log_snr, b.log_snr, rel_tol=1e-9)


@dataclass(frozen=True)
class Habits:
    """What a scheduler does beside stepping.

    Attributes:
        remembers: whether it keeps what it was given for its later steps. What is added to the
            state after a step of one that does is lost, or counts for more than it is.
        draws: whether its step adds noise.
    """

    remembers: bool
    draws: bool


@torch.no_grad()
def habits(scheduler: Any, arguments: Mapping[str, Any]) -> Habits:
    """Found out by a rehearsal of the step on copies of the scheduler.

    Args:
        arguments: of the step that is to come, by name.
    """
    sample: Tensor = arguments["sample"][:1].detach().clone()
    given = dict(arguments) | {
        "sample": sample,
        "model_output": arguments["model_output"][:1].detach().clone(),
    }
    given.pop("generator", None)
    results, remembers = [], False
    devices = [sample.device] if sample.device.type == "cuda" else []
    for seed in range(2):
        rehearsed = copy.deepcopy(scheduler)
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            try:
                result = rehearsed.step(**given | {"return_dict": False})
            # Whatever it needs that a rehearsal lacks; then nothing is taken for granted.
            except Exception:
                return Habits(remembers=True, draws=False)
        results.append(result[0])
        remembers |= _holds(vars(rehearsed), sample.shape)
    return Habits(remembers, draws=not torch.equal(*results))


def _holds(thing: Any, shape: torch.Size) -> bool:
    """Whether a tensor of this shape is in it, however deep in lists and mappings."""
    if isinstance(thing, Tensor):
        return thing.shape == shape
    if isinstance(thing, Mapping):
        return any(_holds(value, shape) for value in thing.values())
    return isinstance(thing, list | tuple) and any(_holds(value, shape) for value in thing)
