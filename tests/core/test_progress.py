"""The position of a run: integers that advance, survive JSON and never contradict the plan history."""

import json
from dataclasses import FrozenInstanceError, replace
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_ssl.core.plan import EpochPlan
from dist_ssl.core.progress import Progress
from dist_ssl.core.tokens import ALL_TOKENS

PLAN = EpochPlan(epoch=0, image_size=32, magnitude=1.0, views=2, batch_size=24, lanes=6)
COUNTS = st.integers(0, 2**53)


def of_its_epochs(progress: Progress, within: bool) -> Progress:
    """The position with plans that are those of its epochs, in the newest of which it is or behind which."""
    plans = tuple(plan.numbered(number) for number, plan in enumerate(progress.plans))
    found = replace(progress, plans=plans, epoch=max(0, len(plans) - within))
    return found.advance() if within and plans else found


PLANS = st.builds(
    lambda steps, **values: EpochPlan(batch_size=steps * values["lanes"], **values),
    steps=st.integers(1, 2**20),
    epoch=COUNTS,
    image_size=st.integers(1, 2**16),
    magnitude=st.floats(0, 1),
    views=st.integers(1, 2**16),
    lanes=st.integers(1, 2**30),
    keep_tokens=st.floats(0, 1, exclude_min=True),
    patch_size=st.integers(0, 2**16),
)
POSITIONS = st.builds(
    Progress,
    epochs=COUNTS,
    step=COUNTS,
    epoch=COUNTS,
    samples=COUNTS,
    attempt=COUNTS,
    plans=st.lists(PLANS, max_size=4).map(tuple),
)
POSITIONS = st.builds(of_its_epochs, POSITIONS, st.booleans())


@given(POSITIONS)
def test_a_position_survives_json(progress: Progress) -> None:
    assert Progress.from_json(json.loads(json.dumps(progress.to_json()))) == progress


@given(st.lists(st.sampled_from([16, 32]), max_size=30))
def test_equal_plans_in_a_row_are_one_row_of_json(sizes: list[int]) -> None:
    plans = tuple(replace(PLAN, epoch=epoch, image_size=size) for epoch, size in enumerate(sizes))
    progress = Progress(epochs=40, plans=plans)
    rows = progress.to_json()["plans"]
    assert len(rows) == len(list(groupby(sizes)))
    assert sum(row["count"] for row in rows) == len(sizes)
    assert Progress.from_json(json.loads(json.dumps(progress.to_json()))) == progress


def test_a_position_that_an_earlier_version_wrote_has_a_row_per_plan() -> None:
    plans = tuple(replace(PLAN, epoch=epoch) for epoch in range(3))
    keys = ("epoch", "image_size", "magnitude", "views", "batch_size", "lanes", "local_views", "local_size")
    rows = [{key: getattr(plan, key) for key in keys} for plan in plans]
    values = {**Progress(epochs=9).to_json(), "plans": rows}
    assert Progress.from_json(values) == Progress(epochs=9, plans=plans)


def test_a_plan_survives_json_with_its_fixed_augmentations() -> None:
    progress = Progress(epochs=2, plans=(replace(PLAN, fixed=("crop", "hue")),))
    assert Progress.from_json(json.loads(json.dumps(progress.to_json()))) == progress


def test_plans_of_before_there_were_tokens_keep_all() -> None:
    written = json.loads(json.dumps(Progress(epochs=1).begin(PLAN).to_json()))
    del written["plans"][0]["keep_tokens"], written["plans"][0]["patch_size"]
    assert Progress.from_json(written).plans[0].tokens == ALL_TOKENS


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("step", value) for value in (-1, 1.5, "7", None, True, 2**64)),
        *(("plans", value) for value in ([1], {"a": 1}, [{}], [{"epoch": 0}], None)),
        ("epoch", 2),
        ("more", 1),
    ],
)
def test_a_position_that_no_run_has_is_refused(key: str, value: object) -> None:
    written = json.loads(json.dumps(Progress(epochs=3).begin(PLAN).to_json()))
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        Progress.from_json({**written, key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("count", 2**40), ("count", -1), ("epoch", 1), ("magnitude", float("nan")), ("scale", float("inf"))),
        *(("lanes", 0), ("batch_size", 0), ("batch_size", 25), ("lanes", 5), ("lanes", 2**61)),
        *(("image_size", 0), ("image_size", 2**40), ("local_size", 2**40), ("patch_size", 2**40)),
        *(("views", 0), ("views", 2**40), ("local_views", 2**40), ("candidates", 0), ("candidates", 2**40)),
        *(("keep_tokens", 0.0), ("keep_tokens", 1.5), ("fixed", "hue"), ("fixed", [1]), ("fixed", [["hue"]])),
    ],
)
def test_a_plan_that_no_epoch_has_is_refused(key: str, value: object) -> None:
    written = json.loads(json.dumps(Progress(epochs=3).begin(PLAN).to_json()))
    written["plans"][0][key] = value
    with pytest.raises(ValueError, match=rf"{key}|that a run may have|are not those of the epochs"):
        Progress.from_json(written)


