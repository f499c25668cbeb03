"""``ppap bench``: methods side by side, judged."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppap_host.cli import complete, options
from ppap_host.cli.checks import check_folder, check_weights
from ppap_host.cli.help import Application
from ppap_host.cli.options import MACHINE, AsJson, OpenIt, option
from ppap_host.cli.output import (
    clean,
    console,
    counted,
    duration,
    is_terminal,
    open_file,
    print_json,
    remark,
    tell,
    tell_path,
)
from ppap_host.cli.progress import progress_bar
from ppap_host.cli.surroundings import INTERRUPTED
from ppap_host.cli.tables import Column, show_table
from ppap_host.files.errors import CheckpointError, OptionError, unknown_name
from ppap_plugin_bench.benchmarks.elucd_options import PARTS, SHIPPED, named_models
from ppap_plugin_bench.benchmarks.tasks import GROUNDS, REWARDS, STEERS, TASKS

if TYPE_CHECKING:
    from ppap_plugin_bench.benchmarks.elucd import Outcome as ElucdOutcome
    from ppap_plugin_bench.benchmarks.ppap import Outcome
    from ppap_plugin_bench.benchmarks.recipes import Outcome as RecipesOutcome

app = Application("Methods side by side, judged.")

_GUIDES = ("classifier", "depth", "segmentation")
_NEEDED = ("torchmetrics", "scipy", "matplotlib")
_REPORT = "Folder of the report; an earlier one goes on."

Quick = Annotated[
    bool, option("Few images: shows in minutes that all works, and little else.", "--quick")
]


@app.command()
def ppap(
    out: Annotated[Path, options.out(_REPORT)],
    quick: Quick = False,
    guide: Annotated[list[str] | None, option(
        "classifier, depth, segmentation; repeatable. [default: all]",
        "--guide", "-g", metavar="NAME", autocompletion=complete.among(_GUIDES),
    )] = None,
    harvest: Annotated[
        Path | None, option("Harvest to tune on. [default: made in --out]", metavar="FOLDER")
    ] = None,
    retune: Annotated[bool, option("Tune all experts anew, shipped ones too.", "--retune")] = False,
    seed: Annotated[int, option("Of images and tuning.", min=0)] = 0,
    open_it: OpenIt = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Compare PPAP's experts with other uses of the same guides, in the built-in world.

    Arms: unguided; off-the-shelf at x_t and at the predicted x_0; one noise-aware network;
    supervised experts; PPAP with 1, 2, 5 and 10 experts. Each gets its strength by the same search
    on other targets. Writes tables, plots, images and index.html. What an interrupted benchmark has
    finished is kept.
    """
    wanted = list(dict.fromkeys(guide or _GUIDES))
    for name in wanted:
        if name not in _GUIDES:
            raise unknown_name("guide", name, _GUIDES, "Others have no judge.")
    _check_installed(wanted)
    _check_harvest(harvest)
    command = _command()
    with progress_bar() as watch:
        watch("loading libraries", 0, 1)
        try:
            from dataclasses import replace

            from ppap_plugin_bench.benchmarks import ppap as benchmark
            from ppap_plugin_bench.benchmarks.report import write_report
            from ppap_plugin_bench.benchmarks.world import ShapesWorld

            settings = replace(benchmark.QUICK if quick else benchmark.FULL, seed=seed)
            outcome = benchmark.run(
                out, ShapesWorld(), settings, guides=wanted, harvested=harvest, retune=retune,
                command=command, watch=watch,
            )  # fmt: skip
            watch("writing the report", 0, 1)
            results = write_report(outcome, out)
        except KeyboardInterrupt:
            raise _interrupted(out) from None
    if as_json:
        print_json(results)
    else:
        _print(outcome, out)
    if open_it:
        open_file(out / "index.html")


