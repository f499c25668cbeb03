"""``ppap search``: a recipe's strength and parameters, searched for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ppap_host.cli import complete, options
from ppap_host.cli.checks import check_weights
from ppap_host.cli.help import Application
from ppap_host.cli.options import (
    COMMON,
    GUIDES,
    MACHINE,
    MODEL,
    SAMPLERS,
    SAMPLING,
    AsJson,
    BackboneOption,
    Checkpoint,
    OpenIt,
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
    guide: Annotated[
        str,
        option(
            "--guide", "-g", panel=COMMON, metavar="NAME", autocompletion=complete.of("guide"),
            help="What steers. See `ppap list guides`.",
        ),
    ],
    work: Annotated[
        Path,
        option(
            "--work", "-w", panel=COMMON, metavar="FOLDER",
            help="Folder to write, or to go on with.",
        ),
    ],
    target: Annotated[
        list[str] | None,
        option(
            "--target", "-t", panel=COMMON, metavar="LABEL|FILE",
            help="Repeatable; default on shapes: fresh ones of its own.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        option(
            "--recipe", "-r", panel=COMMON, metavar="NAME[:KEY=VALUE,...]",
            autocompletion=complete.of("recipe"),
            help="Where to start. [default: ppap with experts, or x0]",
        ),
    ] = None,
    budget: Annotated[
        int,
        option(
            "--budget", panel=COMMON, metavar="NUMBER", min=1,
            help="Trials in all, finished ones included.",
        ),
    ] = 50,
    num: Annotated[int, options.num("Images of a trial.", min=1)] = 16,
    steps: Annotated[
        str | None, options.steps("Denoising steps, or a spacing. [default: the backbone's]")
    ] = None,
    seed: Annotated[int, options.seed("Of images and proposals.", min=0)] = 0,
    frontier: Annotated[
        bool,
        option(
            "--frontier", panel=COMMON, metavar=None,
            help="Vary scale, steps, every and interval: what the results cost.",
        ),
    ] = False,
    confirm: Annotated[
        int,
        option(
            "--confirm", panel=_SEARCH, metavar="NUMBER", min=0,
            help="Other images to measure the frontier's best trials again on. [default: none]",
            show_default=False,
        ),
    ] = 0,
    only: Annotated[
        list[str] | None,
        option(
            "--only", panel=_SEARCH, metavar="NAME,NAME,...",
            help="What to vary. [default: scale and the recipe's own parameters]",
        ),
    ] = None,
    score: Annotated[
        str,
        option(
            "--score", panel=_SEARCH, metavar="distance=NUMBER,cost=NUMBER",
            help="Weights against the gain in the measure. [default: distance=0.1,cost=0.05]",
            show_default=False,
        ),
    ] = "",
    scale: Annotated[
        float | None,
        option(
            "--scale", "-s", panel=_SEARCH, metavar="NUMBER",
            help="To start from; default: the guide's own.",
        ),
    ] = None,
    scale_range: Annotated[
        str | None,
        option(
            "--scale-range", panel=_SEARCH, metavar="LOW:HIGH",
            help="Where to look. [default: the start / 30 to 30 times it]",
        ),
    ] = None,
    judge: Annotated[
        str | None,
        option(
            "--judge", panel=_SEARCH, metavar="GUIDE[=MODEL]",
            autocompletion=complete.of("guide"),
            help="What measures the results for these targets.",
        ),
    ] = None,
    measure: Annotated[
        str | None,
        option(
            "--measure", panel=_SEARCH, metavar="NAME", help="Of the judge; default: its first."
        ),
    ] = None,
    higher_is_better: Annotated[
        bool | None,
        option(
            "--higher-is-better/--lower-is-better", panel=_SEARCH, metavar=None,
            help="Of a measure that is not known.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        option(
            "--model", "-m", panel=GUIDES, metavar="FILE|FOLDER|HUB-NAME",
            help="Network of the guide.",
        ),
    ] = None,
    experts: Annotated[
        str | None,
        option(
            "--experts", "-e", panel=GUIDES, metavar="NAME|FILE|FOLDER|none",
            autocompletion=complete.of("expert set"),
            help="Expert set; default: one that fits.",
        ),
    ] = None,
    backbone: Annotated[str, options.backbone()] = "shapes",
    checkpoint: Checkpoint = None,
    vae: Vae = None,
    upsampler: Upsampler = None,
    backbone_option: BackboneOption = None,
    prompt: Annotated[
        str, option("--prompt", "-p", panel=MODEL, metavar="TEXT", help="Where it is read.")
    ] = "",
    class_index: Annotated[
        int | None,
        option(
            "--class", panel=MODEL, metavar="NUMBER", help="Class of class-conditional backbones."
        ),
    ] = None,
    cfg: Annotated[
        float | None,
        option("--cfg", panel=MODEL, metavar="NUMBER", help="Classifier-free guidance scale."),
    ] = None,
    sampler: Annotated[
        str | None,
        option(
            "--sampler", panel=SAMPLING, metavar="NAME", autocompletion=complete.of("sampler"),
            help=f"{SAMPLERS} [default: the backbone's]",
        ),
    ] = None,
    batch: Annotated[
        int,
        option("--batch", panel=MACHINE, metavar="NUMBER", min=1, help="Images at a time."),
    ] = 16,
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
