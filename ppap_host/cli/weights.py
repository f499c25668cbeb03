"""``ppap weights``: published files of weights, what is known of them, and fetching them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppap_host.cli.output import for_people, print_json, stderr

if TYPE_CHECKING:
    from ppap_host.files.weights import PublishedFile

_WIDE = 110
"""Columns of a terminal from which on names and what they are for stand side by side."""


def weights(
    name: Annotated[
        str | None, typer.Argument(help="Of a file; leave it out for a table of all files.")
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Say what is known of the file; fetch nothing.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the files. [default: ppap's data folder]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
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
        if for_people(as_json):
            _tell(facts, error=False)
        else:
            print_json(facts)
        return
    if not as_json:
        _tell(facts, error=True)
    path = _fetch(file, folder)
    if as_json:
        print_json(_facts(file, folder))
        return
    record = Record.beside(path)
    if record is not None:
        checked = ", ".join(record.checked) or "nothing: nobody has published what to compare with"
        _say(f"SHA-256 {record.sha256}; compared with: {checked}", "dim")
    print(path)


def _fetch(file: PublishedFile, folder: Path) -> Path:
    """Fetches with a progress bar; an interrupted one says what it kept and exits with 130."""
    from ppap_host.cli.run import progress_bar
    from ppap_host.files import weights as published

    try:
        with progress_bar() as watch:
            return published.fetch(file, folder, watch)
    except KeyboardInterrupt:
        kept = published.amount(published.unfinished(file, folder))
        _say(
            f"Interrupted: {kept} in {published.part_file(file, folder)}; "
            "the same command goes on from there.",
            "yellow",
        )
        raise typer.Exit(130) from None


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


def _tell(facts: dict[str, Any], *, error: bool) -> None:
    """The same for people."""
    from rich.console import Console
    from rich.text import Text

    from ppap_host.files.weights import amount

    size = facts["size"]
    where = str(Path(facts["folder"]) / facts["file"])
    rows = {
        "name": f"{facts['name']}: {facts['summary']}",
        "URL": facts["url"],
        "file": facts["file"],
        "size": "unknown" if size is None else f"{size:,} bytes ({amount(size)})",
        "SHA-256": facts["sha256"] or "not published",
        "licence": facts["licence"],
        "kept as": where,
        "fetched": _state(facts),
    }
    console = stderr() if error else Console()
    for title, value in rows.items():
        console.print(Text(f"{title:<8} {value}"), soft_wrap=True)


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
    if not for_people(as_json):
        print_json(rows)
        return
    _show(rows)


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from ppap_host.files.weights import amount

    console = Console()
    if not rows:
        console.print("no plugin that is installed declares published files", style="dim")
        return
    narrow = console.width < _WIDE
    table = Table(title="published files", title_justify="left")
    # A name is to be typed: it is never cut.
    table.add_column("name", overflow="fold", min_width=max(len(row["name"]) for row in rows))
    if not narrow:
        table.add_column("what it is for")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("licence")
    table.add_column("fetched", no_wrap=True)
    for row in rows:
        name, what = escape(row["name"]), escape(row["summary"])
        size = licence = state = ""
        if "url" in row:
            size = "?" if row["size"] is None else amount(row["size"])
            licence, state = escape(row["licence"]), _state(row)
        else:
            what = f"{what} ({escape(' and '.join(row['from']))})"
        first = [f"{name}\n  [dim]{what}[/]"] if narrow else [name, what]
        table.add_row(*first, size, licence, state)
    console.print(table)


def _say(text: str, style: str) -> None:
    from rich.text import Text

    stderr().print(Text(text, style=style), soft_wrap=True)
