"""The queue is a ring of the newest valid keys in global order, the same on every rank, whatever batches come."""

from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dist_ssl.distributed.world import World
from dist_ssl.memory.queue import EMPTY, Queue
from tests.ranks import Ranks

WIDTH = 3
Batches = list[list[bool]]
"""Of every batch, which samples are valid."""


def samples(batches: Batches) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Keys, ids and validity of every batch; the keys tell the ids."""
    found, first = [], 0
    for valid in batches:
        ids = torch.arange(first, first + len(valid))
        found.append((ids[:, None] + torch.arange(WIDTH) / 10, ids, torch.tensor(valid, dtype=torch.bool)))
        first += len(valid)
    return found


def filled(world: World, slots: int, batches: Batches) -> dict[str, Tensor]:
    """The state after all batches, each rank bringing its own part."""
    queue = Queue(slots, WIDTH, world=world)
    for batch in samples(batches):
        queue.push(*(x.chunk(world.size)[world.rank] for x in batch))
    return {name: value.clone() for name, value in queue.state_dict().items()}


def reference(slots: int, batches: Batches) -> list[tuple[int, int]]:
    """Ids and births of what a plain ring holds, oldest first."""
    ring: deque[tuple[int, int]] = deque(maxlen=slots)
    for birth, (_, ids, valid) in enumerate(samples(batches)):
        ring.extend((number, birth) for number, good in zip(ids.tolist(), valid.tolist(), strict=True) if good)
    return list(ring)


def oldest_first(state: dict[str, Tensor]) -> list[tuple[int, int]]:
    slots = len(state["ids"])
    order = [(int(state["pushed"]) + at) % slots for at in range(slots)]
    return [(int(state["ids"][at]), int(state["births"][at])) for at in order if state["ids"][at] != EMPTY]


def batches_of(multiple: int) -> st.SearchStrategy[Batches]:
    sizes = st.integers(1, 24 // multiple).map(lambda n: n * multiple)
    return st.lists(sizes.flatmap(lambda n: st.lists(st.booleans(), min_size=n, max_size=n)), max_size=8)


@settings(max_examples=200)
@given(slots=st.integers(1, 30), batches=batches_of(1))
def test_it_holds_what_a_plain_ring_holds(slots: int, batches: Batches) -> None:
    state = filled(World(), slots, batches)
    held = reference(slots, batches)
    assert oldest_first(state) == held
    for key, number in zip(state["keys"], state["ids"].tolist(), strict=True):
        wanted = torch.zeros(WIDTH) if number == EMPTY else number + torch.arange(WIDTH) / 10
        assert torch.equal(key, wanted)
    assert int(state["pushes"]) == len(batches)


@pytest.mark.parametrize("size", [2, 4])
@settings(max_examples=8)
@given(slots=st.integers(1, 30), batches=batches_of(4))
def test_all_ranks_hold_what_one_holds(ranks: Ranks, size: int, slots: int, batches: Batches) -> None:
    wanted = filled(World(), slots, batches)
    for state in ranks.run(filled, size, slots, batches):
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[name], wanted[name]) for name in wanted)


@given(slots=st.integers(1, 12), before=batches_of(1), after=batches_of(1))
def test_going_on_from_its_state_is_as_if_never_stopped(slots: int, before: Batches, after: Batches) -> None:
    whole = filled(World(), slots, [*before, *after])
    queue = Queue(slots, WIDTH, world=World())
    queue.load_state_dict(filled(World(), slots, before))
    for batch in samples([*before, *after])[len(before) :]:
        queue.push(*batch)
    assert all(torch.equal(value, whole[name]) for name, value in queue.state_dict().items())


def test_negatives_leave_out_empty_slots_and_keys_of_the_same_image() -> None:
    queue = Queue(5, WIDTH, world=World())
    assert not queue.negatives(torch.tensor([0]))[1].any()
    queue.push(*samples([[True, False, True, True]])[0])
    keys, usable = queue.negatives(torch.tensor([2, 9]))
    assert keys[:, 0].tolist() == [0, 2, 3, 0, 0]
    assert usable.tolist() == [[True, False, True, False, False], [True, True, True, False, False]]


def test_pushing_before_the_backward_pass_is_refused() -> None:
    queue = Queue(4, WIDTH, world=World())
    batch = samples([[True, True]])[0]
    queue.push(*batch)
    query = torch.ones(1, WIDTH, requires_grad=True)
    loss = (query @ queue.negatives(torch.tensor([8]))[0].T).logsumexp(1).sum()
    queue.push(*batch)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_age_counts_pushes() -> None:
    queue = Queue(4, WIDTH, world=World())
    assert queue.age.item() == 0
    first, second, third = samples([[True, True], [True, False], [False]])
    queue.push(*first)
    assert queue.age.item() == 1
    queue.push(*second)
    assert queue.age.item() == pytest.approx((2 + 2 + 1) / 3)
    queue.push(*third)  # nothing new
    assert queue.age.item() == pytest.approx((3 + 3 + 2) / 3)


def test_keys_follow_the_precision_and_counts_do_not() -> None:
    queue = Queue(4, WIDTH, world=World()).double()
    queue.push(*samples([[True]])[0])
    assert queue.keys.dtype == torch.float64
    assert queue.ids.dtype == queue.births.dtype == queue.pushed.dtype == torch.int64
