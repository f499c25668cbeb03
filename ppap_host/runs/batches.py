"""The batches of a run, as events: every image that is made by settings is made here."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from ppap_host.backbones.backbone import ClassifierFree, Condition, repeat_condition
from ppap_host.files.errors import SamplingError
from ppap_host.plugins.containment import contained, warn_of
from ppap_host.runs.own import Batch, OwnSteps, made_by
from ppap_host.runs.setup import Setup, Stage
from ppap_host.sampling.balance import BALANCES
from ppap_host.sampling.evaluator import Health
from ppap_host.sampling.loop import Event, stream
from ppap_host.sampling.streams import ImageNoise

NOT_FINITE = "Use --dtype float32, a smaller --cfg or --scale, or weights that are finite."


def batch_of(
    setup: Setup,
    indices: Sequence[int],
    health: Health,
    *,
    guided: bool = True,
    keep_gradients: bool = False,
) -> Generator[Event, None, Batch]:
    """Makes these images: one event a step and stage, and the batch as the generator's value.

    Args:
        guided: whether the guides are asked; without them it is what the backbone makes by itself.
        keep_gradients: whether events hold the guides' gradients.
    """
    first = setup.stages[0]
    if isinstance(first.backbone, OwnSteps):
        guides = first.guidance(indices) if guided else []
        return (yield from first.backbone.batch(indices, guides, health, keep_gradients))
    smaller: Tensor | None = None
    failed: dict[int, str] = {}
    for number, stage in enumerate(setup.stages):
        condition, unconditional = (
            _rows(c, indices) for c in (stage.condition, stage.unconditional)
        )
        if smaller is not None:
            enlarged = stage.backbone.conditioned_on(smaller)
            condition = {**repeat_condition(condition, len(indices)), **enlarged}
            unconditional = {**repeat_condition(unconditional, len(indices)), **enlarged}
        assert stage.solver is not None  # this backbone takes the host's steps
        steps = stream(
            stage.backbone,
            ClassifierFree(
                stage.backbone,
                condition,
                unconditional,
                stage.cfg,
                stage.process is not None,
                stage.cfg_interval,
            ),
            stage.walk,
            stage.solver,
            noise_of(setup, stage, indices, number),
            stage.guidance(indices) if guided else [],
            device=setup.device,
            health=health,
            balance=BALANCES[setup.config.balance],
            keep_gradients=keep_gradients,
            process=stage.process,
        )
        for event in _watched(steps, stage, guided):
            for row, reason in event.failed.items():
                failed.setdefault(indices[row], reason)
            yield replace(event, stage=stage.name, images=tuple(indices))
        with torch.no_grad():
            smaller = stage.backbone.decode(event.x_next).float()
    assert smaller is not None
    for row in torch.nonzero(~smaller.isfinite().flatten(1).all(dim=1)).flatten().tolist():
        failed.setdefault(indices[row], "the decoded image is not finite")
    return Batch(indices, smaller, failed)


def noise_of(setup: Setup, stage: Stage, indices: Sequence[int], number: int) -> ImageNoise:
    """The noise of these images: of the run's seed, or of each image's own as its image 0."""
    seed = setup.config.seed
    if isinstance(seed, tuple):
        seeds = setup.config.of_images("seed", indices)
        # One seed for all of them is a seed like any other.
        places = list(indices) if len(seed) == 1 else [0] * len(indices)
        return ImageNoise(seeds, places, stage.backbone.state_shape, number)
    return ImageNoise(seed, indices, stage.backbone.state_shape, number)


def _rows(condition: Condition, indices: Sequence[int]) -> Condition:
    """A condition of these images: rows that are the same for all stay one."""
    return {
        key: rows if len(rows) == 1 else rows[torch.tensor(indices, device=rows.device)]
        for key, rows in condition.items()
    }


def _watched(steps: Iterator[Event], stage: Stage, guided: bool) -> Iterator[Event]:
    """The events of a stage; what plugins' recipes do to the process on the way is undone.

    Guides and backbones of plugins are watched call by call. Where something of the caller's own
    takes part, its code runs in the same step, and nobody is watched.
    """
    recipes = " or ".join(sorted({repr(g.recipe.name) for g in stage.guides}))
    who = f"The recipe {recipes}, or a gradient of what it is used with,"
    watches = guided and bool(stage.guides) and all(g.ours for g in stage.guides)
    told = False
    while True:
        with contained() if watches else nullcontext() as conduct:
            event = next(steps, None)
        if conduct and not told:
            warn_of(conduct, who)
            told = True
        if event is None:
            return
        yield event


def generate(
    setup: Setup,
    indices: Sequence[int],
    health: Health,
    watch: Callable[[Event], None] | None = None,
    *,
    guided: bool = True,
) -> Tensor:
    """The images of these indices, RGB in [-1, 1], float32 [b, 3, h, w] on the run's device.

    Args:
        watch: told of every event.
        guided: whether the guides are asked.

    Raises:
        SamplingError: one of them is not finite.
    """
    batch = made_by(batch_of(setup, indices, health, guided=guided), watch)
    for k, reason in batch.failed.items():
        raise SamplingError(f"Image {k} could not be made: {reason}.", remedy=NOT_FINITE)
    return batch.x
