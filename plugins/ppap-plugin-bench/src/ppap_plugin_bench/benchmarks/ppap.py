"""``ppap bench ppap``: experts against what else can be done with an off-the-shelf guide.

The comparison of PPAP (Go et al., 2023, section 5) on a world whose truth is known: no guidance,
the off-the-shelf network used naively at x_t, the same network at the predicted x_0, one network
taught all noise, experts taught with labels, and PPAP's patches taught by a harvest alone, on
noised images and on predicted clean ones.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ppap_host.backbones.noise import NoiseLevel
from ppap_host.experts.harvest import Harvest, HarvestConfig, Lesson
from ppap_host.experts.patches import network_hash
from ppap_host.experts.sets import ExpertSet, View, WithExperts
from ppap_host.files.hashes import file_hashes, package_versions
from ppap_host.files.images import to_unit
from ppap_host.files.settings import Images, Parts, Seed, settings
from ppap_host.guides.guide import Guide
from ppap_host.plugins.registry import registry
from ppap_host.recipes.presets import NAIVE, PPAP, X0
from ppap_host.runs.choice import fitting_set
from ppap_host.runs.harvesting import harvest
from ppap_host.sampling.evaluator import Guidance
from ppap_plugin_bench.benchmarks.arms import (
    Arm,
    ArmResult,
    Assignment,
    Bench,
    Sampling,
    Task,
    Watch,
    experts_hash,
    tensor_hash,
)
from ppap_plugin_bench.benchmarks.cells import Cell, Cells
from ppap_plugin_bench.benchmarks.world import REFERENCES, World
from ppap_plugin_bench.evaluation import Measure, NoisePoint, Search, accuracy_against_noise

if TYPE_CHECKING:
    from ppap_host.experts.tuning import Predictor

GUIDES = ("classifier", "depth", "segmentation")

CLASSES = 24

LABELLED_SEED = 303
"""Seed of the labelled renders that the supervised arm learns from."""

CURVE_SEED = 1_000_043
"""Seed of the renders that guides read at every noise level."""

REFERENCE_SEED = 1_000_023
"""Seed of the renders that images are compared with as a set."""

TEST_NOISE, VALIDATION_NOISE, CONFIRMING_NOISE = 5_000, 6_000, 7_000
"""Added to the benchmark's seed: a harvest of a small seed shares no noise with what is judged."""


@settings
class Settings:
    """Size of the benchmark.

    Attributes:
        sampling: how images are made.
        search: for every arm's strength.
        per_class: test images of each class.
        targets: test targets of depth and segmentation.
        validation: classes that strengths are chosen on; for depth and segmentation, whose targets
            differ more, as many targets as are tested.
        references: real images to compare sets of images with.
        harvest: images to harvest if none is given, and labelled ones for the supervised arm.
        tuning_steps: optimiser steps of each of five experts that are tuned here, by guide; one
            expert gets five times as many, ten get half as many. The classifier, of which most arms
            are compared, gets less than half of its guide's own number.
        curve_images, curve_levels: of the curves against noise.
        seed: of everything that is not fixed.
    """

    sampling: Sampling = field(default_factory=Sampling)
    search: Search = field(default_factory=Search)
    per_class: Images = 8
    targets: Images = 48
    validation: Images = 24
    references: Images = REFERENCES
    harvest: Images = 2000
    tuning_steps: Mapping[str, int] = field(
        default_factory=lambda: {"classifier": 250, "depth": 250, "segmentation": 500}
    )
    curve_images: Images = 64
    curve_levels: Parts = 15
    seed: Seed = 0


FULL = Settings()
QUICK = Settings(
    sampling=Sampling(steps=10),
    search=Search(trials=3),
    per_class=1,
    targets=12,
    validation=8,
    references=128,
    harvest=100,
    tuning_steps={"classifier": 20, "depth": 20, "segmentation": 20},
    curve_images=16,
    curve_levels=8,
)


@dataclass(frozen=True)
class Curve:
    """One expert, or a whole network, against noise.

    Attributes:
        group: the arm it belongs to.
        label: for people.
        serves: log-SNR (low, high) that it serves in its set; None for a plain network.
        times: the first and the last of the backbone's times in that range; None likewise.
        points: one a noise level, cleanest first.
    """

    group: str
    label: str
    serves: tuple[float, float] | None
    times: tuple[float, float] | None
    points: list[NoisePoint]


