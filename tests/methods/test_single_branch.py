"""One branch: its head, its loss against plain sums over the bank, what the bank holds, mixed or not."""

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dist_ssl.core.draws import Draws
from dist_ssl.data.images import cutmix
from dist_ssl.distributed.world import World
from dist_ssl.losses.instance import Divergence
from tests.losses.tensors import plain_divergence
from tests.methods import small

SIZE, DIM = 8, 6


def filled(**other: Any) -> Any:
    """A method whose bank is filled, of 120 rows."""
    made = small.method("single_branch", hidden=12, dim=DIM, **other)
    for first in range(0, 120, SIZE):
        made.initialise_memory(small.batch(1, SIZE, first=first, seed=first))
    return made


def test_the_published_head_has_three_layers_with_biases() -> None:
    head = small.published("single_branch", dim=2048).student.projector
    assert small.layout(head) == "32-2048+ BN ReLU 2048-2048+ BN ReLU 2048-2048+"


def test_every_row_begins_as_the_unit_embedding_of_its_image() -> None:
    m = filled()
    rows = m.bank.rows
    assert torch.allclose(rows.norm(dim=1), torch.ones(120, dtype=torch.float64))
    again = F.normalize(m.student(small.batch(1, SIZE, first=16, seed=16).views[0]), dim=1)
    assert torch.allclose(rows[16 : 16 + SIZE], again)


def test_without_calibration_rows_are_zeros_until_their_images_are_visited() -> None:
    m = small.method("single_branch", hidden=12, dim=DIM, calibrate=False, mix=False)
    assert not m.needs_initial_pass
    assert filled().needs_initial_pass
    b = small.batch(1, SIZE, first=40)
    z = F.normalize(m.student(b.views[0]), dim=1).detach()
    small.step(m, b)
    assert torch.allclose(m.bank.rows[40 : 40 + SIZE], z)
    assert m.bank.rows.any(dim=1).sum() == SIZE


def test_a_replacement_fills_no_row() -> None:
    m = small.method("single_branch", hidden=12, dim=DIM)
    m.initialise_memory(small.batch(1, SIZE, invalid=(2,)))
    assert m.bank.rows[2].abs().sum() == 0
    assert (m.bank.rows[[0, 1, 3]].norm(dim=1) > 0.99).all()


def plain_loss(z: Tensor, rows: Tensor, targets: Tensor, own: slice | Tensor) -> Tensor:
    """CE(z W^T / 0.2) + 20 KL(p || sqrt p), over the rows `own`, as section 3.2 has it."""
    s = z @ rows[own].T
    p = s.softmax(1)
    u = p.sqrt() / p.sqrt().sum(1, keepdim=True)
    return F.cross_entropy(s / 0.2, targets) + 20 * (p * (p / u.detach()).log()).sum(1).mean()


def test_unmixed_the_loss_and_its_gradient_are_those_of_plain_sums() -> None:
    m = filled(mix=False)
    rows, b = m.bank.rows.clone(), small.batch(1, SIZE, first=40)
    found = m.loss(small.forward(m, b), b, small.HYPER)
    ours = small.gradients(m, b, found)
    z = F.normalize(m.student(b.views[0]), dim=1)
    expected = plain_loss(z, rows, b.ids, slice(None))
    m.zero_grad()
    expected.backward()  # type: ignore[no-untyped-call]
    assert found.loss.item() == pytest.approx(expected.item())
    for name, p in m.named_parameters():
        assert p.grad is not None
        assert torch.allclose(ours[name], p.grad, atol=1e-10), name


@pytest.mark.parametrize("divergence", ["p||u", "u||p"])
@pytest.mark.parametrize("through", [False, True])
def test_every_divergence_is_the_pure_one_over_the_bank(divergence: Divergence, through: bool) -> None:
    own: dict[str, Any] = {"divergence": divergence, "through_target": through}
    m = filled(mix=False, kl_temperature=0.3, **own)
    b = small.batch(1, SIZE, first=40)
    found = m.loss(small.forward(m, b), b, small.HYPER)
    ours = small.gradients(m, b, found)
    s = F.normalize(m.student(b.views[0]), dim=1) @ m.bank.rows.T
    task = plain_divergence(s / 0.3, 0.5, divergence, through).mean()
    expected = F.cross_entropy(s / 0.2, b.ids) + 20 * task
    m.zero_grad()
    expected.backward()  # type: ignore[no-untyped-call]
    assert found.loss.item() == pytest.approx(expected.item())
    assert all(torch.allclose(ours[name], p.grad, atol=1e-10) for name, p in m.named_parameters())


def test_with_sampled_negatives_it_is_over_the_batch_and_as_many_others() -> None:
    m = filled(mix=False, negatives=7)
    b = small.batch(1, SIZE, first=40)
    among = m._among(b)
    assert len(among) == SIZE + 7
    z = F.normalize(m.student(b.views[0]), dim=1)
    expected = plain_loss(z, m.bank.rows, torch.searchsorted(among, b.ids), among)
    assert m.loss(small.forward(m, b), b, small.HYPER).loss.item() == pytest.approx(expected.item())


