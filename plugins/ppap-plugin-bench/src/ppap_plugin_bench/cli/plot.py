"""``ppap plot``: pictures of what other commands have written as numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ppap_host.cli.output import stderr
from ppap_host.files.errors import RecordError


def plot(
    folder: Annotated[Path, typer.Argument(help="What `ppap tune` wrote.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="PNG to write. [default: in the folder]")
    ] = None,
) -> None:
    """Draw how a tuning went: held-out distance by step, and before and after by noise range."""
    from ppap_plugin_bench.plots import plot_tuning

    file = folder / "tuning.json" if folder.is_dir() else folder
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        path = out or file.with_suffix(".png")
        plot_tuning(record, path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(
            f"{str(file)!r} is no record of a tuning ({type(error).__name__}).",
            remedy="Give the folder that `ppap tune` wrote.",
        ) from None
    stderr().print(f"Look at {path}", markup=False, soft_wrap=True)


app = typer.Typer()
app.command()(plot)
