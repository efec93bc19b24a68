"""DINO: outputs are cosines, the loss starts at the logarithm of their number, and the centre follows the teacher."""

import math

import pytest
import torch

from dist_ssl.core.draws import Draws, SampleDraws
from dist_ssl.core.plan import Hyperparameters
from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError
from dist_ssl.losses.prototype_codes import sinkhorn
from dist_ssl.methods.dino import DINO
from dist_ssl.models.drop_path import DropPath
from dist_ssl.models.vit import vit
from dist_ssl.schedules.warmup_cosine import value
from tests.methods import small


def test_outputs_are_cosines_whatever_the_length_of_the_last_layers_weights() -> None:
    m, b = small.method("dino", outputs=12), small.batch()
    before = small.forward(m, b)["s0"]
    assert before.abs().max() <= 1
    with torch.no_grad():
        m.student.projector.last.weight.mul_(7)
    assert torch.allclose(small.forward(m, b)["s0"], before)


def test_outputs_that_are_all_alike_give_the_logarithm_of_their_number() -> None:
    m = small.method("dino", outputs=12)
    alike = {name: torch.zeros(6, 12, dtype=torch.float64) for name in ("s0", "s1", "t0", "t1")}
    assert m.loss(alike, small.batch(), small.HYPER).loss.item() == pytest.approx(math.log(12))


def test_the_loss_is_the_published_one_in_plain_sums() -> None:
    m = small.method("dino", outputs=5)
    generator = torch.Generator().manual_seed(3)
    e = {n: torch.randn(6, 5, dtype=torch.float64, generator=generator) for n in ("s0", "s1", "t0", "t1")}
    m.centre.value.copy_(torch.linspace(-1, 1, 5))
    rows = [
        -(((e[t] - m.centre.value) / 0.04).softmax(1) * (e[s] / 0.1).log_softmax(1)).sum(1)
        for t, s in (("t0", "s1"), ("t1", "s0"))
    ]
    found = m.loss(e, small.batch(), small.HYPER).loss
    assert found.item() == pytest.approx(torch.stack(rows).mean().item())


def test_the_centre_moves_a_tenth_of_the_way_to_the_mean_of_readable_samples_in_all_views() -> None:
    m, b = small.method("dino", outputs=12), small.batch(invalid=(0, 4))
    e = small.forward(m, b)
    m.centre.value.fill_(0.5)
    m.remember(m.loss(e, b, small.HYPER), b, small.HYPER)
    kept = [1, 2, 3, 5]
    mean = torch.cat([e["t0"][kept], e["t1"][kept]]).mean(0)
    assert torch.allclose(m.centre.value, 0.45 + 0.1 * mean)


def test_shared_targets_are_sinkhorns_at_the_teachers_temperature_and_leave_the_centre() -> None:
    m, b = small.method("dino", outputs=12, sinkhorn=2), small.batch(invalid=(0, 4))
    e, warm = small.forward(m, b), Hyperparameters({"teacher_temperature": torch.tensor(0.4)})
    kept = torch.cat([e["t0"][b.valid], e["t1"][b.valid]])
    q0, q1 = sinkhorn(kept, torch.ones(8).bool(), World().sum_const, eps=0.4, iterations=2).chunk(2)
    rows = [-(q * (e[s][b.valid] / 0.1).log_softmax(1)).sum(1) for q, s in ((q0, "s1"), (q1, "s0"))]
    out = m.loss(e, b, warm)
    assert out.loss.item() == pytest.approx(torch.stack(rows).mean().item(), rel=1e-6)
    m.remember(out, b, warm)
    assert m.centre.value.abs().sum() == 0


def test_the_teacher_sees_global_views_only_and_the_student_all() -> None:
    m, b = small.method("dino", outputs=12, local_views=2), small.batch(2)
    without = small.forward(m, b)
    b.views += [torch.randn(6, 3, 8, 8, dtype=torch.float64) for _ in range(2)]
    e = small.forward(m, b)
    assert sorted(e) == ["s0", "s1", "s2", "s3", "t0", "t1"]
    assert all(torch.equal(e[name], without[name]) for name in ("s0", "s1", "t0", "t1"))
    targets = [((e[t] - m.centre.value) / 0.04).softmax(1) for t in ("t0", "t1")]
    pairs = [(i, v) for i in range(2) for v in range(4) if v != i]
    rows = [-(targets[i] * (e[f"s{v}"] / 0.1).log_softmax(1)).sum(1).mean() for i, v in pairs]
    assert m.loss(e, b, small.HYPER).loss.item() == pytest.approx(torch.stack(rows).mean().item())


