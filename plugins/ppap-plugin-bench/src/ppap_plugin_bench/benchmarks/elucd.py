"""``ppap bench elucd``: what each part of EluCD does, and whether honest classifiers guide better.

EluCD (Ma et al., 2024, arXiv 2310.11311) guides with an off-the-shelf classifier, and says four
things: ask it about the predicted clean image; smooth its activations; give its logits two
temperatures; let the strength follow a sine. Here they are added one after another. It also says
that classifiers should be chosen by their calibration error over the whole of sampling; here
several classifiers are measured, and then guide. And it is for ReLU networks: what is to be done
with GELU and SiLU is tried on those among the classifiers that have them.
"""

from __future__ import annotations

import itertools
import math
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ppap_host.backbones.backbone import encode
from ppap_host.experts.patches import network_hash
from ppap_host.experts.sets import VIEWS
from ppap_host.files.hashes import file_hashes, package_versions
from ppap_host.files.images import to_unit
from ppap_host.files.settings import Images, Parts, Positive, Seed, settings
from ppap_host.guides.activations import Softened
from ppap_host.guides.guide import Guide, Wrapped
from ppap_host.plugins.loading import load_guide
from ppap_host.plugins.registry import registry
from ppap_host.recipes.gradients import UnitScale
from ppap_host.recipes.presets import ELUCD as RELATIVE
from ppap_host.recipes.views import Noisy
from ppap_host.sampling.evaluator import Guidance
from ppap_host.sampling.streams import ImageNoise
from ppap_plugin_bench.benchmarks.arms import Arm, ArmResult, Bench, Sampling, Task, Watch
from ppap_plugin_bench.benchmarks.cells import Cell, Cells
from ppap_plugin_bench.benchmarks.elucd_options import PARTS, SHIPPED
from ppap_plugin_bench.benchmarks.ppap import CLASSES, REFERENCE_SEED, TEST_NOISE, VALIDATION_NOISE
from ppap_plugin_bench.benchmarks.world import REFERENCES, ShapesWorld, World
from ppap_plugin_bench.calibration.material import Material, from_renders
from ppap_plugin_bench.calibration.measurement import CalibrationConfig, calibrate
from ppap_plugin_bench.evaluation import (
    Measure,
    Search,
    frechet_distance,
    mean_measure,
    share_measure,
)

ELUCD = replace(RELATIVE, absolute=True)
"""Its strengths are the paper's: those of the gradient as it is."""

RANGES = 5
"""Noise ranges that the calibration error is measured in, as ``ppap calibrate`` does."""

STEADY_NOISE = 0.05
"""Between the renders whose gradients are compared; standard deviation in [-1, 1]."""

FLOORS = 4
"""So many sets of renders say how far renders are from renders."""

RESAMPLINGS = 100

GRID: dict[str, tuple[dict[str, float], ...]] = {
    "softplus": tuple({"softplus": beta} for beta in (2.0, 10.0, math.inf)),
    "temperatures": (
        {"joint": 0.5, "marginal": 0.5},
        *({"joint": 1.0, "marginal": marginal} for marginal in (0.0, 1.0)),
    ),
    "gamma": tuple({"gamma": gamma} for gamma in (0.0, 1.0)),
}
"""What is varied around the preset, one thing at a time."""


@settings
class Settings:
    """Size of the benchmark.

    Attributes:
        sampling: how images are made; ancestral, as in the paper.
        search: for every arm's strength.
        start: strength that every search starts around, on the gradient as it is; the paper's own
            is 1. The scale of the recipe is this over the root of the state's entries.
        per_class: test images of each class.
        validation: classes that strengths are chosen on.
        references: renders to compare sets of images with.
        grid: images at each point around the preset, the first of the test images.
        renders: that classifiers are calibrated on.
        levels: noise levels in each of five ranges that they are calibrated at.
        gates: factors inside GELU and SiLU that are tried.
        seed: of the images' noise.
    """

    sampling: Sampling = field(default_factory=lambda: Sampling(sampler="ddpm"))
    search: Search = field(default_factory=Search)
    start: Positive = 4.0
    per_class: Images = 4
    validation: Images = 24
    references: Images = REFERENCES
    grid: Images = 48
    renders: Images = 240
    levels: Parts = 2
    gates: tuple[Positive, ...] = (0.7,)
    seed: Seed = 0


