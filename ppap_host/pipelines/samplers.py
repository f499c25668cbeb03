"""diffusers' schedulers as samplers: their own steps, on any backbone's noise levels.

A pipeline of diffusers whose schedule the scheduler takes is sampled as diffusers does it, to the
last bit where no guide moves an image: the scheduler is given the network's own output, in its own
scale, and draws from the streams of the images. Any other backbone lends its levels to schedulers
that can be given some, and the scheduler is given the noise that belongs to the guided x_0.
"""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal

import diffusers
import torch
from torch import Tensor

from ppap_host.backbones.backbone import Backbone
from ppap_host.backbones.noise import CLEAN, NoiseLevel, Walk
from ppap_host.files.errors import CheckpointError, OptionError
from ppap_host.pipelines.backbone import PipelineBackbone
from ppap_host.pipelines.course import Course, Habits, habits
from ppap_host.pipelines.schedules import (
    ALPHA_FLOOR,
    Schedule,
    VariancePreserving,
    fixed_variance_of,
    learned_variance,
    schedule_of,
)
from ppap_host.recipes.estimate import Estimate
from ppap_host.sampling.names import DIFFUSERS, Scheduled, in_python
from ppap_host.sampling.selecting import Particles
from ppap_host.sampling.solvers import Evaluate, Solver
from ppap_host.sampling.streams import Draw, ImageNoise


@dataclass(frozen=True)
class ScheduledWalk(Walk):
    """The levels that a scheduler visits, on the backbone's line.

    Attributes:
        scheduler: with its timesteps; copied for every batch.
        visited: the level of each call of its ``step``, on the backbone's line.
        known: the scheduler's habits, once they were found out.
    """

    scheduler: Any = field(repr=False)
    schedule: Schedule = field(repr=False)
    course: Course = field(repr=False)
    visited: tuple[NoiseLevel, ...] = field(repr=False)
    known: list[Habits] = field(default_factory=list, repr=False, compare=False)


@dataclass
class _Memory:
    """What goes on from step to step.

    Attributes:
        x: the state as the host has it, and ``own`` the same as the scheduler keeps it.
    """

    scheduler: Any
    x: Tensor
    own: Tensor

    def picked(self, index: Tensor) -> _Memory:
        """The memory with other rows; of the scheduler's, in what is shaped as the state."""
        scheduler = _copied(self.scheduler)
        vars(scheduler).update(_rows(vars(scheduler), index, self.own.shape))
        return _Memory(scheduler, self.x[index], self.own[index])