def _check_installed(guides: Iterable[str]) -> None:
    """Says what to install before torch is imported.

    Raises:
        OptionError: a package is not there.
        UnknownNameError: a guide is not.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise OptionError(
            f"The benchmark needs {', '.join(missing)}.",
            remedy=f"Install them with `pip install {' '.join(missing)}`.",
        )
    from ppap_host.plugins.registry import registry

    for name in guides:
        registry().entry("guide", name)


def _check_harvest(folder: Path | None) -> None:
    if folder is not None:
        remedy = "Make one with `ppap harvest --out FOLDER`."
        check_folder(folder, "harvest.json", CheckpointError, remedy)


def _models(texts: Sequence[str] | None) -> dict[str, str]:
    """Further classifiers by name, whose weights are there."""
    named = named_models(texts or [])
    for folder in named.values():
        check_weights(folder)
    return named


def _command() -> str:
    """The command that was given, for records."""
    return shlex.join(["ppap", *(a for a in sys.argv[1:] if a != "--debug")])


def _interrupted(out: Path) -> typer.Exit:
    """Says how an interrupted benchmark goes on."""
    kept = counted(len(list((out / "cells").glob("*.json"))), "finished part")
    remark(f"Interrupted: {kept} in {out}; the same command goes on from there.", "yellow")
    return typer.Exit(INTERRUPTED)


def _table(title: str, titles: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table of a report, whose cells are Markdown."""
    columns = [Column(heading, number=bool(place)) for place, heading in enumerate(titles)]
    show_table(columns, [[cell.strip("`*") for cell in row] for row in rows], title)


def _findings(text: str) -> None:
    """What a report says, which is Markdown."""
    text = "\n".join(map(clean, text.splitlines()))
    if is_terminal(sys.stdout):
        from rich.markdown import Markdown

        console().print(Markdown(text))
    else:
        sys.stdout.write(text + "\n")


def _end(seconds: float, what: str, path: Path) -> None:
    tell(f"Took {duration(seconds)}.")
    tell_path(what, path)


def _print(outcome: Outcome, out: Path) -> None:
    """The tables, for people."""
    from ppap_plugin_bench.benchmarks import report

    for result in outcome.tasks:
        rows = report.body(result, outcome.floor[result.task.name])
        _table(result.task.title, report.header(result), rows)
    if outcome.pair is not None:
        _table("Class and depth at once", *report.pair_rows(outcome.pair))
        tell(report.verdict(outcome.pair))
    _end(outcome.record["seconds"], "Report", out / "index.html")


