"""One command stands for every combination of its choices, and for nothing else."""

import io
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dist_ssl.errors import ConfigError
from launch import slurm
from launch.ending import STOPPED_CODE
from launch.run_dir import RunDir
from launch.sweep import expand, new_sweep


def test_without_a_choice_there_is_one_run() -> None:
    assert expand(["method=mocov3", "optim.betas=[0.9,0.95]"]) == [["method=mocov3", "optim.betas=[0.9,0.95]"]]


def test_every_combination_is_a_run_and_the_first_key_varies_slowest() -> None:
    runs = expand(["seed=0,1", "nodes=2", "epochs=choice(5,6)"])
    assert runs == [[f"seed={s}", "nodes=2", f"epochs={e}"] for s in (0, 1) for e in (5, 6)]


def test_a_named_sweep_numbers_its_runs() -> None:
    assert expand(["name=try", "seed=0,1"]) == [["name=try-1", "seed=0"], ["name=try-2", "seed=1"]]
    assert expand(["name=null", "seed=0,1"]) == [["name=null", "seed=0"], ["name=null", "seed=1"]]


def test_an_added_key_stays_added() -> None:
    assert expand(["+cluster.extra.reservation=a,b"]) == [[f"+cluster.extra.reservation={r}"] for r in "ab"]


def test_the_folder_of_a_sweeps_jobs_is_closed_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []
    monkeypatch.setattr(os, "removexattr", lambda place, name: removed.append(str(place)))
    before = os.umask(0)
    try:
        folder = new_sweep(tmp_path)
    finally:
        os.umask(before)
    assert not folder.stat().st_mode & 0o022
    assert removed == [str(folder)], "the default access list that it has inherited"


def test_a_word_without_a_value_is_named() -> None:
    with pytest.raises(ConfigError, match="'seed' is not of the form key=value"):
        expand(["seed"])


def test_a_sweep_on_this_machine_ends_with_the_run_that_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = {"a": 1, "b": STOPPED_CODE}

    def run_here(run: RunDir, *_: Any) -> int:
        return codes.pop(run.folder.name)

    monkeypatch.setattr(slurm, "run_here", run_here)
    console, config = Console(file=io.StringIO(), soft_wrap=True), {"cluster": {"kind": "local"}}
    assert slurm.go([(RunDir(tmp_path / name), config) for name in "abc"], [], console) == STOPPED_CODE
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert printed == (f"Not started: {tmp_path}/c. Start it with: python launch/slurm.py resume={tmp_path}/c\n")
