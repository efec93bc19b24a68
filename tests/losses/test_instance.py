"""Instance discrimination: the paper's calculus of the self-distillation, and softmaxes over rows on many owners."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dist_ssl.losses.instance import instance_cross_entropy, log_shares, row_pulls, self_distillation
from tests.losses.tensors import alone, close, normal, with_gradients

TOY = torch.tensor([[2.0, 1.0, 0.0]]).double()
WAYS = [("p||u", False), ("p||u", True), ("u||p", False), ("u||p", True)]


def distilled(logits: Tensor, **options) -> Tensor:
    return self_distillation(log_shares(logits, alone, alone), alone, **options)


def slow(logits: Tensor, exponent: float, divergence: str, through: bool) -> Tensor:
    """The divergence from probabilities, row by row."""
    p = logits.softmax(1)
    u = p**exponent / (p**exponent).sum(1, keepdim=True)
    u = u if through else u.detach()
    a, b = (p, u) if divergence == "p||u" else (u, p)
    return (a * (a / b).log()).sum(1)


@pytest.mark.parametrize(
    ("divergence", "through", "value", "gradient"),
    [
        ("p||u", False, 0.0602689, [0.141294, -0.070385, -0.070909]),
        ("p||u", True, 0.0602689, [0.061913, -0.039151, -0.022762]),
        ("u||p", False, 0.0672580, [0.158761, -0.062467, -0.096293]),
    ],
)
def test_the_toy_gives_the_published_values(divergence, through: bool, value: float, gradient: list[float]) -> None:
    loss, found = with_gradients(lambda s: distilled(s, divergence=divergence, through_target=through), TOY)
    assert float(loss) == pytest.approx(value, abs=5e-8)
    assert found[0].tolist() == pytest.approx(gradient, abs=6e-7)


def test_the_calculus_of_the_square_root_holds() -> None:
    s = 3 * normal(4, 7)
    p = s.softmax(1)
    u = p.sqrt() / p.sqrt().sum(1, keepdim=True)
    entropy = -(p * p.log()).sum(1)
    kl = -entropy / 2 + p.sqrt().sum(1).log()
    detached = p * ((p / u).log() - kl[:, None])
    full = 0.5 * p * (p.log() + entropy[:, None]) + 0.5 * (u - p)
    close(with_gradients(lambda s: distilled(s), s), [kl.sum(), detached])
    close(with_gradients(lambda s: distilled(s, through_target=True), s), [kl.sum(), full])
    assert torch.allclose(with_gradients(lambda s: distilled(s, divergence="u||p"), s)[1], p - u)


@pytest.mark.parametrize(("divergence", "through"), WAYS)
@pytest.mark.parametrize("exponent", [0.25, 0.5, 2.0])
def test_any_exponent_equals_the_slow_reference(divergence, through: bool, exponent: float) -> None:
    s = 2 * normal(3, 5)
    own = with_gradients(lambda s: distilled(s, exponent=exponent, divergence=divergence, through_target=through), s)
    close(own, with_gradients(lambda s: slow(s, exponent, divergence, through), s))


def test_flat_shares_and_an_exponent_of_1_have_nothing_to_learn() -> None:
    assert float(distilled(torch.zeros(1, 9).double())) == pytest.approx(0, abs=1e-14)
    assert float(distilled(TOY, exponent=1.0)) == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize(("divergence", "through"), WAYS)
def test_shares_that_underflow_stay_finite(divergence, through: bool) -> None:
    s = torch.tensor([[400.0, 0.0, -400.0]])
    found = with_gradients(lambda s: distilled(s, divergence=divergence, through_target=through), s)
    assert all(value.isfinite().all() for value in found)


@pytest.mark.parametrize(("divergence", "through"), WAYS)
def test_columns_that_are_left_out_do_not_matter(divergence, through: bool) -> None:
    s, out = normal(2, 5), torch.tensor([False, True, False, False, True])
    columns = torch.tensor([0, 1])

    def both(s: Tensor, targets: Tensor) -> Tensor:
        log_p = log_shares(s, alone, alone)
        kl = self_distillation(log_p, alone, divergence=divergence, through_target=through)
        return kl + instance_cross_entropy(log_p, targets, alone)

    masked = with_gradients(lambda s: both(s.masked_fill(out, -math.inf), columns * 2), s)
    left = with_gradients(lambda s: both(s, columns), s[:, ~out])
    close([masked[0], masked[1][:, ~out]], left)


@given(st.integers(1, 4), st.integers(1, 8))
def test_the_cross_entropy_equals_torch_with_gradients(rows: int, classes: int) -> None:
    s = 5 * normal(rows, classes)
    targets = torch.arange(rows) * 3 % classes
    own = with_gradients(lambda s: instance_cross_entropy(log_shares(s, alone, alone), targets, alone), s)
    close(own, with_gradients(lambda s: F.cross_entropy(s, targets, reduction="none"), s))


@pytest.mark.parametrize(("cosine", "expected"), [(0.0, 9.27), (0.5, 6.77), (0.9, 4.77)])
def test_the_published_start_among_10512_rows_of_width_2048(cosine: float, expected: float) -> None:
    cosines = normal(8, 10512) / math.sqrt(2048)
    cosines[:, 0] = cosine
    log_p = log_shares(cosines / 0.2, alone, alone)
    found = instance_cross_entropy(log_p, torch.zeros(8).long(), alone)
    assert float(found.mean()) == pytest.approx(expected, abs=6e-3)
    bare = self_distillation(log_shares(cosines, alone, alone), alone).mean()
    published = {0.0: 6.1e-5, 0.5: 6.6e-5, 0.9: 8.2e-5}[cosine]
    assert float(bare) == pytest.approx(published, rel=0.03)


def test_the_temperature_within_the_divergence_makes_it_much_larger() -> None:
    cosines = normal(8, 10512) / math.sqrt(2048)
    cosines[:, 0] = 0.9
    found = self_distillation(log_shares(cosines / 0.2, alone, alone), alone).mean()
    assert float(found) == pytest.approx(1.3e-2, rel=0.05)


def test_the_pulls_are_the_gradient_of_the_cross_entropy_towards_the_rows() -> None:
    z, valid = F.normalize(normal(4, 6, seed=1), dim=1), torch.tensor([True, True, False, True])
    bank, columns, temperature = normal(9, 6, seed=2).requires_grad_(), torch.tensor([3, 0, 5, 3]), 0.2
    F.cross_entropy(z @ bank.T / temperature, columns, reduction="none")[valid].sum().backward()
    log_p = log_shares(z @ bank.detach().T / temperature, alone, alone)
    pulls = row_pulls(log_p, columns, z, valid)
    torch.testing.assert_close(pulls, -temperature * bank.grad, rtol=1e-12, atol=1e-14)


def test_queries_of_other_owners_only_push() -> None:
    z, bank = F.normalize(normal(2, 4, seed=1), dim=1), normal(3, 4, seed=2)
    log_p = log_shares(z @ bank.T, alone, alone)
    pulls = row_pulls(log_p, torch.tensor([-1, -1]), z, torch.ones(2).bool())
    torch.testing.assert_close(pulls, -log_p.exp().T @ z)
    assert row_pulls(log_p[:, :0], torch.tensor([-1, -1]), z, torch.ones(2).bool()).shape == (0, 4)
