"""The report of ``ppap bench elucd``: tables, plots, a sheet of pictures, and words.

Every sentence about the outcome is made from the numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from ppap_host.files.images import contact_sheet, from_tensor, to_unit
from ppap_host.files.writing import csv_text, write_file, write_png
from ppap_plugin_bench.benchmarks.arms import ArmResult
from ppap_plugin_bench.benchmarks.elucd import (
    MEASURES,
    OUTCOMES,
    STEADY_NOISE,
    ClassifierResult,
    Correlation,
    Form,
    GridPoint,
    Outcome,
    Softer,
)
from ppap_plugin_bench.benchmarks.recipes_report import compare
from ppap_plugin_bench.benchmarks.report import column, shown
from ppap_plugin_bench.evaluation import Measure
from ppap_plugin_bench.plots import COLOURS, new_figure, save_figure

COLUMNS = 8
"""Images of a row in the sheet."""

GREY, INK = "#8a8a8a", "#262626"

ARM_COLOURS = (GREY, COLOURS[5], COLOURS[1], COLOURS[4], COLOURS[2], COLOURS[0])
"""Of the ablation's arms in their order."""

AXES = {
    "softplus": "Softplus beta",
    "temperatures": "temperatures joint, marginal",
    "gamma": "gamma of the sine",
}
"""Axes of the grid, for people."""


def write_report(outcome: Outcome, out: Path) -> dict[str, Any]:
    """Writes ``elucd.json``, ``.md``, ``.csv`` and ``.png``, a plot of the grid, and sheets.

    Returns:
        What ``elucd.json`` holds.

    Raises:
        OutputError: something cannot be written.
    """
    values = as_values(outcome)
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_file(out / "elucd.json", text.encode())
    write_file(out / "elucd.md", markdown(outcome).encode())
    write_file(out / "elucd.csv", table_csv(outcome).encode())
    plot(outcome, out / "elucd.png")
    if outcome.grid:
        plot_grid(outcome, out / "elucd-grid.png")
    write_png(out / "elucd-sheet.png", sheet(outcome))
    if outcome.classifiers:
        write_png(out / "elucd-classifiers-sheet.png", classifier_sheet(outcome))
    return values


# Words


def _objective(outcome: Outcome) -> str:
    return outcome.task.objective


def _measure(outcome: Outcome, name: str) -> str:
    return column(_objective(outcome) if name == "accuracy" else name).title


def verdict(one: Measure, other: Measure, *, higher_is_better: bool) -> str:
    """ "better", "worse" or "level": ``one`` beside ``other``, by two standard errors."""
    return ("level", "better", "worse")[compare(one, other, higher_is_better=higher_is_better)]


def _both(one: Mapping[str, Measure], other: Mapping[str, Measure], objective: str) -> list[str]:
    """The verdicts on the objective and on the Frechet distance."""
    return [
        verdict(one[name], other[name], higher_is_better=column(name).better == "up")
        for name in (objective, "frechet")
    ]


def findings(outcome: Outcome) -> str:
    """What was found, in Markdown; nothing in it is known beforehand."""
    lines = []
    if outcome.closest:
        arms = outcome.arms
        lines += ["### The parts, each at its most accurate strength", ""]
        lines += [*(f"- {text}" for text in _about_arms(outcome, arms)), ""]
        lines += ["### The parts, each at the strength closest to renders", ""]
        lines += [*(f"- {t}" for t in _about_arms(outcome, [arms[0], *outcome.closest])), ""]
    if outcome.grid:
        lines += ["### Around the preset", "", *(f"- {t}" for t in _about_grid(outcome)), ""]
    if outcome.classifiers:
        lines += ["### Classifiers", "", *(f"- {t}" for t in _about_classifiers(outcome)), ""]
    if any(result.softer for result in outcome.classifiers):
        lines += ["### GELU and SiLU", "", *(f"- {t}" for t in _about_gates(outcome))]
        lines += ["", f"**{advice(outcome)}**", ""]
    return "\n".join(lines)


