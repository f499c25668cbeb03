"""``ppap bench recipes``: every recipe on every task, at equal evaluations and at equal time.

Nothing is searched: each recipe gets the strength that the guide recommends for it. What a recipe
needs beyond evaluations of the backbone, backward passes and calls of the guide, counts where time
is equal.
"""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from PIL.Image import Image
from torch import Tensor

from ppap_host.backbones.backbone import Backbone, ClassifierFree
from ppap_host.experts.patches import network_hash
from ppap_host.experts.sets import WithExperts
from ppap_host.files.errors import OptionError
from ppap_host.files.hashes import file_hashes, package_versions
from ppap_host.files.images import to_unit
from ppap_host.files.settings import Batch, Images, Number, Parts, Seed, settings
from ppap_host.guides.guide import Guide
from ppap_host.plugins import builtin
from ppap_host.plugins.loading import load_sampler
from ppap_host.plugins.registry import registry
from ppap_host.recipes.presets import X0
from ppap_host.recipes.recipe import Recipe
from ppap_host.runs.choice import fitting_set
from ppap_host.sampling.evaluator import Guidance
from ppap_host.sampling.loop import sample
from ppap_host.sampling.streams import ImageNoise
from ppap_plugin_bench.benchmarks.arms import (
    Assignment,
    Sampling,
    Watch,
    experts_hash,
    make_images,
    tensor_hash,
)
from ppap_plugin_bench.benchmarks.cells import Cell, Cells
from ppap_plugin_bench.benchmarks.measuring import clock_of, peak_bytes
from ppap_plugin_bench.benchmarks.ppap import REFERENCE_SEED, TEST_NOISE
from ppap_plugin_bench.benchmarks.tasks import TASKS
from ppap_plugin_bench.benchmarks.world import REFERENCES, World
from ppap_plugin_bench.evaluation import Measure, frechet_distance

Budget = Literal["evaluations", "time"]
Family = Literal["unguided", "noised", "predicted", "through"]

GROUPS: dict[str, tuple[str, ...]] = {
    "steering": ("class", "depth", "segmentation"),
    "restoring": ("super-resolution", "inpainting"),
    "rewarding": ("symmetry",),
}
"""Tasks whose images are compared with renders as one set: few images make a poor distance."""

BUDGETS: dict[Budget, str] = {
    "evaluations": "Equal evaluations of the backbone",
    "time": "Equal time",
}

UNGUIDED = "unguided"

LEAST_STEPS = 4
"""No recipe gets fewer steps at equal time, however dear they are."""

PRECISION = 0.04
"""Steps at equal time that differ by less than this share from those of equal evaluations are taken
to be them: probes are no more precise."""

FLOORS = 4
"""So many sets of renders say how far renders are from renders."""


@settings
class Settings:
    """Size of the benchmark.

    Attributes:
        num: images of each task; a Fréchet distance needs two.
        evaluations: of the backbone for an image; also the steps of the reference, ``x0``, whose
            time the others get at equal time.
        sampler: evaluates once a step.
        batch: images at a time.
        references: renders to compare sets of images with.
        rounds: how often a step's cost is probed, three steps each.
        seed: of the images' noise.
    """

    num: Images = 32
    evaluations: Number = 50
    sampler: str = "ddim"
    batch: Batch = 16
    references: Images = REFERENCES
    rounds: Parts = 3
    seed: Seed = 0


class RecipesWorld(World, Protocol):
    """A world whose targets can be told in words."""

    def wanted(self, guide: Guide, count: int) -> list[str]:
        """What each of the test targets asks for, in a word; empty where it is a picture."""


@dataclass(frozen=True)
class Method:
    """A recipe on a task, ready to be used.

    Attributes:
        recipe: None leaves the images unguided.
        guide: with its experts, if it has any.
        who: JSON values that tell it from others, without its strength.
    """

    name: str
    recipe: Recipe | None
    guide: Guide
    scale: float
    who: Mapping[str, Any]

    def guidance(self, targets: Tensor) -> list[Guidance]:
        """At work, for these targets."""
        if self.recipe is None:
            return []
        return [Guidance(self.guide, targets, self.recipe, self.scale)]

    @property
    def evaluations(self) -> int:
        """Of the backbone, for one step of an image."""
        return 1 if self.recipe is None else self.recipe.evaluations

    @property
    def eta(self) -> float:
        """Of DDIM: noise for recipes that need some, none for the others."""
        return float(bool(self.recipe is not None and self.recipe.needs))


