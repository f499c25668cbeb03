"""The plugins of docs/examples, as they would be found when installed."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import pytest

from ppap_host.plugins.registry import Registry

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


@contextmanager
def installed(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A registry that finds the example ``name`` as its pyproject.toml declares it."""
    folder = EXAMPLES / name
    declared = re.search(
        r'\[project\.entry-points\.ppap\]\n(\w+) = "(\w+)"',
        (folder / "pyproject.toml").read_text(),
    )
    assert declared is not None
    monkeypatch.syspath_prepend(folder / "src")
    yield Registry([metadata.EntryPoint(declared[1], declared[2], "ppap")])
    for module in [n for n in sys.modules if n.split(".")[0] == declared[2]]:
        del sys.modules[module]
