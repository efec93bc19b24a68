"""The table of runs: every run of a folder with its newest numbers, whoever owns it and whatever lies beside it."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from dist_ssl.checkpoint.folder_names import LATEST
from dist_ssl.config.command import Screen
from dist_ssl.runtime.end_names import FINISHED, REFUSED
from launch import run_lock, status
from launch.ending import Ending
from launch.run_dir import PROJECT, RunDir
from launch.run_files import write_yaml
from launch.run_state import RunState

NUMBERS = {
    "step": 620,
    "epoch": 10,
    "epochs": 24,
    "loss": 7.25961,
    "knn_accuracy": 0.5431,
    "images_per_second": 582.6,
    "seconds_left": 5400.0,
    "lost_steps": 3.0,
}


def made(folder: Path, ending: Ending | None = None, age: float = 40.0, numbers: dict[str, float] = NUMBERS) -> RunDir:
    """A run with one attempt, whose last report and checkpoint are this many seconds old."""
    run = RunDir(folder)
    attempt = run.new_attempt({})
    if ending:
        ending.write(attempt.folder / "outcome.json")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / LATEST).write_text("step_00000620\n")
    (folder / "status.json").write_text(json.dumps(numbers))
    for path in (folder / "checkpoints" / LATEST, folder / "status.json"):
        os.utime(path, (time.time() - age,) * 2)
    write_yaml(folder / "config.yaml", {"format": 1})
    return run


def shown(*arguments: str) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=status.WIDTH, soft_wrap=True)
    code = status.run([*arguments], console)
    assert isinstance(console.file, io.StringIO)
    return code, console.file.getvalue()


def test_a_row_holds_the_newest_numbers(tmp_path: Path) -> None:
    run = made(tmp_path / "mine")
    with run_lock.held(run.folder):
        found = RunState.of(run)
    now = (found.reported or 0.0) + 61
    assert status.cells(found, now) == [
        *("mine", "running", "10/24", "620", "7.26", "54.3 %", "583", "90 min", "61 s", "61 s", "1", "3")
    ]


def test_what_is_not_known_yet_is_a_dash(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "new")
    run.folder.mkdir()
    assert status.cells(RunState.of(run), 0.0) == ["new", "not started", *["-"] * 8, "0", "-"]


def test_no_time_is_left_of_a_run_that_has_ended(tmp_path: Path) -> None:
    found = RunState.of(made(tmp_path / "done", Ending(FINISHED)))
    assert status.cells(found, time.time())[status.HEADINGS.index("left")] == "-"


def test_runs_stand_in_the_order_of_their_reports_and_what_is_no_run_is_left_out(tmp_path: Path) -> None:
    made(tmp_path / "old", Ending(FINISHED), age=9000)
    made(tmp_path / "new", Ending(REFUSED, "The loss is nan.\nmore"), age=5)
    (tmp_path / "targets").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.yaml").write_text("[1, 2")
    code, text = shown(f"runs={tmp_path}")
    assert code == 0
    lines = text.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'broken'}: cannot be read: ")
    table = next(number for number, line in enumerate(lines) if line.startswith("run "))
    assert lines[table].split() == " ".join(status.HEADINGS).split()
    assert [line.split()[:2] for line in lines[table + 1 : table + 3]] == [["new", "refused"], ["old", "finished"]]
    assert lines[table + 3 :] == [f"{tmp_path / 'new'}: The loss is nan."]


def test_a_colleagues_run_is_shown_and_nothing_of_it_is_executed(tmp_path: Path) -> None:
    run, canary = made(tmp_path / "theirs", Ending(FINISHED)), tmp_path / "canary"
    for module in ("sitecustomize.py", "launch/__init__.py", "launch/status.py", "dist_ssl/__init__.py"):
        path = run.code / module
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"open({str(canary)!r}, 'w')")
    before = {path: path.stat().st_mtime_ns for path in sorted(run.folder.rglob("*"))}
    command = [sys.executable, "launch/status.py", f"runs={tmp_path}"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    assert "theirs" in done.stdout
    assert not canary.exists()
    assert before == {path: path.stat().st_mtime_ns for path in sorted(run.folder.rglob("*"))}


def test_commands_that_look_at_runs_do_not_wait_for_torch() -> None:
    code = "import sys, launch.status, launch.report; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["runs=/absent"], "There is no folder /absent."),
        (["run=/absent"], "/absent is not a run folder."),
        (["follow=true"], "One run is followed at a time."),
        (["run=/absent", "follow=perhaps"], "follow='perhaps' is not possible"),
        (["run=/absent", "follow=["], "follow='[' is not possible"),
        (["run=/absent", "runs=/"], "cannot be shown at once"),
        (["rums=x"], "There is no key 'rums'."),
    ],
)
def test_what_cannot_be_shown_is_said(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main(arguments) == 2
    assert said in capsys.readouterr().out


def test_a_followed_run_is_shown_until_it_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(tmp_path / "mine")
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        row = {"epoch": len(looks), "step": len(looks) * 62, "knn_accuracy": 0.25}
        with (run.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        if len(looks) == 3:
            Ending(FINISHED).write(run.folder / "attempts" / "0001" / "outcome.json")

    monkeypatch.setattr(status, "ASK_SECONDS", 0.0)
    monkeypatch.setattr(status.time, "sleep", sleep)
    code, text = shown(f"run={run.folder}", "follow=true")
    assert code == 0
    assert [line.split()[1] for line in text.splitlines() if line.startswith("epoch ")] == ["1", "2", "3"]
    assert text.splitlines()[-1].split()[:2] == ["mine", "finished"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("status.json", '{"step": "x"}'),
        ("status.json", "[" * 200_000),
        ("attempts/0001/outcome.json", '{"outcome": 5}'),
        ("attempts/0001/outcome.json", '{"outcome": "failed", "reason": 5}'),
        ("attempts/0001/outcome.json", '{"outcome": "\\u001b]52;c;aGk="}'),
        ("config.yaml", "- " * 3000),
        ("config.yaml", "format: !!int ''"),
        ("config.yaml", f"format: 0x{'f' * 9000}"),
        ("job", "1;evil 0"),
        ("job", ""),
    ],
)
def test_one_hostile_run_hides_no_other(tmp_path: Path, name: str, content: str) -> None:
    made(tmp_path / "good", Ending(FINISHED))
    made(tmp_path / "theirs", Ending(FINISHED))
    (tmp_path / "theirs" / name).write_text(content)
    file = io.StringIO()
    assert status.run([f"runs={tmp_path}"], Screen(file=file, width=status.WIDTH)) == 0
    lines = file.getvalue().splitlines()
    assert any(line.split()[:2] == ["good", "finished"] for line in lines)
    assert any("theirs" in line for line in lines)
    assert "\x1b" not in file.getvalue()


def test_a_config_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    run = made(tmp_path / "theirs", Ending(FINISHED))
    (run.folder / "config.yaml").unlink()
    os.mkfifo(run.folder / "config.yaml")
    assert "config.yaml is damaged" in shown(f"runs={tmp_path}")[1]


def test_the_name_of_a_folder_does_not_act_on_the_terminal(tmp_path: Path) -> None:
    made(tmp_path / "theirs", Ending(FINISHED)).folder.rename(tmp_path / "a\x1b[2J[bold]b")
    file = io.StringIO()
    assert status.run([f"runs={tmp_path}"], Screen(file=file, width=status.WIDTH)) == 0
    assert "a\\x1b[2J[bold]b" in file.getvalue()


def test_a_running_run_whose_numbers_are_none_is_shown_too(tmp_path: Path) -> None:
    run = made(tmp_path / "theirs")
    (run.folder / "status.json").write_text('{"step": 3, "seconds_left": null, "loss": "x"}')
    with run_lock.held(run.folder):
        assert status.cells(RunState.of(run), 0.0)[1:8] == ["running", "-/-", "3", "-", "-", "-", "-"]


def test_a_folder_without_runs_is_said(tmp_path: Path) -> None:
    assert shown(f"runs={tmp_path}") == (0, f"No runs are in {tmp_path}.\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    made(tmp_path / "closed", Ending(FINISHED)).folder.chmod(0o700)
    for folder in (tmp_path, *tmp_path.parents[:-1]):
        folder.chmod(folder.stat().st_mode | 0o055)
    os.seteuid(12345)
    try:
        _, text = shown(f"runs={tmp_path}")
    finally:
        os.seteuid(0)
    assert "closed: cannot be read: " in text


def test_ctrl_c_ends_the_watching_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(status.time, "sleep", interrupted)
    run = made(tmp_path / "mine")
    with run_lock.held(run.folder):
        assert shown(f"run={run.folder}", "follow=true") == (130, "Not watched any more; the run goes on.\n")
