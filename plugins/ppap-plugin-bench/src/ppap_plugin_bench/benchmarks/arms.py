"""Arms of a benchmark, and the runner that gives each its strength and judges what it makes.

Every arm gets the same targets, the same noise, and the same small search for its strength on other
targets and other noise. Nothing here knows a world: what is asked for and who judges it comes as a
:class:`Task`.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from ppap_host.backbones.backbone import Backbone, ClassifierFree, Prediction
from ppap_host.backbones.noise import NoiseLevel
from ppap_host.experts.patches import network_hash
from ppap_host.experts.sets import ExpertSet, WithExperts
from ppap_host.files.hashes import file_hashes, package_versions
from ppap_host.files.images import to_pixels, to_unit
from ppap_host.files.settings import Batch, Fraction, Steps, settings
from ppap_host.guides.guide import Guide
from ppap_host.plugins.loading import load_sampler
from ppap_host.plugins.registry import registry
from ppap_host.recipes.recipe import Recipe
from ppap_host.sampling.evaluator import Guidance, Health
from ppap_host.sampling.loop import Event, sample
from ppap_host.sampling.reading import Denoiser
from ppap_host.sampling.streams import ImageNoise
from ppap_plugin_bench.benchmarks.cells import Cell, Cells
from ppap_plugin_bench.evaluation import (
    Measure,
    Search,
    Trial,
    frechet_distance,
    precision_and_recall,
    search_strength,
)

Watch = Callable[[str, int, int], None]
"""Told of progress: (what is being done, done so far, in all)."""

NEIGHBOURS = 3
"""k of precision and recall, as in the paper."""


@dataclass(frozen=True)
class Arm:
    """One method.

    Attributes:
        name: short, for files and options.
        label: for people.
        recipe: how the guide steers; None leaves the images unguided.
        experts: makes or loads the arm's expert set; None for the plain network.
    """

    name: str
    label: str
    recipe: Recipe | None = None
    experts: Callable[[], ExpertSet] | None = None


@dataclass(frozen=True)
class Assignment:
    """Which images are to be made, and how they are judged.

    Attributes:
        targets: what the guide's loss compares with, one row an image, [n, ...].
        seed: of the images' noise; image k depends on it and on k alone.
        judge: from images in [-1, 1], [n, 3, h, w], to measures by name.
        identity: JSON values that tell these targets from others.
        captions: what the judge makes of each image, in a word or two.
    """

    targets: Tensor
    seed: int
    judge: Callable[[Tensor], dict[str, Measure]]
    identity: Mapping[str, Any]
    captions: Callable[[Tensor], list[str]] = lambda images: [""] * len(images)

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Task:
    """What all arms of a guide are asked to do.

    Attributes:
        name: of the guide.
        title: for people.
        test, validation: where arms are judged, and where they choose their strength.
        objective: the measure that the search looks at, and the first in tables.
        higher_is_better: of the objective.
        floors: measures of the targets themselves: what no arm can be expected to surpass.
        pictures: rows of a contact sheet to show above the arms' images, one picture a target.
    """

    name: str
    title: str
    guide: Guide
    test: Assignment
    validation: Assignment
    objective: str
    higher_is_better: bool
    floors: Mapping[str, Measure] = field(default_factory=dict)
    pictures: Sequence[tuple[str, Sequence[tuple[str, Image]]]] = ()


@dataclass
class ArmResult:
    """What came of an arm.

    Attributes:
        scale: the strength that was chosen, None without guidance.
        trials: all strengths that were tried, on the validation set.
        measures: on the test set: the judge's, ``frechet``, ``precision`` and ``recall``, and the
            quality of the images.
        seconds_per_image: median over batches, guidance included.
        experts: how many experts it has, 0 for a plain network.
        trainable: numbers that were trained for it, all experts together.
        share: those of one expert as a share of the network's parameters.
        skipped: image-steps without guidance because a gradient was not finite.
        images: uint8 [n, 3, h, w].
        captions: the judge's word on each image.
    """

    name: str
    label: str
    recipe: str | None
    scale: float | None
    trials: list[Trial]
    measures: dict[str, Measure]
    seconds_per_image: float
    experts: int
    trainable: int
    share: float
    skipped: int
    images: Tensor
    captions: list[str]


@settings
class Sampling:
    """How images are made.

    Attributes:
        steps: a count or a spacing.
        sampler: a name of ``ppap.list_samplers()``.
        batch: images at a time; the outcome does not depend on it but for rounding.
        eta: of DDIM.
    """

    steps: Steps = 25
    sampler: str = "ddim"
    batch: Batch = 16
    eta: Fraction = 0.0


def tensor_hash(*tensors: Tensor) -> str:
    """SHA-256 of tensors' types, shapes and values, hexadecimal."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        values = tensor.detach().cpu().contiguous().flatten()
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def experts_hash(experts: ExpertSet) -> str:
    """SHA-256 of what an expert set does: its ranges and its patches."""
    digest = hashlib.sha256(repr(experts.ranges).encode())
    for patch in experts.patches:
        digest.update(repr(patch.scaling).encode())
        for name, pair in sorted(patch.low_rank.items()):
            digest.update(f"{name} {tensor_hash(*pair)} ".encode())
        for name, value in sorted(patch.direct.items()):
            digest.update(f"{name} {tensor_hash(value)} ".encode())
    return digest.hexdigest()