@dataclass(frozen=True)
class Cost:
    """What a step of a method costs.

    Attributes:
        seconds: of a step, for one image: the ratio times what a step of the reference costs, the
            median over all probes of the task, so that a machine that was slower for one method
            than for the next does not matter.
        ratio: to a step of the reference, probed in turn with it.
        peak: most bytes held at once by a step of a whole batch.
    """

    seconds: float
    ratio: float
    peak: float


@dataclass
class Point:
    """What came of a method on a task with a budget.

    Attributes:
        method: the recipe's name, or :data:`UNGUIDED`.
        family: where its gradients are taken.
        scale: strength, None without guidance.
        steps: of the sampler.
        evaluations: of the backbone, for one image.
        differentiated: those that a gradient was taken through.
        cost: of a step, probed.
        measured: seconds for one image as it was made, median over batches.
        measures: the judge's, and ``frechet``.
        skipped: image-steps without guidance because a gradient was not finite.
        images: uint8 [n, 3, h, w].
        captions: the judge's word on each image.
        features: the judge's, [n, d].
    """

    budget: Budget
    method: str
    family: Family
    scale: float | None
    steps: int
    evaluations: int
    differentiated: int
    cost: Cost
    measured: float
    measures: dict[str, Measure]
    skipped: int
    images: Tensor = field(repr=False)
    captions: list[str] = field(repr=False)
    features: Tensor = field(repr=False)

    @property
    def seconds(self) -> float:
        """For one image: so many steps at their cost."""
        return self.steps * self.cost.seconds


@dataclass
class TaskResult:
    """What came of all methods on a task.

    Attributes:
        name, title: of the task.
        guide: its name.
        objective: the measure that matters.
        higher_is_better: of the objective.
        floors: measures of the targets themselves, or of the measurements' pseudo-inverses, and
            ``frechet`` of renders.
        points: by budget, and in it in the order of the methods.
        absent: recipe -> why it is not among them.
        wanted: what each target asks for, in a word.
        pictures: rows that show the targets, one picture a target.
    """

    name: str
    title: str
    guide: str
    objective: str
    higher_is_better: bool
    floors: dict[str, Measure]
    points: list[Point]
    absent: dict[str, str]
    wanted: list[str]
    pictures: Sequence[tuple[str, Sequence[tuple[str, Image]]]]

    def of(self, budget: Budget) -> list[Point]:
        """The points of a budget."""
        return [point for point in self.points if point.budget == budget]

    def find(self, budget: Budget, method: str) -> Point | None:
        """The point of a method with a budget, if it is there."""
        return next((p for p in self.of(budget) if p.method == method), None)


@dataclass
class Outcome:
    """The whole benchmark.

    Attributes:
        methods: names, unguided first.
        tasks: what came of each.
        pooled: (group of tasks, budget, method) -> Frechet distance of its images of all tasks of
            the group, against renders; absent where it lacks one of them.
        floors: group -> the same of as many renders: the mean of :data:`FLOORS` sets, and their
            standard deviation.
        record: command, settings, versions and the like, as JSON values.
    """

    methods: list[str]
    tasks: list[TaskResult]
    pooled: dict[tuple[str, Budget, str], Measure]
    floors: dict[str, Measure]
    record: dict[str, Any]

    def group(self, name: str) -> list[TaskResult]:
        """The tasks of a group that were done."""
        return [result for result in self.tasks if result.name in GROUPS[name]]


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other one dominates, by cost.

    A point dominates another one that costs as much or more and is as good or worse, if it differs
    from it in either.

    Args:
        points: (cost, quality): low cost is good, high quality is good. NaN is never on it.
    """
    found = [
        i
        for i, (cost, quality) in enumerate(points)
        if not math.isnan(cost + quality)
        and not any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in points)
    ]
    return sorted(found, key=lambda i: points[i])


def family(recipe: Recipe | None) -> Family:
    """Where a recipe's gradients are taken: at x_t, through the backbone, or at x_0 alone."""
    if recipe is None:
        return "unguided"
    if recipe.sees_noise:
        return "noised"
    return "through" if recipe.through_backbone else "predicted"


