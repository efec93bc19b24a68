"""CONTRIBUTING.md shows all that a new method takes: one file and one config."""

import json
import re
import shutil
from pathlib import Path

import pytest

import dist_ssl.methods
from dist_ssl.build import check
from dist_ssl.distributed.world import World
from launch import settings
from launch.run_dir import PROJECT
from tests.jobs import finished, small_job

BLOCK = re.compile(r"`(?P<path>[\w/.]+)`:\n\n```\w+\n(?P<text>.*?)```", re.DOTALL)
WORDS = ["method=uniform", "batch_size=12", "lanes=12", "epochs=4", "schedule.warmup=1 step", "optim.base_lr=0.03"]
QUIET = ["log_every=1 step", "save_every=1 hour", "probe.every=9 epochs", "threads=1", "decode_threads=1"]


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that CONTRIBUTING.md shows, beside the package and in a copy of the config tree; the folder of both."""
    shutil.copytree(PROJECT / "configs", tmp_path / "configs")
    shown = BLOCK.findall((PROJECT / "CONTRIBUTING.md").read_text())
    assert [path for path, _ in shown] == ["dist_ssl/methods/uniform.py", "configs/method/uniform.yaml"]
    for path, text in shown:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    own = [*dist_ssl.methods.__path__, str(tmp_path / "dist_ssl" / "methods")]
    monkeypatch.setattr(dist_ssl.methods, "__path__", own)
    return tmp_path


def test_the_method_that_is_shown_trains(added: Path, demo_shards: Path) -> None:
    words = [*WORDS, *QUIET, f"data.path={demo_shards}", "data.source=null"]
    config = settings.compose(words, added / "configs")
    check(config, ranks=4)
    job = small_job(World(), config, added / "run")
    assert type(job.engine.method).__name__ == "Uniform"
    assert finished(job)
    reports = [json.loads(line) for line in (added / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [report["loss"] for report in reports if "loss" in report]
    assert len(losses) == 20
    assert sum(losses[-5:]) < sum(losses[:5])
