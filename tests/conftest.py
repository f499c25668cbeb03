"""How tests call the command line, and as whom they read files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import privileges
import pytest
from installation import wheelhouse as wheelhouse
from processes import Outcome, run_process

Call = Callable[..., Outcome]


@pytest.fixture
def ppap(tmp_path: Path) -> Call:
    """Runs ``ppap`` as a process of its own in an empty folder."""

    def call(*arguments: object) -> Outcome:
        return run_process([sys.executable, "-m", "ppap_host", *map(str, arguments)], tmp_path)

    return call


@pytest.fixture
def ppap_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Call:
    """Runs ``ppap`` in this process and an empty folder: torch is imported once for all tests."""
    from ppap_host.cli import main

    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["ppap", *map(str, arguments)])
        capsys.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        assert isinstance(code, int)
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture
def as_user() -> Iterator[None]:
    """As somebody whom permissions stop."""
    with privileges.without_power_over_files():
        yield
