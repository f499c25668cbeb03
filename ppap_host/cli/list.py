"""``ppap list``: what can be named on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppap_host.cli import complete
from ppap_host.cli.options import AsJson
from ppap_host.cli.output import Part, print_json, tell
from ppap_host.cli.tables import Cell, Column, show_table
from ppap_host.files.errors import unknown_name

if TYPE_CHECKING:
    from ppap_host.plugins.registry import Registry

KINDS = {
    "guides": "guide", "backbones": "backbone", "recipes": "recipe", "experts": "expert set",
    "samplers": "sampler", "balances": "balance", "weights": "published file",
    "commands": "command", "plugins": "plugin",
}  # fmt: skip
"""What can be listed by itself -> what one of them is called."""

_COLOURS = {
    "ok": "green", "warning": "yellow", "slow": "yellow", "left out": "dim", "broken": "red"
}  # fmt: skip
_UNUSABLE = "unusable: claimed by several plugins"


def list_everything(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND", autocompletion=complete.among(KINDS),
            help=f"{', '.join(list(KINDS)[:-1])} or plugins. [default: all]",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """List guides, backbones, recipes, expert sets, samplers, plugins and their commands.

    ppap list guides
    """
    from ppap_host.plugins.registry import registry

    if what is not None and what not in KINDS:
        singular = {one: several for several, one in KINDS.items()} | {"expert": "experts"}
        if what not in singular:
            raise unknown_name("kind", what, KINDS)
        what = singular[what]
    things = _things(registry())
    wanted = {kind: things[kind] for name, kind in KINDS.items() if what in (None, name)}
    if as_json:
        print_json(wanted if what is None else wanted[KINDS[what]])
        return
    for number, (kind, rows) in enumerate(wanted.items()):
        if number:
            tell("")
        if not rows:
            tell((f"no {kind}s installed", "dim"))
        elif kind == "plugin":
            _show_plugins(rows)
        else:
            cells = [(row["name"], row["summary"], " and ".join(row["from"])) for row in rows]
            columns = [Column("name"), Column("what it is", prose=True), Column("from", prose=True)]
            show_table(columns, cells, f"{kind}s")


def _things(found: Registry) -> dict[str, list[dict[str, Any]]]:
    """All that can be named, by what it is called."""
    from ppap_host.plugins.entry_points import OWN_COMMANDS, owner, plugin_commands
    from ppap_host.plugins.plugin import HOOKS
    from ppap_host.sampling.names import BALANCE_SUMMARIES

    claims: dict[str, dict[str, Any]] = {kind: found.names(kind) for kind in HOOKS}
    claims["published file"] = found.published_files()
    things: dict[str, list[dict[str, Any]]] = {
        kind: [
            {
                "name": name,
                "summary": of[0][1].summary if len(of) == 1 else _UNUSABLE,
                "from": [plugin.label for plugin, _ in of],
            }
            for name, of in names.items()
        ]
        for kind, names in claims.items()
    }
    things["balance"] = [
        {"name": name, "summary": summary, "from": [found.plugins[0].label]}
        for name, summary in BALANCE_SUMMARIES.items()
    ]
    things["command"] = [
        {
            "name": name,
            "summary": f"`ppap {name.replace('.', ' ')} --help`"
            if len(points) == 1 and name not in OWN_COMMANDS
            else _UNUSABLE,
            "from": [owner(point) for point in points],
        }
        for name, points in plugin_commands().items()
    ]
    things["plugin"] = [
        {
            "name": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "status": plugin.status,
            "reason": plugin.problem or plugin.warning or "",
        }
        for plugin in found.plugins
    ]
    return things


def _show_plugins(rows: list[dict[str, str]]) -> None:
    cells: list[tuple[Cell, ...]] = []
    for row in rows:
        status: Part = (row["status"], _COLOURS[row["status"]])
        of = f"{row['distribution']} {row['version']}".strip()
        cells.append((row["name"], of, status, row["reason"]))
    columns = [Column("name"), Column("from", prose=True), Column("status")]
    if any(row["reason"] for row in rows):
        columns.append(Column("why", prose=True))
    show_table(columns, [row[: len(columns)] for row in cells], "plugins")
