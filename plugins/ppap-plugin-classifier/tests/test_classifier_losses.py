"""Losses on logits: cross entropy, distillation against PPAP's numbers, and labels as logits."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from ppap_plugin_classifier.losses import cross_entropy, distillation, one_hot_logits
from safetensors.torch import load_file

VECTORS = Path(
    os.environ.get("PPAP_VECTORS", Path(__file__).parents[3].parent / "shared" / "vectors")
)


def cases() -> list[Any]:
    """Case folders, wherever they lie, that distil one row of logits into another."""
    found = []
    for path in sorted(VECTORS.rglob("case.json")):
        case = json.loads(path.read_text())
        inputs = case.get("inputs")
        if isinstance(inputs, dict) and inputs.keys() >= {"teacher_logits", "student_logits"}:
            found.append(pytest.param(path.parent, id=path.parent.name))
    reason = f"no distillation vectors in {VECTORS}; set PPAP_VECTORS"
    return found or [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="absent")]


def said(reduction: str) -> Literal["sum", "mean"]:
    """What a case says is done over the classes, in words such as "mean over classes, ..."."""
    over_classes = reduction.split(",")[0]
    assert "class" in over_classes
    return "sum" if over_classes.startswith("sum") else "mean"


@pytest.mark.parametrize("folder", cases())
@pytest.mark.parametrize("precision", ["float64", "float32_implementation"])
def test_vector_distillation(folder: Path, precision: str, record_property: Any) -> None:
    case = json.loads((folder / "case.json").read_text())
    io, config = load_file(folder / "io.safetensors"), case["config"]
    dtype = torch.float64 if precision == "float64" else torch.float32
    student = io["student_logits"].to(dtype).requires_grad_()
    each = distillation(
        student,
        io["teacher_logits"].to(dtype),
        teacher_temperature=float(config["teacher_temperature"]),
        student_temperature=float(config["student_temperature"]),
        reduction=said(config["reduction"]),
    )
    total = each.mean()
    (gradient,) = torch.autograd.grad(total, student)
    tolerance, worst = case["tolerance"][precision], 0.0
    for name, value in (
        ("kd_per_sample", each),
        ("kd_total", total.view(1)),
        ("kd_grad", gradient),
    ):
        torch.testing.assert_close(value.detach().double(), io[name].double(), **tolerance)
        worst = max(worst, float((value.detach() - io[name]).abs().max()))
    record_property("largest_error", worst)


def test_cross_entropy_of_a_label_is_its_negative_log_probability() -> None:
    logits = torch.randn(5, 7, dtype=torch.float64)
    target = torch.eye(7)[2:3]
    expected = -logits.softmax(dim=1)[:, 2].log()
    torch.testing.assert_close(cross_entropy(logits, target), expected)


def test_cross_entropy_is_least_where_the_network_says_the_target() -> None:
    target = torch.tensor([[0.5, 0.3, 0.2]])
    entropy = -(target * target.log()).sum()
    torch.testing.assert_close(cross_entropy(target.log(), target), entropy.view(1))
    others = torch.randn(100, 3)
    assert (cross_entropy(others, target) > entropy).all()


def test_distillation_vanishes_between_equals_and_is_positive_otherwise() -> None:
    teacher, student = torch.randn(2, 9, 6, dtype=torch.float64)
    at = dict(teacher_temperature=1.0, student_temperature=1.0)
    zero = torch.zeros(9, dtype=torch.float64)
    torch.testing.assert_close(distillation(teacher + 3, teacher, **at), zero)
    assert (distillation(student, teacher, **at) > 0).all()


def test_sum_over_classes_is_the_mean_times_their_number() -> None:
    teacher, student = torch.randn(2, 4, 6, dtype=torch.float64)
    at = dict(teacher_temperature=0.5, student_temperature=2.0)
    mean = distillation(student, teacher, **at, reduction="mean")
    torch.testing.assert_close(distillation(student, teacher, **at), 6 * mean)


def test_temperatures_divide_the_logits() -> None:
    teacher, student = torch.randn(2, 4, 6, dtype=torch.float64)
    expected = distillation(
        student / 2, teacher * 4, teacher_temperature=1.0, student_temperature=1.0
    )
    found = distillation(student, teacher, teacher_temperature=0.25, student_temperature=2.0)
    torch.testing.assert_close(found, expected)


def test_impossible_classes_count_zero_and_leave_finite_gradients() -> None:
    teacher = torch.tensor([[0.0, -math.inf, 1.0]])
    student = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    loss = distillation(student, teacher, teacher_temperature=1.0, student_temperature=1.0)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert torch.isfinite(loss).all() and torch.isfinite(gradient).all()


@pytest.mark.parametrize("temperature", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("classes", [1, 2, 24, 21843])
def test_labels_as_logits_are_one_hot_at_their_temperature(
    classes: int, temperature: float
) -> None:
    labels = torch.tensor([0, classes - 1])
    logits = one_hot_logits(labels, classes, temperature)
    assert logits.shape == (2, classes) and torch.isfinite(logits).all()
    wanted = torch.nn.functional.one_hot(labels, classes).float()
    assert ((logits / temperature).softmax(dim=1) - wanted).abs().max() < 1e-6
    # A supervised baseline's loss is then the usual cross entropy.
    student = torch.randn(2, classes)
    found = distillation(student, logits, teacher_temperature=temperature, student_temperature=1.0)
    usual = torch.nn.functional.cross_entropy(student, labels, reduction="none")
    torch.testing.assert_close(found, usual, atol=1e-5, rtol=1e-5)
