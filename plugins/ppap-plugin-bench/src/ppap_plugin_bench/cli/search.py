"""``ppap search``: a recipe's strength and parameters, searched for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppap_host.cli import complete, options
from ppap_host.cli.checks import check_weights
from ppap_host.cli.help import Application
from ppap_host.cli.options import (
    GUIDES,
    MACHINE,
    MODEL,
    AsJson,
    BackboneOption,
    Checkpoint,
    OpenIt,
    Sampler,
    Upsampler,
    Vae,
    backbone_options,
    option,
    spacing,
)
from ppap_host.cli.output import counted, open_file, print_json, remark, tell, tell_path, warn
from ppap_host.cli.progress import progress_bar
from ppap_host.cli.surroundings import INTERRUPTED
from ppap_host.cli.tables import Column, show_table
from ppap_host.files.errors import OptionError

if TYPE_CHECKING:
    from ppap_plugin_bench.search import Judged, Outcome


_SEARCH = "Search"


def search(
    guide: Annotated[str, option(
        "What steers. See `ppap list guides`.",
        "--guide", "-g", metavar="NAME", autocompletion=complete.of("guide"),
    )],
    work: Annotated[
        Path, option("Folder to write, or to go on with.", "--work", "-w", metavar="FOLDER")
    ],
    target: Annotated[list[str] | None, option(
        "Repeatable; default on shapes: fresh ones of its own.",
        "--target", "-t", metavar="LABEL|FILE",
    )] = None,
    recipe: Annotated[str | None, option(
        "Where to start. [default: ppap with experts, or x0]",
        "--recipe", "-r", metavar="NAME[:KEY=VALUE,...]", autocompletion=complete.of("recipe"),
    )] = None,
    budget: Annotated[int, option("Trials in all, finished ones included.", min=1)] = 50,
    num: Annotated[int, options.num("Images of a trial.", min=1)] = 16,
    steps: Annotated[
        str | None, options.steps("Denoising steps, or a spacing. [default: the backbone's]")
    ] = None,
    seed: Annotated[int, option("Of images and proposals.", min=0)] = 0,
    frontier: Annotated[
        bool, option("Vary scale, steps, every and interval: what the results cost.", "--frontier")
    ] = False,
    confirm: Annotated[int, option(
        "Other images to measure the frontier's best trials again on. [default: none]",
        panel=_SEARCH, min=0, show_default=False,
    )] = 0,
    only: Annotated[list[str] | None, option(
        "What to vary. [default: scale and the recipe's own parameters]",
        panel=_SEARCH, metavar="NAME,NAME,...",
    )] = None,
    score: Annotated[str, option(
        "Weights against the gain in the measure. [default: distance=0.1,cost=0.05]",
        panel=_SEARCH, metavar="distance=NUMBER,cost=NUMBER", show_default=False,
    )] = "",
    scale: Annotated[float | None, option(
        "To start from; default: the guide's own.",
        "--scale", "-s", panel=_SEARCH,
    )] = None,
    scale_range: Annotated[str | None, option(
        "Where to look. [default: the start / 30 to 30 times it]",
        panel=_SEARCH, metavar="LOW:HIGH",
    )] = None,
    judge: Annotated[str | None, option(
        "What measures the results for these targets.",
        panel=_SEARCH, metavar="GUIDE[=MODEL]", autocompletion=complete.of("guide"),
    )] = None,
    measure: Annotated[
        str | None, option("Of the judge; default: its first.", panel=_SEARCH, metavar="NAME")
    ] = None,
    higher_is_better: Annotated[bool | None, option(
        "Of a measure that is not known.",
        "--higher-is-better/--lower-is-better", panel=_SEARCH,
    )] = None,
    model: Annotated[str | None, option(
        "Network of the guide.",
        "--model", "-m", panel=GUIDES, metavar="FILE|FOLDER|HUB-NAME",
    )] = None,
    experts: Annotated[str | None, option(
        "Expert set; default: one that fits.",
        "--experts", "-e", panel=GUIDES, metavar="NAME|FILE|FOLDER|none",
        autocompletion=complete.of("expert set"),
    )] = None,
    backbone: Annotated[str, options.backbone()] = "shapes",
    checkpoint: Checkpoint = None,
    vae: Vae = None,
    upsampler: Upsampler = None,
    backbone_option: BackboneOption = None,
    prompt: Annotated[
        str, option("Where it is read.", "--prompt", "-p", panel=MODEL, metavar="TEXT")
    ] = "",
    class_index: Annotated[
        int | None, option("Class of class-conditional backbones.", "--class", panel=MODEL)
    ] = None,
    cfg: Annotated[float | None, option("Classifier-free guidance scale.", panel=MODEL)] = None,
    sampler: Sampler = None,
    batch: Annotated[int, option("Images at a time.", panel=MACHINE, min=1)] = 16,
    device: Annotated[str, options.device()] = "auto",
    dtype: Annotated[str, options.dtype()] = "float32",
    open_it: OpenIt = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Search for the strength and the parameters of a recipe, by the images they make.

    On the backbone shapes, the guides classifier, depth, segmentation and those that restore
    pictures have targets of their own and judges that never guide. Others need --target, and
    --judge unless the guide is to measure itself.

    ppap search --guide depth --recipe tfg --budget 50 --work tfg-depth

    A trial is scored by the part of the way from unguided images to perfect ones that its measure
    has gone, less a weight times the growth of the Fréchet distance to clean images, less a weight
    for each doubling of the cost.

    The best of many trials owes something to luck. --confirm measures those that a quality may
    become again, on other images, and frontier.json then holds these figures alone.

    Writes trials.csv, search.png, best.txt with the command of the best trial, frontier.json with
    the trials that no other one beats in measure, distance and cost, and search.json. Every trial
    is kept: the same command goes on where it was stopped, or with a larger --budget.
    """
    from ppap_host.plugins.registry import registry
    from ppap_host.runs.config import GuideConfig, RunConfig, check_names

    # The entry says what to install before torch is imported.
    registry().entry("guide", guide)
    run = RunConfig(
        guides=(GuideConfig(guide, "", scale=scale, model=model, recipe=recipe, experts=experts),),
        backbone=backbone, checkpoint=checkpoint, prompt=prompt, class_index=class_index,
        backbone_options=backbone_options(backbone_option, vae=vae, upsampler=upsampler), cfg=cfg,
        steps=steps and spacing(steps), sampler=sampler, seed=seed, num=num,
        batch=batch, device=device, dtype=dtype,
    )  # fmt: skip
    check_names(run, registry())
    names = tuple(name.strip() for text in only or [] for name in text.split(","))
    if only and not all(names):
        raise OptionError(
            f"--only {','.join(only)!r} leaves nothing to vary.",
            remedy="Give NAME,NAME,..., such as scale,rho.",
        )
    if frontier:
        from ppap_plugin_bench.search.space import FRONTIER

        names = tuple(dict.fromkeys((*names, *FRONTIER)))
    bounds = None if scale_range is None else _range(scale_range)
    check_weights(checkpoint)
    check_weights(model)
    with progress_bar() as watch:
        watch("loading libraries", 0, 1)
        try:
            from ppap_plugin_bench.search import SearchConfig, Weights
            from ppap_plugin_bench.search import search as search_in

            config = SearchConfig(
                run, tuple(target or ()), judge, measure, higher_is_better, names, bounds,
                Weights.read(score), budget, confirm,
            )  # fmt: skip
            outcome = search_in(config, work, watch, tell=warn)
        except KeyboardInterrupt:
            from ppap_plugin_bench.search.session import trials_kept

            kept = counted(trials_kept(work), "finished trial")
            remark(f"Interrupted: {kept} in {work}; the same command goes on from there.", "yellow")
            raise typer.Exit(INTERRUPTED) from None
    if not outcome.better_than_unguided:
        warn("No trial was better than the same images without guidance.")
    if as_json:
        print_json(outcome.record)
    else:
        _show(outcome, work)
    if open_it:
        open_file(work / "search.png")


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
    checked, settings = outcome.validation, outcome.record["settings"]
    better = "higher" if checked.higher_is_better else "lower"
    names = [d.name for d in outcome.space]
    rows = []
    for trial in outcome.trials[:10]:
        if trial.judged is not None:
            values = [_cell(trial.values[name]) for name in names]
            rows.append([str(trial.number), *values, *_judged(trial.judged)])
    show_table(
        [
            Column(title, number=True)
            for title in ("trial", *names, checked.objective, "frechet", "GFLOP", "score")
        ],
        rows,
        f"{settings['guide']['name']}, {settings['recipe_name']}: {checked.objective} "
        f"({better} is better) by {checked.by}",
        last=[["unguided", *("" for _ in names), *_judged(outcome.unguided)]],
    )
    failed = sum(trial.judged is None for trial in outcome.trials)
    if failed:
        tell((f"{counted(failed, 'trial')} failed; {work / 'trials.csv'} says why.", "yellow"))
    tell(outcome.record["command"])
    tell_path("Plot", work / "search.png")


def _judged(judged: Judged) -> list[str]:
    error = "" if judged.error is None else f" ± {judged.error:.3f}"
    found = judged.measured
    distance = "" if found.distance is None else f"{found.distance:.2f}"
    return [f"{found.measure:.4f}{error}", distance, f"{found.cost / 1e9:.3g}",
            f"{judged.score:.3f}"]  # fmt: skip


def _cell(value: float | int | bool | str) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


app = Application()
app.command()(search)
