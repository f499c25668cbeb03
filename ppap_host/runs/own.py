"""Models that take their own steps, such as pipelines of diffusers, as a run sees them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor

from ppap_host.backbones.backbone import Backbone
from ppap_host.files.errors import OptionError
from ppap_host.guides.targets import Given, Reading, check_same_shape, known_by
from ppap_host.recipes.recipe import Recipe
from ppap_host.runs.config import RunConfig, called
from ppap_host.sampling.evaluator import Guidance, Health
from ppap_host.sampling.loop import Event
from ppap_host.sampling.names import PIPELINE


@dataclass
class Batch:
    """The finished images of one batch.

    Attributes:
        indices: which images they are.
        x: what was made, as :meth:`Backbone.decode` gives it, float32 [b, ...]; RGB videos of a
            model whose guides are shown single frames are [b, 3, f, h, w].
        failed: image -> why it could not be made; its row of ``x`` means nothing.
        fps: frames a second of such videos, None for all else.
        looked_at: the frames of them that guides are shown.
    """

    indices: Sequence[int]
    x: Tensor
    failed: dict[int, str] = field(default_factory=dict)
    fps: float | None = None
    looked_at: Sequence[int] = ()


def made_by(
    steps: Generator[Event, None, Batch], watch: Callable[[Event], None] | None = None
) -> Batch:
    """The batch that a stream of events ends with.

    Args:
        watch: told of every event.
    """
    while True:
        try:
            event = next(steps)
        except StopIteration as end:
            batch: Batch = end.value
            return batch
        if watch is not None:
            watch(event)


class OwnSteps(Backbone):
    """A model that takes its own steps, made ready for one run: its levels and size are known.

    Attributes:
        steps: as its own call is told.
        cfg: as its own call is told.
    """

    steps: int
    cfg: float

    @abstractmethod
    def check(self, recipe: Recipe) -> None:
        """Whether its steps can be guided by a recipe.

        Raises:
            OptionError: they cannot; says why, and what can be done.
        """

    @abstractmethod
    def batch(
        self,
        indices: Sequence[int],
        guidance: Sequence[Guidance],
        health: Health,
        keep_gradients: bool = False,
    ) -> Generator[Event, None, Batch]:
        """Makes these images: one event a step, and the batch as the generator's value."""


@runtime_checkable
class TakesOwnSteps(Protocol):
    """A backbone that can be run by its own steps instead of the host's."""

    def own_steps(self, config: RunConfig, pictures: Mapping[str, Any]) -> OwnSteps:
        """Made ready for a run.

        Args:
            config: the run's; ``cfg``, ``steps``, ``prompt`` and so on.
            pictures: ``image`` and ``mask`` where they are given, and ``pipeline.NAME`` for each
                argument of the call that names one, as PIL pictures.

        Raises:
            PpapError: the model cannot be called so; names what it does not take.
        """


def itself(
    backbone: Backbone,
    config: RunConfig,
    moved: Mapping[str, str] | None,
    place: tuple[torch.device, torch.dtype],
    inputs: dict[str, Reading],
) -> OwnSteps | None:
    """The backbone made ready to take its own steps, None where it takes the host's.

    Args:
        moved: of a run that is repeated, its files: path as given -> path now.
        place: where one that was named is put, and its number format.
        inputs: gets the pictures that it starts from.

    Raises:
        PpapError: an option that is given is not for such a backbone, or cannot be had; says why.
    """
    if not isinstance(backbone, TakesOwnSteps) or config.sampler not in (None, PIPELINE):
        _refuse_of_pipelines(backbone, config)
        return None
    if isinstance(config.backbone, str):
        backbone.to(*place)
    pictures: dict[str, Image.Image] = {}
    if config.image is not None:
        photo = Given.of(config.image, ("photo",), moved).photo()
        inputs["image"], pictures["image"] = photo, photo.image
        if config.mask is not None:
            size = (photo.image.height, photo.image.width)
            mask = Given.of(config.mask, ("mask",), moved).mask(size)
            check_same_shape(photo, mask)
            holes = 255 * (1 - known_by(mask)[0, 0])
            inputs["mask"] = mask
            pictures["mask"] = Image.fromarray(holes.to(torch.uint8).numpy())
    for name, value in config.pipeline.items():
        if "image" in name and isinstance(value, str | Image.Image):
            photo = Given.of(value, ("photo",), moved).photo()
            inputs[name], pictures[f"pipeline.{name}"] = photo, photo.image
    return backbone.own_steps(config, pictures)


def _refuse_of_pipelines(backbone: Backbone, config: RunConfig) -> None:
    """Raises OptionError for what only the own steps of a pipeline can be told."""
    own = isinstance(backbone, TakesOwnSteps)
    remedy = "Leave out --sampler." if own else "Leave it out, or choose the backbone 'diffusers'."
    for name in ("strength", "height", "width", "guidance_scale", "pipeline"):
        if getattr(config, name) not in (None, {}):
            raise OptionError(
                f"--{name.replace('_', '-')} belongs to pipelines of diffusers that take their own "
                f"steps, not to {called(backbone)!r} with the host's samplers.",
                remedy=remedy,
            )
    if config.sampler == PIPELINE:
        raise OptionError(
            f"The backbone {called(backbone)!r} has no sampler of its own.",
            remedy="Leave out --sampler.",
        )
    if config.image is not None and config.mask is None:
        raise OptionError(
            "--image alone is where a pipeline of diffusers starts from, by its own steps.",
            remedy=f"Add --mask, white where the picture is to be made anew. Or: {remedy}",
        )
    if config.negative_prompt and not config.conditional:
        raise OptionError(
            "--negative-prompt says what --prompt is set off against, and there is no prompt.",
            remedy="Add --prompt, or leave it out.",
        )
