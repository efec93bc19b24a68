"""The account of the wall clock adds up to the age of the run, whatever its attempts went through."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_ssl.core.plan import EpochPlan
from dist_ssl.core.progress import Progress
from dist_ssl.distributed.world import World
from dist_ssl.metrics.goodput import CAUSES, Goodput
from dist_ssl.metrics.meter import Meter
from dist_ssl.metrics.sinks import JsonLines
from dist_ssl.metrics.table import series_of

PLAN = EpochPlan(0, 32, 1.0, 2, 48, 48)
CREATED = 1000.0


def at(step: int) -> Progress:
    return Progress(epochs=4, step=step, samples=48 * step, lane_offset=1, plans=(PLAN,))


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = CREATED

    def __call__(self) -> float:
        return self.now


class Attempts:
    """Attempts of one run, one after the other, whose reports have the clock's time."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.path = folder / "metrics.jsonl"
        self.sink = JsonLines(self.path)

    def start(self, step: int, started: float, opened: float) -> None:
        """An attempt whose process starts and that resumes from a step."""
        self.clock.now = opened
        self.goodput = Goodput(self.path, CREATED, started, self.clock)
        self.goodput.open(at(step))
        self.sink.open(at(step))
        self.report(step, opened)

    def report(self, step: int, now: float, **costs: float) -> dict[str, float]:
        """A report; the seconds by cause and the lost steps."""
        self.clock.now = now
        values = self.goodput.spend(costs)
        with self.path.open("a") as file:
            file.write(json.dumps({"time": now, "step": step, **values}) + "\n")
        return {key.removeprefix("spent_seconds/"): value for key, value in values.items()}


@pytest.fixture
def run(tmp_path: Path) -> Attempts:
    return Attempts(tmp_path)


def spent(values: Mapping[str, float]) -> dict[str, float]:
    """The causes on which something was spent."""
    return {key: value for key, value in values.items() if key in CAUSES and value}


def test_an_attempt_accounts_for_all_its_time(run: Attempts) -> None:
    run.start(0, CREATED + 5, CREATED + 12)
    run.report(5, CREATED + 22, data_wait_seconds=2.0, restore_seconds=3.0)
    values = run.report(10, CREATED + 40, save_stall_seconds=1.0, probe_seconds=4.0)
    assert spent(values) == {"queue": 5, "start": 4, "restore": 3, "data": 2, "save": 1, "probe": 4, "train": 21}
    assert sum(spent(values).values()) == 40


def test_work_that_is_thrown_away_is_lost_and_the_rest_stays(run: Attempts) -> None:
    run.start(0, CREATED, CREATED + 2)
    run.report(10, CREATED + 12)
    run.report(20, CREATED + 22, data_wait_seconds=4.0)
    run.start(10, CREATED + 30, CREATED + 33)
    values = run.report(15, CREATED + 38)
    assert spent(values) == {"start": 5, "train": 15, "lost": 10, "queue": 8}
    assert values["lost_steps"] == 10


def test_an_attempt_that_dies_before_it_reports_again_is_not_forgotten(run: Attempts) -> None:
    run.start(0, CREATED, CREATED + 2)
    run.report(10, CREATED + 12)
    run.report(20, CREATED + 22)
    run.start(10, CREATED + 30, CREATED + 33)
    run.start(10, CREATED + 40, CREATED + 41)
    values = run.report(15, CREATED + 46)
    assert spent(values) == {"start": 6, "train": 15, "lost": 10, "queue": 15}
    assert values["lost_steps"] == 10


def test_two_attempts_can_lose_the_same_steps(run: Attempts) -> None:
    run.start(0, CREATED, CREATED)
    run.report(10, CREATED + 10)
    run.report(30, CREATED + 30)
    run.start(10, CREATED + 30, CREATED + 30)
    run.report(25, CREATED + 45)
    run.start(10, CREATED + 45, CREATED + 45)
    values = run.report(10, CREATED + 45)
    assert spent(values) == {"train": 10, "lost": 35}
    assert values["lost_steps"] == 20 + 15


def test_a_run_that_starts_over_has_lost_all_its_work(run: Attempts) -> None:
    run.start(0, CREATED + 1, CREATED + 2)
    run.report(5, CREATED + 8)
    run.path.write_text("".join(line for line in run.path.read_text().splitlines(True) if '"step": 5' in line))
    run.start(0, CREATED + 10, CREATED + 11)
    assert spent(run.report(0, CREATED + 11)) == {"queue": 3, "start": 2, "lost": 6}


