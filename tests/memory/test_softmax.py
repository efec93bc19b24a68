"""Exponentials at several temperatures are the same numbers, whether by products or each by itself."""

import pytest
import torch

from dist_ssl.memory.softmax import exponentials


@pytest.mark.parametrize("temperatures", [(0.2, 1.0, 2.0), (0.1, 0.7), (0.5,), (3.0, 0.2), (2.0, 0.01)])
def test_exponentials_are_those_of_each_temperature(temperatures: tuple[float, ...]) -> None:
    gaps = -2 * torch.rand(7, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = exponentials(gaps, temperatures)
    for values, temperature in zip(found, temperatures, strict=True):
        torch.testing.assert_close(values, (gaps / temperature).exp(), rtol=1e-13, atol=0)


def test_multiples_of_a_temperature_take_one_exponential(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    exp = torch.Tensor.exp
    monkeypatch.setattr(torch.Tensor, "exp", lambda x: calls.append(1) or exp(x))
    exponentials(-torch.rand(3, 4), (0.2, 1.0, 2.0))
    assert len(calls) == 1
    exponentials(-torch.rand(3, 4), (0.3, 1.0))
    assert len(calls) == 3
