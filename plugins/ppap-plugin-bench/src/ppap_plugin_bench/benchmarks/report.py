"""The report of a benchmark: tables, plots, contact sheets and a page that shows them all."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppap_host.files.images import contact_sheet, from_tensor, to_unit
from ppap_host.files.writing import csv_text, write_file, write_png
from ppap_plugin_bench.benchmarks.arms import ArmResult
from ppap_plugin_bench.benchmarks.ppap import Curve, Outcome, PairResult, TaskResult
from ppap_plugin_bench.evaluation import Measure
from ppap_plugin_bench.plots import COLOURS, new_figure, save_figure

COLUMNS = 12
"""Images of a row in contact sheets."""


@dataclass(frozen=True)
class Column:
    """How a measure is shown.

    Attributes:
        title: for people.
        better: "up" or "down".
        digits: after the point.
        percent: shown as percentage.
    """

    title: str
    better: str
    digits: int = 3
    percent: bool = False


MEASURES = {
    "accuracy": Column("judged accuracy", "up", 1, percent=True),
    "depth_error": Column("judged depth error", "down"),
    "depth_error_to_judge": Column("error to judged target", "down"),
    "miou": Column("judged mIoU", "up"),
    "frechet": Column("Fréchet distance", "down", 2),
    "precision": Column("precision", "up", 2),
    "recall": Column("recall", "up", 2),
    "pure": Column("solids of one colour", "up", 2),
    "well_shaped": Column("well shaped", "up", 2),
    "solids": Column("number of solids", "up", 2),
    "straightness": Column("straight edge", "up", 2),
    "psnr": Column("PSNR, dB", "up", 2),
    "ssim": Column("SSIM", "up"),
    "residual": Column("residual", "down", 4),
    "reward": Column("reward", "up"),
}

CURVES = {
    "right": "accuracy",
    "accuracy": "accuracy",
    "abs-rel": "absolute relative depth error",
    "miou": "mIoU",
}
"""Which of a guide's own measures are drawn against noise, the first that it has, and its title."""

GREY, INK = "#8a8a8a", "#262626"

# What each arm looks like in every plot; PPAP's own get darker with the number of experts.
ARM_COLOURS = {
    "unguided": GREY,
    "score": COLOURS[4],
    "naive": COLOURS[5],
    "x0": COLOURS[2],
    "x0-experts": "#7a4b9a",
    "single": COLOURS[1],
    "supervised-5": COLOURS[3],
    "ppap-1": "#9ecae1",
    "ppap-2": "#5ba3d0",
    "ppap-5": "#0072B2",
    "ppap-10": "#084081",
}


def column(name: str) -> Column:
    """How the measure of this name is shown; unknown ones by their name."""
    return MEASURES.get(name, Column(name.replace("_", " "), "up"))


def shown(name: str, measure: Measure) -> str:
    """A measure for people, with its standard error where it has one; a dash where unmeasured."""
    if math.isnan(measure.value):
        return "–"
    kind = column(name)
    factor = 100 if kind.percent else 1
    text = f"{measure.value * factor:.{kind.digits}f}"
    if measure.error is not None:
        text += f" ± {measure.error * factor:.{kind.digits}f}"
    return text + ("%" if kind.percent else "")


def write_report(outcome: Outcome, out: Path) -> dict[str, Any]:
    """Writes ``results.json``, ``table.md``, ``table.csv``, ``index.html``, plots and sheets.

    Returns:
        What ``results.json`` holds.

    Raises:
        OutputError: something cannot be written.
    """
    results = as_values(outcome)
    text = json.dumps(results, indent=2, ensure_ascii=False) + "\n"
    write_file(out / "results.json", text.encode())
    write_file(out / "table.md", markdown(outcome).encode())
    write_file(out / "table.csv", table_csv(outcome).encode())
    for result in outcome.tasks:
        name = result.task.name
        plot_arms(result, outcome.floor[name], out / "plots" / f"{name}-arms.png")
        plot_trials(result, out / "plots" / f"{name}-strength.png")
        if result.curves:
            plot_curves(result, out / "plots" / f"{name}-noise.png")
        _write_sheets(result, out / "sheets")
    if outcome.pair is not None:
        _write_pair_sheet(outcome.pair, out / "sheets" / "pair.png")
    write_file(out / "index.html", page(outcome).encode())
    return results


