"""``ppap doctor``: is this environment fit, and if not, what to do."""

from __future__ import annotations

import dataclasses

import typer

from ppap_host.cli.options import AsJson
from ppap_host.cli.output import Part, print_json
from ppap_host.cli.progress import progress_bar
from ppap_host.cli.tables import Column, show_table

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def doctor(as_json: AsJson = False) -> None:
    """Check torch, devices, plugins and write access; say what to do about each finding.

    Exit code 1 if there is a problem.
    """
    from ppap_host.cli.run import DEFAULT_OUT
    from ppap_host.plugins.registry import registry
    from ppap_host.runs.doctor import examine

    findings = []
    with progress_bar() as watch:
        watch("looking at plugins, libraries and devices", 0, 1)
        for finding in examine(registry(), DEFAULT_OUT):
            findings.append(finding)
            watch(f"looked at {finding.topic}", 0, 1)
    if as_json:
        print_json([dataclasses.asdict(f) for f in findings])
    else:
        rows: list[tuple[str | Part, ...]] = []
        for f in findings:
            rows.append(((f.status, _STYLES[f.status]), f.topic, f.detail))
            if f.remedy:
                rows.append(("", "", (f"→ {f.remedy}", "bold")))
        columns = [Column(""), Column("what", prose=True), Column("found", prose=True)]
        show_table(columns, rows)
    if any(f.status == "problem" for f in findings):
        raise typer.Exit(1)
