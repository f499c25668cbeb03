"""Tables that are whole: at the width of the terminal, and where there is none, line by line."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

from ppap_host.cli.output import Part, clean, console, is_terminal

if TYPE_CHECKING:
    from rich.text import Text

_EDGE = 1
_AROUND = 3
"""Columns of the terminal that a column of a table takes besides its content."""
_READABLE = 24
"""Narrower than this, prose is not put beside other columns."""

Cell = str | Part


@dataclass(frozen=True)
class Column:
    """How a column is shown.

    Attributes:
        title: perhaps in several lines.
        number: whether it stands to the right.
        prose: whether it may be broken between words where there is no room; all other cells stay
            in one line.
    """

    title: str
    number: bool = False
    prose: bool = False


def show_table(
    columns: Sequence[Column],
    rows: Iterable[Sequence[Cell]],
    title: str = "",
    *,
    last: Sequence[Sequence[Cell]] = (),
) -> None:
    """Prints a table on standard output.

    A terminal gets frames, and where its columns do not fit, the table in several parts that each
    begin with the first column. Nothing is cut. A pipe gets a line a row, whatever its length.

    Args:
        last: rows that are set apart, such as a sum or a mean.
    """
    every = [[_parts(cell) for cell in row] for row in rows]
    end = [[_parts(cell) for cell in row] for row in last]
    if not is_terminal(sys.stdout):
        _show_lines(columns, every + end, title)
        return
    from rich.table import Table
    from rich.text import Text

    out = console()
    widths = [
        _needed(column, [row[i] for row in (*every, *end)]) for i, column in enumerate(columns)
    ]
    for number, shown in enumerate(_blocks(widths, out.width)):
        name = clean(title) + (" (continued)" if number else "")
        table = Table(title=Text(name) if title else None, title_justify="left")
        # One column may be too wide beside the first: then both are folded, and nothing is cut.
        fits = sum(widths[i] + _AROUND for i in shown) + _EDGE <= out.width
        for i in shown:
            column = columns[i]
            table.add_column(
                Text(_parts(column.title)[0]),
                justify="right" if column.number else "left",
                overflow="fold",
                no_wrap=fits and not column.prose,
                min_width=widths[i] if fits and not column.prose else None,
            )
        for row in every:
            table.add_row(*(_rich(row[i]) for i in shown))
        if end:
            table.add_section()
        for row in end:
            table.add_row(*(_rich(row[i]) for i in shown))
        out.print(table)


def _rich(part: Part) -> Text:
    from rich.text import Text

    return Text(*part)


def _parts(cell: Cell) -> Part:
    """A cell with its style; of its text every line is clean."""
    text, style = cell if isinstance(cell, tuple) else (cell, "")
    return "\n".join(map(clean, text.split("\n"))), style


def _width(text: str) -> int:
    """Columns of a terminal that the longest line of a text takes."""
    from rich.cells import cell_len

    return max(map(cell_len, text.split("\n")))


def _needed(column: Column, cells: Sequence[Part]) -> int:
    """Columns of the terminal that a column cannot do without."""
    texts = [column.title, *(text for text, _ in cells)]
    whole = max(map(_width, texts))
    if not column.prose:
        return whole
    words = max((_width(word) for text in texts for word in text.split()), default=0)
    return min(whole, max(words, _READABLE))


def _blocks(widths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Which columns stand side by side: as many as fit, each time behind the first."""
    shown, used = [0], widths[0] + _AROUND + _EDGE
    for i in range(1, len(widths)):
        if len(shown) > 1 and used + widths[i] + _AROUND > room:
            yield shown
            shown, used = [0], widths[0] + _AROUND + _EDGE
        shown.append(i)
        used += widths[i] + _AROUND
    yield shown


def _show_lines(columns: Sequence[Column], rows: Sequence[list[Part]], title: str) -> None:
    heads = [[" ".join(_parts(column.title)[0].split("\n")) for column in columns]]
    body = [[" ".join(text.split("\n")) for text, _ in row] for row in rows]
    table = heads + body if any(heads[0]) else body
    widths = [max(map(_width, cells)) for cells in zip_longest(*table, fillvalue="")]
    if title:
        sys.stdout.write(clean(title) + "\n")
    for row in table:
        cells = []
        for cell, column, width in zip(row, columns, widths, strict=False):
            space = " " * (width - _width(cell))
            cells.append(space + cell if column.number else cell + space)
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
    sys.stdout.flush()
