"""``ppap bench``: methods side by side, judged."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppap_host.cli.output import for_people, print_json, stderr
from ppap_host.errors import OptionError, unknown_name

if TYPE_CHECKING:
    from ppap_host.benchmarks.ppap import Outcome

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
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise OptionError(
            f"The benchmark needs {', '.join(missing)}.",
            remedy="Install them with `pip install 'ppap-host[evaluation]'`.",
        )
    from ppap_host.registry import registry

    for name in wanted:
        registry().entry("guide", name)  # says what to install before torch is imported
    from ppap_host.cli.run import progress_bar

    command = shlex.join(["ppap", *(a for a in sys.argv[1:] if a != "--debug")])
    try:
        with progress_bar() as watch:
            from dataclasses import replace

            from ppap_host.benchmarks import ppap as benchmark
            from ppap_host.benchmarks.report import write_report
            from ppap_host.benchmarks.world import ShapesWorld

            settings = replace(benchmark.QUICK if quick else benchmark.FULL, seed=seed)
            outcome = benchmark.run(
                out, ShapesWorld(), settings, guides=wanted, harvested=harvest, retune=retune,
                command=command, watch=watch,
            )  # fmt: skip
            watch("writing the report", 0, 1)
            results = write_report(outcome, out)
    except KeyboardInterrupt:
        kept = len(list((out / "cells").glob("*.json")))
        stderr().print(
            f"Interrupted: {kept} finished parts in {out}; the same command goes on from there.",
            style="yellow",
        )
        raise typer.Exit(130) from None
    if not for_people(as_json):
        print_json(results)
        return
    _print(outcome, out)


def _print(outcome: Outcome, out: Path) -> None:
    """The tables, for people."""
    from rich.console import Console
    from rich.table import Table

    from ppap_host.benchmarks import report

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
    from ppap_host.registry import registry

    registry().entry("guide", "classifier")
    from ppap_host.benchmarks import capacity as study
    from ppap_host.benchmarks.world import ShapesWorld
    from ppap_host.cli.run import progress_bar
    from ppap_host.guide import Guide
    from ppap_host.harvest import Harvest
    from ppap_host.loading import load_guide

    named: dict[str, str | None] = {"shipped": None}
    for text in model or []:
        name, equals, folder = text.partition("=")
        if not equals:
            raise OptionError(f"--model {text!r} has no name.", remedy="Give NAME=FOLDER.")
        named[name] = folder
    made = Harvest.open(harvest)
    settings = study.Settings(seeds=tuple(range(seeds)), images=images, rank=rank)
    command = shlex.join(["ppap", *(a for a in sys.argv[1:] if a != "--debug")])
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