FULL = Settings()
QUICK = Settings(
    sampling=Sampling(steps=8, sampler="ddpm"),
    search=Search(trials=3),
    per_class=1,
    validation=8,
    references=64,
    grid=8,
    renders=48,
    levels=1,
    gates=(0.5,),
)


class ElucdWorld(World, Protocol):
    """A world whose classes several classifiers know."""

    def classifier(self, model: str | None) -> Guide:
        """The guide ``classifier`` with the model of a folder; None for the one it ships."""

    def renders(self, guide: Guide, count: int) -> Material:
        """Fresh real images with their classes as the guide counts them."""


class ClassifierWorld(ShapesWorld):
    """The built-in world, with any classifier that knows its classes."""

    def classifier(self, model: str | None) -> Guide:
        """As :meth:`ElucdWorld.classifier`.

        Raises:
            CheckpointError: there is no such model.
        """
        return load_guide(registry(), "classifier", model)

    def renders(self, guide: Guide, count: int) -> Material:
        """As :meth:`ElucdWorld.renders`; scenes that nothing was trained or tested on."""
        return from_renders(guide, count, seed=0)


@dataclass(frozen=True)
class Form:
    """A classifier in one form of its activations, on clean renders.

    Attributes:
        beta: of Softplus; None leaves ReLUs as they are.
        gates: factor inside GELU and SiLU; 1 leaves them as they are.
        accuracy: share of renders that are read rightly.
        steadiness: cosine between the gradients of its loss at renders and at the same with a
            little noise (:data:`STEADY_NOISE`), mean over renders.
    """

    beta: float | None
    gates: float
    accuracy: Measure
    steadiness: Measure


@dataclass(frozen=True)
class Honesty:
    """How sure a plain classifier is beside how right it is, over all noise.

    Attributes:
        view: what it is shown: x_t ("noised") or the predicted x_0 ("predicted").
        mean: integral ECE: the mean over noise levels, with its standard error.
        trapezoid: the same by the trapezoid rule over the backbone's time.
        smooth: mean of smooth ECE.
        accuracy: mean over noise levels.
        curve: (log-SNR, ECE, accuracy, confidence) at each level.
    """

    view: str
    mean: Measure
    trapezoid: float
    smooth: float
    accuracy: float
    curve: list[tuple[float, float, float, float]]


@dataclass(frozen=True)
class Softer:
    """A GELU or SiLU network that guides with softened gates; arms as of a classifier."""

    gates: float
    arm: ArmResult
    closest: ArmResult


@dataclass(frozen=True)
class Reading:
    """What was measured of a classifier without guiding.

    Attributes:
        clean_ece: ECE on clean renders.
        honesty: by view.
        forms: the first is the classifier as it is.
    """

    clean_ece: float
    honesty: dict[str, Honesty]
    forms: list[Form]


@dataclass(frozen=True)
class ClassifierResult:
    """A classifier, measured and guiding.

    Attributes:
        name: of the model.
        parameters: of its network.
        kinks: whether Softplus changes what it says: it has ReLUs or the like.
        gates: whether it has GELU, SiLU or Mish.
        reading: of its calibration.
        arm: the recipe ``elucd`` with it, at its most accurate strength.
        closest: the same at the strength closest to renders.
        softer: the same with softened gates, for those that have some.
    """

    name: str
    parameters: int
    kinks: bool
    gates: bool
    reading: Reading
    arm: ArmResult
    closest: ArmResult
    softer: list[Softer]


@dataclass(frozen=True)
class GridPoint:
    """The preset with one thing changed, at the preset's strength closest to renders.

    Attributes:
        axis: a key of :data:`GRID`.
        values: the settings.
        preset: whether this is the preset itself.
        scale: strength.
        measures: on the first of the test images.
    """

    axis: str
    values: dict[str, float]
    preset: bool
    scale: float
    measures: dict[str, Measure]


@dataclass(frozen=True)
class Correlation:
    """Pearson's correlation over classifiers.

    Attributes:
        measure: of the classifier.
        outcome: of its images.
        r: in [-1, 1], NaN if one of them does not vary.
        p: share of all orders of the classifiers whose correlation is as far from zero or farther.
        least: the smallest p that so few classifiers can give, one order of all.
    """

    measure: str
    outcome: str
    r: float
    p: float
    least: float


