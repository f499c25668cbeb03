"""The sampling loop.

There is one loop. At every step the backbone is evaluated
(:class:`~ppap_host.sampling.evaluator.Evaluator`), each guide's gradient changes the estimate as
its recipe says, and a solver takes the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ppap_host.backbones.backbone import Backbone
from ppap_host.backbones.noise import NoiseLevel, Walk
from ppap_host.files.errors import SamplingError
from ppap_host.recipes.estimate import Estimate, Step
from ppap_host.recipes.recipe import Recipe
from ppap_host.sampling.balance import Balance, without_conflict
from ppap_host.sampling.evaluator import Evaluator, Guidance, Health, Said
from ppap_host.sampling.reading import Denoiser
from ppap_host.sampling.selecting import Particles, picked, selection_of
from ppap_host.sampling.solvers import Solver
from ppap_host.sampling.streams import Draw, ImageNoise, Stream


@dataclass(frozen=True)
class Event:
    """One step of one batch, after all its repeats and evaluations.

    Attributes:
        index, steps: 0-based number of the step, and how many there are.
        x_next: the state after the step, [b, ...].
        estimate: the guided estimate that the step was based on.
        x0_unguided: the backbone's own x_0 at the same state, [b, ...].
        said: what each guide said that was asked in this step, by its name.
        decode: from a clean state to RGB in [-1, 1].
        failed: rows whose prediction or state was not finite at this step or before, with the
            reason; their state is zero from there on.
        stage: of a cascade: "base" or "upsampler".
        images: which images of a run the rows are.
        particles: of each image; the row shown is that of the one that was worth most when
            particles were last selected, at the last step that of the best image.
    """

    index: int
    steps: int
    x_next: Tensor
    estimate: Estimate
    x0_unguided: Tensor
    said: Mapping[str, Said]
    decode: Callable[[Tensor], Tensor] = field(repr=False)
    failed: Mapping[int, str] = field(default_factory=dict)
    stage: str = "base"
    images: Sequence[int] = ()
    particles: int = 1

    def __repr__(self) -> str:
        losses = ", ".join(f"{name} {float(loss.mean()):.4g}" for name, loss in self.loss.items())
        said = f", loss: {losses}" if losses else ""
        return (
            f"<Event: step {self.index + 1} of {self.steps}, {len(self.x_next)} in a batch{said}>"
        )

    @property
    def x(self) -> Tensor:
        """The state at which the backbone was asked, [b, ...]."""
        return self.estimate.x

    @property
    def x0(self) -> Tensor:
        """The guided prediction of the clean state, [b, ...]."""
        return self.estimate.x0

    @property
    def level(self) -> NoiseLevel:
        """The noise level of :attr:`x`."""
        return self.estimate.level

    @property
    def loss(self) -> dict[str, Tensor]:
        """Each guide's loss [b] as it was first asked; of a reward, its negative value."""
        return {name: said.loss for name, said in self.said.items()}

    @property
    def gradient_size(self) -> dict[str, Tensor]:
        """Root mean square [b] of each guide's gradient, with its scale, before it was cut."""
        return {name: said.size for name, said in self.said.items()}

    @property
    def cut(self) -> dict[str, Tensor]:
        """Whether each guide's gradient was cut to the recipe's limit, [b]."""
        return {name: said.cut for name, said in self.said.items()}

    @property
    def gradient(self) -> dict[str, Tensor]:
        """Each guide's gradient [b, ...], where it is kept."""
        return {n: said.gradient for n, said in self.said.items() if said.gradient is not None}

    @torch.no_grad()
    def image(self, guided: bool = True) -> Tensor:
        """The predicted clean image, RGB in about [-1, 1], [b, 3, h, w]."""
        return self.decode(self.x0 if guided else self.x0_unguided)


