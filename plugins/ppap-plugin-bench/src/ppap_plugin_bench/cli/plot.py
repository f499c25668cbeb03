"""``ppap plot``: pictures of what other commands have written as numbers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ppap_host.cli import options
from ppap_host.cli.checks import check_picture
from ppap_host.cli.help import Application
from ppap_host.cli.options import OpenIt
from ppap_host.cli.output import open_file, tell_path
from ppap_host.cli.progress import progress_bar


def plot(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER|FILE", help="What `ppap tune` wrote.")
    ],
    out: Annotated[
        Path | None,
        options.out(
            "PNG to write. [default: in the folder]", panel=options.RESULTS, metavar="FILE"
        ),
    ] = None,
    open_it: OpenIt = False,
) -> None:  # fmt: skip
    """Draw how a tuning went: held-out distance by step, and before and after by noise range."""
    if out is not None:
        check_picture(out)
    with progress_bar() as watch:
        watch("drawing", 0, 1)
        from ppap_host.experts.tuning import RECORD, read_record
        from ppap_plugin_bench.plots import plot_tuning

        record = read_record(folder)
        path = out or (folder / RECORD if os.path.isdir(folder) else folder).with_suffix(".png")
        plot_tuning(record, path)
    tell_path("Plot", path)
    if open_it:
        open_file(path)


app = Application()
app.command()(plot)
