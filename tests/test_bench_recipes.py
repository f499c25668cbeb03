"""Recipes get what their budget says, go on where they were stopped, and are told as they are."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import colours
import pytest
import torch
from colours import ColourGuide
from hypothesis import given
from hypothesis import strategies as st
from PIL.Image import Image
from ppap_plugin_bench.benchmarks import recipes as benchmark
from ppap_plugin_bench.benchmarks import recipes_report as report
from ppap_plugin_bench.benchmarks import restoring
from ppap_plugin_bench.benchmarks.arms import Assignment, Counted, Sampling, make_images
from ppap_plugin_bench.benchmarks.measuring import clock_of, peak_bytes
from ppap_plugin_bench.benchmarks.recipes import (
    LEAST_STEPS,
    UNGUIDED,
    Cost,
    Outcome,
    Point,
    Settings,
    TaskResult,
    frontier,
    run,
    steps_for,
)
from ppap_plugin_bench.benchmarks.restoring import (
    BEST_PSNR,
    peak_signal_to_noise,
    structural_similarity,
)
from ppap_plugin_bench.benchmarks.tasks import TASKS
from ppap_plugin_bench.cli.bench import app
from ppap_plugin_bench.evaluation import Measure
from torch import Tensor, nn
from worlds import GaussianBackbone

from ppap_host.backbones.noise import uniform_ranges
from ppap_host.experts.patches import Patch
from ppap_host.experts.sets import ExpertSet
from ppap_host.files.errors import UnknownNameError
from ppap_host.files.images import to_unit
from ppap_host.guides.guide import Guide
from ppap_host.guides.targets import Given, Target
from ppap_host.plugins.registry import registry
from ppap_host.recipes.presets import FREEDOM, X0, X0_THROUGH
from ppap_host.sampling.evaluator import Guidance

TINY = Settings(num=5, evaluations=6, batch=3, references=12, rounds=1)
SOME = ("naive", "ppap", "x0", "x0-through", "freedom", "pigdm")


class ColourWorld(colours.ColourWorld):
    """With a guide that measures linearly, and a strength of its own for one recipe."""

    objectives = colours.ColourWorld.objectives | {"classifier": ("Class", "accuracy", True)}

    def guide(self, name: str) -> Guide:
        torch.manual_seed(0)
        guide = ColourGuide(name, linear=name == "super-resolution")
        guide.default_scale = {"": 1.0, "x0": 2.0}
        return guide

    def labelled(self, guide: str, seed: int, count: int) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def assignment(
        self, guide: Guide, count: int, seed: int, folder: Path, *, validation: bool
    ) -> Assignment:
        assert not validation
        return super().assignment(guide, count, seed, folder, validation=validation)

    def pictures(self, guide: Guide, count: int) -> list[tuple[str, list[tuple[str, Image]]]]:
        shown = super().pictures(guide, count)
        return [] if guide.name == "classifier" else [*shown, ("seen", shown[0][1])]

    def wanted(self, guide: Guide, count: int) -> list[str]:
        return ["a colour" if guide.name == "classifier" else ""] * count


def some_experts(guide: Guide, backbone: Any, found: Any) -> tuple[str, ExpertSet, Path] | None:
    """Experts that change nothing, for the classifier alone."""
    if guide.name != "classifier":
        return None
    network = guide.network()
    patches = [Patch.fresh(network, guide.patch_plan(network)) for _ in range(2)]
    experts = ExpertSet(uniform_ranges(backbone.levels(), 2), patches, {"guide": guide.name})
    return "some", experts, Path()


def bench(out: Path, **options: Any) -> tuple[Outcome, ColourWorld]:
    world = ColourWorld()
    settings = options.pop("settings", TINY)
    chosen = {"tasks": ("class", "depth", "super-resolution"), "recipes": SOME, **options}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "fitting_set", some_experts)
        return run(out, world, settings, **chosen), world


Finished = tuple[Path, Outcome]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    out = tmp_path_factory.mktemp("recipes")
    outcome, _ = bench(out, command="ppap bench recipes --out here")
    report.write_report(outcome, out)
    return out, outcome


# Counting and measuring


@pytest.mark.parametrize(
    ("recipe", "steps", "evaluations", "differentiated"),
    [(X0, 4, 4, 0), (X0_THROUGH, 4, 4, 4), (FREEDOM, 3, 6, 6)],
)
def test_evaluations_of_the_backbone_are_counted_for_an_image(
    tmp_path: Path, recipe: Any, steps: int, evaluations: int, differentiated: int
) -> None:
    world = ColourWorld()
    guide = world.guide("depth")
    asked = world.assignment(guide, 5, 0, tmp_path, validation=False)
    guided = [Guidance(guide, asked.targets, recipe, 1.0)]
    told = []
    cell = make_images(
        world.backbone, Sampling(steps, batch=2), "x", asked, guided,
        lambda what, done, total: told.append((done, total)),
    )  # fmt: skip
    assert cell.values["evaluations"] == evaluations
    assert cell.values["differentiated"] == differentiated
    assert world.backbone.evaluations == 3 * evaluations  # batches
    assert cell.tensors["images"].shape == (5, 3, 8, 8)
    assert told[-1] == (5 * steps, 5 * steps)


def test_a_counted_denoiser_answers_as_the_one_it_counts() -> None:
    backbone = GaussianBackbone()
    denoise = Counted(lambda x, level: backbone.predict(x, level, {}), 2)
    level, x = backbone.levels()[500], torch.randn(2, 3, 4, 4)
    assert torch.equal(denoise(x, level).eps, backbone.predict(x, level, {}).eps)
    denoise(x.requires_grad_(True), level)
    assert (denoise.evaluations, denoise.differentiated) == (2, 1)


@pytest.mark.parametrize(("threads", "name"), [(1, "processor time"), (2, "wall clock")])
def test_which_clock_is_read(monkeypatch: pytest.MonkeyPatch, threads: int, name: str) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    found, clock = clock_of(torch.device("cpu"))
    assert found == name
    assert clock() <= clock()


def test_the_peak_is_what_is_held_at_once() -> None:
    megabyte = 2**20

    def work() -> Tensor:
        for _ in range(5):
            torch.zeros(4 * megabyte, dtype=torch.uint8)
        kept = torch.zeros(3 * megabyte, dtype=torch.uint8)
        torch.zeros(2 * megabyte, dtype=torch.uint8)
        return kept

    work()
    assert peak_bytes(work, torch.device("cpu")) == pytest.approx(5 * megabyte, rel=0.05)


def test_a_gradient_through_the_backbone_holds_more() -> None:
    layers = nn.Sequential(*[nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()) for _ in range(8)])
    x = torch.randn(4, 8, 64, 64, requires_grad=True)

    def plain() -> None:
        with torch.no_grad():
            layers(x)

    def through() -> None:
        torch.autograd.grad(layers(x).sum(), x)

    for work in (plain, through):
        work()
    held = [peak_bytes(work, torch.device("cpu")) for work in (plain, through)]
    assert held[1] > 2 * held[0] > 0


# Budgets


@given(
    evaluations=st.integers(4, 500),
    recurrence=st.integers(1, 5),
    ratio=st.floats(0.1, 20),
    most=st.integers(500, 1000),
)
def test_steps_keep_to_their_budget(
    evaluations: int, recurrence: int, ratio: float, most: int
) -> None:
    equal = steps_for("evaluations", evaluations, recurrence, ratio, most)
    assert equal == max(1, evaluations // recurrence)
    timed = steps_for("time", evaluations, recurrence, ratio, most)
    assert timed <= most
    if timed not in (equal, LEAST_STEPS, most):
        assert abs(timed * ratio - evaluations) <= ratio / 2 + 1e-6


def test_the_reference_takes_as_many_steps_with_both_budgets() -> None:
    assert steps_for("time", 50, 1, 1.0, 1000) == 50
    assert steps_for("time", 50, 1, 1.02, 1000) == 50  # within what probes can tell
    assert steps_for("time", 50, 1, 2.5, 1000) == 20
    assert steps_for("time", 50, 2, 3.4, 1000) == 15
    assert steps_for("time", 8, 1, 5.0, 1000) == LEAST_STEPS
    assert steps_for("time", 50, 1, 0.01, 1000) == 1000


def test_every_recipe_gets_its_budget(finished: Finished) -> None:
    for result in finished[1].tasks:
        for point in result.of("evaluations"):
            assert point.evaluations == 6
            assert point.steps == (3 if point.method == "freedom" else 6)
            through = point.method in ("x0-through", "freedom", "pigdm")
            assert point.differentiated == (6 if through else 0)
        for point in result.of("time"):
            recurrence = 2 if point.method == "freedom" else 1
            ratio = point.cost.ratio
            assert point.steps == steps_for("time", 6, recurrence, ratio, 980)
            assert point.evaluations == point.steps * recurrence
        reference = result.find("time", "x0")
        assert reference is not None
        assert (reference.steps, reference.cost.ratio) == (6, 1.0)
        for point in result.points:
            cost = reference.cost.seconds * point.cost.ratio
            assert point.seconds == pytest.approx(point.steps * cost)


def test_who_takes_part(finished: Finished) -> None:
    classes, depths, restored = finished[1].tasks
    names = [point.method for point in classes.of("time")]
    assert names == [UNGUIDED, "naive", "ppap", "x0", "x0-through", "freedom"]
    assert list(classes.absent) == ["pigdm"]
    assert set(depths.absent) == {"ppap", "pigdm"}
    assert "No expert set" in depths.absent["ppap"]
    assert set(restored.absent) == {"ppap"}
    assert restored.find("evaluations", "pigdm") is not None


def test_strengths_are_the_guide_s_own(finished: Finished) -> None:
    for point in finished[1].tasks[0].points:
        assert point.scale == {UNGUIDED: None, "x0": 2.0}.get(point.method, 1.0)


def test_guidance_meets_its_targets(finished: Finished) -> None:
    for result in finished[1].tasks:
        plain, ours = (result.find("evaluations", m) for m in (UNGUIDED, "x0"))
        assert plain is not None and ours is not None
        assert report.quality(result, ours) > report.quality(result, plain)


def test_images_of_a_group_are_compared_as_one_set(finished: Finished) -> None:
    outcome = finished[1]
    classes, depths = outcome.group("steering")
    both = [result.find("time", "x0") for result in (classes, depths)]
    features = torch.cat([point.features for point in both if point is not None])
    assert len(features) == 10
    reference = ColourWorld().features(to_unit(ColourWorld().real(benchmark.REFERENCE_SEED, 12)))
    wanted = benchmark.frechet_distance(reference, features)
    assert outcome.pooled["steering", "time", "x0"].value == pytest.approx(wanted)
    assert ("steering", "time", "ppap") not in outcome.pooled  # not on depth
    assert set(outcome.floors) == {"steering", "restoring"}


# Cells


def test_a_second_run_makes_nothing_anew(finished: Finished) -> None:
    out, outcome = finished
    again, world = bench(out)
    assert again.record["cells_made"] == 0
    assert world.backbone.evaluations == 0
    for one, other in zip(outcome.tasks, again.tasks, strict=True):
        for point, same in zip(one.points, other.points, strict=True):
            assert torch.equal(point.images, same.images)
            assert (point.measures, point.measured) == (same.measures, same.measured)
            assert point.cost == same.cost


def test_fewer_tasks_and_recipes_use_the_same_cells(finished: Finished) -> None:
    out, _ = finished
    again, world = bench(out, tasks=("depth",), recipes=("x0",))
    assert [result.name for result in again.tasks] == ["depth"]
    assert world.backbone.evaluations == 0


def test_an_interruption_loses_the_cell_in_work_alone(finished: Finished, tmp_path: Path) -> None:
    stops = [0]

    def watch(what: str, done: int, total: int) -> None:
        stops[0] += 1
        if stops[0] in (30, 150):
            raise KeyboardInterrupt

    kept = []
    for _ in range(10):
        try:
            outcome, _ = bench(tmp_path, watch=watch)
            break
        except KeyboardInterrupt:
            kept.append(len(list((tmp_path / "cells").glob("*.json"))))
    assert len(kept) == 2 and 0 < kept[0] < kept[1]
    for one, other in zip(finished[1].tasks, outcome.tasks, strict=True):
        for point, same in zip(one.of("evaluations"), other.of("evaluations"), strict=True):
            assert torch.equal(point.images, same.images)


def test_unguided_images_are_made_once_for_all_tasks(finished: Finished) -> None:
    out, outcome = finished
    plain = [result.find("evaluations", UNGUIDED) for result in outcome.tasks]
    assert all(p is not None and torch.equal(p.images, plain[0].images) for p in plain if plain[0])
    assert (out / "cells" / "unguided-6.json").exists()


# The frontier


coordinate = st.floats(-100, 100)


@given(st.lists(st.tuples(coordinate, coordinate), max_size=20))
def test_the_frontier_is_what_nothing_dominates(points: list[tuple[float, float]]) -> None:
    best = frontier(points)

    def dominates(i: int, k: int) -> bool:
        (c, q), (cost, quality) = points[i], points[k]
        return c <= cost and q >= quality and points[i] != points[k]

    for k in range(len(points)):
        assert (k in best) == (not any(dominates(i, k) for i in range(len(points))))
    assert bool(best) == bool(points)
    # All others are dominated by one of the frontier.
    assert all(k in best or any(dominates(i, k) for i in best) for k in range(len(points)))
    costs, qualities = [points[i][0] for i in best], [points[i][1] for i in best]
    assert costs == sorted(costs)
    assert qualities == sorted(qualities)


def test_what_was_not_measured_is_not_on_the_frontier() -> None:
    assert frontier([(1.0, math.nan), (2.0, 1.0), (math.nan, 5.0)]) == [1]
    assert frontier([(1.0, 1.0), (1.0, 1.0)]) == [0, 1]


# The report


def point(
    method: str, value: float, error: float, seconds: float = 1.0, frechet: float = 10.0,
    budget: Any = "evaluations", name: str = "accuracy", steps: int = 50,
) -> Point:  # fmt: skip
    """A point of a made-up outcome."""
    return Point(
        budget=budget, method=method, family="unguided" if method == UNGUIDED else "predicted",
        scale=1.0, steps=steps, evaluations=50, differentiated=0, measured=seconds,
        cost=Cost(seconds / steps, seconds, 1e6),
        measures={name: Measure(value, error), "frechet": Measure(frechet)}, skipped=0,
        images=torch.zeros(4, 3, 8, 8, dtype=torch.uint8), captions=[""] * 4,
        features=torch.zeros(4, 3),
    )  # fmt: skip


def made_up(
    points: list[Point], name: str = "class", objective: str = "accuracy", higher: bool = True
) -> Outcome:
    """An outcome of one task with these points at both budgets."""
    from dataclasses import replace

    every = points + [replace(p, budget="time") for p in points]
    absent = {} if any(p.method == "ppap" for p in points) else {"ppap": "No experts."}
    task = TaskResult(
        name, name.capitalize(), TASKS[name], objective, higher, {"frechet": Measure(5.0, 0.5)},
        every, absent, [""] * 4, [],
    )  # fmt: skip
    methods = list(dict.fromkeys([*(p.method for p in points), *absent]))
    floors = {group: Measure(5.0, 0.5) for group in benchmark.GROUPS}
    return Outcome(methods, [task], {}, floors, {})


def test_two_standard_errors_of_the_difference_decide() -> None:
    a, b, c = Measure(0.9, 0.03), Measure(0.8, 0.04), Measure(0.79, 0.04)
    assert report.compare(a, b, higher_is_better=True) == 0
    assert report.compare(a, c, higher_is_better=True) == 1
    assert report.compare(c, a, higher_is_better=True) == -1
    assert report.compare(a, c, higher_is_better=False) == -1
    assert report.compare(a, Measure(0.0), higher_is_better=True) == 0


def test_how_a_recipe_stands() -> None:
    result = made_up(
        [point(UNGUIDED, 0.1, 0.02), point("ppap", 0.8, 0.02), point("dps", 0.9, 0.02),
         point("x0", 0.79, 0.02), point("naive", 0.1, 0.02), point("tfg", 0.8, 0.02)]
    ).tasks[0]  # fmt: skip
    found = report.standing(result, "evaluations", "ppap")
    assert found == report.Standing(2, 5, "dps", ["dps"], ["naive"], ["tfg", "x0"])
    assert report.standing(result, "evaluations", UNGUIDED) is None
    assert report.standing(result, "evaluations", "mpgd") is None


@pytest.mark.parametrize(
    ("points", "told", "not_told"),
    [
        (
            [point("ppap", 0.9, 0.01), point("x0", 0.5, 0.01)],
            ["PPAP wins, two standard errors before all others near renders: class at equal eval"],
            ["does not win:"],
        ),
        (
            [point("ppap", 0.9, 0.05), point("x0", 0.92, 0.05)],
            ["(rank 2 of 2, level with `x0`)"],
            ["PPAP wins, two", "does not win:"],
        ),
        (
            [point("ppap", 0.5, 0.01), point("x0", 0.9, 0.01)],
            ["PPAP does not win", "(ahead of it: `x0`)"],
            ["PPAP wins, two"],
        ),
        (
            [point("ppap", 0.5, 0.01), point("x0", 0.9, 0.01, frechet=21.0)],
            ["PPAP wins", "images far from renders: class at equal evaluations", "are `x0`",
             "of the others, `ppap` is best with 50.0"],
            ["does not win:"],
        ),
        (
            [point("ppap", 0.9, 0.01, frechet=21.0), point("x0", 0.5, 0.01)],
            ["PPAP's own images are far from renders: class at equal evaluations"],
            ["PPAP wins, two", "does not win:"],
        ),
        (
            [point("x0", 0.9, 0.01)],
            ["PPAP is not there: No experts.", "cannot take part: class."],
            ["PPAP wins, two", "does not win:"],
        ),
    ],
)  # fmt: skip
def test_the_findings_follow_the_numbers(
    points: list[Point], told: list[str], not_told: list[str]
) -> None:
    text = report.findings(made_up([point(UNGUIDED, 0.1, 0.02), *points]))
    for words in told:
        assert words in text
    for words in not_told:
        assert words not in text


def test_low_errors_are_good_and_far_images_are_not_on_the_frontier() -> None:
    cheap, good, bad = (
        point("x0", 0.1, 0.01, seconds=1.0, name="depth_error"),
        point("dps", 0.05, 0.01, seconds=2.0, name="depth_error"),
        point("tfg", 0.2, 0.01, seconds=3.0, name="depth_error"),
    )
    noise = point("mpgd", 0.01, 0.01, seconds=0.5, frechet=50.0, name="depth_error")
    plain = point(UNGUIDED, 0.3, 0.01, seconds=0.7, name="depth_error")
    result = made_up([plain, cheap, good, bad, noise], "depth", "depth_error", False).tasks[0]
    names = [p.method for p in report.on_frontier(result, result.points)]
    assert names == [UNGUIDED, "x0", "dps"]
    assert report.standing(result, "time", "dps", near=True) == report.Standing(
        1, 3, "dps", [], ["x0", "tfg"], []
    )
    assert report.guided(result, "time")[0].method == "mpgd"


def test_restored_images_are_judged_by_the_truth_alone() -> None:
    noise = point("mpgd", 30.0, 0.1, frechet=500.0, name="psnr")
    result = made_up([point(UNGUIDED, 10.0, 0.1, name="psnr"), noise], "inpainting", "psnr").tasks[
        0
    ]
    assert not report.is_far(result, noise)


def test_the_report_is_complete(finished: Finished) -> None:
    out, outcome = finished
    values = json.loads((out / "recipes.json").read_text())
    assert values["command"] == "ppap bench recipes --out here"
    assert values["settings"]["evaluations"] == 6
    assert report.findings(outcome) in values["report"]
    rows = list(csv.DictReader((out / "recipes.csv").read_text().splitlines()))
    made = sum(len(result.points) for result in outcome.tasks)
    assert len(rows) == made + 2 * sum(len(result.absent) for result in outcome.tasks)
    assert all(row["absent"] or float(row["seconds_per_image"]) > 0 for row in rows)
    assert all(row["absent"] or float(row["peak_bytes"]) > 0 for row in rows)
    table = (out / "recipes.md").read_text()
    assert table.count("| `x0-through` |") == 4
    assert "| `ppap` | – | – |" in table  # nowhere to restore
    assert "`pigdm` is not on class" in table
    assert "nan" not in table
    for name in ("recipes.png", "recipes-sheet.png", "recipes-sheet-time.png"):
        assert (out / name).stat().st_size > 5_000


def test_a_sheet_has_a_row_for_each_recipe_and_the_same_targets(finished: Finished) -> None:
    outcome = finished[1]
    picture = report.sheet(outcome, "time")
    shorter = Outcome(outcome.methods[:-2], outcome.tasks, {}, outcome.floors, {})
    rows = (picture.height - report.sheet(shorter, "time").height) / 2
    assert rows == int(rows) > 80
    narrow = Outcome(outcome.methods, outcome.tasks[:1], {}, outcome.floors, {})
    assert report.sheet(narrow, "time").width < picture.width


def test_a_plot_of_one_task_can_be_drawn(tmp_path: Path) -> None:
    outcome = made_up([point(UNGUIDED, 0.1, 0.02, seconds=0.5), point("x0", 0.8, 0.02)])
    report.plot(outcome, tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 5_000


# The built-in world


def test_psnr_and_ssim_of_known_images() -> None:
    torch.manual_seed(0)
    clean = torch.rand(2, 3, 32, 32) * 1.6 - 0.8
    # A shift by 0.2 in [-1, 1] is one by 0.1 in [0, 1]: 20 dB.
    assert peak_signal_to_noise(clean + 0.2, clean).tolist() == pytest.approx([20, 20])
    assert peak_signal_to_noise(clean, clean).tolist() == [BEST_PSNR] * 2
    assert structural_similarity(clean, clean).tolist() == pytest.approx([1, 1])
    noisy = structural_similarity(clean + 0.5 * torch.randn_like(clean), clean)
    assert (noisy < 0.9).all()


class Unread(ColourGuide):
    """A restoring guide that measures everything."""

    def understand(self, given: Given, size: tuple[int, int]) -> Target:
        return Target(given.words, torch.zeros(1, 1))


def test_restoration_is_judged_against_the_clean_render(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_for = []

    def load(found: object, name: str, model: str | None) -> Guide:
        asked_for.append((name, model))
        return Unread(name, linear=True)

    monkeypatch.setattr(restoring, "load_guide", load)
    world = restoring.RestoringWorld()
    guide = world.guide("inpainting")
    assert world.guide("inpainting") is guide
    assert asked_for == [("inpainting", "box=0.5,measure=yes")]
    asked = world.assignment(guide, 3, 0, tmp_path, validation=False)
    assert asked.identity["model"] == "box=0.5,measure=yes"
    clean = to_unit(world.real(restoring.FRESH_SEED, 3))
    found = asked.judge((clean + 0.2).clamp(-1, 1))
    assert found["psnr"].value == pytest.approx(20, abs=1.5)
    assert found["residual"].value == pytest.approx(0.2, abs=0.05)
    assert 0 < found["ssim"].value < 1
    assert asked.captions(clean) == ["100.0 dB"] * 3
    # The pseudo-inverse of a measurement of everything is the image itself.
    assert world.floors(guide, 3)["psnr"].value == BEST_PSNR
    assert world.wanted(guide, 2) == ["", ""]
    assert world.wanted(Unread("classifier"), 2) == [restoring.CLASS_NAMES[0], "yellow cube"]


# The command


def test_what_is_unknown_is_refused(tmp_path: Path) -> None:
    for option, name in (("--task", "klass"), ("--recipe", "pgdm")):
        with pytest.raises(UnknownNameError, match=name):
            app(["recipes", "--out", str(tmp_path), option, name], standalone_mode=False)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry(), "entry", lambda kind, name: None)
    monkeypatch.setattr(restoring, "RestoringWorld", ColourWorld)


@pytest.mark.usefixtures("told")
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
    app(
        ["recipes", "--out", str(tmp_path), "--task", "depth", "--recipe", "x0", "--num", "3",
         "--evaluations", "8", "--device", "cpu", "--json"],
        standalone_mode=False,
    )  # fmt: skip
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "recipes.json").read_text())
    assert (asked["tasks"], asked["recipes"]) == (["depth"], ["x0"])
    assert asked["settings"] == Settings(num=3, evaluations=8)


@pytest.mark.usefixtures("told")
def test_an_interrupted_command_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def instead(*rest: object, **options: object) -> Outcome:
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "run", instead)
    code = app(["recipes", "--out", str(tmp_path)], standalone_mode=False)
    assert code == 130
    assert "same command" in capsys.readouterr().err
