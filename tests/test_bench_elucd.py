"""EluCD is taken apart without a loop of its own, and what is said of it follows from numbers."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import colours
import pytest
import torch
from PIL.Image import Image
from ppap_plugin_bench.benchmarks import elucd as benchmark
from ppap_plugin_bench.benchmarks.arms import ArmResult, Assignment, Sampling, Task
from ppap_plugin_bench.benchmarks.elucd import (
    Form,
    Honesty,
    Outcome,
    Reading,
    Settings,
    Softer,
    ablation,
    correlate,
    frechet_measure,
    has_gates,
    has_kinks,
    run,
)
from ppap_plugin_bench.benchmarks.elucd_options import PARTS, named_models
from ppap_plugin_bench.benchmarks.elucd_report import (
    advice,
    findings,
    markdown,
    tables,
    verdict,
    write_report,
)
from ppap_plugin_bench.calibration import measurement
from ppap_plugin_bench.calibration.material import Material
from ppap_plugin_bench.cli.bench import app
from ppap_plugin_bench.evaluation import Measure, Search, frechet_distance, share_measure
from torch import Tensor, nn
from torch.nn import functional as F
from worlds import GaussianBackbone

from ppap_host.files.errors import OptionError, PpapError, UnknownNameError
from ppap_host.files.images import to_pixels
from ppap_host.guides.guide import Guide, Wrapped
from ppap_host.guides.targets import Given, Target
from ppap_host.plugins.registry import registry
from ppap_host.recipes.presets import ELUCD, NAIVE
from ppap_host.sampling.evaluator import Guidance
from ppap_host.sampling.loop import sample
from ppap_host.sampling.solvers import ddpm
from ppap_host.sampling.streams import ImageNoise

COLOURS = ("red", "cyan", "green", "purple", "blue", "yellow")
"""A channel that is light, or dark."""

TINY = Settings(
    sampling=Sampling(steps=3, sampler="ddpm", batch=24),
    search=Search(trials=3),
    per_class=1,
    validation=6,
    references=12,
    grid=6,
    renders=12,
    levels=1,
    gates=(0.5,),
)


def as_logits(x: Tensor) -> Tensor:
    """How light and how dark each channel is on the whole."""
    means = x.mean(dim=(2, 3))
    return 12 * torch.stack([means, -means], dim=2).flatten(1)


class SoftTempered(Wrapped):
    """A guide at EluCD's temperatures."""

    def __init__(self, guide: Guide, joint: float, marginal: float) -> None:
        super().__init__(guide)
        self.joint, self.marginal = joint, marginal

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        wanted = (target * output).sum(dim=1)
        return -(self.joint * wanted - (self.marginal * output).logsumexp(dim=1))


