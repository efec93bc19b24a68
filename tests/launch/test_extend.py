"""A cycle is appended to a finished run, once, and recorded; nothing else of the science may change."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dist_ssl.errors import ConfigError
from dist_ssl.runtime.end_names import FINISHED, STOPPED
from launch import preparation
from launch.ending import Ending
from launch.run_dir import RunDir
from tests.jobs import SMALL


def console() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture(scope="module")
def started(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of two epochs that has not been trained."""
    words = [*SMALL, "epochs=2", "nodes=1", "cluster=local", f"data.path={demo_shards}", "data.source=null"]
    words.append(f"runs={tmp_path_factory.mktemp('runs')}")
    return preparation.begin(words, preparation.new_config(words, console()))


def end(run: RunDir, config: dict[str, Any], outcome: str) -> None:
    """An attempt with this config that has ended."""
    Ending(outcome).write(run.new_attempt(config).folder / "outcome.json")


def test_a_cycle_is_appended_to_a_finished_run_alone_and_once(started: RunDir) -> None:
    run = started
    with pytest.raises(ConfigError, match="has not finished its 2 epochs: no cycle can be appended yet"):
        preparation.resume(["extend=3 epochs"], run.folder, console())
    end(run, run.config, STOPPED)
    with pytest.raises(ConfigError, match="has not finished its 2 epochs"):
        preparation.resume(["extend=3 epochs"], run.folder, console())
    end(run, run.config, FINISHED)
    assert preparation.trained(run, run.config)
    _, shown = preparation.resume(["extend=3 epochs", "dry_run=true"], run.folder, console())
    assert (shown["extend"], run.config["extend"]) == (["3 epochs"], [])
    _, config = preparation.resume(["extend=3 epochs", "save_every=9 steps"], run.folder, console())
    assert config["extend"] == run.config["extend"] == ["3 epochs"]
    assert config["save_every"] == "9 steps"
    assert not preparation.trained(run, config), "there is something left to train"
    with pytest.raises(ConfigError, match="has not finished its 5 epochs"):
        preparation.resume(["extend=3 epochs"], run.folder, console())
    _, again = preparation.resume([], run.folder, console())
    assert again["extend"] == ["3 epochs"]
    end(run, config, FINISHED)
    _, config = preparation.resume(["extend=[4 epochs, 2 epochs]"], run.folder, console())
    assert config["extend"] == ["3 epochs", "4 epochs", "2 epochs"]


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("extend=3 steps", "extend is in steps"),
        ("extend=3", "'3' is not a duration"),
        ("extend=1 epoch", "schedule.warmup=1 epoch is as long as cycle 2"),
        ("extend=", "'' is not a duration"),
        ("extend=[2 epochs", r"'\[2 epochs' is not a duration"),
        ("epochs=5", r"epochs=5 is not what the run began with \(2\)"),
    ],
)
def test_what_cannot_be_appended_is_refused(
    demo_shards: Path, tmp_path: Path, started: RunDir, word: str, problem: str
) -> None:
    config = {**started.config, "extend": []}
    run = RunDir.create(tmp_path, "other", "mocov3")
    run.begin({key: value for key, value in config.items() if key != "format"}, started.overrides)
    end(run, config, FINISHED)
    with pytest.raises(ConfigError, match=problem) as raised:
        preparation.resume([word], run.folder, console())
    assert "extend='24 epochs'" in raised.value.remedy or word != "epochs=5"
    assert run.config["extend"] == []
