"""The distillation loss against what PPAP's own code computes."""

from __future__ import annotations

import pytest
import torch
import vectors
from ppap_plugin_classifier.losses import distillation


@vectors.take(
    lambda case: case.holds("teacher_logits", "student_logits"),
    lambda name: name.startswith("kd_"),
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_vector_distillation(case: vectors.Case, dtype: torch.dtype) -> None:
    io = case.io(dtype)
    over_classes = case.config["reduction"].split(",")[0]  # such as "mean over classes, ..."
    assert "class" in over_classes
    student = io["student_logits"].requires_grad_()
    each = distillation(
        student,
        io["teacher_logits"],
        teacher_temperature=float(case.config["teacher_temperature"]),
        student_temperature=float(case.config["student_temperature"]),
        reduction="sum" if over_classes.startswith("sum") else "mean",
    )
    (gradient,) = torch.autograd.grad(each.mean(), student)
    case.compare("kd_per_sample", each, dtype)
    case.compare("kd_total", each.mean().view(1), dtype)
    case.compare("kd_grad", gradient, dtype)