class Bench:
    """Runs arms on tasks, cell by cell.

    Args:
        backbone: the diffusion model, on the CPU; it is not given any condition.
        features: a judge's features [n, d] of images in [-1, 1].
        reference: features of real images, for distances of image sets.
        search: for every arm's strength.
        watch: told of progress.
        quality: measures of the images themselves, whatever they were asked to be.
    """

    def __init__(
        self,
        backbone: Backbone,
        sampling: Sampling,
        search: Search,
        features: Callable[[Tensor], Tensor],
        reference: Tensor,
        cells: Cells,
        watch: Watch,
        quality: Callable[[Tensor], Mapping[str, Measure]] = lambda images: {},
    ) -> None:
        self.backbone, self.sampling, self.search = backbone, sampling, search
        self.quality = quality
        self.features, self.reference = features, reference
        self.cells, self.watch = cells, watch
        versions = package_versions()
        self._identity = {
            "backbone": backbone.name,
            "backbone_files": file_hashes(backbone.files(), backbone.name),
            "steps": sampling.steps,
            "sampler": sampling.sampler,
            "versions": {name: versions[name] for name in ("ppap-host", "torch")},
        }

    def run(self, task: Task, arm: Arm) -> ArmResult:
        """Chooses the arm's strength on the validation set, then judges it on the test set."""
        if arm.recipe is None:
            return self._judged(task, arm, None, [], (), (0, 0, 0.0))
        plain, experts = task.guide, None if arm.experts is None else arm.experts()
        guide = plain if experts is None else WithExperts(plain, experts)
        recipe = arm.recipe
        who = {
            "guide": plain.name,
            "network": network_hash(plain.network()),
            "experts": None if experts is None else experts_hash(experts),
            "recipe": repr(recipe),
        }

        def attempt(scale: float) -> Trial:
            what = f"{task.name}, {arm.label}: trying strength {scale:.3g}"
            name = f"{task.name}-{arm.name}-trial-{scale:.6g}"
            guided = [(Guidance(guide, task.validation.targets, recipe, scale), who)]
            cell = self.generate(name, what, task.validation, guided)
            images = to_unit(cell.tensors["images"])
            score = task.validation.judge(images)[task.objective].value
            return Trial(scale, score, tie=frechet_distance(self.reference, self.features(images)))

        start = plain.usual_scale(recipe.name)
        best, trials = search_strength(
            attempt, start, self.search, higher_is_better=task.higher_is_better
        )
        guided = [(Guidance(guide, task.test.targets, recipe, best.scale), who)]
        return self._judged(task, arm, best.scale, trials, guided, _cost(plain, experts))

    def _judged(
        self,
        task: Task,
        arm: Arm,
        scale: float | None,
        trials: list[Trial],
        guided: Sequence[tuple[Guidance, Mapping[str, Any]]],
        cost: tuple[int, int, float],
    ) -> ArmResult:
        what = f"{task.name}, {arm.label}: images"
        cell = self.generate(f"{task.name}-{arm.name}", what, task.test, guided)
        pixels = cell.tensors["images"]
        images = to_unit(pixels)
        return ArmResult(
            name=arm.name,
            label=arm.label,
            recipe=None if arm.recipe is None else arm.recipe.name,
            scale=scale,
            trials=trials,
            measures=task.test.judge(images) | self.distances(images),
            seconds_per_image=cell.values["seconds_per_image"],
            experts=cost[0],
            trainable=cost[1],
            share=cost[2],
            skipped=cell.values["skipped"],
            images=pixels,
            captions=task.test.captions(images),
        )

    def distances(self, images: Tensor) -> dict[str, Measure]:
        """Frechet distance, precision and recall of images against the reference; quality."""
        made = self.features(images)
        found = {"frechet": Measure(frechet_distance(self.reference, made))}
        precision = recall = math.nan
        # Sets of one size, as in the paper: few points with wide balls would cover everything.
        size = min(len(made), len(self.reference))
        if size > NEIGHBOURS:
            precision, recall = precision_and_recall(self.reference[:size], made[:size], NEIGHBOURS)
        found |= {"precision": Measure(precision), "recall": Measure(recall)}
        return found | dict(self.quality(images))

    def generate(
        self,
        name: str,
        what: str,
        assignment: Assignment,
        guided: Sequence[tuple[Guidance, Mapping[str, Any]]],
    ) -> Cell:
        """The cell of the images of an assignment.

        Args:
            guided: each guidance, with targets for all images, and what tells it from others.

        Returns:
            ``images`` (uint8) and the values ``seconds_per_image`` and ``skipped``.
        """
        settings = {
            **self._identity,
            "assignment": dict(assignment.identity),
            "count": len(assignment),
            "seed": assignment.seed,
            "guidance": [
                {**who, "scale": g.scale, "targets": tensor_hash(g.target)} for g, who in guided
            ],
        }
        return self.cells.get(
            name, settings, lambda: self._sample(what, assignment, [g for g, _ in guided])
        )

    def _sample(self, what: str, assignment: Assignment, guided: Sequence[Guidance]) -> Cell:
        return make_images(self.backbone, self.sampling, what, assignment, guided, self.watch)


