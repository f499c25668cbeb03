"""``ppap rerun``: make the images of a record again and compare."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from ppap_host.cli.output import for_people, print_json, stderr


def rerun(
    file: Annotated[Path, typer.Argument(help="run.json, a run's folder, or one of its PNGs.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Keep the new images in this folder.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Make the images of a record again and say whether they are the same, byte for byte.

    Exit code 0: the same. 1: different, with what changed since.
    """
    from ppap_host.cli.run import execute
    from ppap_host.files.offline import nothing_fetched
    from ppap_host.runs.record import differences, read_record
    from ppap_host.runs.script import from_record

    before = read_record(file)
    settings, moved = from_record(before, file)
    with tempfile.TemporaryDirectory(prefix="ppap-rerun-") as scratch:
        folder = out if out is not None else Path(scratch) / "run"
        with nothing_fetched(str(file)):
            result = execute(settings, folder, moved)
    made = {e["index"]: e["pixels_sha256"] for e in result.record["images"]}
    expected = {e["index"]: e["pixels_sha256"] for e in before["images"]}
    changed = sorted(k for k, digest in expected.items() if made.get(k) != digest)
    reasons = differences(before, result.record)
    outcome: dict[str, Any] = {
        "identical": not changed,
        "images": len(expected),
        "changed": changed,
        "differences": reasons,
        "folder": str(out) if out is not None else None,
    }
    if not for_people(as_json):
        print_json(outcome)
    else:
        _tell(outcome)
    raise typer.Exit(1 if changed else 0)


def _tell(outcome: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console()
    if outcome["identical"]:
        console.print(f"The same, byte for byte: {outcome['images']} images.", style="green")
    else:
        count = len(outcome["changed"])
        console.print(f"Different: {count} of {outcome['images']} images.", style="red")
        if not outcome["differences"]:
            stderr().print("Nothing that the record knows of has changed.")
    for reason in outcome["differences"]:
        console.print(f"  {reason}")