# Values


def json_number(value: float | None) -> float | None:
    """JSON knows no NaN."""
    return None if value is None or not math.isfinite(value) else value


def json_measures(measures: Mapping[str, Measure]) -> dict[str, dict[str, float | None]]:
    """Measures as JSON values."""
    return {
        name: {"value": json_number(m.value), "standard_error": json_number(m.error)}
        for name, m in measures.items()
    }


def _arm_values(arm: ArmResult) -> dict[str, Any]:
    return {
        "arm": arm.name,
        "label": arm.label,
        "recipe": arm.recipe,
        "scale": arm.scale,
        "trials": [
            {"scale": t.scale, "score": json_number(t.score), "frechet": json_number(t.tie)}
            for t in arm.trials
        ],
        "measures": json_measures(arm.measures),
        "seconds_per_image": arm.seconds_per_image,
        "trainable_parameters": arm.trainable,
        "experts": arm.experts,
        "expert_share_of_network": arm.share,
        "skipped_guidance": arm.skipped,
        "images": len(arm.images),
    }


def _curve_values(curve: Curve) -> dict[str, Any]:
    serves = curve.serves
    return {
        "arm": curve.group,
        "label": curve.label,
        "serves_log_snr": None if serves is None else [str(bound) for bound in serves],
        "points": [
            {"log_snr": p.log_snr, "time": p.time, "measures": json_measures(p.measures)}
            for p in curve.points
        ],
    }


def as_values(outcome: Outcome) -> dict[str, Any]:
    """Everything that was found, as JSON values."""
    pair = outcome.pair
    return {
        **outcome.record,
        "tasks": [
            {
                "guide": r.task.name,
                "objective": r.task.objective,
                "higher_is_better": r.task.higher_is_better,
                "judge_on_targets": json_measures(r.task.floors),
                "renders": json_measures(outcome.floor[r.task.name]),
                "arms": [_arm_values(arm) for arm in r.arms],
                "accuracy_against_noise": [_curve_values(curve) for curve in r.curves],
            }
            for r in outcome.tasks
        ],
        "pair": None
        if pair is None
        else {
            "images": pair.count,
            "scales": pair.scales,
            "measures": {name: json_measures(row) for name, row in pair.measures.items()},
            "together_as_ratio_of_alone": {k: json_number(v) for k, v in pair.ratios.items()},
            "within_20_percent": pair.within_a_fifth,
        },
    }


# Tables


def header(result: TaskResult) -> list[str]:
    """Titles of a task's table."""
    names = list(result.arms[0].measures)
    arrows = {"up": "↑", "down": "↓"}
    titles = [f"{column(n).title} {arrows[column(n).better]}" for n in names]
    return ["arm", *titles, "strength", "s / image", "trainable"]


def body(result: TaskResult, floor: Mapping[str, Measure]) -> list[list[str]]:
    """Rows of a task's table, as people read them; the last shows real pictures."""
    rows = []
    for arm in result.arms:
        trainable = f"{arm.trainable:,} ({arm.experts} × {arm.share:.1%})" if arm.trainable else "–"
        rows.append(
            [
                arm.label,
                *(shown(name, m) for name, m in arm.measures.items()),
                "–" if arm.scale is None else f"{arm.scale:.3g}",
                f"{arm.seconds_per_image:.2f}",
                trainable,
            ]
        )
    known = {**result.task.floors, **floor}
    real = [shown(n, known[n]) if n in known else "–" for n in result.arms[0].measures]
    rows.append(["Targets and renders themselves", *real, "–", "–", "–"])
    return rows