def test_a_clock_that_goes_back_takes_nothing_away(run: Attempts) -> None:
    run.start(0, CREATED, CREATED + 2)
    run.report(5, CREATED + 10)
    values = run.report(6, CREATED + 4)
    assert spent(values) == {"start": 2, "train": 8}
    run.start(6, CREATED + 1, CREATED + 3)
    assert all(seconds >= 0 for seconds in run.report(6, CREATED + 3).values())


@pytest.mark.parametrize("step", [-86400.0, 86400.0])
def test_a_clock_that_is_set_while_an_attempt_trains_changes_nothing_of_the_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    now = {"time": CREATED, "monotonic": 7.0}
    for name in now:
        monkeypatch.setattr(f"dist_ssl.metrics.goodput.time.{name}", lambda name=name: now[name])
    goodput = Goodput(tmp_path / "metrics.jsonl", CREATED, CREATED)
    goodput.open(at(0))
    now.update(time=CREATED + 10 + step, monotonic=17.0)
    found = {key.removeprefix("spent_seconds/"): value for key, value in goodput.spend({}).items()}
    assert spent(found) == {"train": 10.0}


def test_reports_from_a_clock_that_was_ahead_do_not_stop_the_account_of_the_next_attempt(run: Attempts) -> None:
    run.start(0, CREATED, CREATED + 2)
    run.report(5, CREATED + 86400)
    run.start(5, CREATED + 20, CREATED + 25)
    before = run.report(5, CREATED + 25)["train"]
    assert run.report(6, CREATED + 35)["train"] == before + 10


@pytest.mark.parametrize(
    "line", ["", "{", "{}", '{"step": null, "time": []}', '{"step": 5, "spent_seconds/train": "9"}']
)
def test_an_account_is_opened_whatever_a_lost_disk_left_of_it(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = {"time": CREATED + 60, "step": 3, "spent_seconds/train": 50.0, "spent_seconds/start": 10.0}
    path.write_text(f"{json.dumps(whole)}\n{line}\n")
    goodput = Goodput(path, CREATED, CREATED + 90, lambda: CREATED + 100)
    goodput.open(at(3))
    assert all(value >= 0 for value in goodput.spend({}).values())
    path.write_text(line)
    Goodput(path, CREATED, CREATED + 90, lambda: CREATED + 100).open(at(3))


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 5), st.floats(0, 9), st.floats(0, 9)), max_size=12))
def test_the_causes_always_add_up_to_the_age_of_the_run(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[int, float, float, float]]
) -> None:
    run = Attempts(tmp_path_factory.mktemp("run"))
    run.start(0, CREATED, CREATED)
    step = 0
    for kind, pause, wait, length in moves:
        now = run.clock.now + pause
        if kind == 0:
            step = max(0, step - 3)
            run.start(step, now, now + length)
        else:
            step += 1
            run.report(step, now + length, data_wait_seconds=wait, restore_seconds=pause)
        values = run.report(step, run.clock.now)
        assert sum(spent(values).values()) == pytest.approx(run.clock.now - CREATED, abs=1e-6)
        assert min(values.values()) >= 0


def test_every_cause_is_a_series_of_the_table() -> None:
    assert {series_of(f"spent_seconds/{cause}")[1] for cause in CAUSES} == set(CAUSES)


def test_a_meter_reports_the_account_as_soon_as_it_opens(tmp_path: Path) -> None:
    sink = JsonLines(tmp_path / "metrics.jsonl")
    goodput = Goodput(sink.path, CREATED, CREATED, lambda: CREATED + 7)
    meter = Meter(World(), [sink], 960, goodput)
    meter.open(at(3))
    [line] = [json.loads(text) for text in sink.path.read_text().splitlines()]
    assert (line["step"], line["spent_seconds/start"], line["spent_seconds/train"]) == (3, 7.0, 0.0)
    goodput.clock = lambda: CREATED + 20
    meter.record({"data_wait_seconds": 1.5})
    meter.record({"data_wait_seconds": 2.5})
    meter.flush(at(4))
    line = json.loads(sink.path.read_text().splitlines()[-1])
    assert (line["spent_seconds/data"], line["spent_seconds/train"]) == (4.0, 9.0)
    assert line["data_wait_seconds"] == 2.5


def test_a_fork_did_not_wait_before_it_was_made(tmp_path: Path) -> None:
    """Its first reports are those of another run, which may have ended long before."""
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"time": 100.0, "step": 1, "spent_seconds/train": 7.0}) + "\n")
    clock = Clock()
    clock.now = CREATED + 30
    goodput = Goodput(tmp_path / "metrics.jsonl", CREATED, CREATED + 10, clock)
    goodput.open(at(1))
    spent = {key.removeprefix("spent_seconds/"): value for key, value in goodput.spend({}).items()}
    assert (spent["train"], spent["queue"], spent["start"], spent["lost_steps"]) == (7, 10, 20, 0)
