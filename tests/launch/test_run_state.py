"""The state of a run is read from its folder, from its lock, and from its job's place in the queue."""

import fcntl
import json
import os
import socket
import time
from pathlib import Path

import pytest

from dist_ssl.checkpoint.folder_names import LATEST
from dist_ssl.runtime.end_names import FAILED, FINISHED, LOST, OUT_OF_TIME, PREEMPTED, REFUSED, STOPPED
from launch import run_lock, scheduler
from launch.ending import TAIL_BYTES, Ending
from launch.run_dir import RunDir
from launch.run_state import KILLED, NOT_STARTED, QUEUED, RUNNING, SILENT, SILENT_SECONDS, RunState


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path / "run")


def attempt(run: RunDir, ending: Ending | None = None) -> None:
    folder = run.new_attempt({}).folder
    if ending:
        ending.write(folder / "outcome.json")


def report(run: RunDir, age: float = 0.0) -> None:
    path = run.folder / "status.json"
    path.write_text(json.dumps({"step": 7, "loss": 1.5}))
    os.utime(path, (time.time() - age,) * 2)


def state(run: RunDir) -> tuple[str, str]:
    found = RunState.of(run)
    return found.state, found.why


@pytest.mark.parametrize("outcome", [FINISHED, STOPPED, REFUSED, FAILED])
def test_an_attempt_that_has_ended_says_how(run: RunDir, outcome: str) -> None:
    attempt(run, Ending(FAILED, "long ago"))
    attempt(run, Ending(outcome, "the first line\nand more"))
    assert state(run) == (outcome, "the first line")


def test_a_run_without_an_attempt_has_not_started(run: RunDir) -> None:
    run.folder.mkdir()
    assert state(run) == (NOT_STARTED, "")
    (run.folder / "attempts" / "0003").mkdir(parents=True)  # a fork before its first attempt has the others' numbers
    assert state(run) == (NOT_STARTED, "")


@pytest.mark.parametrize(
    ("answer", "requeued", "started", "expected"),
    [
        ("PENDING (Resources)", "", False, (QUEUED, "job 7: pending (resources)")),
        ("RUNNING n[1-4]", "", False, (RUNNING, "job 7: running n[1-4]")),
        ("RUNNING n[1-4]", "", True, (RUNNING, "job 7: running n[1-4]")),
        ("RUNNING n[1-4]", PREEMPTED, True, (RUNNING, "job 7: running n[1-4]")),
        ("SUSPENDED n1", "", True, (RUNNING, "job 7: suspended n1")),
        ("PENDING (BeginTime)", PREEMPTED, True, (PREEMPTED, "job 7: pending (begintime)")),
        ("PENDING (BeginTime)", OUT_OF_TIME, True, (OUT_OF_TIME, "job 7: pending (begintime)")),
        ("PENDING (BeginTime)", LOST, True, (LOST, "job 7: pending (begintime)")),
        (scheduler.NO_ANSWER, PREEMPTED, True, (PREEMPTED, "Slurm does not answer about job 7")),
        (scheduler.NO_ANSWER, "", True, (RUNNING, "Slurm does not answer about job 7")),
        (scheduler.NO_ANSWER, "", False, (QUEUED, "Slurm does not answer about job 7")),
        ("", "", False, (STOPPED, "job 7 never started")),
        ("", "", True, (KILLED, "job 7 ended without a report")),
        ("", PREEMPTED, True, (STOPPED, "job 7 was cancelled while it waited to start again")),
    ],
)
def test_a_job_is_where_slurm_says(
    run: RunDir,
    answer: str,
    requeued: str,
    started: bool,
    expected: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler, "queue_state", lambda job: answer)
    attempt(run, Ending(FAILED, "of an earlier job"))
    run.note_job("7")
    if started:
        attempt(run, Ending(STOPPED, again=requeued) if requeued else None)
    assert state(run) == expected


def test_slurm_is_not_asked_about_a_run_that_has_ended(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "queue_state", lambda job: pytest.fail("asked"))
    run.folder.mkdir()
    run.note_job("7")
    attempt(run, Ending(FINISHED))
    assert state(run) == (FINISHED, "")


def test_without_slurm_the_lock_of_the_launcher_tells(run: RunDir) -> None:
    attempt(run)
    report(run, age=SILENT_SECONDS * 3)
    with run_lock.held(run.folder):
        assert state(run) == (RUNNING, "")
    assert state(run) == (KILLED, "its launcher has ended without a report")


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_of_a_job_that_goes_on_here_is_no_matter_of_slurm(
    run: RunDir, finished: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "queue_state", lambda job: pytest.fail("asked"))
    attempt(run, Ending(FAILED, "of the job"))
    run.note_job("7")
    folder = run.new_attempt({"cluster": {"kind": "local"}}).folder
    with run_lock.held(run.folder):
        assert state(run) == (RUNNING, "")
    assert state(run) == (KILLED, "its launcher has ended without a report")
    if finished:
        Ending(FINISHED).write(folder / "outcome.json")
        assert state(run) == (FINISHED, "")


