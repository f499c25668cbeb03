"""``ppap search``: a recipe's strength and parameters, searched for."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppap_host.cli.options import (
    BackboneOption,
    Checkpoint,
    Upsampler,
    Vae,
    backbone_options,
)
from ppap_host.cli.output import for_people, print_json, stderr
from ppap_host.files.errors import OptionError

if TYPE_CHECKING:
    from ppap_plugin_bench.search import Outcome


def search(
    guide: Annotated[str, typer.Option("--guide", "-g", help="What steers. See `ppap list`.")],
    work: Annotated[Path, typer.Option("--work", "-w", help="Folder to write, or to go on with.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            help="Where to start: NAME or NAME:PARAMETER=VALUE,... [default: "
            "ppap with experts, or x0]",
        ),
    ] = None,
    budget: Annotated[
        int, typer.Option("--budget", min=1, help="Trials in all, finished ones included.")
    ] = 50,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            help="What to vary: NAME,NAME,... [default: scale and the recipe's own parameters]",
        ),
    ] = None,
    scale: Annotated[
        float | None, typer.Option("--scale", "-s", help="To start from; default: the guide's own.")
    ] = None,
    scale_range: Annotated[
        str | None,
        typer.Option("--scale-range", help="LOW:HIGH. [default: the start / 30 to 30 times it]"),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target", "-t", help="Repeatable; default on shapes: fresh ones of its own."
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge", help="GUIDE or GUIDE=MODEL that measures the results for these targets."
        ),
    ] = None,
    measure: Annotated[
        str | None, typer.Option("--measure", help="Of the judge; default: its first.")
    ] = None,
    higher_is_better: Annotated[
        bool | None,
        typer.Option(
            "--higher-is-better/--lower-is-better", help="Of a measure that is not known."
        ),
    ] = None,
    num: Annotated[int, typer.Option("--num", "-n", min=1, help="Images of a trial.")] = 16,
    steps: Annotated[str, typer.Option("--steps", help="Denoising steps, or a spacing.")] = "25",
    sampler: Annotated[str, typer.Option("--sampler", help="ddim, ddpm, dpm++ or heun.")] = "ddim",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of images and proposals.")] = 0,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images at a time.")] = 16,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Network of the guide.")
    ] = None,
    experts: Annotated[
        str | None, typer.Option("--experts", "-e", help="Expert set; default: one that fits.")
    ] = None,
    backbone: Annotated[str, typer.Option("--backbone", "-b", help="Diffusion model.")] = "shapes",
    checkpoint: Checkpoint = None,
    vae: Vae = None,
    upsampler: Upsampler = None,
    backbone_option: BackboneOption = None,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Text, where it is read.")] = "",
    class_index: Annotated[
        int | None, typer.Option("--class", help="Class of class-conditional backbones.")
    ] = None,
    cfg: Annotated[
        float | None, typer.Option("--cfg", help="Classifier-free guidance scale.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, mps.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="Of the networks.")] = "float32",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the record alone on standard output.")
    ] = False,
) -> None:
    """Search for the strength and the parameters of a recipe, by the images they make.

    On the backbone shapes, the guides classifier, depth, segmentation and those that restore
    pictures have targets of their own and judges that never guide. Others need --target, and
    --judge unless the guide is to measure itself.

    ppap search --guide depth --recipe tfg --budget 50 --work tfg-depth

    Writes trials.csv, search.png, best.txt with the command of the best trial, and search.json.
    Every trial is kept: the same command goes on where it was stopped, or with a larger --budget.
    """
    from ppap_host.plugins.registry import registry
    from ppap_host.runs.config import GuideConfig, RunConfig, check_names

    # The entry says what to install before torch is imported.
    registry().entry("guide", guide)
    _check_installed(shapes=backbone == "shapes" and not target and judge is None)
    run = RunConfig(
        guides=(GuideConfig(guide, "", scale=scale, model=model, recipe=recipe, experts=experts),),
        backbone=backbone, checkpoint=checkpoint, prompt=prompt, class_index=class_index,
        backbone_options=backbone_options(vae, upsampler, backbone_option), cfg=cfg,
        steps=int(steps) if steps.isdecimal() else steps, sampler=sampler, seed=seed, num=num,
        batch=batch, device=device, dtype=dtype,
    )  # fmt: skip
    check_names(run, registry())
    names = tuple(name.strip() for text in only or [] for name in text.split(","))
    if only and not all(names):
        raise OptionError(
            f"--only {','.join(only)!r} leaves nothing to vary.",
            remedy="Give NAME,NAME,..., such as scale,rho.",
        )
    bounds = None if scale_range is None else _range(scale_range)
    console = stderr()

    def tell(text: str) -> None:
        console.print(f"Warning: {text}", style="yellow")

    from ppap_host.cli.run import progress_bar

    try:
        with progress_bar() as watch:
            from ppap_plugin_bench.search import SearchConfig
            from ppap_plugin_bench.search import search as search_in

            config = SearchConfig(
                run, tuple(target or ()), judge, measure, higher_is_better, names, bounds, budget
            )
            outcome = search_in(config, work, watch, tell=tell)
    except KeyboardInterrupt:
        from ppap_plugin_bench.search.session import trials_kept

        console.print(
            f"Interrupted: {trials_kept(work)} finished trials in {work}; the same command goes on "
            "from there.",
            style="yellow",
        )
        raise typer.Exit(130) from None
    if not outcome.better_than_unguided:
        tell("No trial was better than the same images without guidance.")
    if for_people(as_json):
        _show(outcome, work)
    else:
        print_json(outcome.record)


def _check_installed(shapes: bool) -> None:
    needed = ("optuna", "torchmetrics", "scipy") if shapes else ("optuna",)
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise OptionError(
            f"The search needs {', '.join(missing)}.",
            remedy="Install it with `pip install 'ppap-host[search]'`.",
        )


def _range(text: str) -> tuple[float, float]:
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError:
        raise OptionError(
            f"--scale-range {text!r} is no range.",
            remedy="Give LOW:HIGH with two positive numbers, such as 0.1:10.",
        ) from None


def _show(outcome: Outcome, work: Path) -> None:
    """The best ten, for people."""
    from rich.console import Console
    from rich.table import Table

    checked, settings = outcome.validation, outcome.record["settings"]
    better = "higher" if checked.higher_is_better else "lower"
    table = Table(
        title=f"{settings['guide']['name']}, {settings['recipe_name']}: {checked.objective} "
        f"({better} is better) by {checked.by}",
        title_justify="left",
    )
    for heading in ("trial", *(d.name for d in outcome.space), checked.objective):
        table.add_column(heading, justify="right")
    for trial in outcome.trials[:10]:
        if trial.judged is None:
            continue
        values = [_cell(trial.values[d.name]) for d in outcome.space]
        error = "" if trial.judged.error is None else f" ± {trial.judged.error:.3f}"
        table.add_row(str(trial.number), *values, f"{trial.judged.score:.4f}{error}")
    unguided = outcome.record["unguided"]
    table.add_section()
    table.add_row("unguided", *("" for _ in outcome.space), f"{unguided['score']:.4f}")
    console = Console()
    console.print(table)
    failed = sum(trial.judged is None for trial in outcome.trials)
    if failed:
        console.print(f"{failed} trials failed; {work / 'trials.csv'} says why.", style="yellow")
    console.print(outcome.record["command"], soft_wrap=True, highlight=False)
    console.print(f"Look at {work / 'search.png'}")


def _cell(value: float | int | bool | str) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


app = typer.Typer()
app.command()(search)
