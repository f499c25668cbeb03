"""``ppap shapes evaluate``: the built-in world, judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppap_host.cli import complete, options
from ppap_host.cli.checks import check_picture
from ppap_host.cli.help import Application
from ppap_host.cli.options import (
    GUIDES,
    MACHINE,
    MODEL,
    SAMPLING,
    AsJson,
    OpenIt,
    Sampler,
    option,
    refuse_idle,
    spacing,
)
from ppap_host.cli.output import open_file, print_json, tell_path
from ppap_host.cli.progress import progress_bar
from ppap_host.cli.tables import Column, show_table
from ppap_host.files.errors import OptionError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

_STEERED = ("classes", "depth", "segments", "together")
_SAMPLED = {"steps", "seed", "checkpoint", "sampler", "eta", "batch"}
_PROMPTED = {"cfg", "cfg_interval", "bfloat16"}
_GUIDED = {"scale", "recipe", "experts", "interval", "quality"}
_SHEET = {"out", "open_it"}
_KNOWN = {
    "prompts": _SAMPLED | _PROMPTED,
    "pairs": _SAMPLED | _PROMPTED | _SHEET,
    "unguided": _SAMPLED | _SHEET | {"bfloat16"},
    "all": _SAMPLED | _PROMPTED | _SHEET,
    "frechet": _SAMPLED | _PROMPTED,
    **dict.fromkeys(_STEERED, _SAMPLED | _GUIDED | _SHEET | {"bfloat16"}),
    "spoiled": set[str](),
}
"""Each measure, and the options that it goes by besides --num and --json."""


def evaluate(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="MEASURE", autocompletion=complete.among(_KNOWN),
            help="prompts, pairs, unguided, all, frechet, classes, depth, segments, together or "
            "spoiled.",
        ),
    ],
    num: Annotated[
        int,
        options.num(
            "Images; for prompts and classes: images of each class; for all: unguided ones.", min=1
        ),
    ] = 32,
    steps: Annotated[
        str | None, options.steps("Denoising steps, or a spacing. [default: the backbone's]")
    ] = None,
    seed: Annotated[int, option("Of the generated images.", min=0)] = 0,
    out: Annotated[
        Path | None,
        options.out(
            "A sheet of images; for all: a folder for judged.json and two sheets.",
            metavar="FILE|FOLDER",
        ),
    ] = None,
    scale: Annotated[
        float | None, option("Of each guide; default: its own.", "--scale", "-s", panel=GUIDES)
    ] = None,
    recipe: Annotated[str | None, option(
        "Of each guide; default: its own.",
        "--recipe", "-r", panel=GUIDES, metavar="NAME[:KEY=VALUE,...]",
        autocompletion=complete.of("recipe"),
    )] = None,
    experts: Annotated[str | None, option(
        "Of each guide; default: one that fits.",
        "--experts", "-e", panel=GUIDES, metavar="NAME|FILE|FOLDER|none",
        autocompletion=complete.of("expert set"),
    )] = None,
    interval: Annotated[
        str | None, option("log-SNR at which each guide works.", panel=GUIDES, metavar="LOW:HIGH")
    ] = None,
    quality: Annotated[str | None, option(
        "Of guided images: a measured point for what is not given.",
        metavar="draft|normal|best|none",
        autocompletion=complete.among(("draft", "normal", "best", "none")),
    )] = None,
    checkpoint: Annotated[
        str | None, option("Another training of the backbone.", panel=MODEL, metavar="FILE|FOLDER")
    ] = None,
    cfg: Annotated[
        float | None, option("Of prompted images. [default: the backbone's]", panel=MODEL)
    ] = None,
    cfg_interval: Annotated[str | None, options.cfg_interval()] = None,
    sampler: Sampler = None,
    eta: Annotated[float | None, option(
        "Stochasticity of ddim and dpm++. [default: the backbone's]",
        panel=SAMPLING, min=0,
    )] = None,
    batch: Annotated[int, option("Images at a time.", panel=MACHINE, min=1)] = 64,
    bfloat16: Annotated[bool, option(
        "Of the backbone, for unguided and prompted images.",
        "--bfloat16/--float32", panel=MACHINE,
    )] = False,
    open_it: OpenIt = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Measure the built-in world with judges, beside renders.

    prompts is the accuracy of "a <colour> <shape>", pairs prompts of two objects, unguided geometry
    and distance to renders without a prompt, all these three. frechet is the distance of images of
    whole captions. classes, depth and segments are runs of the guides classifier, depth and
    segmentation, together those of the first two with the same solids. spoiled makes no images: it
    says what the measures make of renders that were spoiled in known ways.
    """
    if what not in _KNOWN:
        raise unknown_name("measure", what, _KNOWN)
    idle = set().union(*_KNOWN.values()) - _KNOWN[what]
    refuse_idle(context, idle, f"to the measure {what}", "Leave it out.")
    if open_it and out is None:
        raise OptionError("--open shows a sheet, and there is none.", remedy="Add --out FILE.")
    if num < 2 and what in ("unguided", "all", "frechet"):
        raise OptionError(
            f"The measure {what} is of how images vary, and --num is {num}.",
            remedy="Give --num 2 or more.",
        )
    if out is not None and what != "all":
        check_picture(out)
    sheets: dict[str, list[_Row]] = {}
    with progress_bar() as watch:
        watch("loading libraries", 0, 1)
        from ppap_host.files.writing import write_json

        if what in _STEERED:
            from ppap_plugin_bench.steered import steered

            guiding = {
                "scale": scale, "recipe": recipe, "experts": experts, "interval": interval,
            }  # fmt: skip
            sampling = {
                "steps": steps and spacing(steps), "sampler": sampler, "eta": eta, "seed": seed,
                "batch": batch, "quality": quality, "dtype": "bfloat16" if bfloat16 else "float32",
            }  # fmt: skip
            outcome = steered(what, checkpoint, num, guiding, sampling, watch)
            rows: list[_Row] = [("guided", outcome.pop("made"), [])]
            if "targets" in outcome:
                rows.insert(0, ("targets", outcome.pop("targets"), []))
            sheets["sheet"] = rows
        else:
            outcome, sheets = _plain(
                what, num, checkpoint, steps, sampler, eta, cfg, cfg_interval, seed, batch,
                bfloat16, watch,
            )  # fmt: skip
        if out is not None and what == "all":
            write_json(out / "judged.json", outcome)
        files = [out / f"{name}.png" if what == "all" else out for name in sheets if out]
        for file, rows in zip(files, sheets.values(), strict=False):
            _write_sheet(file, rows)
    if as_json:
        print_json(outcome)
    else:
        _show(outcome, f"{what}, judged")
        for file in files:
            tell_path("Sheet", file)
    if open_it and files:
        open_file(files[0])


