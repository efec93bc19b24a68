"""Every schedule of configs/schedule: pure functions of position, and the golden table of its plan."""

import math
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dist_ssl.config.run_keys import top_level
from dist_ssl.core.plan import Curve
from dist_ssl.core.progress import Progress
from dist_ssl.core.timeline import Timeline
from dist_ssl.optim.recipes import AdamW
from dist_ssl.parts import make_schedule
from dist_ssl.protocols.schedule import Schedule
from launch import settings
from launch.run_dir import PROJECT
from tests.golden.agreed import agree

NAMES = sorted(path.stem for path in (PROJECT / "configs" / "schedule").glob("*.yaml"))
EPOCHS, SAMPLES = 12, 1000


class TwoViews:
    """As much of a method as a schedule is told of: its numbers of views, and a momentum that anneals."""

    num_views, local_views, encoder = 2, 4, None
    curves = {"momentum": Curve(0.99, 1.0, for_next_step=True)}  # noqa: RUF012


@cache
def composed(name: str, *words: str) -> tuple[Schedule, Timeline]:
    """The schedule and its timeline over 12 epochs of 1,000 samples in batches of 96; `words` may add to it."""
    config = settings.compose([f"schedule={name}", f"epochs={EPOCHS}", *words], PROJECT / "configs")
    config |= {key: config[key] or 1 for key in ("threads", "decode_threads")}
    method: Any = TwoViews()
    return make_schedule(config, top_level(config), AdamW(0.01, 0.1), method, SAMPLES)


def positions(name: str, *words: str) -> list[Progress]:
    """The position before every step of the run."""
    schedule, timeline = composed(name, *words)
    found, progress = [], Progress(epochs=EPOCHS)
    for epoch, size in enumerate(timeline.batch_sizes):
        progress = progress.begin(schedule.plan(epoch))
        for _ in range((timeline.starts[epoch + 1] - timeline.starts[epoch]) // size):
            found.append(progress)
            progress = progress.advance()
        progress = progress.next_epoch()
    assert progress.samples == timeline.total
    return found


@pytest.mark.parametrize("name", NAMES)
def test_plans_depend_on_the_number_of_the_epoch_alone(name: str) -> None:
    schedule, _ = composed(name)
    there, back = ([schedule.plan(epoch) for epoch in order] for order in (range(EPOCHS), reversed(range(EPOCHS))))
    assert there == back[::-1]
    assert [plan.epoch for plan in there] == list(range(EPOCHS))


@pytest.mark.parametrize("name", NAMES)
def test_plans_are_whole_and_can_be_read_by_the_lanes(name: str) -> None:
    schedule, _ = composed(name)
    for plan in map(schedule.plan, range(EPOCHS)):
        assert plan.batch_size % plan.lanes == 0
        assert plan.image_size > 0
        assert 0 < plan.magnitude <= 1
        assert (plan.views, plan.local_views) == (2, 4)


@pytest.mark.parametrize("name", NAMES)
def test_hyperparameters_depend_on_the_position_alone_and_are_finite(name: str) -> None:
    schedule, _ = composed(name)
    there = [schedule.hyperparameters(position).values for position in positions(name)]
    back = [schedule.hyperparameters(position).values for position in reversed(positions(name))]
    assert there == back[::-1]
    for values in there:
        assert values.keys() == {"lr", "weight_decay", "momentum"}
        assert all((v.ndim, v.dtype, v.device.type) == (0, torch.float64, "cpu") for v in values.values())
        assert all(math.isfinite(float(value)) for value in values.values())


@pytest.mark.parametrize("name", NAMES)
def test_cycles_that_are_appended_move_nothing_of_the_past_and_begin_anew(name: str) -> None:
    (schedule, timeline), before = composed(name), positions(name)
    longer, whole = composed(name, f"extend=[{EPOCHS} epochs, 5 epochs]", "schedule.peak_decay=0.5")
    after = positions(name, f"extend=[{EPOCHS} epochs, 5 epochs]", "schedule.peak_decay=0.5")
    assert whole.starts[: EPOCHS + 1] == timeline.starts
    assert [longer.plan(epoch) for epoch in range(EPOCHS)] == [schedule.plan(epoch) for epoch in range(EPOCHS)]
    first, second = after[: len(before)], after[len(before) : 2 * len(before)]
    for position, then, again in zip(before, first, second, strict=True):
        alone = schedule.hyperparameters(position).values
        assert longer.hyperparameters(then).values == alone
        repeated = longer.hyperparameters(again)
        assert longer.plan(again.epoch).numbered(again.epoch - EPOCHS) == schedule.plan(position.epoch)
        assert repeated.number("lr") == 0.5 * alone["lr"]
        assert repeated.number("momentum") == alone["momentum"]
    assert longer.hyperparameters(after[-1]).number("momentum") == 1.0
    assert longer.plan(2 * EPOCHS + 4).image_size == 20


@pytest.mark.golden
@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_epochs_is_the_golden_one(name: str) -> None:
    schedule, timeline = composed(name)
    firsts = {position.epoch: position for position in reversed(positions(name))}
    rows = []
    for epoch, position in sorted(firsts.items()):
        numbers = {key: float(f"{float(v):.6g}") for key, v in schedule.hyperparameters(position).values.items()}
        rows.append({**asdict(schedule.plan(epoch)), "starts_at": timeline.starts[epoch], **numbers})
    text = "".join(yaml.safe_dump(row, default_flow_style=True, sort_keys=False, width=400) for row in rows)
    agree(Path(__file__).parent / "golden" / f"{name}.yaml", text)
