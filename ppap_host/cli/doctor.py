"""``ppap doctor``: is this environment fit, and if not, what to do."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from ppap_host.cli.output import for_people, print_json


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check torch, devices, plugins and write access; say what to do about each finding.

    Exit code 1 if there is a problem.
    """
    from ppap_host.cli.run import DEFAULT_OUT
    from ppap_host.plugins.registry import registry
    from ppap_host.runs.doctor import examine

    findings = list(examine(registry(), DEFAULT_OUT.absolute()))
    if not for_people(as_json):
        print_json([dataclasses.asdict(f) for f in findings])
    else:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        marks = {
            "ok": "[green]ok[/]",
            "warning": "[yellow]warning[/]",
            "problem": "[red]problem[/]",
        }
        table = Table(show_lines=False)
        for column in ("", "what", "found"):
            table.add_column(column)
        for f in findings:
            detail = escape(f.detail) + (f"\n[bold]{escape(f.remedy)}[/]" if f.remedy else "")
            table.add_row(marks[f.status], escape(f.topic), detail)
        Console().print(table)
    if any(f.status == "problem" for f in findings):
        raise typer.Exit(1)
