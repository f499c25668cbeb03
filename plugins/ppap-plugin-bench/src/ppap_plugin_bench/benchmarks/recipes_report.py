"""The report of ``ppap bench recipes``: one table, a plot of quality against cost, sheets, words.

Every sentence about the outcome is made from the numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ppap_host.files.images import from_tensor, to_unit
from ppap_host.files.writing import csv_text, write_file, write_png
from ppap_plugin_bench.benchmarks.recipes import (
    BUDGETS,
    FLOORS,
    GROUPS,
    UNGUIDED,
    Budget,
    Family,
    Outcome,
    Point,
    TaskResult,
    frontier,
)
from ppap_plugin_bench.benchmarks.report import (
    column,
    json_measures,
    json_number,
    markdown_table,
    shown,
)
from ppap_plugin_bench.evaluation import Measure
from ppap_plugin_bench.plots import COLOURS, new_figure, save_figure

OURS = "ppap"

FAMILIES: dict[Family, tuple[str, str]] = {
    "unguided": ("no guidance", "#5f5f5f"),
    "noised": ("gradient at $x_t$", COLOURS[0]),
    "predicted": ("gradient at the predicted $x_0$", COLOURS[2]),
    "through": ("gradient through the backbone", COLOURS[5]),
}
"""Where gradients are taken, for people, and its colour."""

FAR = 2.0
"""Images whose Frechet distance from renders is more than so many times that of images without
guidance are far from renders: a judge may be pleased by noise."""

SHOWN = 3
"""Targets of each task on a sheet."""

MIB = 2**20


def write_report(outcome: Outcome, out: Path) -> dict[str, Any]:
    """Writes ``recipes.json``, ``.md``, ``.csv`` and ``.png``, and a sheet for each budget.

    Returns:
        What ``recipes.json`` holds.

    Raises:
        OutputError: something cannot be written.
    """
    values = as_values(outcome)
    text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    write_file(out / "recipes.json", text.encode())
    write_file(out / "recipes.md", markdown(outcome).encode())
    write_file(out / "recipes.csv", table_csv(outcome).encode())
    plot(outcome, out / "recipes.png")
    write_png(out / "recipes-sheet.png", sheet(outcome, "evaluations"))
    write_png(out / "recipes-sheet-time.png", sheet(outcome, "time"))
    return values


# Comparisons


def compare(one: Measure, other: Measure, *, higher_is_better: bool) -> int:
    """1 if ``one`` is better by more than two standard errors of the difference, -1 if worse.

    0 if neither can be said. The two are taken for independent, which is cautious: methods share
    their targets and their noise.
    """
    if one.error is None or other.error is None:
        return 0
    difference = one.value - other.value
    if not abs(difference) > 2 * math.hypot(one.error, other.error):
        return 0
    return 1 if (difference > 0) == higher_is_better else -1


@dataclass(frozen=True)
class Standing:
    """How a method stands among all that guide, by the measure that matters.

    Attributes:
        rank: 1 is the best; equal values share a rank.
        among: how many there are.
        best: who has the best value.
        ahead, behind: who is better and worse by more than two standard errors.
        level: all others.
    """

    rank: int
    among: int
    best: str
    ahead: list[str]
    behind: list[str]
    level: list[str]


def is_far(result: TaskResult, point: Point) -> bool:
    """Whether the images of a point are far from renders (:data:`FAR`).

    Never where images are compared with the truth itself, and nothing can please a judge but that.
    """
    plain = result.find(point.budget, UNGUIDED)
    if plain is None or result.name in GROUPS["restoring"]:
        return False
    return point.measures["frechet"].value > FAR * plain.measures["frechet"].value


def guided(result: TaskResult, budget: Budget, *, near: bool = False) -> list[Point]:
    """The points with guidance, the best first; only those ``near`` renders, if that is asked."""
    sign = -1 if result.higher_is_better else 1
    points = [p for p in result.of(budget) if p.method != UNGUIDED]
    points = [p for p in points if not (near and is_far(result, p))]
    return sorted(points, key=lambda p: sign * p.measures[result.objective].value)


def standing(
    result: TaskResult, budget: Budget, method: str, *, near: bool = False
) -> Standing | None:
    """How a method stands on a task, None if it is not there; see :func:`guided`."""
    point, points = result.find(budget, method), guided(result, budget, near=near)
    if not any(p is point for p in points) or point is None:
        return None
    own, higher = point.measures[result.objective], result.higher_is_better
    found: dict[int, list[str]] = {-1: [], 0: [], 1: []}
    for other in points:
        if other is not point:
            theirs = other.measures[result.objective]
            found[compare(own, theirs, higher_is_better=higher)].append(other.method)
    better = [
        p for p in points
        if (p.measures[result.objective].value > own.value) == higher
        and p.measures[result.objective].value != own.value
    ]  # fmt: skip
    return Standing(len(better) + 1, len(points), points[0].method, found[-1], found[1], found[0])


def quality(result: TaskResult, point: Point) -> float:
    """The measure that matters, turned so that higher is better."""
    value = point.measures[result.objective].value
    return value if result.higher_is_better else -value


def on_frontier(result: TaskResult, points: Sequence[Point]) -> list[Point]:
    """Those of the points that nothing cheaper matches, the cheapest first.

    Points far from renders are left out. What two budgets share is there once.
    """
    once = {(p.method, p.steps): p for p in reversed(points) if not is_far(result, p)}
    kept = list(once.values())
    return [kept[i] for i in frontier([(p.seconds, quality(result, p)) for p in kept])]


# Words


def findings(outcome: Outcome) -> str:
    """What was found, in Markdown; nothing in it is known beforehand."""
    lines = []
    for budget, title in BUDGETS.items():
        lines += [f"### {title}", ""]
        lines += [f"- {_about(result, budget)}" for result in outcome.tasks]
        lines += [f"- {text}" for g in GROUPS if (text := _about_distance(outcome, g, budget))]
        lines.append("")
    lines += ["### Cost", ""]
    lines += [f"- {_about_cost(result)}" for result in outcome.tasks]
    lines += ["", "### Where PPAP wins, and where it does not", ""]
    lines += [f"- {text}" for text in _verdict(outcome)]
    return "\n".join(lines) + "\n"


def _names(methods: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in methods) or "none"


def _about(result: TaskResult, budget: Budget) -> str:
    points, name = guided(result, budget), result.objective
    kind = column(name)
    text = f"**{result.title}**, {kind.title} ({'higher' if result.higher_is_better else 'lower'}"
    text += " is better)"
    if not points:
        return f"{text}: no recipe was asked."
    best, plain = points[0], result.find(budget, UNGUIDED)
    text += f": best is `{best.method}` with {shown(name, best.measures[name])}"
    if plain is not None:
        text += f"; without guidance it is {shown(name, plain.measures[name])}"
    far = [p.method for p in points if is_far(result, p)]
    if plain is not None and far:
        text += (
            f". Far from renders, more than {FAR:g} times the Fréchet distance without guidance "
            f"({plain.measures['frechet'].value:.1f}), are {_names(far)}"
        )
        if best.method in far:
            near = guided(result, budget, near=True)
            text += "; of the others, " + (
                f"`{near[0].method}` is best with {shown(name, near[0].measures[name])}"
                if near
                else "there are none"
            )
    ours, stands = result.find(budget, OURS), standing(result, budget, OURS)
    if ours is None or stands is None:
        if OURS in result.absent:
            text += f". PPAP is not there: {result.absent[OURS]}"
        return text.rstrip(".") + "."
    text += (
        f". PPAP has {shown(name, ours.measures[name])}, rank {stands.rank} of {stands.among}. "
        f"Ahead of it by more than two standard errors: {_names(stands.ahead)}; "
        f"behind it: {_names(stands.behind)}; level: {_names(stands.level)}."
    )
    return text


def _about_distance(outcome: Outcome, group: str, budget: Budget) -> str | None:
    found = {m: outcome.pooled[key] for m in outcome.methods
             if (key := (group, budget, m)) in outcome.pooled}  # fmt: skip
    order = sorted((m for m in found if m != UNGUIDED), key=lambda m: found[m].value)
    if not order or math.isnan(found[order[0]].value):
        return None
    tasks = ", ".join(result.title.lower() for result in outcome.group(group))
    text = f"**Fréchet distance** ({tasks}): best is `{order[0]}` with {found[order[0]].value:.2f}"
    if UNGUIDED in found:
        text += f"; without guidance it is {found[UNGUIDED].value:.2f}"
    text += f"; of as many renders {shown('frechet', outcome.floors[group])}"
    if OURS in found:
        text += f". PPAP has {found[OURS].value:.2f}, rank {order.index(OURS) + 1} of {len(order)}"
    return text + "."


def _about_cost(result: TaskResult) -> str:
    points = result.of("evaluations")
    text = f"**{result.title}**: on the frontier of both budgets together are, from the cheapest, "
    every = on_frontier(result, result.points)
    text += ", ".join(
        f"`{p.method}` ({p.steps} steps, {p.seconds:.2f} s, "
        f"{shown(result.objective, p.measures[result.objective])})"
        for p in every
    )
    ours = result.find("evaluations", OURS)
    if ours is not None:
        cheaper = sum(p.cost.ratio < ours.cost.ratio for p in points)
        text += (
            f". A step of `ppap` costs {ours.cost.ratio:.2f} of one of `x0`; {cheaper} of "
            f"{len(points) - 1} others cost less a step"
        )
    return text + "."


def _verdict(outcome: Outcome) -> list[str]:
    """Where PPAP stands among those whose images stay near renders, and among all."""
    places: dict[str, list[str]] = {
        "first": [], "shared": [], "behind": [], "far": [], "fooled": [], "absent": [],
    }  # fmt: skip
    for result in outcome.tasks:
        if result.find("evaluations", OURS) is None:
            if OURS in outcome.methods:
                places["absent"].append(result.title.lower())
            continue
        for budget, title in BUDGETS.items():
            where = f"{result.title.lower()} at {title.lower()}"
            near = standing(result, budget, OURS, near=True)
            every = standing(result, budget, OURS)
            if near is None or every is None:
                places["far"].append(where)
                continue
            if near.ahead:
                places["behind"].append(f"{where} (ahead of it: {_names(near.ahead)})")
            elif near.rank == 1 and not near.level:
                places["first"].append(where)
            else:
                rank = f"rank {near.rank} of {near.among}, level with {_names(near.level)}"
                places["shared"].append(f"{where} ({rank})")
            others = [m for m in every.ahead if m not in near.ahead]
            if others:
                places["fooled"].append(f"{where}: {_names(others)}")
    told = {
        "first": "PPAP wins, two standard errors before all others near renders: ",
        "shared": "Nobody near renders is ahead of PPAP by two standard errors; others are level: ",
        "behind": "PPAP does not win: ",
        "far": "PPAP's own images are far from renders: ",
        "fooled": "Ahead of PPAP by the measure alone, with images far from renders: ",
        "absent": "PPAP has no experts, and cannot take part: ",
    }
    return [told[key] + "; ".join(found) + "." for key, found in places.items() if found]


# Values and tables


def _row(result: TaskResult, point: Point, best: Sequence[Point]) -> dict[str, Any]:
    return {
        "budget": point.budget,
        "recipe": point.method,
        "gradient": point.family,
        "strength": point.scale,
        "steps": point.steps,
        "evaluations": point.evaluations,
        "differentiated": point.differentiated,
        "seconds_per_image": point.seconds,
        "seconds_as_made": point.measured,
        "step_of_x0": point.cost.ratio,
        "peak_bytes": json_number(point.cost.peak),
        "skipped_guidance": point.skipped,
        "images": len(point.images),
        "far_from_renders": is_far(result, point),
        "on_frontier": any((p.method, p.steps) == (point.method, point.steps) for p in best),
    }


def as_values(outcome: Outcome) -> dict[str, Any]:
    """Everything that was found, as JSON values."""
    tasks = []
    for result in outcome.tasks:
        best = on_frontier(result, result.points)
        tasks.append(
            {
                "task": result.name,
                "guide": result.guide,
                "objective": result.objective,
                "higher_is_better": result.higher_is_better,
                "floors": json_measures(result.floors),
                "absent": result.absent,
                "points": [
                    _row(result, p, best) | {"measures": json_measures(p.measures)}
                    for p in result.points
                ],
            }
        )
    return {
        **outcome.record,
        "tasks": tasks,
        "frechet_of_groups": [
            {"group": group, "budget": budget, "recipe": method, "value": json_number(m.value)}
            for (group, budget, method), m in outcome.pooled.items()
        ],
        "frechet_of_renders": {
            group: {"value": json_number(m.value), "standard_deviation": json_number(m.error)}
            for group, m in outcome.floors.items()
        },
        "report": markdown(outcome),
    }


def table_csv(outcome: Outcome) -> str:
    """One line a task, budget and recipe, in full precision; absent ones say why."""
    names = list(dict.fromkeys(n for r in outcome.tasks for p in r.points for n in p.measures))
    rows: list[dict[str, Any]] = []
    for result in outcome.tasks:
        best = on_frontier(result, result.points)
        for point in result.points:
            row = {"task": result.name, **_row(result, point, best)}
            for name, m in point.measures.items():
                row[name], row[f"{name}_standard_error"] = (
                    json_number(m.value),
                    json_number(m.error),
                )
            rows.append({key: "" if v is None else v for key, v in row.items()})
        for method, why in result.absent.items():
            rows += [
                {"task": result.name, "budget": budget, "recipe": method, "absent": why}
                for budget in BUDGETS
            ]
    fields = list(dict.fromkeys(key for row in rows for key in row if key not in names))
    fields = [f for f in fields if f != "absent" and not f.endswith("_standard_error")]
    fields += [f for n in names for f in (n, f"{n}_standard_error")] + ["absent"]
    return csv_text(fields, rows)


def rows_of(outcome: Outcome, group: str, budget: Budget) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of the table of a group of tasks with a budget, as people read them."""
    results = outcome.group(group)
    arrows = {"up": "↑", "down": "↓"}
    titles = ["recipe"]
    titles += [
        f"{result.title}: {column(name).title} {arrows[column(name).better]}"
        for result in results
        for name in _told(result)
    ]
    titles += ["Fréchet distance ↓", "strength", "steps", "evaluations", "of them differentiated"]
    titles += ["s / image", "peak MiB"]
    rows = []
    for method in outcome.methods:
        points = [result.find(budget, method) for result in results]
        row = [f"`{method}`" if method != UNGUIDED else method]
        for result, point in zip(results, points, strict=True):
            row += [
                "–" if point is None else shown(name, point.measures[name])
                for name in _told(result)
            ]
        there = [point for point in points if point is not None]
        distance = outcome.pooled.get((group, budget, method), Measure(math.nan))
        row.append(shown("frechet", distance))
        row.append(_each(f"{p.scale:.3g}" for p in there if p.scale is not None))
        row.append(_each(str(p.steps) for p in there))
        row.append(_each(str(p.evaluations) for p in there))
        row.append(_each(str(p.differentiated) for p in there))
        row.append(_each((f"{p.seconds:.2f}" for p in there), always=True))
        peaks = [p.cost.peak / MIB for p in there if not math.isnan(p.cost.peak)]
        row.append(f"{max(peaks):.0f}" if peaks else "–")
        rows.append(row)
    last = [f"*{'measurement, pseudo-inverse' if group == 'restoring' else 'targets, renders'}*"]
    for result in results:
        last += [
            shown(name, result.floors[name]) if name in result.floors else "–"
            for name in _told(result)
        ]
    rows.append([*last, shown("frechet", outcome.floors[group]), *("–" for _ in range(6))])
    return titles, rows


