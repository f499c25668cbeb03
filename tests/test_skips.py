"""What holds for all tests: no skip that nobody expects, and shapes are what annotations say."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jaxtyping
import privileges
import pytest
import skips
import torch
from beartype import beartype
from jaxtyping import Float
from processes import Outcome, plain_environment, run_process
from torch import Tensor

from ppap_host.files.images import to_pixels
from ppap_host.sampling.balance import plain_sum

ROOT = Path(__file__).parents[1]


def ran(folder: Path, reason: str, *options: str) -> Outcome:
    test = (
        f"import pytest\n\ndef test_one():\n    pytest.skip({reason!r})\n\ndef test_two(): pass\n"
    )
    (folder / "test_it.py").write_text(test)
    (folder / "pytest.ini").write_text("[pytest]\n")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", *options, "test_it.py"]
    environment = plain_environment() | {"PYTHONPATH": paths}
    environment.pop("PYTEST_DISABLE_PLUGIN_AUTOLOAD", None)
    return run_process(command, folder, environment)


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["alone", "shared"])
def test_only_skips_in_the_list_are_allowed(tmp_path: Path, options: tuple[str, ...]) -> None:
    bad = ran(tmp_path, "it is too hard today", *options)
    assert bad.code == 1
    assert "1 skipped, not expected: it is too hard today" in bad.out
    good = ran(tmp_path, skips.ABSENT, *options)
    assert good.code == 0, good.out
    *_, before, last = good.out.strip().splitlines()
    assert f"1 tests were skipped: {skips.ABSENT}" in (before, last)


@pytest.mark.usefixtures("as_user")
def test_permissions_count_whoever_runs_the_tests(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("x")
    path.chmod(0)
    with pytest.raises(PermissionError):
        path.read_text()


@pytest.mark.skipif(os.name == "nt", reason="folders have no such permission")
def test_the_power_over_files_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("x")
    path.chmod(0)
    with privileges.without_power_over_files(), pytest.raises(PermissionError):
        path.read_text()
    if os.geteuid() == 0:
        assert path.read_text() == "x"


Square = Float[Tensor, "n n"]
checked = jaxtyping.jaxtyped(typechecker=beartype)  # as it stands above all that is imported


@checked
@dataclass
class Held:
    square: Square

    @property
    @checked
    def flat(self) -> Float[Tensor, "n n"]:
        return self.square.flatten()

    @classmethod
    @checked
    def of_several(cls, squares: Sequence[Square]) -> None:
        pass

    @staticmethod
    @checked
    def alone(number: int) -> int:
        return number


WRONG = torch.zeros(2, 3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: Held(WRONG),
        lambda: Held(torch.zeros(2, 2)).flat,
        lambda: Held.of_several([WRONG]),
        lambda: to_pixels(torch.zeros(3, 4)),
        lambda: plain_sum([torch.zeros(())]),
    ],
    ids=["dataclass", "returned", "alias within", "of the host", "alias of the host"],
)
def test_a_wrong_shape_is_noticed_wherever_it_is_annotated(call: Callable[[], Any]) -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        call()


def test_what_has_no_shape_is_as_fast_as_it_is() -> None:
    assert Held.alone.__code__.co_filename == __file__
