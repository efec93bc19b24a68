"""One cycle: the closed form of torch's OneCycleLR, its check values, cycles in a row, and batches that change."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from dist_ssl.core.plan import Curve, EpochPlan
from dist_ssl.core.progress import Progress
from dist_ssl.core.timeline import Timeline
from dist_ssl.errors import ConfigError
from dist_ssl.optim.recipes import SGD
from dist_ssl.schedules.one_cycle import OneCycle

BATCH = 64
MOMENTUM = {"momentum": Curve(0.99, 1.0, for_next_step=True)}


def one_cycle(
    cycles: list[int], steps: int = 10, curves: Mapping[str, Curve] | None = None, **options: Any
) -> OneCycle:
    """Cycles of so many epochs of `steps` steps, with a peak of 1."""
    plans = [EpochPlan(epoch, 32, 1.0, 2, BATCH, 1) for epoch in range(sum(cycles))]
    recipe = SGD(256 / BATCH, 1e-4)
    found = {**recipe.curves(BATCH), **MOMENTUM, **(curves or {})}
    return OneCycle(curves=found, timeline=Timeline.of(plans, steps * BATCH, cycles), **options)


def series(made: OneCycle, name: str = "lr", steps: int = 10) -> list[float]:
    """The hyperparameter of every step of the run."""
    number = made.timeline.steps
    at = [Progress(epochs=9, step=n, epoch=n // steps, samples=n * BATCH) for n in range(number)]
    return [made.hyperparameters(progress).number(name) for progress in at]


def theirs(steps: int, **options: Any) -> list[float]:
    """The learning rates of torch's own scheduler."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=steps, **options)
    found = []
    for step in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < steps - 1:
            scheduler.step()
    return found


def test_the_learning_rate_has_the_check_values() -> None:
    found = series(one_cycle([100]))
    checks = {0: 0.04, 150: 0.522522, 299: 1.0, 650: 0.497758, 999: 4e-6}
    assert {step: found[step] for step in checks} == pytest.approx(checks, abs=5e-7)


@pytest.mark.parametrize(
    ("epochs", "own", "options"),
    [
        (100, {}, {}),
        (3, {}, {}),
        (7, {"warm": 0.1, "start_divisor": 10.0, "end_divisor": 100.0},
         {"pct_start": 0.1, "div_factor": 10.0, "final_div_factor": 100.0}),
    ],
    ids=["long", "short", "other numbers"],
)  # fmt: skip
def test_it_is_torchs_own_form(epochs: int, own: dict[str, float], options: dict[str, float]) -> None:
    assert series(one_cycle([epochs], **own)) == pytest.approx(theirs(10 * epochs, **options), rel=1e-9, abs=1e-15)


def test_each_cycle_repeats_the_first_with_its_own_length_and_peak() -> None:
    found = series(one_cycle([10, 10, 20], peak_decay=0.5))
    assert found[100:200] == pytest.approx([0.5 * lr for lr in found[:100]])
    assert found[200:] == pytest.approx([0.25 * lr for lr in theirs(200)], rel=1e-9)


def test_the_teachers_momentum_ends_at_1_and_begins_anew_with_each_cycle() -> None:
    found = series(one_cycle([5, 5]), "momentum")
    assert found[49] == found[99] == 1.0
    assert found[50:] == found[:50]
    assert found[:50] == sorted(found[:50])


def test_the_optimizers_own_first_and_last_rates_count() -> None:
    own = Curve(1.0, 0.001, warms_up=True, rises_from=0.25, batch_size=BATCH)
    found = series(one_cycle([10], curves={"lr": own}))
    assert (found[0], max(found), found[-1]) == (0.25, 1.0, pytest.approx(0.001))


def test_a_part_that_is_to_learn_at_the_peak_does_so_in_every_cycle() -> None:
    curves = SGD(256 / BATCH, 1e-4, constant=["predictor"]).curves(BATCH)
    found = series(one_cycle([2, 2], curves=curves, peak_decay=0.5), "lr/predictor")
    assert found == [1.0] * 20 + [0.5] * 20


def test_a_learning_rate_is_proportional_to_the_batch_and_nothing_else_is() -> None:
    plans = [EpochPlan(epoch, 32, 1.0, 2, size, 1) for epoch, size in enumerate((128, 64, 64))]
    timeline = Timeline.of(plans, 1280)
    made = OneCycle(curves={**SGD(4.0, 1e-4).curves(BATCH), **MOMENTUM}, timeline=timeline, warm=0.0)
    larger = made.hyperparameters(Progress(epochs=3, epoch=0, samples=0))
    assert larger.number("lr") == pytest.approx(2.0, rel=1e-2)
    assert larger.number("weight_decay") == 1e-4
    last = Progress(epochs=3, epoch=2, samples=timeline.total - 64)
    assert made.hyperparameters(last).number("lr") == pytest.approx(4e-6)
    assert made.hyperparameters(last).number("momentum") == 1.0


@pytest.mark.parametrize(
    ("key", "value"), [("warm", 1.0), ("warm", -0.1), ("start_divisor", 0.5), ("end_divisor", 0.0), ("peak_decay", 0.0)]
)
def test_what_is_out_of_range_is_refused_by_name(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"schedule\.{key}={value:g} is not possible"):
        one_cycle([3], **{key: value})


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_a_cycle_of_few_steps_has_rates_from_the_last_to_the_peak(steps: int) -> None:
    assert all(0 < rate <= 1 for rate in series(one_cycle([1, 1], steps=steps), steps=steps))
