"""The plan of an epoch is rank 0's on every rank, is checked, logged and recorded once, and disagreement is loud."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_ssl.core.plan import EpochPlan, Hyperparameters
from dist_ssl.core.progress import Progress
from dist_ssl.errors import ConfigError, DisagreementError
from dist_ssl.protocols.schedule import Schedule
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.coordinator import Coordinator, described
from tests.simulation import Side, Table

PLAN = EpochPlan(0, 24, 0.75, 2, 96, 48, local_views=4, local_size=12)


@dataclass
class Planner:
    """Plans views of this size."""

    size: int = 24

    def plan(self, epoch: int) -> EpochPlan:
        return replace(PLAN, epoch=epoch, image_size=self.size)


@dataclass
class Rate:
    """A constant learning rate."""

    lr: float = 0.01

    def hyperparameters(self, progress: Progress) -> Hyperparameters:
        return Hyperparameters({"lr": torch.tensor(self.lr, dtype=torch.float64)})


def on_ranks(
    record: Path,
    schedules: list[Schedule],
    progress: list[Progress],
    check: Callable[[EpochPlan], None] = lambda plan: None,
) -> list[Any]:
    """What the coordinator of each rank returns or raises."""
    table, found = Table(len(schedules)), [None] * len(schedules)

    def work(rank: int) -> None:
        world = Side(rank, len(schedules), table=table)
        try:
            made = Coordinator(schedules[rank], world=world, record=record, check=check)
            found[rank] = made.plan(progress[rank])  # type: ignore[call-overload]
        except ConfigError as error:
            found[rank] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(schedules))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_all_ranks_follow_the_plan_of_rank_0(tmp_path: Path) -> None:
    schedules = [Schedule(Planner(24), Rate()), Schedule(Planner(99), Rate())]
    assert on_ranks(tmp_path / "plan.jsonl", schedules, [Progress(epochs=5)] * 2) == [PLAN, PLAN]
    (row,) = jsonl.read(tmp_path / "plan.jsonl")
    assert (row["step"], row["attempt"], row["image_size"]) == (0, 1, 24)


def test_a_started_epoch_keeps_its_plan_and_is_not_recorded_again(tmp_path: Path) -> None:
    started = Progress(epochs=5).begin(replace(PLAN, image_size=16)).advance()
    found = on_ranks(tmp_path / "plan.jsonl", [Schedule(Planner(), Rate())] * 2, [started] * 2)
    assert found == [replace(PLAN, image_size=16)] * 2
    assert jsonl.read(tmp_path / "plan.jsonl") == []


def test_the_plan_is_one_line_of_the_log_of_rank_0(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    on_ranks(tmp_path / "plan.jsonl", [Schedule(Planner(), Rate())] * 3, [Progress(epochs=5)] * 3)
    line = "Epoch 1 of 5: 2 views of 24 px and 4 of 12 px, magnitude 0.75, batch 96, lr 0.01."
    assert [record.getMessage() for record in caplog.records] == [line]
    hard = described(replace(PLAN, candidates=4, local_views=0), 5, Rate().hyperparameters(Progress(epochs=5)))
    assert hard.startswith("Epoch 1 of 5: 2 views of 24 px, chosen from 4 candidates each, magnitude 0.75")


@pytest.mark.parametrize("case", ["another rate", "another position", "another recorded plan"])
def test_ranks_that_would_train_differently_stop_all_and_are_named(tmp_path: Path, case: str) -> None:
    schedules, begun = [Schedule(Planner(), Rate())] * 4, [Progress(epochs=5).begin(PLAN).advance()] * 4
    if case == "another rate":
        schedules[2] = Schedule(Planner(), Rate(0.011))
    elif case == "another position":
        begun[2] = begun[2].advance()
    else:
        begun[2] = Progress(epochs=5).begin(replace(PLAN, magnitude=1.0)).advance()
    found = on_ranks(tmp_path / "plan.jsonl", schedules, begun)
    assert all(isinstance(error, DisagreementError) for error in found)
    assert {error.problem for error in found} == {
        "Rank 2 would train epoch 1 differently from rank 0: its plan, its position or its hyperparameters differ."
    }


def test_rounding_is_no_disagreement(tmp_path: Path) -> None:
    schedules = [Schedule(Planner(), Rate(0.01)), Schedule(Planner(), Rate(0.01 * (1 + 2**-52)))]
    assert on_ranks(tmp_path / "plan.jsonl", schedules, [Progress(epochs=5)] * 2) == [PLAN, PLAN]


def test_a_plan_that_cannot_be_trained_is_refused_on_all_ranks(tmp_path: Path) -> None:
    def refuse(plan: EpochPlan) -> None:
        raise ConfigError(f"{plan.image_size} px", "")

    found = on_ranks(tmp_path / "plan.jsonl", [Schedule(Planner(), Rate())] * 2, [Progress(epochs=5)] * 2, refuse)
    assert [error.problem for error in found] == ["24 px", "24 px"]
    assert jsonl.read(tmp_path / "plan.jsonl") == []


class Counted:
    """Notes the epochs whose memory is checked, and refuses those of more than `room` px."""

    def __init__(self, room: int) -> None:
        self.room, self.seen = room, list[tuple[int, int]]()

    def __call__(self, plans: Sequence[EpochPlan]) -> None:
        self.seen += [(plan.epoch, plan.image_size) for plan in plans]
        if any(plan.image_size > self.room for plan in plans):
            raise ConfigError("Too large.", "Shrink it.")


def checked(progress: Progress, room: int = 100) -> tuple[list[tuple[int, int]], list[str]]:
    """The epochs that three ranks check together, and what each of them raises."""
    table, fit, found = Table(3), Counted(room), [""] * 3

    def work(rank: int) -> None:
        world = Side(rank, 3, table=table)
        made = Coordinator(Schedule(Planner(24), Rate()), world=world, record=Path(), check=lambda _: None, fit=fit)
        try:
            made.check_memory(progress)
        except ConfigError as error:
            found[rank] = str(error)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return fit.seen, found


def test_the_memory_of_all_epochs_to_come_is_checked_by_rank_0_and_refused_on_all_ranks() -> None:
    assert checked(Progress(epochs=3)) == ([(0, 24), (1, 24), (2, 24)], [""] * 3)
    assert checked(Progress(epochs=3), room=20)[1] == ["Too large.\n  Shrink it."] * 3


def test_a_resumed_run_checks_the_started_epoch_as_it_was_planned_and_none_before() -> None:
    started = Progress(epochs=4).begin(replace(PLAN, image_size=99)).advance().next_epoch()
    assert checked(started)[0] == [(1, 24), (2, 24), (3, 24)]
    began = started.begin(replace(PLAN, epoch=1, image_size=16)).advance()
    assert checked(began)[0] == [(1, 16), (2, 24), (3, 24)]