@dataclass
class Outcome:
    """The whole benchmark.

    Attributes:
        arms: of the ablation, unguided first; EluCD alone if the ablation was not asked for.
        closest: the guided arms of the ablation at another of the strengths that were tried, the
            one with the least Frechet distance on the validation set. EluCD's own tables are of
            such distances.
        grid: around the preset, by axis.
        classifiers: the shipped one first.
        correlations: of measures of classifiers with what they achieve.
        floor: measures of renders themselves; the error of ``frechet`` is the standard deviation
            over sets.
        task: what the arms were asked.
        record: command, settings, versions and the like, as JSON values.
    """

    arms: list[ArmResult]
    closest: list[ArmResult]
    grid: list[GridPoint]
    classifiers: list[ClassifierResult]
    correlations: list[Correlation]
    floor: dict[str, Measure]
    task: Task
    record: dict[str, Any]

    @property
    def elucd(self) -> ArmResult:
        """The preset with the shipped classifier."""
        return self.arms[-1]


def ablation() -> list[Arm]:
    """EluCD, part by part; the last one is the preset.

    At x_t, the first guided arm is algorithm 1 of Dhariwal and Nichol (2021), as the recipe
    ``naive`` takes it with an ancestral sampler, but for the unit of the scale and the limit.
    """
    whole = ELUCD
    plain = whole.with_values({"softplus": math.inf, "joint": 1, "marginal": 1, "gamma": 0})
    noisy = replace(plain, view=Noisy(), gradient=(UnitScale(), *plain.gradient))
    smooth = plain.with_values({"softplus": whole.softplus})
    tempered = smooth.with_values({"joint": whole.joint, "marginal": whole.marginal})
    return [
        Arm("unguided", "unguided"),
        Arm("noisy", "off-the-shelf at x_t", noisy),
        Arm("predicted", "+ at the predicted x_0", plain),
        Arm("softplus", f"+ Softplus({whole.softplus:g})", smooth),
        Arm("temperatures", f"+ temperatures {whole.joint:g}, {whole.marginal:g}", tempered),
        Arm("sine", f"+ sine, gamma {whole.value('gamma'):g} (elucd)", whole),
    ]


def run(
    out: Path,
    world: ElucdWorld,
    settings: Settings = FULL,
    *,
    models: Mapping[str, str] | None = None,
    parts: Sequence[str] = tuple(PARTS),
    command: str = "",
    watch: Watch = lambda what, done, total: None,
) -> Outcome:
    """Runs the benchmark, or what is left of it.

    Args:
        out: folder of the report; finished cells are kept in it.
        models: name -> folder of further classifiers, besides the shipped one.
        parts: of :data:`PARTS`.
        command: that was given, for the record.
        watch: told of progress.

    Raises:
        PpapError: the guide is not installed, a model cannot be read, or the folder cannot be
            written.
    """
    began = time.perf_counter()
    guides = {SHIPPED: world.classifier(None)}
    guides |= {name: world.classifier(folder) for name, folder in (models or {}).items()}
    maker = _Maker(out, world, settings, watch)
    task = maker.task("ablation", guides[SHIPPED])
    arms = ablation() if "ablation" in parts else ablation()[-1:]
    results = [maker.arm(task, arm) for arm in arms]
    whole = results[-1]
    closest = []
    if "ablation" in parts:
        pairs = zip(arms, results, strict=True)
        closest = [maker.closest(task, arm, done) for arm, done in pairs if arm.recipe is not None]
    own = whole, maker.closest(task, arms[-1], whole)
    grid = maker.grid(guides[SHIPPED], own[1]) if "grid" in parts else []
    classifiers = []
    if "classifiers" in parts:
        for name, guide in guides.items():
            classifiers.append(maker.classifier(name, guide, own if name == SHIPPED else None))
    plugins = registry().names("guide").get("classifier", [])
    record = {
        "benchmark": "elucd",
        "command": command,
        "settings": asdict(settings),
        "parts": list(parts),
        "variance": maker.variance(),
        "models": {
            name: {
                "network_sha256": network_hash(guide.network()),
                "files": file_hashes(guide.files(), name),
            }
            for name, guide in guides.items()
        },
        "model_files": file_hashes(world.backbone.files(), world.backbone.name),
        "versions": package_versions(plugin.distribution for plugin, _ in plugins),
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "seconds": round(time.perf_counter() - began, 1),
        "cells_made": len(maker.cells.made),
        "cells_reused": len(maker.cells.reused),
    }
    return Outcome(
        results, closest, grid, classifiers, correlations(classifiers),
        maker.floor(len(task.test)), task, record,
    )  # fmt: skip


