"""What holds for all tests, of the host and of the plugins."""

from __future__ import annotations

import os
from typing import Any

import pytest
import skips
from hypothesis import HealthCheck, settings

# A machine that does other things as well is no fault of the code.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


def skipped(reporter: Any) -> list[str]:
    """Why tests were skipped, a reason each; but for checks of the kit that do not apply.

    These raise unittest's exception (:class:`ppap_host.testing.checks.CannotCheck`), as no test
    here does, and what may not apply to what is the kit's own matter, with tests of its own.
    """
    reports = reporter.stats.get("skipped", []) if reporter is not None else []
    of_kit = os.path.join("_pytest", "unittest.py")
    own = [report for report in reports if not str(report.longrepr[0]).endswith(of_kit)]
    return [str(report.longrepr[2]).removeprefix("Skipped: ") for report in own]


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
    absent = reasons.count(skips.ABSENT)
    if absent:
        terminalreporter.write_line(f"{absent} tests were skipped: {skips.ABSENT}")
