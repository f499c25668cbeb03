"""Searches find known optima, go on as if never stopped, and lose nothing."""

from __future__ import annotations

import csv
import json
import math
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from ppap_plugin_bench.search import (
    Dimension,
    Judged,
    Measured,
    Outcome,
    SearchConfig,
    Trial,
    Value,
    Weights,
    dimensions,
    frontier,
    propose,
    ranked,
    run_trials,
    search,
)
from ppap_plugin_bench.search.score import chosen
from ppap_plugin_bench.search.space import plain, shown
from ppap_plugin_bench.search.validation import (
    Validation,
    of_targets,
    peak_signal_to_noise,
)
from processes import Outcome as Called
from teaching import world
from worlds import ColourGuide, GaussianBackbone, QuadraticGuide

from ppap_host.backbones.backbone import ClassifierFree
from ppap_host.files.errors import OptionError, OutputError, PpapError, UnknownNameError
from ppap_host.guides.guide import Guide
from ppap_host.recipes.presets import DPS, NAIVE, PPAP, TFG, X0
from ppap_host.runs.config import GuideConfig, RunConfig
from ppap_host.sampling.evaluator import Guidance
from ppap_host.sampling.loop import sample
from ppap_host.sampling.solvers import DDIM
from ppap_host.sampling.streams import ImageNoise
from ppap_host.testing.worlds import PullGuide

Call = Callable[..., Called]

STRENGTH = (Dimension("scale", 0.1, 0.02, 50.0, log=True),)
MIXED = (
    Dimension("scale", 1.0, 0.1, 10.0, log=True),
    Dimension("samples", 2, 1, 8),
    Dimension("course", "constant", choices=("increase", "decrease", "constant")),
    Dimension("fades", True, choices=(False, True)),
)


def bowl(values: Mapping[str, Value]) -> Judged:
    """Best at scale 3, with as many samples as can be, decreasing and fading."""
    score = math.log(float(values["scale"]) / 3) ** 2
    if "samples" in values:
        score += 0.2 * (8 - float(values["samples"])) + (values["course"] != "decrease")
        score += 0.5 * (values["fades"] is not True)
    return Judged(-score)


# What is varied


def test_all_that_a_recipe_declares_is_varied_unless_less_is_asked_for() -> None:
    assert [d.name for d in dimensions(DPS, 1.0)] == ["scale"]
    assert [d.name for d in dimensions(TFG, 1.0)] == ["scale", *(p.name for p in TFG.parameters)]
    assert [d.name for d in dimensions(TFG, 1.0, ("rho", "scale"))] == ["rho", "scale"]
    assert [d.name for d in dimensions(X0, 1.0, ("recurrence",))] == ["recurrence"]


def test_dimensions_start_where_the_recipe_is() -> None:
    recipe = TFG.with_values({"rho": 7.0, "samples": 3, "rho-course": "decrease"})
    found = {d.name: d for d in dimensions(recipe, 2.0)}
    assert (found["scale"].start, found["scale"].low, found["scale"].high) == (2.0, 0.06667, 60.0)
    # Beyond what the recipe declares: the range is widened.
    assert (found["rho"].start, found["rho"].high) == (7.0, 7.0)
    assert found["samples"].whole and found["samples"].start == 3
    assert found["rho-course"].choices == ("increase", "decrease", "constant")
    assert found["sigma-fades"].choices == (False, True)


def test_a_range_for_the_strength_is_taken_as_it_is() -> None:
    (inside,) = dimensions(DPS, 1.0, scale_range=(0.5, 4.0))
    assert (inside.start, inside.low, inside.high) == (1.0, 0.5, 4.0)
    (elsewhere,) = dimensions(DPS, 1.0, scale_range=(10.0, 1000.0))
    assert elsewhere.start == 100.0


@pytest.mark.parametrize("bounds", [(2.0, 1.0), (0.0, 1.0), (-1.0, 1.0), (1.0, math.inf)])
def test_no_range_for_the_strength(bounds: tuple[float, float]) -> None:
    with pytest.raises(OptionError, match="no range"):
        dimensions(DPS, 1.0, scale_range=bounds)


