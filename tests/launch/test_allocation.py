"""A run inside an allocation: what it takes from there, and how Ctrl-C ends it."""

import io
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dist_ssl.errors import ConfigError
from dist_ssl.runtime.end_names import FAILED, STOPPED
from dist_ssl.runtime.signals import Signals
from launch import allocation, local, preparation, scheduler, settings
from launch.allocation import AllocationAttempt
from launch.run_dir import PROJECT, RunDir

VARIABLES = (allocation.JOB, allocation.NODES, *allocation.CORES, *allocation.GPUS)
SALLOC = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_CPUS_PER_NODE": "72(x2)"}
"""What salloc's own shell has."""


def fitted(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], record: str, *words: str) -> tuple[Any, Any]:
    """The cores and GPUs per node of a config in a shell with these variables."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(scheduler, "record", lambda job: scheduler.read_record(record))
    config = settings.compose(["nodes=2", "cluster=allocation", *words], PROJECT / "configs")
    preparation.choose_cluster(config, Console(quiet=True))
    preparation.fill_in(config)
    return config["cluster"]["cpus_per_task"], config["ranks_per_node"]


@pytest.mark.parametrize(
    ("variables", "record", "words", "found"),
    [
        ({}, "", (), (72, 1)),
        ({"SLURM_JOB_CPUS_PER_NODE": "72(x1),36"}, "", (), (36, 1)),
        ({"SLURM_CPUS_ON_NODE": "9", "SLURM_GPUS_ON_NODE": "4"}, "", (), (72, 4)),
        ({"SLURM_GPUS_PER_NODE": "a100:8"}, "", (), (72, 8)),
        ({}, "TresPerNode=gres/gpu:8", (), (72, 8)),
        ({}, "TresPerNode=gres:gpu:a100:8", (), (72, 8)),
        ({}, "NumNodes=2 AllocTRES=cpu=144,node=2,gres/gpu=16,gres/gpu:a100=16", (), (72, 8)),
        ({}, "TRES=cpu=144,mem=8G,node=2,gres/gpu:a100=16", (), (72, 8)),
        ({}, "TRES=cpu=144,mem=8G,node=2", (), (72, 1)),
        ({"SLURM_GPUS_PER_NODE": "8"}, "", ("cluster.cpus_per_task=16", "cluster.gpus_per_node=4"), (16, 4)),
        ({"SLURM_GPUS_PER_NODE": "8"}, "", ("cluster.gpus_per_node=0",), (72, 1)),
    ],
)
def test_cores_and_gpus_are_those_of_the_allocation_unless_the_user_says_others(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], record: str, words: tuple[str, ...], found: Any
) -> None:
    assert fitted(monkeypatch, {**SALLOC, **variables}, record, *words) == found


def test_outside_an_allocation_a_job_can_be_submitted_instead_and_a_dry_run_needs_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ConfigError) as raised:
        fitted(monkeypatch, {}, "")
    assert "or write cluster=slurm to submit a job" in raised.value.remedy
    assert fitted(monkeypatch, {}, "", "dry_run=true") == (None, 1)


@pytest.mark.parametrize(("failed_before", "outcome"), [(False, STOPPED), (True, FAILED)])
def test_a_second_ctrl_c_is_no_failure_though_srun_ends_with_a_code_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failed_before: bool, outcome: str
) -> None:
    attempt = RunDir(tmp_path / "run").new_attempt({"cluster": {}, "metrics": {"textfile": None}})
    srun = f"while [ ! -e {attempt.failure} ]; do sleep 0.05; done; exit 1"
    if failed_before:
        attempt.failure.touch()

    def start(self: AllocationAttempt) -> "list[subprocess.Popen[bytes]]":
        return [subprocess.Popen(["sh", "-c", srun], start_new_session=True)]

    monkeypatch.setattr(AllocationAttempt, "_start_all", start)
    monkeypatch.setattr(local, "announce", lambda *_: None)
    monkeypatch.setattr(Signals, "listen", lambda self: Signals(signal.SIGINT, 2))
    assert AllocationAttempt(attempt, 1, 1).run(Console(file=io.StringIO())).outcome == outcome
