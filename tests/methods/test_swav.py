"""SwAV: scores are cosines with prototypes, and the loss is a swapped prediction of codes, as plain sums have it."""

import math

import pytest
import torch
import torch.nn.functional as F

from dist_ssl.distributed.world import World
from dist_ssl.losses.prototype_codes import sinkhorn
from dist_ssl.methods.swav import SwAV
from dist_ssl.models.norm import BatchNorm
from tests.methods import small


def test_scores_are_cosines_with_the_prototypes() -> None:
    m, b = small.method("swav"), small.batch()
    scores = small.forward(m, b)["s1"]
    z = m.student(torch.cat(b.views))[6:]
    expected = F.cosine_similarity(z[:, None], m.prototypes.weight[None], dim=2)
    assert torch.allclose(scores, expected)


def test_scores_that_are_all_alike_give_the_logarithm_of_the_prototypes() -> None:
    m = small.method("swav", prototypes=16)
    alike = {f"s{n}": torch.zeros(6, 16, dtype=torch.float64) for n in range(2)}
    assert m.loss(alike, small.batch(), small.HYPER).loss.item() == pytest.approx(math.log(16))


def test_the_loss_is_the_published_one_in_plain_sums() -> None:
    m = small.method("swav", prototypes=5, num_views=3)
    generator = torch.Generator().manual_seed(3)
    s = [torch.rand(6, 5, dtype=torch.float64, generator=generator) * 2 - 1 for _ in range(3)]

    def codes(scores: torch.Tensor) -> torch.Tensor:
        q = (scores / 0.05).exp().T
        q = q / q.sum()
        for _ in range(3):
            q = q / q.sum(1, keepdim=True) / 5
            q = q / q.sum(0, keepdim=True) / 6
        return (q * 6).T

    pairs = [-(codes(s[i]) * (s[v] / 0.1).log_softmax(1)).sum(1).mean() for i in range(3) for v in range(3) if v != i]
    found = m.loss({f"s{n}": value for n, value in enumerate(s)}, small.batch(3), small.HYPER).loss
    assert found.item() == pytest.approx(torch.stack(pairs).mean().item())


def test_local_views_are_predicted_from_global_codes_and_have_none() -> None:
    m = small.method("swav", prototypes=5, local_views=2)
    generator = torch.Generator().manual_seed(4)
    s = [torch.rand(6, 5, dtype=torch.float64, generator=generator) * 2 - 1 for _ in range(4)]
    two = small.method("swav", prototypes=5)
    b = small.batch()

    def loss(method: SwAV, scores: list[torch.Tensor]) -> float:
        return method.loss({f"s{n}": value for n, value in enumerate(scores)}, b, small.HYPER).loss.item()

    q = [sinkhorn(x, b.valid, World().sum_const) for x in s[:2]]
    local = [-(code * (x / 0.1).log_softmax(1)).sum(1).mean().item() for code in q for x in s[2:]]
    assert loss(m, s) == pytest.approx((2 * loss(two, s[:2]) + sum(local)) / 6)


def test_views_of_one_side_pass_the_encoder_together() -> None:
    m, b = small.method("swav", prototypes=5, local_views=3), small.batch(2)
    b.views += [torch.randn(6, 3, 8, 8, dtype=torch.float64) for _ in range(3)]
    seen = []
    m.encoder.register_forward_hook(lambda _module, images, _out: seen.append(tuple(images[0].shape)))
    assert sorted(small.forward(m, b)) == ["s0", "s1", "s2", "s3", "s4"]
    assert seen == [(12, 3, 12, 12), (18, 3, 8, 8)]


def test_common_statistics_are_those_of_a_plain_pass_over_crops_of_one_size_and_a_head_over_all_crops() -> None:
    """The authors concatenate crop by crop; here rows lie sample by sample."""
    m, b = small.method("swav", prototypes=5, local_views=3, share_statistics=True), small.batch(2)
    b.views += [torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))] * 3
    b.views[3:] = [b.views[3] + 1, b.views[4].flip(3)]
    for child in m.student.modules():
        if isinstance(child, BatchNorm):
            child.views, child.rows = 1, 1
    features = torch.cat([m.encoder(torch.cat(b.views[:2])), m.encoder(torch.cat(b.views[2:]))])
    plain = F.normalize(m.student.projector(features), dim=1) @ m.prototypes.weight.T
    own = small.forward(small.method("swav", prototypes=5, local_views=3), b)
    for number, (key, found) in enumerate(small.forward(m, b).items()):
        assert key == f"s{number}"
        assert torch.allclose(found, plain[6 * number : 6 * number + 6], atol=1e-9)
        assert not torch.allclose(found, own[key], atol=1e-3), "the option changes nothing"


def test_prototypes_begin_with_length_1() -> None:
    assert torch.allclose(small.method("swav").prototypes.weight.norm(dim=1), torch.ones(()).double(), atol=1e-6)