def stream(
    backbone: Backbone,
    denoise: Denoiser,
    walk: Walk,
    solver: Solver,
    draw: Draw,
    guidance: Sequence[Guidance] = (),
    *,
    device: torch.device | str = "cpu",
    start: Tensor | None = None,
    health: Health | None = None,
    balance: Balance = without_conflict,
    streams: Stream | None = None,
    keep_gradients: bool = False,
    process: Recipe | None = None,
) -> Iterator[Event]:
    """The reverse process for one batch, as one event a step; it may be left at any time.

    Args:
        backbone: the model, for its clipping and decoder.
        denoise: its prediction at a state and level
            (:class:`~ppap_host.backbones.backbone.ClassifierFree`).
        walk: the noise levels.
        solver: how a step is taken.
        draw: standard normal noise for the batch; its first draw is the initial state.
        guidance: the guides, applied in this order.
        start: the initial state instead of a first draw, in the schedule's own scale.
        health: counts what went wrong without stopping.
        balance: how several guides make room for each other (:mod:`ppap_host.sampling.balance`).
        streams: noise for what recipes draw themselves, by name; None takes ``draw.stream`` where
            there is one.
        keep_gradients: whether events hold the guides' gradients.
        process: a recipe of the process itself, that asks no guide.

    A recipe with a population makes its particles here: ``draw``, ``start``, targets and conditions
    are those of the images, and so are the rows of the events.

    Yields:
        The steps in order. The last one's :attr:`Event.x_next` is the clean state in the backbone's
        ``state_dtype``: RGB in about [-1, 1] for pixel models.
    """
    if streams is None and isinstance(draw, ImageNoise):
        streams = draw.stream
    selection = selection_of(guidance)
    particles = 1 if selection is None else selection.size
    if particles > 1:
        if streams is None:
            raise ValueError("A population draws noise for its particles: give streams of it.")
        draw, streams = Particles(draw, streams, particles), Particles.streams(streams, particles)
        guidance = [
            replace(g, target=g.target.repeat_interleave(particles, 0)) if len(g.target) > 1 else g
            for g in guidance
        ]
    evaluator = Evaluator(
        backbone,
        denoise,
        guidance,
        ancestral=solver.ancestral,
        reads_eps=solver.reads_eps,
        health=Health() if health is None else health,
        balance=balance,
        stream=streams,
        keep_gradients=keep_gradients,
        process=process,
    )
    selector = evaluator.selector
    memory: Any = None
    if start is None:
        start, memory = solver.begin(draw(), backbone.start_temperature, walk)
    elif particles > 1:
        start = start.repeat_interleave(particles, dim=0)
    x = start.to(device=device, dtype=backbone.state_dtype)
    if any(g.recipe.start is not None for g in evaluator.guidance):
        draw = Replayed(draw)
        x = evaluator.started(x, lambda x: _through(solver, x, walk, evaluator, draw))
        draw.again()
    failed: dict[int, str] = {}
    for i in range(len(walk)):
        step = Step(walk, i, backbone.fixed_variance)
        x, estimate, memory = take_step(solver, x, step, evaluator, draw, memory)
        index = selector.select(estimate, step)
        if index is not None:
            x, estimate, memory = picked((x, estimate, memory), index, len(x))
            evaluator.follow(index)
            came = index.tolist()
            failed = {row: failed[k] for row, k in enumerate(came) if k in failed}
        _find_failed(x, evaluator, step, failed)
        shown = (x, estimate, evaluator.unguided, evaluator.said)
        told = failed
        if particles > 1:
            best = selector.best(x, failed, clean=i == len(walk) - 1)
            shown = picked(shown, best, len(x))
            told = {k: failed[row] for k, row in enumerate(best.tolist()) if row in failed}
        x, x_next = _zeroed(x, failed), _zeroed(shown[0], told)
        assert shown[2] is not None
        yield Event(
            i, len(walk), x_next, shown[1], shown[2], shown[3], backbone.decode, dict(told),
            particles=particles,
        )  # fmt: skip


class Replayed:
    """Noise that is the same in every run through a walk, drawn when it is first asked for."""

    def __init__(self, draw: Draw) -> None:
        self._draw, self._made, self._at = draw, list[Tensor](), 0

    def again(self) -> None:
        """The next run starts with the first draw."""
        self._at = 0

    def __call__(self) -> Tensor:
        """The next draw of this run."""
        if self._at == len(self._made):
            self._made.append(self._draw())
        self._at += 1
        return self._made[self._at - 1]