def _plain(
    what: str,
    num: int,
    checkpoint: str | None,
    steps: str | None,
    sampler: str | None,
    eta: float | None,
    cfg: float | None,
    cfg_interval: str | None,
    seed: int,
    batch: int,
    bfloat16: bool,
    watch: Callable[[str, int, int], None],
) -> tuple[dict[str, Any], dict[str, list[_Row]]]:
    """What no guide takes part in, and the rows of its sheets."""
    from ppap_host.backbones.noise import NoiseRange
    from ppap_host.plugins.loading import load_sampler
    from ppap_host.plugins.registry import registry
    from ppap_host.runs.config import RunConfig
    from ppap_host.shapes.backbone import ShapesBackbone
    from ppap_plugin_bench import shapes as measures

    if what == "spoiled":
        return measures.spoiled(num, watch), {}
    run = RunConfig(
        num=num, steps=steps and spacing(steps), sampler=sampler, eta=eta, cfg=cfg,
        cfg_interval=cfg_interval, seed=seed, batch=batch,
    )  # fmt: skip
    backbone = ShapesBackbone(checkpoint)
    spaced, sampler, eta = backbone.sampling(run.steps, sampler, run.eta)
    solver = load_sampler(registry(), sampler, backbone, eta)
    settings = measures.Settings(
        steps=spaced,
        cfg=backbone.default_cfg if cfg is None else cfg,
        cfg_interval=backbone.default_cfg_interval
        if cfg_interval is None
        else NoiseRange.read(cfg_interval),
        seed=seed,
        batch=batch,
        bfloat16=bfloat16,
    )
    asked = (backbone, solver, settings)
    sheets: dict[str, list[_Row]] = {}
    if what == "all":
        outcome = measures.everything(*asked, num, watch)
        sheets = {"unguided": [_row(outcome["unguided"])], "pairs": [_row(outcome["pairs"])]}
    else:
        measure_of = {
            "prompts": measures.prompt_accuracy, "pairs": measures.two_objects,
            "unguided": measures.unguided, "frechet": measures.frechet,
        }  # fmt: skip
        outcome = measure_of[what](*asked, num, watch)
        if "made" in outcome:
            sheets["sheet"] = [_row(outcome)]
    outcome |= {
        "steps": settings.steps, "sampler": sampler, "eta": eta, "cfg": settings.cfg,
        "cfg_interval": settings.cfg_interval.text, "seed": seed, "bfloat16": bfloat16,
    }  # fmt: skip
    return outcome, sheets


