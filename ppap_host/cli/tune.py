"""``ppap tune``: experts for a guide, from a harvest."""

# Long because its options are many, and each says what it is.
from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppap_host.cli import complete, options
from ppap_host.cli.checks import check_folder, check_weights
from ppap_host.cli.options import (
    AsJson,
    BackboneOption,
    Checkpoint,
    Vae,
    backbone_options,
    option,
    refuse_idle,
    spacing,
)
from ppap_host.cli.output import duration, print_json, remark, tell, tell_path
from ppap_host.cli.progress import Display, progress_bar
from ppap_host.cli.surroundings import INTERRUPTED
from ppap_host.cli.tables import Column, show_table
from ppap_host.files.errors import (
    CheckpointError,
    OptionError,
    OutputError,
    PpapError,
    unknown_name,
)
from ppap_host.runs.processes import alone_or_first

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from ppap_host.backbones.backbone import Backbone
    from ppap_host.experts.cost import Estimate as Cost
    from ppap_host.experts.harvest import Harvest
    from ppap_host.experts.sets import View
    from ppap_host.experts.tuning import Progress, TuningConfig
    from ppap_host.guides.guide import Guide

_TUNING = "Tuning"
_ESTIMATE = "Estimate"
_OF_ESTIMATE = ("num", "harvest_steps", "harvest_cfg")
_METHODS = ("patch", "full")
_VIEWS: tuple[View, ...] = ("noised", "predicted")


@dataclass(frozen=True)
class _Asked:
    """What is asked of an estimate and of a tuning alike."""

    guide: str
    model: str | None
    backbone: str | None
    checkpoint: str | None
    options: Mapping[str, str]
    config: TuningConfig
    view: View
    device: str
    dtype: str

    def loaded(self, device: torch.device) -> tuple[Guide, torch.dtype]:
        """The guide on its device, and the number format."""
        from ppap_host.plugins.loading import load_guide
        from ppap_host.plugins.registry import registry
        from ppap_host.runs.devices import pick_dtype

        dtype = pick_dtype(self.dtype, device)
        return load_guide(registry(), self.guide, self.model).to(device, dtype), dtype


