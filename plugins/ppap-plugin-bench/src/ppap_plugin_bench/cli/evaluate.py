"""``ppap shapes evaluate``: the built-in world, judged."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    what: Annotated[str, typer.Argument(help="prompts, frechet, classes or depth.")],
    num: Annotated[
        int,
        typer.Option(
            "--num", "-n", min=1, help="Images; for prompts and classes: images of each class."
        ),
    ] = 32,
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="For classes and depth.")] = "x0",
    scale: Annotated[
        float | None, typer.Option("--scale", "-s", help="For classes and depth.")
    ] = None,
    steps: Annotated[str, typer.Option("--steps", help="Steps or a spacing.")] = "50",
    sampler: Annotated[str, typer.Option("--sampler", help="ddim, ddpm, dpm++ or heun.")] = "ddim",
    cfg: Annotated[float, typer.Option("--cfg", help="For prompts and frechet.")] = 2.0,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the generated images.")] = 0,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", help="Another training of the backbone.")
    ] = None,
    experts: Annotated[
        str | None, typer.Option("--experts", "-e", help="Of the guide; default: one that fits.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="For classes and depth: a sheet of the results."),
    ] = None,
) -> None:
    """Measure with judges: prompts (class accuracy), frechet (distance to renders), and guidance by
    the classifier (classes) or by depth.

    The outcome is printed as JSON.
    """
    from ppap_host.cli.output import print_json
    from ppap_host.cli.run import progress_bar
    from ppap_host.files.errors import unknown_name
    from ppap_host.files.images import contact_sheet, from_tensor
    from ppap_host.files.writing import write_png
    from ppap_host.plugins.registry import registry
    from ppap_host.runs.choice import choose
    from ppap_host.runs.config import GuideConfig
    from ppap_host.sampling.solvers import make_solver
    from ppap_host.shapes.backbone import ShapesBackbone
    from ppap_plugin_bench import shapes as measures

    known = ("prompts", "frechet", "classes", "depth")
    if what not in known:
        raise unknown_name("measure", what, known)
    backbone = ShapesBackbone(checkpoint)
    solver = make_solver(sampler, 0.0, backbone)
    settings = measures.Settings(steps=steps, cfg=cfg, seed=seed)
    with progress_bar() as watch:
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
    print_json(outcome | {"steps": steps, "sampler": sampler, "seed": seed})


app = typer.Typer()
app.command()(evaluate)
