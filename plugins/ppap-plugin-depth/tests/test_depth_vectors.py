"""The distillation loss against what PPAP's own code computes."""

from __future__ import annotations

import pytest
import torch
import vectors
from ppap_plugin_depth.losses import squared_error


@vectors.take(
    lambda case: case.holds("depth_student", "depth_teacher"),
    lambda name: name.startswith("depth_"),
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_vector_depth_distillation(case: vectors.Case, dtype: torch.dtype) -> None:
    io = case.io(dtype)
    student = io["depth_student"].requires_grad_(True)
    losses = squared_error(student, io["depth_teacher"])
    (gradient,) = torch.autograd.grad(losses.mean(), student)
    case.compare("depth_per_sample", losses, dtype)
    case.compare("depth_total", losses.mean().view(1), dtype)
    case.compare("depth_grad", gradient, dtype)
