"""A run runs the code in its own folder, whatever the current folder holds."""

import subprocess
import sys
from pathlib import Path

import pytest

from launch.local import LocalAttempt
from launch.run_dir import AttemptDir, RunDir


def test_agents_run_the_code_of_the_run_folder_not_of_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "run")
    for place, mark in ((run.code, "own"), (tmp_path / "here", "other")):
        (place / "launch").mkdir(parents=True)
        (place / "launch" / "__init__.py").touch()
        (place / "launch" / "agent.py").write_text(f"print('{mark}')\n")
    monkeypatch.chdir(tmp_path / "here")
    attempt = AttemptDir(run, 1)
    (attempt.folder / "logs").mkdir(parents=True)
    assert LocalAttempt(attempt, 1, 1)._start(0).wait() == 0
    assert attempt.log("node_0000").read_text() == "own\n"
    here = subprocess.run([sys.executable, "-m", "launch.agent"], capture_output=True, text=True, check=True)
    assert here.stdout == "other\n", "without care the current folder would win"


def test_local_nodes_share_out_the_visible_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5,7")
    attempt = AttemptDir(RunDir(tmp_path), 1)
    assert LocalAttempt(attempt, 2, 2)._devices(1) == {"CUDA_VISIBLE_DEVICES": "5,7"}
    assert LocalAttempt(attempt, 4, 2)._devices(1) == {"CUDA_VISIBLE_DEVICES": ""}
