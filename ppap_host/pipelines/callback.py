"""Guidance by a callback, for those who know callbacks.

    image = pipe("a dog", callback_on_step_end=ppap.diffusers_callback(
        pipe, ppap.guidance("depth", target="room.jpg"))).images[0]

It is the guidance of :mod:`~ppap_host.pipelines.steer` for the calls that it is passed to. A
pipeline that knows callback objects asks this one at the beginning which tensors it wants; from
then on until the call ends the scheduler's steps are guided. A pipeline that looks at its callback
for the first time when its first step has been taken cannot be guided by one, and is refused.
"""

from __future__ import annotations

import inspect
import os
import sys
import weakref
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from ppap_host.files.errors import OptionError
from ppap_host.pipelines.asking import asked, save, saved, written
from ppap_host.pipelines.hooks import Hooks, original
from ppap_host.pipelines.steering import Report, Run, Steering, scheduler_of

_FILE = "ppap_callback.json"
_STEER = "Use `with ppap.steer(pipe, ...)`, which guides any pipeline."


class _Lasting(str):
    """The name of a tensor, which a call of a pipeline holds until it ends."""

    __slots__ = ("__weakref__",)


class StepGuidance(PipelineCallback):  # type: ignore[misc]
    """A ``callback_on_step_end``; made by :func:`diffusers_callback`.

    It goes into a :class:`diffusers.callbacks.MultiPipelineCallbacks` with others, and serves more
    than once.
    """

    config_name = _FILE

    def __init__(self, pipe: Any, guidance: Any, **options: Any) -> None:
        self._values = written(guidance, **options)
        self._steering = Steering(pipe, asked(guidance), **options)
        if self._steering.through:
            raise OptionError(
                "The recipe takes the gradient back through the network, which a callback comes "
                "too late for.",
                remedy="Use the recipe x0, or `with ppap.steer(pipe, ...)`.",
            )
        _check(pipe)
        self._runs: dict[int, _Guided] = {}
        self.register_to_config(**self._values)

    @property
    def report(self) -> Report:
        """What became of the guidance, over all calls."""
        return self._steering.report

    @property
    def tensor_inputs(self) -> list[str]:
        """Any tensor that the pipeline offers: none is needed. The call that asks is guided."""
        frame = _call(sys._getframe(1))
        if frame is None:
            return []
        pipe = frame.f_locals["self"]
        self._check_part(pipe)
        offered = list(getattr(pipe, "_callback_tensor_inputs", ()))
        if not offered:
            raise OptionError(
                f"{type(pipe).__name__} offers its callback no tensor, and so cannot say when its "
                "call ends.",
                remedy=_STEER,
            )
        guided = self._runs[id(frame)] = _Guided(self, id(frame), self._steering.begin())
        guided.schedulers.add(scheduler_of(pipe))
        lasting = _Lasting(offered[0])
        weakref.finalize(lasting, self._end, guided)
        return [lasting]

    def callback_fn(
        self, pipeline: Any, step_index: int, timesteps: Any, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """The same tensors: what there was to do was done before the step.

        Raises:
            OptionError: the call was not known before its first step.
        """
        frame = _call(sys._getframe(1))
        guided = None if frame is None else self._runs.get(id(frame))
        if guided is None:
            raise OptionError(
                f"{type(pipeline).__name__} looked at its callback only after its first step.",
                remedy=_STEER,
            )
        guided.schedulers.add(scheduler_of(pipeline))
        return callback_kwargs

    def _end(self, guided: _Guided) -> None:
        guided.schedulers.close()
        if self._runs.get(guided.frame) is guided:
            del self._runs[guided.frame]

    def _check_part(self, pipe: Any) -> None:
        """Whether a pipeline that the callback was passed to makes the pictures it was made for."""
        own = self._steering.pipe
        if pipe is own or any(part is pipe for part in vars(own).values()):
            return
        decoders = [self._steering.decoder.network_of(p) for p in (pipe, own)]
        if decoders[0] is None or decoders[0] is not decoders[1]:
            raise OptionError(
                f"The callback was made for another pipeline than this {type(pipe).__name__}.",
                remedy="Call diffusers_callback(pipe, ...) with the pipeline that is run.",
            )

    def save_pretrained(self, save_directory: str | os.PathLike[str], **_: Any) -> None:
        """Writes what it was made with to a folder.

        Raises:
            OptionError: a guide or a target has no name.
            OutputError: it cannot be written.
        """
        save(self._values, save_directory, _FILE)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], pipe: Any) -> StepGuidance:
        """The callback that was saved to a folder, for a pipeline.

        Raises:
            PpapError: nothing was, or as :func:`diffusers_callback`.
        """
        values = saved(folder, _FILE)
        return cls(pipe, values.pop("guidance"), **values)


