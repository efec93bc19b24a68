"""The batch file of the user's literal command, as a person agreed to it."""

import sys
from pathlib import Path

import pytest

from launch import preparation, settings, submission
from launch.run_dir import PROJECT
from tests.golden.agreed import agree

WORDS = [
    "method=mocov3",
    "nodes=4",
    "cluster=slurm",
    "cluster.partition=gpu",
    "cluster.gpus_per_node=8",
    "cluster.cpus_per_task=64",
    "cluster.mem=480G",
    "cluster.time=24 hours",
    "cluster.setup=[module load cuda]",
    "+cluster.extra.reservation=night",
]


def batch_file() -> str:
    config = settings.compose(WORDS, PROJECT / "configs")
    preparation.fill_in(config)
    found = submission.text(submission.one(config, Path("/shared/runs/mocov3-1121-0907")))
    return found.replace(sys.executable, "/env/bin/python")


@pytest.mark.golden
def test_the_batch_file_is_the_golden_one() -> None:
    agree(Path(__file__).with_name("sbatch.sh"), batch_file())
