"""The losses agree with those of lightly, value and gradient, where it is installed (`pip install '.[test]'`)."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dist_ssl.losses.coding_rate import emp_ssl
from dist_ssl.losses.contrastive import nt_xent
from dist_ssl.losses.cosine import cosine_distance, negative_cosine
from dist_ssl.losses.prototype_codes import sinkhorn, swapped_cross_entropy
from dist_ssl.losses.teacher_cross_entropy import batch_centre, dino_cross_entropy
from dist_ssl.losses.variance_covariance import vicreg
from tests.losses.tensors import alone, close, normal, with_gradients

theirs = pytest.importorskip("lightly.loss")
their_emp = pytest.importorskip("lightly.loss.emp_ssl_loss")

ALL = torch.ones(6).bool()


def agree(own: Callable[[Tensor], Tensor], peer: Callable[[Tensor], Tensor], z: Tensor) -> None:
    close(with_gradients(own, z), with_gradients(peer, z), 1e-9)


def test_nt_xent() -> None:
    peer = theirs.NTXentLoss(temperature=0.3)
    agree(lambda z: nt_xent(z, z, 0, 0.3).mean(), lambda z: peer(z[0], z[1]), normal(2, 6, 4))


def test_cosines() -> None:
    peer, targets = theirs.NegativeCosineSimilarity(), normal(6, 4, seed=1)
    agree(lambda p: negative_cosine(p, targets).mean(), lambda p: peer(p, targets), normal(6, 4))
    agree(lambda p: cosine_distance(p, targets).mean(), lambda p: 2 + 2 * peer(p, targets), normal(6, 4))


@pytest.mark.parametrize("scale", [0.3, 1.5])
def test_vicreg(scale: float) -> None:
    peer = theirs.VICRegLoss()
    agree(lambda z: vicreg(z[0], z[1], ALL).loss, lambda z: peer(z[0], z[1]), scale * normal(2, 6, 4))


def test_swav() -> None:
    peer, scores = theirs.SwaVLoss(), F.normalize(normal(5, 6, 4), dim=2)

    def own(scores: Tensor) -> Tensor:
        codes = [sinkhorn(crop, ALL, alone) for crop in scores[:2]]
        return swapped_cross_entropy(list(scores), codes).mean()

    agree(own, lambda s: peer(list(s[:2]), list(s[2:])), scores)


def test_dino() -> None:
    peer = theirs.DINOLoss(output_dim=7, teacher_temp=0.07, student_temp=0.2).double()
    teacher, centre = normal(2, 6, 7, seed=1), normal(7, seed=2)

    def own(student: Tensor) -> Tensor:
        options = {"student_temperature": 0.2, "teacher_temperature": 0.07}
        return dino_cross_entropy(list(student), list(teacher), centre, **options).mean()

    def lightly(student: Tensor) -> Tensor:
        peer.center.copy_(centre)
        return peer(list(teacher), list(student))

    agree(own, lightly, normal(4, 6, 7))
    close([peer.center.flatten()], [0.9 * centre + 0.1 * batch_centre(list(teacher), ALL, alone)])


def test_the_terms_of_emp_ssl() -> None:
    """Term by term: lightly 1.6 adds the coding rate to its loss, which minimises what the paper maximises."""
    z = F.normalize(normal(3, 6, 4), dim=2)
    agree(lambda z: emp_ssl(z, ALL, 6).coding_rate, lambda z: their_emp.tcr_loss(F.normalize(z, dim=2), 0.2), z)
    agree(lambda z: -emp_ssl(z, ALL, 6).invariance, lambda z: their_emp.invariance_loss(F.normalize(z, dim=2)), z)
