"""DINO: centred and sharpened targets without gradients, the loss of chance, and the centre of a batch."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dist_ssl.losses.prototype_codes import sinkhorn
from dist_ssl.losses.teacher_cross_entropy import balanced_cross_entropy, batch_centre, dino_cross_entropy
from tests.losses.tensors import agreeing, alone, close, growth, normal, with_gradients


def test_the_loss_and_its_gradient_equal_the_pairs_written_out() -> None:
    student, teacher, centre = normal(4, 3, 6, seed=1), normal(2, 3, 6, seed=2), normal(6, seed=3)

    def slow(s):
        terms = []
        for t, v in [(0, 1), (0, 2), (0, 3), (1, 0), (1, 2), (1, 3)]:
            target = F.softmax((teacher[t] - centre) / 0.07, dim=1)
            terms.append(F.cross_entropy(s[v] / 0.2, target, reduction="none"))
        return torch.stack(terms).mean(0)

    def own(s):
        options = {"student_temperature": 0.2, "teacher_temperature": 0.07}
        return dino_cross_entropy(list(s), list(teacher), centre, **options)

    close(with_gradients(own, student), with_gradients(slow, student))


def test_flat_outputs_start_at_the_log_of_the_width() -> None:
    flat = [torch.zeros(3, 65)] * 2
    assert dino_cross_entropy(flat, flat, torch.zeros(65)).tolist() == pytest.approx([math.log(65)] * 3)


def test_the_entropy_of_the_targets_is_the_floor() -> None:
    teacher = normal(2, 5, 4)
    targets = (teacher / 0.04).softmax(2)
    entropy = -(targets * targets.log()).sum(2).mean(0)
    perfect = [targets[1].log() * 0.1, targets[0].log() * 0.1]
    found = dino_cross_entropy(perfect, list(teacher), torch.zeros(4))
    torch.testing.assert_close(found, entropy, rtol=1e-9, atol=1e-12)


def test_what_all_outputs_have_in_common_is_taken_off_by_the_centre() -> None:
    student, teacher, shift = normal(2, 3, 5, seed=1), normal(2, 3, 5, seed=2), normal(5, seed=3)
    moved = dino_cross_entropy(list(student), list(teacher + shift), shift)
    torch.testing.assert_close(moved, dino_cross_entropy(list(student), list(teacher), torch.zeros(5).double()))


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = normal(2, 3, 5, seed=1).requires_grad_(), normal(2, 3, 5, seed=2).requires_grad_()
    dino_cross_entropy(list(student), list(teacher), torch.zeros(5)).sum().backward()
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


def test_the_centre_is_the_mean_over_views_and_valid_samples() -> None:
    teacher, valid = normal(2, 4, 5), torch.tensor([True, False, True, True])
    torch.testing.assert_close(batch_centre(list(teacher), valid, alone), teacher[:, valid].mean((0, 1)))
    assert batch_centre(list(teacher), torch.zeros(4).bool(), alone).tolist() == [0] * 5


def test_balanced_targets_are_shared_out_over_the_teachers_views_together() -> None:
    student, teacher, valid = normal(3, 4, 5, seed=1).tanh(), normal(2, 4, 5, seed=2).tanh(), torch.arange(4) != 1
    q = sinkhorn(teacher.flatten(0, 1), valid.repeat(2), alone, eps=0.07, iterations=2).view(2, 4, 5)

    def slow(s: Tensor) -> Tensor:
        pairs = [(0, 1), (0, 2), (1, 0), (1, 2)]
        return -torch.stack([(q[t] * (s[v] / 0.2).log_softmax(1)).sum(1) for t, v in pairs]).mean(0)

    def own(s: Tensor) -> Tensor:
        options = {"student_temperature": 0.2, "teacher_temperature": 0.07, "iterations": 2}
        return balanced_cross_entropy(list(s), list(teacher), valid, alone, **options)

    close(with_gradients(own, student), with_gradients(slow, student))
    assert own(student)[1] == 0


def test_balanced_targets_favour_no_output_where_centred_ones_do() -> None:
    teacher = normal(2, 200, 4, seed=1).tanh() * torch.tensor([0.1, 0.1, 0.1, 1.0])
    teacher = list(teacher - teacher.mean((0, 1)))
    flat, all_valid = [torch.zeros(200, 4).double().requires_grad_() for _ in range(2)], torch.ones(200).bool()

    def pull(loss: Tensor) -> float:
        grads = torch.autograd.grad(loss.sum(), flat)
        return float(torch.stack(grads).sum((0, 1)).abs().max()) / float(torch.stack(grads).abs().sum())

    centred = pull(dino_cross_entropy(flat, teacher, torch.zeros(4)))
    assert centred > 0.05
    assert pull(balanced_cross_entropy(flat, teacher, all_valid, alone, iterations=200)) < centred / 50


def test_the_teacher_of_balanced_targets_gets_no_gradient() -> None:
    student, teacher = normal(2, 3, 5, seed=1).requires_grad_(), normal(2, 3, 5, seed=2).tanh().requires_grad_()
    balanced_cross_entropy(list(student), list(teacher), torch.ones(3).bool(), alone).sum().backward()
    assert student.grad.abs().max() > 0
    assert teacher.grad is None


@pytest.mark.parametrize(("student", "teacher"), [(0.1, 0.04), (0.3, 0.03)])
def test_small_outputs_grow_where_views_agree_in_more_than_the_ratio(student: float, teacher: float) -> None:
    def loss(*outputs: Tensor) -> Tensor:
        options = {"student_temperature": student, "teacher_temperature": teacher}
        return dino_cross_entropy(outputs, outputs, torch.zeros(8).double(), **options)

    assert growth(loss, *agreeing(1.2 * teacher / student)) > 0
    assert growth(loss, *agreeing(0.8 * teacher / student)) < 0