def _about_arms(outcome: Outcome, arms: Sequence[ArmResult]) -> Iterator[str]:
    """What each part adds; the first arm is unguided, the second at x_t."""
    name, accuracy = _objective(outcome), _measure(outcome, "accuracy")
    for before, arm in pairwise(arms):
        words = _both(arm.measures, before.measures, name)
        yield (
            f"**{arm.label}**: {accuracy} {shown(name, arm.measures[name])} ({words[0]}, before "
            f"{shown(name, before.measures[name])}), Fréchet distance "
            f"{shown('frechet', arm.measures['frechet'])} ({words[1]}, before "
            f"{shown('frechet', before.measures['frechet'])})."
        )
    for who, other in (
        ("All parts together, beside the classifier at x_t", arms[1]),
        ("Softplus, temperatures and sine together, beside the predicted x_0 alone", arms[2]),
    ):
        words = _both(arms[-1].measures, other.measures, name)
        yield f"{who}: {words[0]} in {accuracy}, {words[1]} in Fréchet distance."


def _setting(point: GridPoint) -> str:
    return ", ".join(f"{value:g}" for value in point.values.values())


def _about_grid(outcome: Outcome) -> Iterator[str]:
    name = _objective(outcome)
    for axis, title in AXES.items():
        points = [point for point in outcome.grid if point.axis == axis]
        own = next(point for point in points if point.preset)
        told: dict[str, list[str]] = {"better": [], "worse": []}
        for point in points:
            if point.preset:
                continue
            words = _both(point.measures, own.measures, name)
            for kind, word in zip((_measure(outcome, "accuracy"), "Fréchet distance"), words,
                                  strict=True):  # fmt: skip
                if word != "level":
                    told[word].append(f"{_setting(point)} ({kind})")
        said = [f"{word}: {'; '.join(found)}" for word, found in told.items() if found]
        yield (
            f"**{title}**, preset {_setting(own)} ({shown(name, own.measures[name])}, "
            f"{shown('frechet', own.measures['frechet'])}): "
            + (f"{'. '.join(said)}; all others level." if said else "all others level.")
        )


def _r(found: Correlation) -> str:
    if math.isnan(found.r):
        return "–"
    return f"{found.r:+.2f} (p = {found.p:.2f})"


def _about_classifiers(outcome: Outcome) -> Iterator[str]:
    name, results = _objective(outcome), outcome.classifiers
    ordered = sorted(results, key=lambda r: r.reading.honesty["predicted"].mean.value)
    yield "By integral ECE at the predicted x_0, the most honest first: " + "; ".join(
        f"{r.name} {r.reading.honesty['predicted'].mean.value:.3f} (guided, closest to renders: "
        f"{shown(name, r.closest.measures[name])}, Fréchet distance "
        f"{shown('frechet', r.closest.measures['frechet'])})"
        for r in ordered
    ) + "."  # fmt: skip
    if not outcome.correlations:
        yield f"With {len(results)} of them there is no correlation to speak of."
        return
    for found in outcome.correlations:
        if found.measure == "ece_predicted":
            yield (
                f"Pearson's correlation of that ECE with "
                f"{_measure(outcome, found.outcome)} when guided: {_r(found)}."
            )
    least, count = outcome.correlations[0].least, len(outcome.correlations)
    below = sum(found.p <= 0.05 for found in outcome.correlations)
    yield (
        f"p is the share of all orders of the {len(results)} classifiers that correlate as far. "
        f"It cannot be less than {least:.3f}, and {count} correlations were looked at, of which "
        f"{below} have p of 0.05 or less: so few points can contradict a claim, but not prove it."
    )


def _form(result: ClassifierResult, gates: float) -> Form:
    """The classifier's form as it guides, with this factor inside its gates."""
    return next(f for f in result.reading.forms if f.beta is not None and f.gates == gates)


def _strengths(
    result: ClassifierResult, soft: Softer
) -> tuple[tuple[str, ArmResult, ArmResult], tuple[str, ArmResult, ArmResult]]:
    """A network softened and as it is, at both strengths."""
    return (
        ("most accurate", soft.arm, result.arm),
        ("closest to renders", soft.closest, result.closest),
    )


