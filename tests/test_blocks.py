"""Sums over blocks of ranks: those of the ranks in the block and of no other."""

import pytest
import torch

from dist_ssl.blocks import block_sum
from dist_ssl.world import World
from tests.ranks import Ranks


def sums(world: World, of: int) -> float:
    """This rank's sum of 10**rank over its block."""
    return float(block_sum(world, of, torch.tensor([10.0**world.rank]))[0])


@pytest.mark.parametrize(
    ("of", "expected"),
    [(1, [1, 10, 100, 1000]), (2, [11, 11, 1100, 1100]), (4, [1111, 1111, 1111, 1111])],
)
def test_a_block_adds_up_its_own_ranks(ranks: Ranks, of: int, expected: list[float]) -> None:
    assert ranks.run(sums, 4, of) == expected
