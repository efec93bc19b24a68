"""Sums over blocks of ranks: those of the ranks in the block and of no other."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dist_ssl.distributed.norm_groups import block_sum, fits
from dist_ssl.distributed.world import World
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


def apart(samples: int, parts: list[range]) -> bool:
    """The slow way: some group's samples lie in several parts of which one also holds another group's."""
    group_of = {sample: sample // samples for part in parts for sample in part}
    for part in parts:
        groups = {group_of[sample] for sample in part}
        if len(groups) > 1 and any({group_of[s] for s in other} & groups for other in parts if other is not part):
            return True
    return False


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4), st.integers(1, 40))
def test_groups_fit_where_none_is_split_but_over_whole_ranks(
    at_once: int, accumulate: int, ranks: int, samples: int
) -> None:
    batch_size = at_once * accumulate * ranks
    parts = [range(start, start + at_once) for start in range(0, batch_size, at_once)]
    whole = batch_size % samples == 0 and samples > 1 and not apart(samples, parts)
    expected = whole and (accumulate == 1 or samples <= at_once)
    assert fits(samples, at_once, batch_size, accumulate) == expected
