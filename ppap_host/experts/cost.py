"""What a harvest and a tuning will cost, before they are begun.

Floating-point operations are counted by torch's own counter; time is that of a probe on the device
that will do the work, so that what the counter does not know (memory, transfers, kernels that a
format lacks) is in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ppap_host.backbones.backbone import Backbone, encode, repeat_condition
from ppap_host.experts.sets import View
from ppap_host.experts.tuning import TuningConfig, fresh_patch, see_through
from ppap_host.guides.guide import Guide

_BACKBONE_IMAGES = 4
_GUIDE_PIXELS = 2**20  # of a probe: a whole batch of small images, few of large ones
_PROBES = 3


@dataclass(frozen=True)
class Rate:
    """Of one kind of work, for one image.

    Attributes:
        flops: floating-point operations, a multiplication and an addition being two.
        seconds: on the device of the probe.
    """

    flops: float
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """Of a harvest and a tuning.

    Attributes:
        images: to harvest.
        evaluations: of the backbone for an image of the harvest.
        generating: one evaluation of the backbone.
        teaching: the teacher's output for an image.
        lessons: images that all experts are shown together.
        predictions: evaluations of the backbone for each of them.
        learning: forward and backward through the patched guide.
        trainable: numbers in all experts.
        device: of the probe.
    """

    images: int
    evaluations: int
    generating: Rate
    teaching: Rate
    lessons: int
    predictions: int
    learning: Rate
    trainable: int
    device: str

    @property
    def harvest(self) -> Rate:
        """The whole harvest, the teacher's outputs included."""
        return Rate(
            self.images * (self.evaluations * self.generating.flops + self.teaching.flops),
            self.images * (self.evaluations * self.generating.seconds + self.teaching.seconds),
        )

    @property
    def tuning(self) -> Rate:
        """The whole tuning, if it is not stopped early."""
        return Rate(
            self.lessons * (self.learning.flops + self.predictions * self.generating.flops),
            self.lessons * (self.learning.seconds + self.predictions * self.generating.seconds),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        totals = {"harvest": asdict(self.harvest), "tuning": asdict(self.tuning)}
        return asdict(self) | {"total": totals}


def measure(work: Callable[[], Any], images: int, device: torch.device) -> Rate:
    """The rate of ``work``, which is done on ``images`` images: the fastest of a few probes."""
    with FlopCounterMode(display=False) as counter:
        work()
    seconds = []
    for _ in range(_PROBES):
        _settle(device)
        began = time.perf_counter()
        work()
        _settle(device)
        seconds.append(time.perf_counter() - began)
    return Rate(counter.get_total_flops() / images, min(seconds) / images)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def estimate(
    guide: Guide,
    backbone: Backbone,
    config: TuningConfig,
    *,
    images: int,
    steps: int | str,
    cfg: bool,
    device: torch.device,
    view: View = "noised",
) -> Estimate:
    """What harvesting ``images`` images and tuning on them costs.

    Args:
        guide, backbone: on ``device``, in the precision they will run in.
        images: of the harvest.
        steps: denoising steps of an image, or a spacing.
        cfg: whether images are made under classifier-free guidance, which evaluates twice.
        device: of both.
        view: what the experts are shown; "predicted" evaluates the backbone for every image.
    """
    walk = backbone.walk(steps)
    level = walk.levels[len(walk) // 2]
    height, width = backbone.image_size
    shown = max(1, min(config.batch, _GUIDE_PIXELS // (height * width)))
    label = None if backbone.class_count is None else 0
    condition = repeat_condition(encode(backbone, [""], [label]), _BACKBONE_IMAGES)
    x = torch.randn(
        _BACKBONE_IMAGES, *backbone.state_shape, device=device, dtype=backbone.state_dtype
    )
    pixels = torch.rand(shown, 3, height, width, device=device) * 2 - 1
    patch = fresh_patch(guide, config)
    for tensor in patch.trainable():
        tensor.requires_grad_(True)

    def generate() -> None:
        with torch.no_grad():
            backbone.predict(x, level, condition)

    def teach() -> None:
        with torch.no_grad():
            guide.see(pixels)

    def learn() -> None:
        student = see_through(guide, patch, pixels)
        guide.distance(student, student.detach() + 0.1).sum().backward()

    generating = measure(generate, _BACKBONE_IMAGES, device)
    teaching = measure(teach, shown, device)
    learning = measure(learn, shown, device)
    each = guide.tuning_steps if config.steps is None else config.steps
    return Estimate(
        images=images,
        evaluations=len(walk) * (2 if cfg else 1),
        generating=generating,
        teaching=teaching,
        lessons=config.experts * each * config.batch,
        predictions=int(view == "predicted"),
        learning=learning,
        trainable=config.experts * patch.count(),
        device=str(device),
    )
