"""How tests call the command line, as whom they read files, and what they may skip."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import privileges
import pytest
import skips
import vectors
from installation import wheelhouse as wheelhouse
from processes import Outcome, run_process

Call = Callable[..., Outcome]


def skipped(reporter: Any) -> list[str]:
    """Why tests were skipped, a reason each."""
    reports = reporter.stats.get("skipped", []) if reporter is not None else []
    return [str(report.longrepr[2]).removeprefix("Skipped: ") for report in reports]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A skip that is not in the list of :mod:`skips` is a failure."""
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    # Processes that run a share of the tests report to the one that started them.
    alone = not hasattr(session.config, "workerinput")
    passed = session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    if alone and passed and skips.unexpected(skipped(reporter)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says which skips nobody expects, and at the very end what the vectors would have added."""
    reasons = skipped(terminalreporter)
    for reason, count in skips.unexpected(reasons).items():
        terminalreporter.write_line(f"FAILED: {count} skipped, not expected: {reason}", red=True)
    absent = reasons.count(vectors.ABSENT)
    if absent:
        terminalreporter.write_line(f"{absent} tests were skipped: {vectors.ABSENT}")


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
