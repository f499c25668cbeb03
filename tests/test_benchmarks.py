"""Benchmarks go on where they were stopped, treat all arms alike, and leave complete reports."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from colours import ColourGuide, ColourWorld
from ppap_plugin_bench.benchmarks import ppap as benchmark
from ppap_plugin_bench.benchmarks import world as world_module
from ppap_plugin_bench.benchmarks.arms import Assignment, Sampling
from ppap_plugin_bench.benchmarks.cells import Cell, Cells
from ppap_plugin_bench.benchmarks.ppap import Outcome, Settings, run
from ppap_plugin_bench.benchmarks.report import shown, write_report
from ppap_plugin_bench.benchmarks.world import VALIDATION_SEED, ShapesWorld, class_targets
from ppap_plugin_bench.cli.bench import app
from ppap_plugin_bench.cli.evaluate import app as evaluate_app
from ppap_plugin_bench.evaluation import Measure, Search
from ppap_plugin_bench.shapes import FRESH_SEED
from ppap_plugin_bench.steered import steered
from typer.testing import CliRunner

import ppap_host as ppap
from ppap_host.backbones.noise import NoiseLevel, uniform_ranges
from ppap_host.experts.harvest import Lesson
from ppap_host.experts.patches import Patch
from ppap_host.experts.sets import ExpertSet
from ppap_host.experts.tuning import Predictor
from ppap_host.files.errors import DamageWarning, OptionError, UnknownNameError
from ppap_host.files.images import from_tensor, to_unit
from ppap_host.guides.guide import Guide
from ppap_host.guides.targets import Given, Target
from ppap_host.plugins.registry import registry
from ppap_host.shapes.scenes import CLASS_NAMES, COLORS, sample_scenes

TINY = Settings(
    sampling=Sampling(steps=3, batch=5),
    search=Search(trials=4),
    per_class=1,
    targets=6,
    validation=4,
    references=12,
    harvest=8,
    tuning_steps={"classifier": 2, "depth": 2},
    curve_images=5,
    curve_levels=3,
)


class Harvested:
    """Stands for a harvest."""

    def __init__(self, count: int) -> None:
        self.pixels = ColourWorld().real(77, count)

    def __len__(self) -> int:
        return len(self.pixels)

    def lesson(self, guide: Guide, watch: object) -> Lesson:
        return Lesson(self.pixels, to_unit(self.pixels), {"kind": "harvest"})

    def identity(self) -> dict[str, Any]:
        return {"kind": "harvest"}


class Tuner:
    """Makes experts that change nothing, and counts them."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, str]] = []
        self.views: list[str] = []

    def __call__(
        self,
        guide: Guide,
        lesson: Lesson,
        levels: Sequence[NoiseLevel],
        experts: int,
        method: str,
        steps: int,
        seed: int,
        work: Path,
        watch: benchmark.Watch,
        predictor: Predictor | None,
    ) -> ExpertSet:
        self.asked.append((guide.name, experts, method))
        network = guide.network()
        patches = [Patch.fresh(network, guide.patch_plan(network)) for _ in range(experts)]
        view = "noised" if predictor is None else "predicted"
        self.views.append(view)
        metadata = {"guide": guide.name, "view": view}
        return ExpertSet(uniform_ranges(levels, experts), patches, metadata)


@pytest.fixture(autouse=True)
def _no_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "harvest", lambda config, out, watch: Harvested(config.num))
    monkeypatch.setattr(benchmark, "fitting_set", lambda *asked: None)


def bench(out: Path, **options: Any) -> tuple[Outcome, ColourWorld, Tuner]:
    world, tuner = ColourWorld(), Tuner()
    settings = options.pop("settings", TINY)
    guides = options.pop("guides", ("classifier", "depth"))
    outcome = run(out, world, settings, guides=guides, tune=tuner, **options)
    return outcome, world, tuner


