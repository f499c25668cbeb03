"""One search in a folder: what it goes by, its trials, and what is left of it to look at."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, model_validator
from torch import Tensor

from ppap_host.backbones.noise import NoiseRange
from ppap_host.files.errors import OptionError, SamplingError
from ppap_host.files.folders import Job
from ppap_host.files.hashes import file_hashes, package_versions
from ppap_host.files.images import to_pixels, to_unit
from ppap_host.files.reading import Document
from ppap_host.files.settings import MoreImages, Number, Positive, settings
from ppap_host.files.writing import csv_text, write_file, write_json
from ppap_host.guides.targets import Target
from ppap_host.plugins.loading import load_guide, load_sampler
from ppap_host.plugins.plugin import Kind
from ppap_host.plugins.registry import Registry, registry
from ppap_host.recipes.recipe import Recipe
from ppap_host.recipes.settings import split_recipe
from ppap_host.runs.batches import generate
from ppap_host.runs.choice import choose
from ppap_host.runs.config import GuideConfig, RunConfig, check_names
from ppap_host.runs.devices import pick_dtype
from ppap_host.runs.quality import OFF, read_solver, written
from ppap_host.runs.setup import ActiveGuide, Setup, set_up
from ppap_host.sampling.evaluator import Health
from ppap_host.sampling.loop import Event
from ppap_plugin_bench.benchmarks.arms import tensor_hash
from ppap_plugin_bench.benchmarks.ppap import CONFIRMING_NOISE, VALIDATION_NOISE
from ppap_plugin_bench.evaluation import Operations
from ppap_plugin_bench.search import validation
from ppap_plugin_bench.search.score import USUAL, Measured, Weights, chosen, frontier
from ppap_plugin_bench.search.space import (
    INTERVAL,
    SCALE,
    SOLVER,
    STEPS,
    Dimension,
    Value,
    dimensions,
    parameters,
    plain,
    shown,
)
from ppap_plugin_bench.search.study import Judged, Trial, ranked, run_trials
from ppap_plugin_bench.search.validation import Validation

Watch = Callable[[str, int, int], None]

FORMAT = 1
RECORD, TABLE, BEST, PLOT = "search.json", "trials.csv", "best.txt", "search.png"
FRONTIER_FILE = "frontier.json"

CANDIDATES = 3
"""Trials for each quality that are measured again on other images."""


class _Measured(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    measure: FiniteFloat
    distance: FiniteFloat | None
    cost: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Judged(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    score: FiniteFloat
    measured: _Measured
    error: FiniteFloat | None = None
    details: dict[str, FiniteFloat | None] = {}


class _Trial(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    number: NonNegativeInt
    values: dict[str, FiniteFloat | int | bool | str]
    judged: _Judged | None
    problem: str | None
    seconds: FiniteFloat


class _Confirmed(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    num: Annotated[int, Field(ge=1)]
    unguided: _Judged
    trials: dict[Annotated[str, Field(pattern=r"^\d+$")], _Judged]


class SearchRecord(BaseModel):
    """What ``search.json`` holds; other keys are kept."""

    model_config = ConfigDict(strict=True, extra="allow")

    format: Literal[1]
    settings: dict[str, Any]
    unguided: _Judged | None
    trials: Annotated[list[_Trial], Field(max_length=1_000_000)]
    confirmed: _Confirmed | None = None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if [trial.number for trial in self.trials] != list(range(len(self.trials))):
            raise ValueError("trials that are not numbered from 0 on")
        return self


_DOCUMENT = Document(
    "record of a search that this version can read", OptionError,
    "Choose another folder with --work.",
)  # fmt: skip


@settings
class SearchConfig:
    """Everything that decides what a search finds.

    Attributes:
        run: how the images of a trial are made, ``num`` of them; its one guide is what is searched
            for, with the strength and the recipe to start from. Its target is not looked at.
        targets: for the guide; empty for those that the built-in world has.
        judge: another guide that measures, "name" or "name=model"; None for the world's own judges,
            or else the guide itself.
        measure: of the judge; None takes the first.
        higher_is_better: of the measure; None where that is known.
        only: what is varied; empty for the strength and all that the recipe declares.
        scale_range: bounds of the strength; None takes some around the usual one.
        weights: of distance and cost in the score.
        budget: trials in all, >= 1.
        confirm: other images of which the trials that a quality may become are measured again, so
            that none is chosen for its luck; 0 for none.
    """

    run: RunConfig
    targets: tuple[str, ...] = ()
    judge: str | None = None
    measure: str | None = None
    higher_is_better: bool | None = None
    only: tuple[str, ...] = ()
    scale_range: tuple[Positive, Positive] | None = None
    weights: Weights = USUAL
    budget: Number = 50
    confirm: MoreImages = 0

    def __post_init__(self) -> None:
        if isinstance(self.run.seed, tuple):
            raise OptionError("A search takes one seed.", remedy="Give --seed once.")

    @property
    def seed(self) -> int:
        """The run's."""
        assert isinstance(self.run.seed, int)
        return self.run.seed

    @property
    def guide(self) -> GuideConfig:
        """The one guide."""
        (guide,) = self.run.guides
        return guide

    @property
    def world_judges(self) -> bool:
        """Whether targets and judges are the built-in world's."""
        known = self.run.backbone == "shapes" and self.guide.name in validation.JUDGED
        return known and not self.targets and self.judge is None


