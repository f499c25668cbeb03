"""``ppap rerun``: make the images of a record again and compare."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ppap_host.cli import options
from ppap_host.cli.options import AsJson, OpenIt, option
from ppap_host.cli.output import counted, open_file, print_json, remark, tell, tell_path
from ppap_host.files.errors import OptionError, OutputError, RecordError
from ppap_host.files.reading import require_regular


def rerun(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|FOLDER", help="run.json, a run's folder, or one of its PNGs."
        ),
    ],
    out: Annotated[
        Path | None, options.out("Keep the new images in this folder.", panel=options.RESULTS)
    ] = None,
    guide: Annotated[list[str] | None, option(
        "Code that the record names and that you have looked at: it may run. Repeatable.",
        "--guide", "-g", panel=options.RESULTS, metavar="FILE.py:NAME",
    )] = None,
    open_it: OpenIt = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Make the images of a record again and say whether they are the same, byte for byte.

    Exit code 0: the same. 1: different, with what changed since.
    """
    if open_it and out is None:
        raise OptionError(
            "--open shows the sheet of the new images, and they are not kept.",
            remedy="Add a folder for them with --out.",
        )
    record = file / "run.json" if os.path.isdir(file) else file
    remedy = "Give a run.json, the folder of a run, or an image that `ppap run` wrote."
    require_regular(record, RecordError, remedy)
    from ppap_host.cli.run import execute
    from ppap_host.files.offline import nothing_fetched
    from ppap_host.runs.record import differences, read_record
    from ppap_host.runs.script import from_record

    before = read_record(file)
    settings, moved = from_record(before, file, code=guide or [])
    with nothing_fetched(str(file)):
        if out is not None:
            result = execute(settings, out, moved)
        else:
            with _scratch() as folder:
                result = execute(settings, folder / "run", moved)
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
    if as_json:
        print_json(outcome)
    else:
        _tell(outcome)
        if out is not None:
            tell_path("Sheet", out / "sheet.png")
    if open_it and out is not None:
        open_file(out / "sheet.png")
    raise typer.Exit(1 if changed else 0)


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for images that are only compared.

    Raises:
        OutputError: there is no place for one.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="ppap-rerun-", ignore_cleanup_errors=True)
    except OSError as error:
        raise OutputError(
            f"There is no folder for temporary files ({error.strerror or error}).",
            remedy="Name one in the variable TMPDIR, or a folder for the new images with --out.",
        ) from None
    with folder as name:
        yield Path(name)


def _tell(outcome: dict[str, Any]) -> None:
    if outcome["identical"]:
        tell((f"The same, byte for byte: {counted(outcome['images'], 'image')}.", "green"))
    else:
        count = len(outcome["changed"])
        tell((f"Different: {count} of {counted(outcome['images'], 'image')}.", "red"))
        if not outcome["differences"]:
            remark("Nothing that the record knows of has changed.", "")
    for reason in outcome["differences"]:
        tell(f"  {reason}")