class FromDiffusers(Solver):
    """A scheduler of diffusers as a solver.

    Args:
        name: of the sampler.
        scheduled: which scheduler.
        backbone: that is sampled.
        options: of each of its steps, such as eta.

    Raises:
        OptionError: the scheduler cannot sample this backbone; says why.
    """

    draws_itself = True

    def __init__(self, name: str, scheduled: Scheduled, backbone: Backbone, **options: Any) -> None:
        self.name, self._options = name, options
        kind = getattr(diffusers, scheduled.kind, None)
        if kind is None:
            raise OptionError(
                f"The installed diffusers {diffusers.__version__} has no {scheduled.kind}.",
                remedy="Upgrade diffusers, or use another sampler.",
            )
        self._own = isinstance(backbone, PipelineBackbone)
        self._shift: float | None = None
        try:
            with _quietly():
                if isinstance(backbone, PipelineBackbone):
                    self._scheduler = _of_pipeline(kind, scheduled, backbone)
                    self._shift = backbone.family.schedule.shift
                else:
                    self._scheduler = _of_levels(kind, scheduled, backbone)
            schedule = schedule_of(self._scheduler, self._shift)
        except (CheckpointError, ImportError) as error:
            raise OptionError(
                f"The sampler {name!r} cannot be had here: {' '.join(str(error).split())}",
                remedy="Install what it needs, or use another sampler.",
            ) from error
        own = type(backbone.family.schedule) if isinstance(backbone, PipelineBackbone) else None
        if type(schedule) is not (own or VariancePreserving):
            raise OptionError(
                f"The sampler {name!r} ({scheduled.kind}) walks another kind of noise levels than "
                f"the backbone {backbone.name!r} has.",
                remedy="Use a sampler for this schedule, such as "
                + ("flow-euler." if own is not None and "Flow" in own.__name__ else "euler."),
            )

    @cached_property
    def noise(self) -> Literal["", "noise", "gaussian"]:  # type: ignore[override]
        """Whether its steps draw noise; found out by a rehearsal of the first."""
        scheduler = copy.deepcopy(self._scheduler)
        options = {} if self._shift is None else {"mu": self._shift}
        with _quietly():
            scheduler.set_timesteps(4, **options)
            state = torch.zeros(1, 4, 8, 8)
            given = {"timestep": scheduler.timesteps[0], "sample": state, "model_output": state}
            getattr(scheduler, "scale_model_input", torch.add)(state, scheduler.timesteps[0])
            drawn = habits(scheduler, given | self._options).draws
        return "noise" if drawn else ""

    @property
    def reads_eps(self) -> bool:  # type: ignore[override]
        """Where nothing is drawn, what a recipe keeps of the noise is kept."""
        return not self.noise

    def walk(self, backbone: Backbone, steps: int | str) -> ScheduledWalk:
        """The levels that the scheduler visits in so many steps, then the clean state.

        Raises:
            OptionError: ``steps`` is no number, or the scheduler refuses it.
        """
        scheduler = copy.deepcopy(self._scheduler)
        kind = type(scheduler).__name__
        try:
            options = {} if self._shift is None else {"mu": self._shift}
            with _quietly():
                scheduler.set_timesteps(int(steps), **options)
            schedule = schedule_of(scheduler, self._shift)
            course = Course(schedule, scheduler, fixed_variance_of(scheduler))
        except (ValueError, ArithmeticError, IndexError, RuntimeError, TypeError) as error:
            raise OptionError(
                f"The scheduler {kind} takes no {steps} steps ({' '.join(str(error).split())}).",
                remedy="Give another whole number with --steps.",
            ) from error
        there: Callable[[NoiseLevel], NoiseLevel]
        there = _itself if self._own else partial(_on_line_of, backbone)
        visited = tuple(there(level) for level in course.visited[:-1])
        levels = tuple(visited[course.calls(i)[0]] for i in range(len(course.walk)))
        return ScheduledWalk((*levels, CLEAN), scheduler, schedule, course, visited)

    def begin(self, noise: Tensor, temperature: float, walk: Walk) -> tuple[Tensor, Any]:
        """The initial state as the scheduler wants it, and as the host has it."""
        assert isinstance(walk, ScheduledWalk)
        own = temperature * noise * getattr(walk.scheduler, "init_noise_sigma", 1.0)
        scheduler = copy.deepcopy(walk.scheduler)
        x = self._as_host(own, 0, walk, scheduler)
        return x, _Memory(scheduler, x, own)

    def step(
        self, x: Tensor, i: int, walk: Walk, evaluate: Evaluate, draw: Draw, memory: Any
    ) -> tuple[Tensor, Estimate, Any]:
        """One step of the scheduler, with as many evaluations as it asks for."""
        assert isinstance(walk, ScheduledWalk)
        course = walk.course
        if memory is None:
            memory = _Memory(copy.deepcopy(walk.scheduler), x, _as_own(x, course.calls(i)[0], walk))
        scheduler = _copied(memory.scheduler)
        calls = course.calls(i)
        own = memory.own.to(x)
        if not torch.equal(memory.x.to(x), x):  # a recipe has moved the state
            own = _as_own(x, calls[0], walk)
        # What is added to the next state, from the backbone's line to the scheduler's.
        line = course.walk.levels[i + 1].alpha / walk.levels[i + 1].alpha
        based_on: Estimate | None = None
        first: Estimate | None = None
        for call in calls:
            time = scheduler.timesteps[call]
            shown = self._as_host(own, call, walk, scheduler)
            estimate = evaluate(shown, walk.visited[call])
            if estimate.next_shift is not None:
                estimate = replace(estimate, next_shift=estimate.next_shift * line)
                first = estimate
            elif first is not None and walk.known and walk.known[0].remembers:
                # What becomes a change of the prediction is a part of all calls of the step.
                estimate = replace(estimate, next_shift=first.next_shift)
            given = self._arguments(scheduler, own, time, draw)
            output, shift = self._output(estimate, call, walk, scheduler, given)
            with _quietly():
                own = scheduler.step(model_output=output, **given, return_dict=False)[0]
            if shift is not None:
                own = own + shift * walk.schedule.own_scale(course.walk.levels[i + 1])
            based_on = based_on or estimate
        assert based_on is not None
        last = i == len(walk) - 1
        x = own if last else self._as_host(own, calls[-1] + 1, walk, _copied(scheduler))
        return x, replace(based_on, next_shift=None), _Memory(scheduler, x, own)

    def _as_host(self, own: Tensor, call: int, walk: ScheduledWalk, scheduler: Any) -> Tensor:
        """The scheduler's state as the host has it at a call."""
        level, there = walk.course.visited[call], walk.visited[call]
        factor = there.alpha / level.alpha
        if isinstance(walk.schedule, VariancePreserving):
            # What networks are shown is the state at unit variance, as the scheduler rounds it.
            own = scheduler.scale_model_input(own, scheduler.timesteps[call])
        else:
            factor /= walk.schedule.own_scale(level)
        return own if factor == 1 else own * factor

    def _arguments(self, scheduler: Any, own: Tensor, time: Tensor, draw: Draw) -> dict[str, Any]:
        given: dict[str, Any] = {"timestep": time, "sample": own, **self._options}
        draws = "generator" in inspect.signature(scheduler.step).parameters
        seeded = hasattr(scheduler, "noise_sampler_seed")
        if not draws and not seeded:
            return given
        if not isinstance(draw, ImageNoise | Particles):
            raise ValueError(f"The sampler {self.name!r} draws by itself: give ImageNoise.")
        if draws:
            given["generator"] = draw.generators
        if seeded and scheduler.noise_sampler_seed is None:  # a Brownian motion for each image
            scheduler.noise_sampler_seed = [stream.initial_seed() for stream in draw.generators]
        return given

    def _output(
        self,
        estimate: Estimate,
        call: int,
        walk: ScheduledWalk,
        scheduler: Any,
        given: dict[str, Any],
    ) -> tuple[Tensor, Tensor | None]:
        """What the scheduler is given for the network's output, and what is added to its state."""
        level, x = walk.visited[call], estimate.x
        if estimate.offset is not None:  # not where a guide has moved it, but all of it
            everywhere = torch.ones(len(x), dtype=torch.bool, device=x.device)
            estimate = replace(estimate, moved=everywhere)
        output = estimate.output if self._own else None
        predicted = (x - level.alpha * estimate.x0) / level.sigma
        if output is not None:
            predicted = output[:, : x.shape[1]]
            if not learned_variance(scheduler):
                output = predicted

        def found() -> Habits:
            if not walk.known:
                walk.known.append(habits(scheduler, given | {"model_output": predicted}))
            return walk.known[0]

        if output is None:
            # The noise that belongs to the guided x_0, clipped as the backbone asks.
            change, shift = walk.course.told(call, estimate, estimate.x0, found)
            return predicted - level.alpha / level.sigma * change, shift
        raw = (x - level.sigma * walk.schedule.eps(x, predicted, level)) / level.alpha
        change, shift = walk.course.told(call, estimate, raw, found)
        if not bool(change.any()):
            return output, shift
        moves = change * walk.schedule.out_per_x0(level)
        return torch.cat([predicted + moves, output[:, x.shape[1] :]], dim=1), shift


