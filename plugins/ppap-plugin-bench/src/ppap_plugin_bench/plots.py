"""Plots for people, through matplotlib, which is imported only here and only when one is drawn."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppap_host.cli.output import clean
from ppap_host.files.writing import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ppap_host.experts.calibration import Calibration

# Okabe and Ito (2008): told apart by every kind of colour vision.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999")

_OWN_MATHS = re.compile(r"\$(x_[t0]|\\gamma|\\beta)\$")
_LONGEST = 1000  # characters of a name that anyone may have written


def new_figure(width: float, height: float, **options: Any) -> tuple[Figure, Any]:
    """A figure with its axes in the project's style; draws without a display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    axes = figure.subplots(**options)
    for ax in getattr(axes, "flat", [axes]):
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(True, alpha=0.25, linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, axes


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG, whole or not at all, the same bytes for the same figure.

    Raises:
        OutputError: it cannot be written.
    """
    _take_no_orders(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_file(path, buffer.getvalue())


def _take_no_orders(figure: Figure) -> None:
    """Shows names from files and plugins as they are: matplotlib would set what is between dollar
    signs as TeX, and fail where it is none."""
    from matplotlib.text import Text

    ticks = [t for ax in figure.axes for t in (*ax.get_xticklabels(), *ax.get_yticklabels())]
    for text in {*figure.findobj(Text), *ticks}:  # texts of ticks are made when they are asked for
        assert isinstance(text, Text)
        shown = text.get_text()
        text.set_parse_math("$" not in _OWN_MATHS.sub("", shown))
        text.set_text("\n".join(clean(line) for line in shown[:_LONGEST].split("\n")))


def plot_tuning(record: Mapping[str, Any], path: Path) -> None:
    """Held-out distance while tuning, and before and after by range, from a ``tuning.json``."""
    figure, (left, right) = new_figure(10, 3.8, ncols=2)
    history = record["history"]
    steps = [row["step"] for row in history]
    names = [
        " to ".join("..." if bound is None else f"{bound:.1f}" for bound in part)
        for part in record["ranges"]
    ]
    for i, name in enumerate(names):
        values = [row["held_out"][i] for row in history]
        left.plot(steps, values, color=COLOURS[i % len(COLOURS)], label=name, linewidth=1.6)
    left.set_yscale("log")
    left.set_xlabel("optimiser step")
    left.set_ylabel("distance to the teacher, held out")
    left.legend(title="log-SNR", fontsize=8, title_fontsize=8, frameon=False)
    quality = record["quality"]
    places = range(len(names))
    for offset, who, colour, label in (
        (-0.2, "off_the_shelf", COLOURS[7], "off the shelf"),
        (0.2, "expert", COLOURS[0], "its expert"),
    ):
        right.bar(
            [p + offset for p in places],
            [row[who]["distance"] for row in quality],
            0.38,
            yerr=[row[who]["standard_error"] for row in quality],
            color=colour,
            label=label,
        )
    right.set_xticks(list(places), names, fontsize=8)
    right.set_xlabel("noise range, log-SNR (left: nearly clean)")
    right.set_ylabel("distance to the teacher")
    right.legend(fontsize=8, frameon=False)
    figure.suptitle(f"{record['guide']}: knowledge transfer without labels", fontsize=11)
    save_figure(figure, path)


_BEFORE, _AFTER = COLOURS[5], COLOURS[0]


def plot_reliability(calibration: Calibration, path: Path) -> None:
    """Reliability diagrams of all noise ranges (Guo et al., 2017, figure 1), before and after.

    A point is a bin, as large as its share of the predictions. Below each diagram are the shares.
    Lines lead through bins that hold a hundredth of the predictions or more.
    """
    parts = calibration.ranges
    columns = min(5, len(parts))
    rows = -(-len(parts) // columns)
    figure, axes = new_figure(
        0.9 + 2.2 * columns, 1.0 + 3.4 * rows, nrows=2 * rows, ncols=columns, squeeze=False,
        sharex=True, sharey="row", height_ratios=[3, 1] * rows,
    )  # fmt: skip
    right = "accuracy" if calibration.details["truth"] == "labels" else "agreement with the teacher"
    for k in range(rows * columns):
        row, column = divmod(k, columns)
        upper, lower = axes[2 * row, column], axes[2 * row + 1, column]
        if k >= len(parts):
            upper.set_axis_off()
            lower.set_axis_off()
            continue
        part = parts[k]
        upper.plot([0, 1], [0, 1], color=COLOURS[7], linewidth=0.9, linestyle=":")
        for table, colour, label, marker in (
            (part.bins, _BEFORE, "as it is", "s"),
            (part.bins_after, _AFTER, "with its temperature", "o"),
        ):
            _reliability_curve(upper, table, part.count, colour, label, marker)
            _shares(lower, table, part.count, colour)
        upper.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        upper.set_title(
            f"log-SNR {part.name}\nECE {part.ece:.3f} → {part.ece_after:.3f}\n"
            f"T = {part.temperature:.3g}",
            fontsize=8.5,
        )
        if row == rows - 1 or k + columns >= len(parts):
            lower.set_xlabel("confidence", fontsize=8.5)
        lower.set_yticks([])
        for ax in (upper, lower):
            ax.tick_params(labelsize=8)
        if column == 0:
            upper.set_ylabel(right, fontsize=8.5)
            lower.set_ylabel("share", fontsize=8.5)
    legend = figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8.5,
        frameon=False,
    )  # fmt: skip
    for handle in legend.legend_handles:
        handle.set_sizes([36])  # type: ignore[union-attr]
    figure.suptitle(_calibration_title(calibration), fontsize=10)
    save_figure(figure, path)


def _reliability_curve(
    ax: Any, table: Any, count: int, colour: str, label: str, marker: str
) -> None:
    there = [row for row in table if row[0]]
    x, y = [row[2] for row in there], [row[1] for row in there]
    sizes = [6 + 90 * row[0] / count for row in there]
    full = [row for row in there if row[0] >= 0.01 * count]
    ax.plot([r[2] for r in full], [r[1] for r in full], color=colour, linewidth=0.9, alpha=0.5)
    ax.scatter(
        x, y, s=sizes, color=colour, marker=marker, label=label, alpha=0.8, linewidths=0,
        clip_on=False, zorder=3,
    )  # fmt: skip


def _shares(ax: Any, table: Any, count: int, colour: str) -> None:
    edges = [k / len(table) for k in range(len(table) + 1)]
    ax.stairs([row[0] / count for row in table], edges, color=colour, fill=True, alpha=0.3)
    ax.stairs([row[0] / count for row in table], edges, color=colour, linewidth=1.0)


def _calibration_title(calibration: Calibration) -> str:
    shown = "noised images" if calibration.view == "noised" else "predicted clean images"
    experts = f", experts {calibration.experts}" if calibration.experts else ""
    truth = calibration.details["truth"]
    return f"{calibration.guide} on {shown}{experts} (truth: {truth})"


def plot_calibration_errors(calibration: Calibration, path: Path) -> None:
    """Calibration error against noise, and accuracy beside confidence; left is nearly clean."""
    figure, (left, right) = new_figure(10, 4.2, ncols=2)
    points = calibration.details["levels"]
    at = [p["log_snr"] for p in points]
    integral = calibration.details["integral"]
    for suffix, colour, label, marker in (
        ("", _BEFORE, "as it is", "s"),
        ("_after", _AFTER, "with temperatures", "o"),
    ):
        left.errorbar(
            at, [p[f"ece{suffix}"] for p in points], [p[f"ece_error{suffix}"] for p in points],
            color=colour, marker=marker, markersize=4, linewidth=1.6, capsize=2,
            label=f"ECE {label}, mean {integral[f'mean{suffix}']:.3f}",
        )  # fmt: skip
        left.plot(
            at, [p[f"smooth_ece{suffix}"] for p in points], color=colour, linewidth=1.2,
            linestyle="--", label=f"smooth ECE {label}",
        )  # fmt: skip
        right.plot(
            at, [p[f"confidence{suffix}"] for p in points], color=colour, marker=marker,
            markersize=4, linewidth=1.6, label=f"confidence {label}",
        )  # fmt: skip
    labels = calibration.details["truth"] == "labels"
    right.plot(
        at, [p["accuracy"] for p in points], color=COLOURS[6], linewidth=1.6,
        label="accuracy" if labels else "agreement with the teacher",
    )  # fmt: skip
    for ax in (left, right):
        ax.set_ylim(0, None)
        for part in calibration.ranges[1:]:
            ax.axvline(part.high, color=COLOURS[7], linewidth=0.7, linestyle=":")
        ax.set_xlabel("log-SNR (left: nearly clean)")
        ax.invert_xaxis()
        ax.legend(
            fontsize=8, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16)
        )
    right.set_ylim(0, 1)
    left.set_ylabel("calibration error")
    right.set_ylabel("share, probability")
    figure.suptitle(_calibration_title(calibration), fontsize=10)
    save_figure(figure, path)


_PANELS = 6  # more parameters than this, and panels get too small to read


def plot_search(record: Mapping[str, Any], path: Path) -> None:
    """The trials of a search against each thing it varied, and the best so far.

    Args:
        record: as in ``search.json`` (:mod:`ppap_plugin_bench.search.session`).
    """
    from matplotlib.ticker import MaxNLocator

    settings = record["settings"]
    good = [t for t in record["trials"] if t["judged"] is not None]
    space = settings["space"][:_PANELS]
    count = len(space) + 1
    columns = 2 if count in (2, 4) else 3
    rows = -(-count // columns)
    figure, axes = new_figure(
        0.8 + 3.6 * columns, 0.6 + 3.1 * rows, nrows=rows, ncols=columns, squeeze=False
    )
    panels = list(axes.flat)
    for ax in panels[count:]:
        ax.set_axis_off()
    scores = [t["judged"]["score"] for t in good]
    numbers = [t["number"] for t in good]
    best = _best(record, good)
    points = None
    for ax, dimension in zip(panels, space, strict=False):
        at = _positions(ax, dimension, [t["values"][dimension["name"]] for t in good])
        points = ax.scatter(at, scores, c=numbers, cmap="viridis", s=26, zorder=2)
        here = at[good.index(best)]
        ax.scatter([here], [best["judged"]["score"]], s=90, facecolors="none",
                   edgecolors=COLOURS[5], linewidths=1.6, zorder=3, label="best")  # fmt: skip
        _unguided(ax, record)
        ax.set_xlabel(dimension["name"])
        ax.set_ylabel("score")
    if points is not None:
        whole = MaxNLocator(integer=True)
        bar = figure.colorbar(points, ax=panels[len(space) - 1], pad=0.01, ticks=whole)
        bar.set_label("trial", fontsize=8)
        bar.ax.tick_params(labelsize=7)
        panels[0].legend(fontsize=8, frameon=False)
    _frontier(panels[len(space)], figure, record, good)
    name = settings["recipe_name"]
    better = "higher" if settings["higher_is_better"] else "lower"
    figure.suptitle(
        f"{settings['guide']['name']}, {name}: {settings['objective']} ({better} is better) by "
        f"{settings['judged_by']}",
        fontsize=9.5,
    )
    save_figure(figure, path)


def _frontier(ax: Any, figure: Any, record: Mapping[str, Any], good: list[Any]) -> None:
    """Measure against cost, coloured by the distance to clean images."""
    found = [t["judged"]["measured"] for t in good]
    cost, measure = ([f[key] for f in found] for key in ("cost", "measure"))
    far = [f["distance"] or 0.0 for f in found]
    points = ax.scatter([c / 1e9 for c in cost], measure, c=far, cmap="magma_r", s=26)
    marks = {"start": (good[0], "s"), "best": (_best(record, good), "o")}
    for label, (trial, marker) in marks.items():
        at = trial["judged"]["measured"]
        ax.scatter([at["cost"] / 1e9], [at["measure"]], s=90, marker=marker, facecolors="none",
                   edgecolors=COLOURS[5], linewidths=1.6, label=label)  # fmt: skip
    plain = record["unguided"]["measured"]
    ax.scatter([plain["cost"] / 1e9], [plain["measure"]], marker="x", color=COLOURS[6],
               label="unguided")  # fmt: skip
    ax.set_xscale("log")
    ax.set_xlabel("GFLOP an image")
    ax.set_ylabel(record["settings"]["objective"])
    ax.legend(fontsize=8, frameon=False)
    if any(far):
        bar = figure.colorbar(points, ax=ax, pad=0.01)
        bar.set_label("Fréchet distance", fontsize=8)
        bar.ax.tick_params(labelsize=7)


def _best(record: Mapping[str, Any], good: list[Any]) -> Any:
    return next(t for t in good if t["number"] == record["best"])


def _positions(ax: Any, dimension: Mapping[str, Any], values: list[Any]) -> list[float]:
    """Where values lie on the axis of a dimension, which is set up for them."""
    choices = dimension["choices"]
    if choices:
        words = [{True: "yes", False: "no"}.get(c, c) for c in choices]
        ax.set_xticks(range(len(choices)), words, fontsize=8)
        ax.set_xlim(-0.5, len(choices) - 0.5)
        return [float(choices.index(value)) for value in values]
    low, high = float(dimension["low"]), float(dimension["high"])
    margin = 0.03
    if dimension["log"] and high > low:
        from matplotlib.ticker import NullFormatter

        ax.set_xscale("log")
        if high >= 10 * low:
            ax.xaxis.set_minor_formatter(NullFormatter())  # they would overlap
        factor = (high / low) ** margin
        ax.set_xlim(low / factor, high * factor)
    elif high > low:
        ax.set_xlim(low - margin * (high - low), high + margin * (high - low))
    return [min(max(float(v), low), high) for v in values]


def _unguided(ax: Any, record: Mapping[str, Any]) -> None:
    ax.axhline(
        record["unguided"]["score"], color=COLOURS[6], linewidth=0.9, linestyle=":",
        label="unguided",
    )  # fmt: skip
