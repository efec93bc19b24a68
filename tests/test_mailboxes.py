"""Letters arrive whole and in rank order, whoever is fast or slow, and who does not write is named."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_ssl.errors import UserError
from dist_ssl.mailboxes import Mailboxes, create
from dist_ssl.world import World
from tests.ranks import Ranks

CAPACITY = 4096


def test_every_round_of_threads_at_random_speeds_is_whole(tmp_path: Path) -> None:
    path = create(tmp_path, "letters", 3, CAPACITY)
    wrong: list[tuple[int, int]] = []

    def talk(rank: int) -> None:
        boxes = Mailboxes(path, rank, 3, CAPACITY, seconds=30)
        chance = np.random.default_rng(rank)
        for number in range(300):
            if chance.random() < 0.1:
                threading.Event().wait(0.0005)
            length = 1 + number * 13 % CAPACITY
            got = boxes.exchange(np.full(length, (number + rank) % 256, dtype=np.uint8))
            expected = [np.full(length, (number + other) % 256) for other in range(3)]
            if not np.array_equal(got, np.stack(expected)):
                wrong.append((rank, number))

    threads = [threading.Thread(target=talk, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_silent_rank_is_named(tmp_path: Path) -> None:
    path = create(tmp_path, "letters", 2, CAPACITY)
    boxes = Mailboxes(path, 0, 2, CAPACITY, seconds=0.1)
    with pytest.raises(UserError, match="Rank 1 did not answer for 0 s"):
        boxes.exchange(np.zeros(8, dtype=np.uint8))


def test_a_letter_of_another_round_is_not_taken(tmp_path: Path) -> None:
    path = create(tmp_path, "letters", 2, CAPACITY)
    early = Mailboxes(path, 1, 2, CAPACITY, seconds=0.05)
    early.round = 6  # its next letter is of round 7
    with pytest.raises(UserError):
        early.exchange(np.ones(8, dtype=np.uint8))
    boxes = Mailboxes(path, 0, 2, CAPACITY, seconds=0.05)
    with pytest.raises(UserError, match="Rank 1"):
        boxes.exchange(np.zeros(8, dtype=np.uint8))


def sums(world: World, with_letters: bool) -> tuple[torch.Tensor, torch.Tensor]:
    assert world.letters is not None
    used = world if with_letters else World(world.rank, world.size, device=world.device, host=world.host)
    x = torch.randn(1000, generator=torch.Generator().manual_seed(world.rank))
    return used.sum_const(x), used.gather_const(x)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_sums_have_the_same_bits_through_letters_and_through_sockets(ranks: Ranks, size: int) -> None:
    letters, sockets = ranks.run(sums, size, True), ranks.run(sums, size, False)
    for (total, rows), (other_total, other_rows) in zip(letters, sockets, strict=True):
        assert torch.equal(total, letters[0][0])
        assert torch.equal(total, other_total)
        assert torch.equal(rows, other_rows)
