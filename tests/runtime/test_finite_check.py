"""A step whose gradient is not finite is refused before any weight moves."""

import math

import pytest
import torch

from dist_ssl.errors import TrainingError
from dist_ssl.runtime.finite_check import FiniteCheck, check_finite


@pytest.mark.parametrize("norm", [0.0, 1.0, 1e300])
def test_a_finite_gradient_passes(norm: float) -> None:
    check_finite(norm, 1.0)


@pytest.mark.parametrize("norm", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_refused_with_a_remedy(norm: float) -> None:
    with pytest.raises(TrainingError, match="must be finite") as caught:
        check_finite(norm, 6.25)
    assert "6.25" in caught.value.problem
    assert "No weight was changed" in caught.value.problem
    assert "base_lr" in caught.value.remedy


def test_the_verdict_does_not_depend_on_this_ranks_own_loss() -> None:
    check_finite(1.0, math.nan)


def test_on_a_host_the_answer_comes_at_once_and_on_a_gpu_a_step_later() -> None:
    assert not FiniteCheck(torch.device("cpu")).later
    with pytest.raises(TrainingError, match="No weight was changed"):
        FiniteCheck(torch.device("cpu")).ask(torch.tensor(math.nan), torch.tensor(1.0))


def test_a_late_answer_is_that_of_the_step_before_and_does_not_change() -> None:
    check = FiniteCheck(torch.device("cpu"), later=True)
    check.answer()
    check.ask(torch.tensor(2.0), torch.tensor(math.nan))
    check.answer()
    check.ask(torch.tensor(math.inf), torch.tensor(6.25))
    for question in (check.answer, check.answer, lambda: check.ask(torch.tensor(1.0), torch.tensor(1.0))):
        with pytest.raises(TrainingError, match=r"norm was inf \(loss 6.25\)"):
            question()
    check.forget()
    check.ask(torch.tensor(1.0), torch.tensor(1.0))
    check.answer()