@dataclass(frozen=True)
class Outcome:
    """What a search has found.

    Attributes:
        record: as in ``search.json``.
        trials: best first.
        space: what was varied.
        validation: what it went by.
    """

    record: Mapping[str, Any]
    trials: list[Trial]
    space: tuple[Dimension, ...]
    validation: Validation

    @property
    def unguided(self) -> Judged:
        """The same images without guidance."""
        return Judged.from_dict(self.record["unguided"])

    @property
    def better_than_unguided(self) -> bool:
        """Whether the best trial beats the same images without guidance."""
        best = self.trials[0].judged
        if best is None:
            return False
        return best.score > 0


class Trials:
    """Makes the images of a trial and has them judged.

    Args:
        folder: where target pictures are written.
        found: the plugins to choose from.
        watch: told of progress within a trial: (image-steps done, of so many).

    Raises:
        PpapError: anything the user can mend; see :mod:`ppap_host.files.errors`.
    """

    def __init__(
        self,
        config: SearchConfig,
        folder: Path,
        found: Registry,
        watch: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.config, self.watch = config, watch
        run, asked = config.run, config.guide
        # Its own noise: strengths are not chosen on the images that they are shown with.
        plain_run = replace(run, guides=(), recipe=None, seed=config.seed + VALIDATION_NOISE)
        self.setup: Setup = set_up(plain_run, found=found)
        stage = self.setup.stages[0]
        model = measuring(asked.name, asked.model) if config.world_judges else asked.model
        guide = load_guide(found, asked.name, model)
        recipe = asked.recipe or run.recipe
        choice = choose(asked, recipe, guide, stage.backbone, stage.walk, found)
        self.recipe: Recipe = choice.recipe
        self.scale = guide.usual_scale(self.recipe.name) if asked.scale is None else asked.scale
        self.steps = stage.steps
        self.solver, self.found = written(stage.sampler, stage.eta), found
        self.space = dimensions(
            self.recipe, self.scale, config.only, config.scale_range, self.steps,
            asked.interval or "", self.solver,
        )  # fmt: skip
        guide.to(self.setup.device, pick_dtype(run.dtype, self.setup.device))
        size = self.setup.stages[-1].backbone.image_size
        if config.world_judges:
            self.validation = validation.of_shapes(
                guide, run.num, config.seed + VALIDATION_NOISE, folder / "targets", run.checkpoint
            )
        else:
            judge = None
            if config.judge is not None:
                name, _, judge_model = config.judge.partition("=")
                judge = load_guide(found, name, judge_model or None)
                judge.to(self.setup.device, torch.float32)
            self.validation = validation.of_targets(
                guide, config.targets, run.num, size, judge, config.measure,
                config.higher_is_better,
            )  # fmt: skip
        self.targets = self.validation.targets.to(self.setup.device)
        self.recipe.check(guide, self.targets[:1])
        self._active = ActiveGuide(
            asked, choice.guide, tuple(Target("", row[None]) for row in self.targets), self.recipe,
            choice.asked, self.scale, choice.experts, choice.files,
        )  # fmt: skip
        if stage.solver is None and any(d.name in (STEPS, SOLVER) for d in self.space):
            raise OptionError(
                f"{stage.backbone.name!r} takes its own steps, which a search cannot vary.",
                remedy="Give --sampler, such as ddim, or leave out steps and solver.",
            )
        self._unguided: Judged | None = None
        self.model_files = {
            **file_hashes(stage.backbone.files(), stage.backbone.name),
            **file_hashes(guide.files(), guide.name),
            **file_hashes(choice.files, "experts"),
        }

    def __call__(self, values: Mapping[str, Value]) -> Judged:
        """One trial.

        Raises:
            OptionError: the recipe cannot have these values.
            ValueError: an image is not finite.
        """
        recipe = self.recipe.with_values(parameters(values))
        if INTERVAL in values:
            recipe = replace(recipe, interval=NoiseRange.read(str(values[INTERVAL]) or ":"))
        unguided = self.unguided().measured
        scale = float(values.get(SCALE, self.scale))
        steps = int(values[STEPS]) if STEPS in values else self.steps
        solver = str(values.get(SOLVER, self.solver))
        measured, error, details = self._images_judged(recipe, scale, steps, solver)
        checked = self.validation
        score = measured.score(
            unguided, checked.objective, checked.higher_is_better, self.config.weights
        )
        return Judged(score, measured, error, details)

    def unguided(self) -> Judged:
        """The same images without the guide, at the steps that the search starts from."""
        if self._unguided is None:
            measured, error, details = self._images_judged(
                self.recipe, 0.0, self.steps, self.solver
            )
            self._unguided = Judged(0.0, measured, error, details)
        return self._unguided

    def known(self, unguided: Judged) -> None:
        """What :meth:`unguided` has found before."""
        self._unguided = unguided

    def _images_judged(
        self, recipe: Recipe, scale: float, steps: int | str, solver: str
    ) -> tuple[Measured, float | None, dict[str, float]]:
        health = Health()
        try:
            x, cost = self._images(recipe, scale, steps, solver, health)
        except SamplingError as error:
            raise ValueError(error.message) from error
        x = to_unit(to_pixels(x).cpu())
        measures, distance = self.validation.judge(x), self.validation.distance(x)
        found = measures[self.validation.objective]
        asked = max(sum(health.asked.values()), 1)
        details = {name: measure.value for name, measure in measures.items()}
        if scale:
            details["limited"] = round(sum(health.limited.values()) / asked, 4)
            details["skipped"] = round(sum(health.skipped.values()) / asked, 4)
        return Measured(found.value, distance, cost), found.error, details

    def _images(
        self, recipe: Recipe, scale: float, steps: int | str, solver: str, health: Health
    ) -> tuple[Tensor, float]:
        """The images, RGB in about [-1, 1], float32 [n, 3, h, w], and what one costs."""
        stage, run = self.setup.stages[0], self.config.run
        stage.steps = steps
        if stage.solver is not None:
            sampler, eta = read_solver(solver)
            stage.solver = load_sampler(self.found, sampler, stage.backbone, eta)
            if recipe.needs and scale and stage.solver.noise not in (recipe.needs, "gaussian"):
                raise ValueError(f"{solver} draws no noise that {recipe.name} could work on")
            stage.walk = stage.solver.walk(stage.backbone, steps)
        made: list[Tensor] = []
        cost = 0.0
        size = self.setup.config.batch or 1
        for first in range(0, run.num, size):
            rows = range(first, min(first + size, run.num))
            stage.guides = [replace(self._active, recipe=recipe, scale=scale)] if scale else []

            def step(event: Event, rows: range = rows) -> None:
                done = rows.start * event.steps + len(rows) * (event.index + 1)
                self.watch(done, run.num * event.steps)

            # The same for every image: counted once, since counting takes time.
            counter = Operations()
            with nullcontext() if made else counter:
                made.append(generate(self.setup, list(rows), health, step))
            cost = cost or counter.count / len(rows)
        return torch.cat(made), cost

    def identity(self) -> dict[str, Any]:
        """JSON values on which the trials depend, all but the trials' number."""
        run = self.config.run.to_dict()
        for other in ("guides", "batch", "device"):
            del run[other]
        checked = self.validation
        return {
            "run": run,
            "guide": self.config.guide.to_dict(),
            "recipe_name": self.recipe.name,
            "recipe": repr(self.recipe),
            "experts": self._active.experts,
            "space": [
                asdict(d) | {"start": plain(d.start), "choices": list(d.choices)}
                for d in self.space
            ],
            "weights": asdict(self.config.weights),
            "objective": checked.objective,
            "higher_is_better": checked.higher_is_better,
            "judged_by": checked.by,
            "judge": self.config.judge,
            "validation": {**checked.identity, "targets_sha256": tensor_hash(checked.targets)},
            "model_files": self.model_files,
        }

    def candidates(self, trials: Sequence[Trial]) -> list[Trial]:
        """Those that may become a quality, and the start, by number."""
        checked, unguided = self.validation, self.unguided().measured
        points = frontier(trials, higher_is_better=checked.higher_is_better)
        kept = {trial.number: trial for trial in trials[:1] if trial.judged is not None}
        for _ in range(CANDIDATES):
            best = chosen(
                points, unguided, checked.objective, checked.higher_is_better, self.config.weights
            )
            kept |= {trial.number: trial for trial in best.values()}
            points = [trial for trial in points if trial not in best.values()]
            if not points:
                break
        return [kept[number] for number in sorted(kept)]

    def frontier(self, trials: Sequence[Trial]) -> dict[str, Any]:
        """The points that no trial beats, and which of them each quality is; JSON values."""
        checked, unguided = self.validation, self.unguided().measured
        points = frontier(trials, higher_is_better=checked.higher_is_better)
        best = chosen(
            points, unguided, checked.objective, checked.higher_is_better, self.config.weights
        )
        return {
            "format": FORMAT,
            "guide": self.config.guide.name,
            "backbone": self.config.run.backbone,
            "backbone_files": file_hashes(self.setup.stages[0].backbone.files(), "backbone"),
            "recipe": self.recipe.name,
            "experts": self._active.experts,
            "measure": checked.objective,
            "judged_by": checked.by,
            "unguided": asdict(unguided),
            "images": self.config.run.num,
            "points": [
                {"values": self._settings(trial.values), **asdict(trial.judged.measured)}
                for trial in points
                if trial.judged is not None
            ],
            "qualities": {name: self._settings(trial.values) for name, trial in best.items()},
        }

    def _settings(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """What a trial has tried, with what was not varied."""
        given = {
            SCALE: self.scale, STEPS: self.steps, SOLVER: self.solver,
            INTERVAL: self.config.guide.interval or "",
        }  # fmt: skip
        return {name: plain(value) for name, value in (given | dict(values)).items()}

    def command(self, values: Mapping[str, Value]) -> str:
        """The ``ppap run`` that uses these values."""
        run, guide = self.config.run, self.config.guide
        others = parameters(values)
        given = split_recipe(guide.recipe or run.recipe or self.recipe.name)[1]
        settings = given | {name: shown(value) for name, value in others.items()}
        recipe = self.recipe.name
        if settings:
            recipe += ":" + ",".join(f"{name}={value}" for name, value in settings.items())
        model = measuring(guide.name, guide.model) if self.config.world_judges else guide.model
        words: list[str] = ["ppap", "run", "--guide", guide.name]
        words += ["--target", self.validation.example]
        options = {
            "model": model, "experts": guide.experts, "recipe": recipe,
            "scale": shown(values.get(SCALE, self.scale)),
            "steps": str(values.get(STEPS, self.steps)),
            "interval": str(values.get(INTERVAL, guide.interval or "")) or None,
            "quality": OFF,  # or what is not given here would be that of an earlier frontier
        }  # fmt: skip
        usual = RunConfig()
        for key in ("backbone", "checkpoint", "prompt", "cfg", "sampler", "eta", "dtype"):
            value = getattr(run, key)
            options[key] = None if value == getattr(usual, key) else str(value)
        if SOLVER in values:
            sampler, eta = read_solver(str(values[SOLVER]))
            options |= {"sampler": sampler, "eta": None if eta is None else f"{eta:g}"}
        if run.class_index is not None:
            options["class"] = str(run.class_index)
        for key, text in options.items():
            words += [] if text is None else [f"--{key}", text]
        for key, text in run.backbone_options.items():
            words += ["--backbone-option", f"{key}={text}"]
        return shlex.join(words)


def measuring(guide: str, model: str | None) -> str | None:
    """The --model of a guide, which in the built-in world measures its targets itself first."""
    if guide not in validation.RESTORATIONS or "measure=" in (model or ""):
        return model
    return f"{model},measure=yes" if model else "measure=yes"


def _check_options(config: SearchConfig, found: Registry) -> None:
    """Early answers to slips of the pen.

    Raises:
        OptionError, UnknownNameError, PluginError: something does not go together or exist.
    """
    check_names(config.run, found)
    if config.judge is not None:
        found.entry("guide", config.judge.partition("=")[0])
    if not config.targets and not config.world_judges:
        judged = ", ".join(validation.JUDGED)
        raise OptionError(
            f"Nothing says what the guide {config.guide.name!r} should see in the images of the "
            "trials.",
            remedy="Give targets with --target; only the backbone shapes has some of its own, for "
            f"the guides {judged}, and for its own judges.",
        )
    if config.world_judges and (config.measure or config.higher_is_better is not None):
        raise OptionError(
            "The built-in world's judges have one measure for each guide.",
            remedy="Leave out --measure and its direction, or give targets with --target.",
        )


def search(
    config: SearchConfig,
    folder: Path,
    watch: Watch = lambda what, done, total: None,
    found: Registry | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Outcome:
    """Searches in ``folder``, or goes on with the search that is in it.

    ``search.json`` and ``trials.csv`` are written after every trial, so that no finished trial is
    lost whatever stops the search.

    Args:
        found: the plugins to choose from; by default those installed.
        tell: told what the user should know before it starts.

    Raises:
        PpapError: anything the user can mend, such as another search in the folder, or that all
            trials failed.
        KeyboardInterrupt: passed on; the trials that are finished are kept.
    """
    watch("loading models", 0, 1)
    found = registry() if found is None else found
    _check_options(config, found)
    created = not os.path.exists(folder)
    # The record of a search that goes on in another process would be overwritten.
    with Job(folder):
        try:
            return _search(config, folder, watch, found, tell)
        finally:
            if created and not (folder / RECORD).exists():
                shutil.rmtree(folder, ignore_errors=True)  # it never began


def _search(
    config: SearchConfig,
    folder: Path,
    watch: Watch,
    found: Registry,
    tell: Callable[[str], None],
) -> Outcome:
    state: dict[str, Any] = {"what": "starting", "trial": 0}

    def within(done: int, total: int) -> None:
        watch(state["what"], state["trial"] * total + done, config.budget * total)

    attempt = Trials(config, folder, found, within)
    checked, space = attempt.validation, attempt.space
    if checked.own:
        tell(
            f"The results are measured by the guide {config.guide.name!r} itself, which rewards "
            "what fools it: look at the images, or name another guide with --judge."
        )
    identity = json.loads(json.dumps(attempt.identity()))
    record = _stored(folder, identity)
    try:
        done = [Trial.from_dict(entry, space) for entry in record["trials"]]
    except (KeyError, TypeError, ValueError) as error:
        raise _DOCUMENT.fail(
            str(folder / RECORD), f"a trial that is none of this search: {error}"
        ) from None
    if record["unguided"] is None:
        state["what"] = "without guidance"
        record["unguided"] = asdict(attempt.unguided())
    else:
        attempt.known(Judged.from_dict(record["unguided"]))
    used: list[tuple[Kind, str]] = [("guide", config.guide.name), ("backbone", config.run.backbone)]
    record |= {
        "budget": config.budget,
        "versions": {
            "optuna": version("optuna"),
            **package_versions(
                plugin.distribution for kind, name in used for plugin, _ in found.names(kind)[name]
            ),
        },
        "threads": torch.get_num_threads(),
        "device": attempt.setup.device.type,
    }

    def keep(trials: Sequence[Trial]) -> None:
        order = ranked(trials)
        best = order[0] if order and order[0].judged is not None else None
        record["trials"] = [trial.to_dict() for trial in trials]
        record["best"] = None if best is None else best.number
        record["command"] = None if best is None else attempt.command(best.values)
        record["seconds"] = round(sum(trial.seconds for trial in trials), 1)
        write_json(folder / RECORD, record, indent=1)
        write_file(folder / TABLE, table(trials, space, checked).encode())
        if best is not None:
            write_file(folder / BEST, f"{record['command']}\n".encode())
            if not config.confirm:
                write_json(folder / FRONTIER_FILE, attempt.frontier(trials), indent=1)

    def tried(values: Mapping[str, Value]) -> Judged:
        words = ", ".join(f"{name} {_short(value)}" for name, value in values.items())
        state["what"] = f"trial {state['trial'] + 1} of {config.budget}: {words}"
        return attempt(values)

    def after(trials: list[Trial]) -> None:
        state["trial"] = len(trials)
        keep(trials)

    after(done)
    try:
        trials = run_trials(space, tried, config.budget, config.seed, done=done, after=after)
    finally:
        if record["best"] is not None:
            from ppap_plugin_bench.plots import plot_search

            plot_search(record, folder / PLOT)
    order = ranked(trials)
    if order[0].judged is None:
        raise OptionError(
            f"All {len(order)} trials failed, the first with: {trials[0].problem}.",
            remedy=f"They are in {str(folder / TABLE)!r}. Start from another --scale or recipe.",
        )
    if config.confirm:
        again = _confirmed(config, folder, watch, found, record, attempt.candidates(trials))
        write_json(folder / RECORD, record, indent=1)
        write_json(folder / FRONTIER_FILE, again, indent=1)
    return Outcome(record, order, space, checked)


def _confirmed(
    config: SearchConfig,
    folder: Path,
    watch: Watch,
    found: Registry,
    record: dict[str, Any],
    candidates: Sequence[Trial],
) -> dict[str, Any]:
    """The frontier of what ``candidates`` are worth on other images, which ``record`` keeps."""
    state: dict[str, Any] = {"what": "loading models", "trial": 0}

    def within(done: int, total: int) -> None:
        watch(state["what"], state["trial"] * total + done, (1 + len(candidates)) * total)

    run = replace(config.run, num=config.confirm, seed=config.seed + CONFIRMING_NOISE)
    attempt = Trials(replace(config, run=run), folder / "confirmed", found, within)
    kept = record.get("confirmed") or {}
    if kept.get("num") != config.confirm:
        state["what"] = f"without guidance, {config.confirm} other images"
        kept = {"num": config.confirm, "unguided": asdict(attempt.unguided()), "trials": {}}
    attempt.known(Judged.from_dict(kept["unguided"]))
    again: list[Trial] = []
    for place, trial in enumerate(candidates, 1):
        state |= {"trial": place, "what": f"trial {trial.number} on {config.confirm} other images"}
        if str(trial.number) not in kept["trials"]:
            kept["trials"][str(trial.number)] = asdict(attempt(trial.values))
        record["confirmed"] = kept
        write_json(folder / RECORD, record, indent=1)
        judged = Judged.from_dict(kept["trials"][str(trial.number)])
        again.append(replace(trial, judged=judged))
    return attempt.frontier(again)


def _stored(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The record in a folder, or a new one.

    Raises:
        OptionError: the folder holds another search, or a record that cannot be read.
    """
    fresh = {"format": FORMAT, "settings": dict(identity), "unguided": None, "trials": []}
    path = folder / RECORD
    if not os.path.lexists(path):
        return fresh
    stored = _DOCUMENT.read(path, dict[str, Any])
    _DOCUMENT.check(stored, SearchRecord, str(path))
    settings = stored["settings"]
    differing = [
        f"{key}: {_short(settings.get(key))} there, {_short(value)} now"
        for key, value in identity.items()
        if settings.get(key) != value
    ]
    if differing:
        raise OptionError(
            f"{str(folder)!r} holds another search ({'; '.join(differing[:3])}).",
            remedy="Choose another folder with --work, or give the options of that search.",
        )
    return fresh | stored


def trials_kept(folder: Path) -> int:
    """How many finished trials a folder holds; 0 where there is no record that can be read."""
    try:
        return len(_DOCUMENT.read(folder / RECORD, SearchRecord).trials)
    except OptionError:
        return 0


def _short(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def table(trials: Sequence[Trial], space: Sequence[Dimension], checked: Validation) -> str:
    """The trials as CSV, in the order they were tried."""
    names = [d.name for d in space]
    details = list(dict.fromkeys(k for t in trials if t.judged for k in t.judged.details))
    others = [name for name in details if name != checked.objective]
    heading = [
        "trial", *names, "score", checked.objective, "standard error", "frechet", "gigaflops",
        *others, "judged by", "seconds", "problem",
    ]  # fmt: skip
    rows = []
    for trial in trials:
        row: list[Any] = [trial.number, *(shown(trial.values[name]) for name in names)]
        if trial.judged is None:
            row += [""] * (5 + len(others))
        else:
            measured = trial.judged.measured
            row += [_number(trial.judged.score), _number(measured.measure)]
            row += [_number(trial.judged.error), _number(measured.distance)]
            row += [_number(measured.cost / 1e9)]
            row += [_number(trial.judged.details.get(name)) for name in others]
        rows.append([*row, checked.by, f"{trial.seconds:.1f}", trial.problem or ""])
    return csv_text(heading, rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
