"""The measurement of a guided step's memory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from ppap_plugin_openai.memory import CASES, Footprint, table


def test_the_table_compares_with_the_unguided_step() -> None:
    gib = 2**30
    lines = table(
        {"unguided": Footprint(2 * gib, 3 * gib, 1.0), "guided": Footprint(2 * gib, 5 * gib, 2.5)}
    ).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split()[-3:] == ["+0.00", "GiB", "1.0"]
    assert lines[2].split()[-3:] == ["+2.00", "GiB", "2.5"]


@pytest.mark.slow
def test_a_step_through_the_backbone_takes_more_than_one_without_a_guide() -> None:
    def peak(case: str) -> int:
        command = [sys.executable, "-m", "ppap_plugin_openai.memory", "--channels", "32"]
        run = subprocess.run([*command, "--case", case], check=True, stdout=subprocess.PIPE)
        taken = Footprint(**json.loads(run.stdout))
        assert 0 < taken.loaded <= taken.peak
        return taken.peak

    names = list(CASES)
    assert peak(names[3]) - peak(names[0]) > 2**28