def steps_for(budget: Budget, evaluations: int, each: int, ratio: float, most: int) -> int:
    """How many steps a method takes.

    Args:
        evaluations: of the backbone, the budget, or those of the reference.
        each: evaluations a step.
        ratio: cost of a step, repetitions included, over that of the reference.
        most: steps that the backbone knows.
    """
    equal = max(1, evaluations // each)
    wanted = max(LEAST_STEPS, round(evaluations / ratio))
    if budget == "evaluations" or abs(wanted - equal) <= PRECISION * equal:
        wanted = equal
    return min(most, wanted)


def run(
    out: Path,
    world: RecipesWorld,
    settings: Settings,
    *,
    tasks: Sequence[str] = tuple(TASKS),
    recipes: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
    command: str | None = None,
    watch: Watch = lambda what, done, total: None,
) -> Outcome:
    """Runs the benchmark, or what is left of it.

    Args:
        out: folder of the report; finished cells are kept in it.
        tasks: of :data:`TASKS`.
        recipes: of the host's; None for all of them.
        device: for backbone and guides.
        command: that was given, for the record.
        watch: told of progress.

    Raises:
        PpapError: a guide is not installed, or the folder cannot be written.
    """
    began, device = time.perf_counter(), torch.device(device)
    guides = {name: world.guide(TASKS[name]) for name in tasks}  # says early what is not there
    known = [entry.name for entry in builtin.ppap_recipes()]
    names = [name for name in known if recipes is None or name in recipes]
    watch("rendering references", 0, 1)
    reference = world.features(to_unit(world.real(REFERENCE_SEED, settings.references)))
    maker = _Maker(out, world, settings, reference, device, watch)
    results = [maker.task(name, guide, names) for name, guide in guides.items()]
    outcome = Outcome([UNGUIDED, *names], results, {}, {}, {})
    for group in GROUPS:
        _pool(outcome, group, world, reference)
    outcome.record = {
        "benchmark": "recipes",
        "command": command,
        "settings": asdict(settings),
        "device": device.type,
        "clocks": sorted(maker.clocks),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "versions": package_versions(
            plugin.distribution
            for guide in guides.values()
            for plugin, _ in registry().names("guide").get(guide.name, [])
        ),
        "model_files": file_hashes(world.backbone.files(), world.backbone.name),
        "seconds": round(time.perf_counter() - began, 1),
        "cells_made": len(maker.cells.made),
        "cells_reused": len(maker.cells.reused),
    }
    return outcome


class _Maker:
    """Makes the points of tasks, cell by cell."""

    def __init__(
        self,
        out: Path,
        world: RecipesWorld,
        settings: Settings,
        reference: Tensor,
        device: torch.device,
        watch: Watch,
    ) -> None:
        self.out, self.world, self.settings = out, world, settings
        self.reference, self.device, self.watch = reference, device, watch
        self.cells = Cells(out / "cells")
        self.clock_name, self.clock = clock_of(device)
        self.clocks: set[str] = set()
        self.backbone: Backbone = world.backbone
        self.backbone.to(device, torch.float32)
        self._empty = {
            key: value.to(device) for key, value in self.backbone.encode_prompts([""]).items()
        }
        versions = package_versions()
        self._identity = {
            "backbone": self.backbone.name,
            "backbone_files": file_hashes(self.backbone.files(), self.backbone.name),
            "sampler": settings.sampler,
            "device": device.type,
            "versions": {name: versions[name] for name in ("ppap-host", "torch")},
        }

    def task(self, name: str, guide: Guide, recipes: Sequence[str]) -> TaskResult:
        """All methods on a task, with both budgets."""
        count = self.settings.num
        title, objective, higher = self.world.objectives[guide.name]
        asked = self.world.assignment(
            guide, count, self.settings.seed + TEST_NOISE, self.out / "targets", validation=False
        )
        floors = dict(self.world.floors(guide, count))
        floors["frechet"] = _floor(self.world, self.reference, count)
        pictures = self.world.pictures(guide, min(count, 12))
        guide.to(self.device, torch.float32)
        targets = asked.targets.to(self.device)
        methods, absent = self._methods(guide, targets, recipes)
        reference = self._method(guide, X0, targets)
        points: list[Point] = []
        probed = {}
        for k, method in enumerate(methods):
            self.watch(f"{name}, {method.name}: cost", k, len(methods))
            probed[method.name] = self._probed(name, method, reference, targets)
        usual = statistics.median(values["reference_seconds"] for values in probed.values())
        costs = {
            method: Cost(
                values["ratio"] * usual,
                values["ratio"],
                math.nan if values["peak_bytes"] is None else values["peak_bytes"],
            )
            for method, values in probed.items()
        }
        done = 0
        for budget in BUDGETS:
            for method in methods:
                done += 1
                place = f"{done} of {2 * len(methods)}"
                points.append(
                    self._point(name, budget, method, costs[method.name], asked, targets, place)
                )
        return TaskResult(
            name=name,
            title=title,
            guide=guide.name,
            objective=objective,
            higher_is_better=higher,
            floors=floors,
            points=points,
            absent=absent,
            wanted=self.world.wanted(guide, count),
            pictures=pictures,
        )

    def _methods(
        self, guide: Guide, targets: Tensor, recipes: Sequence[str]
    ) -> tuple[list[Method], dict[str, str]]:
        """Those that this guide can be asked with, and why the others are not there."""
        methods = [Method(UNGUIDED, None, guide, 0.0, {})]
        absent = {}
        for name in recipes:
            try:
                recipe: Recipe = registry().load("recipe", name)
                methods.append(self._method(guide, recipe, targets))
            except OptionError as error:
                absent[name] = error.message
        return methods, absent

    def _method(self, guide: Guide, recipe: Recipe, targets: Tensor) -> Method:
        """A recipe for this guide.

        Raises:
            OptionError: the recipe cannot ask it, or needs experts, and there are none.
        """
        asked, experts = guide, None
        if recipe.needs_experts:
            fitting = fitting_set(guide, self.backbone, registry())
            if fitting is None:
                raise OptionError(
                    f"No expert set is installed for the guide {guide.name!r}.",
                    remedy=f"Make one with `ppap tune {guide.name}`.",
                )
            experts = fitting[1]
            asked = WithExperts(guide, experts)
        recipe.check(asked, targets)
        recipe.applied_to(asked)
        who = {
            "guide": guide.name,
            "network": network_hash(guide.network()),
            "experts": None if experts is None else experts_hash(experts),
            "recipe": repr(recipe),
        }
        return Method(recipe.name, recipe, asked, guide.usual_scale(recipe.name), who)

    def _probed(
        self, task: str, method: Method, reference: Method, targets: Tensor
    ) -> dict[str, Any]:
        """What a step costs, probed in turn with the reference, so that both see one machine."""
        size = min(self.settings.batch, len(targets))
        settings = {
            **self._identity,
            "method": method.who,
            "reference": reference.who,
            "rounds": self.settings.rounds,
            "batch": size,
        }

        def make() -> Cell:
            own: list[float] = []
            base: list[float] = []
            rows = targets[:size]
            self._steps(method, rows, 1)  # what is made once is not its cost
            peak = peak_bytes(lambda: self._steps(method, rows, 2), self.device)
            if method.who == reference.who:
                for _ in range(self.settings.rounds):
                    own += self._steps(method, rows, 3)
                base = own
            else:
                self._steps(reference, rows, 1)
                for _ in range(self.settings.rounds):
                    own += self._steps(method, rows, 3)
                    base += self._steps(reference, rows, 3)
            seconds, other = statistics.median(own), statistics.median(base)
            return Cell(
                {
                    "reference_seconds": other / size,
                    "ratio": seconds / other if other else 1.0,
                    "peak_bytes": None if math.isnan(peak) else peak,
                    "clock": self.clock_name,
                }
            )

        values = self.cells.get(f"{task}-{method.name}-cost", settings, make).values
        self.clocks.add(values["clock"])
        return values

    def _steps(self, method: Method, targets: Tensor, count: int) -> list[float]:
        """Seconds of each of ``count`` steps, spread over all noise, of one batch."""
        marks = [self.clock()]
        solver = load_sampler(registry(), self.settings.sampler, self.backbone, method.eta)
        sample(
            self.backbone,
            ClassifierFree(self.backbone, self._empty, self._empty),
            solver.walk(self.backbone, count),
            solver,
            ImageNoise(self.settings.seed, range(len(targets)), self.backbone.state_shape),
            method.guidance(targets),
            device=self.device,
            watch=lambda report: marks.append(self.clock()),
        )
        return [later - earlier for earlier, later in pairwise(marks)]

    def _point(
        self,
        task: str,
        budget: Budget,
        method: Method,
        cost: Cost,
        asked: Assignment,
        targets: Tensor,
        place: str,
    ) -> Point:
        most = len(self.backbone.levels())
        steps = steps_for(budget, self.settings.evaluations, method.evaluations, cost.ratio, most)
        settings = {
            **self._identity,
            "count": len(asked),
            "seed": asked.seed,
            "steps": steps,
            "batch": self.settings.batch,
        }
        stem = f"{method.name}-{steps}"
        if method.recipe is not None:
            # Without guidance all tasks have the same images.
            stem = f"{task}-{stem}"
            settings |= {
                "assignment": dict(asked.identity),
                "method": {**method.who, "scale": method.scale},
                "targets": tensor_hash(asked.targets),
            }
        sampling = Sampling(steps, self.settings.sampler, self.settings.batch, method.eta)
        what = f"{task}, {method.name}, {steps} steps ({place})"

        def make() -> Cell:
            guided = method.guidance(targets)
            cell = make_images(
                self.backbone, sampling, what, asked, guided, self.watch,
                device=self.device, clock=self.clock,
            )  # fmt: skip
            cell.values["clock"] = self.clock_name
            return cell

        # Two budgets that give the same steps share their images.
        cell = self.cells.get(stem, settings, make)
        values, pixels = cell.values, cell.tensors["images"]
        self.clocks.add(values["clock"])
        images = to_unit(pixels)
        features = self.world.features(images)
        measures = asked.judge(images)
        measures["frechet"] = Measure(_distance(self.reference, features))
        return Point(
            budget=budget,
            method=method.name,
            family=family(method.recipe),
            scale=None if method.recipe is None else method.scale,
            steps=steps,
            evaluations=values["evaluations"],
            differentiated=values["differentiated"],
            cost=cost,
            measured=values["seconds_per_image"],
            measures=measures,
            skipped=values["skipped"],
            images=pixels,
            captions=asked.captions(images),
            features=features,
        )


def _distance(real: Tensor, made: Tensor) -> float:
    """The Frechet distance, NaN for sets too small to have one."""
    return frechet_distance(real, made) if min(len(real), len(made)) > 1 else math.nan


def _floor(world: World, reference: Tensor, count: int) -> Measure:
    """How far as many renders are from the reference: mean and standard deviation over sets."""
    distances = [
        _distance(reference, world.features(to_unit(world.real(REFERENCE_SEED + 1 + k, count))))
        for k in range(FLOORS)
    ]
    return Measure(statistics.fmean(distances), statistics.stdev(distances))


def _pool(outcome: Outcome, group: str, world: World, reference: Tensor) -> None:
    """Adds the distances of all images of a group of tasks together."""
    results = outcome.group(group)
    if not results:
        return
    for budget in BUDGETS:
        for method in outcome.methods:
            points = [p for r in results if (p := r.find(budget, method)) is not None]
            if len(points) == len(results):
                features = torch.cat([point.features for point in points])
                distance = Measure(_distance(reference, features))
                outcome.pooled[group, budget, method] = distance
    count = sum(len(result.wanted) for result in results)
    outcome.floors[group] = _floor(world, reference, count)


__all__ = [
    "BUDGETS", "FLOORS", "GROUPS", "LEAST_STEPS", "TASKS", "UNGUIDED", "Budget", "Cost",
    "Family", "Method", "Outcome", "Point", "RecipesWorld", "Settings", "TaskResult", "family",
    "frontier", "run", "steps_for",
]  # fmt: skip
