"""Writes what the documentation takes from the code: ``python docs/generate.py``.

The page of the command line is the help of every command. Into other pages go tables, between
``<!-- generated: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from ppap_host import builtin, recipes
from ppap_host.testing import backbones, guides
from ppap_host.testing import recipes as testing_recipes

DOCS = Path(__file__).parent

COMMANDS = (
    "", "run", "rerun", "list", "doctor",
    "harvest", "tune", "calibrate", "search",
    "experts", "experts show", "experts verify", "experts merge",
    "bench", "bench ppap", "bench elucd", "bench recipes", "bench capacity", "weights",
    "shapes", "shapes render", "shapes evaluate", "plugin", "plugin check", "plugin new",
)  # fmt: skip


def command_line() -> str:
    """The page of the command line."""
    program = shutil.which("ppap", path=str(Path(sys.executable).parent)) or "ppap"
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    parts = [
        "# Command line",
        "",
        "What the commands say of themselves with `--help`. "
        "This page is written by `docs/generate.py`.",
        "",
    ]
    for command in COMMANDS:
        told = subprocess.run(
            [program, *command.split(), "--help"],
            check=True,
            capture_output=True,
            text=True,
            encoding="utf-8",
            env=environment,
        ).stdout
        lines = [line.rstrip() for line in told.strip().splitlines()]
        parts += [f"## {f'ppap {command}'.strip()}", "", "```text", *lines, "```", ""]
    return "\n".join(parts)


def _part(part: object) -> str:
    """A recipe's part as its constructor is written, without what is left at its default."""
    if not dataclasses.is_dataclass(part):
        return f"`{type(part).__name__}`"
    given = [
        f"{f.name}={getattr(part, f.name)!r}"
        for f in dataclasses.fields(part)
        if getattr(part, f.name) != f.default
    ]
    return f"`{type(part).__name__}({', '.join(given)})`"


def _experts(recipe: recipes.Recipe) -> str:
    if recipe.needs_experts:
        return "needed"
    return "if named"


def _guide(recipe: recipes.Recipe) -> str:
    """What is done to the guide itself."""
    told = []
    if math.isfinite(recipe.softplus):
        told.append(f"Softplus({recipe.softplus:g})")
    if (recipe.joint, recipe.marginal) != (1, 1):
        told.append(f"temperatures {recipe.joint:g}, {recipe.marginal:g}")
    return "; ".join(told) or "as it is"


def _setting(recipe: recipes.Recipe, parameter: recipes.Parameter) -> str:
    value = recipe.value(parameter.name)
    shown = {True: "yes", False: "no"}[value] if isinstance(value, bool) else value
    shown = f"{shown:g}" if isinstance(shown, float) else shown
    return f"`{parameter.name}={shown}`"


def recipe_tables() -> str:
    """The named recipes with their parts, and what the parts are."""
    entries = [(entry, entry.load()) for entry in builtin.ppap_recipes()]
    lines = ["| recipe | what it is |", "|---|---|"]
    lines += [f"| `{entry.name}` | {entry.summary} |" for entry, _ in entries]
    lines += ["", "They consist of these parts. A recipe with two rows makes two moves:", ""]
    lines += [
        "| recipe | view | energy | gradient | ascent | place | strength |",
        "|---|---|---|---|---|---|---|",
    ]
    used: dict[str, type] = {}
    for _, recipe in entries:
        for number, move in enumerate(recipe.moves):
            used |= {type(part).__name__: type(part) for part in recipes.parts_of(move)}
            gradient = ", ".join(_part(p) for p in move.gradient) or "as it is"
            parts = (move.view, move.energy, gradient, move.ascent, move.place, move.strength)
            cells = [part if isinstance(part, str) else _part(part) for part in parts]
            lines.append(
                " | ".join([f"| `{recipe.name}`" if not number else "| and", *cells]) + " |"
            )
    lines += [
        "",
        "And these settings, which `--recipe NAME:SETTING=VALUE,...` changes:",
        "",
        "| recipe | the guide | a step is taken | experts | settings |",
        "|---|---|---|---|---|",
    ]
    for _, recipe in entries:
        again = "once" if recipe.recurrence == 1 else f"{recipe.recurrence} times"
        own = ", ".join(_setting(recipe, p) for p in recipe.parameters) or "none of its own"
        lines.append(
            f"| `{recipe.name}` | {_guide(recipe)} | {again} | {_experts(recipe)} | {own} |"
        )
    lines += ["", "| part | what it does |", "|---|---|"]
    for name, kind in used.items():
        first = (inspect.getdoc(kind) or "").split("\n\n")[0]
        told = " ".join(first.split()).replace("|", "\\|")
        lines.append(f"| `{name}` | {told} |")
    return "\n".join(lines)


def elucd_report() -> str:
    """Tables and findings of ``ppap bench elucd``, as its report has them."""
    values = json.loads((DOCS / "results" / "elucd.json").read_text(encoding="utf-8"))
    return str(values["report"]).strip()


def check_tables() -> str:
    """The checks of the conformance kit, and why they are made."""
    lines: list[str] = []
    head = ["| check | what holds | why it matters |", "|---|---|---|"]
    for kind, claims in (
        ("guide", guides.GUIDE.claims),
        ("backbone", backbones.BACKBONE.claims),
        ("recipe", testing_recipes.RECIPE.claims),
    ):
        lines += [f"### Of a {kind}", "", *head]
        lines += [f"| `{claim.name}` | {claim.about} | {claim.why} |" for claim in claims]
        lines.append("")
    return "\n".join(lines).strip()


def bench_report() -> str:
    """What `ppap bench recipes` found, as it told it."""
    report: str = json.loads((DOCS / "results" / "recipes.json").read_text("utf-8"))["report"]
    return report.strip()


TABLES = {
    "checks": check_tables,
    "recipes": recipe_tables,
    "elucd": elucd_report,
    "bench_recipes": bench_report,
}


def with_tables(page: str) -> str:
    """A page with its generated parts written anew."""

    def anew(found: re.Match[str]) -> str:
        return f"{found[1]}\n\n{TABLES[found[2]]()}\n\n<!-- end -->"

    return re.sub(r"(<!-- generated: (\w+) -->)\n.*?<!-- end -->", anew, page, flags=re.DOTALL)


def pages() -> dict[Path, str]:
    """What every page with generated parts should be."""
    found = {DOCS / "cli.md": command_line()}
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if "<!-- generated: " in text:
            found[path] = with_tables(text)
    return found


def main() -> None:
    """Writes the pages that changed."""
    for path, text in pages().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
