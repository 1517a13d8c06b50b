"""The alignment loss against a float64 reference written out by hand."""

import math

import numpy as np
import pytest
import torch

from fedscale.server.align.loss import alignment_loss


def _softmax(row: list[float]) -> list[float]:
    largest = max(row)
    powers = [math.exp(value - largest) for value in row]
    return [power / sum(powers) for power in powers]


def _reference(
    student: list[list[float]], teacher: list[list[float]], labels: list[int], beta: float, temperature: float
) -> tuple[float, float, float]:
    ce = kl = 0.0
    for z, t, y in zip(student, teacher, labels, strict=True):
        ce += -math.log(_softmax(z)[y])
        p, q = _softmax([v / temperature for v in z]), _softmax([v / temperature for v in t])
        kl += sum(q_c * math.log(q_c / p_c) for q_c, p_c in zip(q, p, strict=True))
    ce, kl = ce / len(labels), kl / len(labels)
    return ce + beta * temperature * temperature * kl, ce, kl


def _batch(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = np.random.default_rng(3)
    student = torch.tensor(generator.normal(0, 2, (6, 5)), dtype=dtype)
    teacher = torch.tensor(generator.normal(0, 4, (6, 5)), dtype=dtype)
    return student, teacher, torch.tensor([0, 1, 2, 3, 4, 2])


@pytest.mark.parametrize(("beta", "temperature"), [(1.0, 3.0), (0.5, 1.0), (0.0, 3.0), (2.0, 0.7)])
def test_the_loss_equals_the_reference(beta: float, temperature: float) -> None:
    student, teacher, labels = _batch(torch.float64)
    loss = alignment_loss(student, teacher, labels, beta, temperature)
    expected = _reference(student.tolist(), teacher.tolist(), labels.tolist(), beta, temperature)
    assert [part.item() for part in loss] == pytest.approx(expected, rel=1e-12)


def test_float32_agrees_with_the_float64_reference() -> None:
    student, teacher, labels = _batch(torch.float32)
    loss = alignment_loss(student, teacher, labels, 1.0, 3.0)
    expected = _reference(student.tolist(), teacher.tolist(), labels.tolist(), 1.0, 3.0)
    assert [part.item() for part in loss] == pytest.approx(expected, rel=1e-5)


def test_the_divergence_is_of_the_student_from_the_teacher() -> None:
    """KL(q ‖ p), q the teacher's: a teacher sure of one class and a flat student give log 2, the reverse is huge."""
    sure, flat = torch.tensor([[40.0, -40.0]]), torch.zeros(1, 2)
    labels = torch.tensor([0])
    assert alignment_loss(flat, sure, labels, 1.0, 1.0).kl.item() == pytest.approx(math.log(2), rel=1e-6)
    assert alignment_loss(sure, flat, labels, 1.0, 1.0).kl.item() > 30


def test_an_agreeing_student_pays_the_cross_entropy_alone() -> None:
    student, _, labels = _batch(torch.float64)
    loss = alignment_loss(student, student + 7.0, labels, 1.0, 3.0)
    assert loss.kl.item() == pytest.approx(0.0, abs=1e-12)
    assert loss.total.item() == pytest.approx(loss.ce.item())


def test_the_gradient_of_the_distillation_term_is_t_times_p_minus_q() -> None:
    """d(T²·KL)/dz = T·(p − q) / B: the T² keeps it of the same size at every T. The teacher gets none."""
    student, teacher, labels = _batch(torch.float64)
    student.requires_grad_(True)
    teacher.requires_grad_(True)
    loss = alignment_loss(student, teacher, labels, 1.0, 3.0)
    (gradient,) = torch.autograd.grad(loss.total - loss.ce, student, retain_graph=True)
    expected = 3.0 * (torch.softmax(student / 3, 1) - torch.softmax(teacher / 3, 1)) / 6
    torch.testing.assert_close(gradient, expected)
    assert torch.autograd.grad(loss.total, teacher, allow_unused=True) == (None,)