def _about_gates(outcome: Outcome) -> Iterator[str]:
    name, accuracy = _objective(outcome), _measure(outcome, "accuracy")
    for result in outcome.classifiers:
        for soft in result.softer:
            plain, form = result.reading.forms[0], _form(result, soft.gates)
            said = []
            for strength, one, other in _strengths(result, soft):
                words = _both(one.measures, other.measures, name)
                said.append(
                    f"{strength}: {accuracy} {shown(name, one.measures[name])} ({words[0]}, as it "
                    f"is {shown(name, other.measures[name])}), Fréchet distance "
                    f"{shown('frechet', one.measures['frechet'])} ({words[1]}, as it is "
                    f"{shown('frechet', other.measures['frechet'])})"
                )
            yield (
                f"**{result.name}**, gates {soft.gates:g}, {'; '.join(said)}. The steadiness of "
                f"its gradient is {form.steadiness.value:.3f}, as it is "
                f"{plain.steadiness.value:.3f}; it reads {shown('accuracy', form.accuracy)} of "
                f"clean renders, as it is {shown('accuracy', plain.accuracy)}."
            )


def advice(outcome: Outcome) -> str:
    """What to do with GELU and SiLU networks, in one sentence.

    Softened gates are worth it if they are better in judged accuracy or Frechet distance by two
    standard errors, at either strength, and worse in none of them.
    """
    helped, harmed, level = [], [], []
    for result in outcome.classifiers:
        for soft in result.softer:
            words = [
                word
                for _, one, other in _strengths(result, soft)
                for word in _both(one.measures, other.measures, _objective(outcome))
            ]
            kind = f"{result.name} with gates {soft.gates:g}"
            if "worse" in words:
                harmed.append(kind)
            elif "better" in words:
                helped.append(kind)
            else:
                level.append(kind)
    said = "; ".join(
        f"{title} {', '.join(found)}"
        for title, found in (("better:", helped), ("worse:", harmed), ("level:", level))
        if found
    )
    if helped and not harmed and not level:
        return f"Soften the gates of GELU and SiLU networks: guidance gets better ({said})."
    if helped:
        return (
            "Try softened gates on your own GELU or SiLU network, and leave it as it is if you "
            f"cannot compare: softening did not help throughout ({said})."
        )
    return f"Leave GELU and SiLU networks as they are: softening helped nowhere ({said})."


# Values and tables


def _number(value: float | None) -> float | str | None:
    """JSON knows neither NaN nor infinity."""
    if value is None or math.isnan(value):
        return None
    return value if math.isfinite(value) else "inf"


def _measures(measures: Mapping[str, Measure]) -> dict[str, Any]:
    return {
        name: {"value": _number(m.value), "standard_error": _number(m.error)}
        for name, m in measures.items()
    }


def _arm(arm: ArmResult) -> dict[str, Any]:
    return {
        "arm": arm.name,
        "label": arm.label,
        "recipe": arm.recipe,
        "scale": arm.scale,
        "trials": [
            {"scale": t.scale, "score": _number(t.score), "frechet": _number(t.tie)}
            for t in arm.trials
        ],
        "measures": _measures(arm.measures),
        "seconds_per_image": arm.seconds_per_image,
        "skipped_guidance": arm.skipped,
        "images": len(arm.images),
    }