def stored(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


# Cells


def test_a_cell_is_made_once(tmp_path: Path) -> None:
    made = []

    def make() -> Cell:
        made.append(1)
        return Cell({"a": 1.5}, {"x": torch.arange(6, dtype=torch.uint8).view(2, 3)})

    for _ in range(2):
        cell = Cells(tmp_path).get("depth-x0-trial-0.5", {"scale": 0.5}, make)
        assert cell.values == {"a": 1.5}
        assert cell.tensors["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert len(made) == 1


def test_a_cell_of_other_settings_is_made_anew(tmp_path: Path) -> None:
    cells = Cells(tmp_path)
    for scale in (0.5, 0.7, 0.7):
        cell = cells.get("one", {"scale": scale}, lambda scale=scale: Cell({"scale": scale}))
        assert cell.values == {"scale": scale}
    assert (len(cells.made), len(cells.reused)) == (2, 1)


@pytest.mark.parametrize("file", ["one.json", "one.safetensors"])
def test_a_damaged_cell_is_made_anew(tmp_path: Path, file: str) -> None:
    def make() -> Cell:
        return Cell({}, {"x": torch.ones(3)})

    Cells(tmp_path).get("one", {}, make)
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[:-9])
    cells = Cells(tmp_path)
    with pytest.warns(DamageWarning, match="one"):
        assert cells.get("one", {}, make).tensors["x"].tolist() == [1, 1, 1]
    assert cells.made == ["one"]
    assert (tmp_path / file).read_bytes() == whole


def test_a_cell_that_measured_nothing_is_made_once(tmp_path: Path) -> None:
    cells = Cells(tmp_path)
    for _ in range(2):
        assert math.isnan(cells.get("one", {}, lambda: Cell({"a": math.nan})).values["a"])
    assert cells.reused == ["one"]


def test_an_interrupted_cell_leaves_nothing(tmp_path: Path) -> None:
    def make() -> Cell:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Cells(tmp_path).get("one", {}, make)
    assert list(tmp_path.iterdir()) == []


# The benchmark


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome, Tuner]:
    out = tmp_path_factory.mktemp("bench")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "harvest", lambda config, out, watch: Harvested(config.num))
        patch.setattr(benchmark, "fitting_set", lambda *asked: None)
        outcome, _, tuner = bench(out, command="ppap bench ppap --out here")
        write_report(outcome, out)
    return out, outcome, tuner


Finished = tuple[Path, Outcome, Tuner]


def test_which_arms_there_are(finished: Finished) -> None:
    _, outcome, tuner = finished
    names = [[arm.name for arm in result.arms] for result in outcome.tasks]
    assert names[0] == [
        "unguided", "score", "naive", "x0", "single", "supervised-5", "ppap-1", "ppap-2", "ppap-5",
        "ppap-10", "x0-experts",
    ]  # fmt: skip
    assert names[1] == ["unguided", "score", "naive", "x0", "single", "ppap-5"]
    assert tuner.asked == [
        ("classifier", 1, "full"), ("classifier", 5, "full"), ("classifier", 1, "patch"),
        ("classifier", 2, "patch"), ("classifier", 5, "patch"), ("classifier", 10, "patch"),
        ("classifier", 5, "patch"), ("depth", 1, "full"), ("depth", 5, "patch"),
    ]  # fmt: skip


def test_one_arm_learns_from_predictions_and_guides_at_them(finished: Finished) -> None:
    _, outcome, tuner = finished
    assert [i for i, view in enumerate(tuner.views) if view == "predicted"] == [6]
    arms = {arm.name: arm for arm in outcome.tasks[0].arms}
    ours, plain = arms["x0-experts"], arms["x0"]
    assert (ours.recipe, ours.experts) == ("x0", 5)
    assert ours.trainable == arms["ppap-5"].trainable
    # They change nothing, but each measures its own range of noise: not as the plain network does.
    unguided, *guided = (arm.measures["closeness"].value for arm in (arms["unguided"], ours, plain))
    assert min(guided) > unguided


def test_every_guided_arm_gets_the_same_search(finished: Finished) -> None:
    for result in finished[1].tasks:
        for arm in result.arms:
            if arm.name == "unguided":
                assert (arm.scale, arm.trials) == (None, [])
                continue
            assert len(arm.trials) == 4
            assert {0.25, 1, 4} < {t.scale for t in arm.trials}
            worth = [t.score if result.task.higher_is_better else -t.score for t in arm.trials]
            assert max(worth) == worth[[t.scale for t in arm.trials].index(arm.scale or 0)]


