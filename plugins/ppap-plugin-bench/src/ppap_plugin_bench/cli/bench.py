"""``ppap bench``: methods side by side, judged."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppap_host.cli.output import for_people, print_json, stderr
from ppap_host.files.errors import OptionError, unknown_name
from ppap_plugin_bench.benchmarks.elucd_options import PARTS, named_models
from ppap_plugin_bench.benchmarks.tasks import TASKS

if TYPE_CHECKING:
    from ppap_plugin_bench.benchmarks.elucd import Outcome as ElucdOutcome
    from ppap_plugin_bench.benchmarks.ppap import Outcome
    from ppap_plugin_bench.benchmarks.recipes import Outcome as RecipesOutcome

app = typer.Typer(help="Methods side by side, judged.", no_args_is_help=True)

_GUIDES = ("classifier", "depth", "segmentation")
_NEEDED = ("torchmetrics", "scipy", "matplotlib")


@app.callback()
def _group() -> None:
    """Methods side by side, judged."""


@app.command()
def ppap(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the report; an earlier one goes on.")
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="Few images: minutes instead of an hour.")
    ] = False,
    guide: Annotated[
        list[str] | None,
        typer.Option("--guide", "-g", help="classifier, depth, segmentation. [default: all]"),
    ] = None,
    harvest: Annotated[
        Path | None,
        typer.Option("--harvest", help="Harvest to tune on. [default: made in --out]"),
    ] = None,
    retune: Annotated[
        bool, typer.Option("--retune", help="Tune all experts anew, shipped ones too.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of images and tuning.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results alone on standard output.")
    ] = False,
) -> None:
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
    from ppap_host.cli.run import progress_bar

    command = _command()
    try:
        with progress_bar() as watch:
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
    if not for_people(as_json):
        print_json(results)
        return
    _print(outcome, out)


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
            remedy="Install them with `pip install 'ppap-host[evaluation]'`.",
        )
    from ppap_host.plugins.registry import registry

    for name in guides:
        registry().entry("guide", name)


def _command() -> str:
    """The command that was given, for records."""
    return shlex.join(["ppap", *(a for a in sys.argv[1:] if a != "--debug")])


def _interrupted(out: Path) -> typer.Exit:
    """Says how an interrupted benchmark goes on."""
    kept = len(list((out / "cells").glob("*.json")))
    stderr().print(
        f"Interrupted: {kept} finished parts in {out}; the same command goes on from there.",
        style="yellow",
    )
    return typer.Exit(130)


def _print(outcome: Outcome, out: Path) -> None:
    """The tables, for people."""
    from rich.console import Console
    from rich.table import Table

    from ppap_plugin_bench.benchmarks import report

    console = Console()
    for result in outcome.tasks:
        table = Table(title=result.task.title, title_justify="left")
        for place, title in enumerate(report.header(result)):
            table.add_column(title, justify="right" if place else "left")
        for row in report.body(result, outcome.floor[result.task.name]):
            table.add_row(*row)
        console.print(table)
    if outcome.pair is not None:
        titles, rows = report.pair_rows(outcome.pair)
        table = Table(title="Class and depth at once", title_justify="left")
        for place, title in enumerate(titles):
            table.add_column(title, justify="right" if place else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print(report.verdict(outcome.pair))
    console.print(f"{outcome.record['seconds']:.0f} s; look at {out / 'index.html'}")


@app.command()
def recipes(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the report; an earlier one goes on.")
    ],
    task: Annotated[
        list[str] | None,
        typer.Option("--task", "-t", help=f"{', '.join(TASKS)}. [default: all]"),
    ] = None,
    recipe: Annotated[
        list[str] | None, typer.Option("--recipe", "-r", help="A preset. [default: all]")
    ] = None,
    num: Annotated[int, typer.Option("--num", "-n", min=2, help="Images of each task.")] = 32,
    evaluations: Annotated[
        int, typer.Option("--evaluations", min=4, help="Of the backbone, for an image.")
    ] = 50,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images at a time.")] = 16,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the images' noise.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N, mps.")] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results alone on standard output.")
    ] = False,
) -> None:
    """Compare all recipes on five tasks in the built-in world, at equal cost.

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
    _check_installed(TASKS[name] for name in tasks)
    from ppap_host.cli.run import progress_bar

    try:
        with progress_bar() as watch:
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
    if not for_people(as_json):
        print_json(results)
        return
    _print_recipes(outcome, out)


