"""SimCLR: the published loss in plain sums, and its values at the start and at the end."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.methods import small


def test_the_loss_is_the_published_one_in_plain_sums() -> None:
    m = small.method("simclr", temperature=0.5)
    generator = torch.Generator().manual_seed(2)
    e = {n: torch.randn(6, 5, dtype=torch.float64, generator=generator) for n in ("z1", "z2")}
    z = F.normalize(torch.cat([e["z1"], e["z2"]]), dim=1)
    rows = []
    for i in range(12):
        logits = (z @ z[i]) / 0.5
        others = [j for j in range(12) if j != i]
        rows.append(logits[others].logsumexp(0) - logits[(i + 6) % 12])
    found = m.loss(e, small.batch(), small.HYPER).loss
    assert found.item() == pytest.approx(torch.stack(rows).mean().item())


def test_embeddings_that_are_all_alike_are_told_apart_by_chance() -> None:
    alike = {n: torch.ones(6, 5, dtype=torch.float64) for n in ("z1", "z2")}
    found = small.method("simclr").loss(alike, small.batch(), small.HYPER).loss
    assert found.item() == pytest.approx(math.log(11))


def test_without_readable_samples_there_is_nothing_to_learn() -> None:
    m, b = small.method("simclr"), small.batch(invalid=(0, 1, 2, 3, 4, 5))
    out = m.loss(small.forward(m, b), b, small.HYPER)
    assert out.loss.item() == 0
    assert all(g.abs().sum() == 0 for g in small.gradients(m, b, out).values())
