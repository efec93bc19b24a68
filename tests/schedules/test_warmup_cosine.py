"""MoCo v3's published learning rates and momenta, and warm-ups that are not possible."""

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dist_ssl.config.durations import Duration
from dist_ssl.core.plan import Curve, Hyperparameters, freeze
from dist_ssl.core.progress import Progress
from dist_ssl.core.timeline import Timeline
from dist_ssl.errors import ConfigError
from dist_ssl.optim.recipes import SGD
from dist_ssl.schedules.same_every_epoch import SameEveryEpoch
from dist_ssl.schedules.warmup_cosine import WarmupCosine, value

BATCH, STEPS = 4096, 312
SAMPLES = STEPS * BATCH + 1000
HYPER = {**SGD(0.6, 1e-6).curves(BATCH), "momentum": Curve(0.99, 1.0, for_next_step=True), "now": Curve(0.99, 1.0)}


def curves(
    epochs: int = 100, warmup: str = "10 epochs", hold: float = 0.0, more: Mapping[str, Curve] | None = None
) -> WarmupCosine:
    """Curves over epochs of 312 steps, with a remainder of the data left over."""
    timeline = Timeline.of(map(SameEveryEpoch(224, views=2, batch_size=BATCH, lanes=64).plan, range(epochs)), SAMPLES)
    return WarmupCosine(Duration.parse(warmup), curves={**HYPER, **(more or {})}, timeline=timeline, hold=hold)