def _print_recipes(outcome: RecipesOutcome, out: Path) -> None:
    """The tables and the findings, for people."""
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.table import Table

    from ppap_plugin_bench.benchmarks import recipes as benchmark
    from ppap_plugin_bench.benchmarks import recipes_report as report

    console = Console()
    for budget, name in benchmark.BUDGETS.items():
        for group in benchmark.GROUPS:
            if not outcome.group(group):
                continue
            table = Table(title=f"{name}: {group}", title_justify="left")
            titles, rows = report.rows_of(outcome, group, budget)
            for place, title in enumerate(titles):
                table.add_column(title, justify="right" if place else "left")
            for row in rows:
                table.add_row(*(cell.strip("`*") for cell in row))
            console.print(table)
    console.print(Markdown(report.findings(outcome)))
    console.print(f"{outcome.record['seconds']:.0f} s; look at {out / 'recipes.png'}")


@app.command()
def elucd(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the report; an earlier one goes on.")
    ],
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--models",
            "-m",
            help="Further classifiers: FOLDER or NAME=FOLDER, separated by commas.",
        ),
    ] = None,
    part: Annotated[
        list[str] | None, typer.Option("--part", help=f"{', '.join(PARTS)}. [default: all]")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few images: shows that all works, and nothing else.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the images' noise.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the results alone on standard output.")
    ] = False,
) -> None:
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
    named = named_models(models or [])
    _check_installed(["classifier"])
    from ppap_host.cli.run import progress_bar

    try:
        with progress_bar() as watch:
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
    if not for_people(as_json):
        print_json(results)
        return
    _print_elucd(outcome, out)


def _print_elucd(outcome: ElucdOutcome, out: Path) -> None:
    """The tables and the findings, for people."""
    from rich.console import Console
    from rich.markdown import Markdown
    from rich.table import Table

    from ppap_plugin_bench.benchmarks import elucd_report as report

    console = Console()
    for name, titles, rows in report.tables(outcome):
        table = Table(title=name, title_justify="left")
        for place, title in enumerate(titles):
            table.add_column(title, justify="right" if place else "left")
        for row in rows:
            table.add_row(*(cell.strip("`*") for cell in row))
        console.print(table)
    console.print(Markdown(report.findings(outcome)))
    console.print(f"{outcome.record['seconds']:.0f} s; look at {out / 'elucd.png'}")


@app.command()
def capacity(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the report; an earlier one goes on.")
    ],
    harvest: Annotated[Path, typer.Option("--harvest", help="Folder of `ppap harvest`.")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", help="NAME=FOLDER of a classifier; the shipped one is first."
        ),
    ] = None,
    images: Annotated[
        int, typer.Option("--images", min=32, help="Training images, shared by the experts.")
    ] = 12_800,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Tunings of each kind.")] = 3,
    rank: Annotated[int, typer.Option("--rank", min=1, help="Of one expert's factors.")] = 2,
) -> None:
    """Compare N experts with one noise-aware patch of the same size and the same training.

    Measures what the classifier reads in noised renders, for N of 1, 2, 5 and 10.
    """
    from ppap_host.plugins.registry import registry

    registry().entry("guide", "classifier")
    from ppap_host.cli.run import progress_bar
    from ppap_host.experts.harvest import Harvest
    from ppap_host.guides.guide import Guide
    from ppap_host.plugins.loading import load_guide
    from ppap_plugin_bench.benchmarks import capacity as study
    from ppap_plugin_bench.benchmarks.world import ShapesWorld

    named: dict[str, str | None] = {"shipped": None}
    for text in model or []:
        name, equals, folder = text.partition("=")
        if not equals:
            raise OptionError(f"--model {text!r} has no name.", remedy="Give NAME=FOLDER.")
        named[name] = folder
    made = Harvest.open(harvest)
    settings = study.Settings(seeds=tuple(range(seeds)), images=images, rank=rank)
    command = _command()
    world = ShapesWorld()

    def maker(folder: str | None) -> Callable[[], Guide]:
        return lambda: load_guide(registry(), "classifier", folder)

    with progress_bar() as watch:
        try:
            rows = study.run(
                out, world, "classifier",
                {name: maker(folder) for name, folder in named.items()},
                made, settings, "right", watch,
            )  # fmt: skip
        except KeyboardInterrupt:
            stderr().print(f"Interrupted: the same command goes on in {out}.", style="yellow")
            raise typer.Exit(130) from None
        levels = study.spread(world.backbone.levels(), settings.levels)
        results = study.write_report(rows, levels, settings, "accuracy", command, made, out)
    if not for_people(False):
        print_json(results)
        return
    stderr().print((out / "capacity.md").read_text())