@dataclass
class TaskResult:
    """What came of all arms of a guide."""

    task: Task
    arms: list[ArmResult]
    curves: list[Curve]


@dataclass
class PairResult:
    """Two guides at once, with the strengths they had alone.

    Attributes:
        count: images.
        scales: guide -> strength.
        measures: what steered -> measures of both judges.
        ratios: measure -> together as a ratio of alone.
        within_a_fifth: whether each guide's own measure is at most 20% worse than alone.
        images: uint8, steered by both.
    """

    count: int
    scales: dict[str, float]
    measures: dict[str, dict[str, Measure]]
    ratios: dict[str, float]
    within_a_fifth: bool
    images: Tensor


@dataclass
class Outcome:
    """A finished benchmark.

    Attributes:
        tasks: by guide.
        pair: None where classifier and depth were not both asked for.
        floor: Frechet distance, precision and recall of renders against the reference, in sets as
            large as each guide's, by guide.
        record: how it was made: command, settings, versions, model files, seconds.
    """

    tasks: list[TaskResult]
    pair: PairResult | None
    record: dict[str, Any]
    floor: dict[str, dict[str, Measure]] = field(default_factory=dict)


Method = Literal["patch", "full"]

Tune = Callable[
    [
        Guide, Lesson, Sequence[NoiseLevel], int, Method, int, int, Path, Watch,
        "Predictor | None",
    ],
    ExpertSet,
]  # fmt: skip
"""Tunes: (guide, lesson, levels, experts, method, steps, seed, work, watch, predictor)."""


def tune_set(
    guide: Guide,
    lesson: Lesson,
    levels: Sequence[NoiseLevel],
    experts: int,
    method: Method,
    steps: int,
    seed: int,
    work: Path,
    watch: Watch,
    predictor: Predictor | None,
) -> ExpertSet:
    """:func:`ppap_host.experts.tuning.tune` with its defaults for what is not named."""
    from ppap_host.experts.tuning import TuningConfig, tune

    config = TuningConfig(experts=experts, method=method, steps=steps, seed=seed)
    return tune(guide, lesson, levels, config, work, watch, predictor=predictor)


def run(
    out: Path,
    world: World,
    settings: Settings = FULL,
    *,
    guides: Sequence[str] = GUIDES,
    harvested: Path | None = None,
    retune: bool = False,
    command: str = "",
    watch: Watch = lambda what, done, total: None,
    tune: Tune = tune_set,
) -> Outcome:
    """Runs the benchmark; whatever was finished in ``out`` before with these settings is reused.

    Args:
        out: folder of the report; cells, expert sets and a harvest are kept in it.
        guides: of :data:`GUIDES`.
        harvested: a folder that `ppap harvest` made; None harvests into ``out``.
        retune: tune all experts here, even where a plugin ships a set.
        command: that was given, for the record.
        watch: told of progress.
        tune: makes an expert set.

    Raises:
        PpapError: a guide is not installed, or a folder cannot be read or written.
    """
    began = time.perf_counter()
    loaded = {name: world.guide(name) for name in guides}  # says early what is not there
    school = School(out, world, settings, harvested, retune, watch, tune)
    watch("rendering references", 0, 1)
    reference = world.features(to_unit(world.real(REFERENCE_SEED, settings.references)))
    cells = Cells(out / "cells")
    bench = Bench(
        world.backbone,
        settings.sampling,
        settings.search,
        world.features,
        reference,
        cells,
        watch,
        world.quality,
    )
    results, floor = [], {}
    for name, guide in loaded.items():
        task = _task(world, guide, settings, out)
        arms = school.arms(guide)
        done = [bench.run(task, arm) for arm in arms]
        curves = _curves(cells, world, school, guide, arms, settings, watch)
        results.append(TaskResult(task, done, curves))
        real = world.real(REFERENCE_SEED + 1, len(task.test))
        floor[name] = bench.distances(to_unit(real))
    by_name = {result.task.name: result for result in results}
    pair = None
    if "classifier" in by_name and "depth" in by_name:
        pair = _pair(bench, world, school, by_name["classifier"], by_name["depth"], out)
    record = {
        "benchmark": "ppap",
        "command": command,
        "settings": asdict(settings),
        "guides": list(guides),
        "retune": retune,
        "harvest": school.harvest_identity(),
        "expert_sets": school.origins,
        "versions": package_versions(
            plugin.distribution
            for name in guides
            for plugin, _ in registry().names("guide").get(name, [])
        ),
        "model_files": file_hashes(world.backbone.files(), world.backbone.name),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "seconds": round(time.perf_counter() - began, 1),
        "cells_reused": len(cells.reused),
        "cells_made": len(cells.made),
    }
    return Outcome(results, pair, record, floor)


