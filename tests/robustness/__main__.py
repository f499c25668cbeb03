"""``python -m robustness [--kind N ...] [--write FILE] [--jobs N]``: all cases, and their table."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from robustness.cases import KINDS, Verdict, all_cases
from robustness.running import run_all

_HEAVY = (
    "torch", "ppap_host.cli", "ppap_host.runs.run", "ppap_host.runs.script",
    "ppap_host.runs.harvesting", "ppap_host.experts.tuning", "ppap_host.experts.calibration",
    "ppap_host.shapes.backbone", "diffusers", "ppap_plugin_bench.plots",
    "ppap_plugin_bench.search", "ppap_plugin_bench.calibration", "ppap_plugin_classifier.guide",
    "matplotlib.figure", "matplotlib.backends.backend_agg", "rich.console", "rich.table",
    "rich.progress", "filelock", "optuna",
)  # fmt: skip
_BEGIN, _END = "<!-- robustness: begin -->", "<!-- robustness: end -->"


def main() -> int:
    """Runs the cases; 1 if one went wrong."""
    parser = argparse.ArgumentParser(prog="robustness", description=__doc__)
    parser.add_argument("--kind", type=int, action="append", default=[], help="Only this kind.")
    parser.add_argument("--write", type=Path, help="Page whose rows are to be renewed.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="Cases at once.")
    options = parser.parse_args()
    began = time.monotonic()
    import torch

    torch.set_num_threads(1)
    import_all()

    def told(verdict: Verdict) -> None:
        if not verdict.well:
            wrong = {
                "executed": verdict.executed, "traceback": verdict.traceback,
                "hang": verdict.hang, "lost": verdict.lost, "not as said": verdict.unsaid,
            }  # fmt: skip
            shown = "; ".join(f"{key}: {value}" for key, value in wrong.items() if value)
            print(f"kind {verdict.case.kind}, {verdict.case.name}: {shown}", flush=True)

    verdicts = run_all(all_cases(options.kind), told, options.jobs)
    rows = rows_of(verdicts)
    print(table(rows))
    wrong = sum(not verdict.well for verdict in verdicts)
    slowest = max(verdicts, key=lambda v: v.seconds, default=None)
    if slowest is not None:
        print(f"slowest: {slowest.case.name}, {slowest.seconds:.1f} s")
    print(f"{len(verdicts) - wrong} passed, {wrong} failed in {time.monotonic() - began:.0f} s")
    if options.write is not None and not wrong:
        page = options.write.read_text(encoding="utf-8")
        before, rest = page.split(_BEGIN)
        kept, after = rest.split(_END)
        there = {int(n): row for row, n in re.findall(r"^(\| (\d+) \|.*)$", kept, re.MULTILINE)}
        text = table({**there, **rows})
        options.write.write_text(f"{before}{_BEGIN}\n{text}{_END}{after}", encoding="utf-8")
    return int(wrong > 0)


def import_all() -> None:
    """Imports what any case may need, once for all that are forked."""
    for name in _HEAVY:
        importlib.import_module(name)
    from ppap_host.plugins.registry import registry

    registry()


def rows_of(verdicts: Sequence[Verdict]) -> dict[int, str]:
    """A row for each kind that was run, as Markdown."""
    rows = {}
    for kind, what in KINDS.items():
        of = [verdict for verdict in verdicts if verdict.case.kind == kind]
        counts = [
            sum(bool(getattr(v, key)) for v in of)
            for key in ("executed", "traceback", "hang", "lost", "unsaid")
        ]
        if of:
            inputs = sum(verdict.case.inputs for verdict in of)
            rows[kind] = f"| {kind} | {what} | {inputs} | {' | '.join(map(str, counts))} |"
    return rows


def table(rows: Mapping[int, str]) -> str:
    """All rows under their heads."""
    head = "| kind | what | inputs | executed | tracebacks | hangs | lost | not as said |"
    return "\n".join([head, "|---" * 8 + "|", *(rows[k] for k in sorted(rows))]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
