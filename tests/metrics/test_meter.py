"""The meter reduces over steps and ranks as the table says, and adds position and speed."""

import errno
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch import Tensor

from dist_ssl.core.plan import EpochPlan
from dist_ssl.core.progress import Progress
from dist_ssl.distributed.world import World
from dist_ssl.errors import UserError
from dist_ssl.metrics.meter import Meter

PLAN = EpochPlan(0, 32, 1.0, 2, 48, 48)
HERE = Progress(epochs=2, step=10, epoch=0, samples=480, attempt=3, plans=(PLAN,))


class Listener:
    """A sink that remembers every call."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Progress | None, dict[str, float]]] = []

    def open(self, progress: Progress) -> None:
        self.heard.append(("open", progress, {}))

    def write(self, progress: Progress, values: Mapping[str, float]) -> None:
        self.heard.append(("write", progress, dict(values)))

    def close(self) -> None:
        self.heard.append(("close", None, {}))

    @property
    def values(self) -> dict[str, float]:
        return self.heard[-1][2]


@dataclass(frozen=True)
class Two(World):
    """A world of two whose other rank has the same numbers, ten more of each."""

    size: int = 2

    def gather_const(self, x: Tensor) -> Tensor:
        rows = [x + 10 * other for other in range(self.size)] if self.rank == 0 else [x - 10, x]
        return torch.cat(rows)


def metered(world: World, *steps: Mapping[str, float | Tensor]) -> dict[str, float]:
    """What a sink hears of these steps."""
    listener = Listener()
    meter = Meter(world, [listener], total_samples=960)
    for step in steps:
        meter.record(step)
    meter.flush(HERE)
    return listener.values


REDUCED = {
    "loss": ("mean", 2.0, 7.0),
    "data_wait_seconds": ("max", 3.0, 13.0),
    "replaced_samples": ("sum", 6.0, 42.0),
    "lr": ("last", 2.0, 2.0),
}


@pytest.mark.parametrize("key", REDUCED)
def test_steps_are_reduced_as_the_table_says(key: str) -> None:
    assert metered(World(), {key: 1.0}, {key: 3.0}, {key: 2.0})[key] == REDUCED[key][1]


@pytest.mark.parametrize("key", ["loss", "data_wait_seconds", "lr"])
def test_ranks_are_reduced_as_the_table_says(key: str) -> None:
    assert metered(Two(), {key: 1.0}, {key: 3.0}, {key: 2.0})[key] == REDUCED[key][2]


def test_sums_add_up_over_ranks() -> None:
    assert metered(Two(), {"replaced_samples": 1.0}, {"replaced_samples": 5.0})["replaced_samples"] == 6.0 + 16.0


@pytest.mark.parametrize(("ranks_per_node", "node"), [(1, 1), (2, 0)])
def test_the_slowest_node_is_that_of_the_rank_that_works_longest(ranks_per_node: int, node: int) -> None:
    work = {"slowest_rank_work_seconds": 2.0, "rank_work_seconds": 2.0}
    found = metered(Two(local_size=ranks_per_node), work)
    assert (found["slowest_rank_work_seconds"], found["rank_work_seconds"]) == (12.0, 7.0)
    assert found["slowest_node"] == node


def test_no_node_is_slowest_before_the_first_step() -> None:
    assert "slowest_node" not in metered(Two(), {"slowest_rank_work_seconds": math.nan})


def test_several_metrics_do_not_mix() -> None:
    values = metered(Two(), {"loss": 1.0, "lr": 0.5, "gradient_norm": 4.0}, {"loss": 2.0, "lr": 0.25})
    assert (values["loss"], values["lr"], values["gradient_norm"]) == (6.5, 0.25, 9.0)


def test_a_metric_with_a_label_is_reduced_per_value() -> None:
    found = metered(Two(), {"bad_samples/empty": 1.0}, {"bad_samples/empty": 2.0, "bad_samples/not an image": 1.0})
    assert found["bad_samples/empty"] == 2.0
    assert found["bad_samples/not an image"] == 1.0


def test_tensors_and_numbers_are_both_taken_at_full_precision() -> None:
    third = torch.tensor(1 / 3, dtype=torch.float64)
    assert metered(World(), {"loss": third}, {"loss": 1 / 3})["loss"] == 1 / 3


def test_a_tensor_with_a_graph_is_let_go() -> None:
    weight = torch.ones((), requires_grad=True)
    assert metered(World(), {"loss": weight * 2})["loss"] == 2.0


def test_the_position_is_always_reported() -> None:
    values = metered(World())
    position = {"epoch": 0, "step": 10, "samples": 480, "progress": 0.5, "attempt": 3, "ranks": 1}
    assert values == {**position, "host_memory": values["host_memory"]}


def test_the_speed_is_reported_where_steps_were_made() -> None:
    values = metered(World(), {"loss": 1.0}, {"loss": 1.0})
    assert values["images_per_second"] == pytest.approx(48 / values["step_seconds"])
    assert values["seconds_left"] == pytest.approx(480 / values["images_per_second"])
    assert values["views_per_second"] == pytest.approx(2 * values["images_per_second"])
    assert "images_per_second" not in metered(World(), {"knn_accuracy": 0.5})


def test_memory_is_that_of_the_largest_rank() -> None:
    own = psutil.Process().memory_info().rss
    assert metered(World())["host_memory"] == pytest.approx(own, rel=0.5)
    assert "device_memory" not in metered(World())


def test_the_memory_of_a_gpu_is_the_share_that_tensors_have_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 60)
    meter = Meter(World(device=torch.device("cuda")), [], total_samples=960)
    assert meter._memory()["device_memory"] == 0.75


def test_a_flush_begins_anew() -> None:
    listener = Listener()
    meter = Meter(World(), [listener], total_samples=960)
    meter.record({"loss": 5.0})
    meter.flush(HERE)
    meter.record({"loss": 1.0})
    meter.flush(HERE)
    assert listener.values["loss"] == 1.0
    meter.flush(HERE)
    assert "loss" not in listener.values


def test_what_was_recorded_before_the_opening_is_forgotten() -> None:
    listener = Listener()
    meter = Meter(World(), [listener], total_samples=960)
    meter.record({"loss": 5.0})
    meter.open(HERE)
    meter.flush(HERE)
    assert "loss" not in listener.values


def test_sinks_are_opened_written_and_closed_on_rank_0_alone() -> None:
    for rank in (0, 1):
        listener = Listener()
        meter = Meter(Two(rank=rank), [listener], total_samples=960)
        meter.open(HERE)
        meter.record({"loss": 1.0})
        meter.flush(HERE)
        meter.close()
        assert [what for what, *_ in listener.heard] == (["open", "write", "close"] if rank == 0 else [])


def test_a_metric_that_is_not_in_the_table_is_refused_when_it_is_recorded() -> None:
    meter = Meter(World(), [], total_samples=960)
    meter.record({"loss": 1.0})
    with pytest.raises(UserError, match=r"'unheard_of' has no row .*\n.*Add a row to dist_ssl/metrics/table\.py"):
        meter.record({"loss": 1.0, "unheard_of": 1.0})


def test_the_rates_of_parts_do_not_mix_and_keep_their_keys() -> None:
    found = metered(Two(), {"lr": 0.5, "lr/predictor": 0.25}, {"lr": 0.4, "lr/predictor": 0.2})
    assert (found["lr"], found["lr/predictor"]) == (0.4, 0.2)


class Full(Listener):
    """A sink on a disk that takes nothing."""

    def open(self, progress: Progress) -> None:
        raise OSError(28, "No space left on device")

    def write(self, progress: Progress, values: Mapping[str, float]) -> None:
        raise OSError(21, "Is a directory")

    def close(self) -> None:
        raise OSError(30, "Read-only file system")


def test_a_report_that_cannot_be_written_stops_neither_the_run_nor_the_other_sinks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    listener = Listener()
    meter = Meter(World(), [Full(), listener], total_samples=960)
    meter.open(HERE)
    meter.record({"loss": 1.0})
    meter.flush(HERE)
    meter.close()
    assert [kind for kind, *_ in listener.heard] == ["open", "write", "close"]
    for reason in ("No space left", "Is a directory", "Read-only"):
        assert "A report could not be written by Full: " in caplog.text
        assert reason in caplog.text


def test_an_attempt_that_has_slept_reports_nothing_once_a_newer_one_has_started(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    newest, now, listener = [True], [5.0], Listener()
    monkeypatch.setattr("dist_ssl.metrics.meter.time.monotonic", lambda: now[0])
    meter = Meter(World(), [listener], total_samples=960, newest=lambda: newest[0])
    meter.open(HERE)
    meter.flush(HERE)
    newest[0] = False
    now[0] += 3600  # it was stopped, and is woken
    meter.flush(HERE)
    meter.flush(HERE)
    meter.close()
    assert [kind for kind, *_ in listener.heard] == ["open", "write", "close"]
    assert caplog.text.count("A newer attempt of this run has started") == 1


def test_a_report_is_written_while_the_file_server_does_not_say_whether_the_attempt_is_the_newest(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[bool | OSError] = [True, OSError(errno.ESTALE, os.strerror(errno.ESTALE)), False]
    now, listener = [5.0], Listener()

    def newest() -> bool:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr("dist_ssl.metrics.meter.time.monotonic", lambda: now[0])
    meter = Meter(World(), [listener], total_samples=960, newest=newest)
    meter.open(HERE)
    for _ in range(3):
        now[0] += 3600
        meter.flush(HERE)
    assert not answers
    assert [kind for kind, *_ in listener.heard] == ["open", "write", "write"]
    assert caplog.text.count("Stale file handle") == 1
