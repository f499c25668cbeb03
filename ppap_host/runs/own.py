"""Models that take their own steps, such as pipelines of diffusers, as a run sees them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from PIL import Image
from torch import Tensor

from ppap_host.backbones.backbone import Backbone
from ppap_host.files import images
from ppap_host.runs.config import RunConfig
from ppap_host.sampling.evaluator import Guidance, Health
from ppap_host.sampling.loop import Event

PIPELINE = "pipeline"
"""The sampler that is the model's own."""


@dataclass
class Batch:
    """The finished images of one batch.

    Attributes:
        indices: which images they are.
        x: RGB in about [-1, 1], float32 [b, 3, h, w]; of a video its first frame.
        failed: image -> why it could not be made; its row of ``x`` means nothing.
        films: each image's frames as the model itself rounds them to 8 bits, one for a picture;
            None where that is left to the host.
        fps: of videos, frames a second.
        looked_at: of videos, the frames that guides are shown.
    """

    indices: Sequence[int]
    x: Tensor
    failed: dict[int, str] = field(default_factory=dict)
    films: list[list[Image.Image]] | None = None
    fps: float | None = None
    looked_at: Sequence[int] = (0,)

    def frames(self, rows: Sequence[int]) -> list[list[Image.Image]]:
        """The frames of these rows, 8 bits."""
        if self.films is not None:
            return [self.films[row] for row in rows]
        return [[picture] for picture in images.from_tensor(self.x[list(rows)])] if rows else []


class OwnSteps(Backbone):
    """A model that takes its own steps, made ready for one run: its levels and size are known.

    Attributes:
        steps: as its own call is told.
        cfg: as its own call is told.
        video: whether it makes videos.
    """

    steps: int
    cfg: float
    video: bool = False

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
            pictures: ``image`` and ``mask`` where they are given, as PIL pictures.

        Raises:
            PpapError: the model cannot be called so; names what it does not take.
        """