class _Starting(Wrapped):
    """A guide with another strength to start searches from."""

    def __init__(self, guide: Guide, scale: float) -> None:
        super().__init__(guide)
        self._scale = scale

    def usual_scale(self, recipe: str) -> float:
        """Where searches start."""
        return self._scale


class _Maker:
    """Makes the parts of the benchmark, cell by cell."""

    def __init__(self, out: Path, world: ElucdWorld, settings: Settings, watch: Watch) -> None:
        self.out, self.world, self.settings, self.watch = out, world, settings, watch
        self.cells = Cells(out / "cells")
        watch("rendering references", 0, 1)
        self.reference = world.features(to_unit(world.real(REFERENCE_SEED, settings.references)))
        self.bench = Bench(
            world.backbone, settings.sampling, settings.search, world.features, self.reference,
            self.cells, watch, world.quality,
        )  # fmt: skip

    def task(self, name: str, guide: Guide, gates: float = 1.0) -> Task:
        """What a classifier is asked; ``gates`` tells its cells from those of the plain one."""
        title, objective, higher = self.world.objectives[guide.name]
        entries = math.prod(self.world.backbone.state_shape)
        starting = _Starting(guide, self.settings.start / math.sqrt(entries))
        folder, seed = self.out / "targets", self.settings.seed
        test, validation = (
            self.world.assignment(guide, count, seed + noise, folder, validation=validates)
            for count, noise, validates in (
                (CLASSES * self.settings.per_class, TEST_NOISE, False),
                (self.settings.validation, VALIDATION_NOISE, True),
            )
        )
        if gates != 1:
            test, validation = (
                replace(a, identity={**a.identity, "gates": gates}) for a in (test, validation)
            )
        return Task(name, title, starting, test, validation, objective, higher)

    def arm(self, task: Task, arm: Arm) -> ArmResult:
        """An arm, searched and judged; its Frechet distance gets a standard error."""
        done = self.bench.run(task, arm)
        done.measures |= self._distance(self.world.features(to_unit(done.images)))
        return done

    def closest(self, task: Task, arm: Arm, done: ArmResult) -> ArmResult:
        """An arm at the strength whose validation images were closest to renders."""
        scale = min(done.trials, key=lambda trial: (trial.tie, trial.scale)).scale
        if scale == done.scale or arm.recipe is None:
            return done
        guidance = Guidance(task.guide, task.test.targets, arm.recipe, scale)
        cell = self.bench.generate(
            f"{task.name}-{arm.name}-closest",
            f"{task.name}, {arm.label}: images closest to renders",
            task.test,
            [(guidance, {**_who(task.guide), "recipe": repr(arm.recipe)})],
        )
        images = to_unit(cell.tensors["images"])
        measures = task.test.judge(images) | self.bench.distances(images)
        return replace(
            done,
            scale=scale,
            measures=measures | self._distance(self.world.features(images)),
            seconds_per_image=cell.values["seconds_per_image"],
            skipped=cell.values["skipped"],
            images=cell.tensors["images"],
            captions=task.test.captions(images),
        )

    def both(self, task: Task, arm: Arm) -> tuple[ArmResult, ArmResult]:
        """An arm at its most accurate strength, and at the one closest to renders."""
        done = self.arm(task, arm)
        return done, self.closest(task, arm, done)

    def grid(self, guide: Guide, whole: ArmResult) -> list[GridPoint]:
        """The preset with one thing changed at a time, at the strength of ``whole``."""
        count = min(self.settings.grid, len(whole.images))
        seed = self.settings.seed + TEST_NOISE
        asked = self.world.assignment(guide, count, seed, self.out / "targets", validation=False)
        scale = whole.scale or 1.0
        who = _who(guide)

        def measured(pixels: Tensor) -> dict[str, Measure]:
            images = to_unit(pixels)
            features = self.world.features(images)
            found = asked.judge(images) | self.bench.distances(images)
            return found | self._distance(features)

        found, own = [], measured(whole.images[:count])
        for axis, around in GRID.items():
            preset = {key: float(ELUCD.value(key)) for key in around[0]}
            points = [GridPoint(axis, preset, True, scale, own)]
            for values in around:
                recipe = ELUCD.with_values(values)
                told = ", ".join(f"{key}={value:g}" for key, value in values.items())
                guidance = Guidance(guide, asked.targets, recipe, scale)
                guided = [(guidance, {**who, "recipe": repr(recipe)})]
                cell = self.bench.generate(f"grid-{told}", f"around elucd, {told}", asked, guided)
                measures = measured(cell.tensors["images"])
                points.append(GridPoint(axis, values, False, scale, measures))
            found += sorted(points, key=lambda p: tuple(p.values.values()))
        return found

    def classifier(
        self, name: str, guide: Guide, known: tuple[ArmResult, ArmResult] | None
    ) -> ClassifierResult:
        """A classifier, measured and guiding; ``known`` is what it achieves, if it is known."""
        material = self.world.renders(guide, self.settings.renders)
        probe = to_unit(material.pixels[:8])
        gates = has_gates(guide, probe)
        factors = self.settings.gates if gates else ()
        reading = self._reading(name, guide, material, factors)
        arm, softer = ablation()[-1], []
        achieved = known or self.both(self.task(f"model-{name}", guide), arm)
        for factor in factors:
            task = self.task(f"model-{name}", Softened(guide, ELUCD.softplus, factor), factor)
            renamed = replace(arm, name=f"gates-{factor:g}", label=f"{arm.label}, gates {factor:g}")
            softer.append(Softer(factor, *self.both(task, renamed)))
        parameters = sum(p.numel() for p in guide.network().parameters())
        return ClassifierResult(
            name, parameters, has_kinks(guide, probe), gates, reading, *achieved, softer
        )

    def _reading(
        self, name: str, guide: Guide, material: Material, factors: Sequence[float]
    ) -> Reading:
        versions = package_versions()
        settings = {
            "network": network_hash(guide.network()),
            "renders": material.identity,
            "ranges": RANGES,
            "levels": self.settings.levels,
            "gates": list(factors),
            "backbone": file_hashes(self.world.backbone.files(), self.world.backbone.name),
            "beta": ELUCD.softplus,
            "noise": STEADY_NOISE,
            "versions": {name: versions[name] for name in ("ppap-host", "torch")},
        }

        def make() -> Cell:
            return Cell(
                {
                    "clean_ece": _clean_ece(guide, material),
                    "forms": [asdict(form) for form in forms(guide, material, factors)],
                    "honesty": [asdict(self._honesty(guide, material, view)) for view in VIEWS],
                }
            )

        self.watch(f"{name}: calibration", 0, 1)
        # JSON knows neither infinity nor tuples nor measures.
        values = self.cells.get(f"model-{name}-calibration", settings, make).values
        return Reading(
            values["clean_ece"],
            {row["view"]: _honesty_of(row) for row in values["honesty"]},
            [_form_of(row) for row in values["forms"]],
        )

    def _honesty(self, guide: Guide, material: Material, view: str) -> Honesty:
        config = CalibrationConfig(
            view="predicted" if view == "predicted" else "noised",
            ranges=RANGES,
            levels=self.settings.levels,
        )
        found = calibrate(guide, self.world.backbone, material, config, watch=self.watch).details
        integral, points = found["integral"], found["levels"]
        return Honesty(
            view,
            Measure(integral["mean"], integral["mean_error"]),
            integral["trapezoid"],
            integral["smooth_mean"],
            statistics.fmean(p["accuracy"] for p in points),
            [(p["log_snr"], p["ece"], p["accuracy"], p["confidence"]) for p in points],
        )

    def _distance(self, features: Tensor) -> dict[str, Measure]:
        return {"frechet": frechet_measure(self.reference, features)}

    def floor(self, count: int) -> dict[str, Measure]:
        """Measures of ``count`` renders themselves, over :data:`FLOORS` sets."""
        sets = [
            self.bench.distances(to_unit(self.world.real(REFERENCE_SEED + 1 + k, count)))
            for k in range(FLOORS)
        ]
        found = {}
        for name in sets[0]:
            values = [one[name].value for one in sets]
            found[name] = Measure(statistics.fmean(values), statistics.stdev(values))
        return found

    def variance(self) -> str:
        """The variance of the ancestral step: what the backbone has learned, or beta."""
        backbone = self.world.backbone
        state = torch.zeros(1, *backbone.state_shape, dtype=backbone.state_dtype)
        condition = encode(backbone, [""], [None])
        with torch.no_grad():
            v = backbone.predict(state, backbone.levels()[-1], condition).v
        return "fixed, beta" if v is None else "learned"


