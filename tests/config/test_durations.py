"""Durations carry units; bare numbers and impossible amounts are refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_ssl.config.durations import Duration
from dist_ssl.core.plan import EpochPlan
from dist_ssl.core.progress import Progress
from dist_ssl.errors import ConfigError

PLAN = EpochPlan(epoch=0, image_size=32, magnitude=1.0, views=2, batch_size=8, lanes=4)


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("50 steps", 50, "steps"),
        ("1 step", 1, "steps"),
        ("1 epoch", 1, "epochs"),
        ("10 epochs", 10, "epochs"),
        ("30 seconds", 30, "seconds"),
        ("0.5 seconds", 0.5, "seconds"),
        ("10 minutes", 600, "seconds"),
        ("1.5 hours", 5400, "seconds"),
        ("  2   hours ", 7200, "seconds"),
        ("5steps", 5, "steps"),
    ],
)
def test_a_number_and_a_unit_are_read(text: str, amount: float, unit: str) -> None:
    assert Duration.parse(text) == Duration(amount, unit)


@pytest.mark.parametrize(
    "text", ["50", 50, 1.5, None, True, "", "steps", "ten steps", "5 days", "-5 steps", "1e3 steps"]
)
def test_what_is_no_number_with_a_unit_is_refused_with_examples(text: object) -> None:
    with pytest.raises(ConfigError, match="is not a duration") as caught:
        Duration.parse(text)
    assert "'50 steps'" in caught.value.remedy
    assert str(text) in caught.value.problem


@pytest.mark.parametrize("text", ["0 steps", "0 epochs", "0 seconds", "1.5 steps", "0.5 epochs"])
def test_amounts_that_are_not_possible_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not possible") as caught:
        Duration.parse(text)
    assert ("whole" in caught.value.problem) == ("seconds" not in text)
    assert f"'1 {text.split()[1].rstrip('s')}'" in caught.value.remedy


@given(st.integers(1, 10**6), st.sampled_from(["steps", "epochs", "seconds"]))
def test_whole_amounts_survive_being_written_and_read(amount: int, unit: str) -> None:
    assert Duration.parse(f"{amount} {unit}") == Duration(amount, unit)


def test_only_clock_units_are_timed() -> None:
    assert [Duration.parse(t).timed for t in ("1 step", "1 epoch", "1 second", "1 minute")] == [
        False,
        False,
        True,
        True,
    ]


def test_steps_are_due_every_so_many_steps() -> None:
    every = Duration.parse("3 steps")
    assert [step for step in range(1, 10) if every.due(Progress(epochs=9, step=step))] == [3, 6, 9]


def test_epochs_are_due_between_epochs_only() -> None:
    every = Duration.parse("2 epochs")
    assert [epoch for epoch in range(7) if every.due(Progress(epochs=9, epoch=epoch))] == [2, 4, 6]
    assert not every.due(Progress(epochs=9, epoch=2, lane_offset=2, plans=(PLAN,)))


def test_a_timed_duration_is_never_due_by_position() -> None:
    every = Duration.parse("1 second")
    assert not any(every.due(Progress(epochs=9, step=step, epoch=step)) for step in range(20))