def test_guided_images_meet_their_targets_better(finished: Finished) -> None:
    for result in finished[1].tasks:
        value = {arm.name: arm.measures[result.task.objective].value for arm in result.arms}
        sign = 1 if result.task.higher_is_better else -1
        assert sign * value["x0"] > sign * value["unguided"]
        # One expert that changes nothing is the naive arm.
        if "ppap-1" in value:
            assert value["ppap-1"] == pytest.approx(value["naive"], abs=1e-3)


def test_arms_share_their_noise(finished: Finished) -> None:
    classes, depths = finished[1].tasks
    assert torch.equal(classes.arms[0].images[:6], depths.arms[0].images)


def test_what_arms_cost(finished: Finished) -> None:
    classes = finished[1].tasks[0]
    trainable = {arm.name: arm.trainable for arm in classes.arms}
    assert trainable["naive"] == trainable["x0"] == 0
    assert trainable["ppap-10"] == 10 * trainable["ppap-1"] > 0
    assert all(arm.seconds_per_image > 0 for arm in classes.arms)


def test_curves_cover_plain_single_and_each_expert(finished: Finished) -> None:
    curves = finished[1].tasks[0].curves
    groups = [curve.group for curve in curves]
    assert groups == ["plain", "single", *["supervised-5"] * 5, *["ppap-5"] * 5]
    for curve in curves:
        errors = [point.measures["rmse"].value for point in curve.points]
        assert len(errors) == 3
        assert errors == sorted(errors)  # cleanest first


def test_two_guides_at_once(finished: Finished) -> None:
    pair = finished[1].pair
    assert pair is not None
    assert pair.count == 6
    assert list(pair.measures) == ["unguided", "class alone", "depth alone", "class and depth"]
    assert pair.scales == {
        r.task.name: next(arm.scale for arm in r.arms if arm.name == "ppap-5")
        for r in finished[1].tasks
    }
    for name, alone in (("closeness", "class alone"), ("depth_error", "depth alone")):
        together = pair.measures["class and depth"][name].value
        assert pair.ratios[name] == pytest.approx(together / pair.measures[alone][name].value)
    good = pair.ratios["closeness"] >= 0.8 and pair.ratios["depth_error"] <= 1.2
    assert pair.within_a_fifth == good


def test_the_report_is_complete(finished: Finished) -> None:
    out, outcome, _ = finished
    results = json.loads((out / "results.json").read_text())
    assert results["command"] == "ppap bench ppap --out here"
    assert results["settings"]["sampling"]["steps"] == 3
    assert "torch" in results["versions"]
    for task in results["tasks"]:
        for arm in task["arms"]:
            assert {"frechet", "precision", "recall"} < set(arm["measures"])
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert len(rows) == 11 + 6
    assert {row["guide"] for row in rows} == {"classifier", "depth"}
    table = (out / "table.md").read_text()
    for arm in outcome.tasks[0].arms:
        assert f"| {arm.label} |" in table
    page = (out / "index.html").read_text()
    for tag in page.split('<img src="')[1:]:
        assert (out / tag.split('"')[0]).exists()
    assert page.count("<details>") == 11 + 6
    assert "nan" not in page


def test_a_second_run_makes_nothing_anew(finished: Finished) -> None:
    out, outcome, _ = finished
    before = stored(out / "cells")
    again, world, tuner = bench(out)
    assert again.record["cells_made"] == 0
    assert (world.backbone.evaluations, tuner.asked) == (0, [])
    assert stored(out / "cells") == before
    for one, other in zip(outcome.tasks, again.tasks, strict=True):
        for arm, same in zip(one.arms, other.arms, strict=True):
            assert (arm.scale, arm.measures) == (same.scale, same.measures)


def test_an_interrupted_run_goes_on_to_the_same_end(finished: Finished, tmp_path: Path) -> None:
    stops = [0]

    def watch(what: str, done: int, total: int) -> None:
        stops[0] += 1
        if stops[0] in (40, 160, 300):
            raise KeyboardInterrupt

    interrupted = 0
    for _ in range(10):
        try:
            outcome, _, _ = bench(tmp_path, watch=watch)
            break
        except KeyboardInterrupt:
            interrupted += 1
    assert interrupted == 3
    for one, other in zip(finished[1].tasks, outcome.tasks, strict=True):
        for arm, same in zip(one.arms, other.arms, strict=True):
            assert torch.equal(arm.images, same.images)
            assert (arm.scale, arm.measures) == (same.scale, same.measures)
    settings = {n: json.loads(d)["settings"] for n, d in stored(tmp_path / "cells").items()
                if n.endswith(".json")}  # fmt: skip
    assert settings == {
        n: json.loads(d)["settings"] for n, d in stored(finished[0] / "cells").items()
        if n.endswith(".json")
    }  # fmt: skip


