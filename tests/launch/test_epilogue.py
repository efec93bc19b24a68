"""Which jobs are requeued: those that Slurm interrupted, and none that the user cancelled or that failed."""

import errno
import json
from pathlib import Path

import pytest

from dist_ssl.runtime.end_names import FAILED, FINISHED, PLANS_DIFFER, REFUSED, STOPPED
from launch import scheduler
from launch.ending import DISAGREED_CODE, Ending, of_ranks
from launch.epilogue import LOST, MOST_LOST, lost_in_a_row, main, note, own_job, persist, why_again
from launch.run_dir import FORMAT, AttemptDir, RunDir
from launch.run_files import write_yaml
from launch.scheduler import read_record

RECORD = """JobId=3 JobName=a b
   JobState=RUNNING Reason=None Dependency=(null)
   PreemptEligibleTime=2026-01-01T05:39:37 PreemptTime=None
   NodeList=n[1-2] StdOut=/tmp/x=y.out
"""


def test_a_record_is_read_key_by_key() -> None:
    record = read_record(RECORD)
    assert record["JobState"] == "RUNNING"
    assert record["PreemptTime"] == "None"
    assert record["StdOut"] == "/tmp/x=y.out"
    assert read_record("") == {}


PREEMPTED = {"JobState": "RUNNING", "PreemptTime": "2026-01-01T05:40:00"}
PLAIN = {"JobState": "RUNNING", "PreemptTime": "None"}


@pytest.mark.parametrize(
    ("ending", "record", "why"),
    [
        (Ending(STOPPED, signal="SIGTERM"), PREEMPTED, "preempted"),
        (Ending(FAILED), PREEMPTED, "preempted"),
        (Ending(STOPPED, signal="SIGUSR2"), PLAIN, "time limit"),
        (Ending(STOPPED, signal="SIGTERM"), PLAIN, ""),
        (Ending(STOPPED, signal="SIGTERM"), {}, ""),
        (Ending(FAILED), PLAIN, ""),
        (Ending(FAILED, signal="SIGUSR2"), PLAIN, "time limit"),
        (Ending(FAILED, lost=True), PLAIN, "something was lost"),
        (Ending(FAILED, lost=True, signal="SIGTERM"), PLAIN, ""),
        (Ending(FAILED, lost=True), {**PLAIN, "JobState": "CANCELLED"}, ""),
        (Ending(REFUSED, lost=True), PLAIN, ""),
        (Ending(FINISHED), PREEMPTED, ""),
        (Ending(FINISHED, signal="SIGUSR2"), PLAIN, ""),
        (Ending(REFUSED), PREEMPTED, ""),
        (Ending(STOPPED, signal="SIGTERM"), {**PREEMPTED, "JobState": "CANCELLED"}, ""),
    ],
)
def test_which_jobs_are_requeued(ending: Ending, record: dict[str, str], why: str) -> None:
    assert why_again(ending, record, progressed=True) == why


def test_a_job_that_is_out_of_time_before_it_saves_does_not_come_back() -> None:
    assert why_again(Ending(STOPPED, signal="SIGUSR2"), PLAIN, progressed=False) == ""
    assert why_again(Ending(STOPPED, signal="SIGTERM"), PREEMPTED, progressed=False) == "preempted"


def test_a_job_is_not_lost_for_ever(tmp_path: Path) -> None:
    lost = Ending(FAILED, lost=True)
    assert why_again(lost, PLAIN, progressed=False, lost_before=MOST_LOST - 1) == LOST
    assert why_again(lost, PLAIN, progressed=False, lost_before=MOST_LOST) == ""
    assert why_again(lost, PLAIN, progressed=True, lost_before=MOST_LOST) == LOST
    run = RunDir(tmp_path / "run")
    run.begin({"threads": 1}, [])
    for again, saved in ((LOST, False), ("preempted", True), (LOST, True), (LOST, False), (LOST, False), ("", False)):
        attempt = run.new_attempt(run.config)
        Ending(FAILED, again=again, saved=saved).write(attempt.folder / "outcome.json")
    assert [lost_in_a_row(run, number) for number in range(1, 7)] == [0, 1, 0, 0, 1, 2]


def test_the_task_of_an_array_speaks_for_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    assert own_job() == "7"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert own_job() == "7_2"