def test_an_epoch_may_have_fewer_local_views_than_the_recipe() -> None:
    most, none, b = small.method("dino", outputs=12, local_views=2), small.method("dino", outputs=12), small.batch(2)
    e = small.forward(none, b)
    assert most.loss(e, b, small.HYPER).loss.item() == none.loss(e, b, small.HYPER).loss.item()


def test_the_hyperparameter_is_the_teachers_temperature() -> None:
    m, b = small.method("dino", outputs=12), small.batch()
    e = small.forward(m, b)
    warm = Hyperparameters({"teacher_temperature": torch.tensor(0.4)})
    rows = [-((e[t] / 0.4).softmax(1) * (e[s] / 0.1).log_softmax(1)).sum(1) for t, s in (("t0", "s1"), ("t1", "s0"))]
    assert m.loss(e, b, warm).loss.item() == pytest.approx(torch.stack(rows).mean().item())


def test_the_temperature_rises_during_its_own_warm_up_and_without_one_not() -> None:
    own = small.method("dino", teacher_temperature=0.07, teacher_warmup="30 epochs").curves["teacher_temperature"]
    assert [value(own, p, 30, 100) for p in (0, 15, 30, 60)] == pytest.approx([0.04, 0.055, 0.07, 0.07])
    constant = small.method("dino", teacher_temperature=0.07).curves["teacher_temperature"]
    assert {value(constant, p, 30, 100) for p in (0, 15, 30, 60)} == {0.07}


def test_the_head_may_have_batch_norm_between_its_layers() -> None:
    head = small.method("dino", hidden=8, narrow=4, head_norm=True).student.projector
    assert small.layout(head.mlp) == "32-8+ BN GELU 8-8+ BN GELU 8-4+"


def with_depth(drop_path: float) -> DINO:
    """DINO around a transformer of three blocks."""
    torch.manual_seed(0)
    encoder = vit(width=8, depth=3, heads=2, patch=4)
    return DINO(encoder, world=World(), hidden=8, narrow=4, outputs=12, local_views=1, drop_path=drop_path).double()


def test_stochastic_depth_is_the_students_only_and_rises_over_the_blocks() -> None:
    m = with_depth(0.2)
    rates = [(name, child.rate) for name, child in m.named_modules() if isinstance(child, DropPath)]
    expected = [(1, 0.1), (2, 0.2)]
    names = [(f"student.encoder.blocks.{n}.drop_path{branch}", rate) for n, rate in expected for branch in (1, 2)]
    assert rates == [(name, pytest.approx(rate)) for name, rate in names]
    assert m.student.state_dict().keys() == m.teacher.state_dict().keys()
    assert not any(isinstance(child, DropPath) for child in with_depth(0.0).modules())


def test_what_is_left_out_depends_on_the_sample_its_view_and_the_epoch_alone() -> None:
    m = with_depth(0.5)
    b = small.batch()
    b.views += [b.views[0][..., :8, :8]]
    whole = small.forward(m, b)
    part = m([view[2:5] for view in b.views], SampleDraws(Draws(0), b.ids.numpy()[2:5]))
    assert all(torch.allclose(part[key], whole[key][2:5], atol=1e-12) for key in whole)
    other = m(b.views, SampleDraws(Draws(0, epoch=1), b.ids.numpy()))
    assert torch.equal(other["t0"], whole["t0"])
    assert not torch.allclose(other["s0"], whole["s0"])
    b.views[1] = b.views[0]
    assert not torch.allclose(small.forward(m, b)["s1"], whole["s0"])
    m.eval()
    assert torch.allclose(m.encoder(b.views[0]), with_depth(0.0).encoder(b.views[0]))


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_share_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(
        ConfigError, match=rf"method\.drop_path={rate:g} is not possible: it must be from 0 to less than 1"
    ):
        with_depth(rate)


def test_a_convolutional_encoder_has_no_depth_to_leave_out() -> None:
    with pytest.raises(ConfigError, match=r"method\.drop_path=0\.1 .* the encoder has no transformer blocks"):
        small.method("dino", drop_path=0.1)
