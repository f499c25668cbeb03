"""``ppap list``: what can be named on the command line."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ppap_host.cli.output import for_people, print_json


def list_everything(
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """List guides, backbones, recipes, expert sets, samplers, plugins and their commands."""
    from ppap_host.plugins.entry_points import OWN_COMMANDS, owner, plugin_commands
    from ppap_host.plugins.plugin import HOOKS
    from ppap_host.plugins.registry import registry
    from ppap_host.sampling.names import SAMPLER_SUMMARIES

    found = registry()
    things: dict[str, Any] = {}
    for kind in HOOKS:
        things[kind] = [
            {
                "name": name,
                "summary": claims[0][1].summary
                if len(claims) == 1
                else "unusable: claimed by several plugins",
                "from": [plugin.label for plugin, _ in claims],
            }
            for name, claims in found.names(kind).items()
        ]
    things["sampler"] = [
        {"name": name, "summary": summary, "from": [found.plugins[0].label]}
        for name, summary in SAMPLER_SUMMARIES.items()
    ]
    things["command"] = [
        {
            "name": name,
            "summary": f"`ppap {name} --help`"
            if len(points) == 1 and name not in OWN_COMMANDS
            else "unusable: claimed by several plugins",
            "from": [owner(point) for point in points],
        }
        for name, points in plugin_commands().items()
    ]
    plugins = [
        {
            "name": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "status": plugin.status,
            "reason": plugin.problem or plugin.warning or "",
        }
        for plugin in found.plugins
    ]
    if not for_people(as_json):
        print_json(things | {"plugin": plugins})
        return
    _show(things, plugins)


def _show(things: dict[str, Any], plugins: list[dict[str, str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for kind, rows in things.items():
        table = Table("name", "what it is", "from", title=f"{kind}s", title_justify="left")
        for row in rows:
            cells = (row["name"], row["summary"], " and ".join(row["from"]))
            table.add_row(*map(escape, cells))
        if rows:
            console.print(table)
        else:
            console.print(f"no {kind}s installed", style="dim")
    table = Table(
        "name", "distribution", "version", "status", title="plugins", title_justify="left"
    )
    colours = {
        "ok": "green", "warning": "yellow", "slow": "yellow", "left out": "dim", "broken": "red"
    }  # fmt: skip
    for plugin in plugins:
        status = f"[{colours[plugin['status']]}]{plugin['status']}[/]"
        reason = f"  {escape(plugin['reason'])}" if plugin["reason"] else ""
        cells = (plugin["name"], plugin["distribution"], plugin["version"])
        table.add_row(*map(escape, cells), status + reason)
    console.print(table)