def test_so_many_others_are_compared_whatever_the_batch_holds() -> None:
    """An image that replaces an unreadable one may occur twice; as many others as asked come beside the batch's."""
    m = filled(negatives=7)
    b = small.batch(1, SIZE, first=40, invalid=(5,))
    b.ids[5] = b.ids[2]
    among = m._among(b).tolist()
    assert among == sorted(set(among))
    assert len(set(among) - set(b.ids.tolist())) == 7
    assert set(b.ids.tolist()) <= set(among)


def test_ema_moves_the_batchs_rows_only_and_none_of_a_replacement() -> None:
    m = filled(mix=False)
    before, b = m.bank.rows.clone(), small.batch(1, SIZE, first=40, invalid=(3,))
    z = F.normalize(m.student(b.views[0]), dim=1).detach()
    small.step(m, b)
    expected = before.clone()
    kept = [row for row in range(SIZE) if row != 3]
    expected[[40 + row for row in kept]] = F.normalize(0.5 * before[[40 + row for row in kept]] + 0.5 * z[kept], dim=1)
    assert torch.allclose(m.bank.rows, expected)


def test_rows_follow_the_images_themselves_where_they_shall() -> None:
    m, mixed = filled(update_on_mixed=False), filled()
    before, b = m.bank.rows.clone(), small.batch(1, SIZE, first=40)
    z = F.normalize(m.student(b.views[0]), dim=1).detach()
    loss, other = small.step(m, b), small.step(mixed, b)
    assert torch.allclose(m.bank.rows[40 : 40 + SIZE], F.normalize(0.5 * before[40 : 40 + SIZE] + 0.5 * z, dim=1))
    assert not torch.allclose(m.bank.rows, mixed.bank.rows)
    assert loss.loss.item() == other.loss.item()


def test_an_image_mixed_with_a_replacement_counts_no_more_than_the_replacement() -> None:
    m = filled()
    b = small.batch(1, SIZE, first=40, invalid=(3,))
    mix = cutmix.draw(b.draws, b.ids.numpy(), m.mix_alpha, 12)
    touched = {3, *np.flatnonzero(mix.partners == 3).tolist()}
    before = m.bank.rows.clone()
    small.step(m, b)
    still = [row for row in range(SIZE) if torch.equal(m.bank.rows[40 + row], before[40 + row])]
    assert set(still) == touched


def test_the_positive_similarity_is_that_with_the_samples_own_row() -> None:
    m = filled(mix=False)
    b = small.batch(1, SIZE, first=40)
    z = F.normalize(m.student(b.views[0]), dim=1)
    found = m.loss(small.forward(m, b), b, small.HYPER).metrics["positive_similarity"]
    assert found.item() == pytest.approx((z * m.bank.rows[40 : 40 + SIZE]).sum(1).mean().item())


@cache
def drawn(count: int = 1500) -> list[cutmix.Mix]:
    """The mixes of so many batches of 9 images of 32 px."""
    return [cutmix.draw(Draws(1), np.arange(9 * n, 9 * n + 9), 0.5, 32) for n in range(count)]


def test_mixes_of_small_images_have_the_published_shares() -> None:
    kept = np.array([mix.kept for mix in drawn()])
    assert kept.mean() == pytest.approx(0.879, abs=0.01)
    assert kept.min() >= 0.5
    assert (kept == 1).mean() == pytest.approx(0.079, abs=0.02)


def test_the_share_kept_is_what_the_box_leaves() -> None:
    images = torch.arange(9.0)[:, None, None, None].expand(9, 3, 32, 32).contiguous()
    for mix in drawn()[:40]:
        mixed = cutmix.mixed(images, mix, World())
        own = (mixed[:, 0] == images[:, 0]).double().mean((1, 2))
        for row, partner in enumerate(mix.partners):
            assert own[row] == pytest.approx(1.0 if partner == row else mix.kept)


def test_the_place_of_the_box_does_not_tell_the_order() -> None:
    places = [(mix.box[0] + mix.box[1]) / 2 for mix in drawn()]
    first = [int(np.flatnonzero(mix.partners == 0)[0]) for mix in drawn()]
    assert abs(np.corrcoef(places, first)[0, 1]) < 0.1


@pytest.mark.parametrize("alpha", [*cutmix.ALPHAS, 0.5])
def test_a_beta_has_its_mean_and_variance(alpha: float) -> None:
    numbers = Draws(0).uniform(cutmix.Purpose.MIX, np.arange(4000), 0, 2 * cutmix.TRIES).astype(np.float64)
    values = np.array([cutmix.beta(row, alpha) for row in numbers])
    assert values.mean() == pytest.approx(0.5, abs=0.02)
    assert values.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.01)


def test_rows_that_are_like_nothing_give_the_logarithm_of_their_number() -> None:
    m = small.method("single_branch", hidden=12, dim=DIM, mix=False, kl_weight=0.0)
    b = small.batch(1, SIZE)
    assert m.loss(small.forward(m, b), b, small.HYPER).loss.item() == pytest.approx(math.log(120))