def test_names_that_the_recipe_does_not_have() -> None:
    with pytest.raises(UnknownNameError, match="rhoo") as caught:
        dimensions(TFG, 1.0, ("rhoo",))
    assert "'rho'" in caught.value.remedy
    with pytest.raises(UnknownNameError, match="'dps'"):
        dimensions(DPS, 1.0, ("rho",))


def test_a_range_and_a_start_that_exclude_each_other() -> None:
    with pytest.raises(OptionError, match="leaves it out"):
        dimensions(TFG, 1.0, ("rho",), (0.1, 1.0))
    with pytest.raises(OptionError, match="cannot start"):
        dimensions(TFG, 0.0)


def test_an_infinite_start_is_tried_and_counts_as_the_nearest_bound() -> None:
    (softplus,) = dimensions(X0, 1.0, ("softplus",))
    assert softplus.start == math.inf
    assert softplus.within(softplus.start) == softplus.high
    first = propose([softplus], [], 0)
    trial = Trial(0, first, Judged(0.5))
    text = json.dumps(trial.to_dict(), allow_nan=False)
    assert Trial.from_dict(json.loads(text), [softplus]) == trial
    assert math.isfinite(float(propose([softplus], [trial], 0)["softplus"]))


@given(share=st.floats(0, 1, exclude_max=True))
def test_shares_and_values_belong_together(share: float) -> None:
    for dimension in (*MIXED, Dimension("power", 1.0, 0.0, 2.0)):
        value = dimension.at(share)
        back = dimension.share(value)
        assert 0 <= back < 1
        assert dimension.at(back) == value or isinstance(value, float)
        if isinstance(value, float):
            assert back == pytest.approx(share, abs=1e-3)


def test_values_are_written_as_they_are_read() -> None:
    for dimension in dimensions(TFG, 1.0):
        if dimension.name != "scale":
            for share in (0.0, 0.3, 0.9):
                value = dimension.at(share)
                changed = TFG.with_values({dimension.name: shown(value)})
                assert changed.value(dimension.name) == value
    assert plain(math.inf) == "inf"


# What is tried


def test_the_first_trial_is_the_start() -> None:
    assert propose(MIXED, [], 5) == {d.name: d.start for d in MIXED}


def test_the_next_ones_are_spread_over_the_range() -> None:
    trials = run_trials(STRENGTH, bowl, 4, 0)
    shares = sorted(STRENGTH[0].share(t.values["scale"]) for t in trials)
    gaps = [b - a for a, b in zip(shares, [*shares[1:], shares[0] + 1], strict=True)]
    assert max(gaps) < 0.3


def test_the_spread_points_are_haltons() -> None:
    space, trials = (Dimension("a", 0.0), Dimension("b", 0.0)), list[Trial]()
    for number, wanted in enumerate([(0, 0), (1 / 2, 1 / 3), (1 / 4, 2 / 3), (3 / 4, 1 / 9)]):
        values = propose(space, trials, 0)
        assert tuple(values.values()) == pytest.approx(wanted, abs=1e-4)
        trials.append(Trial(number, values, None))


@pytest.mark.parametrize("seed", range(3))
def test_the_least_of_a_bowl_is_found(seed: int) -> None:
    trials = run_trials(STRENGTH, bowl, 25, seed)
    best = ranked(trials)[0]
    assert best.values["scale"] == pytest.approx(3.0, rel=0.15)


def test_numbers_words_and_answers_are_searched_together() -> None:
    trials = run_trials(MIXED, bowl, 60, 0)
    best = ranked(trials)[0].values
    assert (best["course"], best["fades"]) == ("decrease", True)
    assert isinstance(best["samples"], int) and best["samples"] >= 6
    assert all(isinstance(t.values["fades"], bool) for t in trials)


