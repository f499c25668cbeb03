"""What images are made for the trials, and who judges them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppap_host.experts.patches import network_hash
from ppap_host.files.errors import OptionError, unknown_name
from ppap_host.files.images import to_unit
from ppap_host.guides.guide import Guide
from ppap_plugin_bench.evaluation import Measure, frechet_distance, mean_measure
from ppap_plugin_bench.search.score import PERFECT

RESTORATIONS = ("super-resolution", "inpainting", "deblur", "motion-deblur", "colourise")
"""Guides that measure a picture; in the built-in world the picture itself is the truth."""

JUDGED = ("classifier", "depth", "segmentation", *RESTORATIONS)
"""Guides whose results the built-in world can judge by itself."""


@dataclass(frozen=True)
class Validation:
    """Targets, and the measure that a search goes by.

    Attributes:
        targets: what the guide's loss compares with, one row an image, [n, ...].
        judge: from images in [-1, 1], [n, 3, h, w], to measures by name.
        objective: the measure that decides.
        higher_is_better: of it.
        by: who measures, for people.
        own: whether the guide itself measures, and not someone who took no part.
        distance: Fréchet distance of the images to clean ones; None where there are none.
        example: a target as the user would give it.
        identity: JSON values that tell these targets from others.
    """

    targets: Tensor
    judge: Callable[[Tensor], dict[str, Measure]]
    objective: str
    higher_is_better: bool
    by: str
    own: bool
    distance: Callable[[Tensor], float | None]
    example: str
    identity: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.targets)


def of_shapes(
    guide: Guide, count: int, seed: int, folder: Path, checkpoint: str | None
) -> Validation:
    """Targets of the built-in world that no benchmark tests on, judged by networks or the truth.

    Classes, or fresh renders: see :class:`ppap_plugin_bench.benchmarks.world.ShapesWorld`. What
    restores a picture is measured against the render it was made from.

    Args:
        count: of the targets.
        seed: of the images' noise.
        folder: where target pictures are written.
        checkpoint: of the backbone.
    """
    from ppap_host.shapes.scenes import CLASS_NAMES
    from ppap_plugin_bench.benchmarks.world import (
        REFERENCES,
        VALIDATION_SEED,
        ShapesWorld,
        class_targets,
    )

    world = ShapesWorld(checkpoint)
    asked = world.assignment(guide, count, seed, folder, validation=True)
    objective, higher, by = "psnr", True, "the renders themselves"
    judge = asked.judge
    if guide.name in RESTORATIONS:
        clean = to_unit(world.real(VALIDATION_SEED, count))

        def judge(x: Tensor) -> dict[str, Measure]:
            return {"psnr": mean_measure(peak_signal_to_noise(x, clean))}
    else:
        _, objective, higher = world.objectives[guide.name]
        by = "a network that never guided"
    reference = world.features(to_unit(world.real(VALIDATION_SEED + 5, REFERENCES)))

    def distance(x: Tensor) -> float | None:
        return frechet_distance(reference, world.features(x)) if len(x) > 1 else None

    return Validation(
        targets=asked.targets,
        judge=judge,
        objective=objective,
        higher_is_better=higher,
        by=by,
        own=False,
        distance=distance,
        example=CLASS_NAMES[int(class_targets(1)[0])]
        if guide.name == "classifier"
        else str(folder / f"{VALIDATION_SEED}-000.png"),
        identity={"world": "shapes", **asked.identity},
    )


def of_targets(
    guide: Guide,
    texts: Sequence[str],
    count: int,
    size: tuple[int, int],
    judge: Guide | None = None,
    measure: str | None = None,
    higher_is_better: bool | None = None,
) -> Validation:
    """Targets that the user gives, measured by another guide or by the guide itself.

    Image k gets target k, and begins again at the first after the last.

    Args:
        texts: targets as the user gave them.
        size: (height, width) of the images in pixels.
        judge: another guide, which understands the same targets; None takes the guide itself.
        measure: of those that the judge has; None takes the first.
        higher_is_better: None for a measure that is known.

    Raises:
        TargetError: a target cannot be read.
        OptionError: the targets are not of one size, or nobody knows which way the measure goes.
        UnknownNameError: the judge has no such measure.
    """
    who = guide if judge is None else judge
    targets = _rows(guide, texts, count, size)
    wanted = targets if judge is None else _rows(judge, texts, count, size)
    device = wanted.device

    def measures(x: Tensor) -> dict[str, Measure]:
        with torch.no_grad():
            found = who.measure(who.see(x.to(device)), wanted[: len(x)])
        return {name: mean_measure([float(v) for v in values]) for name, values in found.items()}

    names = list(measures(torch.zeros(1, 3, *size)))
    objective = names[0] if measure is None else measure
    if objective not in names:
        raise unknown_name(f"measure of the guide {who.name!r}", objective, names)
    higher = higher_is_better
    if higher is None and objective in PERFECT:
        higher = PERFECT[objective] > 0
    if higher is None:
        raise OptionError(
            f"Whether more or less of {objective!r} is better is not known.",
            remedy="Add --higher-is-better or --lower-is-better.",
        )
    networks = [each.network() for each in (who, guide)]
    learned = all(any(True for _ in network.parameters()) for network in networks)
    own = who is guide or (learned and len(set(map(network_hash, networks))) == 1)
    return Validation(
        targets=targets,
        judge=measures,
        objective=objective,
        higher_is_better=higher,
        by=f"the guide {who.name!r}" + (" itself" if own else ""),
        own=own,
        distance=lambda x: None,
        example=texts[0],
        identity={"targets": list(texts)},
    )


def _rows(guide: Guide, texts: Sequence[str], count: int, size: tuple[int, int]) -> Tensor:
    """One row an image."""
    read = [guide.read_target(text, size).value for text in texts]
    if len({value.shape for value in read}) > 1:
        raise OptionError(
            f"The targets of the guide {guide.name!r} are not of one size.",
            remedy="Give targets that are, or search with one of them.",
        )
    return torch.cat([read[k % len(read)] for k in range(count)])


def peak_signal_to_noise(made: Tensor, truth: Tensor) -> Tensor:
    """PSNR of each image in dB, float64 [n], at most 100, of images in [-1, 1], [n, 3, h, w]."""
    squares = ((made.double() - truth.double()) / 2).square().mean(dim=(1, 2, 3))
    return -10 * squares.clamp_min(1e-10).log10()
