"""Every epoch has the same plan, and local views need a size."""

import pytest

from dist_ssl.core.plan import EpochPlan
from dist_ssl.core.tokens import ALL_TOKENS, Tokens
from dist_ssl.errors import ConfigError
from dist_ssl.schedules.same_every_epoch import SameEveryEpoch, candidates_at


def planner(local_views: int = 0, local_size: int | None = None) -> SameEveryEpoch:
    return SameEveryEpoch(224, views=2, batch_size=4096, lanes=64, local_views=local_views, local_size=local_size)


def test_plans_differ_by_their_number_alone() -> None:
    assert [planner().plan(epoch) for epoch in (0, 3)] == [
        EpochPlan(epoch=0, image_size=224, magnitude=1.0, views=2, batch_size=4096, lanes=64),
        EpochPlan(epoch=3, image_size=224, magnitude=1.0, views=2, batch_size=4096, lanes=64),
    ]


def test_local_views_have_a_side_of_their_own_and_none_without_them() -> None:
    plan = planner(local_views=6, local_size=96).plan(0)
    assert (plan.views, plan.image_size, plan.local_views, plan.local_size) == (2, 224, 6, 96)
    assert planner(local_size=96).plan(0).local_size == 0


def test_tokens_are_those_of_the_keys_and_by_default_all_of_the_encoders_own() -> None:
    assert planner().plan(0).tokens == ALL_TOKENS
    few = SameEveryEpoch(224, views=2, batch_size=4096, lanes=64, keep_tokens=0.5, patch_size=32).plan(3)
    assert (few.keep_tokens, few.patch_size, few.tokens) == (0.5, 32, Tokens(0.5, 32))


def test_candidates_are_drawn_from_a_share_of_every_cycle_on() -> None:
    hard = SameEveryEpoch(224, views=2, batch_size=4096, lanes=64, candidates=4, candidates_from=0.25, cycles=(8, 3))
    assert [hard.plan(epoch).candidates for epoch in range(11)] == [1, 1, 4, 4, 4, 4, 4, 4, 1, 4, 4]
    assert [planner().plan(epoch).candidates for epoch in (0, 9)] == [1, 1]


@pytest.mark.parametrize(("length", "percent"), [(100, 7), (100, 55), (25, 28), (10, 30), (10, 95), (1, 50), (3, 99)])
def test_the_first_epoch_with_candidates_is_that_after_the_share_or_else_the_last(length: int, percent: int) -> None:
    found = [candidates_at(epoch, (4, length), 8, percent / 100) for epoch in range(4, 4 + length)]
    first = min(-(-percent * length // 100), length - 1)
    assert found == [1] * first + [8] * (length - first)


@pytest.mark.parametrize("side", [None, 0])
def test_local_views_without_a_side_are_refused(side: int | None) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.local_size=.* the method takes 6 local views"):
        planner(local_views=6, local_size=side)