def test_the_exact_strength_of_a_gaussian_world_is_found() -> None:
    backbone = GaussianBackbone()
    guide = QuadraticGuide(world=backbone)
    target = torch.full((1, 3, 4, 4), -0.6)
    precisions = (1 / backbone.spread**2, 1 / guide.noise**2)
    wanted = (backbone.mean * precisions[0] - 0.6 * precisions[1]) / sum(precisions)

    def attempt(values: Mapping[str, Value]) -> Judged:
        x = sample(
            backbone,
            ClassifierFree(backbone, {}, {}),
            backbone.walk(25),
            DDIM(),
            ImageNoise(1, range(24), backbone.state_shape),
            [Guidance(guide, target, replace(NAIVE, absolute=True), float(values["scale"]))],
        )
        return Judged(-abs(float(x.mean()) - wanted))

    (space,) = (dimensions(NAIVE, 8.0),)
    trials = run_trials(space, attempt, 30, 0)
    best = ranked(trials)[0]
    # Sampling 24 images of 48 pixels leaves the mean open by about 0.01, the strength by 3%.
    assert best.values["scale"] == pytest.approx(1.0, rel=0.12)


@pytest.mark.parametrize("stop", [1, 4, 7, 13])
def test_a_search_that_was_stopped_ends_as_one_that_was_not(stop: int) -> None:
    kept: list[dict[str, Any]] = []

    def attempt(values: Mapping[str, Value]) -> Judged:
        if len(kept) == stop:
            raise KeyboardInterrupt
        return bowl(values)

    def after(trials: list[Trial]) -> None:
        kept[:] = [trial.to_dict() for trial in trials]

    with pytest.raises(KeyboardInterrupt):
        run_trials(MIXED, attempt, 16, 3, after=after)
    assert len(kept) == stop
    done = [Trial.from_dict(json.loads(json.dumps(entry)), MIXED) for entry in kept]
    resumed = run_trials(MIXED, bowl, 16, 3, done=done)
    whole = run_trials(MIXED, bowl, 16, 3)
    assert [(t.values, t.judged) for t in resumed] == [(t.values, t.judged) for t in whole]


def test_seeds_differ_and_decide() -> None:
    def tried(seed: int) -> list[Mapping[str, Value]]:
        return [t.values for t in run_trials(STRENGTH, bowl, 9, seed)]

    assert tried(1) == tried(1) != tried(2)


def test_trials_that_fail_are_kept_and_avoided() -> None:
    def attempt(values: Mapping[str, Value]) -> Judged:
        if float(values["scale"]) > 3:
            raise ValueError("too\nmuch")
        return Judged(math.nan if float(values["scale"]) < 0.05 else float(values["scale"]))

    trials = run_trials(STRENGTH, attempt, 40, 0)
    assert len(trials) == 40
    problems = {t.problem for t in trials if t.judged is None}
    assert problems == {"ValueError: too much", "the score is not finite"}
    assert ranked(trials)[0].values["scale"] == pytest.approx(3, rel=0.2)
    later = [t.judged is None for t in trials[8:]]
    assert sum(later) < len(later) / 2


def test_a_search_of_failures_goes_on() -> None:
    def attempt(values: Mapping[str, Value]) -> Judged:
        raise RuntimeError

    trials = run_trials(MIXED, attempt, 14, 0)
    assert [t.judged for t in trials] == [None] * 14


def test_the_same_values_are_not_tried_twice() -> None:
    asked = []

    def attempt(values: Mapping[str, Value]) -> Judged:
        asked.append(values["course"])
        return Judged(float(values["course"] == "decrease"))

    space = (Dimension("course", "increase", choices=("increase", "decrease")),)
    trials = run_trials(space, attempt, 9, 0)
    assert len(trials) == 9 and sorted(asked) == ["decrease", "increase"]


def test_ties_are_decided_by_the_lower_strength() -> None:
    scores = {0: (0.1, None), 1: (4.0, 0.5), 2: (9.0, 1.0), 3: (8.0, 1.0), 4: (2.0, 1.0)}
    trials = [
        Trial(number, {"scale": scale}, None if score is None else Judged(score))
        for number, (scale, score) in scores.items()
    ]
    assert [t.number for t in ranked(trials)] == [4, 3, 2, 1, 0]


# What it is worth


