"""What a check is: a named claim about a plugin's thing, and the three ways it can end."""

from __future__ import annotations

import inspect
import time
import unittest
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from ppap_host.files.errors import OptionError, PpapError

Subject = TypeVar("Subject")
Outcome = Literal["passed", "failed", "not made"]


class ConformanceError(PpapError, AssertionError):
    """A check found a fault.

    Attributes:
        what: what is wrong, with the numbers that show it.
        why: why it matters: what would go wrong in a run.
        remedy: how to mend it.
    """

    def __init__(self, what: str, why: str, remedy: str) -> None:
        super().__init__(what, remedy=remedy)
        self.what, self.why = what, why

    def __str__(self) -> str:
        return f"{self.what}\nWhy it matters: {self.why}\nHow to mend it: {self.remedy}"


class CannotCheck(unittest.SkipTest):
    """A check cannot be made here; says why. Pytest and unittest count it as a skipped test."""


class Fault(Exception):
    """A fault as the body of a check reports it; :class:`Check` adds what the claim says of it.

    Args:
        what: what is wrong.
        remedy: how to mend it, where that is more special than the check's own remedy.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.what, self.remedy = what, remedy


def require(condition: object, what: str, remedy: str = "") -> None:
    """Reports a fault unless ``condition`` holds."""
    if not condition:
        raise Fault(what, remedy)


@dataclass(frozen=True)
class Claim(Generic[Subject]):
    """What every thing of a kind must fulfil.

    Attributes:
        name: of the check, words joined by hyphens.
        about: what is checked, one sentence.
        why: why it matters.
        remedy: how to mend the usual fault.
        body: makes the check; raises :class:`Fault` or :class:`CannotCheck`.
    """

    name: str
    about: str
    why: str
    remedy: str
    body: Callable[[Subject], None]


@dataclass(frozen=True)
class Result:
    """How a check ended.

    Attributes:
        error: the fault, if it failed.
        reason: why it was not made.
        seconds: it took.
    """

    check: str
    outcome: Outcome
    error: ConformanceError | None = None
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Check:
    """One claim about one thing; call it.

    Attributes:
        name, about: of the claim.
        run: makes the check. Raises :class:`ConformanceError` if the claim does not hold, and
            :class:`CannotCheck` if that cannot be told.
    """

    name: str
    about: str
    run: Callable[[], None]

    def __call__(self) -> None:
        """Makes the check; see :attr:`run`."""
        self.run()

    def __str__(self) -> str:
        return self.name

    def result(self) -> Result:
        """Makes the check and tells how it ended, without raising."""
        began = time.perf_counter()
        outcome: Outcome = "passed"
        error, reason = None, ""
        try:
            self.run()
        except ConformanceError as fault:
            outcome, error = "failed", fault
        except CannotCheck as cannot:
            outcome, reason = "not made", str(cannot)
        return Result(self.name, outcome, error, reason, time.perf_counter() - began)


class Suite(Generic[Subject]):
    """The claims about one kind of thing, in the order in which they are checked."""

    def __init__(self, claims: Iterable[Claim[Subject]] = ()) -> None:
        self.claims = list(claims)

    def __add__(self, other: Suite[Subject]) -> Suite[Subject]:
        return Suite([*self.claims, *other.claims])

    def claim(
        self, name: str, *, why: str, remedy: str
    ) -> Callable[[Callable[[Subject], None]], Callable[[Subject], None]]:
        """Adds the claim whose check is the decorated function; its docstring says what it is."""

        def add(body: Callable[[Subject], None]) -> Callable[[Subject], None]:
            about = " ".join((inspect.getdoc(body) or "").split("\n\n")[0].split())
            self.claims.append(Claim(name, about, why, remedy, body))
            return body

        return add

    def checks(self, subject: Subject) -> list[Check]:
        """A check of every claim about ``subject``."""
        return [Check(c.name, c.about, _runner(c, subject)) for c in self.claims]


def _runner(claim: Claim[Subject], subject: Subject) -> Callable[[], None]:
    def run() -> None:
        try:
            claim.body(subject)
        except CannotCheck:
            raise
        except Fault as fault:
            raise ConformanceError(
                fault.what, claim.why, fault.remedy or claim.remedy
            ) from fault.__cause__
        except OptionError as error:
            raise CannotCheck(f"it wants other settings: {error}") from error
        except Exception as error:
            text = " ".join(str(error).split())
            raise ConformanceError(
                f"It raises {type(error).__name__}: {text}", claim.why, claim.remedy
            ) from error

    return run
