"""Guidance of a pipeline of diffusers at its scheduler: the prediction is changed before the step.

Nearly all pipelines hand their prediction to ``scheduler.step(model_output, timestep, sample)``,
after classifier-free guidance and whatever else the family does to it, and in the scheduler's own
terms. From prediction and state follow x_0 and eps, the recipes change them as in the host's own
loop (:class:`~ppap_host.sampling.evaluator.Evaluator`), and what the scheduler is given is the
prediction that stands for the changed x_0. It does the rest: its order, its noise, its memory.

What a recipe adds to the state after a step (DPS, EluCD) is added there where the scheduler keeps
nothing between its steps, and otherwise becomes a change of x_0 that moves a step of DDIM as far.
"""

# Long because a step of any scheduler is opened, guided and closed here, each way in one place.
from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from inspect import BoundArguments
from types import FrameType
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from ppap_host.backbones.backbone import Backbone, Condition, Prediction
from ppap_host.backbones.noise import CLEAN, NoiseLevel, Walk
from ppap_host.files.errors import GuidanceWarning, OptionError, SamplingError, foreign
from ppap_host.files.settings import Fraction, Many, Seed, read, settings
from ppap_host.guides.guide import Guide, Wrapped
from ppap_host.guides.targets import Target
from ppap_host.pipelines.course import Course, Habits, habits
from ppap_host.pipelines.decoding import Decoder, Layout
from ppap_host.pipelines.graphs import Reached, Recorded, bridged
from ppap_host.pipelines.hooks import original
from ppap_host.pipelines.schedules import Karras, Schedule, fixed_variance_of, schedule_of
from ppap_host.recipes.estimate import Estimate
from ppap_host.recipes.gradients import root_mean_square
from ppap_host.recipes.recipe import Move, Recipe
from ppap_host.sampling.balance import BALANCES, Balance
from ppap_host.sampling.evaluator import Evaluator, Guidance, Health, Said
from ppap_host.sampling.streams import ImageNoise, derived, word


