"""The page on Python and its notebook are one text, and it runs as written."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

DOCS = Path(__file__).parent.parent / "docs"


def test_the_notebook_is_that_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    import notebook

    assert (DOCS / "notebook.ipynb").read_text(encoding="utf-8") == notebook.written(), (
        "run `python docs/notebook.py`"
    )


@pytest.mark.slow
def test_the_notebook_runs_and_shows_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The kernel of this very interpreter, whatever else is installed.
    specification = tmp_path / "kernels" / "python3"
    specification.mkdir(parents=True)
    launch = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    described = {"argv": launch, "display_name": "Python 3", "language": "python"}
    (specification / "kernel.json").write_text(json.dumps(described))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONWARNINGS", os.environ.get("PYTHONWARNINGS", ""))
    book = nbformat.read(DOCS / "notebook.ipynb", as_version=4)
    book.cells.append(nbformat.v4.new_code_cell("result"))
    client = NotebookClient(
        book,
        timeout=300,
        startup_timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    (shown,) = book.cells[-1].outputs
    assert "image/png" in shown.data
    with Image.open(tmp_path / "cubes" / "sheet.png") as sheet:
        assert sheet.width > 256
