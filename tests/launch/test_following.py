"""Following a job reports how that job ended: not an earlier one, and not before it is over."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from dist_ssl.runtime.end_names import FAILED, FINISHED, STOPPED
from launch import following, scheduler
from launch.ending import Ending
from launch.following import follow
from launch.run_dir import RunDir


class Queue:
    """A Slurm that answers from a list, the last answer for ever; `then` is called as the job leaves."""

    def __init__(self, *states: str, record: str = "COMPLETED") -> None:
        self.states, self.job_state = list(states), record
        self.then = lambda: None

    def state(self, job: str) -> str:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if not state:
            self.then()
        return state

    def record(self, job: str) -> dict[str, str]:
        return {"JobState": self.job_state}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run whose first job failed and whose second is in the queue."""
    for name in ("LOOK_SECONDS", "ASK_SECONDS", "LATE_SECONDS"):
        monkeypatch.setattr(following, name, 0.02)
    found = RunDir(tmp_path / "run")
    Ending(FAILED, "an old failure").write(found.new_attempt({}).folder / "outcome.json")
    found.note_job("7")
    return found


def follow_through(run: RunDir, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> tuple[Ending, str]:
    monkeypatch.setattr(scheduler, "queue_state", queue.state)
    monkeypatch.setattr(scheduler, "record", queue.record)
    screen = Console(file=io.StringIO(), width=100)
    ending = follow(run, screen)
    assert isinstance(screen.file, io.StringIO)
    return ending, screen.file.getvalue()


def test_earlier_attempts_are_history_and_requeued_ones_are_not_the_end(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Queue("PENDING (Resources)", "RUNNING n1", "PENDING (BeginTime)", "RUNNING n2", "?", "")

    def end() -> None:
        if run.newest_attempt() == 1:
            Ending(STOPPED, again="preempted").write(run.new_attempt({}).folder / "outcome.json")
            Ending(FINISHED).write(run.new_attempt({}).folder / "outcome.json")

    queue.then = end
    ending, text = follow_through(run, queue, monkeypatch)
    assert ending == Ending(FINISHED)
    assert text == "job 7: pending (resources)\njob 7: pending (begintime)\n"


def test_a_cancelled_job_is_called_so(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    run.new_attempt({})
    ending, _ = follow_through(run, Queue("RUNNING n1", "", record="CANCELLED"), monkeypatch)
    assert ending == Ending(STOPPED, "Job 7 was cancelled: a resume continues from the last checkpoint.")


def test_a_job_without_a_report_failed_and_its_last_line_is_shown(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    log = run.job_log("7", 0)
    log.parent.mkdir()
    log.write_text("first\n[/data] is not mounted\n\n")
    ending, _ = follow_through(run, Queue("", record="FAILED"), monkeypatch)
    assert ending == Ending(FAILED, f"Job 7 ended without a report: [/data] is not mounted\n  Its log: {log}")


def test_words_that_come_late_are_waited_for(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "LATE_SECONDS", 60)
    queue = Queue("RUNNING n1", "", "", "", "")
    attempt = run.new_attempt({})
    looks = []

    def end() -> None:
        looks.append(1)
        if len(looks) == 3:
            Ending(FINISHED).write(attempt.folder / "outcome.json")

    queue.then = end
    assert follow_through(run, queue, monkeypatch)[0] == Ending(FINISHED)
