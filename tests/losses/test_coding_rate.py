"""EMP-SSL: the identities of its terms, published check values, groups, and samples that do not count."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dist_ssl.losses.coding_rate import coding_rate, emp_ssl
from tests.losses.tensors import close, normal, with_gradients

PATCHES = torch.tensor([[[1, 0], [0, 1]], [[1, 1], [1, 3]], [[2, 1], [-1, 2]]]).double()


def rate(z: Tensor, eps2: float = 0.2) -> Tensor:
    """R of rows that all count."""
    return coding_rate(z, torch.tensor(z.shape[-2]).to(z.dtype), eps2)


def slow(z: Tensor, eps2: float, weight: float) -> Tensor:
    """The published objective of one group [P, B, D]: cosines patch by patch, the determinant of D x D."""
    z = z / z.norm(dim=2, keepdim=True)
    num, images, width = z.shape
    centre = z.sum(0) / num
    alike = sum(F.cosine_similarity(patch, centre, dim=1).sum() / images for patch in z) / num
    inside = [torch.eye(width).double() + width / (images * eps2) * patch.T @ patch for patch in z]
    return -weight * alike - sum(torch.logdet(matrix) / 2 for matrix in inside) / num


def test_the_toy_vectors_give_the_published_values() -> None:
    z = torch.tensor([[1, 0], [0, 1], [0.6, 0.8]]).double()
    assert float(rate(z)) == pytest.approx(1.7516095, abs=5e-8)
    found = emp_ssl(PATCHES, torch.ones(2).bool(), 2)
    assert float(found.invariance) == pytest.approx(0.948709, abs=5e-7)
    assert float(found.coding_rate) == pytest.approx(1.656604, abs=5e-7)
    assert float(found.loss) == pytest.approx(-191.398353, abs=5e-7)


@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))
def test_the_loss_and_its_gradient_equal_the_slow_reference(patches: int, images: int, width: int) -> None:
    z = normal(patches, images, width)
    own = with_gradients(lambda z: emp_ssl(z, torch.ones(images).bool(), images, eps2=0.3, weight=7.0).loss, z)
    close(own, with_gradients(lambda z: slow(z, 0.3, 7.0), z), 1e-9)


def test_i1_the_mean_cosine_with_the_mean_is_the_length_of_the_mean() -> None:
    z = F.normalize(normal(5, 4, 3), dim=2)
    cosines = F.cosine_similarity(z, z.mean(0, keepdim=True), dim=2)
    assert float(z.mean(0).norm(dim=1).mean()) == pytest.approx(float(cosines.mean()), rel=1e-12)
    assert float(emp_ssl(z, torch.ones(4).bool(), 4).invariance) == pytest.approx(float(cosines.mean()), rel=1e-12)


def test_i2_a_constant_mean_gives_the_same_gradient() -> None:
    def with_constant_mean(z: Tensor) -> Tensor:
        unit = F.normalize(z, dim=2)
        return F.cosine_similarity(unit, unit.mean(0, keepdim=True).detach(), dim=2).mean()

    z = normal(5, 4, 3)
    own = with_gradients(lambda z: emp_ssl(z, torch.ones(4).bool(), 4).invariance, z)
    close(own, with_gradients(with_constant_mean, z), 1e-12)


@pytest.mark.parametrize(("rows", "width"), [(3, 8), (8, 3), (5, 5)])
def test_i3_either_side_of_the_product_gives_the_determinant(rows: int, width: int) -> None:
    z = F.normalize(normal(4, rows, width), dim=2)
    scale = width / (rows * 0.2)
    for product in (z @ z.mT, z.mT @ z):
        inside = torch.eye(product.shape[-1]).double() + scale * product
        torch.testing.assert_close(rate(z), torch.logdet(inside) / 2, rtol=1e-11, atol=1e-11)


def test_i4_a_collapse_and_orthonormal_rows_are_the_ends_of_the_range() -> None:
    alike = torch.zeros(100, 1024).double()
    alike[:, 0] = 1
    assert float(rate(alike)) == pytest.approx(0.5 * math.log(1 + 1024 / 0.2), rel=1e-12)
    assert float(rate(alike)) == pytest.approx(4.2706, abs=5e-5)
    apart = torch.eye(1024)[:100].double()
    assert float(rate(apart)) == pytest.approx(50 * math.log(1 + 1024 / (100 * 0.2)), rel=1e-12)
    assert float(rate(apart)) == pytest.approx(197.754, abs=5e-4)
    assert float(rate(F.normalize(normal(100, 1024), dim=1))) == pytest.approx(195.4, abs=0.2)


@pytest.mark.parametrize(
    ("images", "most"), [(25, 66.6), (50, 116.0), (100, 197.8), (200, 328.1), (400, 524.9), (800, 800.6), (1024, 917.4)]
)
def test_i5_the_largest_rate_grows_with_the_number_of_images(images: int, most: float) -> None:
    assert float(rate(torch.eye(1024)[:images])) == pytest.approx(most, abs=0.06)


def test_single_precision_suffices() -> None:
    z = F.normalize(normal(2, 100, 1024) + 5 * normal(1, 1, 1024, seed=1), dim=2)
    torch.testing.assert_close(rate(z.float()).double(), rate(z), rtol=1e-5, atol=1e-5)


def test_half_precision_is_widened_and_autocast_is_kept_out() -> None:
    z = normal(2, 8, 16).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = emp_ssl(z, torch.ones(8).bool(), 8)
    expected = emp_ssl(z.double(), torch.ones(8).bool(), 8)
    assert found.loss.dtype == torch.float32
    assert float(found.loss) == pytest.approx(float(expected.loss), rel=1e-5)


@pytest.mark.parametrize("group", [2, 3, 6, 12])
def test_the_loss_is_the_mean_over_groups(group: int) -> None:
    z, valid = normal(3, 12, 4), torch.ones(12).bool()
    parts = [slow(part, 0.2, 200) for part in z.split(group, dim=1)]
    assert float(emp_ssl(z, valid, group).loss) == pytest.approx(float(sum(parts) / len(parts)), rel=1e-11)


def test_a_sample_that_does_not_count_is_as_if_its_group_were_smaller() -> None:
    z, valid = normal(3, 6, 4), torch.tensor([True, False, True, True, True, True])
    own = with_gradients(lambda z: emp_ssl(z, valid, 3).loss, z)
    expected = with_gradients(lambda z: (slow(z[:, [0, 2]], 0.2, 200) + slow(z[:, 3:], 0.2, 200)) / 2, z)
    close(own, expected, 1e-9)


def test_a_group_of_which_nothing_counts_is_finite_and_teaches_nothing() -> None:
    valid = torch.tensor([False, False, True, True])
    loss, gradient = with_gradients(lambda z: emp_ssl(z, valid, 2).loss, normal(3, 4, 4))
    assert loss.isfinite()
    assert gradient[:, :2].abs().max() == 0
    assert gradient[:, 2:].abs().max() > 0


def test_a_group_that_does_not_divide_the_images_is_refused() -> None:
    with pytest.raises(ValueError, match="5 images are no multiple of groups of 2"):
        emp_ssl(normal(3, 5, 4), torch.ones(5).bool(), 2)
