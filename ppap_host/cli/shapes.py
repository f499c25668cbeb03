"""``ppap shapes``: the built-in world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ppap_host.cli import options
from ppap_host.cli.help import Application
from ppap_host.cli.options import AsJson, OpenIt, option
from ppap_host.cli.output import counted, open_file, print_json, tell_path
from ppap_host.cli.progress import progress_bar

app = Application("The built-in world: rooms with coloured solids.")


@app.command()
def render(
    out: Annotated[Path, options.out("Folder to write.")],
    num: Annotated[int, options.num("Scenes to render.", min=1, max=100_000_000)] = 16,
    seed: Annotated[int, option("Scene k depends on seed and k.", min=0)] = 0,
    size: Annotated[int, option("Of a side.", metavar="PIXELS", min=16, max=2048)] = 64,
    open_it: OpenIt = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Render labelled scenes: RGB, depth, segmentation, class and caption.

    Writes k.png (RGB), k-depth.png (16 bit, millimetres), k-segmentation.png (indices), a contact
    sheet, and scenes.json with labels, captions and what the indices mean.
    """
    with progress_bar() as watch:
        watch("loading libraries", 0, 1)
        from ppap_host.shapes.export import render_scenes

        render_scenes(out, seed, num, size, watch)
    if as_json:
        print_json({"folder": str(out), "scenes": num})
    else:
        tell_path(counted(num, "scene"), out)
        tell_path("Sheet", out / "sheet.png")
    if open_it:
        open_file(out / "sheet.png")