def test_other_settings_make_other_images(finished: Finished, tmp_path: Path) -> None:
    from dataclasses import replace

    first, _, _ = bench(tmp_path, guides=("depth",))
    other, _, _ = bench(tmp_path, guides=("depth",), settings=replace(TINY, seed=1))
    assert not torch.equal(first.tasks[0].arms[0].images, other.tasks[0].arms[0].images)
    assert first.pair is None


def test_a_lost_expert_set_is_tuned_again(tmp_path: Path) -> None:
    bench(tmp_path, guides=("depth",))
    (tmp_path / "experts" / "depth-ppap-5.safetensors").unlink()
    _, _, tuner = bench(tmp_path, guides=("depth",))
    assert tuner.asked == [("depth", 5, "patch")]


# Presentation


@pytest.mark.parametrize(
    ("name", "measure", "text"),
    [
        ("accuracy", Measure(0.671, 0.034), "67.1 ± 3.4%"),
        ("depth_error", Measure(0.0321, 0.002), "0.032 ± 0.002"),
        ("frechet", Measure(12.345), "12.35"),
        ("recall", Measure(float("nan")), "–"),
    ],
)
def test_how_measures_are_shown(name: str, measure: Measure, text: str) -> None:
    assert shown(name, measure) == text


def test_a_guide_without_a_judge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="classifier"):
        app(["ppap", "--out", str(tmp_path), "--guide", "classifer"], standalone_mode=False)


def test_the_command_prints_results_for_programs(
    finished: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = {}

    def instead(out: Path, world: object, settings: Settings, **options: Any) -> Outcome:
        asked.update(options, settings=settings)
        return finished[1]

    monkeypatch.setattr(benchmark, "run", instead)
    monkeypatch.setattr(registry(), "entry", lambda kind, name: None)
    monkeypatch.setattr(world_module, "ShapesWorld", ColourWorld)
    app(
        ["ppap", "--out", str(tmp_path), "--quick", "--seed", "3", "--guide", "depth", "--json"],
        standalone_mode=False,
    )
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "results.json").read_text())
    assert asked["guides"] == ["depth"]
    assert asked["settings"].seed == 3
    assert asked["settings"].per_class == benchmark.QUICK.per_class


def test_an_interrupted_command_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def instead(out: Path, *rest: object, **options: object) -> Outcome:
        Cells(out / "cells").get("one", {}, lambda: Cell({}))
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "run", instead)
    monkeypatch.setattr(registry(), "entry", lambda kind, name: None)
    monkeypatch.setattr(world_module, "ShapesWorld", ColourWorld)
    code = app(["ppap", "--out", str(tmp_path)], standalone_mode=False)
    assert code == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "1 finished part in" in captured.err
    assert "same command" in captured.err


# The built-in world


class Unread(ColourGuide):
    """Reads any target as zero."""

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        return Target(given.words, torch.zeros(1, 1))


@pytest.fixture(scope="module")
def shapes() -> ShapesWorld:
    return ShapesWorld()


def test_every_class_is_asked_for_equally_often() -> None:
    assert sorted(class_targets(48).tolist()) == sorted([*range(24)] * 2)
    assert torch.equal(class_targets(12), class_targets(24)[:12])


@pytest.mark.parametrize(
    ("guide", "floor"), [("depth", {"depth_error": 0.05}), ("segmentation", {"miou": 0.85})]
)
def test_judges_approve_of_the_targets_themselves(
    shapes: ShapesWorld, tmp_path: Path, guide: str, floor: dict[str, float]
) -> None:
    found = shapes.floors(Unread(guide), 16)
    for name, bound in floor.items():
        assert found[name].value < bound if name == "depth_error" else found[name].value > bound
    if guide == "depth":
        assert found["depth_error_to_judge"].value == pytest.approx(0, abs=1e-5)
    asked = shapes.assignment(Unread(guide), 16, 0, tmp_path, validation=False)
    assert asked.judge(to_unit(shapes.real(FRESH_SEED, 16))) == found
    assert len(asked) == len(list(tmp_path.glob("*.png"))) == 16


