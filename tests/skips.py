"""What may be skipped, and why; any other skip fails the run.

A test that cannot run where it must is no test. So nothing is skipped for a package that is not
installed (the environment of the tests has them all), and nothing in silence.
"""

from __future__ import annotations

from collections.abc import Iterable

ABSENT = "no reference vectors here: set PPAP_VECTORS to their folder"
"""Why a test of vectors is skipped."""

EXPECTED = {
    ABSENT: "the repository does not hold them; `.ci/run` fails without",
    "mounting a small file system needs root": "of a full disk; CI runs as root",
    "root may read and write everything": "but on Linux, where the power can be laid down",
    "folders have no such permission": "on Windows",
    "there is no disk that is always full": "where there is no /dev/full",
    "programs have other names and places": "on Windows",
    "libraries are copied there": "on Windows",
    "the page was made with another diffusers": "with the lowest versions, or newer ones",
    "this transformers has no EoMT": "with the lowest versions",
    "pages show commands of a POSIX shell": "on Windows",
}
"""Reasons that tests give, and where that is so."""


def unexpected(reasons: Iterable[str]) -> dict[str, int]:
    """Reasons that are not in the list, and how often each was given."""
    found: dict[str, int] = {}
    for reason in reasons:
        if reason not in EXPECTED:
            found[reason] = found.get(reason, 0) + 1
    return found
