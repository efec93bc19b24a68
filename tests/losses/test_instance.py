"""Instance discrimination: the paper's calculus of the self-distillation, from sums over the rows."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dist_ssl.losses.instance import instance_cross_entropy, self_distillation
from tests.losses.tensors import close, normal, plain_divergence, with_gradients

TOY = torch.tensor([[2.0, 1.0, 0.0]]).double()
WAYS = [("p||u", False), ("p||u", True), ("u||p", False), ("u||p", True)]


def distilled(logits: Tensor, exponent: float = 0.5, **options) -> Tensor:
    """The divergence of softmaxes of all of [B, N] logits, from their sums."""
    powers = exponent * logits
    sums = logits.logsumexp(1), powers.logsumexp(1)
    means = (logits.softmax(1) * logits).sum(1), (powers.softmax(1) * powers).sum(1)
    return self_distillation(sums, means, exponent=exponent, **options)


def cross_entropy(cosines: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Of [B, N] similarities, one target each."""
    own = cosines.gather(1, targets[:, None]).T
    return instance_cross_entropy((cosines / temperature).logsumexp(1), own, torch.ones_like(own), temperature)


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
    close(own, with_gradients(lambda s: plain_divergence(s, exponent, divergence, through), s))


def test_flat_shares_and_an_exponent_of_1_have_nothing_to_learn() -> None:
    assert float(distilled(torch.zeros(1, 9).double())) == pytest.approx(0, abs=1e-14)
    assert float(distilled(TOY, exponent=1.0)) == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize(("divergence", "through"), WAYS)
def test_shares_that_underflow_stay_finite(divergence, through: bool) -> None:
    s = torch.tensor([[400.0, 0.0, -400.0]])
    found = with_gradients(lambda s: distilled(s, divergence=divergence, through_target=through), s)
    assert all(value.isfinite().all() for value in found)


@given(st.integers(1, 4), st.integers(1, 8))
def test_the_cross_entropy_equals_torch_with_gradients(rows: int, classes: int) -> None:
    s = 5 * normal(rows, classes)
    targets = torch.arange(rows) * 3 % classes
    own = with_gradients(lambda s: cross_entropy(s, targets, 0.2), s)
    close(own, with_gradients(lambda s: F.cross_entropy(s / 0.2, targets, reduction="none"), s))


@pytest.mark.parametrize(("cosine", "expected"), [(0.0, 9.27), (0.5, 6.77), (0.9, 4.77)])
def test_the_published_start_among_10512_rows_of_width_2048(cosine: float, expected: float) -> None:
    cosines = normal(8, 10512) / math.sqrt(2048)
    cosines[:, 0] = cosine
    found = cross_entropy(cosines, torch.zeros(8).long(), 0.2)
    assert float(found.mean()) == pytest.approx(expected, abs=6e-3)
    bare = distilled(cosines).mean()
    published = {0.0: 6.1e-5, 0.5: 6.6e-5, 0.9: 8.2e-5}[cosine]
    assert float(bare) == pytest.approx(published, rel=0.03)


def test_the_temperature_within_the_divergence_makes_it_much_larger() -> None:
    cosines = normal(8, 10512) / math.sqrt(2048)
    cosines[:, 0] = 0.9
    found = distilled(cosines / 0.2).mean()
    assert float(found) == pytest.approx(1.3e-2, rel=0.05)


def test_a_mixed_image_belongs_to_two_rows() -> None:
    cosines, pair = normal(3, 6), torch.tensor([[0, 1, 2], [4, 5, 3]])
    weights = torch.tensor([[0.7, 0.6, 1.0], [0.3, 0.4, 0.0]]).double()
    own = cosines.gather(1, pair.T).T
    found = instance_cross_entropy((cosines / 0.2).logsumexp(1), own, weights, 0.2)
    each = torch.stack([F.cross_entropy(cosines / 0.2, targets, reduction="none") for targets in pair])
    close([found], [(weights * each).sum(0)])
