"""Guidance of any pipeline of diffusers for as long as a block lasts.

    with ppap.steer(pipe, ppap.guidance("depth", target="room.jpg")) as report:
        image = pipe("a dog").images[0]

The pipeline's call is watched, and while it runs the ``step`` of the scheduler that it has at the
moment (:mod:`~ppap_host.pipelines.steering`). Nothing is written to the pipeline, its scheduler or
its networks that is not taken back.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from accelerate.hooks import CpuOffload
from torch import Tensor

from ppap_host.files.errors import GuidanceWarning, OptionError
from ppap_host.pipelines.asking import asked
from ppap_host.pipelines.graphs import recorded
from ppap_host.pipelines.hooks import Hooks, hooked
from ppap_host.pipelines.steering import SCHEDULERS, Report, Run, Steering, networks_of


class steer:
    """Guides every call of a pipeline within a ``with`` block.

    Args:
        pipe: a pipeline of diffusers, classic or modular.
        guidance: one :func:`~ppap_host.runs.script.guidance` or several.
        seed: of what recipes draw, >= 0.
        balance: how several guides make room for each other, "project" or "sum".
        frames: which frames of a video guides are shown: so many, evenly spread, or these.
        decoder: a smaller autoencoder by which guides see the pictures, or its hub name or folder;
            None for the pipeline's own.
        shrink: guides see pictures in 1 / shrink of their height and width, >= 1.

    Raises:
        PpapError: a name is unknown, a target cannot be read, or the pipeline cannot be guided, or
            not by this recipe; says why.

    Entering gives a :class:`~ppap_host.pipelines.steering.Report`. The block may be entered again.
    """

    def __init__(
        self,
        pipe: Any,
        guidance: Any,
        *,
        seed: int = 0,
        balance: str = "project",
        frames: int | Sequence[int] = 3,
        decoder: Any = None,
        shrink: int = 1,
    ) -> None:
        self._begin(
            Steering(
                pipe, asked(guidance), seed=seed, balance=balance, frames=frames, decoder=decoder,
                shrink=shrink,
            )
        )  # fmt: skip

    @classmethod
    def by(cls, steering: Steering) -> steer:
        """A block around what is loaded already."""
        block = cls.__new__(cls)
        block._begin(steering)
        return block

    def _begin(self, steering: Steering) -> None:
        self._pipe, self._steering = steering.pipe, steering
        self._open = ExitStack()
        self._running: list[_Call] = []
        self._failed = False

    @property
    def report(self) -> Report:
        """What became of the guidance so far."""
        return self._steering.report

    def __enter__(self) -> Report:
        self._steering.report, self._failed = Report(), False
        self._open.enter_context(self.hooks())
        return self.report

    def __exit__(self, kind: Any, *error: object) -> None:
        self._open.close()
        if kind is None:
            self._tell()

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """The guidance alone, without a report of its own and its warnings."""
        with (
            hooked(self._pipe, "__call__", self._called),
            hooked(self._pipe, "__setattr__", self._set),
        ):
            yield

    def _called(self, pipe: Any, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The pipeline's call, its scheduler's steps guided."""
        through, self._failed = self._steering.through, True
        if through:
            _check_stays(pipe)
        with ExitStack() as stack:
            record = stack.enter_context(recorded(networks_of(pipe)) if through else nullcontext())
            if record is not None:
                kwargs = {k: _begun(v) if k == "latents" else v for k, v in kwargs.items()}
            running = _Call(self, self._steering.begin(record))
            stack.enter_context(running.schedulers)
            self._running.append(running)
            stack.callback(self._running.remove, running)
            for name in SCHEDULERS:
                running.schedulers.add(getattr(pipe, name, None))
            result = call(*args, **kwargs)
            self._failed = False
            return result if record is None else _let_go(result)

    def _set(self, pipe: Any, call: Callable[..., Any], name: str, value: Any) -> None:
        """An attribute of the pipeline, which may be another scheduler for the call under way."""
        call(name, value)
        if name in SCHEDULERS and self._running:
            self._running[-1].schedulers.add(value)

    def _tell(self) -> None:
        """Warns of what did not take place."""
        report = self.report
        for warning in report.health.warnings():
            warnings.warn(warning, GuidanceWarning, stacklevel=3)
        if report.trace or self._failed:
            return
        if not report.calls:
            why = "the pipeline was not called within the block"
        elif not report.steps:
            why = "the pipeline took no step with its scheduler, or all with copies of it"
        else:
            why = (
                f"none of its {report.steps} steps was within a guide's interval with a strength "
                "above zero"
            )
        text = f"No guide was asked: {why}."
        report.note(text)
        warnings.warn(text, GuidanceWarning, stacklevel=3)


class _Call:
    """One call of a pipeline under way.

    Attributes:
        schedulers: whose steps are guided until it ends.
    """

    def __init__(self, steering: steer, run: Run) -> None:
        self._steering, self._run = steering, run
        self.schedulers = Hooks("step", self._step)

    def _step(self, scheduler: Any, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # A call within this one, as for a preview, has its own guidance.
        if self._steering._running[-1] is not self:
            return call(*args, **kwargs)
        return self._run.step(scheduler, call, *args, **kwargs)


def _check_stays(pipe: Any) -> None:
    """Whether the networks are still where they computed when a gradient comes back through them.

    Raises:
        OptionError: whole networks make room for each other.
    """
    for module in networks_of(pipe):
        hook = getattr(module, "_hf_hook", None)
        if isinstance(hook, CpuOffload) and torch.device(hook.execution_device).type != "cpu":
            raise OptionError(
                "--offload model takes networks from the device as soon as another one computes, "
                "and the recipe's gradient goes back through them.",
                remedy="Use the recipe x0, or --offload sequential.",
            )


def _begun(value: Any) -> Any:
    """The initial state, where one is given, as one that gradients begin at."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_().clone()
    return value


def _let_go(result: Any) -> Any:
    """The pipeline's result without what was recorded of it."""
    if isinstance(result, Tensor):
        return result.detach() if result.requires_grad else result
    if isinstance(result, tuple | list):
        return type(result)(_let_go(x) for x in result)
    values = getattr(result, "values", None)
    for holder in (result, values, vars(result) if hasattr(result, "__dict__") else None):
        if isinstance(holder, dict):
            for key in holder:
                holder[key] = _let_go(holder[key])
    return result