def _who(guide: Guide) -> dict[str, Any]:
    """What tells a guide from others."""
    return {"guide": guide.name, "network": network_hash(guide.network()), "experts": None}


def _honesty_of(row: Mapping[str, Any]) -> Honesty:
    curve = [(float(a), float(b), float(c), float(d)) for a, b, c, d in row["curve"]]
    return Honesty(**{**row, "mean": Measure(**row["mean"]), "curve": curve})


def _form_of(row: Mapping[str, Any]) -> Form:
    measures = {key: Measure(**row[key]) for key in ("accuracy", "steadiness")}
    return Form(**{**row, **measures})


# Classifiers


@torch.no_grad()
def has_gates(guide: Guide, x: Float[Tensor, "b 3 h w"]) -> bool:
    """Whether a guide's network has GELU, SiLU or Mish: softening them changes what it says."""
    return not _same(guide.see(x), Softened(guide, math.inf, 0.5).see(x))


@torch.no_grad()
def has_kinks(guide: Guide, x: Float[Tensor, "b 3 h w"]) -> bool:
    """Whether a guide's network has ReLUs or the like: Softplus changes what it says."""
    return not _same(guide.see(x), Softened(guide, 1.0).see(x))


def _same(one: Tensor, other: Tensor) -> bool:
    """But for rounding: a network may take other paths where its calls are watched."""
    return torch.allclose(one, other, rtol=1e-4, atol=1e-4)


