"""Guidance of a pipeline of diffusers at its scheduler: the prediction is changed before the step.

Nearly all pipelines hand their prediction to ``scheduler.step(model_output, timestep, sample)``,
after classifier-free guidance and whatever else the family does to it, and in the scheduler's own
terms. From prediction and state follow x_0 and eps, the recipes change them as in the host's own
loop (:class:`~ppap_host.sampling.evaluator.Evaluator`), and what the scheduler is given is the
prediction that stands for the changed x_0. It does the rest: its order, its noise, its memory.

What a recipe adds to the state after a step (DPS, EluCD) is added there where the scheduler keeps
nothing between its steps, and otherwise becomes a change of x_0 that moves a step of DDIM as far.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from ppap_host.backbones.backbone import Backbone, Condition, Prediction
from ppap_host.backbones.noise import CLEAN, NoiseLevel, Walk
from ppap_host.files.errors import OptionError
from ppap_host.guides.guide import Guide, Wrapped
from ppap_host.pipelines.course import Course, Habits, habits
from ppap_host.pipelines.decoding import Decoder, Layout
from ppap_host.pipelines.graphs import Reached, Recorded, bridged
from ppap_host.pipelines.hooks import original
from ppap_host.pipelines.schedules import Schedule, fixed_variance_of, schedule_of
from ppap_host.recipes.estimate import Estimate
from ppap_host.recipes.gradients import root_mean_square
from ppap_host.recipes.recipe import Recipe
from ppap_host.sampling.balance import BALANCES, Balance
from ppap_host.sampling.evaluator import Evaluator, Guidance, Health
from ppap_host.sampling.streams import ImageNoise

Size = tuple[int, int]


@dataclass(frozen=True)
class Asked:
    """One guide as it was asked for.

    Attributes:
        target: its target for pictures of so many (height, width) pixels, one row.
        name: what it is called in reports.
    """

    guide: Guide
    target: Callable[[Size], Tensor]
    recipe: Recipe
    scale: float
    name: str = ""


@dataclass(frozen=True)
class Traced:
    """What was done in one call of the scheduler's ``step``.

    Attributes:
        call: number of the pipeline's call within the block, from 0.
        step, steps: number of the step in it, from 0, and how many the scheduler's course has.
        timestep: as the pipeline gave it to the scheduler.
        log_snr: of the state.
        loss: each guide's loss of each image, by its name.
        size: root mean square of its gradient for each image, before it was cut.
        cut, skipped: for which images it was cut to the recipe's limit, or left out because it was
            not finite.
        moved: root mean square of what all of it changed in each image's predicted x_0.
    """

    call: int
    step: int
    steps: int
    timestep: float
    log_snr: float
    loss: Mapping[str, list[float]]
    size: Mapping[str, list[float]]
    cut: Mapping[str, list[bool]]
    skipped: Mapping[str, list[bool]]
    moved: list[float]


@dataclass
class Report:
    """What became of guidance in a block, over all its calls.

    Attributes:
        trace: every guided step, in order.
        calls: how often the pipeline was called.
        steps: how often its scheduler was.
        health: what went wrong without stopping.
        notes: what was found out, left out or guessed.
    """

    trace: list[Traced] = field(default_factory=list)
    calls: int = 0
    steps: int = 0
    health: Health = field(default_factory=Health)
    notes: list[str] = field(default_factory=list)

    @property
    def losses(self) -> dict[str, list[list[float]]]:
        """Each guide's loss, step by step and image by image, in the last guided call."""
        found: dict[str, list[list[float]]] = {}
        for traced in self.trace:
            if traced.call == self.trace[-1].call:
                for name, values in traced.loss.items():
                    found.setdefault(name, []).append(values)
        return found

    @property
    def cut(self) -> dict[str, int]:
        """How often each guide's gradient was cut to the recipe's limit, over images and steps."""
        return dict(self.health.limited)

    @property
    def skipped(self) -> dict[str, int]:
        """How often each guide's gradient was left out because it was not finite."""
        return dict(self.health.skipped)

    def note(self, text: str) -> None:
        """Adds a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def __str__(self) -> str:
        """In a few lines."""
        lines = [f"{len(self.trace)} of {self.steps} steps guided in {self.calls} calls."]
        for name, course in self.losses.items():
            first, last = (sum(row) / len(row) for row in (course[0], course[-1]))
            lines.append(
                f"{name}: loss {first:.4g} at the first step, {last:.4g} at the last; "
                f"cut {self.cut.get(name, 0)} times, left out {self.skipped.get(name, 0)} times."
            )
        return "\n".join([*lines, *self.notes])


class Steering:
    """What guides a pipeline: asked by the hooks of :mod:`~ppap_host.pipelines.steer` and its kin.

    Args:
        pipe: the pipeline.
        asked: the guides.
        seed: of what recipes draw, >= 0; neither the pipeline's generator nor the global one is
            touched.
        balance: how several guides make room for each other, "project" or "sum".
        frames: which frames of a video guides are shown: so many, evenly spread, or these.

    Raises:
        PpapError: the pipeline cannot be guided, or not by these recipes.
    """

    def __init__(
        self,
        pipe: Any,
        asked: Sequence[Asked],
        *,
        seed: int = 0,
        balance: str = "project",
        frames: int | Sequence[int] = 3,
    ) -> None:
        self.pipe, self.asked, self.seed = pipe, list(asked), seed
        self.balance: Balance = BALANCES[balance]
        self.decoder = Decoder(pipe, frames)
        self.report = Report()
        for each in asked:
            _check(each.recipe)
        schedule_of(scheduler_of(pipe))

    @property
    def through(self) -> bool:
        """Whether a recipe's gradient goes through the pipeline's networks."""
        return any(each.recipe.through_backbone for each in self.asked)

    def begin(self, record: Recorded | None = None) -> Run:
        """A new call of the pipeline."""
        self.report.calls += 1
        return Run(self, self.report.calls - 1, record)


class Run:
    """The guidance of one call of a pipeline, from its first step to its last."""

    def __init__(self, steering: Steering, call: int, record: Recorded | None) -> None:
        self._steering, self._number, self._record = steering, call, record
        self._parts: dict[Any, _Part] = {}
        self._last: tuple[Tensor | None, Any] = None, None

    def step(self, scheduler: Any, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The scheduler's step with guidance; to be hooked to its ``step``.

        Args:
            call: takes the step.

        Raises:
            OptionError: what the scheduler is given cannot be guided; says why.
        """
        bound = _bound(scheduler, args, kwargs)
        given = bound.arguments
        self._steering.report.steps += 1
        if self._not_yet_guided(scheduler, given):
            return call(*args, **kwargs)
        with self._own_mode():
            part = self._part(scheduler, given, _callers_frame())
            changed, shift = part.changed(given, self._record, self._last[0])
        given[part.guided] = changed
        result = call(*bound.args, **bound.kwargs)
        if shift is not None:
            result = _shifted(result, shift, everywhere=part.at_the_end)
        if self._record is not None:
            result = self._recorded(result, part.at_the_end)
        return result

    def _not_yet_guided(self, scheduler: Any, given: Mapping[str, Any]) -> bool:
        """Whether the pipeline asks its scheduler for x_0 only, before it combines predictions."""
        asks_first = type(self._steering.pipe).__name__ in _ASK_FOR_X0
        return asks_first and given.get("pred_original_sample") is None

    @contextmanager
    def _own_mode(self) -> Iterator[None]:
        """Neither the pipeline's modes nor its random numbers have a part in what guides compute."""
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            pause = torch.no_grad() if self._record is None else self._record.pause()
            stack.enter_context(pause)
            stack.enter_context(self._steering.decoder.lent())
            yield

    def _part(self, scheduler: Any, given: Mapping[str, Any], frame: FrameType | None) -> _Part:
        """What serves the states of this scheduler and shape, from their first step on."""
        sample = given["sample"]
        times = scheduler.timesteps
        key = (id(scheduler), tuple(sample.shape), sample.device)
        part = self._parts.get(key)
        if part is None or part.times is not times:
            part = _Part(self._steering, self._number, scheduler, given, frame)
            self._parts[key] = part
        return part

    def _recorded(self, result: Any, last: bool) -> Any:
        """The result of a step whose state is one that gradients begin at."""
        assert self._record is not None
        plain = _mapped(result, lambda t: t.detach() if isinstance(t, Tensor) else t)
        state = _first(plain)
        self._last = None, None
        if last:
            self._record.first = False
            return plain
        begun = self._record.next_state(state)
        self._last = begun, None
        return _with_first(plain, begun)
