"""``ppap run``: generate images under guidance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    from ppap_host.runs.config import RunConfig
    from ppap_host.runs.run import Result, Watch

DEFAULT_OUT = Path("ppap-out")
OWN = "-"
"""Of an option for each guide: what the guide gets where the option is left out."""


def _number_or_own(text: str) -> float:
    """A number; NaN, which nobody can mean, for :data:`OWN`."""
    try:
        return math.nan if text == OWN else float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no number.") from None


def run(
    guide: Annotated[
        list[str] | None,
        typer.Option("--guide", "-g", help="What steers; repeatable. See `ppap list`."),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", "-t", help="What each guide should see: a label or a file."),
    ] = None,
    scale: Annotated[
        list[float] | None,
        typer.Option(
            "--scale",
            "-s",
            parser=_number_or_own,
            metavar="<float>",
            help="Strength of each guide; default: the guide's own.",
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="Network of each guide: folder, file or hub name."),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option("--backbone", "-b", help="Diffusion model. [default: shapes]")
    ] = None,
    checkpoint: Checkpoint = None,
    vae: Vae = None,
    upsampler: Upsampler = None,
    backbone_option: BackboneOption = None,
    class_index: Annotated[
        int | None, typer.Option("--class", help="Class of class-conditional backbones.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Text, for backbones that read text.")
    ] = None,
    image: Annotated[
        str | None, typer.Option("--image", help="Picture to fill in, for inpainting backbones.")
    ] = None,
    mask: Annotated[
        str | None, typer.Option("--mask", help="White where the picture is to be made anew.")
    ] = None,
    cfg: Annotated[
        float | None,
        typer.Option("--cfg", help="Classifier-free guidance scale of prompt or class."),
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            "--recipe",
            "-r",
            help="Guidance method: one, or one for each guide. [default: ppap with experts, or x0]",
        ),
    ] = None,
    experts: Annotated[
        list[str] | None,
        typer.Option(
            "--experts",
            "-e",
            help="Expert set of each guide: a name, file or folder; none. [default: one that fits]",
        ),
    ] = None,
    interval: Annotated[
        list[str] | None,
        typer.Option("--interval", help="Noise levels of each guide: LOW:HIGH in log-SNR."),
    ] = None,
    stage: Annotated[
        list[str] | None,
        typer.Option("--stage", help="Of a cascade, for each guide: base, upsampler, both."),
    ] = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option("--calibration", help="Of each guide: what `ppap calibrate` wrote."),
    ] = None,
    balance: Annotated[
        str | None,
        typer.Option("--balance", help="Of several guides: project or sum. [default: project]"),
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option("--steps", help="Denoising steps, or a spacing (ddim25). [default: 50]"),
    ] = None,
    upsampler_steps: Annotated[
        str | None, typer.Option("--upsampler-steps", help="The same for an upsampler.")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option("--sampler", help="ddim, ddpm, dpm++ or heun. [default: ddim]")
    ] = None,
    eta: Annotated[
        float | None, typer.Option("--eta", help="Stochasticity of ddim, 0 to 1. [default: 0]")
    ] = None,
    churn: Annotated[
        float | None, typer.Option("--churn", help="S_churn of heun. [default: 0]")
    ] = None,
    churn_range: Annotated[
        str | None, typer.Option("--churn-range", help="LOW:HIGH, S_tmin and S_tmax of heun.")
    ] = None,
    churn_noise: Annotated[
        float | None, typer.Option("--churn-noise", help="S_noise of heun. [default: 1]")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Image k depends on seed and k. [default: 0]")
    ] = None,
    num: Annotated[
        int | None, typer.Option("--num", "-n", help="Images to make. [default: 4]")
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", help="Images at a time. [default: 8]")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder to write. [default: ppap-out/<next number>]"),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help="auto, cpu, cuda, mps. [default: auto]")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="float32, bfloat16, float16. [default: float32]"),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="TOML file; options override it.")
    ] = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the TOML that repeats this run; stop.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the record alone on standard output.")
    ] = False,
) -> None:
    """Generate images steered by guides.

    What describes a guide (--target, --scale, --model, --experts, --interval, --stage,
    --calibration) belongs to the --guide in the same place. A hyphen stands for what a guide gets
    where the option is left out:

    ppap run --guide depth --target room.png --scale 1.5
    """
    from ppap_host.runs.config import RunConfig, read_toml

    values: dict[str, Any] = read_toml(config) if config else {}
    configured = values.pop("out", None)
    if configured is not None and not isinstance(configured, str):
        raise OptionError(f"'out' in {config} is {configured!r}.", remedy="It must be a folder.")
    if out is None and configured is not None:
        out = Path(configured)
    given = {
        "backbone": backbone, "checkpoint": checkpoint, "prompt": prompt, "cfg": cfg,
        "image": image, "mask": mask,
        "class_index": class_index,
        "backbone_options": backbone_options(vae, upsampler, backbone_option) or None,
        "balance": balance, "sampler": sampler, "eta": eta, "churn": churn,
        "churn_range": churn_range, "churn_noise": churn_noise, "seed": seed, "num": num,
        "batch": batch, "device": device, "dtype": dtype,
        "steps": _spacing(steps), "upsampler_steps": _spacing(upsampler_steps),
    }  # fmt: skip
    values |= {key: value for key, value in given.items() if value is not None}
    recipes = recipe or []
    if len(recipes) == 1:
        values["recipe"], recipes = recipes[0], []
    guides = pair_guides(
        guide or [],
        {
            "target": target or [], "scale": scale or [], "model": model or [], "recipe": recipes,
            "experts": experts or [], "interval": interval or [], "stage": stage or [],
            "calibration": calibration or [],
        },
    )  # fmt: skip
    if guides:
        values["guide"] = guides
    settings = RunConfig.from_dict(values, str(config) if config else "the command line")
    if print_config:
        print(settings.to_toml(), end="")
        return
    from ppap_host.files.folders import numbered

    with numbered(DEFAULT_OUT) if out is None else nullcontext(out) as folder:
        finish(execute(settings, folder), as_json)


def _is_own(value: Any) -> bool:
    return value == OWN or (isinstance(value, float) and math.isnan(value))


def _spacing(steps: str | None) -> int | str | None:
    return int(steps) if steps is not None and steps.isdecimal() else steps


def pair_guides(guides: list[str], options: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """One table a guide, its options matched in order.

    Args:
        options: by the names of :class:`~ppap_host.runs.config.GuideConfig`; "target" is not
            optional. Of the others, :data:`OWN` (NaN for a number) is as if the guide had not been
            given one.

    Raises:
        OptionError: the counts do not match; shows what was understood.
    """
    for name, given in options.items():
        optional = name != "target"
        if len(given) != len(guides) and not (optional and not given):
            pairs = [
                f"--guide {guides[i] if i < len(guides) else '???'} "
                f"--{name} {given[i] if i < len(given) else '???'}"
                for i in range(max(len(guides), len(given)))
            ]
            raise OptionError(
                f"{len(guides)} --guide but {len(given)} --{name}: {' | '.join(pairs)}.",
                remedy=f"Give one --{name} for each --guide, in the same order"
                + (f"; {OWN} for a guide's own, or none at all." if optional else "."),
            )
    return [
        {"name": name}
        | {
            key: given[i]
            for key, given in options.items()
            if given and (key == "target" or not _is_own(given[i]))
        }
        for i, name in enumerate(guides)
    ]


def execute(settings: RunConfig, out: Path, moved: dict[str, str] | None = None) -> Result:
    """Runs with a progress bar; an interrupted run says what it kept and exits with 130."""
    from ppap_host.plugins.registry import registry
    from ppap_host.runs.config import check_names, new_record

    console = stderr()
    check_names(settings, registry())  # a slip of the pen is answered before torch is imported
    with progress_bar() as watch:
        try:
            from ppap_host.runs.run import run as run_settings

            result = run_settings(settings, out, watch, moved)
        except KeyboardInterrupt:
            if not (out / "run.json").exists():
                # Interrupted while libraries were imported: leave a record all the same.
                from ppap_host.files.writing import write_json

                write_json(out / "run.json", new_record(settings) | {"status": "interrupted"})
            kept = len(list(out.glob("[0-9]*.png")))
            console.print(f"Interrupted: {kept} finished images in {out}", style="yellow")
            raise typer.Exit(130) from None
    for used in result.record["used"]["guides"]:
        if used["experts"]:
            console.print(f"{used['name']}: guided by the experts {used['experts']}", style="dim")
    for warning in result.record["warnings"]:
        console.print(f"Warning: {warning}", style="yellow")
    return result


@contextmanager
def progress_bar(*, disable: bool = False) -> Iterator[Watch]:
    """A progress bar on standard error; silent when that is not a terminal, or ``disable``."""
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = stderr()
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(
        *columns, console=console, disable=disable or not console.is_terminal
    ) as progress:
        task = progress.add_task("starting", total=None)

        def watch(what: str, done: int, total: int) -> None:
            progress.update(task, description=what, completed=done, total=total)

        yield watch


def finish(result: Result, as_json: bool) -> None:
    """Prints the record for programs, a short table for people."""
    if not for_people(as_json):
        print_json(result.record)
        return
    from rich.console import Console
    from rich.table import Table

    entries = result.record["images"]
    measures = sorted({(g, m) for e in entries for g, row in e["measures"].items() for m in row})
    table = Table(title=str(result.folder), title_justify="left")
    table.add_column("image")
    for name, measure in measures:
        table.add_column(f"{name}\n{measure}", justify="right")
    for entry in entries:
        values = [f"{entry['measures'][name][measure]:.4f}" for name, measure in measures]
        table.add_row(entry["file"], *values)
    console = Console()
    console.print(table)
    total = sum(result.record["seconds"].values())
    console.print(f"{total:.1f} s; look at {result.folder}/sheet.png")
