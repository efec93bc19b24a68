"""The teacher follows the student's parameters by the closed form of a moving average, and its buffers stay its own."""

import pytest
import torch
from torch import nn

from dist_ssl.models import ema


def network(seed: int, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A small network with parameters and buffers."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).to(dtype)


def update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move a whole module."""
    ema.update(dict(teacher.named_parameters()), dict(student.named_parameters()), momentum)


def copies(module: nn.Module) -> list[torch.Tensor]:
    """The parameters as they are now, in double precision."""
    return [p.detach().double().clone() for p in module.parameters()]


def test_one_move_is_the_weighted_mean() -> None:
    teacher, student = network(0), network(1)
    before = copies(teacher)
    update(teacher, student, 0.75)
    for now, old, new in zip(teacher.parameters(), before, student.parameters(), strict=True):
        torch.testing.assert_close(now, 0.75 * old + 0.25 * new, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_a_thousand_moves_towards_a_student_at_rest_have_a_closed_form(dtype: torch.dtype, tolerance: float) -> None:
    teacher, student = network(0, dtype), network(1, dtype)
    before = copies(teacher)
    for _ in range(1000):
        update(teacher, student, 0.9999)
    share = 0.9999**1000
    for now, old, new in zip(teacher.parameters(), before, copies(student), strict=True):
        torch.testing.assert_close(now.double(), share * old + (1 - share) * new, rtol=0, atol=tolerance)


def test_a_thousand_moves_after_a_student_that_moves_have_a_closed_form() -> None:
    teacher, student = network(0), network(1)
    expected, drift = copies(teacher), [torch.randn_like(p) for p in student.parameters()]
    start = copies(student)
    for step in range(1000):
        with torch.no_grad():
            for p, origin, d in zip(student.parameters(), start, drift, strict=True):
                p.copy_(origin + step * d)
        update(teacher, student, 0.99)
    # sum over n of 0.01 * 0.99^(999 - n) * n = 999 - 99 * (1 - 0.99^999)
    far = 999 - 99 * (1 - 0.99**999)
    share = 0.99**1000
    for now, old, origin, d in zip(teacher.parameters(), expected, start, drift, strict=True):
        torch.testing.assert_close(now, share * old + (1 - share) * origin + far * d, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("momentum", "steps"), [(0.99, 69), (0.996, 173), (0.999, 693)])
def test_half_lives_are_as_published(momentum: float, steps: int) -> None:
    teacher, student = nn.Linear(1, 1, bias=False).double(), nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(teacher.weight)
    nn.init.zeros_(student.weight)
    for _ in range(steps):
        update(teacher, student, momentum)
    assert teacher.weight.item() == pytest.approx(0.5, abs=0.002)


def test_momentum_1_holds_and_momentum_0_copies() -> None:
    teacher, student = network(0), network(1)
    before = copies(teacher)
    update(teacher, student, 1.0)
    assert all(torch.equal(now, old) for now, old in zip(teacher.parameters(), before, strict=True))
    update(teacher, student, 0.0)
    assert all(torch.equal(now, new) for now, new in zip(teacher.parameters(), student.parameters(), strict=True))


def test_buffers_and_the_student_stay_as_they_are() -> None:
    teacher, student = network(0), network(1)
    student(torch.randn(8, 5, dtype=torch.float64))
    buffers = [b.clone() for b in teacher.buffers()]
    weights = copies(student)
    update(teacher, student, 0.5)
    assert all(torch.equal(now, old) for now, old in zip(teacher.buffers(), buffers, strict=True))
    assert all(torch.equal(now, old) for now, old in zip(student.parameters(), weights, strict=True))


def test_parameters_are_paired_by_name_and_a_student_may_have_more() -> None:
    teacher = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    student = nn.ModuleDict({"b": nn.Linear(2, 2), "more": nn.Linear(2, 2), "a": nn.Linear(2, 2)})
    update(teacher, student, 0.0)
    for name in ("a", "b"):
        assert torch.equal(teacher[name].weight, student[name].weight)


def test_a_parameter_that_the_student_lacks_is_our_mistake() -> None:
    with pytest.raises(KeyError, match="weight"):
        update(nn.Linear(2, 2), nn.Identity(), 0.5)


def test_a_teacher_without_gradients_stays_without_them() -> None:
    teacher, student = network(0).requires_grad_(False), network(1)
    update(teacher, student, 0.5)
    assert not any(p.requires_grad for p in teacher.parameters())


def test_the_distance_is_that_of_all_parameters_together() -> None:
    teacher, student = network(0), network(1)
    to, towards = (torch.cat([p.flatten() for p in copies(x)]) for x in (teacher, student))
    named = dict(teacher.named_parameters()), dict(student.named_parameters())
    assert ema.distance(*named).item() == pytest.approx(((to - towards).norm() / towards.norm()).item())
    update(teacher, student, 0.0)
    assert ema.distance(*named).item() == 0


def test_an_empty_piece_of_a_student_is_at_no_distance() -> None:
    assert ema.distance({"a": torch.zeros(0, 3)}, {"a": torch.zeros(0, 3)}).item() == 0
    assert ema.distance({}, {}).item() == 0


def test_the_distance_of_more_parameters_than_are_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ema, "AT_ONCE", 64)
    assert ema.parts([30, 34, 1, 100, 64]) == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 5)]
    ones = {str(number): torch.ones(number % 3 + 1) for number in range(95)}
    assert ema.distance({name: 3 * one for name, one in ones.items()}, ones).item() == pytest.approx(2)
    ones["0"] = ones["0"] + 1
    assert ema.distance(dict.fromkeys(ones, torch.zeros(())), ones).item() == pytest.approx(1)