def _task(world: World, guide: Guide, settings: Settings, out: Path) -> Task:
    title, objective, higher = world.objectives[guide.name]
    if guide.name == "classifier":
        count, validation = CLASSES * settings.per_class, settings.validation
    else:
        count = validation = settings.targets
    folder = out / "targets"
    test_seed, other_seed = settings.seed + TEST_NOISE, settings.seed + VALIDATION_NOISE
    return Task(
        name=guide.name,
        title=title,
        guide=guide,
        test=world.assignment(guide, count, test_seed, folder, validation=False),
        validation=world.assignment(guide, validation, other_seed, folder, validation=True),
        objective=objective,
        higher_is_better=higher,
        floors=world.floors(guide, count),
        pictures=world.pictures(guide, min(count, 12)),
    )


class School:
    """Expert sets: those that plugins ship, and those that are tuned for the benchmark.

    Attributes:
        origins: "<guide>-<arm>" -> where its experts came from, and how they were tuned.
    """

    def __init__(
        self,
        out: Path,
        world: World,
        settings: Settings,
        harvested: Path | None,
        retune: bool,
        watch: Watch,
        tune: Tune,
    ) -> None:
        self.out, self.world, self.settings = out, world, settings
        self.harvested, self.retune, self.watch, self._tune = harvested, retune, watch, tune
        self.origins: dict[str, dict[str, Any]] = {}
        self._harvest: Harvest | None = None
        self._sets: dict[str, ExpertSet] = {}

    def arms(self, guide: Guide) -> list[Arm]:
        """All arms for the classifier; for the others one of each kind."""
        all_of_them = guide.name == "classifier"
        arms = [
            Arm("unguided", "Unguided"),
            Arm("score", "Off-the-shelf at x_t, score shifted", NAIVE),
            # PPAP to the letter but for the experts, so that they are all the difference.
            Arm(
                "naive", "Off-the-shelf at x_t, recipe of PPAP", replace(PPAP, needs_experts=False)
            ),
            Arm("x0", "Off-the-shelf at x_0", X0),
            Arm("single", "Single noise-aware", PPAP, self._maker(guide, "single", 1, "full")),
        ]
        if all_of_them:
            maker = self._maker(guide, "supervised-5", 5, "full", labels=True)
            arms.append(Arm("supervised-5", "Supervised multi-experts-5", PPAP, maker))
        for count in (1, 2, 5, 10) if all_of_them else (5,):
            name = f"ppap-{count}"
            arms.append(Arm(name, f"PPAP-{count}", PPAP, self._maker(guide, name, count, "patch")))
        if all_of_them:
            maker = self._maker(guide, "x0-experts", 5, "patch", view="predicted")
            arms.append(Arm("x0-experts", "Experts-5 at x_0", X0, maker))
        return arms

    def harvest_identity(self) -> dict[str, Any] | None:
        """What the experts tuned here learnt from; None if none was needed."""
        return None if self._harvest is None else self._harvest.identity()

    def _maker(
        self,
        guide: Guide,
        arm: str,
        count: int,
        method: Method,
        labels: bool = False,
        view: View = "noised",
    ) -> Callable[[], ExpertSet]:
        def make() -> ExpertSet:
            key = f"{guide.name}-{arm}"
            if key not in self._sets:
                shipped = (
                    None
                    if method == "full" or self.retune
                    else fitting_set(guide, self.world.backbone, registry(), count, view)
                )
                if shipped is not None:
                    name, self._sets[key], _ = shipped
                    origin = f"shipped as {name}"
                else:
                    self._sets[key] = self._tuned(guide, key, count, method, labels, view)
                    origin = "tuned here, on labels" if labels else "tuned here, on the harvest"
                budget = self._sets[key].metadata.get("tuning")
                self.origins[key] = {"origin": origin, "tuning": budget}
            return self._sets[key]

        return make

    def _tuned(
        self, guide: Guide, key: str, count: int, method: Method, labels: bool, view: View
    ) -> ExpertSet:
        from ppap_host.experts.tuning import Predictor

        backbone = self.world.backbone
        lesson = self._labelled(guide) if labels else self._harvested().lesson(guide, self.watch)
        # The same number of training images in all, however many experts share them.
        steps = max(1, 5 * self.settings.tuning_steps[guide.name] // count)
        wanted = {
            "network": network_hash(guide.network()),
            "lesson": tensor_hash(lesson.pixels, lesson.teacher),
            "experts": count,
            "method": method,
            "steps": steps,
            "seed": self.settings.seed,
        }
        predictor = None
        if view == "predicted":
            # Without a condition, as the benchmark's images are made.
            predictor = Predictor(backbone)
            files = file_hashes(backbone.files(), backbone.name)
            wanted |= {"view": view, "backbone": backbone.name, "backbone_files": files}
        file = self.out / "experts" / f"{key}.safetensors"
        # A state that was left by other settings must not be in the way.
        digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
        work = self.out / "tuning" / f"{key}-{digest[:8]}"

        def make() -> Cell:
            experts = self._tune(
                guide,
                lesson,
                backbone.levels(),
                count,
                method,
                steps,
                self.settings.seed,
                work,
                lambda what, done, total: self.watch(f"{key}: {what}", done, total),
                predictor,
            )
            experts.save(file)
            return Cell({"sha256": experts_hash(ExpertSet.load(file))})

        cells = Cells(self.out / "cells")
        cell = cells.get(f"{key}-experts", wanted, make)
        if not file.exists() or experts_hash(ExpertSet.load(file)) != cell.values["sha256"]:
            (cells.folder / f"{key}-experts.json").unlink()
            cells.get(f"{key}-experts", wanted, make)
        return ExpertSet.load(file)

    def _harvested(self) -> Harvest:
        if self._harvest is None:
            if self.harvested is not None:
                self._harvest = Harvest.open(self.harvested)
            else:
                config = HarvestConfig(
                    backbone=self.world.backbone.name,
                    num=self.settings.harvest,
                    steps=self.settings.sampling.steps,
                    seed=self.settings.seed,
                    device="cpu",
                )
                self._harvest = harvest(config, self.out / "harvest", self.watch)
        return self._harvest

    def _labelled(self, guide: Guide) -> Lesson:
        count = len(self._harvested())
        self.watch(f"rendering {count} labelled scenes", 0, 1)
        pixels, labels = self.world.labelled(guide.name, LABELLED_SEED, count)
        identity = {"kind": "labelled renders", "seed": LABELLED_SEED, "num": count}
        return Lesson(pixels, guide.from_labels(labels), identity)


def _curves(
    cells: Cells,
    world: World,
    school: School,
    guide: Guide,
    arms: Sequence[Arm],
    settings: Settings,
    watch: Watch,
) -> list[Curve]:
    """Off-the-shelf, single noise-aware, and each of five experts, at all noise levels."""
    pixels, labels = world.labelled(guide.name, CURVE_SEED, settings.curve_images)
    truth, images = guide.from_labels(labels), to_unit(pixels)
    every = world.backbone.levels()
    picks = torch.linspace(0, len(every) - 1, settings.curve_levels).round().int().tolist()
    levels = [every[k] for k in picks]
    shown: list[tuple[str, str, ExpertSet | None, int]] = [("plain", "Off-the-shelf", None, 0)]
    for arm in arms:
        if arm.experts is not None and arm.name in ("single", "supervised-5", "ppap-5"):
            taught = arm.experts()
            for k in range(len(taught.patches)):
                label = arm.label if len(taught.patches) == 1 else f"expert {k + 1}"
                shown.append((arm.name, label, taught, k))
    curves = []
    for i, (group, label, experts, k) in enumerate(shown):
        watch(f"{guide.name}: accuracy against noise", i, len(shown))
        alone = None if experts is None else _everywhere(experts, k)
        wanted = {
            "network": network_hash(guide.network()),
            "expert": None if alone is None else experts_hash(alone),
            "images": tensor_hash(pixels),
            "levels": [level.log_snr for level in levels],
        }

        def make(alone: ExpertSet | None = alone) -> Cell:
            reader = guide if alone is None else WithExperts(guide, alone)
            points = accuracy_against_noise(reader, images, truth, levels)
            return Cell({"points": [asdict(point) for point in points]})

        cell = cells.get(f"{guide.name}-curve-{group}-{k}", wanted, make)
        points = [
            NoisePoint(p["log_snr"], p["time"], {n: Measure(**m) for n, m in p["measures"].items()})
            for p in cell.values["points"]
        ]
        serves = times = None
        if experts is not None:
            part = experts.ranges[k]
            inside = [level.time for level in every if level.log_snr in part]
            serves = (part.low, part.high)
            times = (min(inside), max(inside)) if inside else None
        curves.append(Curve(group, label, serves, times, points))
    return curves


def _everywhere(experts: ExpertSet, k: int) -> ExpertSet:
    """Expert ``k`` of a set, at all noise levels."""
    from ppap_host.backbones.noise import EVERYWHERE

    return replace(experts, ranges=[EVERYWHERE], patches=[experts.patches[k]])


def _pair(
    bench: Bench,
    world: World,
    school: School,
    classes: TaskResult,
    depths: TaskResult,
    out: Path,
) -> PairResult:
    """A class and a depth that do not contradict each other, asked for at once."""
    results = (classes, depths)
    count = min(len(result.task.test) for result in results)
    arms = [next(arm for arm in r.arms if arm.name == "ppap-5") for r in results]
    unguided = next(arm for arm in classes.arms if arm.name == "unguided")
    asked: list[Assignment] = []
    guided: list[tuple[Guidance, Mapping[str, Any]]] = []
    for result, arm in zip(results, arms, strict=True):
        guide, task = result.task.guide, result.task
        seed = task.test.seed
        if task is classes.task:
            part = world.agreeing(guide, count, seed)
        else:
            part = world.assignment(guide, count, seed, out / "targets", validation=False)
        asked.append(part)
        make = next(a for a in school.arms(guide) if a.name == "ppap-5").experts
        assert make is not None
        assert arm.scale is not None
        together = WithExperts(guide, make())
        who = {
            "guide": guide.name,
            "network": network_hash(guide.network()),
            "experts": experts_hash(together.experts),
            "recipe": repr(PPAP),
        }
        guided.append((Guidance(together, part.targets, PPAP, arm.scale), who))
    both = replace(asked[0], identity={"pair": [dict(part.identity) for part in asked]})
    cell = bench.generate("pair-ppap-5", "class and depth at once", both, guided)

    def judged(pixels: Tensor) -> dict[str, Measure]:
        x = to_unit(pixels[:count])
        return {name: m for part in asked for name, m in part.judge(x).items()}

    measures = {
        "unguided": judged(unguided.images),
        "class alone": judged(arms[0].images),
        "depth alone": judged(arms[1].images),
        "class and depth": judged(cell.tensors["images"]),
    }
    ratios, kept = {}, []
    for result, alone in zip(results, ("class alone", "depth alone"), strict=True):
        name = result.task.objective
        before = measures[alone][name].value
        now = measures["class and depth"][name].value
        ratios[name] = now / before if before else float("nan")
        good = now >= 0.8 * before if result.task.higher_is_better else now <= 1.2 * before
        kept.append(good)
    return PairResult(
        count=count,
        scales={r.task.name: float(a.scale or 0) for r, a in zip(results, arms, strict=True)},
        measures=measures,
        ratios=ratios,
        within_a_fifth=all(kept),
        images=cell.tensors["images"],
    )
