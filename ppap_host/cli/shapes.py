"""``ppap shapes``: the built-in world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The built-in world: rooms with coloured solids.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """The built-in world: rooms with coloured solids."""


@app.command()
def render(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    num: Annotated[int, typer.Option("--num", "-n", min=1, help="Scenes to render.")] = 16,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Scene k depends on seed and k.")] = 0,
    size: Annotated[int, typer.Option("--size", min=16, max=2048, help="Side in pixels.")] = 64,
) -> None:
    """Render labelled scenes: RGB, depth, segmentation, class and caption.

    Writes k.png (RGB), k-depth.png (16 bit, millimetres), k-segmentation.png (indices), a contact
    sheet, and scenes.json with labels, captions and what the indices mean.
    """
    from ppap_host.cli.run import progress_bar
    from ppap_host.shapes.export import render_scenes

    with progress_bar() as watch:
        render_scenes(out, seed, num, size, watch)