def pair_rows(pair: PairResult) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of the table of two guides at once."""
    names = list(next(iter(pair.measures.values())))
    titles = ["steered by", *(column(name).title for name in names)]
    return titles, [
        [who, *(shown(name, row[name]) for name in names)] for who, row in pair.measures.items()
    ]


def verdict(pair: PairResult) -> str:
    """One sentence on two guides at once."""
    ratios = ", ".join(f"{column(k).title} {v:.2f} times" for k, v in pair.ratios.items())
    word = "within" if pair.within_a_fifth else "not within"
    return f"Together as alone: {ratios}; {word} 20%."


def markdown(outcome: Outcome) -> str:
    """The tables in Markdown."""
    parts = []
    for result in outcome.tasks:
        parts.append(f"## {result.task.title}\n")
        parts.append(markdown_table(header(result), body(result, outcome.floor[result.task.name])))
    if outcome.pair is not None:
        parts += ["## Class and depth at once\n", markdown_table(*pair_rows(outcome.pair))]
        parts.append(verdict(outcome.pair) + "\n")
    return "\n".join(parts)


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its first column to the left."""
    ruler = ["---", *("---:" for _ in titles[1:])]
    return "".join(f"| {' | '.join(row)} |\n" for row in (titles, ruler, *rows))


def table_csv(outcome: Outcome) -> str:
    """One line an arm, full precision, all guides below each other."""
    names = list(dict.fromkeys(n for r in outcome.tasks for a in r.arms for n in a.measures))
    fields = ["guide", "arm", "recipe", "strength"]
    fields += [f for n in names for f in (n, f"{n}_standard_error")]
    fields += ["seconds_per_image", "experts", "trainable_parameters"]
    fields += ["expert_share_of_network", "images"]
    rows = []
    for result in outcome.tasks:
        for arm in result.arms:
            row: dict[str, Any] = {
                "guide": result.task.name,
                "arm": arm.name,
                "recipe": arm.recipe or "",
                "strength": "" if arm.scale is None else arm.scale,
                "seconds_per_image": arm.seconds_per_image,
                "trainable_parameters": arm.trainable,
                "experts": arm.experts,
                "expert_share_of_network": arm.share,
                "images": len(arm.images),
            }
            for name, m in arm.measures.items():
                error = json_number(m.error)
                row[name] = "" if json_number(m.value) is None else m.value
                row[f"{name}_standard_error"] = "" if error is None else error
            rows.append(row)
    return csv_text(fields, rows)


# Plots


