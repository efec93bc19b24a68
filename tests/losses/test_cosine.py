"""SimSiam's and BYOL's distances: their range, their relation, and targets that get no gradient."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dist_ssl.losses.cosine import cosine_distance, negative_cosine
from tests.losses.tensors import close, normal, with_gradients


def test_both_equal_their_definitions_with_gradients() -> None:
    p, z = normal(5, 4, seed=1), normal(5, 4, seed=2)

    def squares(p: Tensor) -> Tensor:
        return torch.stack([((a / a.norm() - b / b.norm()) ** 2).sum() for a, b in zip(p, z, strict=True)])

    close(with_gradients(lambda p: cosine_distance(p, z), p), with_gradients(squares, p))
    close(with_gradients(lambda p: negative_cosine(p, z), p), with_gradients(lambda p: -F.cosine_similarity(p, z), p))


@pytest.mark.parametrize(("angle", "cosine"), [((2.0, 0.0), 1.0), ((0.0, 3.0), 0.0), ((-1.0, 0.0), -1.0)])
def test_floor_start_and_ceiling(angle: tuple[float, float], cosine: float) -> None:
    p, z = torch.tensor([[1.0, 0.0]]), torch.tensor([angle])
    assert negative_cosine(p, z).tolist() == [-cosine]
    assert cosine_distance(p, z).tolist() == [2 - 2 * cosine]


@pytest.mark.parametrize("loss", [negative_cosine, cosine_distance])
def test_targets_are_constant(loss) -> None:
    p, z = normal(3, 4, seed=1).requires_grad_(), normal(3, 4, seed=2).requires_grad_()
    loss(p, z).sum().backward()
    assert p.grad.abs().max() > 0
    assert z.grad is None


def test_leading_dimensions_are_kept_and_a_vector_of_zeros_is_finite() -> None:
    p = torch.zeros(2, 3, 4).requires_grad_()
    rows = negative_cosine(p, normal(2, 3, 4).float())
    rows.sum().backward()
    assert rows.shape == (2, 3)
    assert p.grad.isfinite().all()
