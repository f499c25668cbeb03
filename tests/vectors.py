"""The conformance vectors: numbers of the reference implementations, and who compares with them.

They lie outside the repository, under ``PPAP_VECTORS`` (default: ``shared/vectors`` beside it), a
folder a case. A test takes all cases that it can read, by what ``case.json`` says::

    @vectors.take(lambda case: case.system == "adm" and case.holds("x", "t", "output"))
    def test_vector_forward(case: vectors.Case) -> None: ...
        case.compare("output", network(...))

and has then to compare all their recorded outputs, or those that it says it compares.
``test_vectors.py`` fails where a case is taken by no test, or an output compared by none.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import skips
import torch
from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(os.environ.get("PPAP_VECTORS", Path(__file__).parents[2] / "shared" / "vectors"))

NOT_YET: dict[str, str] = {}
"""Cases of methods that the product does not have, by the pattern of their names."""

Outputs = Callable[[str], bool]
CLAIMS: dict[str, dict[str, Outputs]] = {}
"""Case -> test -> which outputs it compares."""


@dataclass(eq=False)
class Case:
    """One case.

    Attributes:
        name: its folder below the root, such as "adm/schedules".
        folder: where it lies.
        content: of ``case.json``.
        compared: outputs compared so far, with the largest error.
    """

    name: str
    folder: Path
    content: dict[str, Any]
    compared: dict[str, float] = field(default_factory=dict)

    @property
    def system(self) -> str:
        system: str = self.content["system"]
        return system

    @property
    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = self.content["config"]
        return config

    def holds(self, *names: str) -> bool:
        """Whether all of these are inputs or outputs."""
        return set(names) <= set(self.content["inputs"]) | set(self.content["outputs"])

    def says(self, name: str) -> str:
        """What an input or an output means, in words."""
        text: str = (self.content["inputs"] | self.content["outputs"])[name]["meaning"]
        return text

    @functools.cached_property
    def recorded(self) -> dict[str, Tensor]:
        """All tensors, as they were stored."""
        return load_file(self.folder / "io.safetensors")

    @property
    def outputs(self) -> set[str]:
        """Names of the recorded outputs: those listed, and those of a pattern with <...> in it."""
        listed = self.content["outputs"]
        found = {name for name in listed if "<" not in name}
        for pattern in (name for name in listed if "<" in name):
            expression = re.sub(r"<[^>]+>", ".+", re.escape(pattern).replace("\\<", "<").replace("\\>", ">"))  # fmt: skip  # noqa: E501
            found |= {name for name in self.recorded if re.fullmatch(expression, name)}
        return found

    def io(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Its tensors; those in floating point in ``dtype``."""
        return {
            name: value.to(dtype) if dtype is not None and value.is_floating_point() else value
            for name, value in self.recorded.items()
        }

    def settings(self, key: str = "settings") -> list[dict[str, Any]]:
        """The settings of a case with several, infinities read."""
        rows = self.config[key]
        return [{k: math.inf if v == "inf" else v for k, v in s.items()} for s in rows]

    def compare(
        self, name: str, ours: Tensor, dtype: torch.dtype | None = None, relative: bool = False
    ) -> None:
        """Whether an output is met within what the case allows.

        Args:
            dtype: of the computation, where the case allows other things to other precisions.
            relative: entry by entry, where the case measures by the largest entry of a row.
        """
        theirs = self.recorded[name]
        assert ours.shape == theirs.shape, f"{name}: {tuple(ours.shape)} {tuple(theirs.shape)}"
        a, b = ours.detach().double(), theirs.double()
        same = (a == b) | (a.isnan() & b.isnan())
        error = torch.where(same, 0.0, (a - b).abs())
        allowed = self._allowed(name, b, dtype, relative).nan_to_num(0.0)
        worst = float(error.max()) if error.numel() else 0.0
        assert (error <= allowed).all(), (
            f"{self.name}: {name} is off by {worst:.3g}, "
            f"{float((error / allowed).max()):.3g} times what is allowed"
        )
        self.compared[name] = max(worst, self.compared.get(name, 0.0))

    def met(self, name: str, error: float = 0.0) -> None:
        """Notes an output that was compared by a rule of its own."""
        assert name in self.outputs, f"{self.name} has no output {name}"
        self.compared[name] = error

    def _allowed(
        self, name: str, theirs: Tensor, dtype: torch.dtype | None, relative: bool
    ) -> Tensor:
        """The largest errors allowed, as ``theirs``."""
        told = self.content["tolerance"]
        if not self.recorded[name].is_floating_point() or told.get("exact") is True:
            return torch.zeros_like(theirs)
        if "rule" in told:
            if name in told.get("exact", []):
                return torch.zeros_like(theirs)
            pattern = next((p for p in self.content["outputs"] if "<" in p and name.startswith(p.split("<")[0])), name)  # fmt: skip  # noqa: E501
            own = self.content["outputs"].get(pattern, {}).get("tolerance")
            candidates = (own, told.get(name), told.get(name.removeprefix("out.")))
            tolerance = next((c for c in candidates if isinstance(c, float)), told["default"])
            size = theirs.abs()
            if not relative and told["rule"].startswith("peak"):
                rows = size.reshape(len(size), -1).amax(dim=1).clamp_min(1.0)
                size = rows.view(-1, *[1] * (theirs.ndim - 1)).expand_as(size)
            return tolerance * size
        if dtype is not None and "atol" not in told:
            key = "float32_implementation"
            if dtype is torch.float64:
                stored = self.recorded[name].dtype
                key = "float64" if stored is torch.float64 else "float32_stored_outputs"
                key = key if key in told else "float64"
            told = told[key]
        told = told.get("per_output", {}).get(name, told)
        return told.get("atol", 0.0) + told.get("rtol", 0.0) * theirs.abs()