def _decodes(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if not (value is None or (isinstance(value, str) and value) or hasattr(value, "config")):
        raise ValueError("an autoencoder, or its hub name or folder")
    return value


@settings
class SteeringOptions:
    """What is said of steering a pipeline besides its guidance.

    Attributes:
        seed: of what recipes draw, >= 0; neither the pipeline's generator nor the global one is
            touched.
        balance: how several guides make room for each other.
        frames: which frames of a video guides are shown: so many, evenly spread, or these.
        decoder: a smaller autoencoder by which guides see the pictures, or its hub name or folder;
            None for the pipeline's own.
        shrink: guides see pictures in 1 / shrink of their height and width, >= 1.
        start, stop: the part of the steps that a guider guides, in [0, 1].
    """

    seed: Seed = 0
    balance: Literal["project", "sum"] = "project"
    frames: Annotated[int, Field(ge=1)] | Annotated[tuple[int, ...], Many, Field(min_length=1)] = 3
    decoder: Annotated[Any, AfterValidator(_decodes)] = None
    shrink: Annotated[int, Field(ge=1, le=8)] = 1
    start: Fraction = 0.0
    stop: Fraction = 1.0


@dataclass(frozen=True)
class Asked:
    """One guide as it was asked for.

    Attributes:
        name: what it is called in reports.
        recipe: None where it is chosen with the experts, for the size of the pictures.
        choose: the guide at work on a pipeline, with its experts if it has any, on a device.
        targets: what was understood of its targets when it was last chosen.
    """

    name: str
    recipe: Recipe | None
    choose: Callable[[Backbone, torch.device], Guidance]
    targets: list[Target] = field(default_factory=list)

    @classmethod
    def of(cls, guidance: Guidance) -> Asked:
        """What is loaded already, whatever the size of the pictures."""
        return cls(guidance.name, guidance.recipe, lambda *_: guidance)


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

    @property
    def at_once(self) -> dict[str, int]:
        """Of how many images of the last batch each guide's gradient was taken at once."""
        return dict(self.health.at_once)

    def note(self, text: str) -> bool:
        """Adds a note, once; whether it is new."""
        if text in self.notes:
            return False
        self.notes.append(text)
        return True

    def warn(self, text: str) -> None:
        """Adds a note and warns of it, once."""
        if self.note(text):
            warnings.warn(text, GuidanceWarning, stacklevel=3)

    def tell(self, targets: Iterable[Target]) -> None:
        """Notes what was understood of targets, and warns of what is not sure."""
        for target in targets:
            if target.understood:
                self.note(f"Target: {target.understood}")
            for doubt in target.doubts:
                self.warn(doubt)

    def __str__(self) -> str:
        """In a few lines."""
        lines = [f"{len(self.trace)} of {self.steps} steps guided in {self.calls} calls."]
        for name, course in self.losses.items():
            first, last = (sum(row) / len(row) for row in (course[0], course[-1]))
            lines.append(
                f"{name}: loss {first:.4g} at the first step, {last:.4g} at the last; "
                f"cut {self.cut.get(name, 0)} times, left out {self.skipped.get(name, 0)} times; "
                f"{self.at_once[name]} images to a gradient."
            )
        return "\n".join([*lines, *self.notes])


class Steering:
    """What guides a pipeline: asked by the hooks of :mod:`~ppap_host.pipelines.steer` and its kin.

    Args:
        pipe: the pipeline.
        asked: the guides.
        options: of :class:`SteeringOptions`.

    Attributes:
        watch: told of every step that was taken, guided or not; None for nobody.
        images: seeds and numbers of the images that are made, for what recipes draw; None where the
            pipeline is somebody else's, whose pictures are told apart by their rows.
        keep_gradients: whether what is told of a step has the guides' gradients.

    Raises:
        PpapError: the pipeline cannot be guided, or not by these recipes.
    """

    def __init__(self, pipe: Any, asked: Sequence[Asked], **options: Any) -> None:
        chosen = read(SteeringOptions, options, "the steering of a pipeline")
        self.pipe, self.asked, self.seed = pipe, list(asked), chosen.seed
        self.balance: Balance = BALANCES[chosen.balance]
        self.decoder = Decoder(pipe, chosen.frames, chosen.decoder, chosen.shrink)
        self.report = Report()
        self.watch: Callable[[Seen, Taken], None] | None = None
        self.images: tuple[int | Sequence[int], Sequence[int]] | None = None
        self.keep_gradients = False
        for each in asked:
            if each.recipe is not None:
                check_recipe(each.recipe)
        schedule_of(scheduler_of(pipe))

    @property
    def through(self) -> bool:
        """Whether a recipe's gradient goes through the pipeline's networks."""
        return any(a.recipe is not None and a.recipe.through_backbone for a in self.asked)

    def begin(self, record: Recorded | None = None) -> Run:
        """A new call of the pipeline."""
        self.report.calls += 1
        return Run(self, self.report.calls - 1, record)


class Run:
    """The guidance of one call of a pipeline, from its first step to its last."""

    def __init__(self, steering: Steering, call: int, record: Recorded | None) -> None:
        self._steering, self._number, self._record = steering, call, record
        self._parts: dict[Any, _Part] = {}
        self._returned: Tensor | None = None
        self._before: Run | None = None

    def after(self, before: Run) -> None:
        """Goes on with what the guides of another run remember, as of another guider's steps."""
        self._before = before

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
            changed, shift = part.changed(given, self._record, self._returned)
        if changed is not given[part.guided]:
            given[part.guided] = changed
            args, kwargs = bound.args[1:], bound.kwargs
        if self._record is not None:
            result = self._recorded(call, bound, shift, part.at_the_end)
        else:
            result = call(*args, **kwargs)
            if shift is not None:
                result = _shifted(result, shift, everywhere=part.at_the_end)
        if self._steering.watch is not None:
            with self._own_mode():
                part.tell(self._steering.watch, _state(result))
        return result

    def opened(self, scheduler: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Opened:
        """What a step would be taken of: its levels and pictures, before it is.

        Raises:
            OptionError: what the scheduler is given cannot be guided; says why.
        """
        given = _bound(scheduler, args, kwargs).arguments
        with self._own_mode():
            return self._part(scheduler, given, _callers_frame()).opened(given)

    def _not_yet_guided(self, scheduler: Any, given: Mapping[str, Any]) -> bool:
        """Whether the pipeline asks its scheduler for x_0 only, before it combines predictions."""
        asks_first = type(self._steering.pipe).__name__ in _ASK_FOR_X0
        return asks_first and given.get("pred_original_sample") is None

    @contextmanager
    def _own_mode(self) -> Iterator[None]:
        """What guides compute has no part in the modes that the pipeline runs under."""
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
            before = None if self._before is None else self._before._parts.get(key)
            if before is not None:
                part.remember(before)
        return part

    def _recorded(
        self,
        call: Callable[..., Any],
        bound: BoundArguments,
        shift: Tensor | None,
        last: bool,
    ) -> Any:
        """The result of a step whose state is one that gradients begin at, unless it is the last.

        The step itself is no part of the record, nor is what the scheduler keeps of it.
        """
        assert self._record is not None
        for name, value in bound.arguments.items():
            if isinstance(value, Tensor):
                bound.arguments[name] = value.detach()
        with self._record.pause():
            result = call(*bound.args[1:], **bound.kwargs)
            if shift is not None:
                result = _shifted(result, shift, everywhere=last)
        self._record.first, self._returned = False, None
        if last:
            return result
        self._returned = self._record.next_state(_state(result))
        return _with_state(result, self._returned)


class _Part:
    """The guidance of the states of one scheduler and shape, within one call of the pipeline.

    Attributes:
        guided: the name of the scheduler's argument that is changed.
        times: the timesteps that it is for.
        at_the_end: whether the step just guided is the last of the scheduler's course.
    """

    def __init__(
        self,
        steering: Steering,
        call: int,
        scheduler: Any,
        given: Mapping[str, Any],
        frame: FrameType | None,
    ) -> None:
        self._steering, self._call, self._scheduler = steering, call, scheduler
        self.times, self.at_the_end = scheduler.timesteps, False
        self.guided = "model_output"
        self._schedule: Schedule = schedule_of(scheduler)
        if given.get("pred_original_sample") is not None:
            self.guided, self._schedule = "pred_original_sample", _CleanStates(scheduler)
        self._course = Course(self._schedule, scheduler, fixed_variance_of(scheduler))
        sample = given["sample"]
        self._layout = steering.decoder.layout(sample, frame)
        states = sample.numel() // torch.Size(self._layout.shape).numel()
        self._after = -1
        self._habits: Habits | None = None
        with _own_randomness(sample.device, steering.seed, "choice"):
            self._backbone = Seen(steering, self._schedule, self._layout, bounds(scheduler))
            frames = len(self._backbone.frames)
            guidance = [
                _at_work(a.choose(self._backbone, sample.device), frames, states)
                for a in steering.asked
            ]
        steering.report.tell(t for a in steering.asked for t in a.targets)
        seeds, images = steering.images or (steering.seed, range(states))
        noise = ImageNoise(seeds, images, self._layout.plane)
        self._evaluator = Evaluator(
            self._backbone, self._denoise, guidance, ancestral=False,
            health=steering.report.health, balance=steering.balance, stream=noise.stream,
            keep_gradients=steering.keep_gradients,
        )  # fmt: skip
        self._output: Tensor | None = None
        self._reached: Reached | None = None
        self._scale = 1.0
        self._taken: tuple[int, Estimate, Tensor, Mapping[str, Said]] | None = None

    def changed(
        self, given: Mapping[str, Any], record: Recorded | None, returned: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The guided prediction, and what is to be added to the state after the step.

        Where no guide moves anything, the prediction is the very tensor that was given.

        Args:
            given: the arguments of the step, by name.
            record: of the pipeline's gradients, if they are wanted.
            returned: the state as the step before returned it, while gradients are recorded.
        """
        output, sample = given[self.guided], given["sample"]
        index = self._course.place(self._scheduler, given["timestep"], self._after)
        self._after, self.at_the_end = index, self._course.last(index)
        level = self._course.level(index)
        step, first = self._course.step(index)
        watched = self._steering.watch is not None
        # What is to be added after a step of one that remembers becomes a part of all its calls.
        acts = first or (self._adds_after() and self._habits_of(given).remembers)
        active = self._active(level, step.index, acts)
        if not level.sigma or not (active or (watched and first)):
            return output, None
        self._scale = self._schedule.own_scale(level)
        channels = sample.shape[1]
        predicted = output if output.shape == sample.shape else output[:, :channels]
        if predicted.shape != sample.shape:
            raise OptionError(
                f"The scheduler is given a prediction of shape {list(output.shape)} for a state "
                f"of shape {list(sample.shape)}.",
                remedy="Guidance needs a prediction for every entry of the state.",
            )
        uses = sum(move.view.through_backbone for move in active)
        self._reached = None
        if uses and record is not None:
            with torch.enable_grad():
                self._reached = Reached(
                    output if predicted is output else output[:, :channels], sample, returned, uses
                )
        self._output = self._rows(predicted)
        self._check_finite(given, index)
        x = self._rows(sample) / self._scale
        with _own_randomness(sample.device, self._steering.seed, index):
            self._evaluator.begin()
            guided = self._evaluator(x, level, step, acts)
        if watched and first:
            assert self._evaluator.unguided is not None
            self._taken = index, guided, self._evaluator.unguided, dict(self._evaluator.said)
        if not active:
            return output, None
        raw = (x - level.sigma * self._denoise(x, level).eps) / level.alpha
        moves, shift = self._course.told(index, guided, raw, lambda: self._habits_of(given))
        self._trace(given, index, level, moves)
        if shift is not None:
            shift = self._layout.put_back(shift) * self._schedule.own_scale(step.then)
        if not bool(moves.any()):
            return output, shift
        change = self._layout.put_back(moves * self._schedule.out_per_x0(level))
        if predicted is not output:
            change = torch.cat([change, change.new_zeros(output[:, channels:].shape)], dim=1)
        return (output.detach().to(change.dtype) + change).to(output.dtype), shift

    def remember(self, before: _Part) -> None:
        """Goes on with what the guides of other steps of the same states have kept."""
        self._evaluator.remember(before._evaluator)

    def opened(self, given: Mapping[str, Any]) -> Opened:
        """What there is before a step is taken."""
        index = self._course.place(self._scheduler, given["timestep"], self._after)
        step, _ = self._course.step(index)
        walk = Walk(self._course.walk.levels[step.index :])
        return Opened(self._backbone, walk, self._layout.video)

    def tell(self, watch: Callable[[Seen, Taken], None], state: Tensor) -> None:
        """Tells of the step, if the call just made was its last one.

        Args:
            state: that the scheduler returned.
        """
        if self._taken is None or not self._course.ends(self._after):
            return
        index, estimate, unguided, said = self._taken
        step, _ = self._course.step(index)
        after = self._rows(state) / self._schedule.own_scale(step.then)
        self._taken = None
        watch(self._backbone, Taken(after, estimate, unguided, said))

    def _check_finite(self, given: Mapping[str, Any], index: int) -> None:
        """Tells of images that are lost already, whoever lost them.

        Raises:
            SamplingError: all of them are.
        """
        assert self._output is not None
        lost = ~self._output.isfinite().flatten(1).all(dim=1)
        if not bool(lost.any()):
            return
        rows = ", ".join(str(row) for row in torch.nonzero(lost).flatten().tolist()[:8])
        text = (
            f"What {type(self._steering.pipe).__name__} predicts is not finite at step {index} "
            f"({str(given[self.guided].dtype).removeprefix('torch.')}): image {rows} of the batch "
            "is lost."
        )
        if bool(lost.all()):
            raise SamplingError(
                text, remedy="Use float32, a smaller guidance_scale, or weights that are finite."
            )
        self._steering.report.warn(text)

    def _rows(self, state: Tensor) -> Tensor:
        """[b, c f, h, w] of a tensor of the pipeline, in float32 at least, without its graph."""
        plain = state.detach().clone()
        wide = plain if plain.dtype == torch.float64 else plain.float()
        return self._layout.laid_out(wide)

    def _adds_after(self) -> bool:
        """Whether something is to be added to the state after the step."""
        return any(move.place.once for g in self._evaluator.guidance for move in g.recipe.moves)

    def _active(self, level: NoiseLevel, step: int, first: bool) -> list[Move]:
        """The moves that are made at this level."""
        return [
            move
            for g in self._evaluator.guidance
            if g.scale and level.log_snr in g.recipe.interval and step % g.recipe.every == 0
            for move in g.recipe.moves
            if first or not move.place.once
        ]

    def _denoise(self, x: Tensor, level: NoiseLevel) -> Prediction:
        """What reached the scheduler, as a function of the state."""
        assert self._output is not None
        out = self._output
        if self._reached is not None and x.requires_grad:
            out = bridged(x, out, self._gradient)
        return Prediction(self._schedule.eps(x, out, level))

    def _gradient(self, of_output: Tensor) -> Tensor:
        assert self._reached is not None
        back = self._layout.put_back(of_output).to(self._reached.output.dtype)
        return self._rows(self._reached.gradient(back)) * self._scale

    def _habits_of(self, given: Mapping[str, Any]) -> Habits:
        if self._habits is None:
            self._habits = habits(self._scheduler, given)
        return self._habits

    def _trace(
        self, given: Mapping[str, Any], index: int, level: NoiseLevel, moves: Tensor
    ) -> None:
        said, time = self._evaluator.said, given["timestep"]
        self._steering.report.trace.append(
            Traced(
                call=self._call,
                step=index,
                steps=len(self._course.visited) - 1,
                timestep=float(time.flatten()[0] if isinstance(time, Tensor) else time),
                log_snr=level.log_snr,
                loss={name: s.loss.tolist() for name, s in said.items()},
                size={name: s.size.tolist() for name, s in said.items()},
                cut={name: s.cut.tolist() for name, s in said.items()},
                skipped={name: s.skipped.tolist() for name, s in said.items()},
                moved=root_mean_square(moves).flatten().tolist(),
            )
        )


@dataclass(frozen=True)
class Taken:
    """A step as the host's loop would have taken it.

    Attributes:
        x_next: the state that it leads to, [b, c f, h, w].
        estimate: that it was based on, at its first evaluation.
        x0_unguided: the network's own x_0 there.
        said: what each guide said, by its name.
    """

    x_next: Tensor
    estimate: Estimate
    x0_unguided: Tensor
    said: Mapping[str, Said]


@dataclass(frozen=True)
class Opened:
    """What a pipeline is about to make.

    Attributes:
        seen: its levels and pictures.
        walk: the levels of the steps that are to come.
        video: whether its states have frames.
    """

    seen: Seen
    walk: Walk
    video: bool


class Seen(Backbone):
    """A pipeline as the host's recipes and experts see it: its levels, its pictures.

    Its prediction is what reaches the scheduler, so it makes none itself.
    """

    name = "diffusers"
    clip_eps = False

    def __init__(
        self,
        steering: Steering,
        schedule: Schedule,
        layout: Layout,
        clip: tuple[float, float] | None,
    ) -> None:
        self._steering, self._schedule, self._layout, self.clip = steering, schedule, layout, clip
        self.state_shape = layout.plane
        self.fixed_variance = fixed_variance_of(schedule.scheduler)

    def walk(self, steps: int | str) -> Walk:
        """All levels of the training: experts must serve whichever of them are visited."""
        return Walk((*reversed(self.levels()), CLEAN))

    def levels(self) -> tuple[NoiseLevel, ...]:
        """All levels of the training."""
        return self._schedule.levels()

    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        """Nothing.

        Raises:
            OptionError: the pipeline asks its networks itself.
        """
        raise OptionError(
            "A steered pipeline asks its networks itself.", remedy="Call the pipeline."
        )

    def decode(self, x0: Tensor) -> Tensor:
        """RGB in about [-1, 1], [b n, 3, H, W]: n frames of a video, one after the other."""
        return self._steering.decoder.decode(x0, self._layout)

    @property
    def frames(self) -> tuple[int, ...]:
        """Which frames of a video are looked at."""
        return self._steering.decoder.looked_at(self._layout) if self._layout.video else (0,)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the pictures that are made."""
        return self._steering.decoder.image_size(self._layout)

    def to(self, device: torch.device, dtype: torch.dtype) -> Backbone:
        """Nothing: the pipeline's networks are where their owner put them."""
        return self


class _CleanStates(Karras):
    """A scheduler of EDM that is given x_0 itself."""

    def eps(self, x: Tensor, out: Tensor, level: NoiseLevel) -> Tensor:
        """(x - x_0) / sigma."""
        return (x - level.alpha * out) / level.sigma


class _OverFrames(Wrapped):
    """A guide that is shown several frames of each video: its loss is their mean.

    Args:
        frames: of each video.
    """

    def __init__(self, guide: Guide, frames: int) -> None:
        super().__init__(guide)
        self._frames = frames

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean over the frames of each video, [b]."""
        if len(target) > 1:
            target = target.repeat_interleave(self._frames, dim=0)
        return self.guide.loss(output, target).view(-1, self._frames).mean(dim=1)


def scheduler_of(pipe: Any) -> Any:
    """The scheduler that steps what becomes the picture.

    Raises:
        OptionError: the pipeline has none.
    """
    for name in SCHEDULERS:
        scheduler = getattr(pipe, name, None)
        if hasattr(scheduler, "config"):
            return scheduler
    raise OptionError(
        f"{type(pipe).__name__} has no scheduler to guide: it takes its steps by itself, or none.",
        remedy="Give a pipeline of diffusers with a scheduler, classic or modular.",
    )


def networks_of(pipe: Any) -> list[nn.Module]:
    """All networks of a pipeline."""
    return [part for part in pipe.components.values() if isinstance(part, nn.Module)]


SCHEDULERS = ("scheduler", "decoder_scheduler")
"""What pipelines call the scheduler of the picture; a prior's, an upscaler's are others."""

_ASK_FOR_X0 = ("CosmosTextToWorldPipeline", "CosmosVideoToWorldPipeline")
"""Pipelines that first ask their scheduler for x_0 of each of their predictions, combine these, and
step then, with ``pred_original_sample``."""


def bounds(scheduler: Any) -> tuple[float, float] | None:
    """What a scheduler clips x_0 to: static where it is dynamic, None where it does not."""
    config = scheduler.config
    if config.get("thresholding"):
        return (-1.0, 1.0)
    if not (config.get("clip_sample") or config.get("clip_denoised")):
        return None
    largest = float(config.get("clip_sample_range", 1.0))
    return (-largest, largest)


_HOST_STEPS = (
    "the host's steps where they know the pipeline: ppap.sample(pipe, ..., sampler='ddim'), on the "
    "command line --sampler ddim"
)


def check_recipe(recipe: Recipe) -> None:
    """Whether a recipe can be had in a pipeline that takes its steps itself.

    Raises:
        OptionError: it cannot.
    """
    if recipe.selection or recipe.start or recipe.needs or recipe.replaces:
        raise OptionError(
            f"The recipe {recipe.name!r} changes how a step draws its noise or chooses among "
            "several, and a pipeline takes its steps itself.",
            remedy=f"Use the recipe x0, or {_HOST_STEPS}.",
        )
    if recipe.recurrence > 1:
        raise OptionError(
            f"The recipe {recipe.name!r} takes every step {recipe.recurrence} times, and the loop "
            "of a pipeline takes it once.",
            remedy=f"Use {foreign(recipe.name)}:recurrence=1, or {_HOST_STEPS}.",
        )
    if any(move.place.enters for move in recipe.moves):
        raise OptionError(
            f"The recipe {recipe.name!r} moves the state before the network is asked, and the "
            "first state of a pipeline is its own affair.",
            remedy="Use the recipe elucd, or x0.",
        )


def _at_work(guidance: Guidance, frames: int, states: int) -> Guidance:
    """A guide that is shown so many frames of each of these states.

    Raises:
        OptionError: the recipe cannot be had in a pipeline, or there are other targets than states.
    """
    check_recipe(guidance.recipe)
    rows = guidance.target
    if len(rows) not in (1, states):
        raise OptionError(
            f"The guide {guidance.name!r} has {len(rows)} targets, and the pipeline makes "
            f"{states} pictures at a time.",
            remedy="Give one target, or one for each picture.",
        )
    if frames == 1:
        return guidance
    return replace(guidance, guide=_OverFrames(guidance.guide, frames))


@contextmanager
def _own_randomness(device: torch.device, seed: int, place: int | str) -> Iterator[None]:
    """What is drawn from torch's global generators comes from ``seed`` and the place in the call,
    and leaves no trace."""
    number = word(derived("steering", seed, place))
    own = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=own):
        torch.default_generator.manual_seed(number)
        if own:
            torch.cuda.default_generators[device.index or 0].manual_seed(number)
        yield


def _bound(scheduler: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> BoundArguments:
    """The arguments of a scheduler's step, by name."""
    step: Any = getattr(original(type(scheduler)), "step")  # noqa: B009
    signature = inspect.signature(step)
    bound = signature.bind(scheduler, *args, **kwargs)
    for name in ("model_output", "timestep", "sample"):
        if name not in bound.arguments:
            raise OptionError(
                f"{type(scheduler).__name__} takes its step without a {name}.",
                remedy="Use another scheduler.",
            )
    return bound


def _callers_frame() -> FrameType | None:
    """The innermost frame that is not of this package."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("ppap_host."):
        frame = frame.f_back
    return frame


def _state(result: Any) -> Tensor:
    """The state that a step returns, in a tuple or by name."""
    state: Tensor = result[0] if isinstance(result, tuple) else result.prev_sample
    return state


def _with_state(result: Any, state: Tensor) -> Any:
    if isinstance(result, tuple):
        return (state, *result[1:])
    return replace(result, prev_sample=state)


def _shifted(result: Any, shift: Tensor, everywhere: bool) -> Any:
    """The result of a step with something added to its state; at the end also to its x_0."""

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return (value.to(shift.dtype) + shift).to(value.dtype)

    if not everywhere:
        return _with_state(result, moved(_state(result)))
    if isinstance(result, tuple):
        return tuple(moved(value) for value in result)
    return replace(result, **{name: moved(value) for name, value in result.items()})
