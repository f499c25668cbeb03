"""Guidance by a guider, where a modular pipeline has one.

    pipe.update_components(
        guider=ppap.guider(pipe, ppap.guidance(...), around=ClassifierFreeGuidance(4.0)))

A guider combines the predictions of a network; this one lets another guider do that, and guides the
step that follows as :mod:`~ppap_host.pipelines.steer` does. What the pipeline makes of the combined
prediction in between (Qwen-Image rescales it, Z-Image turns its sign) is done before that, as ever.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import FrameType
from typing import Any

from diffusers import ModularPipeline, guiders
from diffusers.guiders.guider_utils import BaseGuidance

from ppap_host.files.errors import OptionError
from ppap_host.files.settings import read
from ppap_host.pipelines.asking import asked, save, saved, written
from ppap_host.pipelines.hooks import hooked
from ppap_host.pipelines.steering import Report, Run, Steering, SteeringOptions, scheduler_of

_FILE = "ppap_guider.json"
_STEER = "Use `with ppap.steer(pipe, ...)`, which guides any pipeline."


_THE_OTHERS = (
    "enable", "disable", "prepare_models", "cleanup_models", "prepare_inputs",
    "prepare_inputs_from_block_state",
)  # fmt: skip
"""Methods of a guider that are those of the one that it is put around."""


def _of_the_other(name: str) -> Any:
    return property(lambda self: getattr(self._around, name), doc="As the other guider.")


class Guider(BaseGuidance):  # type: ignore[misc]
    """A guider around another one; made by :func:`guider`.

    Everything but the guidance is the other one's: how many predictions there are, whether it is
    enabled, its scale.
    """

    config_name = _FILE

    def __init__(
        self,
        pipe: Any,
        guidance: Any,
        around: BaseGuidance,
        start: float = 0.0,
        stop: float = 1.0,
        **options: Any,
    ) -> None:
        read(SteeringOptions, {"start": start, "stop": stop}, "the guider")
        self._around, self._guidance, self._options = around, guidance, options
        self._steering = Steering(pipe, asked(guidance), **options)
        if self._steering.through:
            raise OptionError(
                "The recipe takes the gradient back through the network, which a guider comes too "
                "late for.",
                remedy="Use the recipe x0, or `with ppap.steer(pipe, ...)`.",
            )
        super().__init__(start, stop)
        for method in _THE_OTHERS:
            setattr(self, method, getattr(around, method))
        self._run: Run | None = None
        self._armed, self._before = ExitStack(), -1
        self._values = written(
            guidance, start=start, stop=stop, around=_described(around), **options
        )
        self.register_to_config(**self._values)

    @property
    def around(self) -> BaseGuidance:
        """The guider that combines the predictions."""
        return self._around

    @property
    def report(self) -> Report:
        """What became of the guidance, over all calls."""
        return self._steering.report

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_diffusers") or "_around" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._around, name)

    is_conditional, num_conditions, _input_predictions = map(
        _of_the_other, ("is_conditional", "num_conditions", "_input_predictions")
    )

    @property
    def _enabled(self) -> bool:
        return bool(self._around._enabled)

    @_enabled.setter
    def _enabled(self, value: bool) -> None:
        """The other guider's own affair; what the base class sets is not listened to."""

    def new(self, **kwargs: Any) -> Guider:
        """A copy around a copy of the other guider with these values changed."""
        return Guider(
            self._steering.pipe, self._guidance, self._around.new(**kwargs), self._start,
            self._stop, **self._options,
        )  # fmt: skip

    def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        """Where in its steps the pipeline is."""
        super().set_state(step, num_inference_steps, timestep)
        self._around.set_state(step, num_inference_steps, timestep)

    def __call__(self, data: Any) -> Any:
        """The other guider's prediction; the scheduler's next step will be guided."""
        combined = self._around(data)
        self._arm(sys._getframe(1))
        return combined

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As :meth:`__call__`, of predictions by name."""
        combined = self._around.forward(*args, **kwargs)
        self._arm(sys._getframe(1))
        return combined

    def _arm(self, frame: FrameType | None) -> None:
        """Guides the next step of the pipeline's scheduler, if the guider's part has begun."""
        pipe = _pipeline(frame)
        if pipe is not None and pipe is not self._steering.pipe:
            raise OptionError(
                f"The guider was made for another pipeline than this {type(pipe).__name__}.",
                remedy="Call ppap.guider(pipe, ...) with the pipeline that is run.",
            )
        self._armed.close()
        step, steps = self._step or 0, self._num_inference_steps
        if self._run is None or step <= self._before:
            self._run = self._steering.begin()
            for other in vars(self._steering.pipe).values():
                # The other guider of a pipeline that has one for each of two networks.
                ours = isinstance(other, Guider) and other is not self and other._run is not None
                if ours and other._before == step - 1:
                    self._run.after(other._run)
        self._before = step
        if steps is not None and not int(self._start * steps) <= step < int(self._stop * steps):
            return
        scheduler = scheduler_of(self._steering.pipe)
        self._armed.enter_context(hooked(scheduler, "step", self._guided))

    def _guided(self, scheduler: Any, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._armed.close()
        if self._run is None or not self._is_part():
            return call(*args, **kwargs)
        return self._run.step(scheduler, call, *args, **kwargs)

    def _is_part(self) -> bool:
        """Whether the pipeline still has the guider."""
        return any(value is self for value in vars(self._steering.pipe).values())

    def save_pretrained(self, save_directory: str | os.PathLike[str], **_: Any) -> None:
        """Writes what it was made with to a folder, the other guider as class and configuration.

        Raises:
            OptionError: a guide or a target has no name.
            OutputError: it cannot be written.
        """
        save(self._values, save_directory, _FILE)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], pipe: Any) -> Guider:
        """The guider that was saved to a folder, for a pipeline.

        Raises:
            PpapError: nothing was, or as :func:`guider`.
        """
        values = saved(folder, _FILE)
        around = _made(values.pop("around", None), str(folder))
        return guider(pipe, values.pop("guidance"), around=around, **values)


def guider(
    pipe: Any,
    guidance: Any,
    *,
    around: Any = None,
    start: float = 0.0,
    stop: float = 1.0,
    seed: int = 0,
    balance: str = "project",
    frames: int | Sequence[int] = 3,
    decoder: Any = None,
    shrink: int = 1,
) -> Guider:
    """A guider for a modular pipeline, to be given to ``pipe.update_components(guider=...)``.

    Args:
        pipe: a modular pipeline that has a guider.
        guidance, seed, balance, frames, decoder, shrink: as for
            :class:`~ppap_host.pipelines.steer.steer`.
        around: the guider that combines the predictions; None for the one that the pipeline has.
        start, stop: the part of the steps that is guided, in [0, 1].

    Raises:
        PpapError: a name is unknown, a target cannot be read, or the pipeline cannot be guided by a
            guider, or not by this recipe; says why, and what can guide it.
    """
    name = type(pipe).__name__
    if not isinstance(pipe, ModularPipeline):
        raise OptionError(f"{name} is no modular pipeline and has no guider.", remedy=_STEER)
    parts = [part for part in pipe._component_specs if part.startswith("guider")]
    if not parts:
        raise OptionError(
            f"{name} has no guider; update_components would leave one out.", remedy=_STEER
        )
    if around is None:
        around = getattr(pipe, parts[0], None)
    if isinstance(around, Guider):
        around = around.around
    if not isinstance(around, BaseGuidance):
        raise OptionError(
            f"A {type(around).__name__} is no guider to put around.",
            remedy="Give around=ClassifierFreeGuidance(...), or another guider of diffusers.",
        )
    return Guider(
        pipe, guidance, around, start, stop, seed=seed, balance=balance, frames=frames,
        decoder=decoder, shrink=shrink,
    )  # fmt: skip


def _described(around: BaseGuidance) -> dict[str, Any]:
    values = json.loads(around.to_json_string())
    config = {name: value for name, value in values.items() if not name.startswith("_")}
    return {"class": type(around).__name__, "config": config}


def _made(described: Any, folder: str) -> BaseGuidance:
    """The guider of diffusers that a saved one was around.

    Raises:
        OptionError: there is no such guider.
    """
    kind: Any = None
    if isinstance(described, dict) and isinstance(described.get("config"), dict):
        kind = getattr(guiders, str(described.get("class")), None)
    if not (isinstance(kind, type) and issubclass(kind, BaseGuidance)):
        raise OptionError(
            f"{folder!r} names no guider of diffusers.",
            remedy="Give the folder that save_pretrained wrote, or make the guider anew.",
        )
    made: BaseGuidance = kind.from_config(described["config"])  # type: ignore[attr-defined]
    return made


def _pipeline(frame: FrameType | None) -> Any:
    """The pipeline whose blocks a frame is part of."""
    while frame is not None:
        components = frame.f_locals.get("components")
        if isinstance(components, ModularPipeline):
            return components
        frame = frame.f_back
    return None
