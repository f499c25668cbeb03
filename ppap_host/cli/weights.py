"""``ppap weights``: published files of weights, what is known of them, and fetching them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppap_host.cli import complete, options
from ppap_host.cli.options import RESULTS, AsJson, option
from ppap_host.cli.output import print_json, print_path, remark, tell
from ppap_host.cli.progress import progress_bar
from ppap_host.cli.surroundings import INTERRUPTED
from ppap_host.cli.tables import Column, show_table

if TYPE_CHECKING:
    from ppap_host.files.weights import PublishedFile


def weights(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", autocompletion=complete.weights,
            help="Of a file; leave it out for a table of all files.",
        ),
    ] = None,
    show: Annotated[
        bool, option("Say what is known of the file; fetch nothing.", "--show", panel=RESULTS)
    ] = False,
    out: Annotated[
        Path | None,
        options.out("Folder of the files. [default: ppap's data folder]", panel=RESULTS),
    ] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """List published files of weights, or fetch one, verify it and print its path.

    A download that was cut goes on where it was. What is there already is only verified. The path
    is all that goes to standard output, so that a command can take it:

    ppap run -b adm-256-uncond --checkpoint "$(ppap weights adm-256-uncond)"
    """
    from ppap_host.files.weights import Record
    from ppap_host.plugins.registry import registry

    if name is None:
        _list(out, as_json)
        return
    file = registry().published(name)
    folder = _folder(file, out)
    facts = _facts(file, folder)
    if show:
        if as_json:
            print_json(facts)
        else:
            for line in _told(facts):
                tell(line)
        return
    if not as_json:
        for line in _told(facts):
            remark(line, "")
    path = _fetch(file, folder)
    if as_json:
        print_json(_facts(file, folder))
        return
    record = Record.beside(path)
    if record is not None:
        checked = ", ".join(record.checked) or "nothing: nobody has published what to compare with"
        remark(f"SHA-256 {record.sha256}; compared with: {checked}")
    print_path(path)


def _fetch(file: PublishedFile, folder: Path) -> Path:
    """Fetches with progress; an interrupted download says what it kept and exits with 130."""
    from ppap_host.files import weights as published

    try:
        with progress_bar() as watch:
            return published.fetch(file, folder, watch)
    except KeyboardInterrupt:
        kept = published.amount(published.unfinished(file, folder))
        remark(
            f"Interrupted: {kept} in {published.part_file(file, folder)}; "
            "the same command goes on from there.",
            "yellow",
        )
        raise typer.Exit(INTERRUPTED) from None


def _folder(file: PublishedFile, out: Path | None) -> Path:
    from ppap_host.files.weights import default_folder

    return default_folder(file) if out is None else out


def _facts(file: PublishedFile, folder: Path) -> dict[str, Any]:
    """What is known of a file, for programs."""
    from ppap_host.files.weights import Record, stored, unfinished

    path = stored(file, folder)
    record = Record.beside(path) if path is not None else None
    return {
        "name": file.name,
        "summary": file.summary,
        "url": file.url,
        "file": file.file,
        "size": file.size,
        "sha256": file.sha256,
        "licence": file.licence,
        "folder": str(folder),
        "path": None if path is None else str(path),
        "unfinished": unfinished(file, folder),
        "found": None
        if record is None
        else {"size": record.size, "sha256": record.sha256, "checked": list(record.checked)},
    }


def _told(facts: dict[str, Any]) -> list[str]:
    """The same for people, in lines."""
    from ppap_host.files.weights import amount

    size = facts["size"]
    rows = {
        "name": f"{facts['name']}: {facts['summary']}",
        "URL": facts["url"],
        "file": facts["file"],
        "size": "unknown" if size is None else f"{size:,} bytes ({amount(size)})",
        "SHA-256": facts["sha256"] or "not published",
        "licence": facts["licence"],
        "kept as": str(Path(facts["folder"]) / facts["file"]),
        "fetched": _state(facts),
    }
    return [f"{title:<8} {value}" for title, value in rows.items()]


def _state(facts: dict[str, Any]) -> str:
    """Whether it is there, in a word or two."""
    from ppap_host.files.weights import amount

    if facts["path"] is not None:
        return "yes"
    part: int = facts["unfinished"]
    if not part:
        return "no"
    return f"{part / facts['size']:.0%}" if facts["size"] else amount(part)


def _list(out: Path | None, as_json: bool) -> None:
    from ppap_host.plugins.registry import registry

    rows = []
    for name, claims in registry().published_files().items():
        labels = [plugin.label for plugin, _ in claims]
        if len(claims) == 1:
            (_, file), *_ = claims
            rows.append(_facts(file, _folder(file, out)) | {"from": labels})
        else:
            unusable = "unusable: claimed by several plugins"
            rows.append({"name": name, "summary": unusable, "from": labels})
    if as_json:
        print_json(rows)
    else:
        _show(rows)


def _show(rows: list[dict[str, Any]]) -> None:
    from ppap_host.files.weights import amount

    if not rows:
        tell(("no plugin that is installed declares published files", "dim"))
        return
    cells = []
    for row in rows:
        what, size, licence, state = row["summary"], "", "", ""
        if "url" in row:
            size = "?" if row["size"] is None else amount(row["size"])
            licence, state = row["licence"], _state(row)
        else:
            what += f" ({' and '.join(row['from'])})"
        cells.append((row["name"], what, size, licence, state))
    columns = [
        Column("name"), Column("what it is for", prose=True), Column("size", number=True),
        Column("licence", prose=True), Column("fetched"),
    ]  # fmt: skip
    show_table(columns, cells, "published files")