def _told(result: TaskResult) -> list[str]:
    """The measures that tables for people have."""
    names = result.points[0].measures if result.points else {}
    return [n for n in names if n not in ("frechet", "depth_error_to_judge")]


def _each(texts: Any, *, always: bool = False) -> str:
    """One text for each task, or only one if they are the same."""
    found = list(texts)
    if len(set(found)) == 1 and not always:
        return str(found[0])
    return ", ".join(found) or "–"


def markdown(outcome: Outcome) -> str:
    """Tables and findings in Markdown."""
    parts = []
    for budget, title in BUDGETS.items():
        for group in GROUPS:
            results = outcome.group(group)
            if not results:
                continue
            parts.append(f"## {title}: {', '.join(r.title.lower() for r in results)}\n")
            titles, rows = rows_of(outcome, group, budget)
            parts.append(markdown_table(titles, rows))
    notes = {
        f"`{method}` is not on {result.title.lower()}: {why}"
        for result in outcome.tasks
        for method, why in result.absent.items()
    }
    parts += [*(f"{note}\n" for note in sorted(notes)), "\n## What it found\n", findings(outcome)]
    return "\n".join(parts)


# Plot


def plot(outcome: Outcome, path: Path) -> None:
    """Quality against seconds an image, one row a task; beside it all recipes at equal time."""
    count = len(outcome.tasks)
    figure, axes = new_figure(
        11.5, 4.1 * count + 1.1, nrows=count, ncols=2, squeeze=False, width_ratios=[2.1, 1]
    )
    for (left, right), result in zip(axes, outcome.tasks, strict=True):
        _draw_panel(left, result)
        _draw_ranking(right, result)
    _draw_legend(figure)
    # Labels are placed when the axes have found their places.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for (left, _), result in zip(axes, outcome.tasks, strict=True):
        _place_labels(left, result)
    save_figure(figure, path)