class _Guided:
    """One call of a pipeline that was given the callback.

    Attributes:
        frame: the identity of the call's frame, which lasts as long as this.
        schedulers: whose steps are seen until the call ends.
    """

    def __init__(self, callback: StepGuidance, frame: int, run: Run) -> None:
        self._callback, self.frame, self._run = callback, frame, run
        self.schedulers = Hooks("step", self._step)

    def _step(self, scheduler: Any, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The scheduler's step, guided if it is taken in this very call."""
        frame = _call(sys._getframe(1))
        if frame is None or id(frame) != self.frame or not _has(frame, self._callback):
            return call(*args, **kwargs)
        return self._run.step(scheduler, call, *args, **kwargs)


def diffusers_callback(
    pipe: Any,
    guidance: Any,
    *,
    seed: int = 0,
    balance: str = "project",
    frames: int | Sequence[int] = 3,
    decoder: Any = None,
    shrink: int = 1,
) -> StepGuidance:
    """A ``callback_on_step_end`` that guides the calls it is passed to.

    Args:
        pipe: a pipeline of diffusers that knows callback objects.
        guidance, seed, balance, frames, decoder, shrink: as for
            :class:`~ppap_host.pipelines.steer.steer`.

    Raises:
        PpapError: a name is unknown, a target cannot be read, or the pipeline cannot be guided by a
            callback, or not by this recipe; says why, and what can guide it.
    """
    return StepGuidance(
        pipe, guidance, seed=seed, balance=balance, frames=frames, decoder=decoder, shrink=shrink
    )


def _check(pipe: Any) -> None:
    """Whether a pipeline looks at its callback before its first step.

    Raises:
        OptionError: it does not, or takes none.
    """
    name = type(pipe).__name__
    calls = inspect.signature(type(pipe).__call__).parameters
    if "callback_on_step_end" not in calls:
        raise OptionError(f"{name} has no callback_on_step_end.", remedy=_STEER)
    parts = [pipe, *(p for p in vars(pipe).values() if isinstance(p, DiffusionPipeline))]
    if not any(_looks_early(type(part)) for part in parts):
        raise OptionError(
            f"{name} does not look at its callback before its first step has been taken, so that "
            "step could not be guided.",
            remedy=_STEER,
        )


def _looks_early(kind: type) -> bool:
    """Whether a pipeline's call asks its callback for its tensors, as it does at the beginning."""
    for each in original(kind).__mro__:
        code = getattr(inspect.unwrap(vars(each).get("__call__", None)), "__code__", None)
        if code is not None and "tensor_inputs" in code.co_names:
            return True
    return False


def _call(frame: FrameType | None) -> FrameType | None:
    """The innermost call of a pipeline that a frame is part of."""
    while frame is not None:
        called = frame.f_locals.get("self") if frame.f_code.co_name == "__call__" else None
        if isinstance(called, DiffusionPipeline):
            return frame
        frame = frame.f_back
    return None


def _has(frame: FrameType, callback: StepGuidance) -> bool:
    """Whether a call of a pipeline was given this callback, alone or among others."""
    given = frame.f_locals.get("callback_on_step_end")
    if isinstance(given, MultiPipelineCallbacks):
        return any(each is callback for each in given.callbacks)
    return given is callback
