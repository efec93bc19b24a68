"""The batch file of the user's literal command, as a person agreed to it."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from submitit.core.job_environment import JobEnvironment

from dist_ssl.errors import ConfigError
from launch import preparation, settings, submission
from launch.run_dir import PROJECT
from launch.variables import RUN
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


def batch_file(*more: str) -> str:
    config = settings.compose([*WORDS, *more], PROJECT / "configs")
    preparation.fill_in(config)
    found = submission.text(submission.one(config, Path("/shared/runs/mocov3-1121-0907")))
    return found.replace(sys.executable, "/env/bin/python")


@pytest.mark.golden
def test_the_batch_file_is_the_golden_one() -> None:
    agree(Path(__file__).with_name("sbatch.sh"), batch_file())


def test_agents_may_run_in_a_container_and_the_rest_of_the_job_outside() -> None:
    python = "apptainer exec --nv image.sif python"
    found = batch_file(f"cluster.python='{python}'", "cluster.srun_args=['--cpu-bind=none','--container-name=a b']")
    [line] = [line for line in found.splitlines() if line.startswith("srun --")]
    assert line.endswith(f"{python} -u -m submitit.core._submit /shared/runs/mocov3-1121-0907/slurm")
    assert " --cpu-bind=none '--container-name=a b' " in line
    assert "/env/bin/python -m launch.prologue" in found
    assert "/env/bin/python -m launch.epilogue" in found


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("cluster.srun_args=--label", "cluster.srun_args=--label is not a list of options of srun"),
        ("cluster.srun_args=[label]", r"cluster.srun_args=\['label'\] is not a list"),
        ("cluster.srun_args=[3]", r"cluster.srun_args=\[3\] is not a list"),
        ("cluster.python=''", "cluster.python='' is not the start of a command"),
        ("cluster.python=3", "cluster.python=3 is not the start of a command"),
    ],
)
def test_words_that_srun_could_not_use_are_refused(word: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        submission.check(settings.compose([*WORDS, word], PROJECT / "configs")["cluster"])


def test_tasks_are_not_confined_where_no_number_of_cores_was_given() -> None:
    assert "cpus-per-task" not in batch_file("cluster.cpus_per_task=null")


def test_an_allocation_around_the_command_does_not_change_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = batch_file()
    monkeypatch.setattr(JobEnvironment, "USR_SIG", "USR1")  # as SUBMITIT_PREEMPT_SIGNAL sets it
    for name in ("SLURM_NTASKS", "SLURM_CPUS_PER_TASK", "SBATCH_TIMELIMIT"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    monkeypatch.setenv("SBATCH_ACCOUNT", "vision")
    assert batch_file() == plain
    with submission.own_environment():
        inside = {name for name in os.environ if name.startswith(submission.HIDDEN)}
    assert inside == {"SLURM_CONF", "SBATCH_ACCOUNT"}
    assert os.environ["SLURM_NTASKS"] == "7"


class Recorder:
    """An executor that keeps the environment in which a job is submitted."""

    def submit(self, *_: object) -> SimpleNamespace:
        self.environment = dict(os.environ)
        return SimpleNamespace(job_id=5)


def test_a_job_is_submitted_without_the_allocation_around_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "7")
    recorder: Any = Recorder()
    assert submission.submit(recorder, [tmp_path]) == ["5"]
    assert "SLURM_NTASKS" not in recorder.environment
    assert os.environ["SLURM_NTASKS"] == "7"


def test_a_folder_whose_name_sbatch_would_change_is_refused() -> None:
    config = settings.compose(WORDS, PROJECT / "configs")
    preparation.fill_in(config)
    with pytest.raises(ConfigError, match="cannot log to /shared/runs/lr%j/slurm: sbatch replaces a %"):
        submission.one(config, Path("/shared/runs/lr%j"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("place", [None, ".", "code", "code/dist_ssl", "code/launch", "slurm"])
def test_a_job_does_not_run_what_another_user_has_put_in_the_place_of_its_run(
    place: str | None, tmp_path: Path
) -> None:
    for folder in ("code/dist_ssl", "code/launch", "slurm"):
        (tmp_path / folder).mkdir(parents=True)
    if place:
        os.chown(tmp_path / place, 12345, 12345)
    [guard] = [line for line in batch_file().splitlines() if "[ -O " in line]
    script = f"export {RUN}={tmp_path}\n{guard}\necho goes on"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    if place:
        refusal = f"{tmp_path / place} is not yours any more: another user has replaced it.\n"
        assert (done.returncode, done.stdout) == (2, refusal)
    else:
        assert done.stdout == "goes on\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_the_job_of_a_run_that_is_trusted_though_it_is_of_somebody_else_has_no_such_guard(tmp_path: Path) -> None:
    config = settings.compose(WORDS, PROJECT / "configs")
    preparation.fill_in(config)
    assert "[ -O " in submission.text(submission.one(config, tmp_path))
    os.chown(tmp_path, 12345, 12345)
    assert "[ -O " not in submission.text(submission.one(config, tmp_path))
