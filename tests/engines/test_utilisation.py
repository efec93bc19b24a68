"""Useful FLOPs are those of the encoders' passes, however an engine makes them."""

import math

import pytest
import torch
from torch import nn

from dist_ssl.engines.utilisation import PEAKS, UsefulWork, peak
from dist_ssl.runtime.step_clock import HostMarker, StepClock
from tests.engines.test_contract import batch, build, engines, hyper, most, tiny_method

CUDA = torch.device("cuda")


@pytest.mark.parametrize(
    ("name", "kind", "found"),
    [
        ("NVIDIA H100 80GB HBM3", {"compute": torch.bfloat16}, 989.4e12),
        ("NVIDIA H200", {"tf32": True}, 494.7e12),
        ("NVIDIA H100 PCIe", {}, 51.2e12),
        ("NVIDIA A100-SXM4-80GB", {"compute": torch.bfloat16}, 312e12),
        ("NVIDIA A10", {"tf32": True}, 62.5e12),
        ("NVIDIA A1000", {}, None),
        ("NVIDIA A100-SXM4-80GB", {"dtype": torch.float64}, None),
    ],
)
def test_the_peak_is_that_of_the_device_in_the_precision(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: dict[str, object], found: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak(CUDA, **{"dtype": torch.float32, "compute": None, "tf32": False, **kind}) == found  # type: ignore[arg-type]
    assert peak(torch.device("cpu"), torch.float32, None, False) is None


def test_products_of_fewer_bits_are_faster() -> None:
    assert all(by_kind["bf16"] > by_kind["tf32"] > by_kind["fp32"] for _, by_kind in PEAKS)


def linear_work() -> tuple[nn.Module, nn.Module, UsefulWork]:
    """Two encoders whose pass of n rows takes 2 * 3 * 5 * n FLOPs, and their work at 30 FLOP/s."""
    student, teacher = nn.Linear(3, 5, bias=False), nn.Linear(3, 5, bias=False)
    return student, teacher, UsefulWork(student, teacher, 30.0)


def test_a_student_counts_three_times_and_a_teacher_once() -> None:
    student, teacher, work = linear_work()
    work.start()
    student(torch.ones(4, 3))
    with torch.no_grad():
        teacher(torch.ones(2, 3))
    assert work.seconds() == 3 * 4 + 2
    student(torch.ones(4, 3))
    student(torch.ones(2, 3))
    assert work.seconds() == 3 * 6, "known and new shapes"
    assert work.seconds() == 0


def test_passes_for_evaluation_and_those_that_are_made_again_do_not_count() -> None:
    student, _, work = linear_work()
    with torch.no_grad():
        student(torch.ones(4, 3))
    student.eval()
    student(torch.ones(4, 3))
    assert work.seconds() == 0


def test_a_pass_that_fails_leaves_nothing_behind() -> None:
    student, _, work = linear_work()
    with pytest.raises(RuntimeError):
        student(torch.ones(4, 2))
    student(torch.ones(4, 3))
    assert work.seconds() >= 3 * 4


@engines
def test_steps_in_parts_are_as_useful_as_steps_at_once(name: str) -> None:
    found = []
    for accumulate in (1, 2):
        method = tiny_method(norm_group=2)
        engine = build(name, method, accumulate=accumulate)
        assert engine.clock.work is None, "no GPU"
        engine.clock = StepClock(HostMarker(lambda: 0.0))
        engine.clock.work = UsefulWork.of(method, 1e9)
        engine.clock.start()
        for step in range(2):
            engine.step(batch(step, most(name)), hyper())
        found.append([least for _, least in engine.clock._whole])
    assert found[0] == found[1]
    assert found[0][0] == found[0][1] > 0


def test_the_utilisation_is_the_least_time_over_the_time_of_the_steps() -> None:
    now = [0.0]
    clock = StepClock(HostMarker(lambda: now[0]))
    student, _, clock.work = linear_work()
    clock.start()
    assert math.isnan(clock.metrics()["flops_utilisation"])
    for _ in range(2):
        student(torch.ones(4, 3))
        now[0] += 48.0
        clock.lap("memory")
    assert clock.metrics()["flops_utilisation"] == 12 / 48