@pytest.mark.parametrize(
    ("name", "higher", "measure", "unguided", "gain"),
    [
        ("accuracy", True, 0.9, 0.2, 0.875),
        ("depth_error", False, 0.03, 0.12, 0.75),
        ("psnr", True, 34.0, 14.0, 0.9),  # a tenth of the error
        ("mood", True, 6.0, 4.0, 0.5),  # of a measure whose best is not known, the relative gain
        ("mood", False, -6.0, -4.0, 0.5),
    ],
)
def test_a_score_is_the_gain_less_distance_and_cost(
    name: str, higher: bool, measure: float, unguided: float, gain: float
) -> None:
    before = Measured(unguided, 4.0, 1e9)
    assert before.score(before, name, higher, Weights()) == 0
    plain = Measured(measure, 4.0, 1e9).score(before, name, higher, Weights(0.3, 0.1))
    assert plain == pytest.approx(gain)
    dear = Measured(measure, 6.0, 8e9).score(before, name, higher, Weights(0.3, 0.1))
    assert dear == pytest.approx(gain - 0.3 * 0.5 - 0.1 * 3)
    alone = Measured(measure, None, 0.5e9).score(before, name, higher, Weights(0.3, 0.1))
    assert alone == pytest.approx(gain + 0.1)


def test_weights_are_read_or_refused() -> None:
    assert Weights.read("cost=0.2") == Weights(cost=0.2)
    for wrong in ("cost", "cost=-1", "cost=nan", "price=1", "cost=1;distance=2"):
        with pytest.raises(OptionError, match="--score"):
            Weights.read(wrong)


def test_a_frontier_holds_what_nothing_beats_and_each_quality_is_one_of_it() -> None:
    def trial(number: int, measure: float, distance: float | None, cost: float) -> Trial:
        return Trial(number, {"steps": number}, Judged(0.0, Measured(measure, distance, cost)))

    unguided = Measured(0.0, 4.0, 8.0)
    trials = [
        trial(0, 0.95, 4.0, 16.0), trial(1, 0.7, 4.0, 1.0), trial(2, 0.9, 4.0, 4.0),
        trial(3, 0.6, 4.0, 1.0), trial(4, 0.6, 3.0, 1.0), trial(5, 0.9, 4.0, 4.0),
        Trial(6, {"steps": 6}, None, "failed"), trial(7, 0.95, 9.0, 16.0),
    ]  # fmt: skip
    points = frontier(trials, higher_is_better=True)
    assert [t.number for t in points] == [1, 4, 2, 5, 0]
    best = chosen(points, unguided, "accuracy", True, Weights())
    assert {name: t.number for name, t in best.items()} == {"draft": 1, "normal": 2, "best": 0}
    assert chosen(points, unguided, "accuracy", True, Weights(0.5))["draft"].number == 4


# Who judges


def test_a_judge_with_the_guides_own_network_is_the_guide_itself() -> None:
    class Learned(PullGuide):
        def __init__(self, weight: float) -> None:
            super().__init__()
            self._network = torch.nn.Linear(1, 1)
            torch.nn.init.constant_(self._network.weight, weight)
            torch.nn.init.zeros_(self._network.bias)

    def judged(by: float) -> Validation:
        return of_targets(Learned(1.0), ["0.1"], 1, (8, 8), judge=Learned(by))

    assert judged(by=1.0).own and "itself" in judged(by=1.0).by
    assert not judged(by=2.0).own


def test_targets_go_round_and_another_guide_can_judge_them() -> None:
    guide = ColourGuide()
    checked = of_targets(guide, ["0.1", "0.4"], 5, (8, 8), judge=ColourGuide("1"))
    assert checked.targets[:, 0].tolist() == pytest.approx([0.1, 0.4, 0.1, 0.4, 0.1])
    assert (checked.objective, checked.higher_is_better, checked.own) == ("error", False, False)
    own = of_targets(guide, ["0.1"], 5, (8, 8))
    assert own.own
    x = torch.zeros(5, 3, 8, 8)
    seen = guide.measure(guide.see(x), torch.full((5, 3), 0.1))["error"]
    assert own.judge(x)["error"].value == pytest.approx(sum(seen) / 5)


