"""No recorded number is left out in silence."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import skips
import vectors

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def claims() -> None:
    """What all test modules of vectors say that they take, also if only this one runs."""
    if not vectors.CASES:
        pytest.skip(skips.ABSENT)
    files = [*ROOT.glob("tests/test_*_vectors.py"), *ROOT.glob("plugins/*/tests/test_*_vectors.py")]
    assert files
    for file in files:
        spec = importlib.util.spec_from_file_location(f"claims_of_{file.stem}", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)


def test_every_case_is_taken_or_still_to_come() -> None:
    left = [c.name for c in vectors.CASES if not vectors.later(c) and c.name not in vectors.CLAIMS]
    assert not left, f"no test takes {left}"
    for pattern, reason in vectors.NOT_YET.items():
        assert reason
        assert any(vectors.fnmatch(case.name, pattern) for case in vectors.CASES), pattern


def test_every_recorded_output_is_compared_by_a_test() -> None:
    for case in (case for case in vectors.CASES if not vectors.later(case)):
        claims = vectors.CLAIMS.get(case.name, {}).values()
        left = [name for name in case.outputs if not any(claim(name) for claim in claims)]
        assert not left, f"{case.name}: no test compares {left}"
        # Of what is in the file, all that is no input is listed as an output.
        listed = case.content["inputs"].keys() | case.outputs
        if "io.safetensors" in {path.name for path in case.folder.iterdir()}:
            strange = {name for name in case.recorded.keys() - listed if "<" not in name}
            assert not strange, f"{case.name}: {sorted(strange)} are not described"


def test_a_test_that_leaves_out_an_output_fails() -> None:
    case = vectors.CASES[0]
    kept = dict(vectors.CLAIMS)
    try:

        @vectors.take(lambda one: one is case)
        def careless(case: vectors.Case) -> None:
            for name in sorted(case.outputs)[1:]:
                case.met(name)

        with pytest.raises(AssertionError, match="not compared"):
            careless(case=case)
    finally:
        vectors.CLAIMS.clear()
        vectors.CLAIMS.update(kept)