def _through(solver: Solver, x: Tensor, walk: Walk, evaluator: Evaluator, draw: Replayed) -> Tensor:
    """The clean state at the end of an unguided walk, with the way back to its noise.

    Only the states between the steps are kept; what a step needs for its gradient is made again.
    """
    memory: Any = None
    draw.again()
    for i in range(len(walk)):
        noise = draw()

        def step(x: Tensor, memory: Any, i: int = i, noise: Tensor = noise) -> Any:
            then, _, after = solver.step(x, i, walk, evaluator.reader.open, lambda: noise, memory)
            return then, after

        x, memory = checkpoint(step, x, memory, use_reentrant=False)
    return x


def _zeroed(x: Tensor, failed: Mapping[int, str]) -> Tensor:
    """The states, those of failed rows zero."""
    return x.index_fill(0, torch.tensor(list(failed), device=x.device), 0.0) if failed else x


def _find_failed(x: Tensor, evaluator: Evaluator, step: Step, failed: dict[int, str]) -> None:
    """Adds the rows that are not finite after this step."""
    bad, unsound, backbone = (
        ~x.isfinite().flatten(1).all(dim=1), evaluator.reader.unsound, evaluator.backbone
    )  # fmt: skip
    dtype = str(backbone.dtype).removeprefix("torch.")
    cfg = getattr(evaluator.reader.denoise, "scale", 1.0)
    for row in torch.nonzero(bad if unsound is None else bad | unsound).flatten().tolist():
        what = "prediction" if unsound is not None and bool(unsound[row]) else "state"
        reason = (
            f"the {what} of the backbone {backbone.name!r} is not finite at step {step.index} of "
            f"{len(step.walk)} ({dtype}, cfg {cfg:g})"
        )
        failed.setdefault(row, reason)


def sample(
    *args: Any, watch: Callable[[Event], None] | None = None, **options: Any
) -> Float[Tensor, "b ..."]:
    """The clean states at the end of a :func:`stream`, which takes the same arguments.

    Args:
        watch: told of every event.

    Raises:
        SamplingError: an image is not finite.
    """
    for event in stream(*args, **options):
        if watch is not None:
            watch(event)
    if event.failed:
        row, reason = next(iter(event.failed.items()))
        raise SamplingError(
            f"{reason[0].upper()}{reason[1:]} (image {row} of the batch).",
            remedy="Use --dtype float32, a smaller --cfg, or weights that are finite.",
        )
    return event.x_next


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
            x = step.back(then, evaluator.reader.noise("recurrence", then))
    return then, estimate, after


def _taken_once(
    solver: Solver, x: Tensor, step: Step, evaluator: Evaluator, draw: Draw, memory: Any
) -> tuple[Tensor, Estimate, Any]:
    found: list[Estimate] = []

    def evaluate(x: Tensor, level: NoiseLevel) -> Estimate:
        found.append(evaluator(x, level, step, first=not found))
        estimate = found[-1].onward()
        return estimate if solver.reads_x0 else estimate.as_noise(step.then)

    evaluator.begin()
    entered, before = evaluator.entering(x, step), memory
    x, taken, memory = solver.step(entered, step.index, step.walk, evaluate, draw, memory)
    estimate, offset = taken, found[-1].offset
    if offset is not None:
        x, estimate = x + step.then.alpha * offset, replace(taken, x0=found[0].x0, eps=found[0].eps)
        if estimate.mean is not None:
            estimate = replace(estimate, mean=estimate.mean + step.then.alpha * offset)
    noise = torch.zeros_like(x) if estimate.mean is None else x - estimate.mean
    for end in estimate.ends:
        x = end(x, estimate)
    if estimate.next_shift is not None:
        x = x + estimate.next_shift
    if evaluator.selector.corrected and evaluator.plain is not None:
        plain = evaluator.plain.onward()
        own, *_ = solver.step(
            entered, step.index, step.walk, lambda *_: plain, lambda: torch.zeros_like(x), before
        )
        own = own if offset is None else own + step.then.alpha * offset
        evaluator.selector.owe(x, noise, own, estimate)
    x = evaluator.selector.branch(x, noise, estimate, step)
    return x.detach(), estimate, memory