class ColourClassifier(Guide):
    """Names the colour that stands out, by a network with some activation."""

    name = "classifier"
    default_scale: Mapping[str, float] = {"": 1.0}

    def __init__(self, activation: type[nn.Module] = nn.ReLU) -> None:
        layers = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1)
        with torch.no_grad():
            for k in range(6):
                layers[0].weight[k] = 0
                layers[0].weight[k, k // 2] = 1 - 2 * (k % 2)
            layers[1].weight.copy_(12 * torch.eye(6)[:, :, None, None])
            for layer in layers:
                layer.bias.zero_()  # type: ignore[union-attr]
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self._network = nn.Sequential(layers[0], activation(), layers[1], pool).eval()
        self._network.requires_grad_(False)

    def network(self) -> nn.Module:
        return self._network

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        return Target(given.words, F.one_hot(torch.tensor([COLOURS.index(given.words)]), 6).float())

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return -(target * output.log_softmax(dim=1)).sum(dim=1)

    def logits(self, output: Tensor) -> Tensor:
        return output

    def tempered(self, joint: float, marginal: float) -> Guide:
        return SoftTempered(self, joint, marginal)

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        raise NotImplementedError

    def picture(self, output: Tensor) -> list[Image]:
        raise NotImplementedError

    def measure(self, output: Tensor, target: Tensor) -> dict[str, list[float]]:
        raise NotImplementedError


ACTIVATIONS: dict[str | None, type[nn.Module]] = {
    None: nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU,
}  # fmt: skip


class ColourWorld(colours.ColourWorld):
    """Gaussian pixels, judged by the channel that stands out."""

    objectives = {"classifier": ("Class", "accuracy", True)}  # noqa: RUF012

    def __init__(self) -> None:
        self.backbone = GaussianBackbone(shape=(3, 8, 8), mean=0.0, spread=0.3)

    def guide(self, name: str) -> Guide:
        return self.classifier(None)

    def classifier(self, model: str | None) -> Guide:
        return ColourClassifier(ACTIVATIONS[model])

    def renders(self, guide: Guide, count: int) -> Material:
        pixels = self.real(5, count)
        labels = as_logits(pixels / 127.5 - 1).argmax(dim=1)
        return Material(pixels, F.one_hot(labels, 6).float(), {"count": count})

    def real(self, seed: int, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        shades = 0.5 * torch.randn(count, 3, 1, 1, generator=generator)
        return to_pixels(shades + 0.2 * torch.randn(count, 3, 8, 8, generator=generator))

    def labelled(self, guide: str, seed: int, count: int) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def assignment(
        self, guide: Guide, count: int, seed: int, folder: Path, *, validation: bool
    ) -> Assignment:
        labels = torch.arange(count) % 6
        targets = torch.cat([guide.read_target(COLOURS[k], (8, 8)).value for k in labels.tolist()])

        def seen(x: Tensor) -> Tensor:
            return as_logits(x).argmax(dim=1)

        return Assignment(
            targets,
            seed,
            lambda x: {"accuracy": share_measure(seen(x) == labels)},
            {"validation": validation},
            lambda x: [COLOURS[k] for k in seen(x).tolist()],
        )

    def floors(self, guide: Guide, count: int) -> dict[str, Measure]:
        return {}

    def pictures(self, guide: Guide, count: int) -> list[tuple[str, list[tuple[str, Image]]]]:
        return []


MODELS = {"gelu": "gelu", "silu": "silu"}


def bench(out: Path, **options: Any) -> tuple[Outcome, ColourWorld]:
    world = ColourWorld()
    settings = options.pop("settings", TINY)
    return run(out, world, settings, **{"models": MODELS, **options}), world


@pytest.fixture(scope="module", autouse=True)
def _few_resamplings() -> Iterator[None]:
    """Errors of calibration errors are not what is tested here, and take half of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measurement, "_RESAMPLINGS", 4)
        yield


Finished = tuple[Path, Outcome]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    out = tmp_path_factory.mktemp("elucd")
    outcome, _ = bench(out, command="ppap bench elucd --out here")
    write_report(outcome, out)
    return out, outcome


# The arms


def test_parts_are_added_one_by_one_until_it_is_the_preset() -> None:
    arms = {arm.name: arm.recipe for arm in ablation()}
    assert list(arms) == [
        "unguided", "noisy", "predicted", "softplus", "temperatures", "sine",
    ]  # fmt: skip
    assert arms["sine"] == replace(ELUCD, absolute=True)
    steps = [arms[name] for name in ("noisy", "predicted", "softplus", "temperatures", "sine")]
    told = [
        (
            r.sees_noise, math.isfinite(r.softplus), (r.joint, r.marginal) != (1, 1),
            r.value("gamma") > 0,
        )
        for r in steps if r is not None
    ]  # fmt: skip
    assert told == [
        (True, False, False, False), (False, False, False, False), (False, True, False, False),
        (False, True, True, False), (False, True, True, True),
    ]  # fmt: skip
    for recipe in steps:
        assert recipe is not None
        assert (recipe.limit, recipe.every, recipe.place) == (ELUCD.limit, 1, ELUCD.place)


def test_the_arm_at_x_t_is_the_recipe_naive() -> None:
    backbone, guide = GaussianBackbone(shape=(3, 8, 8), spread=0.3), ColourClassifier()
    target = guide.read_target("green", (8, 8)).value.expand(3, 6)

    def made(recipe: Any, scale: float) -> Tensor:
        return sample(
            backbone,
            lambda x, level: backbone.predict(x, level, {}),
            backbone.walk(6),
            ddpm(backbone),
            ImageNoise(0, range(3), backbone.state_shape),
            [Guidance(guide, target, replace(recipe, limit=math.inf, absolute=True), scale)],
        )

    root = math.sqrt(3 * 8 * 8)
    torch.testing.assert_close(
        made(ablation()[1].recipe, 1.0), made(NAIVE, root), rtol=1e-4, atol=1e-4
    )


# The benchmark


def test_every_guided_arm_gets_the_same_search(finished: Finished) -> None:
    _, outcome = finished
    arms: list[ArmResult] = [*outcome.arms[1:], *(r.arm for r in outcome.classifiers)]
    arms += [soft.arm for r in outcome.classifiers for soft in r.softer]
    for arm in arms:
        assert len(arm.trials) == 3
        assert TINY.start / math.sqrt(3 * 8 * 8) in [t.scale for t in arm.trials]
        assert max(t.score for t in arm.trials) == next(
            t.score for t in arm.trials if t.scale == arm.scale
        )
        assert len(arm.images) == 24
        error = arm.measures["frechet"].error
        assert error is not None
        assert error > 0
    assert (outcome.arms[0].scale, outcome.arms[0].trials) == (None, [])


def test_the_other_strength_is_the_one_closest_to_renders(finished: Finished) -> None:
    _, outcome = finished
    assert [arm.name for arm in outcome.closest] == [arm.name for arm in outcome.arms[1:]]
    pairs = list(zip(outcome.arms[1:], outcome.closest, strict=True))
    for result in outcome.classifiers:
        pairs += [(one.arm, one.closest) for one in (result, *result.softer)]
    for arm, other in pairs:
        least = min(arm.trials, key=lambda t: t.tie)
        assert other.scale == least.scale
        assert torch.equal(arm.images, other.images) == (arm.scale == other.scale)


def test_guided_images_are_of_their_class(finished: Finished) -> None:
    value = {arm.name: arm.measures["accuracy"].value for arm in finished[1].arms}
    assert value["sine"] > value["unguided"] + 0.3
    assert value["predicted"] > value["unguided"] + 0.3


def test_the_preset_is_on_every_axis_of_the_grid(finished: Finished) -> None:
    _, outcome = finished
    for axis, around in benchmark.GRID.items():
        points = [point for point in outcome.grid if point.axis == axis]
        assert len(points) == len(around) + 1
        (own,) = [point for point in points if point.preset]
        assert own.values == {key: ELUCD.value(key) for key in own.values}
        assert own.values not in around
        assert [tuple(p.values.values()) for p in points] == sorted(
            tuple(p.values.values()) for p in points
        )
    judge = ColourWorld().assignment(ColourClassifier(), 6, 0, Path(), validation=False).judge
    closest = outcome.closest[-1]
    wanted = judge(closest.images[:6] / 127.5 - 1)["accuracy"]
    assert {p.measures["accuracy"] for p in outcome.grid if p.preset} == {wanted}
    assert {p.scale for p in outcome.grid} == {closest.scale}


def test_classifiers_are_measured_and_guide(finished: Finished) -> None:
    _, outcome = finished
    assert [r.name for r in outcome.classifiers] == ["shipped", "gelu", "silu"]
    assert [(r.kinks, r.gates) for r in outcome.classifiers] == [
        (True, False), (False, True), (False, True),
    ]  # fmt: skip
    shipped = outcome.classifiers[0]
    assert shipped.arm is outcome.elucd
    assert shipped.closest.scale == outcome.closest[-1].scale
    for result in outcome.classifiers:
        assert [soft.gates for soft in result.softer] == [0.5] * result.gates
        assert set(result.reading.honesty) == {"predicted", "noised"}
        for honesty in result.reading.honesty.values():
            assert len(honesty.curve) == 5
            assert honesty.mean.value == pytest.approx(
                statistics.fmean(ece for _, ece, _, _ in honesty.curve)
            )
        plain = result.reading.forms[0]
        assert (plain.beta, plain.gates) == (None, 1)
        assert 0 < plain.steadiness.value <= 1
        for form in result.reading.forms[1:]:
            assert form.beta == ELUCD.softplus
    kinds = {(f.measure, f.outcome) for f in outcome.correlations}
    assert len(kinds) == len(outcome.correlations) == 2 * len(benchmark.MEASURES)


def test_softened_gates_have_cells_of_their_own(finished: Finished) -> None:
    out, outcome = finished
    gelu = outcome.classifiers[1]
    assert not torch.equal(gelu.arm.images, gelu.softer[0].arm.images)
    stored = json.loads((out / "cells" / "model-gelu-gates-0.5.json").read_text())
    assert stored["settings"]["assignment"]["gates"] == 0.5


def test_a_second_run_makes_nothing_anew(finished: Finished) -> None:
    out, outcome = finished
    again, world = bench(out)
    assert again.record["cells_made"] == 0
    assert world.backbone.evaluations == 1  # asks once which variance there is
    assert again.record["variance"] == "fixed, beta"
    assert markdown(again) == markdown(outcome)
    for one, other in zip(outcome.arms, again.arms, strict=True):
        assert torch.equal(one.images, other.images)


def test_an_interrupted_part_goes_on_to_the_same_end(finished: Finished, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"parts": ["classifiers"], "models": {"gelu": "gelu"}}
    told = [0]

    def watch(what: str, done: int, total: int) -> None:
        told[0] += 1
        if told[0] in (10, 40):
            raise KeyboardInterrupt

    stops = 0
    for _ in range(5):
        try:
            outcome, _ = bench(tmp_path, watch=watch, **asked)
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops == 2
    for one, other in zip(outcome.classifiers, finished[1].classifiers[:2], strict=True):
        assert torch.equal(one.arm.images, other.arm.images)
        assert torch.equal(one.closest.images, other.closest.images)
        assert one.reading == other.reading
    assert (outcome.grid, outcome.closest, outcome.correlations) == ([], [], [])
    assert "no correlation" in findings(outcome)
    write_report(outcome, tmp_path)


def test_the_grid_alone(tmp_path: Path) -> None:
    outcome, _ = bench(tmp_path, parts=["grid"], models={})
    assert ([arm.name for arm in outcome.arms], outcome.classifiers) == (["sine"], [])
    write_report(outcome, tmp_path)
    assert not (tmp_path / "elucd-classifiers-sheet.png").exists()


# The report


def test_the_report_is_complete(finished: Finished) -> None:
    out, outcome = finished
    values = json.loads((out / "elucd.json").read_text())
    assert values["command"] == "ppap bench elucd --out here"
    assert [arm["arm"] for arm in values["arms"]] == [arm.name for arm in outcome.arms]
    assert values["settings"]["sampling"]["sampler"] == "ddpm"
    assert values["grid"][3]["settings"] == {"softplus": "inf"}
    assert values["report"] == (out / "elucd.md").read_text() == markdown(outcome)
    for name in ("elucd.png", "elucd-grid.png", "elucd-sheet.png", "elucd-classifiers-sheet.png"):
        assert (out / name).stat().st_size > 5000
    rows = list(csv.DictReader((out / "elucd.csv").read_text().splitlines()))
    parts = [row["part"] for row in rows]
    assert {part: parts.count(part) for part in parts} == {
        "ablation": 6, "closest": 5, "grid": len(outcome.grid), "classifier": 3,
        "classifier, closest": 3, "gates": 2, "gates, closest": 2,
    }  # fmt: skip
    assert all(row["accuracy"] and row["frechet"] for row in rows)
    table = (out / "elucd.md").read_text()
    for arm in outcome.arms:
        assert f"| {arm.label} |" in table
    assert "nan" not in table
    for _, titles, lines in tables(outcome):
        assert {len(line) for line in lines} == {len(titles)}


@pytest.mark.parametrize(
    ("one", "other", "higher", "word"),
    [
        (Measure(0.9, 0.02), Measure(0.7, 0.02), True, "better"),
        (Measure(0.7, 0.02), Measure(0.9, 0.02), True, "worse"),
        (Measure(3.0, 0.1), Measure(5.0, 0.1), False, "better"),
        (Measure(0.9, 0.1), Measure(0.7, 0.1), True, "level"),
        (Measure(0.9), Measure(0.1), True, "level"),
    ],
)
def test_two_standard_errors_decide(one: Measure, other: Measure, higher: bool, word: str) -> None:
    assert verdict(one, other, higher_is_better=higher) == word


def arm(accuracy: float, frechet: float) -> ArmResult:
    """An arm of a hundred images with these measures."""
    measures = {"accuracy": Measure(accuracy, 0.02), "frechet": Measure(frechet, 0.2)}
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    return ArmResult("a", "a", "elucd", 1.0, [], measures, 1.0, 0, 0, 0.0, 0, images, ["", ""])


Pair = tuple[float, float]


def with_gates(task: Task, *softer: tuple[Pair, Pair]) -> Outcome:
    """Classifiers that reach 0.8 and 5 at both strengths, each with one softened form."""
    forms = [Form(b, g, Measure(0.9, 0.1), Measure(0.9, 0.1)) for b, g in ((None, 1), (3.0, 0.5))]
    honesty = {v: Honesty(v, Measure(0.1, 0.0), 0.1, 0.1, 0.9, []) for v in ("noised", "predicted")}
    own = arm(0.8, 5.0)
    results = [
        benchmark.ClassifierResult(
            f"c{k}", 1, False, True, Reading(0.1, honesty, forms), own, own,
            [Softer(0.5, arm(*one), arm(*other))],
        )
        for k, (one, other) in enumerate(softer)
    ]  # fmt: skip
    return Outcome([own], [], [], results, [], {}, task, {})


SAME, BETTER, CLOSER, WORSE, TRADE = (0.8, 5.0), (0.95, 5.0), (0.8, 3.0), (0.7, 5.0), (0.95, 9.0)


@pytest.mark.parametrize(
    ("softer", "words"),
    [
        ([(SAME, SAME), (WORSE, SAME)], "Leave GELU and SiLU networks as they are"),
        ([(TRADE, SAME)], "Leave GELU and SiLU networks as they are"),
        ([(BETTER, WORSE)], "Leave GELU and SiLU networks as they are"),
        ([(BETTER, SAME), (SAME, CLOSER)], "Soften the gates"),
        ([(BETTER, SAME), (SAME, SAME)], "Try softened gates"),
    ],
)
def test_advice_follows_the_numbers(
    finished: Finished, softer: list[tuple[Pair, Pair]], words: str
) -> None:
    outcome = with_gates(finished[1].task, *softer)
    assert advice(outcome).startswith(words)
    assert advice(outcome) in findings(outcome)


# Statistics


def test_correlation_by_all_orders() -> None:
    r, p, least = correlate([1, 2, 3, 4], [1, 3, 2, 10])
    assert r == pytest.approx(torch.corrcoef(torch.tensor([[1.0, 2, 3, 4], [1, 3, 2, 10]]))[0, 1])
    assert least == pytest.approx(1 / 24)
    assert p >= least
    assert correlate([1, 2, 3], [6, 4, 2])[:2] == pytest.approx((-1, 2 / 6))  # and turned round
    assert all(map(math.isnan, correlate([1, 2, 3], [5, 5, 5])[:2]))
    with pytest.raises(ValueError, match="Three"):
        correlate([1, 2], [1, 2])


def test_the_error_of_a_frechet_distance_is_that_of_resampling() -> None:
    generator = torch.Generator().manual_seed(3)
    real = torch.randn(60, 4, generator=generator)
    made = torch.randn(40, 4, generator=generator) * 1.3 + 0.2
    found = frechet_measure(real, made, repeats=20)
    assert found.value == pytest.approx(frechet_distance(real, made))
    generator = torch.Generator().manual_seed(0)
    draws = [
        frechet_distance(real, made[torch.randint(40, (40,), generator=generator)])
        for _ in range(20)
    ]
    assert found.error == pytest.approx(statistics.stdev(draws), rel=1e-4)
    assert math.isnan(frechet_measure(real, made[:1]).value)


def test_what_activations_a_network_has() -> None:
    x = torch.rand(2, 3, 8, 8)
    kinds = {
        nn.ReLU: (True, False), nn.GELU: (False, True), nn.SiLU: (False, True),
        nn.Tanh: (False, False), nn.Hardswish: (True, False),
    }  # fmt: skip
    for activation, known in kinds.items():
        guide = ColourClassifier(activation)
        assert (has_kinks(guide, x), has_gates(guide, x)) == known


# The command


def test_models_are_named() -> None:
    assert named_models(["a/silu,x=b/c", "d/e/"]) == {"silu": "a/silu", "x": "b/c", "e": "d/e/"}
    assert named_models([]) == {}


@pytest.mark.parametrize("text", ["a/shipped", "shipped=a", "=a", "x=", "a,b/a", "a,,b"])
def test_models_without_a_name_of_their_own_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match="model") as caught:
        named_models([text])
    assert caught.value.message.startswith("--model ")
    assert "NAME=FOLDER" in caught.value.remedy


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("elucd", "--part", "grid", "--model", "m={}"), "does nothing without the part classif"),
        (("elucd", "--model", "m={}/none.pt"), "There is no file"),
        (("capacity", "--harvest", "{}", "--model", "shipped={}"), "is there already"),
        (("capacity", "--harvest", "{}", "--model", "{},{}"), "has two classifiers"),
    ],
)
def test_further_classifiers_are_looked_at_first(
    tmp_path: Path, given: tuple[str, ...], words: str
) -> None:
    (tmp_path / "harvest.json").touch()
    command = [word.format(tmp_path, tmp_path) for word in given]
    with pytest.raises(PpapError, match=words):
        app([*command, "--out", str(tmp_path / "out")], standalone_mode=False)
    assert not (tmp_path / "out").exists()


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="ablation"):
        app(["elucd", "--out", str(tmp_path), "--part", "ablations"], standalone_mode=False)


def test_the_command_prints_results_for_programs(
    finished: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: dict[str, Any] = {}

    def instead(out: Path, world: object, settings: Settings, **options: Any) -> Outcome:
        asked.update(options, settings=settings)
        return finished[1]

    monkeypatch.setattr(benchmark, "run", instead)
    monkeypatch.setattr(benchmark, "ClassifierWorld", ColourWorld)
    monkeypatch.setattr(registry(), "entry", lambda kind, name: None)
    app(
        ["elucd", "--out", str(tmp_path), "--quick", "--seed", "3", "--model", "a/b", "--json"],
        standalone_mode=False,
    )
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "elucd.json").read_text())
    assert (asked["models"], asked["parts"]) == ({"b": "a/b"}, list(PARTS))
    assert asked["settings"] == replace(benchmark.QUICK, seed=3)