def _at(result: TaskResult, point: Point) -> tuple[float, float]:
    factor = 100 if column(result.objective).percent else 1
    return point.seconds, point.measures[result.objective].value * factor


def _draw_panel(ax: Any, result: TaskResult) -> None:
    from matplotlib.ticker import LogLocator

    kind = column(result.objective)
    factor = 100 if kind.percent else 1
    best = [_at(result, p) for p in on_frontier(result, result.points)]
    if best:
        ax.plot(
            [x for x, _ in best], [y for _, y in best], drawstyle="steps-post", color="#bdbdbd",
            linewidth=5, alpha=0.55, zorder=1, solid_capstyle="round",
        )  # fmt: skip
    for point in result.points:
        x, y = _at(result, point)
        colour, equal = FAMILIES[point.family][1], point.budget == "evaluations"
        error = point.measures[result.objective].error
        if is_far(result, point):
            ax.plot(x, y, "x", color=colour, markersize=5 if equal else 3.5, alpha=0.7, zorder=3)
            continue
        ax.errorbar(
            x, y, yerr=None if error is None else error * factor, fmt="o" if equal else "s",
            color=colour, markersize=(9 if point.method == OURS else 6) - (0 if equal else 2),
            markerfacecolor=colour if equal else "white", elinewidth=0.7, zorder=3,
            markeredgecolor="black" if point.method == OURS else colour,
        )  # fmt: skip
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.minorticks_off()
    ax.margins(x=0.16, y=0.08)
    if not result.higher_is_better:
        ax.invert_yaxis()
    ax.set_title(result.title, fontsize=11, loc="left")
    ax.set_xlabel("seconds per image")
    unit = ", %" if kind.percent else ""
    ax.set_ylabel(f"{kind.title}{unit} (up is better)")