def _classifier(result: ClassifierResult) -> dict[str, Any]:
    honesty = {
        view: {
            "integral_ece": _measures({"mean": h.mean})["mean"],
            "trapezoid": h.trapezoid,
            "smooth_ece": h.smooth,
            "accuracy": h.accuracy,
            "levels": [
                dict(zip(("log_snr", "ece", "accuracy", "confidence"), row, strict=True))
                for row in h.curve
            ],
        }
        for view, h in result.reading.honesty.items()
    }
    return {
        "classifier": result.name,
        "parameters": result.parameters,
        "has_relus": result.kinks,
        "has_gates": result.gates,
        "clean_ece": result.reading.clean_ece,
        "views": honesty,
        "forms": [
            {
                "softplus": form.beta,
                "gates": form.gates,
                **_measures({"accuracy": form.accuracy, "steadiness": form.steadiness}),
            }
            for form in result.reading.forms
        ],
        "guided": _arm(result.arm),
        "guided_closest_to_renders": _arm(result.closest),
        "guided_with_soft_gates": [
            {
                "gates": soft.gates,
                "guided": _arm(soft.arm),
                "guided_closest_to_renders": _arm(soft.closest),
            }
            for soft in result.softer
        ],
    }


def as_values(outcome: Outcome) -> dict[str, Any]:
    """Everything that was found, as JSON values."""
    return {
        **outcome.record,
        "objective": _objective(outcome),
        "renders": _measures(outcome.floor),
        "arms": [_arm(arm) for arm in outcome.arms],
        "arms_closest_to_renders": [_arm(arm) for arm in outcome.closest],
        "grid": [
            {
                "axis": p.axis,
                "settings": {key: _number(value) for key, value in p.values.items()},
                "preset": p.preset,
                "scale": p.scale,
                "measures": _measures(p.measures),
            }
            for p in outcome.grid
        ],
        "classifiers": [_classifier(result) for result in outcome.classifiers],
        "correlations": [
            {"of": f.measure, "with": f.outcome, "r": _number(f.r), "p": _number(f.p),
             "least_p": f.least}
            for f in outcome.correlations
        ],
        "report": markdown(outcome),
    }  # fmt: skip


def arm_rows(outcome: Outcome, arms: Sequence[ArmResult]) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of the ablation's table; the last row is renders themselves."""
    names = list(arms[0].measures)
    arrows = {"up": "↑", "down": "↓"}
    titles = ["arm", *(f"{column(n).title} {arrows[column(n).better]}" for n in names)]
    titles += ["strength", "s / image"]
    rows = [
        [
            arm.label,
            *(shown(n, arm.measures[n]) for n in names),
            "–" if arm.scale is None else f"{arm.scale:.3g}",
            f"{arm.seconds_per_image:.2f}",
        ]
        for arm in arms
    ]
    real = [shown(n, outcome.floor[n]) if n in outcome.floor else "–" for n in names]
    return titles, [*rows, ["*renders*", *real, "–", "–"]]


