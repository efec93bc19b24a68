"""BYOL, SimSiam and VICReg: the published losses in plain sums, and where no gradient may pass."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.methods import small


def normal(*names: str, size: int = 6, width: int = 5) -> dict[str, Tensor]:
    """Random embeddings by name."""
    generator = torch.Generator().manual_seed(5)
    return {n: torch.randn(size, width, dtype=torch.float64, generator=generator).requires_grad_() for n in names}


def test_byol_takes_both_directions_of_the_squared_distance_of_unit_vectors() -> None:
    e = normal("p1", "p2", "t1", "t2")
    unit = {name: F.normalize(value, dim=1) for name, value in e.items()}
    expected = ((unit["p1"] - unit["t2"]).square().sum(1) + (unit["p2"] - unit["t1"]).square().sum(1)).mean()
    loss = small.method("byol").loss(e, small.batch(), small.HYPER).loss
    loss.backward()
    assert loss.item() == pytest.approx(expected.item())
    assert e["t1"].grad is None
    assert e["p1"].grad is not None


def test_byols_loss_lies_between_0_and_8() -> None:
    e = normal("p1", "p2")
    same = {**e, "t1": e["p2"], "t2": e["p1"]}
    m = small.method("byol")
    assert m.loss(same, small.batch(), small.HYPER).loss.item() == pytest.approx(0)
    opposite = {**e, "t1": -e["p2"], "t2": -e["p1"]}
    assert m.loss(opposite, small.batch(), small.HYPER).loss.item() == pytest.approx(8)


def test_simsiam_takes_half_of_either_negative_cosine_and_stops_the_gradient_of_targets() -> None:
    e = normal("p1", "p2", "z1", "z2")
    cosine = F.cosine_similarity
    expected = -(cosine(e["p1"], e["z2"]) + cosine(e["p2"], e["z1"])).mean() / 2
    loss = small.method("simsiam").loss(e, small.batch(), small.HYPER).loss
    loss.backward()
    assert loss.item() == pytest.approx(expected.item())
    assert e["z1"].grad is None
    assert e["p2"].grad is not None


def test_vicregs_collapse_costs_all_of_the_variance_term_and_nothing_else() -> None:
    one = torch.ones(6, 5, dtype=torch.float64)
    loss = small.method("vicreg").loss({"z1": one, "z2": one}, small.batch(), small.HYPER).loss
    assert loss.item() == pytest.approx(25 * (1 - 0.01))


def test_vicreg_is_the_published_sum() -> None:
    e = normal("z1", "z2")
    expected = 25 * F.mse_loss(e["z1"], e["z2"])
    for z in e.values():
        centred = z - z.mean(0)
        covariance = centred.T @ centred / 5
        expected = expected + 25 * F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean() / 2
        expected = expected + (covariance.square().sum() - covariance.diagonal().square().sum()) / 5
    loss = small.method("vicreg").loss(e, small.batch(), small.HYPER).loss
    assert loss.item() == pytest.approx(expected.item())


def test_no_view_is_normalised_with_another() -> None:
    m, b = small.method("simsiam"), small.batch()
    z = m.student(b.views[1])
    assert torch.allclose(small.forward(m, b)["z2"], z)