def _draw_ranking(ax: Any, result: TaskResult) -> None:
    """All methods at equal time, the best at the top."""
    kind = column(result.objective)
    factor = 100 if kind.percent else 1
    points = sorted(result.of("time"), key=lambda p: quality(result, p))
    for place, point in enumerate(points):
        colour, ours = FAMILIES[point.family][1], point.method == OURS
        measure, far = point.measures[result.objective], is_far(result, point)
        ax.errorbar(
            measure.value * factor, place, fmt="x" if far else "s", color=colour,
            xerr=None if measure.error is None else measure.error * factor, elinewidth=1.1,
            markersize=7 if ours else 5, markerfacecolor="black" if ours else "white",
        )  # fmt: skip
    ax.set_yticks(range(len(points)), [f"{p.method}, {p.steps} steps" for p in points], fontsize=8)
    for text, point in zip(ax.get_yticklabels(), points, strict=True):
        text.set_color(FAMILIES[point.family][1])
        text.set_fontweight("bold" if point.method == OURS else "normal")
    if not result.higher_is_better:
        ax.invert_xaxis()
    ax.set_ylim(-0.6, len(points) - 0.4)
    ax.tick_params(axis="y", length=0)
    ax.set_title("at equal time", fontsize=10, loc="left")
    ax.set_xlabel(f"{kind.title}{', %' if kind.percent else ''} (right is better)")


