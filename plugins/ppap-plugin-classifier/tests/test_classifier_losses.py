"""Losses on logits: cross entropy, distillation, and labels as logits."""

from __future__ import annotations

import math

import pytest
import torch
from ppap_plugin_classifier.losses import cross_entropy, distillation, one_hot_logits


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