def plot_arms(result: TaskResult, floor: Mapping[str, Measure], path: Path) -> None:
    """One panel a measure, one point an arm, bars of one standard error."""
    names = [n for n in result.arms[0].measures if not _unmeasured(result, n)]
    known = {**result.task.floors, **floor}
    figure, axes = new_figure(
        2.2 + 2.3 * len(names), 1.3 + 0.32 * len(result.arms), ncols=len(names), sharey=True,
        squeeze=False,
    )  # fmt: skip
    places = list(range(len(result.arms)))[::-1]
    for ax, name in zip(axes[0], names, strict=True):
        kind = column(name)
        factor = 100 if kind.percent else 1
        for place, arm in zip(places, result.arms, strict=True):
            m = arm.measures[name]
            ax.errorbar(
                m.value * factor, place, xerr=None if m.error is None else m.error * factor,
                fmt="o", markersize=7, capsize=3, color=ARM_COLOURS.get(arm.name, INK),
                linewidth=1.6,
            )  # fmt: skip
        if name in known and not math.isnan(known[name].value):
            ax.axvline(known[name].value * factor, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        unit = ", %" if kind.percent else ""
        ax.set_title(f"{kind.title}{unit}", fontsize=10, loc="left")
        better = "right" if kind.better == "up" else "left"
        ax.set_xlabel(f"better: {better}", fontsize=8, color=GREY)
        ax.grid(False, axis="y")
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
        ax.margins(x=0.12)
        if name in ("precision", "recall"):
            ax.set_xlim(-0.06, 1.06)
    axes[0][0].set_yticks(places, [_math(arm.label) for arm in result.arms])
    axes[0][0].set_ylim(-0.6, len(places) - 0.4)
    figure.supxlabel(
        "bars: one standard error; dashed: the targets or renders themselves",
        fontsize=8, color=GREY,
    )  # fmt: skip
    save_figure(figure, path)


def _math(label: str) -> str:
    """Symbols as matplotlib sets them."""
    return label.replace("x_t", "$x_t$").replace("x_0", "$x_0$")


def _unmeasured(result: TaskResult, name: str) -> bool:
    return all(math.isnan(arm.measures[name].value) for arm in result.arms)


def plot_trials(result: TaskResult, path: Path) -> None:
    """The objective on the validation set against the strength; rings mark what was chosen."""
    kind = column(result.task.objective)
    factor = 100 if kind.percent else 1
    guided = [arm for arm in result.arms if arm.trials]
    panels = [
        ("at x_t", [arm for arm in guided if arm.recipe != "x0"]),
        ("at x_0", [arm for arm in guided if arm.recipe == "x0"]),
    ]
    panels = [(title, arms) for title, arms in panels if arms]
    if not panels:
        return
    figure, axes = new_figure(
        4.6 * len(panels) + 1.2, 3.6, ncols=len(panels), sharey=True, squeeze=False
    )
    for ax, (title, arms) in zip(axes[0], panels, strict=True):
        for arm in arms:
            colour = ARM_COLOURS.get(arm.name, INK)
            xs = [t.scale for t in arm.trials]
            ys = [t.score * factor for t in arm.trials]
            ax.plot(xs, ys, "o-", color=colour, markersize=3.5, linewidth=1.5,
                    label=_math(arm.label))  # fmt: skip
            chosen = [y for x, y in zip(xs, ys, strict=True) if x == arm.scale]
            ax.plot([arm.scale], chosen[:1], "o", markersize=10, fillstyle="none", color=colour)
        # Powers of four: strengths are tried in such steps.
        ax.set_xscale("log", base=4)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
        ax.minorticks_off()
        ax.set_title(f"gradient {_math(title)}", fontsize=10, loc="left")
        ax.set_xlabel("strength")
        ax.legend(fontsize=7.5, frameon=False)
    unit = ", %" if kind.percent else ""
    axes[0][0].set_ylabel(f"{kind.title}{unit}\non the validation set")
    save_figure(figure, path)


def plot_curves(result: TaskResult, path: Path) -> None:
    """The guide's own measure against noise: plain, single, and each expert where it serves."""
    from matplotlib import colormaps

    groups = [g for g in ("supervised-5", "ppap-5") if any(c.group == g for c in result.curves)]
    labels = {arm.name: arm.label for arm in result.arms}
    figure, axes = new_figure(
        5.4 * max(1, len(groups)), 4.1, ncols=max(1, len(groups)), sharey=True, squeeze=False
    )
    there = result.curves[0].points[0].measures
    name = next((known for known in CURVES if known in there), next(iter(there)))
    for ax, group in zip(axes[0], groups or [""], strict=True):
        experts = [curve for curve in result.curves if curve.group == group]
        for k, curve in enumerate(experts):
            # One hue, darker with the noise: ordered for every kind of colour vision.
            shade = colormaps["Blues"](0.35 + 0.65 * k / max(1, len(experts) - 1))
            _draw(ax, curve, name, shade)
        for curve in result.curves:
            style = {"plain": (INK, (0, (5, 2))), "single": (ARM_COLOURS["single"], "-")}
            if curve.group in style:
                _draw_whole(ax, curve, name, *style[curve.group])
        ax.set_title(labels.get(group, "off the shelf"), fontsize=10, loc="left")
        ax.set_xlabel("noise: the backbone's time (left: clean)")
        ax.legend(fontsize=7.5, frameon=False)
    axes[0][0].set_ylabel(f"{CURVES.get(name, name)} on noised renders")
    save_figure(figure, path)


def _draw(ax: Any, curve: Curve, name: str, colour: Any) -> None:
    """An expert: thin everywhere, thick where it serves."""
    from numpy import interp

    xs = [p.time for p in curve.points]
    ys = [p.measures[name].value for p in curve.points]
    ax.plot(xs, ys, color=colour, linewidth=1.0, alpha=0.7)
    if curve.times is None:
        return
    first, last = curve.times
    inside = [first, *(x for x in xs if first < x < last), last]
    ax.plot(inside, interp(inside, xs, ys), color=colour, linewidth=4, label=curve.label,
            solid_capstyle="butt")  # fmt: skip


def _draw_whole(ax: Any, curve: Curve, name: str, colour: str, line: Any) -> None:
    """A network for all levels, with a band of one standard error."""
    xs = [p.time for p in curve.points]
    ys = [p.measures[name].value for p in curve.points]
    errors = [p.measures[name].error or 0.0 for p in curve.points]
    ax.plot(xs, ys, color=colour, linestyle=line, linewidth=1.8, label=curve.label)
    low = [y - e for y, e in zip(ys, errors, strict=True)]
    high = [y + e for y, e in zip(ys, errors, strict=True)]
    ax.fill_between(xs, low, high, color=colour, alpha=0.12, linewidth=0)


# Pictures


def _pictures(arm: ArmResult, rows: slice) -> list[tuple[str, Any]]:
    return list(zip(arm.captions[rows], from_tensor(to_unit(arm.images[rows])), strict=True))


def _write_sheets(result: TaskResult, folder: Path) -> None:
    """All arms on the same targets, and a sheet of more images for each arm."""
    rows = [(title, list(row)[:COLUMNS]) for title, row in result.task.pictures]
    rows += [(arm.label, _pictures(arm, slice(0, COLUMNS))) for arm in result.arms]
    write_png(folder / f"{result.task.name}.png", contact_sheet(rows, cell=96))
    for arm in result.arms:
        parts = range(0, min(len(arm.images), 4 * COLUMNS), COLUMNS)
        grid = [("", _pictures(arm, slice(k, k + COLUMNS))) for k in parts]
        write_png(folder / f"{result.task.name}-{arm.name}.png", contact_sheet(grid, cell=96))


def _write_pair_sheet(pair: PairResult, path: Path) -> None:
    pictures = from_tensor(to_unit(pair.images[:COLUMNS]))
    write_png(path, contact_sheet([("class and depth", [("", p) for p in pictures])], cell=96))


# Page

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; color: #262626; background: #fbfaf7;
  max-width: 1180px; margin: 2.5rem auto 5rem; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { margin: 3rem 0 .6rem; font-size: 1.3rem; }
p.note { color: #666; margin: .2rem 0 1rem; max-width: 46rem; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .38rem .8rem; text-align: right; white-space: nowrap; }
th { font-weight: 600; border-bottom: 2px solid #262626; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tr + tr td { border-top: 1px solid #e4e1d9; }
td.best { font-weight: 700; } tr.real td { color: #777; font-style: italic; }
img { max-width: 100%; height: auto; display: block; margin: 1rem 0; }
details { margin: .4rem 0; } summary { cursor: pointer; }
pre { background: #f1efe8; padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; }
"""


def page(outcome: Outcome) -> str:
    """The page; pictures lie beside it."""
    record = outcome.record
    e = html.escape
    parts = [
        "<h1>PPAP and what else an off-the-shelf guide can do</h1>",
        "<p class=note>Every arm got the same targets, the same noise and the same search for its "
        "strength on other targets. Judges took no part in guiding or teaching. ± is one standard "
        "error. The best of each column is bold, guided arms only.</p>",
    ]
    if record.get("command"):
        parts.append(f"<pre>{e(str(record['command']))}</pre>")
    for result in outcome.tasks:
        name = result.task.name
        floor = outcome.floor[name]
        parts.append(f"<h2>{e(result.task.title)}</h2>")
        count = len(result.arms[0].images)
        parts.append(f"<p class=note>{count} images an arm, guide <code>{e(name)}</code>.</p>")
        parts.append(_html_table(header(result), body(result, floor), _best(result)))
        parts.append(_image(f"plots/{name}-arms.png", "measures of each arm"))
        if result.curves:
            parts.append("<h3>The guide against noise</h3>")
            parts.append(
                "<p class=note>How well each network reads renders at each noise level. An expert "
                "is drawn thick where it serves.</p>"
            )
            parts.append(_image(f"plots/{name}-noise.png", "accuracy against noise"))
        parts.append("<h3>Strength</h3>")
        parts.append(_image(f"plots/{name}-strength.png", "validation measure by strength"))
        parts.append("<h3>Images</h3>")
        parts.append(_image(f"sheets/{name}.png", "the same targets by every arm"))
        for arm in result.arms:
            sheet = _image(f"sheets/{name}-{arm.name}.png", arm.label, lazy=True)
            parts.append(
                f"<details><summary>{_subscripts(e(arm.label))}</summary>{sheet}</details>"
            )
    if outcome.pair is not None:
        parts.append("<h2>Class and depth at once</h2>")
        parts.append(
            f"<p class=note>{outcome.pair.count} images; the class of one scene and the depth of "
            f"another, each at the strength it had alone. {e(verdict(outcome.pair))}</p>"
        )
        titles, rows = pair_rows(outcome.pair)
        parts.append(_html_table(titles, rows, set(), last_is_real=False))
        parts.append(_image("sheets/pair.png", "steered by class and depth"))
    kept = {k: record[k] for k in ("settings", "versions", "expert_sets", "seconds") if k in record}
    parts.append("<h2>How it was made</h2>")
    parts.append(f"<pre>{e(json.dumps(kept, indent=1, default=str))}</pre>")
    parts.append("<p>All numbers: <a href=results.json>results.json</a>, ")
    parts.append("<a href=table.csv>table.csv</a>, <a href=table.md>table.md</a>.</p>")
    inner = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>ppap bench</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{inner}\n</body></html>\n"
    )


def _image(file: str, alt: str, lazy: bool = False) -> str:
    loading = ' loading="lazy"' if lazy else ""
    return f'<img src="{html.escape(file)}" alt="{html.escape(alt)}"{loading}>'


def _subscripts(text: str) -> str:
    return text.replace("x_t", "x<sub>t</sub>").replace("x_0", "x<sub>0</sub>")


def _best(result: TaskResult) -> set[tuple[int, int]]:
    """(row, column) of the best guided arm in each measure."""
    found = set()
    for place, name in enumerate(result.arms[0].measures, start=1):
        sign = 1 if column(name).better == "up" else -1
        values = [
            (sign * arm.measures[name].value, row)
            for row, arm in enumerate(result.arms)
            if arm.scale is not None and not math.isnan(arm.measures[name].value)
        ]
        if values:
            best = max(value for value, _ in values)
            found |= {(row, place) for value, row in values if value == best}
    return found


def _html_table(
    titles: Sequence[str],
    rows: Sequence[Sequence[str]],
    best: set[tuple[int, int]],
    last_is_real: bool = True,
) -> str:
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    lines = []
    for i, row in enumerate(rows):
        cells = "".join(
            f"<td{' class=best' if (i, j) in best else ''}>{_subscripts(html.escape(text))}</td>"
            for j, text in enumerate(row)
        )
        real = " class=real" if last_is_real and i == len(rows) - 1 else ""
        lines.append(f"<tr{real}>{cells}</tr>")
    return f"<div class=wide><table><tr>{head}</tr>{''.join(lines)}</table></div>"
