"""EMP-SSL: the published toy, groups of images, and what a collapse and a perfect spread cost."""

import math

import pytest
import torch

from tests.methods import small


def test_the_toy_gives_the_published_loss() -> None:
    m = small.method("emp_ssl", patches=3)
    patches = [[[1, 0], [0, 1]], [[1, 1], [1, 3]], [[2, 1], [-1, 2]]]
    z = torch.nn.functional.normalize(torch.tensor(patches, dtype=torch.float64), dim=2).transpose(0, 1)
    out = m.loss({"z": z}, small.batch(3, size=2), small.HYPER)
    assert out.loss.item() == pytest.approx(-191.398353, abs=1e-6)
    assert out.metrics["coding_rate"].item() == pytest.approx(1.656604, abs=1e-6)


def test_at_the_published_sizes_a_collapse_and_a_perfect_spread_have_their_rates() -> None:
    m, b = small.method("emp_ssl", patches=2, loss_group=100), small.batch(2, size=100)
    one = torch.eye(1024, dtype=torch.float64)[:1].expand(100, 2, 1024)
    found = m.loss({"z": one}, b, small.HYPER)
    assert found.metrics["coding_rate"].item() == pytest.approx(4.2706, abs=1e-3)
    each = torch.eye(1024, dtype=torch.float64)[:100, None].expand(100, 2, 1024)
    found = m.loss({"z": each}, b, small.HYPER)
    assert found.metrics["coding_rate"].item() == pytest.approx(197.754, abs=1e-3)
    assert found.loss.item() == pytest.approx(-200 - 50 * math.log(1 + 1024 / 20))


def test_the_loss_of_a_batch_of_groups_is_the_mean_of_theirs() -> None:
    m = small.method("emp_ssl", patches=3, loss_group=4)
    whole = small.method("emp_ssl", patches=3)
    generator = torch.Generator().manual_seed(1)
    z = torch.nn.functional.normalize(torch.randn(8, 3, 5, generator=generator, dtype=torch.float64), dim=2)
    parts = [whole.loss({"z": part}, small.batch(3, size=4), small.HYPER).loss for part in z.chunk(2)]
    found = m.loss({"z": z}, small.batch(3, size=8), small.HYPER).loss
    assert found.item() == pytest.approx(torch.stack(parts).mean().item())
    together = whole.loss({"z": z}, small.batch(3, size=8), small.HYPER).loss
    assert abs(together.item() - found.item()) > 0.1


def test_all_patches_of_all_images_share_their_statistics_and_stay_with_their_image() -> None:
    m, b = small.method("emp_ssl", patches=3), small.batch(3)
    z = small.forward(m, b)["z"]
    together = torch.nn.functional.normalize(m.student(torch.cat(b.views)), dim=1).view(3, 6, -1)
    assert torch.allclose(z, together.transpose(0, 1))
