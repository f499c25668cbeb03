"""Names from files, plugins and the command line in what other programs read: plots and tables."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from ppap_plugin_bench.plots import new_figure, save_figure

from ppap_host.files.writing import csv_text


@pytest.mark.parametrize(
    "name", ["$\\frac{$", "$\\badcmd$", "a$b$c", "\ud800", "\x1b[31m", f"${'{' * 300}{'}' * 300}$"]
)
def test_a_plot_shows_a_name_and_does_not_obey_it(tmp_path: Path, name: str) -> None:
    figure, ax = new_figure(12, 4)
    title, own = figure.suptitle(name), ax.set_xlabel("gradient at $x_t$")
    if name.isprintable() and len(name) < 50:  # a tick is given its text again while it is drawn
        ax.set_yticks([0.5], [name])
    ax.plot([0, 1], [0, 1], label="x" + name[:20])
    ax.legend()
    save_figure(figure, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
    assert own.get_parse_math() and (not title.get_parse_math() or "$" not in name)


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("=1+1", True), ("@SUM(A1)", True), ("-2+cmd|' /C calc'!A0", True), ("+x", True),
        ("\t=1", True), ("-3:3", False), ("-1e-05", False), ("-inf:2", False), ("a=1", False),
        ("", False),
    ],
)  # fmt: skip
def test_a_spreadsheet_runs_nothing_of_a_table(text: str, formula: bool) -> None:
    rows = list(csv.reader(io.StringIO(csv_text([text, "n"], [{text: text, "n": -1.5}, ["x"]]))))
    shown = f"'{text}" if formula else text
    assert rows == [[shown, "n"], [shown, "-1.5"], ["x"]]