def forms(guide: Guide, material: Material, gates: Sequence[float]) -> list[Form]:
    """A classifier as it is, as EluCD smooths it, and with its gates softened besides."""
    kinds = [(None, 1.0), *((ELUCD.softplus, factor) for factor in (1.0, *gates))]
    found = []
    for beta, factor in kinds:
        formed = Softened(guide, math.inf if beta is None else beta, factor)
        found.append(Form(beta, factor, *_read_clean(formed, material)))
    return found


def _truth(material: Material) -> Tensor:
    if material.truth is None:
        raise ValueError("Renders have labels.")
    return material.truth


def _read_clean(guide: Guide, material: Material, batch: int = 50) -> tuple[Measure, Measure]:
    """How many renders are read rightly, and how steady the gradient is."""
    truth, right, cosines = _truth(material), [], []
    for first in range(0, len(material), batch):
        rows = range(first, min(first + batch, len(material)))
        x, wanted = to_unit(material.pixels[rows.start : rows.stop]), truth[rows.start : rows.stop]
        noise = ImageNoise(0, rows, tuple(x.shape[1:]))()
        pair = []
        for shown in (x, x + STEADY_NOISE * noise):
            point = shown.clone().requires_grad_(True)
            output = guide.see(point)
            (gradient,) = torch.autograd.grad(guide.loss(output, wanted).sum(), point)
            pair.append(gradient.flatten(1))
            if shown is x:
                said = guide.logits(output.detach())
                right.append(said.argmax(dim=1) == wanted.argmax(dim=1))
        clean, noisy = pair
        cosines.append(torch.cosine_similarity(clean, noisy, dim=1))
    return share_measure(torch.cat(right)), mean_measure(torch.cat(cosines))


@torch.no_grad()
def _clean_ece(guide: Guide, material: Material, batch: int = 50) -> float:
    from ppap_plugin_bench.calibration.measures import calibration_error

    wanted = _truth(material).argmax(dim=1)
    said = torch.cat([guide.logits(guide.see(to_unit(x))) for x in material.pixels.split(batch)])
    best = said.softmax(dim=1).max(dim=1)
    confidence = best.values.double().clamp(0, 1)
    return calibration_error(confidence.numpy(), (best.indices == wanted).double().numpy())


# Statistics


