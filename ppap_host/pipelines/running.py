"""A pipeline that is run as it is, by its own call and with its own scheduler, step by step.

What is run is a shallow copy with schedulers of its own, under the hooks of
:mod:`~ppap_host.pipelines.steer`; so it makes what diffusers makes, and a guide changes what it
changes there. The call goes on in a thread that waits after every step until it is asked on.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from diffusers import (
    DiffusionPipeline,
    ModularPipeline,
    ModularPipelineBlocks,
    SchedulerMixin,
)
from PIL import Image
from torch import Tensor, nn

from ppap_host.backbones.backbone import Condition, Prediction
from ppap_host.backbones.noise import NoiseLevel, Walk
from ppap_host.files.errors import OptionError, PpapError, SamplingError
from ppap_host.pipelines.arguments import Arguments, for_pictures
from ppap_host.pipelines.hooks import hooked
from ppap_host.pipelines.steer import steer
from ppap_host.pipelines.steering import (
    Asked,
    Opened,
    Report,
    Seen,
    Steering,
    Taken,
    check_recipe,
    scheduler_of,
)
from ppap_host.recipes.recipe import Recipe
from ppap_host.runs.config import RunConfig
from ppap_host.runs.own import Batch, OwnSteps
from ppap_host.sampling.evaluator import Guidance, Health
from ppap_host.sampling.loop import Event
from ppap_host.sampling.streams import derived, word

T = TypeVar("T")
USUAL_FPS = 16.0
"""Frames a second of a video whose pipeline says nothing of it."""


class PipelineSteps(OwnSteps):
    """A pipeline made ready for one run.

    Args:
        pipe: a pipeline of diffusers; it is not written to.
        config: the run's.
        pictures: ``image`` and ``mask`` where they are given.
        names: of the checkpoint.
        files: that the pipeline was read from.
        remarks: what had to be chosen among them.
        view: how guides see the pictures, as :class:`~ppap_host.pipelines.steering.Steering` takes
            it: ``decoder``, ``shrink``.

    Raises:
        PpapError: the pipeline cannot be called or guided so; says why.
    """

    name = "diffusers"
    clip_eps = False

    def __init__(
        self,
        pipe: Any,
        config: RunConfig,
        pictures: Mapping[str, Image.Image],
        names: Sequence[str] = (),
        files: Sequence[Path] = (),
        remarks: Sequence[str] = (),
        view: Mapping[str, Any] | None = None,
    ) -> None:
        self._view = view or {}
        self._config, self._files, self._remarks = config, files, remarks
        self.pipe = quiet(for_pictures(own_copy(pipe), config, pictures))
        self._arguments = Arguments(self.pipe, config, pictures, names)
        self.cfg = self._arguments.cfg
        self.device, self.dtype = device_of(pipe), dtype_of(pipe)
        self._opened = self._probe()
        self.video = self._opened.video
        seen = self._opened.seen
        self.state_shape, self.clip = seen.state_shape, seen.clip
        self.fixed_variance = seen.fixed_variance
        self.steps = self._arguments.steps or len(self._opened.walk)

    def _probe(self) -> Opened:
        """What the call is about to make, from its beginning up to its first step."""
        steering = Steering(self.pipe, [], **self._view)
        images = range(min(self._config.batch or 1, self._config.num))

        def step(scheduler: Any, call: Any, *args: Any, **kwargs: Any) -> Any:
            raise _Opened(steering.begin().opened(scheduler, args, kwargs))

        try:
            with _seeded(0), hooked(scheduler_of(self.pipe), "step", step):
                self._call(list(images))
        except _Opened as found:
            return found.opened
        except (PpapError, torch.OutOfMemoryError):
            raise
        # Whatever a pipeline says of arguments that it cannot be called with.
        except Exception as error:
            words = " ".join(str(error).split())[:300]
            raise OptionError(
                f"{type(self.pipe).__name__} cannot be called so: {words or type(error).__name__}",
                remedy="Change the options that it names; further arguments of its call go into "
                "pipeline={...}, on the command line --pipeline NAME=VALUE.",
            ) from error
        raise OptionError(
            f"{type(self.pipe).__name__} took no step with its scheduler.",
            remedy="Give more --steps, or a greater --strength.",
        )

    def _call(self, indices: Sequence[int]) -> Any:
        call = self._arguments.of(indices, self._seeds(indices))
        if isinstance(self.pipe, ModularPipeline):
            outputs = [each.name for each in self.pipe.blocks.outputs]
            wanted = "videos" if "videos" in outputs else "images"
            return self.pipe(**call, output_type="pt", output=wanted)
        return self.pipe(**call, output_type="pt")

    def _seeds(self, indices: Sequence[int]) -> list[int]:
        """What each image's generator is seeded with: the run's seed plus its number.

        torch's generators look at 32 bits of a seed, so larger sums are hashed.
        """
        several = isinstance(self._config.seed, tuple) and len(self._config.seed) > 1
        own = self._config.of_images("seed", indices)
        sums = [s if several else s + k for s, k in zip(own, indices, strict=True)]
        return [s if s < 1 << 32 else word(derived("pipeline", s)) for s in sums]

    def check(self, recipe: Recipe) -> None:
        """Whether a pipeline's own steps can be guided by a recipe.

        Raises:
            OptionError: they cannot.
        """
        check_recipe(recipe)

    def batch(
        self,
        indices: Sequence[int],
        guidance: Sequence[Guidance],
        health: Health,
        keep_gradients: bool = False,
    ) -> Generator[Event, None, Batch]:
        """Makes these images by one call of the pipeline."""
        seeds = self._seeds(indices)
        steering = Steering(
            self.pipe, [Asked.of(g) for g in guidance], seed=seeds[0],
            balance=self._config.balance, **self._view,
        )  # fmt: skip
        steering.report = Report(health=health)
        steering.images = seeds, [0] * len(seeds)
        steering.keep_gradients = keep_gradients
        failed: dict[int, str] = {}
        looked_at: list[Sequence[int]] = []
        unbounded: set[int] = set()

        def decoded(_: Any, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            """Pipelines cut what they return to [0, 1], infinity as well."""
            found = call(*args, **kwargs)
            if isinstance(found, Tensor):
                lost = ~found.isfinite().flatten(1).all(dim=1)
                if len(lost) != len(indices):
                    lost = lost.any().expand(len(indices))
                unbounded.update(torch.nonzero(lost).flatten().tolist())
            return found

        def run(give: Callable[[Event], None]) -> Any:
            taken = 0

            def told(seen: Seen, step: Taken) -> None:
                nonlocal taken
                bad = ~step.x_next.isfinite().flatten(1).all(dim=1)
                for row in torch.nonzero(bad).flatten().tolist():
                    failed.setdefault(row, f"the state is not finite at step {taken}")
                looked_at[:] = [seen.frames]
                unbounded.clear()  # by guides, on the way
                count = max(len(self._opened.walk), taken + 1)
                event = Event(
                    taken, count, step.x_next, step.estimate, step.x0_unguided, step.said,
                    seen.decode, dict(failed), images=tuple(indices),
                )  # fmt: skip
                taken += 1
                give(event)

            steering.watch = told
            decoder = getattr(steering.decoder.network_of(self.pipe), "decoder", None)
            with (
                steer.by(steering).hooks(),
                nullcontext() if decoder is None else hooked(decoder, "__call__", decoded),
            ):
                return self._call(indices)

        made = yield from step_by_step(run, seeds[0])
        films = as_films(made)
        if self.video and len(indices) == 1 < len(films):  # one video's frames, without a batch
            films = [torch.cat(films)]
        if len(films) != len(indices):
            raise SamplingError(
                f"A call of {type(self.pipe).__name__} for {len(indices)} pictures made "
                f"{len(films)}.",
                remedy="Call it yourself under `with ppap.steer(pipe, ...)`.",
            )
        rows = {indices[row]: f"{reason} of {self.steps}" for row, reason in failed.items()}
        for row, (k, film) in enumerate(zip(indices, films, strict=True)):
            if row in unbounded or not bool(film.isfinite().all()):
                rows.setdefault(k, "the decoded image is not finite")
        # Rounded to 8 bits as diffusers does it, so that what is written is what it would write.
        pixels = (torch.stack(films).nan_to_num(0.0).clamp(0, 1) * 255).round()
        x = 2 * (pixels / 255) - 1
        if not self.video and x.shape[1] == 1:
            return Batch(indices, x[:, 0], rows)
        looked = [min(frame, x.shape[1] - 1) for frame in looked_at[0]] if looked_at else [0]
        return Batch(indices, x.transpose(1, 2), rows, self._fps(), looked)

    def _fps(self) -> float:
        for name in ("frame_rate", "fps"):
            rate = self._arguments.value(name)
            if isinstance(rate, int | float):
                return float(rate)
        return USUAL_FPS

    def walk(self, steps: int | str) -> Walk:
        """The levels of the steps that its call takes."""
        return self._opened.walk

    def levels(self) -> tuple[NoiseLevel, ...]:
        """All levels of the training."""
        return self._opened.seen.levels()

    def predict(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Prediction:
        """Nothing.

        Raises:
            OptionError: the pipeline asks its networks itself.
        """
        return self._opened.seen.predict(x, level, condition)

    def decode(self, x0: Tensor) -> Tensor:
        """RGB in about [-1, 1], [b n, 3, H, W]: n frames of a video, one after the other."""
        return self._opened.seen.decode(x0)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the pictures that are made."""
        return self._opened.seen.image_size

    def to(self, device: torch.device, dtype: torch.dtype) -> PipelineSteps:
        """Nothing: the networks are where they were put before."""
        return self

    def remarks(self) -> Sequence[str]:
        """What had to be chosen."""
        return (*self._remarks, *self._arguments.notes)

    def files(self) -> Sequence[Path]:
        """That the pipeline was read from."""
        return self._files


