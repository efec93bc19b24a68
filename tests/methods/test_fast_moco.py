"""Fast-MoCo: what the two branches see, twelve terms against plain sums, the published start and floor."""

import math
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dist_ssl.models.norm import BatchNorm
from tests.methods import small


def alike(size: int, width: int, combinations_: int = 6) -> dict[str, Tensor]:
    """Predictions and keys that are all one vector."""
    p, k = torch.ones(size, combinations_, width).double(), torch.ones(size, width).double()
    return {"p1": p, "p2": p, "t1": k, "t2": k}


def test_at_the_published_batch_the_loss_begins_at_ln_512_and_has_its_floor_at_5_242() -> None:
    m, b = small.method("fast_moco", temperature=1.0), small.batch(size=512)
    assert m.loss(alike(512, 4), b, small.HYPER).loss.item() == pytest.approx(6.238, abs=1e-3)
    k = torch.eye(512, dtype=torch.float64)
    p = k[:, None].expand(512, 6, 512)
    floor = m.loss({"p1": p, "p2": p, "t1": k, "t2": k}, b, small.HYPER).loss.item()
    assert floor == pytest.approx(5.242, abs=1e-3)
    assert floor == pytest.approx(math.log(math.e + 511) - 1)


def test_the_student_sees_quarters_only_and_the_teacher_whole_views() -> None:
    m, b = small.method("fast_moco"), small.batch()
    seen: dict[str, tuple[int, ...]] = {}
    for name, part in (("student", m.student.encoder), ("teacher", m.teacher.encoder), ("heads", m.student.projector)):
        part.register_forward_hook(lambda _m, given, _out, n=name: seen.update({n: tuple(given[0].shape)}))
    e = small.forward(m, b)
    assert seen == {"student": (48, 3, 6, 6), "teacher": (12, 3, 12, 12), "heads": (72, 32)}
    assert e["p1"].shape == (6, 6, 256)


def test_predictions_are_of_mean_features_of_pairs_of_tiles() -> None:
    m, b = small.method("fast_moco").eval(), small.batch()
    with torch.no_grad():
        for child in m.modules():
            if isinstance(child, BatchNorm):
                child.running_var.mul_(1.3)
        tiles = [b.views[0][:, :, y : y + 6, x : x + 6] for x in (0, 6) for y in (0, 6)]
        features = [m.student.encoder(tile) for tile in tiles]
        pairs = [(features[i] + features[j]) / 2 for i, j in combinations(range(4), 2)]
        expected = torch.stack([m.predictor(m.student.projector(pair)) for pair in pairs], dim=1)
        assert torch.allclose(small.forward(m, b)["p1"], expected)


def test_twelve_terms_against_the_keys_of_the_other_view() -> None:
    m, b = small.method("fast_moco", temperature=0.7), small.batch()
    generator = torch.Generator().manual_seed(4)
    e = {n: torch.randn(6, 6, 5, generator=generator, dtype=torch.float64) for n in ("p1", "p2")}
    e |= {n: torch.randn(6, 5, generator=generator, dtype=torch.float64) for n in ("t1", "t2")}
    terms = []
    for p, k in ((e["p1"], e["t2"]), (e["p2"], e["t1"])):
        for s in range(6):
            logits = F.normalize(p[:, s], dim=1) @ F.normalize(k, dim=1).T / 0.7
            terms.append(F.cross_entropy(logits, torch.arange(6)))
    found = m.loss(e, b, small.HYPER).loss
    assert found.item() == pytest.approx(torch.stack(terms).mean().item())


def test_a_teacher_of_its_own_begins_with_other_weights_if_asked() -> None:
    m = small.method("fast_moco", own_teacher=True)
    pairs = zip(m.student.modules(), m.teacher.modules(), strict=True)
    layers = [(s, t) for s, t in pairs if isinstance(s, nn.Conv2d | nn.Linear)]
    assert all(not torch.equal(s.weight, t.weight) for s, t in layers)