def grid_rows(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of the table of what lies around the preset."""
    name = _objective(outcome)
    titles = ["changed", "to", f"{_measure(outcome, 'accuracy')} ↑", "Fréchet distance ↓"]
    rows = [
        [
            AXES[p.axis],
            f"**{_setting(p)}**" if p.preset else _setting(p),
            shown(name, p.measures[name]),
            shown("frechet", p.measures["frechet"]),
        ]
        for p in outcome.grid
    ]
    return titles, rows


def _guided_titles(outcome: Outcome) -> list[str]:
    accuracy = _measure(outcome, "accuracy")
    return [
        f"most accurate: {accuracy} ↑", "Fréchet distance ↓", "strength",
        f"closest to renders: {accuracy} ↑", "Fréchet distance ↓", "strength",
    ]  # fmt: skip


def _guided_cells(outcome: Outcome, arm: ArmResult, closest: ArmResult) -> list[str]:
    name = _objective(outcome)
    return [
        text
        for one in (arm, closest)
        for text in (
            shown(name, one.measures[name]),
            shown("frechet", one.measures["frechet"]),
            "–" if one.scale is None else f"{one.scale:.3g}",
        )
    ]


def classifier_rows(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of the table of classifiers before they guide."""
    titles = [
        "classifier", "parameters", "accuracy, clean", "ECE, clean",
        "ECE at x_0, mean", "trapezoid", "smooth",
        "ECE at x_t, mean", "trapezoid", "smooth",
    ]  # fmt: skip
    rows = []
    for result in outcome.classifiers:
        row = [result.name, f"{result.parameters:,}"]
        row += [shown("accuracy", result.reading.forms[0].accuracy)]
        row += [f"{result.reading.clean_ece:.3f}"]
        for view in ("predicted", "noised"):
            found = result.reading.honesty[view]
            row += [
                f"{found.mean.value:.3f} ± {found.mean.error or 0:.3f}",
                f"{found.trapezoid:.3f}",
                f"{found.smooth:.3f}",
            ]
        rows.append(row)
    return titles, rows


def correlation_rows(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of the table of correlations."""
    names = [n for n in OUTCOMES if any(f.outcome == n for f in outcome.correlations)]
    found = {(f.measure, f.outcome): f for f in outcome.correlations}
    titles = ["known before guiding", *(f"with {_measure(outcome, n)}" for n in names)]
    return titles, [
        [title, *(_r(found[measure, n]) for n in names)] for measure, title in MEASURES.items()
    ]


def gate_rows(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of the table of classifiers as they guide, in all forms."""
    titles = ["classifier", "activations", "accuracy, clean", "steadiness"]
    titles += _guided_titles(outcome)
    rows = []
    for result in outcome.classifiers:
        arms = {1.0: (result.arm, result.closest)}
        arms |= {soft.gates: (soft.arm, soft.closest) for soft in result.softer}
        for form in result.reading.forms:
            if form.beta is not None and form.gates == 1 and not result.kinks:
                continue  # Softplus has nothing to do
            words = ["as they are"] if form.beta is None else []
            words += [f"Softplus({form.beta:g})"] if form.beta is not None and result.kinks else []
            words += [f"gates {form.gates:g}"] if form.gates != 1 else []
            row = [result.name, ", ".join(words), shown("accuracy", form.accuracy)]
            row += [f"{form.steadiness.value:.3f} ± {form.steadiness.error or 0:.3f}"]
            if form.beta is None and result.kinks:
                row += ["–"] * 6  # it does not guide like that
            else:
                row += _guided_cells(outcome, *arms[form.gates])
            rows.append(row)
    return titles, rows


Table = tuple[str, list[str], list[list[str]]]


def tables(outcome: Outcome) -> list[Table]:
    """All tables as people read them: what it is about, titles, rows."""
    arms = outcome.arms
    found: list[Table] = [("Each at its most accurate strength", *arm_rows(outcome, arms))]
    if outcome.closest:
        arms = [arms[0], *outcome.closest]
        found.append(("Each at the strength closest to renders", *arm_rows(outcome, arms)))
    if outcome.grid:
        found.append(("Around the preset", *grid_rows(outcome)))
    if outcome.classifiers:
        found.append(("Classifiers before they guide", *classifier_rows(outcome)))
        found.append(("Classifiers as they guide", *gate_rows(outcome)))
    if outcome.correlations:
        found.append(("Correlations over classifiers", *correlation_rows(outcome)))
    return found


def markdown(outcome: Outcome) -> str:
    """Tables and findings in Markdown, with headings of the third level."""
    parts = []
    for title, titles, rows in tables(outcome):
        ruler = ["---", *("---:" for _ in titles[1:])]
        table = "".join(f"| {' | '.join(row)} |\n" for row in (titles, ruler, *rows))
        parts.append(f"**{title}**\n\n{table}")
    return "\n".join([*parts, findings(outcome)])


def table_csv(outcome: Outcome) -> str:
    """One line an arm, a point of the grid, or a form of a classifier, in full precision."""
    rows: list[dict[str, Any]] = []

    def add(what: str, who: str, scale: float | None, measures: Mapping[str, Measure]) -> None:
        row: dict[str, Any] = {"part": what, "name": who, "strength": scale}
        for name, m in measures.items():
            row[name], row[f"{name}_standard_error"] = _number(m.value), _number(m.error)
        rows.append({key: "" if value is None else value for key, value in row.items()})

    for arm in outcome.arms:
        add("ablation", arm.name, arm.scale, arm.measures)
    for arm in outcome.closest:
        add("closest", arm.name, arm.scale, arm.measures)
    for p in outcome.grid:
        told = ";".join(f"{key}={value:g}" for key, value in p.values.items())
        add("grid", told, p.scale, p.measures)
    for result in outcome.classifiers:
        known = {
            f"ece_{view}": Measure(h.mean.value, h.mean.error)
            for view, h in result.reading.honesty.items()
        } | {
            f"smooth_ece_{view}": Measure(h.smooth) for view, h in result.reading.honesty.items()
        } | {
            f"trapezoid_{view}": Measure(h.trapezoid) for view, h in result.reading.honesty.items()
        }  # fmt: skip
        known |= {"clean_accuracy": result.reading.forms[0].accuracy}
        add("classifier", result.name, result.arm.scale, {**result.arm.measures, **known})
        closest = result.closest
        add("classifier, closest", result.name, closest.scale, {**closest.measures, **known})
        for soft in result.softer:
            form = _form(result, soft.gates)
            known = {"clean_accuracy": form.accuracy, "steadiness": form.steadiness}
            who = f"{result.name};gates={soft.gates:g}"
            add("gates", who, soft.arm.scale, {**soft.arm.measures, **known})
            add("gates, closest", who, soft.closest.scale, {**soft.closest.measures, **known})
    return csv_text(list(dict.fromkeys(key for row in rows for key in row)), rows)


# Plots


def _math(label: str) -> str:
    """Symbols as matplotlib sets them."""
    for plain, set_ in (("x_t", "$x_t$"), ("x_0", "$x_0$"), ("gamma", "$\\gamma$"),
                        ("beta", "$\\beta$")):  # fmt: skip
        label = label.replace(plain, set_)
    return label


def _factor(name: str) -> int:
    return 100 if column(name).percent else 1


def _title(name: str) -> str:
    return column(name).title + (", %" if column(name).percent else "")


def _colours(outcome: Outcome) -> list[str]:
    """One an arm; EluCD alone has its own."""
    if len(outcome.arms) == 1:
        return [ARM_COLOURS[-1]]
    return [ARM_COLOURS[k % len(ARM_COLOURS)] for k in range(len(outcome.arms))]


def plot(outcome: Outcome, path: Path) -> None:
    """The ablation as bars, what strength buys, and what calibration has to do with guidance."""
    name = _objective(outcome)
    rows = 2 if outcome.classifiers else 1
    figure, axes = new_figure(13.2, 3.9 * rows, nrows=rows, ncols=3, squeeze=False)
    for ax, measure in zip(axes[0], (name, "frechet"), strict=False):
        _bars(ax, outcome, measure)
    axes[0][1].set_yticklabels([])
    _trades(axes[0][2], outcome)
    if outcome.classifiers:
        for ax, measure in zip(axes[1], (name, "frechet"), strict=False):
            _scatter(ax, outcome, measure)
        _gates(axes[1][2], outcome)
    save_figure(figure, path)


def _bars(ax: Any, outcome: Outcome, name: str) -> None:
    """One arm a row: at its most accurate strength, and below, paler, closest to renders."""
    factor = _factor(name)
    places = list(range(len(outcome.arms)))[::-1]
    other = {arm.name: arm for arm in outcome.closest}
    for place, arm, colour in zip(places, outcome.arms, _colours(outcome), strict=True):
        pair = [arm] if arm.name not in other else [arm, other[arm.name]]
        height = 0.76 / len(pair)
        for j, one in enumerate(pair):
            m = one.measures[name]
            if math.isnan(m.value):
                continue
            ax.barh(
                place + (0.5 * (len(pair) - 1) - j) * height, m.value * factor, height * 0.94,
                color=colour, alpha=0.4 if j else 0.9, capsize=2.5,
                xerr=None if m.error is None else m.error * factor,
                error_kw={"linewidth": 1.2, "ecolor": INK},
            )  # fmt: skip
    if name in outcome.floor and not math.isnan(outcome.floor[name].value):
        ax.axvline(outcome.floor[name].value * factor, color=INK, linewidth=1,
                   linestyle=(0, (4, 3)), label="renders")  # fmt: skip
        ax.legend(fontsize=8, frameon=False)
    ax.set_yticks(places, [_math(arm.label) for arm in outcome.arms])
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
    better = "right" if column(name).better == "up" else "left"
    ax.set_title(_title(name), fontsize=10, loc="left")
    ax.set_xlabel(
        f"better: {better}; full: most accurate strength, pale: closest to renders",
        fontsize=7.5, color=GREY,
    )  # fmt: skip


def _trades(ax: Any, outcome: Outcome) -> None:
    """Objective against distance on the validation set, along the strengths that were tried."""
    name = _objective(outcome)
    factor = _factor(name)
    for arm, colour in zip(outcome.arms, _colours(outcome), strict=True):
        if not arm.trials:
            continue
        xs, ys = [t.tie for t in arm.trials], [t.score * factor for t in arm.trials]
        ax.plot(xs, ys, "o-", color=colour, markersize=4, linewidth=1.4, label=_math(arm.label))
        for x, y, t in zip(xs, ys, arm.trials, strict=True):
            if t.scale == arm.scale:
                ax.plot([x], [y], "o", markersize=11, fillstyle="none", color=colour)
    ax.set_xscale("log")
    for axis in (ax.xaxis.set_major_formatter, ax.xaxis.set_minor_formatter):
        axis(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "125" else "")
    ax.set_title("What strength buys, on the validation set", fontsize=10, loc="left")
    ax.set_ylabel(_title(name))
    ax.set_xlabel("Fréchet distance (better: left); rings: most accurate strength", fontsize=8)
    ax.tick_params(axis="x", which="both", labelsize=8)
    ax.legend(fontsize=7, frameon=False)


def _scatter(ax: Any, outcome: Outcome, name: str) -> None:
    """What guidance achieves against the integral ECE at the predicted x_0."""
    factor = _factor(name)
    for k, result in enumerate(outcome.classifiers):
        x, y = result.reading.honesty["predicted"].mean, result.closest.measures[name]
        colour = COLOURS[k % len(COLOURS)]
        ax.errorbar(
            x.value, y.value * factor, xerr=x.error,
            yerr=None if y.error is None else y.error * factor, fmt="o", color=colour,
            markersize=8, capsize=3, linewidth=1.3,
        )  # fmt: skip
        kind = "ReLU" if result.kinks else "smooth"
        ax.annotate(
            f"{result.name} ({kind})", (x.value, y.value * factor), (9, 7),
            textcoords="offset points", fontsize=8.5, color=colour,
        )  # fmt: skip
    outcome_name = "accuracy" if name == _objective(outcome) else name
    found = [
        f for f in outcome.correlations
        if (f.measure, f.outcome) == ("ece_predicted", outcome_name)
    ]  # fmt: skip
    count = len(outcome.classifiers)
    said = f"r = {_r(found[0])}, n = {count}" if found else f"n = {count}"
    ax.set_title(f"{_title(name)}: {said}", fontsize=10, loc="left")
    ax.set_xlabel(_math("integral ECE at the predicted x_0 (left is better)"), fontsize=9)
    better = "up" if column(name).better == "up" else "down"
    ax.set_ylabel(f"guided, closest to renders; better: {better}", fontsize=9)
    ax.margins(x=0.22, y=0.16)


def _gates(ax: Any, outcome: Outcome) -> None:
    """GELU and SiLU networks as they are and softened, at both strengths."""
    name = _objective(outcome)
    factor = _factor(name)
    place, ticks, labels = 0.0, [], []
    for k, result in enumerate(outcome.classifiers):
        if not result.softer:
            continue
        arms = [("as it is", result.arm, result.closest)]
        arms += [(f"gates {soft.gates:g}", soft.arm, soft.closest) for soft in result.softer]
        for label, arm, closest in arms:
            for j, one in enumerate((arm, closest)):
                m = one.measures[name]
                error = None if m.error is None else m.error * factor
                at = place + 0.4 * (j - 0.5)
                ax.bar(at, m.value * factor, 0.38, color=COLOURS[k % len(COLOURS)],
                       alpha=0.4 if j else 0.9, yerr=error, capsize=2.5,
                       error_kw={"linewidth": 1.2, "ecolor": INK})  # fmt: skip
                ax.annotate(
                    f"FD {one.measures['frechet'].value:.1f}", (at, 0), (0, 5), fontsize=8,
                    textcoords="offset points", ha="center", va="bottom", rotation=90,
                    color=INK if j else "white",
                )  # fmt: skip
            ticks.append(place)
            labels.append(f"{result.name}\n{label}")
            place += 1
        place += 0.5
    if not ticks:
        ax.set_axis_off()
        return
    ax.set_xticks(ticks, labels, fontsize=8)
    ax.grid(False, axis="x")
    ax.set_title("Softened gates: judged accuracy, %", fontsize=10, loc="left")
    ax.set_xlabel(
        "full: most accurate strength, pale: closest to renders\nFD: Fréchet distance",
        fontsize=7.5, color=GREY,
    )  # fmt: skip


def plot_grid(outcome: Outcome, path: Path) -> None:
    """One setting of the preset changed at a time; the preset is filled."""
    name = _objective(outcome)
    figure, axes = new_figure(
        11.5, 5.6, nrows=2, ncols=len(AXES), squeeze=False, sharex="col", sharey="row"
    )
    for row, measure in enumerate((name, "frechet")):
        factor = _factor(measure)
        for ax, (axis, title) in zip(axes[row], AXES.items(), strict=True):
            points = [point for point in outcome.grid if point.axis == axis]
            for place, point in enumerate(points):
                m = point.measures[measure]
                ax.errorbar(
                    place, m.value * factor, yerr=None if m.error is None else m.error * factor,
                    fmt="o", color=COLOURS[0], markersize=8, capsize=3, linewidth=1.4,
                    markerfacecolor=COLOURS[0] if point.preset else "white",
                )  # fmt: skip
            ax.set_xticks(range(len(points)), [_setting(p) for p in points])
            ax.grid(False, axis="x")
            ax.margins(x=0.15)
            if row:
                ax.set_xlabel(_math(title))
        axes[row][0].set_ylabel(_title(measure))
    figure.suptitle(
        "elucd with one setting changed, all at one strength; filled: the preset", fontsize=10
    )
    save_figure(figure, path)


# Pictures


def _row(title: str, arm: ArmResult) -> tuple[str, list[tuple[str, Image.Image]]]:
    pictures = from_tensor(to_unit(arm.images[:COLUMNS]))
    strength = "" if arm.scale is None else f", strength {arm.scale:.3g}"
    return title + strength, list(zip(arm.captions, pictures, strict=False))


def sheet(outcome: Outcome) -> Image.Image:
    """The same few targets by every arm of the ablation, a row an arm and strength."""
    other = {arm.name: arm for arm in outcome.closest}
    rows = []
    for arm in outcome.arms:
        rows.append(_row(arm.label, arm))
        if arm.name in other and other[arm.name].scale != arm.scale:
            rows.append(_row(f"{arm.label}, closest to renders", other[arm.name]))
    return contact_sheet(rows, cell=96)


def classifier_sheet(outcome: Outcome) -> Image.Image:
    """The same few targets by every classifier, as it is and softened, closest to renders."""
    rows = []
    for result in outcome.classifiers:
        rows.append(_row(f"elucd, {result.name}", result.closest))
        for soft in result.softer:
            rows.append(_row(f"elucd, {result.name}, gates {soft.gates:g}", soft.closest))
    return contact_sheet(rows, cell=96)


__all__ = [
    "STEADY_NOISE", "advice", "arm_rows", "as_values", "classifier_rows", "classifier_sheet",
    "correlation_rows", "findings", "gate_rows", "grid_rows", "markdown", "plot", "plot_grid",
    "sheet", "table_csv", "tables", "verdict", "write_report",
]  # fmt: skip