def _draw_legend(figure: Any) -> None:
    from matplotlib.lines import Line2D

    def mark(label: str, colour: str, marker: str, fill: str | None = None) -> Line2D:
        return Line2D([], [], color=colour, marker=marker, linestyle="", label=label,
                      markerfacecolor=fill or colour)  # fmt: skip

    handles = [mark(label, colour, "o") for label, colour in FAMILIES.values()]
    handles += [
        mark("equal evaluations of the backbone", "#444444", "o"),
        mark("equal time: as long as x0 takes", "#444444", "s", "white"),
        mark("images far from renders", "#444444", "x"),
        Line2D([], [], color="#bdbdbd", linewidth=5, alpha=0.55,
               label="frontier: nothing cheaper is as good"),
    ]  # fmt: skip
    figure.legend(
        handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=9,
        columnspacing=1.4,
    )  # fmt: skip


Box = tuple[float, float, float, float]


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


def _place_labels(ax: Any, result: TaskResult) -> None:
    """Names beside the points of equal evaluations, where they cover least."""
    size, dots = 8.0, ax.figure.dpi / 72
    taken: list[Box] = []
    for point in result.points:
        x, y = ax.transData.transform(_at(result, point))
        taken.append((x - 5 * dots, y - 4 * dots, x + 5 * dots, y + 4 * dots))
    bounds = ax.get_window_extent()
    order = sorted(result.of("evaluations"), key=lambda p: (p.method != OURS, _at(result, p)))
    for point in order:
        x, y = ax.transData.transform(_at(result, point))
        width, height = 0.58 * size * dots * len(point.method), 1.15 * size * dots
        best: tuple[float, float, float, Box] | None = None
        for ring in range(1, 9):
            for angle in range(0, 360, 30):
                far = (5 + 5 * ring) * dots
                cx = x + math.cos(math.radians(angle)) * (far + width / 2)
                cy = y + math.sin(math.radians(angle)) * far
                box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
                outside = box[0] < bounds.x0 or box[2] > bounds.x1
                outside |= box[1] < bounds.y0 or box[3] > bounds.y1
                price = sum(_overlap(box, other) for other in taken) + 4 * far + 1e6 * outside
                if best is None or price < best[0]:
                    best = (price, cx, cy, box)
        if best is None:
            continue
        _, cx, cy, box = best
        taken.append(box)
        colour = FAMILIES[point.family][1]
        ax.annotate(
            point.method, (x, y), (cx, cy), xycoords="figure pixels", textcoords="figure pixels",
            ha="center", va="center", fontsize=size, color=colour, zorder=5,
            fontweight="bold" if point.method == OURS else "normal",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6,
                        "shrinkA": 0, "shrinkB": 2},
        )  # fmt: skip