def at(step: int, epochs: int = 100) -> Progress:
    """The position before this step."""
    return Progress(epochs=epochs, step=step, epoch=min(step // STEPS, epochs - 1), samples=step * BATCH)


def hyper(step: int) -> Hyperparameters:
    """The hyperparameters of this step."""
    return curves().hyperparameters(at(step))


@pytest.mark.parametrize(
    ("epoch", "lr"), [(0, 0.0), (1, 0.96), (5, 4.8), (10, 9.6), (55, 4.8), (99, 0.0029242), (100, 0.0)]
)
def test_the_learning_rate_has_the_published_values(epoch: int, lr: float) -> None:
    assert hyper(epoch * STEPS).number("lr") == pytest.approx(lr, abs=1e-6)


@pytest.mark.parametrize(("epoch", "momentum"), [(0, 0.99), (25, 0.991464), (50, 0.995), (75, 0.998536), (100, 1.0)])
def test_the_momentum_has_the_published_values_at_the_step_before(epoch: int, momentum: float) -> None:
    assert hyper(epoch * STEPS).number("now") == pytest.approx(momentum, abs=5e-7)
    if epoch > 0:
        assert hyper(epoch * STEPS - 1).number("momentum") == pytest.approx(momentum, abs=5e-7)


def test_a_hyperparameter_ahead_carries_the_value_of_the_following_step() -> None:
    for step in (0, 1, 500, 100 * STEPS - 1):
        assert hyper(step).number("momentum") == hyper(step + 1).number("now")


def test_the_last_step_moves_the_teacher_no_more() -> None:
    assert hyper(100 * STEPS - 1).number("momentum") == 1.0


def test_weight_decay_is_constant_to_the_bit() -> None:
    assert {hyper(step).number("weight_decay") for step in range(0, 100 * STEPS, 997)} == {1e-6}


def test_hyperparameters_are_single_numbers_in_double_precision_on_the_host() -> None:
    values = hyper(7).values
    assert set(values) == {"lr", "weight_decay", "momentum", "now"}
    assert all((v.ndim, v.dtype, v.device.type) == (0, torch.float64, "cpu") for v in values.values())


def test_the_warm_up_may_be_counted_in_steps() -> None:
    schedule = curves(warmup="624 steps")
    assert schedule.hyperparameters(at(312)).number("lr") == pytest.approx(4.8)
    assert schedule.hyperparameters(at(624)).number("lr") == pytest.approx(9.6)


@given(st.integers(0, 100 * STEPS - 1))
def test_the_rate_rises_to_its_peak_and_falls_after_it(step: int) -> None:
    now, then = hyper(step).number("lr"), hyper(step + 1).number("lr")
    assert 0 <= now <= 9.6
    assert now < then if step < 10 * STEPS else now > then


def test_the_hyperparameters_depend_on_the_position_alone() -> None:
    schedule = curves()
    backwards = [schedule.hyperparameters(at(step)).number("lr") for step in (9000, 5, 9000)]
    assert backwards[0] == backwards[2]
    assert schedule.hyperparameters(Progress(epochs=100, samples=5 * BATCH, attempt=7)).number("lr") == backwards[1]


def test_a_hyperparameter_may_have_a_warm_up_of_its_own_and_is_constant_after_it() -> None:
    own = Curve(0.07, 0.07, warms_up=True, rises_from=0.04, warmup=Duration.parse("30 epochs"))
    schedule = curves(more={"teacher_temperature": own})
    found = [
        schedule.hyperparameters(at(epoch * STEPS)).number("teacher_temperature") for epoch in (0, 10, 15, 30, 31, 99)
    ]
    assert found == pytest.approx([0.04, 0.05, 0.055, 0.07, 0.07, 0.07])
    assert schedule.hyperparameters(at(5 * STEPS)).number("lr") == pytest.approx(4.8)


@pytest.mark.parametrize(("time", "steps"), [("313 steps", 313), ("1 epoch", STEPS)])
def test_a_part_is_frozen_for_exactly_so_many_steps(time: str, steps: int) -> None:
    schedule = curves(more=freeze("prototypes", Duration.parse(time)))
    left = [
        schedule.hyperparameters(at(step)).number("frozen/prototypes")
        for step in (0, steps - 1, steps, steps + 1, 30000)
    ]
    assert left == pytest.approx([1, 1 / steps, 0, 0, 0])
    assert [value > 0 for value in left] == [True, True, False, False, False]


def test_what_is_never_frozen_has_no_hyperparameter() -> None:
    assert freeze("prototypes", None) == {}


@pytest.mark.parametrize("warmup", ["4 epochs", "5 epochs", "1248 steps"])
def test_a_warm_up_as_long_as_the_run_is_refused(warmup: str) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.warmup=.* is as long as the run") as caught:
        curves(epochs=4, warmup=warmup)
    assert "shorten it" in caught.value.remedy


def test_a_warm_up_one_step_shorter_than_the_run_is_possible() -> None:
    schedule = curves(epochs=4, warmup="1247 steps")
    assert schedule.hyperparameters(at(1247)).number("lr") == pytest.approx(9.6)


def test_a_timed_warm_up_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"schedule\.warmup is timed"):
        curves(warmup="10 minutes")


def test_a_rate_that_is_held_falls_along_the_cosine_of_what_is_left() -> None:
    curve = Curve(2.0, 0.0, warms_up=True)
    values = [value(curve, position, 10, 100, hold=60) for position in (0, 5, 10, 35, 60, 80, 100)]
    assert values == pytest.approx([0, 1, 2, 2, 2, 1, 0], abs=1e-12)


def test_a_hold_shorter_than_the_warm_up_changes_nothing() -> None:
    curve = Curve(2.0, 0.5, warms_up=True)
    assert [value(curve, p, 30, 100, hold=20) for p in range(101)] == [value(curve, p, 30, 100) for p in range(101)]


def test_what_does_not_warm_up_is_not_held() -> None:
    curve = Curve(0.99, 1.0)
    assert value(curve, 50, 10, 100, hold=60) == value(curve, 50, 0, 100) == pytest.approx(0.995)


@pytest.mark.parametrize("hold", [-0.1, 1, 1.5])
def test_a_hold_that_is_no_share_is_refused(hold: float) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.hold"):
        curves(hold=hold)


def test_the_learning_rate_is_held_for_a_share_of_the_run() -> None:
    schedule = curves(hold=0.5)
    at = [
        schedule.hyperparameters(Progress(epochs=8, samples=share * schedule.timeline.total // 8)).number("lr")
        for share in range(9)
    ]
    assert at[1:5] == [max(at)] * 4
    assert at[4] > at[5] > at[6] > at[7] > at[8] == 0