def tune(
    context: typer.Context,
    guide: Annotated[
        str,
        typer.Argument(
            metavar="GUIDE", autocompletion=complete.of("guide"), help="See `ppap list guides`."
        ),
    ],
    harvest: Annotated[
        Path | None, option("Folder of `ppap harvest`; needed to tune.", metavar="FOLDER")
    ] = None,
    out: Annotated[
        Path | None, options.out("Folder to write, or to go on with; needed to tune.")
    ] = None,
    experts: Annotated[int, option("Noise ranges, N.")] = 5,
    model: Annotated[str | None, option(
        "Network of the guide; default: the one that it ships.",
        "--model", "-m", metavar="FILE|FOLDER|HUB-NAME",
    )] = None,
    seed: Annotated[int, option("Decides every random draw.")] = 0,
    licence: Annotated[
        str, option("Of the expert set, kept in its metadata.", metavar="NAME")
    ] = "",
    backbone: Annotated[str | None, options.backbone(told="the harvest's own")] = None,
    checkpoint: Checkpoint = None,
    vae: Vae = None,
    backbone_option: BackboneOption = None,
    view: Annotated[str, option(
        "What experts are shown: noised images, or predicted clean ones.",
        panel=_TUNING, metavar="NAME", autocompletion=complete.among(_VIEWS),
    )] = "noised",
    method: Annotated[str, option(
        "patch, or full: every parameter (a baseline).",
        panel=_TUNING, metavar="NAME", autocompletion=complete.among(_METHODS),
    )] = "patch",
    rank: Annotated[
        int | None, option("Of the low-rank factors; default: the guide's.", panel=_TUNING)
    ] = None,
    steps: Annotated[
        int | None, option("Optimiser steps of each expert; default: the guide's.", panel=_TUNING)
    ] = None,
    batch: Annotated[int, option("Images a step.", panel=_TUNING)] = 32,
    lr: Annotated[float | None, option("Peak learning rate.", panel=_TUNING)] = None,
    weight_decay: Annotated[float, option("Of AdamW.", panel=_TUNING, min=0)] = 1e-4,
    held_out: Annotated[
        float, option("Of the harvest, to stop early by.", panel=_TUNING, metavar="SHARE")
    ] = 0.1,
    patience: Annotated[
        int, option("Measurements without progress before stopping.", panel=_TUNING)
    ] = 10,
    device: Annotated[str, options.device()] = "auto",
    dtype: Annotated[str, options.dtype("Of the frozen network; experts are float32")] = "float32",
    estimate: Annotated[
        bool, option("Only say what harvest and tuning will cost.", "--estimate", panel=_ESTIMATE)
    ] = False,
    num: Annotated[
        int,
        options.num("Images of the harvest to estimate.", panel=_ESTIMATE, min=1, max=100_000_000),
    ] = 2000,
    harvest_steps: Annotated[str, option(
        "Denoising steps of the harvest to estimate.",
        panel=_ESTIMATE, metavar="NUMBER|SPACING",
    )] = "25",
    harvest_cfg: Annotated[
        bool, option("Estimate a harvest with prompts and --cfg.", "--harvest-cfg", panel=_ESTIMATE)
    ] = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Teach a guide's experts what noise is; no data set and no labels are needed.

    Give the same command again after an interruption: it goes on where it stopped. Several
    processes share each batch:

    torchrun --nproc_per_node 2 -m ppap_host tune depth --harvest harvest --out my-experts

    --view predicted tunes experts for recipes that look at the predicted clean image, such as x0.
    It evaluates the backbone for every image that an expert is shown.

    --estimate needs neither harvest nor folder: it counts operations, times a probe on the device,
    and says how long both will take.
    """
    from ppap_host.plugins.registry import registry

    # What can be told without torch is told at once.
    registry().entry("guide", guide)
    if method not in _METHODS:
        raise unknown_name("method", method, _METHODS)
    if view not in _VIEWS:
        raise unknown_name("view", view, _VIEWS)
    seen: View = "predicted" if view == "predicted" else "noised"
    if backbone is not None:
        registry().entry("backbone", backbone)
    check_weights(checkpoint)
    check_weights(model)

    def asked() -> _Asked:
        from ppap_host.experts.tuning import TuningConfig

        names = {field.name for field in dataclasses.fields(TuningConfig)}
        values = {name: value for name, value in context.params.items() if name in names}
        config = TuningConfig(**values)
        others = backbone_options(backbone_option, vae=vae)
        return _Asked(guide, model, backbone, checkpoint, others, config, seen, device, dtype)

    if estimate:
        refuse_idle(
            context, ("harvest", "out", "licence"), "with --estimate, which reads and writes none",
            "Leave it out; --num and --harvest-steps say what harvest is meant.",
        )  # fmt: skip
        with progress_bar() as watch:
            watch("estimating", 0, 1)
            cost = _estimated(asked(), num, harvest_steps, harvest_cfg)
        if as_json:
            print_json(cost.to_dict())
        else:
            _show_cost(cost, f"{guide} on {backbone or 'shapes'}", num, experts, view)
        return
    refuse_idle(context, _OF_ESTIMATE, "without --estimate", "Add it, or leave this out.")
    if harvest is None or out is None:
        raise OptionError(
            f"--{'harvest' if harvest is None else 'out'} is missing.",
            remedy="Give a folder of `ppap harvest` with --harvest, and one to write with --out; "
            "only --estimate needs neither.",
        )
    remedy = "Make one with `ppap harvest --out FOLDER`."
    check_folder(harvest, "harvest.json", CheckpointError, remedy)
    with progress_bar(disable=not alone_or_first()) as watch:
        watch("loading libraries", 0, 1)
        record = _made(asked(), harvest, out, licence, watch)
    if record is None or not alone_or_first():
        return
    if as_json:
        print_json(record)
    else:
        _show(record, out)


def _made(
    asked: _Asked, harvest: Path, out: Path, licence: str, watch: Display
) -> dict[str, Any] | None:
    """The record of the tuning, made now or before; None in processes that are not the first."""
    from ppap_host.experts.tuning import STATE
    from ppap_host.files.folders import Job

    target = out / "experts.safetensors"
    # Looking for a set, making one and writing it are one thing.
    with Job(out) if alone_or_first() else nullcontext():
        if not target.exists():
            return _tune(asked, harvest, target, licence, watch)
        record = _finished(asked, target, harvest, licence)
        if record is None:
            raise OutputError(
                f"{str(out)!r} already holds an expert set, of another tuning.",
                remedy="Give another folder with --out; nothing is overwritten.",
            )
        (out / STATE).unlink(missing_ok=True)  # of a job that ended before it could
        return record


def _show(record: dict[str, Any], out: Path) -> None:
    """What came of it, for people."""
    rows = []
    for bounds, quality in zip(record["ranges"], record["quality"], strict=True):
        low, high = ("open" if bound is None else f"{bound:.1f}" for bound in bounds)
        before, after = (
            quality.get(whose, {}).get("distance") for whose in ("off_the_shelf", "expert")
        )
        rows.append(
            [f"{low} to {high}", *("" if d is None else f"{d:.4f}" for d in (before, after))]
        )
    columns = [Column(t, number=True) for t in ("log-SNR", "off the shelf", "expert")]
    show_table(columns, rows, f"{record['guide']}: distance to the teacher, held out")
    tell_path("Experts", out)
    tell(f"Use them with --experts {out}; `ppap plot {out}` draws how the tuning went.")


def _finished(asked: _Asked, target: Path, harvest: Path, licence: str) -> dict[str, Any] | None:
    """The record of a set that these very settings have made; None if it is of others.

    So that a job that is started again, as clusters do, ends well where nothing is left to do.
    """
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
    chosen = dataclasses.asdict(asked.config).items()
    settled = {key: value for key, value in chosen if value is not None}
    made = Harvest.open(harvest)
    same = (
        (known.get("guide"), known.get("model")) == (asked.guide, asked.model)
        and view_of(known) == asked.view
        and known.get("licence") == licence
        and asked.backbone in (None, made.config.backbone)
        and settled.items() <= known.get("tuning", {}).items()
        and known.get("harvest") == made.identity()
    )
    return record if same else None


def _estimated(asked: _Asked, num: int, steps: str, cfg: bool) -> Cost:
    """What a harvest and a tuning will cost."""
    from ppap_host.experts.cost import estimate
    from ppap_host.plugins.loading import load_backbone
    from ppap_host.plugins.registry import registry
    from ppap_host.runs.devices import pick_device

    device = pick_device(asked.device)
    guide, dtype = asked.loaded(device)
    backbone = load_backbone(
        registry(), asked.backbone or "shapes", asked.checkpoint, asked.options
    )
    backbone.to(device, dtype)
    return estimate(
        guide, backbone, asked.config, images=num, steps=spacing(steps), cfg=cfg, device=device,
        view=asked.view,
    )  # fmt: skip


def _show_cost(cost: Cost, title: str, num: int, experts: int, view: str) -> None:
    rows = [
        (title, what, _flop(each), _flop(total.flops), duration(total.seconds))
        for title, what, each, total in (
            ("harvest", f"{num:,} images, {cost.evaluations} evaluations each",
             cost.generating.flops, cost.harvest),
            ("tuning", f"{experts} experts, {cost.lessons:,} {view} images, "
             f"{cost.trainable:,} numbers", cost.tuning.flops / cost.lessons, cost.tuning),
        )
    ]  # fmt: skip
    numbers = [Column(t, number=True) for t in ("one image", "in all", "time")]
    show_table([Column(""), Column("what", prose=True), *numbers], rows, title)


def _flop(count: float) -> str:
    for power, unit in ((18, "E"), (15, "P"), (12, "T"), (9, "G")):
        if count >= 10**power:
            return f"{count / 10**power:.1f} {unit}FLOP"
    return f"{count / 10**6:.1f} MFLOP"


def _tune(
    asked: _Asked, folder: Path, target: Path, licence: str, watch: Display
) -> dict[str, Any] | None:
    """Tunes and writes; the record, or None in processes that are not the first."""
    from ppap_host.experts.harvest import Harvest
    from ppap_host.experts.tuning import RECORD, STATE, Predictor
    from ppap_host.experts.tuning import tune as run_tuning
    from ppap_host.files.hashes import package_versions
    from ppap_host.files.writing import write_json
    from ppap_host.plugins.registry import registry
    from ppap_host.runs.devices import pick_device
    from ppap_host.runs.harvesting import backbone_of
    from ppap_host.runs.processes import join, own_device

    found = registry()
    processes = join(asked.device)
    device = pick_device(own_device(asked.device, processes))
    made = Harvest.open(folder)
    diffusion = backbone_of(made, found, asked.backbone, asked.checkpoint, asked.options)
    levels, size = diffusion.levels(), diffusion.image_size
    guide, dtype = asked.loaded(device)
    predictor = None
    if asked.view == "predicted":
        _check_weights(diffusion, made)
        predictor = Predictor.of(made, diffusion, device, dtype)
    del diffusion
    plugins = [p.distribution for p, _ in found.names("guide")[asked.guide]]
    progress: list[Progress] = []

    def report(now: Progress) -> None:
        progress[:] = [now]
        held_out = ", ".join(f"{distance:.4f}" for distance in now.held_out)
        watch.show(lambda: _table(now), f"held out {held_out}")

    lesson = made.lesson(
        guide, watch, process=processes.index, processes=processes.count, wait=processes.wait
    )
    if tuple(lesson.pixels.shape[-2:]) != size:
        raise CheckpointError(
            f"The harvest's images are {tuple(lesson.pixels.shape[-2:])}, the backbone makes "
            f"{size}.",
            remedy="Give the --checkpoint the harvest was made with.",
        )
    try:
        experts = run_tuning(
            guide, lesson, levels, asked.config, target.parent, watch,
            report=report, accelerator=processes.accelerator, predictor=predictor,
        )  # fmt: skip
    except KeyboardInterrupt:
        if processes.first:
            remark("Interrupted: the same command goes on from here.", "yellow")
        raise typer.Exit(INTERRUPTED) from None
    if not processes.first:
        return None
    experts.metadata |= {
        "model": asked.model,
        "licence": licence,
        "versions": package_versions(plugins),
        "backbone": {
            "name": made.config.backbone,
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


def _table(now: Progress) -> Table:
    from rich.table import Table

    table = Table(title=f"step {now.step} of {now.steps}", title_justify="left")
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