def _collected() -> Iterator[Case]:
    for path in sorted(ROOT.rglob("case.json")):
        name = path.parent.relative_to(ROOT).as_posix()
        yield Case(name, path.parent, json.loads(path.read_text(encoding="utf-8")))


CASES = list(_collected())


def later(case: Case) -> bool:
    """Whether it is of a method that is still to come."""
    return any(fnmatch(case.name, pattern) for pattern in NOT_YET)


def take(wanted: Callable[[Case], bool], outputs: Outputs = lambda name: True) -> Any:
    """Runs a test for every case that it can read; skipped where there are no vectors at all.

    Args:
        wanted: told by what the case says of itself, not by its name.
        outputs: which of their outputs the test compares; it fails if it does not.
    """

    def decorate(test: Callable[..., None]) -> Any:
        chosen = [case for case in CASES if not later(case) and wanted(case)]
        label = f"{test.__module__}.{test.__qualname__}"
        for case in chosen:
            CLAIMS.setdefault(case.name, {})[label] = outputs

        @functools.wraps(test)
        def complete(*args: Any, case: Case, **given: Any) -> None:
            case.compared.clear()
            test(*args, case=case, **given)
            for name, worst in case.compared.items():
                print(f"{case.name}: {name}: largest error {worst:.2e}")
            left = {name for name in case.outputs if outputs(name)} - case.compared.keys()
            assert not left, f"{case.name}: not compared: {sorted(left)}"

        parameters = [pytest.param(case, id=case.folder.name) for case in chosen]
        if not CASES:
            skip = pytest.mark.skip(reason=skips.ABSENT)
            parameters = [pytest.param(None, marks=skip, id="absent")]
        assert parameters, f"no case for {label}"
        return pytest.mark.parametrize("case", parameters)(complete)

    return decorate


def nothing(name: str) -> bool:
    """For tests that look at a case without comparing outputs: that comparisons have teeth."""
    return False
