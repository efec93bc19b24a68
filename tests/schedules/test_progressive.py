"""Stages: sizes on the encoder's grid, the same growth of size and magnitude, and the last epochs as published."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_ssl.core.plan import EpochPlan
from dist_ssl.errors import ConfigError
from dist_ssl.schedules.progressive import Progressive


def planner(image_size: int = 224, *cycles: int, **options: Any) -> Progressive:
    """A planner of cycles of so many epochs, by default one of ten."""
    shape: dict[str, Any] = {"views": 2, "batch_size": 96, "lanes": 48, "cycles": cycles or (10,)}
    return Progressive(image_size, **(shape | options))


def sizes(made: Progressive) -> list[int]:
    return [made.plan(epoch).image_size for epoch in range(sum(made.cycles))]


def test_size_and_magnitude_grow_together_in_stages_and_the_last_fifth_is_as_published() -> None:
    made = planner()
    assert sizes(made) == [128, 128, 128, 160, 160, 160, 192, 192, 224, 224]
    magnitudes = [made.plan(epoch).magnitude for epoch in range(10)]
    assert magnitudes == pytest.approx([0.5] * 3 + [2 / 3] * 3 + [5 / 6] * 2 + [1.0] * 2)
    last = EpochPlan(epoch=9, image_size=224, magnitude=1.0, views=2, batch_size=96, lanes=48)
    assert made.plan(9) == last


def test_the_mean_cost_of_a_ramp_is_the_known_one() -> None:
    """Four equal stages of 128 to 224 px cost 0.643 of an epoch at 224 px, by the cost of a ResNet-50 per size."""
    cost = {224: 1.0, 192: 0.735, 160: 0.510, 128: 0.327}
    made = planner(224, 400, ramp=(0.0, 0.75))
    assert sum(cost[size] for size in sizes(made)) / 400 == pytest.approx(0.643, abs=0.001)


@given(
    st.integers(1, 20),
    st.sampled_from([1, 4, 14, 16]),
    st.floats(0.05, 1),
    st.integers(2, 6),
    st.integers(1, 30),
    st.integers(0, 9),
)
def test_sizes_fit_the_encoder_and_are_few_and_end_at_the_full_one(
    steps: int, multiple: int, start: float, stages: int, epochs: int, further: int
) -> None:
    size = steps * max(multiple, 4)
    cycles = (epochs, further) if further else (epochs,)
    made = planner(size, *cycles, multiple=multiple, start_scale=start, stages=stages)
    found = sizes(made)
    assert len(set(found)) <= stages
    assert all(0 < side <= size and side % multiple == 0 for side in found)
    ends = (epochs - 1, len(found) - 1)
    assert [found[end] for end in ends] == [size, size]
    assert all(made.plan(end).magnitude == 1 for end in ends)
    for first, after in ((0, epochs), (epochs, len(found))):
        assert found[first:after] == sorted(found[first:after])


def test_every_cycle_grows_anew() -> None:
    made = planner(20, 10, 5)
    assert sizes(made) == [12] * 3 + [16] * 5 + [20] * 2 + [12] * 2 + [16] * 2 + [20]
    assert [made.plan(epoch).epoch for epoch in range(15)] == list(range(15))


def test_a_cycle_of_one_epoch_has_the_full_size() -> None:
    assert sizes(planner(20, 1, 1)) == [20, 20]


def test_local_views_shrink_with_the_global_ones_and_may_grow_in_number() -> None:
    made = planner(224, local_views=6, local_size=96, start_local_views=0)
    found = [(made.plan(epoch).local_views, made.plan(epoch).local_size) for epoch in (0, 3, 6, 9)]
    assert found == [(0, 0), (2, 68), (4, 84), (6, 96)]
    assert [planner(224, local_views=6, local_size=96).plan(epoch).local_views for epoch in (0, 9)] == [6, 6]


def test_the_share_of_tokens_grows_to_all_of_them() -> None:
    made = planner(224, start_tokens=0.4)
    shares = [made.templates[stage].keep_tokens for stage in range(4)]
    assert shares == pytest.approx([0.4, 0.6, 0.8, 1.0])
    assert shares[-1] == 1


def test_the_batch_may_grow_or_shrink_in_multiples_of_the_lanes() -> None:
    grown, shrunk = planner(start_batch=20), planner(start_batch=384)
    assert [grown.plan(epoch).batch_size for epoch in (0, 3, 6, 9)] == [48, 48, 48, 96]
    assert [shrunk.plan(epoch).batch_size for epoch in (0, 3, 6, 9)] == [384, 288, 192, 96]


def test_the_scale_of_the_blur_is_that_of_the_views() -> None:
    made = planner(fixed=["crop"])
    assert [made.plan(epoch).scale for epoch in (0, 9)] == [pytest.approx(128 / 224), 1.0]
    assert made.plan(0).fixed == ("crop",)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"start_scale": 0.0}, r"schedule\.start_scale=0 is not possible: it must be more than 0 and at most 1"),
        ({"start_magnitude": 1.5}, r"schedule\.start_magnitude=1\.5"),
        ({"stages": 1}, r"schedule\.stages=1 is not possible: it must be at least 2"),
        ({"ramp": (0.8, 0.2)}, r"schedule\.ramp=\[0\.8, 0\.2\]"),
        ({"start_batch": 0}, r"schedule\.start_batch=0"),
        ({"start_local_views": 1}, r"schedule\.start_local_views=1 is not possible: it must be from 0 to 0"),
        ({"local_views": 2}, r"schedule\.local_size=null .* the method takes 2 local views"),
    ],
)
def test_what_is_not_possible_is_refused_by_name(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        planner(**options)
