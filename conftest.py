"""What holds for all tests, of the host and of the plugins."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import jaxtyping
import pytest
import skips
from hypothesis import HealthCheck, settings

# A machine that does other things as well is no fault of the code.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

_jaxtyped = jaxtyping.jaxtyped
_SHAPE = re.compile(r"\b(Bool|Complex|Float|Int|UInt)\d*\[")


def has_shapes(thing: Any) -> bool:
    """Whether the annotations of a function, or of a class's attributes, name shapes."""
    inner = getattr(thing, "fget", thing)  # of a property; of class and static methods next
    inner = getattr(inner, "__func__", inner)
    home = vars(sys.modules[inner.__module__])
    for hint in inspect.get_annotations(inner).values():
        words = re.findall(r"\w+", hint) if isinstance(hint, str) else ()
        if any(_SHAPE.search(str(text)) for text in (hint, *map(home.get, words))):
            return True
    return False


def only_where_shapes_are(*, typechecker: Any) -> Callable[[Any], Any]:
    """Jaxtyping's decorator, which leaves alone what has no shape in its annotations.

    Jaxtyping wraps every function of the packages that are checked (``--jaxtyping-packages``). Most
    have no shapes, mypy knows their types, and half of the time of a sampling test went there.
    """

    def decorated(thing: Any) -> Any:
        return _jaxtyped(thing, typechecker=typechecker) if has_shapes(thing) else thing

    return decorated


jaxtyping.jaxtyped = only_where_shapes_are


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What may take longest comes first: processes that share the tests end at the same time."""
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)


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