def test_other_scenes_meet_the_targets_worse(shapes: ShapesWorld, tmp_path: Path) -> None:
    others = to_unit(shapes.real(VALIDATION_SEED, 16))
    for guide, name, worse in (("depth", "depth_error", 1), ("segmentation", "miou", -1)):
        asked = shapes.assignment(Unread(guide), 16, 0, tmp_path, validation=False)
        own = shapes.floors(Unread(guide), 16)[name].value
        assert worse * asked.judge(others)[name].value > worse * own


def test_a_class_is_judged_by_the_class_asked_for(shapes: ShapesWorld, tmp_path: Path) -> None:
    asked = shapes.assignment(Unread("classifier"), 24, 0, tmp_path, validation=False)
    pixels, labels = shapes.labelled("classifier", 5, 200)
    # A render of the wanted class where there is one among these.
    rows = [int((labels == k).nonzero()[0, 0]) for k in class_targets(24).tolist()]
    shown_images = to_unit(pixels[rows])
    assert asked.judge(shown_images)["accuracy"].value > 0.9
    assert asked.judge(shown_images.roll(1, dims=0))["accuracy"].value < 0.1
    assert sum(word.startswith("not ") for word in asked.captions(shown_images)) <= 2


def test_a_class_agrees_with_the_depth_of_the_same_solid_in_another_colour(
    shapes: ShapesWorld,
) -> None:
    asked = shapes.agreeing(Unread("classifier"), 48, 0)
    scenes = sample_scenes(FRESH_SEED, 0, 48)
    wanted = torch.tensor([CLASS_NAMES.index(word) for word in asked_for(asked, 48)])
    assert torch.equal(wanted // len(COLORS), scenes.labels // len(COLORS))
    assert not (wanted == scenes.labels).any()
    assert len(set((wanted % len(COLORS)).tolist())) == len(COLORS)


def asked_for(asked: Assignment, count: int) -> list[str]:
    """The classes by the judge's words on flat grey pictures."""
    words = asked.captions(torch.zeros(count, 3, 64, 64))
    return [word.removeprefix("not ") for word in words]


def test_guides_are_measured_as_a_user_runs_them(shapes: ShapesWorld) -> None:
    outcome = steered("together", None, 2, {}, {"steps": 2, "seed": 3}, lambda *_: None)
    measures = outcome["measures"]
    ways = ["unguided", "classifier alone", "depth alone", "guided", "the targets themselves"]
    assert list(measures) == ways
    assert len({json.dumps(found) for found in measures.values()}) == 5
    renders = shapes.real(FRESH_SEED, 2)
    of_targets = shapes.floors(Unread("depth"), 2)["depth_error"]
    assert measures["the targets themselves"]["depth_error"]["mean"] == of_targets.value
    assert measures["depth alone"]["depth_error"]["mean"] > of_targets.value
    assert torch.equal(outcome["targets"], to_unit(renders))
    by_hand = ppap.sample(
        "shapes",
        ppap.guidance("depth", target=from_tensor(outcome["targets"])),
        steps=2, seed=3, unguided=False,
    )  # fmt: skip
    (asked,) = by_hand.record["config"]["guides"]
    told = outcome["guides"][1]
    assert {key: asked[key] for key in told} == told
    judge, _ = shapes.judge("depth", FRESH_SEED, 2)
    assert by_hand.tensor is not None
    found = judge(by_hand.tensor)["depth_error"].value
    assert measures["depth alone"]["depth_error"]["mean"] == pytest.approx(found, rel=1e-3)


@pytest.mark.parametrize(
    ("words", "idle"),
    [
        (["prompts", "--quality", "draft"], "--quality"),
        (["classes", "--cfg", "3"], "--cfg"),
    ],
)
def test_options_that_a_measure_does_not_look_at_are_refused(words: list[str], idle: str) -> None:
    result = CliRunner().invoke(evaluate_app, words)
    assert isinstance(result.exception, OptionError)
    assert result.exception.message == f"{idle} does nothing to the measure {words[0]}."


def test_the_first_of_many_renders_are_those_of_few(shapes: ShapesWorld) -> None:
    few, many = ShapesWorld._render(shapes, 7, 3).rgb, ShapesWorld._render(shapes, 7, 6).rgb
    assert torch.equal(few, many[:3])
