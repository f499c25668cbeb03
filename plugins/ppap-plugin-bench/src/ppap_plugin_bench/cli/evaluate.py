"""``ppap shapes evaluate``: the built-in world, judged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ppap_host.cli import complete, options
from ppap_host.cli.help import Application
from ppap_host.cli.options import (
    GUIDES,
    MODEL,
    SAMPLERS,
    SAMPLING,
    AsJson,
    OpenIt,
    option,
    spacing,
)
from ppap_host.cli.output import open_file, print_json, tell_path
from ppap_host.cli.progress import progress_bar
from ppap_host.cli.tables import Column, show_table
from ppap_host.files.errors import OptionError, unknown_name

_KNOWN = ("prompts", "frechet", "classes", "depth")


def evaluate(
    what: Annotated[
        str,
        typer.Argument(
            metavar="MEASURE", autocompletion=complete.among(_KNOWN),
            help="prompts, frechet, classes or depth.",
        ),
    ],
    num: Annotated[
        int, options.num("Images; for prompts and classes: images of each class.", min=1)
    ] = 32,
    steps: Annotated[str, options.steps("Denoising steps, or a spacing.")] = "50",
    seed: Annotated[int, options.seed("Of the generated images.", min=0)] = 0,
    out: Annotated[
        Path | None,
        options.out("For classes and depth: a sheet of the results.", metavar="FILE"),
    ] = None,
    scale: Annotated[
        float | None,
        option(
            "--scale", "-s", panel=GUIDES, metavar="NUMBER",
            help="For classes and depth; default: the guide's own.",
        ),
    ] = None,
    recipe: Annotated[
        str,
        option(
            "--recipe", "-r", panel=GUIDES, metavar="NAME[:KEY=VALUE,...]",
            autocompletion=complete.of("recipe"), help="For classes and depth.",
        ),
    ] = "x0",
    experts: Annotated[
        str | None,
        option(
            "--experts", "-e", panel=GUIDES, metavar="NAME|FILE|FOLDER|none",
            autocompletion=complete.of("expert set"),
            help="Of the guide; default: one that fits.",
        ),
    ] = None,
    checkpoint: Annotated[
        str | None,
        option(
            "--checkpoint", panel=MODEL, metavar="FILE|FOLDER",
            help="Another training of the backbone.",
        ),
    ] = None,
    cfg: Annotated[
        float, option("--cfg", panel=MODEL, metavar="NUMBER", help="For prompts and frechet.")
    ] = 2.0,
    sampler: Annotated[
        str,
        option(
            "--sampler", panel=SAMPLING, metavar="NAME", autocompletion=complete.samplers,
            help=SAMPLERS,
        ),
    ] = "ddim",
    open_it: OpenIt = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Measure with judges: prompts (class accuracy), frechet (distance to renders), and guidance by
    the classifier (classes) or by depth.
    """
    if what not in _KNOWN:
        raise unknown_name("measure", what, _KNOWN)
    if open_it and out is None:
        raise OptionError("--open shows a sheet, and there is none.", remedy="Add --out FILE.")
    with progress_bar() as watch:
        watch("loading libraries", 0, 1)
        from ppap_host.files.images import contact_sheet, from_tensor
        from ppap_host.files.writing import write_png
        from ppap_host.plugins.registry import registry
        from ppap_host.runs.choice import choose
        from ppap_host.runs.config import GuideConfig
        from ppap_host.sampling.solvers import make_solver
        from ppap_host.shapes.backbone import ShapesBackbone
        from ppap_plugin_bench import shapes as measures

        backbone = ShapesBackbone(checkpoint)
        solver = make_solver(sampler, 0.0, backbone)
        settings = measures.Settings(steps=spacing(steps), cfg=cfg, seed=seed)
        if what == "prompts":
            outcome = measures.prompt_accuracy(backbone, solver, settings, num, watch)
        elif what == "frechet":
            outcome = measures.frechet(backbone, solver, settings, num, watch)
        else:
            found = registry()
            name = "depth" if what == "depth" else "classifier"
            guide = found.load("guide", name)()
            asked = GuideConfig(name, "", experts=experts)
            chosen = choose(asked, recipe, guide, backbone, backbone.walk(steps), found)
            strength = guide.usual_scale(chosen.recipe.name) if scale is None else scale
            measure = measures.depth_error if what == "depth" else measures.class_accuracy
            outcome = measure(
                backbone, solver, settings, chosen.guide, chosen.recipe, strength, num, watch
            )
            outcome["experts"] = chosen.experts
            shown = [("guided", outcome.pop("made"))]
            if what == "depth":
                shown.insert(0, ("targets", outcome.pop("targets")))
            if out is not None:
                rows = []
                for i in range(0, min(len(shown[0][1]), 48), 8):
                    for title, x in shown:
                        rows.append((title, [("", p) for p in from_tensor(x[i : i + 8])]))
                write_png(out, contact_sheet(rows, cell=128))
    outcome |= {"steps": steps, "sampler": sampler, "seed": seed}
    if as_json:
        print_json(outcome)
    else:
        cells = [(key.replace("_", " "), _shown(value)) for key, value in outcome.items()]
        show_table([Column(""), Column("", prose=True)], cells, f"{what}, judged")
        if out is not None and out.exists():
            tell_path("Sheet", out)
    if open_it and out is not None and out.exists():
        open_file(out)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


app = Application()
app.command()(evaluate)