def test_measures_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    guide = ColourGuide()
    with pytest.raises(UnknownNameError, match="'eror'"):
        of_targets(guide, ["0"], 2, (8, 8), measure="eror")
    monkeypatch.setattr(guide, "measure", lambda output, target: {"mood": [1.0] * len(output)})
    with pytest.raises(OptionError, match="mood"):
        of_targets(guide, ["0"], 2, (8, 8))
    assert of_targets(guide, ["0"], 2, (8, 8), higher_is_better=True).higher_is_better


def test_peak_signal_to_noise() -> None:
    truth = torch.zeros(2, 3, 4, 4)
    made = torch.stack([torch.full((3, 4, 4), 0.2), truth[1]])
    found = peak_signal_to_noise(made, truth)
    assert found.tolist() == pytest.approx([20.0, 100.0], abs=1e-5)


# Searches in a folder


def asked(**changes: Any) -> SearchConfig:
    run = RunConfig(
        guides=(GuideConfig("colour", "", recipe=changes.pop("recipe", "x0"), scale=5.0),),
        backbone="gaussian", steps=4, num=4, batch=3, device="cpu",
    )  # fmt: skip
    values: dict[str, Any] = {"targets": ("0.2",), "budget": 6}
    return SearchConfig(run, **(values | changes))


def values_of(outcome: Outcome) -> list[tuple[int, Mapping[str, Value], Judged | None]]:
    by_number = sorted(outcome.trials, key=lambda trial: trial.number)
    return [(t.number, t.values, t.judged) for t in by_number]