class Counted:
    """A denoiser that counts how often it is asked for an image, whatever the batch.

    Args:
        images: in the batch; a population is asked for each of its particles.

    Attributes:
        evaluations: all of them.
        differentiated: those that a gradient is taken through.
    """

    def __init__(self, denoise: Denoiser, images: int) -> None:
        self.denoise, self.images = denoise, images
        self.evaluations = self.differentiated = 0

    def __call__(self, x: Tensor, level: NoiseLevel) -> Prediction:
        """The prediction."""
        rows = len(x) // self.images
        self.evaluations += rows
        self.differentiated += rows * x.requires_grad
        return self.denoise(x, level)


def make_images(
    backbone: Backbone,
    sampling: Sampling,
    what: str,
    assignment: Assignment,
    guided: Sequence[Guidance],
    watch: Watch,
    *,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> Cell:
    """Makes the images of an assignment.

    Args:
        what: is being done, for ``watch``.
        guided: each guidance, with targets for all images on ``device``.
        clock: in seconds.

    Returns:
        ``images`` (uint8), and the values ``seconds_per_image`` (median over batches), ``skipped``
        (image-steps without guidance because a gradient was not finite), and for each image
        ``evaluations`` of the backbone and how many of them were ``differentiated``.
    """
    count = len(assignment)
    solver = load_sampler(registry(), sampling.sampler, backbone, sampling.eta)
    walk = solver.walk(backbone, sampling.steps)
    empty = {key: value.to(device) for key, value in backbone.encode_prompts([""]).items()}
    health, done, seconds = Health(), [], []
    watch(what, 0, count * len(walk))
    for first in range(0, count, sampling.batch):
        rows = range(first, min(first + sampling.batch, count))
        denoise = Counted(ClassifierFree(backbone, empty, empty), len(rows))

        def step(report: Event, rows: range = rows) -> None:
            reached = rows.start * report.steps + len(rows) * (report.index + 1)
            watch(what, reached, count * report.steps)

        began = clock()
        x = sample(
            backbone,
            denoise,
            walk,
            solver,
            ImageNoise(assignment.seed, rows, backbone.state_shape),
            [
                Guidance(g.guide, g.target[rows.start : rows.stop], g.recipe, g.scale)
                for g in guided
            ],
            device=device,
            watch=step,
            health=health,
        )
        with torch.no_grad():
            done.append(to_pixels(backbone.decode(x)).cpu())
        seconds.append((clock() - began) / len(rows))
    values = {
        "seconds_per_image": round(float(torch.tensor(seconds).median()), 4),
        "skipped": sum(health.skipped.values()),
        "evaluations": denoise.evaluations,
        "differentiated": denoise.differentiated,
    }
    return Cell(values, {"images": torch.cat(done)})


def _cost(guide: Guide, experts: ExpertSet | None) -> tuple[int, int, float]:
    """Experts, the numbers trained for all of them, and one expert's share of the network's."""
    if experts is None:
        return 0, 0, 0.0
    each = [patch.count() for patch in experts.patches]
    network = sum(p.numel() for p in guide.network().parameters())
    return len(each), sum(each), max(each) / network