@app.command()
def recipes(
    out: Annotated[Path, options.out(_REPORT)],
    task: Annotated[list[str] | None, option(
        f"{', '.join(TASKS)}; repeatable. [default: all]",
        metavar="NAME", autocompletion=complete.among(TASKS),
    )] = None,
    recipe: Annotated[list[str] | None, option(
        "A preset; repeatable. [default: all]",
        "--recipe", "-r", metavar="NAME", autocompletion=complete.of("recipe"),
    )] = None,
    num: Annotated[int, options.num("Images of each task.", min=2)] = 32,
    evaluations: Annotated[int, option("Of the backbone, for an image.", min=4)] = 50,
    seed: Annotated[int, option("Of the images' noise.", min=0)] = 0,
    batch: Annotated[int, option("Images at a time.", panel=MACHINE, min=1)] = 16,
    device: Annotated[str, options.device()] = "auto",
    open_it: OpenIt = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Compare all recipes on six tasks in the built-in world, at equal cost.

    Once each recipe gets as many evaluations of the backbone, once as much time as x0 takes for
    them. Strengths are the guides' own. Writes a table, a plot of quality against time, and
    pictures. What an interrupted benchmark has finished is kept.
    """
    tasks = list(dict.fromkeys(task or TASKS))
    for name in tasks:
        if name not in TASKS:
            raise unknown_name("task", name, TASKS)
    from ppap_host.plugins.builtin import ppap_recipes

    presets = [entry.name for entry in ppap_recipes()]
    for name in recipe or []:
        if name not in presets:
            raise unknown_name("recipe", name, presets, "Only the host's own are compared.")
    _check_installed(TASKS[name] for name in tasks if TASKS[name] not in REWARDS)
    with progress_bar() as watch:
        watch("loading libraries", 0, 1)
        try:
            from ppap_host.runs.devices import pick_device
            from ppap_plugin_bench.benchmarks import recipes as benchmark
            from ppap_plugin_bench.benchmarks import restoring
            from ppap_plugin_bench.benchmarks.recipes_report import write_report

            settings = benchmark.Settings(num, evaluations, batch=batch, seed=seed)
            outcome = benchmark.run(
                out, restoring.RestoringWorld(), settings, tasks=tasks, recipes=recipe,
                device=pick_device(device), command=_command(), watch=watch,
            )  # fmt: skip
            watch("writing the report", 0, 1)
            results = write_report(outcome, out)
        except KeyboardInterrupt:
            raise _interrupted(out) from None
    if as_json:
        print_json(results)
    else:
        _print_recipes(outcome, out)
    if open_it:
        open_file(out / "recipes.png")


def _print_recipes(outcome: RecipesOutcome, out: Path) -> None:
    """The tables and the findings, for people."""
    from ppap_plugin_bench.benchmarks import recipes as benchmark
    from ppap_plugin_bench.benchmarks import recipes_report as report

    for budget, name in benchmark.BUDGETS.items():
        for group in benchmark.GROUPS:
            if outcome.group(group):
                _table(f"{name}: {group}", *report.rows_of(outcome, group, budget))
    _findings(report.findings(outcome))
    _end(outcome.record["seconds"], "Plot", out / "recipes.png")


@app.command()
def elucd(
    out: Annotated[Path, options.out(_REPORT)],
    model: Annotated[list[str] | None, option(
        "Further classifiers; repeatable.",
        "--model", "-m", metavar="[NAME=]FOLDER,...",
    )] = None,
    part: Annotated[list[str] | None, option(
        f"{', '.join(PARTS)}; repeatable. [default: all]",
        metavar="NAME", autocompletion=complete.among(PARTS),
    )] = None,
    quick: Quick = False,
    seed: Annotated[int, option("Of the images' noise.", min=0)] = 0,
    open_it: OpenIt = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Take EluCD apart in the built-in world, and compare classifiers that guide with it.

    Predicted x_0, Softplus, temperatures and sine are added in turn, each at its own strength. Then
    each classifier's calibration error over noise is measured beside what it achieves, and networks
    of GELU or SiLU guide as they are and softened. What an interrupted benchmark has finished is
    kept.
    """
    parts = list(dict.fromkeys(part or PARTS))
    for name in parts:
        if name not in PARTS:
            raise unknown_name("part", name, PARTS)
    named = _models(model)
    if named and "classifiers" not in parts:
        raise OptionError(
            "--model does nothing without the part classifiers.",
            remedy="Leave it out, or add --part classifiers.",
        )
    _check_installed(["classifier"])
    with progress_bar() as watch:
        watch("loading libraries", 0, 1)
        try:
            from dataclasses import replace

            from ppap_plugin_bench.benchmarks import elucd as benchmark
            from ppap_plugin_bench.benchmarks.elucd_report import write_report

            settings = replace(benchmark.QUICK if quick else benchmark.FULL, seed=seed)
            outcome = benchmark.run(
                out, benchmark.ClassifierWorld(), settings, models=named, parts=parts,
                command=_command(), watch=watch,
            )  # fmt: skip
            watch("writing the report", 0, 1)
            results = write_report(outcome, out)
        except KeyboardInterrupt:
            raise _interrupted(out) from None
    if as_json:
        print_json(results)
    else:
        _print_elucd(outcome, out)
    if open_it:
        open_file(out / "elucd.png")


def _print_elucd(outcome: ElucdOutcome, out: Path) -> None:
    """The tables and the findings, for people."""
    from ppap_plugin_bench.benchmarks import elucd_report as report

    for name, titles, rows in report.tables(outcome):
        _table(name, titles, rows)
    _findings(report.findings(outcome))
    _end(outcome.record["seconds"], "Plot", out / "elucd.png")


@app.command()
def capacity(
    out: Annotated[Path, options.out(_REPORT)],
    harvest: Annotated[Path, option("Of `ppap harvest`.", metavar="FOLDER")],
    model: Annotated[list[str] | None, option(
        "Further classifiers; the shipped one is first. Repeatable.",
        "--model", "-m", metavar="[NAME=]FOLDER,...",
    )] = None,
    images: Annotated[int, option("For training, shared by the experts.", min=32)] = 12_800,
    seeds: Annotated[int, option("Tunings of each kind.", min=1, max=1000)] = 3,
    rank: Annotated[int, option("Of one expert's factors.", min=1)] = 2,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Compare N experts with one noise-aware patch of the same size and the same training.

    Measures what the classifier reads in noised renders, for N of 1, 2, 5 and 10.
    """
    from ppap_host.plugins.registry import registry

    registry().entry("guide", "classifier")
    _check_harvest(harvest)
    named = {SHIPPED: None, **_models(model)}
    with progress_bar() as watch:
        watch("loading libraries", 0, 1)
        from ppap_host.experts.harvest import Harvest
        from ppap_host.guides.guide import Guide
        from ppap_host.plugins.loading import load_guide
        from ppap_plugin_bench.benchmarks import capacity as study
        from ppap_plugin_bench.benchmarks.world import ShapesWorld

        made = Harvest.open(harvest)
        settings = study.Settings(seeds=tuple(range(seeds)), images=images, rank=rank)
        world = ShapesWorld()

        def maker(folder: str | None) -> Callable[[], Guide]:
            return lambda: load_guide(registry(), "classifier", folder)

        try:
            rows = study.run(
                out, world, "classifier",
                {name: maker(folder) for name, folder in named.items()},
                made, settings, "right", watch,
            )  # fmt: skip
        except KeyboardInterrupt:
            remark(f"Interrupted: the same command goes on in {out}.", "yellow")
            raise typer.Exit(INTERRUPTED) from None
        levels = study.spread(world.backbone.levels(), settings.levels)
        results = study.write_report(rows, levels, settings, "accuracy", _command(), made, out)
    if as_json:
        print_json(results)
    else:
        _findings((out / "capacity.md").read_text(encoding="utf-8"))
        tell_path("Report", out / "capacity.md")


@app.command()
def strength(
    out: Annotated[Path, options.out(_REPORT)],
    num: Annotated[int, options.num("Images of each combination.")] = 48,
    steps: Annotated[list[int] | None, option("Repeatable. [default: 8, 50]", min=1)] = None,
    guide: Annotated[list[str] | None, option(
        f"{', '.join(STEERS)}; repeatable. [default: all]",
        "--guide", "-g", metavar="NAME", autocompletion=complete.among(STEERS),
    )] = None,
    backbone: Annotated[list[str] | None, option(
        f"{', '.join(GROUNDS)}; repeatable. [default: both]",
        metavar="NAME", autocompletion=complete.among(GROUNDS),
    )] = None,
    recipe: Annotated[list[str] | None, option(
        "Repeatable. [default: all that need neither experts nor an operator]",
        "--recipe", "-r", metavar="NAME[:KEY=VALUE,...]", autocompletion=complete.of("recipe"),
    )] = None,
    grid: Annotated[str | None, option(
        "Scales tried beside 1; none for none. [default: 0.5,2,4]",
        metavar="NUMBER,...",
    )] = None,
    batch: Annotated[int, option("Images at a time.", panel=MACHINE, min=1)] = 16,
    seed: Annotated[int, option("Of the images' noise.", min=0)] = 0,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """See what the default strength does for guides that nobody tuned for.

    Mirror symmetry, a counting network, a colour and a reward guide the built-in backbone and a
    small one that is trained first. Each is compared with unguided images and with the best scale
    of a grid. What an interrupted benchmark has finished is kept.
    """
    for given, known, kind in ((guide, STEERS, "guide"), (backbone, GROUNDS, "backbone")):
        for name in given or []:
            if name not in known:
                raise unknown_name(kind, name, known)
    scales = _scales(grid)
    with progress_bar() as watch:
        watch("loading libraries", 0, 1)
        try:
            from ppap_plugin_bench.benchmarks import strength as benchmark

            settings = benchmark.Settings(
                num, tuple(steps or (8, 50)), tuple(guide or STEERS), tuple(backbone or GROUNDS),
                tuple(recipe or ()), benchmark.GRID if scales is None else scales, seed, batch,
            )  # fmt: skip
            results = benchmark.run(out, settings, _command(), watch)
        except KeyboardInterrupt:
            raise _interrupted(out) from None
    if as_json:
        print_json(results)
        return
    _findings((out / "strength.md").read_text(encoding="utf-8"))
    _end(results["seconds"], "Table", out / "strength.md")


def _scales(text: str | None) -> tuple[float, ...] | None:
    """Scales as they are written, None for the default.

    Raises:
        OptionError: they are none.
    """
    if text is None:
        return None
    try:
        found = tuple(float(part) for part in text.split(",")) if text != "none" else ()
    except ValueError:
        found = (0.0,)
    if any(not 0 < scale < float("inf") for scale in found):
        raise OptionError(
            f"--grid {text!r} is no list of scales.", remedy="Give positive numbers, as in 0.5,2,4."
        )
    return found
