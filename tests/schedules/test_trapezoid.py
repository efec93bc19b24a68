"""The trapezoid: rises, is held, falls in a straight line; while it is held nothing depends on the run's length."""

from typing import Any

import pytest

from dist_ssl.config.durations import Duration
from dist_ssl.core.plan import Curve, EpochPlan
from dist_ssl.core.progress import Progress
from dist_ssl.core.timeline import Timeline
from dist_ssl.errors import ConfigError
from dist_ssl.optim.recipes import SGD
from dist_ssl.schedules.trapezoid import Trapezoid


def trapezoid(*cycles: int, warmup: str | None = "2 epochs", anneal: str = "4 epochs", **options: Any) -> Trapezoid:
    """Cycles of so many epochs of ten steps of 64 samples, with a peak of 1."""
    plans = [EpochPlan(epoch, 32, 1.0, 2, 64, 1) for epoch in range(sum(cycles))]
    curves = {**SGD(4.0, 1e-4).curves(64), "momentum": Curve(0.99, 1.0, for_next_step=True)}
    rise = Duration.parse(warmup) if warmup else None
    timeline = Timeline.of(plans, 640, cycles)
    return Trapezoid(rise, Duration.parse(anneal), curves=curves, timeline=timeline, **options)


def series(made: Trapezoid, name: str = "lr") -> list[float]:
    """The hyperparameter of every step of the run."""
    at = [Progress(epochs=9, step=n, epoch=n // 10, samples=n * 64) for n in range(made.timeline.steps)]
    return [made.hyperparameters(progress).number(name) for progress in at]


def test_it_rises_is_held_and_falls_in_straight_lines() -> None:
    found = series(trapezoid(10))
    assert found[:20] == pytest.approx([step / 20 for step in range(20)])
    assert found[20:61] == [1.0] * 41
    assert found[61:] == pytest.approx([1 - step / 40 for step in range(1, 40)])


def test_the_momentum_is_constant_until_the_anneal_and_ends_at_1() -> None:
    found = series(trapezoid(10), "momentum")
    assert found[:60] == [0.99] * 60
    assert found[79] == pytest.approx(0.995)
    assert found[99] == 1.0


def test_while_it_is_held_nothing_depends_on_the_length_of_the_run() -> None:
    short, long = (series(trapezoid(epochs)) for epochs in (8, 30))
    assert short[:41] == long[:41]
    assert short[41] < long[41]


def test_cycles_repeat_it_with_their_own_peak() -> None:
    found = series(trapezoid(8, 8, peak_decay=0.5))
    assert found[80:] == pytest.approx([rate / 2 for rate in found[:80]])


@pytest.mark.parametrize(
    ("warmup", "anneal", "longer"),
    [("7 epochs", "4 epochs", True), (None, "11 epochs", True), (None, "10 epochs", False)],
)
def test_an_anneal_that_is_longer_than_the_cycle_leaves_room_for_is_refused(
    warmup: str | None, anneal: str, longer: bool
) -> None:
    if longer:
        with pytest.raises(ConfigError, match=r"schedule\.anneal=\d+ epochs and the warm-up are longer than the run"):
            trapezoid(10, warmup=warmup, anneal=anneal)
    else:
        assert series(trapezoid(10, warmup=warmup, anneal=anneal))[50] == pytest.approx(0.5)


def test_a_cycle_that_is_too_short_is_named() -> None:
    with pytest.raises(ConfigError, match=r"the warm-up are longer than cycle 2\.\n  .* raise its length"):
        trapezoid(10, 3, anneal="4 epochs")


def test_an_anneal_is_counted_and_not_timed() -> None:
    with pytest.raises(ConfigError, match=r"schedule\.anneal is timed"):
        trapezoid(10, anneal="4 minutes")