def frechet_measure(
    real: Float[Tensor, "n d"], made: Float[Tensor, "m d"], repeats: int = RESAMPLINGS
) -> Measure:
    """The Frechet distance of two sets of features, its standard error by resampling ``made``.

    Resampled sets lie farther away, since images come up twice; only their spread is used. NaN for
    a single image.
    """
    if min(len(real), len(made)) < 2:
        return Measure(math.nan)
    real, made = real.double(), made.double()
    mean, covariance = real.mean(dim=0), torch.cov(real.T)
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T

    def distance(rows: Tensor) -> float:
        # tr (C_1 C_2)^(1/2) is the sum of the singular values of the centred rows times C_1^(1/2).
        own = made[rows].mean(dim=0)
        centred = (made[rows] - own) / math.sqrt(len(rows) - 1)
        shared = torch.linalg.svdvals(centred @ root).sum()
        apart = (own - mean).square().sum() + covariance.trace() + centred.square().sum()
        return float(apart - 2 * shared)

    generator = torch.Generator().manual_seed(0)
    count = len(made)
    draws = [distance(torch.randint(count, (count,), generator=generator)) for _ in range(repeats)]
    return Measure(frechet_distance(real, made), statistics.stdev(draws))


def correlate(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Pearson's correlation of a few pairs, by all orders of one side.

    Returns:
        r; the share of orders whose correlation is as far from zero or farther, r's own included;
        and the least that this share can be, where no other order comes as far. r and the share
        are NaN where one side does not vary.

    Raises:
        ValueError: there are fewer than three pairs, or more than eight.
    """
    if not 3 <= len(x) == len(y) <= 8:
        raise ValueError("Three to eight pairs, please.")
    a, b = (np.asarray(v, np.float64) - np.mean(v) for v in (x, y))
    size = math.sqrt(float((a * a).sum() * (b * b).sum()))
    least = 1 / math.factorial(len(x))
    if size == 0:
        return math.nan, math.nan, least
    r = float(a @ b) / size
    others = [abs(float(a @ b[list(order)])) for order in itertools.permutations(range(len(x)))]
    p = statistics.fmean(other >= abs(r) * size * (1 - 1e-12) for other in others)
    return r, p, least


MEASURES: dict[str, str] = {
    "ece_predicted": "integral ECE at the predicted x_0",
    "ece_noised": "integral ECE at x_t",
    "smooth_ece_predicted": "smooth ECE at the predicted x_0",
    "accuracy_predicted": "accuracy at the predicted x_0",
    "clean_accuracy": "accuracy on clean renders",
}
"""What is known of a classifier before it guides, for people."""

OUTCOMES = ("accuracy", "frechet")


def known_before(result: ClassifierResult) -> dict[str, float]:
    """The :data:`MEASURES` of a classifier."""
    predicted, noised = result.reading.honesty["predicted"], result.reading.honesty["noised"]
    return {
        "ece_predicted": predicted.mean.value,
        "ece_noised": noised.mean.value,
        "smooth_ece_predicted": predicted.smooth,
        "accuracy_predicted": predicted.accuracy,
        "clean_accuracy": result.reading.forms[0].accuracy.value,
    }


def correlations(classifiers: Sequence[ClassifierResult]) -> list[Correlation]:
    """Of all measures with all outcomes at the strength closest to renders, as EluCD's are.

    None for less than three classifiers, or more than eight.
    """
    if not 3 <= len(classifiers) <= 8:
        return []
    found = []
    before = [known_before(result) for result in classifiers]
    for measure in MEASURES:
        x = [row[measure] for row in before]
        for outcome in OUTCOMES:
            y = [result.closest.measures[outcome].value for result in classifiers]
            if not any(map(math.isnan, y)):
                found.append(Correlation(measure, outcome, *correlate(x, y)))
    return found


__all__ = [
    "FULL", "GRID", "MEASURES", "OUTCOMES", "PARTS", "QUICK", "SHIPPED", "ClassifierResult",
    "ClassifierWorld", "Correlation", "ElucdWorld", "Form", "GridPoint", "Honesty", "Outcome",
    "Reading", "Settings", "Softer", "ablation", "correlate", "correlations", "forms",
    "frechet_measure", "has_gates", "has_kinks", "known_before", "run",
]  # fmt: skip
