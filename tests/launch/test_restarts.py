"""Restarts are counted by what ended the attempt before, and a kill for lack of memory is told from others."""

from pathlib import Path

import pytest

from dist_ssl.runtime.end_names import FAILED, FINISHED, REFUSED, STOPPED
from launch.ending import Ending, of_attempt, of_ranks
from launch.memory_kills import memory_kills
from launch.restarts import CAUSES, cause_of, restarts_before
from launch.run_dir import AttemptDir, RunDir


@pytest.mark.parametrize(
    ("ending", "cause"),
    [
        (None, "node lost"),
        (Ending(FINISHED), ""),
        (Ending(STOPPED, signal="SIGTERM", again="preempted"), "preempted"),
        (Ending(FAILED, again="preempted", cause="worker died"), "preempted"),
        (Ending(STOPPED, signal="SIGUSR2", again="time limit"), "time limit"),
        (Ending(STOPPED, signal="SIGINT"), "stopped by request"),
        (Ending(REFUSED, "The disk is full."), "error of the user"),
        (Ending(FAILED, cause="out of memory"), "out of memory"),
        (Ending(FAILED, cause="node lost"), "node lost"),
        (Ending(FAILED, "written before causes were"), "worker died"),
    ],
)
def test_an_ending_has_one_cause(ending: Ending | None, cause: str) -> None:
    assert cause_of(ending) == cause
    assert not cause or cause in CAUSES


def test_restarts_are_those_of_all_earlier_attempts(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    endings = [Ending(FINISHED), Ending(STOPPED), None, Ending(FAILED, cause="out of memory"), Ending(STOPPED)]
    for ending in endings:
        attempt = run.new_attempt({})
        if ending:
            ending.write(attempt.folder / "outcome.json")
    found = restarts_before(run.new_attempt({}))
    assert {cause: count for cause, count in found.items() if count} == {
        "stopped by request": 2,
        "node lost": 1,
        "out of memory": 1,
    }
    assert tuple(found) == CAUSES, "a counter is there before it first rises"
    assert not any(restarts_before(AttemptDir(run, 1)).values())


@pytest.mark.parametrize(
    ("code", "said", "kills", "cause"),
    [
        (-9, "", 1, "out of memory"),
        (-9, "", 0, "worker died"),
        (1, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", 0, "out of memory"),
        (1, "MemoryError", 0, "out of memory"),
        (1, "RuntimeError: out of luck", 0, "worker died"),
        (1, "RuntimeError: another process was killed", 1, "worker died"),
    ],
)
def test_a_failure_says_whether_memory_was_short(tmp_path: Path, code: int, said: str, kills: int, cause: str) -> None:
    attempt = RunDir(tmp_path).new_attempt({})
    attempt.log("rank_00001").write_text(f"{said}\n")
    ending = of_ranks(attempt, {0: 1, 1: code}, 1, memory_kills=kills)
    assert (ending.outcome, ending.cause) == (FAILED, cause)
    ending.write(attempt.node(0))
    assert of_attempt(attempt, 1, 2, [1], lambda node: tmp_path).cause == cause


def test_an_agent_without_a_report_is_a_lost_node(tmp_path: Path) -> None:
    attempt = RunDir(tmp_path).new_attempt({})
    Ending(FINISHED).write(attempt.node(0))
    assert of_attempt(attempt, 2, 1, [0, -9], lambda node: tmp_path).cause == "node lost"


@pytest.mark.parametrize(
    ("lines", "file", "text", "kills"),
    [
        ("0::/job/task\n", "job/task/memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 1\n", 2),
        ("9:name=systemd:/\n4:memory:/job\n0::/\n", "memory/job/memory.oom_control", "under_oom 0\noom_kill 5\n", 5),
        ("0::/job\n", "job/other", "", 0),
        ("", "none", "", 0),
    ],
)
def test_kills_for_lack_of_memory_are_read_from_the_own_group(
    tmp_path: Path, lines: str, file: str, text: str, kills: int
) -> None:
    (tmp_path / "own").write_text(lines)
    path = tmp_path / "groups" / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert memory_kills(tmp_path / "groups", tmp_path / "own") == kills
    assert memory_kills(tmp_path / "groups", tmp_path / "nothing") == 0
