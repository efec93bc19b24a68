"""The rotation task around any method: its chance value, what it sees, whose modules it has, and the turns it draws."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dist_ssl.distributed.world import World
from dist_ssl.methods.rotation import Rotation
from dist_ssl.methods.simclr import SimCLR
from dist_ssl.models.encoders import TinyResNet
from tests.methods import small


def wrapped(name: str = "mocov3", **other: Any) -> Rotation:
    """The task around a small method."""
    made = Rotation(small.method(name), world=World(), **{"hidden": 8, **other})
    return made.double().train()


def test_the_published_head_stands_on_the_encoders_features() -> None:
    head = Rotation(small.published("simclr"), world=World()).rotation
    assert small.layout(head) == "32-2048+ BN ReLU 2048-4+"


def test_a_head_that_knows_nothing_has_ln_4_per_turned_view_and_the_weight_on_it() -> None:
    m = wrapped(weight=0.1)
    nn.init.zeros_(m.rotation[-1].weight)
    nn.init.zeros_(m.rotation[-1].bias)
    b = small.batch()
    out = m.loss(small.forward(m, b), b, small.HYPER)
    alone = m.method.loss(small.forward(m.method, b), b, small.HYPER)
    assert out.metrics["rotation_loss"].item() == pytest.approx(2 * math.log(4))
    assert (out.loss - alone.loss).item() == pytest.approx(0.2 * math.log(4))


def test_the_method_sees_what_it_would_see_without_the_task() -> None:
    m, b = wrapped(), small.batch()
    own, alone = small.forward(m, b), small.forward(m.method, b)
    assert own.keys() - alone.keys() == {"turned0", "turned1"}
    assert all(torch.equal(own[name], alone[name]) for name in alone)


def test_neither_teacher_nor_projector_sees_turned_views() -> None:
    m, b = wrapped(), small.batch()
    rows: list[int] = []
    for part in (m.teacher, m.student.projector):
        assert isinstance(part, nn.Module)
        part.register_forward_hook(lambda _module, given, _out: rows.append(len(given[0])))
    small.forward(m, b)
    assert rows == [12, 12]


def test_replacements_do_not_count() -> None:
    m, b = wrapped(), small.batch(invalid=(1,))
    e = small.forward(m, b)
    first = m.loss(e, b, small.HYPER).metrics["rotation_loss"]
    changed = {name: value.clone() for name, value in e.items()}
    changed["turned0"][1] += 5
    assert torch.equal(m.loss(changed, b, small.HYPER).metrics["rotation_loss"], first)


def test_all_turns_are_equally_likely_and_drawn_for_every_sample_and_view() -> None:
    m, b = wrapped(), small.batch(size=4000)
    draws = b.draws.of(b.ids.numpy())
    turns = [m._turns(draws, slot, b.ids) for slot in (0, 1)]
    for own in turns:
        assert torch.bincount(own, minlength=4).tolist() == pytest.approx([1000] * 4, abs=100)
    assert (turns[0] == turns[1]).double().mean().item() == pytest.approx(0.25, abs=0.04)
    part = b.draws.of(b.ids[7:9].numpy())
    assert torch.equal(m._turns(part, 0, b.ids), turns[0][7:9])


@pytest.mark.parametrize("name", ["mocov3", "dino", "single_branch", "swav", "mocov2"])
def test_modules_keep_their_names_and_are_the_methods_own(name: str) -> None:
    m = wrapped(name)
    inner = m.method.state_dict()
    outer = m.state_dict()
    assert {key for key in outer if not key.startswith("rotation.")} == inner.keys()
    assert all(outer[key].data_ptr() == value.data_ptr() for key, value in inner.items())
    assert m.teacher is m.method.teacher
    assert m.encoder is m.method.encoder


@pytest.mark.parametrize("name", ["mocov3", "dino", "single_branch", "mocov2"])
def test_a_copy_and_a_move_keep_method_and_task_together(name: str) -> None:
    twin = copy.deepcopy(wrapped(name)).float()
    assert all(v.dtype != torch.float64 for v in twin.method.state_dict().values())
    assert twin.encoder is twin.method.encoder
    assert twin.get_submodule("student") is twin.method.student
    with torch.no_grad():
        next(twin.student.parameters()).fill_(3)
    assert (next(twin.method.student.parameters()) == 3).all()


class Heated(SimCLR):
    """A method with a parameter that lies in none of its modules."""

    def __init__(self, **keys: Any) -> None:
        super().__init__(TinyResNet(4), world=World(), **keys)
        self.heat = nn.Parameter(torch.ones(()))


def test_what_would_be_lost_between_method_and_task_is_not_wrapped() -> None:
    with pytest.raises(AssertionError, match="heat"):
        Rotation(Heated(hidden=8, dim=4), world=World(), hidden=8)


def test_a_memory_moves_as_without_the_task() -> None:
    m, alone = wrapped("mocov2", weight=0.0), small.method("mocov2")
    b = small.batch(invalid=(2,))
    for method in (m, alone):
        small.step(method, b)
    assert torch.equal(m.method.queue.keys, alone.queue.keys)
    assert alone.queue.ids[:6].tolist() == [0, 1, 3, 4, 5, -1]


def test_one_view_is_turned_where_a_method_has_one() -> None:
    m, b = wrapped("single_branch"), small.batch(views=1)
    assert m.turned == 1
    found: dict[str, Tensor] = small.forward(m, b)
    assert found["turned0"].shape == (6, 4)


def test_turned_copies_may_be_shrunk_and_the_views_are_not() -> None:
    m, b = wrapped("simclr", side=8), small.batch()
    seen: list[tuple[int, ...]] = []
    m.encoder.register_forward_hook(lambda _module, images, _out: seen.append(tuple(images[0].shape)))
    own, alone = small.forward(m, b), small.forward(wrapped("simclr"), b)
    assert seen == [(12, 3, 12, 12), (12, 3, 8, 8)]
    assert all(torch.equal(own[name], alone[name]) for name in own if not name.startswith("turned"))
