"""Files as people have them are read as they are meant, and what was understood is in the docs."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from scripts import script

FILES = script("target_files")
CASES = {case.file: case for case in FILES.cases()}
TOLD = {row["file"]: row for row in json.loads(FILES.RESULTS.read_text(encoding="utf-8"))}


def test_there_are_at_least_sixty_files_and_the_docs_have_all() -> None:
    assert len(CASES) == len(FILES.cases()) >= 60
    assert list(TOLD) == list(CASES)
    assert not [row for row in TOLD.values() if row["wrong"]]


@pytest.mark.parametrize("name", CASES)
def test_a_file_is_read_as_it_is_meant(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    if case.needs and importlib.util.find_spec(case.needs) is None:
        pytest.skip(f"{case.needs} comes with the extra formats")
    monkeypatch.chdir(tmp_path)
    found = FILES.answer(case)
    assert found.wrong == ""
    # The table in docs/targets.md: run `python docs/target_files.py`.
    assert (TOLD[name]["said"], TOLD[name]["doubted"]) == (found.said, bool(found.doubts))