def test_a_search_leaves_a_record_a_table_a_plot_and_a_command(tmp_path: Path) -> None:
    told: list[str] = []
    outcome = search(asked(), tmp_path / "a", found=world(), tell=told.append)
    assert ["itself" in text for text in told] == [True]
    names = {p.name for p in (tmp_path / "a").iterdir() if not p.name.startswith(".")}
    assert names == {"search.json", "trials.csv", "best.txt", "search.png", "frontier.json"}
    record = json.loads((tmp_path / "a" / "search.json").read_text())
    assert record["best"] == outcome.trials[0].number
    assert record["settings"]["objective"] == "error"
    assert record["settings"]["higher_is_better"] is False
    best = record["trials"][record["best"]]["judged"]["measured"]
    assert record["unguided"]["measured"]["measure"] > best["measure"]
    assert outcome.better_than_unguided
    text = (tmp_path / "a" / "trials.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["trial"] for row in rows] == [str(k) for k in range(6)]
    assert rows[0]["judged by"] == "the guide 'colour' itself"
    assert set(rows[0]) >= {
        "scale",
        "smoothing",
        "power",
        "error",
        "standard error",
        "limited",
        "score",
    }
    words = shlex.split((tmp_path / "a" / "best.txt").read_text())
    assert words[:6] == ["ppap", "run", "--guide", "colour", "--target", "0.2"]
    with Image.open(tmp_path / "a" / "search.png") as plot:
        assert plot.width > 600


def test_what_guidance_costs_is_varied_and_counted(tmp_path: Path) -> None:
    names = ("scale", "steps", "every", "interval", "solver")
    outcome = search(asked(only=names, budget=8), tmp_path, found=world())
    costs = {}
    for trial in outcome.trials:
        assert trial.judged is not None
        costs[tuple(trial.values[n] for n in names[1:4])] = trial.judged.measured.cost
    start = costs[4, 1, ""]
    assert outcome.unguided.measured.cost < start
    assert len(set(costs.values())) > 1
    kept = json.loads((tmp_path / "frontier.json").read_text())
    assert set(kept["qualities"]) == {"draft", "normal", "best"}
    assert all(set(point["values"]) >= set(names) for point in kept["points"])
    words = shlex.split(outcome.record["command"])
    best = outcome.trials[0].values
    assert words[words.index("--steps") + 1] == str(best["steps"])
    assert ("--interval" in words) == bool(best["interval"])
    assert words[words.index("--sampler") + 1] == str(best["solver"]).partition(":")[0]
    assert len({trial.values["solver"] for trial in outcome.trials}) > 1
    with pytest.raises(OptionError, match="spacing"):
        dimensions(X0, 1.0, ("steps",), steps="ddim25")


def test_what_a_quality_may_become_is_measured_again_on_other_images(tmp_path: Path) -> None:
    names = ("scale", "steps")
    first = search(asked(only=names, budget=8), tmp_path, found=world())
    before = json.loads((tmp_path / "frontier.json").read_text())
    again = search(asked(only=names, budget=8, confirm=7), tmp_path, found=world())
    assert values_of(again) == values_of(first)
    after = json.loads((tmp_path / "frontier.json").read_text())
    assert (before["images"], after["images"]) == (4, 7)
    confirmed = again.record["confirmed"]
    assert after["unguided"] == confirmed["unguided"]["measured"] != before["unguided"]
    of_them = {trial: found["measured"] for trial, found in confirmed["trials"].items()}
    assert "0" in of_them  # what the search started from
    for point in after["points"]:
        assert {key: point[key] for key in ("measure", "distance", "cost")} in of_them.values()
    # Nothing that was measured is measured again.
    path = tmp_path / "search.json"
    record = json.loads(path.read_text())
    record["confirmed"]["trials"]["0"]["measured"]["measure"] = 0.0
    path.write_text(json.dumps(record))
    search(asked(only=names, budget=8, confirm=7), tmp_path, found=world())
    best = json.loads((tmp_path / "frontier.json").read_text())["qualities"]["best"]
    assert best["scale"] == record["trials"][0]["values"]["scale"]


def test_budgets_count_what_is_there(tmp_path: Path) -> None:
    first = search(asked(budget=2), tmp_path, found=world())
    assert len(first.trials) == 2
    more = search(asked(budget=5), tmp_path, found=world())
    assert len(more.trials) == 5
    assert values_of(more)[:2] == values_of(first)
    again = search(asked(budget=3), tmp_path, found=world())
    assert len(again.trials) == 5


def test_ctrl_c_keeps_the_trials_and_the_search_goes_on_as_if_nothing_had_been(
    tmp_path: Path,
) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what.startswith("trial 9 of"):
            raise KeyboardInterrupt

    config = asked(budget=11)
    with pytest.raises(KeyboardInterrupt):
        search(config, tmp_path / "stopped", stop, found=world())
    kept = json.loads((tmp_path / "stopped" / "search.json").read_text())
    assert len(kept["trials"]) == 8
    assert (tmp_path / "stopped" / "search.png").exists()
    resumed = search(config, tmp_path / "stopped", found=world())
    whole = search(config, tmp_path / "whole", found=world())
    assert values_of(resumed) == values_of(whole)
    assert resumed.record["command"] == whole.record["command"]


def test_a_folder_holds_one_search(tmp_path: Path) -> None:
    search(asked(budget=1), tmp_path, found=world())
    before = (tmp_path / "search.json").read_bytes()
    for other in (
        asked(targets=("0.3",)), asked(recipe="x0:power=2"), asked(only=("scale",)),
    ):  # fmt: skip
        with pytest.raises(OptionError, match="another search"):
            search(other, tmp_path, found=world())
    assert (tmp_path / "search.json").read_bytes() == before
    (tmp_path / "search.json").write_text("{")
    with pytest.raises(OptionError, match="no record"):
        search(asked(), tmp_path, found=world())


def test_two_searches_do_not_share_a_folder(tmp_path: Path) -> None:
    from filelock import FileLock

    with FileLock(tmp_path / ".lock"), pytest.raises(OutputError, match="at work"):
        search(asked(), tmp_path, found=world())


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="Cannot write"):
        search(asked(), tmp_path / "file", found=world())


def test_the_recipe_that_was_given_is_where_it_starts(tmp_path: Path) -> None:
    config = asked(recipe="tfg:rho=0.7,iterations=2", only=("scale", "rho-course"), budget=2)
    outcome = search(config, tmp_path, found=world())
    assert values_of(outcome)[0][1] == {"scale": 5.0, "rho-course": "increase"}
    words = shlex.split(outcome.record["command"])
    recipe = words[words.index("--recipe") + 1]
    assert recipe.startswith("tfg:rho=0.7,iterations=2,rho-course=")


