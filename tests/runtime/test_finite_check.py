"""A step whose gradient is not finite is refused before any weight moves."""

import math

import pytest

from dist_ssl.errors import TrainingError
from dist_ssl.runtime.finite_check import check_finite


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
