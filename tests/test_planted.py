"""The table of planted faults fits the code and is the one in the documentation."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted.__main__ import PAGE, ROOT, page
from planted.equivalent import EQUIVALENT
from planted.faults import FAULTS
from planted.mutants import mutated
from planted.mutants import tests_of as concerned


def test_there_are_at_least_fifty_all_different() -> None:
    assert len({(f.file, f.old, f.new) for f in FAULTS}) == len(FAULTS) >= 50


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.what)
def test_a_fault_can_be_planted_and_names_tests_that_are_there(fault: object) -> None:
    """Whether they notice is what ``nox -s planted`` asks."""
    text = (ROOT / fault.file).read_text(encoding="utf-8")  # type: ignore[attr-defined]
    assert text.count(fault.old) == 1  # type: ignore[attr-defined]
    compile(text.replace(fault.old, fault.new), fault.file, "exec")  # type: ignore[attr-defined]
    for test in fault.tests:  # type: ignore[attr-defined]
        file, _, name = test.partition("::")
        assert Path(ROOT / file).is_file()
        assert name.partition("[")[0] in (ROOT / file).read_text(encoding="utf-8")


def test_the_page_is_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `nox -s planted -- --write`"


def test_mutants_have_tests_that_are_there_and_reasons_for_lines_of_their_own() -> None:
    for test in {test for file in mutated() for test in concerned(file)}:
        file, _, name = test.partition("::")
        assert name in (ROOT / file).read_text(encoding="utf-8")
    assert all(
        (ROOT / "ppap_host" / file).is_file() and why for (file, _), why in EQUIVALENT.items()
    )