class _Opened(BaseException):
    """Ends a call before its first step; no error, so that no pipeline takes it for one."""

    def __init__(self, opened: Opened) -> None:
        super().__init__()
        self.opened = opened


def own_copy(pipe: Any) -> Any:
    """A shallow copy of a pipeline, and of the pipelines within it, with schedulers of its own."""
    return _copied(pipe, {})


def _copied(pipe: Any, made: dict[int, Any]) -> Any:
    found = copy.copy(pipe)
    for name, value in list(vars(found).items()):
        if isinstance(value, DiffusionPipeline):
            vars(found)[name] = _copied(value, made)
        elif isinstance(value, SchedulerMixin):
            vars(found)[name] = made.setdefault(id(value), copy.deepcopy(value))
        elif name == "_blocks":  # of a modular pipeline; they hold no network
            vars(found)[name] = copy.deepcopy(value)
    return found


def quiet(pipe: Any) -> Any:
    """The pipeline without its own progress bars."""
    for part in (pipe, *vars(pipe).values()):
        if isinstance(part, DiffusionPipeline):
            part.set_progress_bar_config(disable=True)
        elif isinstance(part, ModularPipelineBlocks):
            _silence(part)
    return pipe


def _silence(blocks: Any) -> None:
    if hasattr(blocks, "set_progress_bar_config"):
        blocks.set_progress_bar_config(disable=True)
    for block in blocks.sub_blocks.values():
        _silence(block)