@pytest.mark.parametrize(
    "place", [{"lane_offset": 5}, {"lane_offset": 8, "samples": 40}, {"lane_offset": 8, "epoch": 1}]
)
def test_a_place_within_an_epoch_that_no_step_leads_to_is_refused(place: dict[str, int]) -> None:
    written = Progress(epochs=3, samples=48, step=2).begin(PLAN).to_json()
    assert Progress.from_json({**written, "lane_offset": 8}).samples_before == 0
    with pytest.raises(ValueError, match="lane_offset"):
        Progress.from_json({**written, **place})


def test_a_position_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Progress(epochs=1).step = 2  # type: ignore[misc]


def test_a_fresh_run_is_at_the_beginning() -> None:
    fresh = Progress(epochs=2)
    assert (fresh.step, fresh.epoch, fresh.lane_offset, fresh.samples, fresh.attempt, fresh.plans) == (
        0,
        0,
        0,
        0,
        1,
        (),
    )
    assert not fresh.finished
    assert not fresh.between_epochs


def test_a_step_takes_its_share_from_every_lane() -> None:
    after = Progress(epochs=2).begin(PLAN).advance().advance()
    assert (after.step, after.lane_offset, after.samples) == (2, 2 * PLAN.samples_per_lane, 2 * PLAN.batch_size)
    assert (after.epoch, after.attempt, after.plans) == (0, 1, (PLAN,))
    assert not after.between_epochs


def test_the_next_epoch_begins_at_the_start_of_the_lanes() -> None:
    after = Progress(epochs=2).begin(PLAN).advance().next_epoch()
    assert (after.epoch, after.lane_offset, after.step, after.samples) == (1, 0, 1, 24)
    assert after.between_epochs
    assert not after.finished
    assert after.begin(replace(PLAN, epoch=1)).advance().next_epoch().finished


def test_steps_follow_the_plan_of_their_own_epoch() -> None:
    larger = replace(PLAN, epoch=1, batch_size=48)
    after = Progress(epochs=3).begin(PLAN).advance().next_epoch().begin(larger).advance()
    assert (after.samples, after.lane_offset) == (24 + 48, 8)


def test_an_epoch_begins_once_however_often_it_is_resumed() -> None:
    started = Progress(epochs=2).begin(PLAN)
    assert started.begin(PLAN) is started


def test_another_plan_for_an_epoch_already_started_is_our_mistake() -> None:
    started = Progress(epochs=2).begin(PLAN)
    with pytest.raises(AssertionError):
        started.begin(replace(PLAN, image_size=64))


def test_a_run_of_no_epochs_is_finished() -> None:
    assert Progress(epochs=0).finished


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4))
def test_a_run_ends_after_all_steps_of_all_epochs(epochs: int, steps: int, lanes: int, share: int) -> None:
    progress = Progress(epochs=epochs)
    while not progress.finished:
        progress = progress.begin(EpochPlan(progress.epoch, 32, 1.0, 2, lanes * share, lanes))
        for _ in range(steps):
            progress = progress.advance()
        assert progress.lane_offset == steps * share
        progress = progress.next_epoch()
    assert progress.step == epochs * steps
    assert progress.samples == epochs * steps * lanes * share
    assert [plan.epoch for plan in progress.plans] == list(range(epochs))
