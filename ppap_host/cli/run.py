"""``ppap run``: generate images under guidance."""

# Long because every option of the command is declared here, once.
from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppap_host.cli import complete, options
from ppap_host.cli.checks import check_new, check_run
from ppap_host.cli.options import (
    GUIDES,
    MACHINE,
    MODEL,
    RESULTS,
    SAMPLING,
    AsJson,
    BackboneOption,
    Checkpoint,
    Eta,
    OpenIt,
    Sampler,
    Upsampler,
    Vae,
    backbone_options,
    option,
    spacing,
)
from ppap_host.cli.output import (
    counted,
    detail,
    open_file,
    print_json,
    print_toml,
    remark,
    tell,
    tell_path,
    times,
    warn,
)
from ppap_host.cli.progress import progress_bar
from ppap_host.cli.surroundings import INTERRUPTED
from ppap_host.cli.tables import Column, show_table
from ppap_host.files.errors import OptionError

if TYPE_CHECKING:
    from ppap_host.runs.config import RunConfig
    from ppap_host.runs.run import Result

DEFAULT_OUT = Path("ppap-out")
OWN = "-"
"""Of an option for each guide: what the guide gets where the option is left out."""


def _number_or_own(text: str) -> float | str:
    """A number, or :data:`OWN`."""
    try:
        return text if text == OWN else float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no number.") from None


