"""``ppap plot``: pictures of what other commands have written as numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ppap_host.cli.output import stderr


def plot(
    folder: Annotated[Path, typer.Argument(help="What `ppap tune` wrote.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="PNG to write. [default: in the folder]")
    ] = None,
) -> None:
    """Draw how a tuning went: held-out distance by step, and before and after by noise range."""
    from ppap_host.experts.tuning import RECORD, read_record
    from ppap_plugin_bench.plots import plot_tuning

    record = read_record(folder)
    path = out or (folder / RECORD if folder.is_dir() else folder).with_suffix(".png")
    plot_tuning(record, path)
    stderr().print(f"Look at {path}", markup=False, soft_wrap=True)


app = typer.Typer()
app.command()(plot)
