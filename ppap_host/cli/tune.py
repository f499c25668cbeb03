"""``ppap tune``: experts for a guide, from a harvest."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppap_host.cli.options import BackboneOption, Checkpoint, Vae, backbone_options
from ppap_host.cli.output import for_people, print_json, stderr
from ppap_host.files.errors import (
    CheckpointError,
    OptionError,
    OutputError,
    PpapError,
    unknown_name,
)
from ppap_host.runs.processes import alone_or_first

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

    from ppap_host.backbones.backbone import Backbone
    from ppap_host.experts.harvest import Harvest
    from ppap_host.experts.sets import View
    from ppap_host.experts.tuning import Progress


def tune(
    guide: Annotated[str, typer.Argument(help="The guide, as in `ppap list`.")],
    harvest: Annotated[
        Path | None, typer.Option("--harvest", help="Folder of `ppap harvest`; needed to tune.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder to write, or to go on with; needed to tune."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Network of the guide.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option("--backbone", "-b", help="Default: the harvest's own.")
    ] = None,
    checkpoint: Checkpoint = None,
    vae: Vae = None,
    backbone_option: BackboneOption = None,
    experts: Annotated[int, typer.Option("--experts", "-n", help="Noise ranges, N.")] = 5,
    method: Annotated[
        str, typer.Option("--method", help="patch, or full: every parameter (a baseline).")
    ] = "patch",
    view: Annotated[
        str,
        typer.Option(
            "--view", help="What experts are shown: noised images, or predicted clean ones."
        ),
    ] = "noised",
    rank: Annotated[
        int | None, typer.Option("--rank", help="Of the low-rank factors; default: the guide's.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", help="Optimiser steps of each expert; default: the guide's."),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", help="Images a step.")] = 32,
    lr: Annotated[float | None, typer.Option("--lr", help="Peak learning rate.")] = None,
    weight_decay: Annotated[float, typer.Option("--weight-decay", min=0, help="Of AdamW.")] = 1e-4,
    dtype: Annotated[
        str, typer.Option("--dtype", help="Of the frozen network; experts are float32.")
    ] = "float32",
    held_out: Annotated[
        float, typer.Option("--held-out", help="Share of the harvest to stop early by.")
    ] = 0.1,
    patience: Annotated[
        int, typer.Option("--patience", help="Measurements without progress before stopping.")
    ] = 10,
    seed: Annotated[int, typer.Option("--seed", help="Decides every random draw.")] = 0,
    licence: Annotated[
        str, typer.Option("--licence", help="Of the expert set, kept in its metadata.")
    ] = "",
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, mps.")] = "auto",
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Only say what harvest and tuning will cost.")
    ] = False,
    num: Annotated[
        int, typer.Option("--num", min=1, help="Images of the harvest to estimate.")
    ] = 2000,
    harvest_steps: Annotated[
        str, typer.Option("--harvest-steps", help="Denoising steps of the harvest to estimate.")
    ] = "25",
    harvest_cfg: Annotated[
        bool, typer.Option("--harvest-cfg", help="Estimate a harvest with prompts and --cfg.")
    ] = False,
) -> None:
    """Teach a guide's experts what noise is; no data set and no labels are needed.

    Give the same command again after an interruption: it goes on where it stopped. Several
    processes share each batch:

    torchrun --nproc_per_node 2 -m ppap_host tune depth --harvest harvest --out my-experts

    --view predicted tunes experts for recipes that look at the predicted clean image, such as x0.
    It evaluates the backbone for every image that an expert is shown.

    --estimate needs neither harvest nor folder: it counts operations, times a probe on the device,
    and says how long both will take.
    """
    from ppap_host.experts.sets import VIEWS
    from ppap_host.experts.tuning import TuningConfig
    from ppap_host.plugins.registry import registry

    found = registry()
    found.entry("guide", guide)
    if method not in ("patch", "full"):
        raise unknown_name("method", method, ("patch", "full"))
    if view not in VIEWS:
        raise unknown_name("view", view, VIEWS)
    config = TuningConfig(
        experts=experts, method="full" if method == "full" else "patch", rank=rank, steps=steps,
        batch=batch, lr=lr, weight_decay=weight_decay, seed=seed, held_out=held_out,
        patience=patience,
    )  # fmt: skip
    if estimate:
        options = backbone_options(vae, None, backbone_option)
        _estimate(
            guide, model, backbone or "shapes", checkpoint, options, config,
            num, harvest_steps, harvest_cfg, device, dtype, view,
        )  # fmt: skip
        return
    if harvest is None or out is None:
        raise OptionError(
            f"--{'harvest' if harvest is None else 'out'} is missing.",
            remedy="Give a folder of `ppap harvest` with --harvest, and one to write with --out; "
            "only --estimate needs neither.",
        )
    target = out / "experts.safetensors"
    from ppap_host.files.folders import Job

    # Looking for a set, making one and writing it are one thing.
    with Job(out) if alone_or_first() else nullcontext():
        if target.exists():
            record = _finished(target, guide, model, harvest, config, view)
            if record is None:
                raise OutputError(
                    f"{str(out)!r} already holds an expert set, of another tuning.",
                    remedy="Give another folder with --out; nothing is overwritten.",
                )
        else:
            record = _tune(
                guide, model, backbone, checkpoint, harvest, target, config, licence, device, dtype,
                view,
            )  # fmt: skip
    if record is None or not alone_or_first():
        return
    if for_people(False):
        stderr().print(f"Use it with --experts {out}; `ppap plot {out}` draws how it went")
    else:
        print_json(record)


def _finished(
    target: Path, guide: str, model: str | None, harvest: Path, config: Any, view: str
) -> dict[str, Any] | None:
    """The record of a set that these very settings have made; None if it is of others.

    So that a job that is started again, as clusters do, ends well where nothing is left to do.
    """
    import dataclasses

    from ppap_host.experts.harvest import Harvest
    from ppap_host.experts.sets import ExpertSet, view_of
    from ppap_host.experts.tuning import read_record

    try:
        record = read_record(target.parent)
        known = ExpertSet.load(target).metadata
    except PpapError as error:
        raise OutputError(
            f"{str(target)!r} is there, and cannot be told to be this tuning's: {error.message}",
            remedy="Move it away and give the same command again.",
        ) from None
    # What was left to the tuning, such as the number of steps, is whatever it chose.
    asked = {key: value for key, value in dataclasses.asdict(config).items() if value is not None}
    same = (
        (known.get("guide"), known.get("model"), view_of(known)) == (guide, model, view)
        and asked.items() <= known.get("tuning", {}).items()
        and known.get("harvest") == Harvest.open(harvest).identity()
    )
    return record if same else None


def _estimate(
    name: str,
    model: str | None,
    backbone: str,
    checkpoint: str | None,
    options: dict[str, str],
    config: Any,
    num: int,
    steps: str,
    cfg: bool,
    device_name: str,
    dtype_name: str,
    view: View,
) -> None:
    """Prints what a harvest and a tuning will cost."""
    from ppap_host.experts.cost import estimate
    from ppap_host.plugins.loading import load_backbone, load_guide
    from ppap_host.plugins.registry import registry
    from ppap_host.runs.devices import pick_device, pick_dtype

    found, device = registry(), pick_device(device_name)
    dtype = pick_dtype(dtype_name, device)
    diffusion = load_backbone(found, backbone, checkpoint, options)
    diffusion.to(device, dtype)
    guide = load_guide(found, name, model).to(device, dtype)
    cost = estimate(
        guide, diffusion, config, images=num, steps=int(steps) if steps.isdecimal() else steps,
        cfg=cfg, device=device, view=view,
    )  # fmt: skip
    if not for_people(False):
        print_json(cost.to_dict())
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{name} on {backbone}, {device}", title_justify="left")
    for title in ("", "what", "one image", "in all", "time"):
        table.add_column(title, justify="left" if title in ("", "what") else "right")
    rows = (
        ("harvest", f"{num:,} images, {cost.evaluations} evaluations each", cost.generating.flops,
         cost.harvest),
        ("tuning", f"{config.experts} experts, {cost.lessons:,} {view} images, "
         f"{cost.trainable:,} numbers", cost.tuning.flops / cost.lessons, cost.tuning),
    )  # fmt: skip
    for title, what, each, total in rows:
        table.add_row(title, what, _flop(each), _flop(total.flops), _time(total.seconds))
    Console().print(table)


def _flop(count: float) -> str:
    for power, unit in ((18, "E"), (15, "P"), (12, "T"), (9, "G")):
        if count >= 10**power:
            return f"{count / 10**power:.1f} {unit}FLOP"
    return f"{count / 10**6:.1f} MFLOP"


def _time(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _tune(
    name: str,
    model: str | None,
    backbone: str | None,
    checkpoint: str | None,
    folder: Path,
    target: Path,
    config: Any,
    licence: str,
    device_name: str,
    dtype_name: str,
    view: View,
) -> dict[str, Any] | None:
    """Tunes and writes; the record, or None in processes that are not the first."""
    from ppap_host.cli.run import progress_bar
    from ppap_host.experts.harvest import Harvest
    from ppap_host.experts.tuning import RECORD, STATE, Predictor
    from ppap_host.experts.tuning import tune as run_tuning
    from ppap_host.files.hashes import package_versions
    from ppap_host.files.writing import write_json
    from ppap_host.plugins.loading import load_backbone, load_guide
    from ppap_host.plugins.registry import registry
    from ppap_host.runs.devices import pick_device, pick_dtype
    from ppap_host.runs.processes import join, own_device

    found = registry()
    processes = join(device_name)
    device = pick_device(own_device(device_name, processes))
    made = Harvest.open(folder)
    harvested = made.description["config"]
    if backbone is not None and backbone != harvested["backbone"]:
        raise OptionError(
            f"The harvest {str(folder)!r} was made by the backbone {harvested['backbone']!r}, "
            f"not by {backbone!r}.",
            remedy="Leave out --backbone, or give a harvest of that backbone.",
        )
    diffusion = load_backbone(
        found,
        harvested["backbone"],
        checkpoint or harvested["checkpoint"],
        harvested.get("backbone_options"),
    )
    levels, size = diffusion.levels(), diffusion.image_size
    dtype = pick_dtype(dtype_name, device)
    predictor = None
    if view == "predicted":
        _check_weights(diffusion, made)
        predictor = Predictor.of(made, diffusion, device, dtype)
    del diffusion
    guide = load_guide(found, name, model).to(device, dtype)
    table = _LiveTable() if processes.first and stderr().is_terminal else None
    plugins = [p.distribution for p, _ in found.names("guide")[name]]
    progress: list[Progress] = []

    def report(now: Progress) -> None:
        progress[:] = [now]
        if table is not None:
            table.show(now)

    quiet: AbstractContextManager[Any] = table if table is not None else nullcontext()
    with quiet, progress_bar(disable=table is not None) as bar:
        lesson = made.lesson(
            guide, bar, process=processes.index, processes=processes.count, wait=processes.wait
        )
        if tuple(lesson.pixels.shape[-2:]) != size:
            raise CheckpointError(
                f"The harvest's images are {tuple(lesson.pixels.shape[-2:])}, the backbone makes "
                f"{size}.",
                remedy="Give the --checkpoint the harvest was made with.",
            )
        try:
            experts = run_tuning(
                guide, lesson, levels, config, target.parent, bar,
                report=report, accelerator=processes.accelerator, predictor=predictor,
            )  # fmt: skip
        except KeyboardInterrupt:
            if processes.first:
                stderr().print("Interrupted: the same command goes on from here.", style="yellow")
            raise typer.Exit(130) from None
    if not processes.first:
        return None
    experts.metadata |= {
        "model": model,
        "licence": licence,
        "versions": package_versions(plugins),
        "backbone": {
            "name": harvested["backbone"],
            "files": made.description["model_files"],
        },
    }
    record = {
        "experts": str(target),
        "ranges": [
            [bound if math.isfinite(bound) else None for bound in (part.low, part.high)]
            for part in progress[0].ranges
        ],
        **experts.metadata,
        "history": progress[0].history,
    }
    write_json(target.parent / RECORD, record)
    experts.save(target)
    (target.parent / STATE).unlink(missing_ok=True)  # only now is nothing left to lose
    return record


def _check_weights(backbone: Backbone, made: Harvest) -> None:
    """Whether this is the backbone that made the harvest: experts learn its own predictions.

    Raises:
        CheckpointError: its weights are others.
    """
    from ppap_host.files.hashes import file_hashes

    here = file_hashes(backbone.files(), backbone.name)
    if set(here.values()) != set(made.description["model_files"].values()):
        raise CheckpointError(
            f"The harvest {str(made.folder)!r} was made by other weights of the backbone "
            f"{backbone.name!r} than these.",
            remedy="Give the --checkpoint the harvest was made with, or make another harvest.",
        )


class _LiveTable:
    """The loss of every range, redrawn after each measurement."""

    def __init__(self) -> None:
        from rich.live import Live

        self._live: Live = Live(console=stderr(), refresh_per_second=2)

    def __enter__(self) -> _LiveTable:
        self._live.__enter__()
        return self

    def __exit__(self, *stopped: Any) -> None:
        self._live.__exit__(*stopped)

    def show(self, now: Progress) -> None:
        """Draws the table for this progress."""
        self._live.update(_table(now))


def _table(now: Progress) -> Table:
    from rich.table import Table

    left = now.seconds * (now.steps - now.step) / max(now.step, 1)
    table = Table(
        title=f"step {now.step} of {now.steps}, {now.seconds:.0f} s, about {left:.0f} s left",
        title_justify="left",
    )
    for column in ("log-SNR", "training", "held out", "off the shelf", ""):
        table.add_column(column, justify="right")
    for i, part in enumerate(now.ranges):
        table.add_row(
            f"{part.low:.1f} to {part.high:.1f}",
            f"{now.losses[i]:.4f}",
            f"{now.held_out[i]:.4f}",
            f"{now.off_the_shelf[i]:.4f}",
            "finished" if now.finished[i] else "",
        )
    return table