def test_slurm_is_asked_until_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("launch.epilogue.time.sleep", pauses.append)
    answers = iter(["", "", "yes"])
    assert persist(lambda: next(answers), bool) == "yes"
    assert len(pauses) == 2
    assert persist(lambda: "", bool) == ""
    assert len(pauses) == 2 + 4


def test_how_a_job_ended_is_known_to_the_alerts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, target = RunDir(tmp_path / "run"), tmp_path / "targets" / "run.json"
    attempt = run.new_attempt({"nodes": 1, "ranks_per_node": 1, "metrics": {"textfile": None}})
    write_yaml(run.folder / "config.yaml", {"format": FORMAT})
    target.parent.mkdir()
    target.write_text('[{"targets": [], "labels": {"run": "run"}}]')
    of_ranks(attempt, {0: DISAGREED_CODE}, 0).write(attempt.node(0))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.setattr(scheduler, "record", lambda job: PLAIN)
    assert main([str(run.folder), "1", "2"]) == 0
    assert json.loads(target.read_text())[0]["labels"] == {"run": "run", "end": PLANS_DIFFER}


def test_a_full_disk_does_not_keep_a_preempted_job_from_coming_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path / "run")
    run.begin({"nodes": 1, "ranks_per_node": 1}, [])
    attempt = run.new_attempt(run.config)
    Ending(STOPPED, signal="SIGTERM").write(attempt.node(0))
    requeued: list[str] = []
    told: list[list[str]] = []
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.setattr(scheduler, "record", lambda job: PREEMPTED)
    monkeypatch.setattr(scheduler, "requeue", lambda job: requeued.append(job) or "")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("launch.ending.write_atomically", full)
    monkeypatch.setattr("launch.epilogue.announce", lambda *_: told.append([*requeued]))
    assert main([str(run.folder), "1", "75"]) == 0
    assert requeued == ["7"]
    assert told == [["7"]], "the alerts come after what the job depends on"
    assert "outcome.json cannot be written: [Errno 28] No space left" in capsys.readouterr().out


def test_a_path_acts_on_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    note(Ending(FAILED), tmp_path / "\x1b[2J\udcff" / "outcome.json")
    assert r"\x1b[2J\udcff/outcome.json cannot be written" in capsys.readouterr().out


@pytest.fixture
def lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunDir, list[tuple[str, ...]]]:
    """A run whose attempt on n1 to n3 is lost, and what Slurm is asked for after it; SIGTERM is as before then."""
    run, asked = RunDir(tmp_path / "run"), []  # type: ignore[var-annotated]
    run.begin({"nodes": 3, "ranks_per_node": 1, "cluster": {"exclude": "n7"}}, [])
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-3]")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.setattr("launch.epilogue.announce", lambda *_: None)
    monkeypatch.setattr("launch.epilogue.signal.signal", lambda *_: None)

    def answer(*words: str) -> tuple[int, str, str]:
        asked.append(words[1:])
        return 0, {"hostnames": "n1\nn2\nn3\n", "job": "JobState=RUNNING"}.get(words[2], ""), ""

    monkeypatch.setattr(scheduler, "run", answer)
    run.new_attempt(run.config)
    return run, asked


@pytest.mark.parametrize(
    ("reasons", "left_out"),
    [
        (("Rank 0: Connection closed by peer", None, "Rank 2: Connection reset"), "n7,n2"),
        (("Rank 0: Connection closed", "Rank 1: CUDA error: uncorrectable ECC error encountered", None), "n7,n2"),
        (("Rank 0: Connection closed", "Rank 1: Connection closed", "Rank 2: Connection closed"), ""),
        ((None, None, None), ""),
    ],
)
def test_a_node_where_something_was_lost_is_left_out_of_the_next_attempt(
    lost: tuple[RunDir, list[tuple[str, ...]]], reasons: tuple[str | None, ...], left_out: str
) -> None:
    run, asked = lost
    for node, reason in enumerate(reasons):
        if reason:
            Ending(FAILED, reason, lost=True).write(AttemptDir(run, 1).node(node))
    assert main([str(run.folder), "1", "1"]) == 0
    _, *after = asked[asked.index(("requeue", "7")) :]
    assert [words for words in after if words[0] == "update"] == (
        [("update", "JobId=7", f"ExcNodeList={left_out}")] if left_out else []
    )