def test_trials_that_fail_do_not_stop_a_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = ColourGuide.loss

    def broken(self: Guide, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if broken.calls == 8:  # a batch's steps are four, a trial's batches two  # type: ignore[attr-defined]
            raise RuntimeError("out of everything")
        broken.calls += 1  # type: ignore[attr-defined]
        return loss(self, output, target)  # type: ignore[arg-type]

    broken.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(ColourGuide, "loss", broken)
    outcome = search(asked(budget=3, only=("scale",)), tmp_path / "some", found=world())
    problem = "RuntimeError: out of everything"
    assert [t.problem for t in outcome.trials] == [None, problem, problem]
    with pytest.raises(OptionError, match="All 2 trials failed"):
        search(asked(budget=2), tmp_path / "all", found=world())
    assert json.loads((tmp_path / "all" / "search.json").read_text())["best"] is None


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"targets": ()}, OptionError, "Nothing says"),
        ({"judge": "colur"}, UnknownNameError, "colur"),
        ({"recipe": "tgf"}, UnknownNameError, "tgf"),
        ({"recipe": "pigdm"}, OptionError, "linear measurement"),
        ({"only": ("strength",)}, UnknownNameError, "strength"),
        ({"measure": "miou"}, UnknownNameError, "miou"),
    ],
)
def test_slips_are_answered_before_the_first_trial(
    tmp_path: Path, changes: dict[str, Any], error: type[PpapError], words: str
) -> None:
    with pytest.raises(error, match=words):
        search(asked(**changes), tmp_path / "work", found=world())
    assert not (tmp_path / "work").exists()


def test_a_budget_of_nothing() -> None:
    with pytest.raises(OptionError, match=r"'budget' .* is 0"):
        asked(budget=0)


# The command


SMALL = ("--budget", 2, "--num", 2, "--steps", 2, "--device", "cpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("guide", "objective"),
    [
        ("classifier", "accuracy"),
        ("depth", "depth_error"),
        ("segmentation", "miou"),
        ("super-resolution", "psnr"),
    ],
)
def test_the_built_in_world_has_targets_and_judges(
    ppap_here: Call, tmp_path: Path, guide: str, objective: str
) -> None:
    arguments = ("--guide", guide, "--recipe", "x0", "--work", "work", "--json", *SMALL)
    first = ppap_here("search", *arguments)
    assert first.code == 0, first.err
    record = json.loads(first.out)
    assert record["settings"]["objective"] == objective
    assert "itself" not in first.err
    assert [t["number"] for t in record["trials"]] == [0, 1]
    assert all(math.isfinite(t["judged"]["score"]) for t in record["trials"])
    again = json.loads(ppap_here("search", *arguments).out)
    assert again["trials"] == record["trials"]
    # The command it gives makes an image.
    words = shlex.split(record["command"])
    made = ppap_here(*words[1:], "--num", 1, "--out", "made", "--device", "cpu")
    assert made.code == 0, made.err


def test_the_command_answers_slips(ppap_here: Call) -> None:
    usual = ("search", "--guide", "classifier", "--work", "w")
    for arguments, words in (
        (("--recipe", "tfg", "--only", "rhoo"), "'rhoo'"),
        (("--recipe", "tfg", "--only", ""), "leaves nothing"),
        (("--recipe", "tgf"), "'tgf'"),
        (("--scale-range", "3"), "no range"),
        (("--sampler", "dpm"), "'dpm'"),
        (("--measure", "miou"), "one measure"),
    ):
        outcome = ppap_here(*usual, *arguments)
        assert outcome.code == 2 and words in outcome.err, outcome.err
    assert not Path("w").exists()


def test_experts_are_found_or_asked_for() -> None:
    assert [d.name for d in dimensions(PPAP, 2.0)] == ["scale", "smoothing", "power"]


def test_optuna_is_imported_only_for_a_search() -> None:
    import subprocess

    code = "import sys, ppap_host.cli; sys.exit('optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