def test_an_attempt_that_was_killed_before_its_config_hides_no_earlier_one(run: RunDir) -> None:
    attempt(run, Ending(FINISHED))
    (run.folder / "attempts" / "0002").mkdir()
    assert state(run) == (FINISHED, "")


@pytest.mark.parametrize(
    ("device", "process", "held"),
    [("own", "1", True), ("other", "own", True), ("other", "1", False), ("own", "own", True)],
)
def test_a_lock_counts_by_its_device_or_by_its_process(
    run: RunDir, device: str, process: str, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.folder.mkdir()
    (run.folder / run_lock.NAME).write_text(f"{socket.gethostname()} 4711\n")
    found = (run.folder / run_lock.NAME).stat()
    place = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}" if device == "own" else "ab:cd"
    holder = "4711" if process == "own" else process
    locks = run.folder / "locks"
    locks.write_text(
        f"1: FLOCK  ADVISORY  WRITE {holder} {place}:{found.st_ino} 0 EOF\n2: POSIX  ADVISORY  READ 3 {place}:5 0 EOF\n"
    )
    monkeypatch.setattr(run_lock, "LOCKS", locks)
    assert run_lock.is_held(run.folder) is held


def test_a_lock_that_may_not_be_read_is_seen_all_the_same(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt(run)
    report(run, age=SILENT_SECONDS * 3)
    with run_lock.held(run.folder):
        monkeypatch.setattr(run_lock, "_holder", lambda content: pytest.fail("read"))
        assert state(run) == (RUNNING, "")


@pytest.mark.parametrize("lock", ["of another machine", "none", "of an unknown system"])
def test_where_nobody_can_be_asked_the_age_of_the_last_report_tells(
    run: RunDir, lock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt(run)
    if lock != "none":
        (run.folder / run_lock.NAME).write_text("elsewhere 17\n")
    if lock == "of an unknown system":
        monkeypatch.setattr(run_lock, "LOCKS", run.folder / "absent")
    assert state(run) == (SILENT, "it never reported")
    report(run, age=SILENT_SECONDS / 2)
    assert state(run) == (RUNNING, "")
    report(run, age=SILENT_SECONDS * 6)
    assert state(run) == (SILENT, "its last report is 60 min old")


def test_a_lock_is_told_from_others_of_the_machine(run: RunDir) -> None:
    run.folder.mkdir()
    assert run_lock.is_held(run.folder) is None
    (run.folder / run_lock.NAME).write_text(f"{socket.gethostname()} {os.getpid()}\n")
    with (run.folder / "other").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert run_lock.is_held(run.folder) is False
    with (run.folder / run_lock.NAME).open() as own:
        fcntl.flock(own, fcntl.LOCK_EX)
        assert run_lock.is_held(run.folder) is True


def test_numbers_and_ages_are_those_of_the_files(run: RunDir) -> None:
    attempt(run, Ending(FINISHED))
    empty = RunState.of(run)
    assert (empty.numbers, empty.reported, empty.saved) == ({}, None, None)
    report(run)
    os.utime(run.folder / "status.json", (2000, 2000))
    (run.folder / "checkpoints").mkdir()
    (run.folder / "checkpoints" / LATEST).write_text("step_00000007\n")
    os.utime(run.folder / "checkpoints" / LATEST, (1000, 1000))
    found = RunState.of(run)
    assert found.numbers == {"step": 7, "loss": 1.5}
    assert (found.reported, found.saved) == (2000, 1000)


def test_a_reason_to_start_again_that_there_is_not_is_not_a_state(run: RunDir) -> None:
    attempt(run, Ending(STOPPED, again="x" * 1_000_000))
    assert state(run) == (SILENT, "it never reported")


def test_numbers_are_read_from_a_file_of_their_size_only(run: RunDir) -> None:
    attempt(run)
    report(run)
    assert RunState.of(run).numbers["step"] == 7
    (run.folder / "status.json").write_text(json.dumps({"step": 7, **{str(row): 1 for row in range(1 << 15)}}))
    assert not RunState.of(run).numbers


def test_an_ending_may_quote_the_longest_line_of_a_log(run: RunDir) -> None:
    attempt(run, Ending(FAILED, "\x1b" * TAIL_BYTES))
    assert state(run) == (FAILED, "\x1b" * TAIL_BYTES)
