"""The distillation loss against what PPAP's own code computes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from ppap_plugin_depth.losses import squared_error
from safetensors.torch import load_file

VECTORS = Path(os.environ.get("PPAP_VECTORS", Path(__file__).parents[4] / "shared" / "vectors"))


def cases() -> list[Any]:
    """Case folders with a depth map of a student and of a teacher."""
    found = []
    for path in sorted(VECTORS.glob("guidance/*/case.json")):
        if {"depth_student", "depth_teacher"} <= json.loads(path.read_text())["inputs"].keys():
            found.append(pytest.param(path.parent, id=path.parent.name))
    reason = f"no such vectors in {VECTORS}; set PPAP_VECTORS"
    return found or [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="absent")]


@pytest.mark.parametrize("folder", cases())
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, "float64"), (torch.float32, "float32_implementation")],
    ids=["float64", "float32"],
)
def test_vector_depth_distillation(folder: Path, dtype: torch.dtype, tolerance: str) -> None:
    case, io = json.loads((folder / "case.json").read_text()), load_file(folder / "io.safetensors")
    student = io["depth_student"].to(dtype).requires_grad_(True)
    losses = squared_error(student, io["depth_teacher"].to(dtype))
    (gradient,) = torch.autograd.grad(losses.mean(), student)
    for name, value in (
        ("depth_per_sample", losses),
        ("depth_total", losses.mean()),
        ("depth_grad", gradient),
    ):
        wanted = io[name].double().view(value.shape)
        torch.testing.assert_close(
            value.detach().double(), wanted, **case["tolerance"][tolerance], msg=name
        )
