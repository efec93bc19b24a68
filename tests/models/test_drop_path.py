"""Stochastic depth leaves branches out as often as it says, keeps the mean, and repeats a pass exactly."""

import numpy as np
import pytest
import torch

from dist_ssl.core.draws import Draws
from dist_ssl.models import drop_path
from dist_ssl.models.drop_path import DropPath
from dist_ssl.models.vit import vit

CPU = torch.device("cpu")


def encoder() -> torch.nn.Module:
    torch.manual_seed(0)
    made = vit(width=8, depth=3, heads=2, patch=4)
    drop_path.install(made, 0.4)
    return made.double()


def test_branches_are_left_out_at_their_rates_independently_and_the_others_are_scaled() -> None:
    made = encoder()
    drop_path.draw(made, Draws(1).of(np.arange(10000)), range(2), CPU)
    drops = [child for child in made.modules() if isinstance(child, DropPath)]
    assert [drop.rate for drop in drops] == pytest.approx([0.2, 0.2, 0.4, 0.4])
    for drop in drops:
        x = torch.ones(20000, 2, 3)
        y = drop(x)
        assert y.unique().tolist() == pytest.approx([0, 1 / (1 - drop.rate)])
        assert (y[:, 0, 0] == 0).double().mean().item() == pytest.approx(drop.rate, abs=0.02)
        assert y.mean().item() == pytest.approx(1, abs=0.03)
    factors = torch.stack([*(drop.factors[:10000] for drop in drops), *(drop.factors[10000:] for drop in drops)])
    assert (torch.corrcoef(factors) - torch.eye(8)).abs().max() < 0.05


def test_a_pass_of_more_views_than_were_drawn_for_is_an_error() -> None:
    made = encoder()
    drop_path.draw(made, Draws(1).of(np.arange(4)), range(1), CPU)
    made(torch.randn(4, 3, 8, 8).double())
    with pytest.raises(AssertionError, match="drawn for 4 views, used with 8"):
        made(torch.randn(8, 3, 8, 8).double())


def test_a_pass_may_be_repeated_after_another() -> None:
    made, x = encoder(), torch.randn(6, 3, 8, 8, dtype=torch.float64)
    drop_path.draw(made, Draws(1).of(np.arange(6)), range(1), CPU)
    first, context = made(x), drop_path.again(made)
    drop_path.draw(made, Draws(1).of(np.arange(6, 12)), range(1), CPU)
    second = made(x)
    assert not torch.allclose(first, second)
    with context:
        assert torch.equal(made(x), first)
    assert torch.equal(made(x), second)
