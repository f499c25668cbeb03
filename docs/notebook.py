"""Writes the notebook of the page on Python: ``python docs/notebook.py``.

The page and the notebook are one text: a test compares them, and runs the notebook.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
PAGE, FILE = DOCS / "python.md", DOCS / "notebook.ipynb"


def notebook() -> dict[str, Any]:
    """The cells of the page: text and code in turns."""
    cells: list[dict[str, Any]] = []
    parts = re.split(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    for number, part in enumerate(map(str.strip, parts)):
        if not part:
            continue
        cell: dict[str, Any] = {
            "cell_type": "code" if number % 2 else "markdown",
            "id": f"part-{number}",
            "metadata": {},
            "source": part.splitlines(keepends=True),
        }
        if number % 2:
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5,
    }  # fmt: skip


def written() -> str:
    """The notebook as its file holds it."""
    return json.dumps(notebook(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(written(), encoding="utf-8")
    print(f"wrote {FILE.name}")
