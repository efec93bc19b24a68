"""A run is followed: each checkpoint is evaluated once, removed ones are passed over, Ctrl-C leaves whole files."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dist_ssl.checkpoint.folder_names import KEPT
from dist_ssl.runtime.end_names import FAILED, FINISHED, STOPPED
from launch import evaluate, frozen
from launch.checkpoint_choice import Watch
from launch.ending import Ending
from launch.evaluation_options import Options
from launch.run_dir import PROJECT, RunDir
from tests.system.launching import WAIT_SECONDS, await_that, saved

MEASURE = ("threads=1", "protocol=unlabelled", "queries=8")
NAMES = [f"{step:08d}_student_unlabelled_queries8.json" for step in (5, 10)]


@pytest.fixture
def run(followed: Path, tmp_path: Path) -> Path:
    """The same run, not evaluated yet."""
    run = Path(shutil.copytree(followed, tmp_path / "run"))
    shutil.rmtree(run / "evaluations")
    return run


def ended(run: Path, outcome: str, again: str = "") -> None:
    Ending(outcome, again=again).write(run / "attempts" / "0001" / "outcome.json")


def written(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "evaluations").iterdir())


def reading(monkeypatch: pytest.MonkeyPatch, before: Callable[[Path], Any]) -> list[str]:
    """Call `before` with a checkpoint just before it is read; returns the names of those that are."""
    original, names = frozen.read, []

    def read(folder: Path, wants: Any) -> Any:
        names.append(folder.name)
        before(folder)
        return original(folder, wants)

    monkeypatch.setattr(frozen, "read", read)
    return names


def test_a_run_is_followed_to_its_end(followed: Path) -> None:
    assert saved(followed) == {5, 10}
    assert written(followed) == NAMES
    content = [json.loads((followed / "evaluations" / name).read_text()) for name in NAMES]
    assert [own["checkpoint"] for own in content] == ["step_00000005", "step_00000010"]
    assert content[0]["numbers"] != content[1]["numbers"]


def test_nothing_is_evaluated_twice(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = reading(monkeypatch, lambda folder: None)
    for _ in range(2):
        assert evaluate.main([f"run={run}", "watch=all", *MEASURE]) == 0
    assert names == ["step_00000005", "step_00000010"]
    assert written(run) == NAMES


def without_a_rank_file(folder: Path) -> None:
    next(folder.glob("rank_*")).unlink()


def without_a_table(folder: Path) -> None:
    (folder / "state.json").unlink()


@pytest.mark.parametrize("removed", [shutil.rmtree, without_a_rank_file, without_a_table])
def test_a_checkpoint_that_is_removed_meanwhile_is_passed_over(
    removed: Callable[[Path], Any], run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading(monkeypatch, lambda folder: removed(folder) if folder.name == "step_00000005" else None)
    assert evaluate.main([f"run={run}", "watch=all", *MEASURE]) == 0
    assert "step_00000005 is passed over: " in (text := capsys.readouterr().out)
    assert "has been removed, or a part of it" in text
    assert written(run) == NAMES[1:]


def test_the_latest_checkpoint_is_the_one_that_is_latest_when_it_is_read(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run saves step 10 and retires step 5 between the choice and the reading."""
    newer, kept = run / "checkpoints" / "step_00000010", run / "newer"
    newer.rename(kept)

    def save_and_retire(folder: Path) -> None:
        if kept.exists():
            kept.rename(newer)
            shutil.rmtree(folder)

    names = reading(monkeypatch, save_and_retire)
    assert evaluate.main([f"run={run}", *MEASURE]) == 0
    assert names == ["step_00000005", "step_00000010"]
    assert written(run) == NAMES[1:]
    reading(monkeypatch, shutil.rmtree)
    assert evaluate.main([f"run={run}", "checkpoint=10", *MEASURE, "branch=teacher"]) == 2
    assert "has been removed" in capsys.readouterr().out


def test_ctrl_c_leaves_whole_files_and_the_same_command_continues(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run goes on, so the command waits for more until it is interrupted."""
    ended(run, FAILED, again="a node was lost")
    later = run / "checkpoints" / "step_00000010"
    later.rename(run / "later")
    command = [sys.executable, str(PROJECT / "launch" / "evaluate.py"), f"run={run}", "watch=all", *MEASURE]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore Ctrl-C
    )
    await_that((run / "evaluations" / NAMES[0]).is_file, "the first evaluation")
    os.kill(process.pid, signal.SIGINT)
    text, _ = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 130, text
    assert "Interrupted" in text
    assert written(run) == NAMES[:1]
    (run / "later").rename(later)
    ended(run, FINISHED)
    capsys.readouterr()
    assert evaluate.main([f"run={run}", "watch=all", *MEASURE]) == 0
    assert "step_00000005" not in capsys.readouterr().out
    assert written(run) == NAMES


def test_an_interrupted_evaluation_writes_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    reading(monkeypatch, interrupt)
    assert evaluate.main([f"run={run}", *MEASURE]) == 130
    assert not (run / "evaluations").exists()


def watch(run: Path, kind: Any, lines: list[str]) -> Watch:
    return Watch(RunDir.open(run), Options(str(run), watch=kind), {}, lines.append)


def test_what_a_run_keeps_for_ever_and_its_last_checkpoint(run: Path) -> None:
    ended(run, FAILED)
    lines: list[str] = []
    kept = watch(run, "kept", lines)
    assert [kept.next(), kept.next()] == ["", ""]
    assert lines == ["Attempt 1 has ended (failed): waiting for the next one. Ctrl-C ends this."]
    (run / "checkpoints" / "step_00000005" / KEPT).touch()
    assert kept.next() == "step_00000005"
    kept.pass_over("step_00000005", "no reason")
    assert lines[1:] == ["step_00000005 is passed over: no reason"]
    assert kept.next() == ""
    ended(run, FINISHED)
    assert kept.next() == "step_00000010"
    path = run / "checkpoints" / "step_00000005" / "state.json"
    path.write_text(path.read_text().replace('"attempt": 1', '"attempt": 2'))
    kept.passed.clear()
    (run / "checkpoints" / "step_00000005" / KEPT).unlink()
    assert kept.next() == "step_00000005", "the later step is one of an earlier attempt"


def test_it_waits_while_there_is_a_next_attempt(run: Path) -> None:
    lines: list[str] = []
    follower = watch(run, "all", lines)
    for name in ("step_00000005", "step_00000010"):
        assert follower.next() == name
        follower.passed.add(name)
    assert follower.next() is None, "the run has finished"
    ended(run, STOPPED, again="preempted")
    assert follower.next() == ""
    (run / "attempts" / "0002").mkdir()
    assert follower.next() == "", "the next attempt has started"
    assert lines == []