def run(
    context: typer.Context,
    guide: Annotated[list[str] | None, option(
        "What steers: one of `ppap list guides`, or code of your own. Repeatable.",
        "--guide", "-g", metavar="NAME|FILE.py:NAME", autocompletion=complete.of("guide"),
    )] = None,
    target: Annotated[list[str] | None, option(
        "What each guide should see: a label or a file; - for nothing.",
        "--target", "-t", metavar="LABEL|FILE",
    )] = None,
    scale: Annotated[list[Any] | None, option(
        "Strength of each guide, 1 being the same share of a step for all. [default: the guide's "
        "own]",
        "--scale", "-s", parser=_number_or_own,
    )] = None,
    prompt: Annotated[
        str | None, option("For backbones that read text.", "--prompt", "-p", metavar="TEXT")
    ] = None,
    negative_prompt: Annotated[
        str | None, option("What --cfg leads away from.", panel=MODEL, metavar="TEXT")
    ] = None,
    num: Annotated[int | None, options.num("Images to make. [default: 4]")] = None,
    steps: Annotated[
        str | None,
        options.steps("Denoising steps, or a spacing (ddim25). [default: the backbone's]"),
    ] = None,
    quality: Annotated[str | None, option(
        "Point of the guides' measured frontiers; the options given here win over it. [default: "
        "normal]",
        metavar="draft|normal|best|none",
        autocompletion=lambda: ["draft", "normal", "best", "none"],
    )] = None,
    seed: Annotated[int | None, option("Image k depends on seed and k. [default: 0]")] = None,
    out: Annotated[
        Path | None, options.out("Folder to write. [default: ppap-out/<next number>]")
    ] = None,
    config: Annotated[Path | None, option(
        "These options from a TOML file; those given here override it.",
        "--config", "-c", metavar="FILE",
    )] = None,
    recipe: Annotated[list[str] | None, option(
        "Guidance method: one, or one for each guide. [default: ppap with experts, or x0]",
        "--recipe", "-r", panel=GUIDES, metavar="NAME[:KEY=VALUE,...]",
        autocompletion=complete.of("recipe"),
    )] = None,
    absolute: Annotated[bool, option(
        "Take each --scale as the recipe's paper does: it multiplies the gradient.",
        "--absolute", panel=GUIDES,
    )] = False,
    model: Annotated[list[str] | None, option(
        "Network of each guide; default: the one that it ships.",
        "--model", "-m", panel=GUIDES, metavar="FILE|FOLDER|HUB-NAME",
    )] = None,
    experts: Annotated[list[str] | None, option(
        "Expert set of each guide. [default: one that fits]",
        "--experts", "-e", panel=GUIDES, metavar="NAME|FILE|FOLDER|none",
        autocompletion=complete.of("expert set"),
    )] = None,
    interval: Annotated[list[str] | None, option(
        "Noise levels at which each guide is asked, in log-SNR.",
        panel=GUIDES, metavar="LOW:HIGH",
    )] = None,
    stage: Annotated[list[str] | None, option(
        "Of a cascade, for each guide: base, upsampler, both.",
        panel=GUIDES, metavar="NAME", autocompletion=complete.among(("base", "upsampler", "both")),
    )] = None,
    calibration: Annotated[list[str] | None, option(
        "Of each guide: what `ppap calibrate` wrote.",
        panel=GUIDES, metavar="FILE|FOLDER",
    )] = None,
    balance: Annotated[str | None, option(
        "Of several guides: project or sum. [default: project]",
        panel=GUIDES, metavar="NAME", autocompletion=complete.balances,
    )] = None,
    backbone: Annotated[str | None, options.backbone(told="shapes")] = None,
    checkpoint: Checkpoint = None,
    vae: Vae = None,
    upsampler: Upsampler = None,
    backbone_option: BackboneOption = None,
    class_index: Annotated[
        int | None, option("Class of class-conditional backbones.", "--class", panel=MODEL)
    ] = None,
    cfg: Annotated[
        float | None, option("Classifier-free guidance scale of prompt or class.", panel=MODEL)
    ] = None,
    cfg_interval: Annotated[str | None, options.cfg_interval()] = None,
    guidance_scale: Annotated[float | None, option(
        "What a distilled network is told, beside --cfg (Flux, Qwen-Image).",
        panel=MODEL,
    )] = None,
    image: Annotated[str | None, option(
        "Picture to start from, to fill in, or for a control network.",
        panel=MODEL, metavar="FILE",
    )] = None,
    mask: Annotated[str | None, option(
        "White where the picture is to be made anew.",
        panel=MODEL, metavar="FILE",
    )] = None,
    strength: Annotated[float | None, option(
        "How far --image is left, 0 to 1. [default: the pipeline's]",
        panel=MODEL,
    )] = None,
    height: Annotated[
        int | None, option("Of a pipeline's images.", panel=MODEL, metavar="PIXELS")
    ] = None,
    width: Annotated[
        int | None, option("Of a pipeline's images.", panel=MODEL, metavar="PIXELS")
    ] = None,
    lora: Annotated[list[str] | None, option(
        "Low-rank patches of a pipeline; repeatable.",
        panel=MODEL, metavar="FILE[:STRENGTH]",
    )] = None,
    pipeline: Annotated[list[str] | None, option(
        "A further argument of a pipeline's call; repeatable.",
        panel=MODEL, metavar="NAME=VALUE",
    )] = None,
    offload: Annotated[str | None, option(
        "Networks of a pipeline wait in memory: none, model, sequential.",
        panel=MACHINE, metavar="NAME",
        autocompletion=complete.among(("none", "model", "sequential")),
    )] = None,
    tiling: Annotated[
        bool, option("Decode a pipeline's large images in tiles.", "--tiling", panel=MACHINE)
    ] = False,
    sampler: Sampler = None,
    eta: Eta = None,
    churn: Annotated[float | None, option("S_churn of heun. [default: 0]", panel=SAMPLING)] = None,
    churn_range: Annotated[
        str | None, option("S_tmin and S_tmax of heun.", panel=SAMPLING, metavar="LOW:HIGH")
    ] = None,
    churn_noise: Annotated[
        float | None, option("S_noise of heun. [default: 1]", panel=SAMPLING)
    ] = None,
    upsampler_steps: Annotated[str | None, option(
        "As --steps, for an upsampler.",
        panel=SAMPLING, metavar="NUMBER|SPACING",
    )] = None,
    batch: Annotated[
        int | None, option("Images at a time. [default: the backbone's]", panel=MACHINE)
    ] = None,
    device: Annotated[str | None, options.device(" [default: auto]")] = None,
    dtype: Annotated[str | None, options.dtype(told=" [default: float32]")] = None,
    unguided: Annotated[bool | None, option(
        "Also make the same images without guides, to compare. [default: unguided]",
        "--unguided/--no-unguided", panel=RESULTS,
    )] = None,
    open_it: OpenIt = False,
    print_config: Annotated[
        bool, option("Print the TOML that repeats this run; stop.", "--print-config", panel=RESULTS)
    ] = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Generate images steered by guides.

    What describes a guide (--target, --scale, --model, --experts, --interval, --stage,
    --calibration) belongs to the --guide in the same place. A hyphen stands for what a guide gets
    where the option is left out:

    ppap run --guide depth --target room.png --scale 1.5
    """
    from ppap_host.runs.config import RunConfig, read_toml, refuse_code

    values: dict[str, Any] = read_toml(config) if config else {}
    configured = values.pop("out", None)
    if configured is not None and not isinstance(configured, str):
        raise OptionError(f"'out' in {config} is {configured!r}.", remedy="It must be a folder.")
    if out is None and configured is not None:
        out = Path(configured)
    # Most options are called as the field of the configuration that they set.
    given = {f.name: context.params.get(f.name) for f in dataclasses.fields(RunConfig)} | {
        "recipe": None,  # one, or one for each guide
        "pipeline": options.values("--pipeline", pipeline) or None,
        "backbone_options": backbone_options(
            backbone_option, vae=vae, upsampler=upsampler, lora=_listed(lora or []),
            offload=offload, tiling="yes" if tiling else None,
        ) or None,
        "steps": steps and spacing(steps),
        "upsampler_steps": upsampler_steps and spacing(upsampler_steps),
    }  # fmt: skip
    values |= {key: value for key, value in given.items() if value is not None}
    recipes = recipe or []
    if len(recipes) == 1:
        values["recipe"], recipes = recipes[0], []
    own = ("target", "scale", "model", "experts", "interval", "stage", "calibration")
    of_each = {name: context.params[name] or [] for name in own} | {"recipe": recipes}
    guides = pair_guides(guide or [], of_each)
    if guides:
        values["guide"] = guides
    if absolute:
        key = "guides" if "guides" in values else "guide"
        values[key] = [{**table, "absolute": True} for table in values.get(key, [])]
    if values.get("guide") or values.get("guides"):
        values.setdefault("unguided", True)
    settings = RunConfig.from_dict(values, str(config) if config else "the command line")
    if config:
        refuse_code(settings, str(config), guide or [])
    if print_config:
        print_toml(settings.to_toml())
        return
    from ppap_host.files.folders import numbered

    with numbered(DEFAULT_OUT) if out is None else nullcontext(out) as folder:
        finish(execute(settings, folder), as_json, open_it)


def _listed(values: Sequence[str]) -> str | None:
    """In one line, those with a comma in quotes; None where there are none."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(values)
    return line.getvalue() or None


def pair_guides(guides: list[str], options: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """One table a guide, its options matched in order.

    Args:
        guides: names, or ``FILE.py:NAME`` of one's own code.
        options: by the names of :class:`~ppap_host.runs.config.GuideConfig`, each for all guides
            or for none. :data:`OWN` is as if the guide had not been given one, which is how a
            reward has no target beside guides that have one.

    Raises:
        OptionError: the counts do not match; shows what was understood.
    """
    from ppap_host.runs.config import code_of

    code = [code_of(guide) for guide in guides]
    for name, given in options.items():
        if given and len(given) != len(guides):
            pairs = [
                f"--guide {guides[i] if i < len(guides) else '???'} "
                f"--{name} {given[i] if i < len(given) else '???'}"
                for i in range(max(len(guides), len(given)))
            ]
            raise OptionError(
                f"{len(guides)} --guide but {len(given)} --{name}: {' | '.join(pairs)}.",
                remedy=f"Give one --{name} for each --guide, in the same order; {OWN} for "
                + (
                    "a reward, which has none."
                    if name == "target"
                    else "a guide's own, or none at all."
                ),
            )
    tables = []
    for i, (guide, own) in enumerate(zip(guides, code, strict=True)):
        table = {"name": guide} if own is None else {"name": own[1], "what": guide}
        tables.append(table | {k: v[i] for k, v in options.items() if v and v[i] != OWN})
    return tables


def execute(settings: RunConfig, out: Path, moved: dict[str, str] | None = None) -> Result:
    """Runs with progress; an interrupted run says what it kept and exits with 130."""
    from ppap_host.plugins.registry import registry
    from ppap_host.runs.config import new_record

    # A slip of the pen is answered before torch is imported.
    check_run(settings, registry(), moved or {})
    check_new(out, "run.json", "a run")
    told: list[str] = []

    def begun(record: Mapping[str, Any]) -> None:
        """What was understood and chosen, while there is time to stop."""
        for said in filter(None, dict.fromkeys(row["understood"] for row in record["targets"])):
            remark(f"Target: {said}")
        used = record["used"]
        if used["quality"]:
            remark(used["quality"])
        for one in used["guides"]:
            if one["experts"]:
                remark(f"{one['name']}: guided by the experts {one['experts']}")
            scale = f"{'absolute ' if one['absolute'] else ''}scale {one['scale']:g}"
            detail(f"{one['name']}: recipe {one['recipe']}, {scale}")
        where = f"{used['steps']} steps, cfg {used['cfg']:g}, on {used['device']}"
        detail(f"{settings.backbone}: {where}")
        told.extend(record["warnings"])
        for warning in told:
            warn(warning)

    with progress_bar() as watch:
        try:
            watch("loading libraries", 0, 1)
            from ppap_host.runs.run import run as run_settings

            result = run_settings(settings, out, watch, moved, begun)
        except KeyboardInterrupt:
            if not (out / "run.json").exists():
                # Interrupted while libraries were imported: leave a record all the same.
                from ppap_host.files.writing import write_json

                write_json(out / "run.json", new_record(settings) | {"status": "interrupted"})
            kept = counted(len(list(out.glob("[0-9]*.png"))), "finished image")
            remark(f"Interrupted: {kept} in {out}", "yellow")
            raise typer.Exit(INTERRUPTED) from None
    for warning in result.record["warnings"]:
        if warning not in told:
            warn(warning)
    return result


_PARTS = {
    "load": "loading", "hash": "hashing", "sample": "sampling", "measure": "measuring",
    "write": "writing",
}  # fmt: skip
_SHOWN = 24
"""Rows of a table of images at most; the record has all of them."""


def finish(result: Result, as_json: bool, open_it: bool = False) -> None:
    """Prints what a run made: a table for people, or the record for programs.

    Raises:
        typer.Exit: with 1, if an image could not be made.
    """
    assert result.folder is not None
    sheet = result.folder / "sheet.png"
    if as_json:
        print_json(result.record)
    else:
        _show(result.record, result.folder, sheet)
    if open_it:
        open_file(sheet)
    if result.record["failed"]:
        raise typer.Exit(1)  # the others are there, and the warnings have said why


def _show(record: dict[str, Any], folder: Path, sheet: Path) -> None:
    entries = record["images"]
    measures = sorted({(g, m) for e in entries for g, row in e["measures"].items() for m in row})
    columns = [Column("image")]
    columns += [Column(f"{name}\n{measure}", number=True) for name, measure in measures]

    def row(title: str, values: Sequence[float | None]) -> list[str]:
        return [title, *("" if value is None else f"{value:.4f}" for value in values)]

    def values(of: str, entry: dict[str, Any]) -> list[float]:
        return [entry[of][name][measure] for name, measure in measures]

    def mean(of: str) -> list[float]:
        columns = zip(*(values(of, entry) for entry in entries), strict=True)
        return [sum(column) / len(entries) for column in columns]

    last = [row("mean", mean("measures"))] if measures and len(entries) > 1 else []
    if measures and all("unguided" in entry for entry in entries):
        last.append(row("mean unguided", mean("unguided")))
    of_targets = record.get("target_measures", {})
    own = {name: rows[0] for name, rows in of_targets.items() if len(rows) == 1}
    if any(own.values()):
        itself = [(own.get(name) or {}).get(measure) for name, measure in measures]
        last.append(row("the target itself", itself))
    rows = [row(entry["file"], values("measures", entry)) for entry in entries[:_SHOWN]]
    show_table(columns, rows, str(folder), last=last)
    if len(entries) > _SHOWN:
        tell(f"and {counted(len(entries) - _SHOWN, 'more image')}, all of them in run.json")
    made = record.get("given", {})
    for name, size in record.get("images_per_gradient", {}).items():
        if size < min(made.get("batch") or 1, made.get("num") or 1):
            tell(f"gradients of {name} {counted(size, 'image')} at a time, as memory allows")
    tell(times(record["seconds"], _PARTS))
    tell_path("Sheet", sheet)