# Pictures


def sheet(outcome: Outcome, budget: Budget) -> Image.Image:
    """The same few targets by every method: a row a method, a block of columns a task."""
    tile, gap, between, label, head, caption = 80, 6, 22, 120, 30, 17
    ink, pale, paper = (40, 38, 36), (110, 106, 102), (250, 249, 246)
    font, small = ImageFont.load_default(14), ImageFont.load_default(11)
    blocks = [(r, min(SHOWN, len(r.wanted))) for r in outcome.tasks]
    deepest = max((len(r.pictures) for r, _ in blocks), default=0)
    given = max(1, deepest)
    methods = outcome.methods
    width = label + sum(n * (tile + gap) + between for _, n in blocks) + gap
    height = head + (given + len(methods)) * (tile + caption + gap) + gap
    canvas = Image.new("RGB", (width, height), paper)
    draw = ImageDraw.Draw(canvas)

    def top(row: int) -> int:
        return head + row * (tile + caption + gap)

    def put(left: int, row: int, picture: Image.Image, words: str) -> None:
        shown_picture = picture.convert("RGB").resize((tile, tile), Image.Resampling.LANCZOS)
        canvas.paste(shown_picture, (left, top(row)))
        while words and draw.textlength(words, font=small) > tile + gap:
            words = words[:-1]
        draw.text((left, top(row) + tile + 1), words, fill=pale, font=small)

    titles = ["target", "given"][:given] + methods
    for row, title in enumerate(titles):
        draw.text((gap, top(row) + tile // 2 - 8), title, fill=ink, font=font)
    left = label
    for result, count in blocks:
        draw.text((left, 6), result.title, fill=ink, font=font)
        for k in range(count):
            at = left + k * (tile + gap)
            if not result.pictures:
                lines = "\n".join(result.wanted[k].split())
                draw.multiline_text(
                    (at + tile / 2, top(0) + tile / 2), lines, fill=ink, font=font, anchor="mm",
                    align="center",
                )  # fmt: skip
            for row, (_, cells) in enumerate(result.pictures[:given]):
                put(at, row, cells[k][1], "")
            for row, method in enumerate(methods, start=given):
                point = result.find(budget, method)
                if point is None:
                    middle = at + tile // 2, top(row) + tile // 2
                    draw.line((middle[0] - 5, middle[1], middle[0] + 5, middle[1]), fill=pale)
                    continue
                (picture,) = from_tensor(to_unit(point.images[k : k + 1]))
                put(at, row, picture, point.captions[k])
        left += count * (tile + gap) + between
    return canvas


__all__ = [
    "FAMILIES", "FLOORS", "OURS", "Standing", "as_values", "compare", "findings", "guided",
    "markdown", "on_frontier", "plot", "quality", "rows_of", "sheet", "standing", "table_csv",
    "write_report",
]  # fmt: skip
