"""Which jobs are requeued: those that Slurm interrupted, and none that the user cancelled or that failed."""

import errno
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dist_ssl.runtime.end_names import FAILED, FINISHED, PLANS_DIFFER, REFUSED, STOPPED
from launch import scheduler
from launch.ending import DISAGREED_CODE, Ending, of_ranks
from launch.epilogue import LOST, MOST_LOST, lost_in_a_row, main, note, own_job, persist, why_again
from launch.lost_signs import GONE
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
        (Ending(REFUSED, "The disk is full", signal="SIGTERM"), PREEMPTED, "preempted"),
        (Ending(REFUSED, "The disk is full", signal="SIGUSR2"), PLAIN, "time limit"),
        (Ending(REFUSED, "The disk is full", signal="SIGTERM"), PLAIN, ""),
        (Ending(REFUSED, signal="SIGTERM", diverged=True), PREEMPTED, ""),
        (Ending(REFUSED, signal="SIGTERM", unreadable=True), PREEMPTED, ""),
        (Ending(REFUSED, signal="SIGTERM", cause=PLANS_DIFFER), PREEMPTED, ""),
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


@dataclass
class Cluster:
    """What Slurm answers, and what it was asked to."""

    record: str = "JobState=RUNNING Partition=main ReqNodeList=(null) ExcNodeList=n7"
    nodes: str = "n1 gpu|8\nn2 gpu|8\nn3 gpu|8\nn4 gpu|8\nn5 cpu|(null)\nn7 gpu|8"
    asked: list[tuple[str, ...]] = field(default_factory=list)

    def answer(self, *words: str) -> tuple[int, str, str]:
        """What a command ends with and prints."""
        self.asked.append(words[1:])
        if words[0] == "sinfo":
            return 0, self.nodes, ""
        names = words[3].replace("n[1-3]", "n1,n2,n3").replace(",", "\n") if words[2] == "hostnames" else ""
        return 0, {"job": self.record, "reservation": "Nodes=n1,n2,n3"}.get(words[2], names), ""

    @property
    def excluded(self) -> list[str]:
        """What the job was told to exclude after it was requeued."""
        _, *after = self.asked[self.asked.index(("requeue", "7")) :]
        return [words[2].removeprefix("ExcNodeList=") for words in after if words[0] == "update"]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The Slurm of job 7 on n1 to n3; SIGTERM is as before after the epilogue."""
    found = Cluster()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-3]")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.setattr("launch.epilogue.announce", lambda *_: None)
    monkeypatch.setattr("launch.epilogue.signal.signal", lambda *_: None)
    monkeypatch.setattr(scheduler, "run", found.answer)
    return found


def begun(folder: Path) -> RunDir:
    """A run whose first attempt, on three nodes, has been made."""
    run = RunDir(folder)
    run.begin({"nodes": 3, "ranks_per_node": 1, "cluster": {"exclude": None}}, [])
    run.new_attempt(run.config)
    return run


CLOSED = "Rank 0: Connection closed by peer"


def lose_n2(run: RunDir, number: int = 1) -> None:
    """Let the second node of an attempt be lost, and its epilogue run."""
    for node in (0, 2):
        Ending(FAILED, CLOSED, lost=True).write(AttemptDir(run, number).node(node))
    assert main([str(run.folder), str(number), "1"]) == 0


@pytest.mark.parametrize(
    ("reasons", "left_out"),
    [
        ((CLOSED, None, "Rank 2: Connection reset"), ["n7,n2"]),
        (
            (CLOSED, f"Rank 1 ended with exit code 76: {GONE}RuntimeError: CUDA error: uncorrectable ECC error", None),
            ["n7,n2"],
        ),
        ((CLOSED, "Rank 1: Connection closed", "Rank 2: Connection closed"), []),
        ((None, None, None), []),
    ],
)
def test_a_node_where_something_was_lost_is_left_out_of_the_next_attempt(
    cluster: Cluster, tmp_path: Path, reasons: tuple[str | None, ...], left_out: list[str]
) -> None:
    run = begun(tmp_path / "run")
    for node, reason in enumerate(reasons):
        if reason:
            Ending(FAILED, reason, lost=True).write(AttemptDir(run, 1).node(node))
    assert main([str(run.folder), "1", "1"]) == 0
    assert cluster.excluded == left_out


@pytest.mark.parametrize(
    ("record", "nodes"),
    [
        ("JobState=RUNNING Partition=main ReqNodeList=n[1-3] ExcNodeList=(null)", None),
        ("JobState=RUNNING Partition=main ReqNodeList=(null) ExcNodeList=n4", None),
        ("JobState=RUNNING Partition=main ReqNodeList=(null) ExcNodeList=(null) Reservation=night", None),
        ("JobState=RUNNING Partition=main ReqNodeList=(null) ExcNodeList=(null)", "n1 a\nn2 a\nn3 a\nn4 b"),
        ("JobState=RUNNING Partition=main ReqNodeList=(null) ExcNodeList=(null)", ""),
        ("JobState=RUNNING", None),
    ],
)
def test_no_node_is_left_out_where_the_job_would_then_wait_for_ever(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str], record: str, nodes: str | None
) -> None:
    cluster.record = record
    cluster.nodes = (cluster.nodes if nodes is None else nodes).replace("\nn7 gpu|8", "")
    lose_n2(begun(tmp_path / "run"))
    assert cluster.excluded == []
    assert "n2 could not be left out: without it the job might never get its nodes" in capsys.readouterr().out


def test_nodes_stay_left_out_until_the_job_is_requeued_for_another_reason(cluster: Cluster, tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    lose_n2(run)
    cluster.record = "JobState=RUNNING Restarts=1 Partition=main ReqNodeList=(null) ExcNodeList=n7,n9"
    Ending(FAILED, again=LOST, lost=True, left_out="n9").write(AttemptDir(run, 1).outcome_file)
    cluster.asked.clear()
    run.new_attempt(run.config)
    lose_n2(run, 2)
    assert cluster.excluded == ["n7,n9,n2"], "an earlier suspect is not forgotten"
    cluster.record = "JobState=RUNNING Restarts=2 PreemptTime=2026-01-01T05:40:00 ExcNodeList=n7,n9,n2"
    cluster.asked.clear()
    attempt = run.new_attempt(run.config)
    for node in range(3):
        Ending(STOPPED, signal="SIGTERM").write(attempt.node(node))
    assert main([str(run.folder), "3", "75"]) == 0
    assert cluster.excluded == ["n7"], "what the user excludes stays excluded"