def device_of(pipe: Any) -> torch.device:
    """Where a pipeline computes."""
    return torch.device(getattr(pipe, "_execution_device", None) or "cpu")


def dtype_of(pipe: Any) -> torch.dtype:
    """The number format of a pipeline's denoising network, or of the first there is."""
    for name in ("unet", "transformer", *pipe.components):
        network = getattr(pipe, name, None)
        if isinstance(network, nn.Module) and hasattr(network, "dtype"):
            return cast(torch.dtype, network.dtype)
    return torch.float32


def as_films(made: Any) -> list[Tensor]:
    """Each image's frames, RGB in [0, 1], float32 [f, 3, h, w], from what a pipeline returns."""
    for name in ("frames", "images"):
        made = getattr(made, name, made)
    if isinstance(made, list | tuple):
        return [film for each in made for film in as_films(each[None])]
    if isinstance(made, np.ndarray):  # [..., h, w, c]
        made = torch.from_numpy(np.moveaxis(made, -1, -3))
    x = made.detach().float().cpu()
    films = x[:, None] if x.ndim == 4 else x
    return list(films[:, :, :3])


class _seeded:
    """torch's global generators, which a pipeline may draw from, have a state of its own inside."""

    def __init__(self, seed: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._own = _states()

    def __enter__(self) -> None:
        self._others = _states()
        _set_states(self._own)

    def __exit__(self, *error: object) -> None:
        self._own = _states()
        _set_states(self._others)


def _states() -> tuple[Tensor, list[Tensor]]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), cuda


def _set_states(states: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(states[0])
    if states[1]:
        torch.cuda.set_rng_state_all(states[1])


class _Left(BaseException):
    """The steps are not asked for any more; no error, so that no pipeline takes it for one."""


class _End(Generic[T]):
    """How a call ended."""

    def __init__(self, value: T | None = None, error: BaseException | None = None) -> None:
        self.value, self.error = value, error


def step_by_step(
    run: Callable[[Callable[[Event], None]], T], seed: int
) -> Generator[Event, None, T]:
    """The events that a call gives away, one at a time, while it waits; its value at the end.

    The call goes on in a thread of its own. Only one of both ever runs.

    Args:
        run: is given the function to be called with each event.
        seed: of torch's global generators, as the call sees them.
    """
    given: SimpleQueue[Event | _End[T]] = SimpleQueue()
    asked_on, left = threading.Semaphore(0), threading.Event()

    def give(event: Event) -> None:
        given.put(event)
        asked_on.acquire()
        if left.is_set():
            raise _Left

    def work() -> None:
        try:
            given.put(_End(value=run(give)))
        except BaseException as error:
            given.put(_End(error=error))

    thread, generators = threading.Thread(target=work, daemon=True), _seeded(seed)
    try:
        with generators:
            thread.start()
            found = given.get()
        while not isinstance(found, _End):
            yield found
            with generators:
                asked_on.release()
                found = given.get()
    finally:
        left.set()
        asked_on.release()
        if thread.ident is not None:
            thread.join()
    if found.error is not None:
        raise found.error
    return cast(T, found.value)