_Row = tuple[str, "Tensor", list[str]]
"""Title, images and what is written below each."""


def _row(outcome: dict[str, Any]) -> _Row:
    """The images of an outcome, and what was asked for; takes both out of it."""
    captions, right = outcome.pop("captions", []), outcome.pop("right", [])
    words = [("" if hit else "not ") + text for text, hit in zip(captions, right, strict=True)]
    return "", outcome.pop("made"), words


def _write_sheet(path: Path, rows: list[_Row]) -> None:
    """Up to 64 images of each row, eight beside each other."""
    from ppap_host.files.images import contact_sheet, from_tensor
    from ppap_host.files.writing import write_png

    lines = []
    for i in range(0, min(len(rows[0][1]), 64), 8):
        for title, x, words in rows:
            part = from_tensor(x[i : i + 8])
            below = words[i : i + 8] or [""] * len(part)
            lines.append((title, list(zip(below, part, strict=True))))
    write_png(path, contact_sheet(lines, cell=128))


def _show(outcome: dict[str, Any], title: str) -> None:
    """Tables: of what stands beside renders, of spoiled renders, and of everything else."""
    plain = dict(outcome)
    if rows := plain.pop("rows", None):
        names = [*rows[0]["scores"], "two_objects", "frechet"]
        heads = [Column("renders"), *(Column(n.replace("_", " "), number=True) for n in names)]
        cells = [
            [row["name"], *(_shown({**row["scores"], **row}[name]) for name in names)]
            for row in rows
        ]
        show_table(heads, cells, title)
    if of_whom := plain.pop("measures", None):
        names = list(dict.fromkeys(name for found in of_whom.values() for name in found))
        heads = [Column(""), *(Column(n.replace("_", " "), number=True) for n in names)]
        cells = [
            [who, *(_with_error(found.get(n)) for n in names)] for who, found in of_whom.items()
        ]
        show_table(heads, cells, title)
        for guide in plain.pop("guides"):
            said = ", ".join(f"{k} {v}" for k, v in guide.items() if v is not None and k != "name")
            plain[guide["name"]] = said
        rows = of_whom
    beside = list(_beside(plain))
    if beside:
        heads = [Column(""), *(Column(n, number=True) for n in ("made", "±", "renders", "share"))]
        show_table(heads, beside, title)
    cells = [[key.replace("_", " "), _shown(value)] for key, value in plain.items()]
    show_table([Column(""), Column("", prose=True)], cells, "" if beside or rows else title)


def _beside(outcome: dict[str, Any], of: str = "") -> Iterator[list[str]]:
    """A row for each measure that has renders beside it; takes them out of ``outcome``."""
    for key, value in list(outcome.items()):
        if not isinstance(value, dict):
            continue
        if "renders" in value:
            del outcome[key]
            numbers = (value[n] for n in ("made", "error", "renders", "share_of_renders"))
            yield [f"{of}{key}".replace("_", " "), *map(_shown, numbers)]
        else:
            outcome[key] = inner = dict(value)
            yield from _beside(inner, of if key in ("scores", "shares") else f"{of}{key}: ")
            if not inner:
                del outcome[key]


def _with_error(measure: dict[str, float | None] | None) -> str:
    if measure is None:
        return ""
    error = measure["error"]
    return _shown(measure["mean"]) + (f" ± {error:.2g}" if error is not None else "")


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


app = Application()
app.command()(evaluate)
