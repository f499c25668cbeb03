"""Plots for people, through matplotlib, which is imported only here and only when one is drawn."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppap_host.images import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ppap_host.experts import ExpertSet
    from ppap_host.tuning import Progress

# Okabe and Ito (2008): told apart by every kind of colour vision.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#999999")


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
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    write_file(path, buffer.getvalue())


def plot_tuning(experts: ExpertSet, progress: Progress, path: Path) -> None:
    """Held-out distance while tuning, and before and after by range."""
    figure, (left, right) = new_figure(10, 3.8, ncols=2)
    steps = [row["step"] for row in progress.history]
    names = [f"{p.low:.1f} to {p.high:.1f}" for p in progress.ranges]
    for i, name in enumerate(names):
        values = [row["held_out"][i] for row in progress.history]
        left.plot(steps, values, color=COLOURS[i % len(COLOURS)], label=name, linewidth=1.6)
    left.set_yscale("log")
    left.set_xlabel("optimiser step")
    left.set_ylabel("distance to the teacher, held out")
    left.legend(title="log-SNR", fontsize=8, title_fontsize=8, frameon=False)
    quality = experts.metadata["quality"]
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
    figure.suptitle(f"{experts.metadata['guide']}: knowledge transfer without labels", fontsize=11)
    save_figure(figure, path)