def _rows(thing: Any, index: Tensor, shape: torch.Size) -> Any:
    """Tensors of this shape with other rows, however deep in lists and dictionaries."""
    if isinstance(thing, Tensor):
        return thing[index.to(thing.device)] if thing.shape == shape else thing
    if isinstance(thing, dict):
        return {key: _rows(value, index, shape) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return type(thing)(_rows(value, index, shape) for value in thing)
    return thing


def _copied(scheduler: Any) -> Any:
    """The scheduler as it is now; a Brownian motion is a function, and cannot be copied."""
    brownian = getattr(scheduler, "noise_sampler", None)
    return copy.deepcopy(scheduler, {id(brownian): brownian})


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what diffusers says of its own future, to those who write code with it."""
    with warnings.catch_warnings():
        for kind in (FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", kind)
        warnings.filterwarnings("ignore", "Should have (ta|tb)", UserWarning)  # torchsde, rounding
        yield


def _itself(level: NoiseLevel) -> NoiseLevel:
    return level


def _on_line_of(backbone: Backbone, level: NoiseLevel) -> NoiseLevel:
    """The backbone's level with this one's sigma / alpha, told as the nearest it knows.

    The nearest may be far: a scheduler starts from the noisiest, or between two.
    """
    ratio = level.sigma / level.alpha
    near = backbone.level_at(ratio)
    alpha = near.alpha
    if math.isclose(backbone.levels()[-1].scale, 1.0, rel_tol=1e-6):  # of unit variance
        alpha *= near.scale / math.hypot(near.alpha, near.alpha * ratio)
    return NoiseLevel(alpha, alpha * ratio, near.time)


def _as_own(x: Tensor, call: int, walk: ScheduledWalk) -> Tensor:
    """The host's state as the scheduler keeps it."""
    level, there = walk.course.visited[call], walk.visited[call]
    return x * (walk.schedule.own_scale(level) * level.alpha / there.alpha)


def _of_pipeline(kind: Any, scheduled: Scheduled, backbone: PipelineBackbone) -> Any:
    """The scheduler with the settings of the pipeline's own, as one changes it in diffusers."""
    config = backbone.family.pipe.scheduler.config
    return kind.from_config(config, **scheduled.settings)


def _of_levels(kind: Any, scheduled: Scheduled, backbone: Backbone) -> Any:
    """The scheduler with a backbone's levels, cleanest first, in variance-preserving form."""
    if "trained_betas" not in inspect.signature(kind.__init__).parameters:
        raise CheckpointError(
            f"The scheduler {kind.__name__} brings noise levels of its own.",
            remedy="Use one that takes others, such as euler.",
        )
    # A scheduler that starts from less signal than levels here have would take x_0 for another.
    kept = [max(level.alpha / level.scale, ALPHA_FLOOR) ** 2 for level in backbone.levels()]
    betas = [1 - now / before for before, now in zip([1.0, *kept], kept, strict=False)]
    taken = inspect.signature(kind.__init__).parameters
    wanted = {
        "prediction_type": "epsilon", "clip_sample": False, "thresholding": False,
        "variance_type": f"fixed_{backbone.fixed_variance}", "rescale_betas_zero_snr": False,
        "timestep_spacing": "linspace", **scheduled.settings,
    }  # fmt: skip
    return kind(
        num_train_timesteps=len(betas),
        trained_betas=betas,
        **{key: value for key, value in wanted.items() if key in taken},
    )


def _plain(name: str, backbone: Backbone) -> FromDiffusers:
    return FromDiffusers(name, DIFFUSERS[name], backbone)


def _with_eta(name: str, backbone: Backbone, eta: float | None = None) -> FromDiffusers:
    if eta is None:
        return FromDiffusers(name, DIFFUSERS[name], backbone)
    return FromDiffusers(name, DIFFUSERS[name], backbone, eta=eta)


def __getattr__(name: str) -> Any:
    """The factory of the sampler of this name (:func:`~ppap_host.sampling.names.in_python`)."""
    for sampler, scheduled in DIFFUSERS.items():
        if in_python(sampler) == name:
            step = getattr(getattr(diffusers, scheduled.kind, None), "step", None)
            eta = step is not None and "eta" in inspect.signature(step).parameters
            return partial(_with_eta if eta else _plain, sampler)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
