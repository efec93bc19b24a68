"""From a resolved config to a Slurm job, through submitit: one task per node, each of them an agent.

The batch script does three things: the prologue makes the attempt's folder, srun starts the agents, and the epilogue,
which a cancelled job does not reach, decides whether the job is to come back. State is found from the run folder,
never from a pickle: submitit carries nothing but the folder's name.
"""

import contextlib
import io
import shlex
import sys
from pathlib import Path
from typing import Any

import submitit
from submitit.slurm.slurm import SlurmExecutor

from dist_ssl.config.durations import Duration
from dist_ssl.errors import ConfigError
from launch.agent import on_slurm
from launch.variables import ATTEMPT, RUN

FROM_CLUSTER = ("partition", "account", "qos", "gpus_per_node", "cpus_per_task", "mem", "constraint", "exclude")


class Sbatch(SlurmExecutor):  # type: ignore[misc]  # submitit has no types
    """submitit's executor, which also writes its batch file where there is no Slurm."""

    @classmethod
    def affinity(cls) -> int:
        """Always to be had."""
        return 1


def executor(config: dict[str, Any], folder: Path, name: str, run_line: str) -> Sbatch:
    """What submits jobs of this config; `folder` keeps their files, `run_line` of shell sets the run folder."""
    cluster = config["cluster"]
    found = Sbatch(folder)
    python = f"{shlex.quote(sys.executable)} -m"
    own = {key: cluster[key] for key in FROM_CLUSTER if cluster[key] is not None}
    options: dict[str, Any] = {
        **own,
        "job_name": name,
        "nodes": config["nodes"],
        "ntasks_per_node": 1,
        "time": max(1, round(seconds(cluster, "time") / 60)) if cluster["time"] is not None else None,
        "signal_delay_s": round(seconds(cluster, "stop_ahead")),
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={cluster['cpus_per_task'] or 1}"],
        "setup": [*cluster["setup"], *_before(python, run_line)],
        "teardown": _after(python),
        "stderr_to_stdout": True,
        "wckey": None,
        "additional_parameters": {"requeue": True, **cluster["extra"]},
    }
    found.update_parameters(**options)
    return found


def check(cluster: dict[str, Any]) -> None:
    """Raise ConfigError where the options of a cluster cannot be."""
    gpus(cluster)
    cpus = cluster["cpus_per_task"]
    if cpus is not None and (not isinstance(cpus, int) or cpus < 1):
        raise ConfigError(f"cluster.cpus_per_task={cpus} is not possible.", "It is a number of at least 1.")
    if not isinstance(cluster["setup"], list):
        raise ConfigError(f"cluster.setup={cluster['setup']} is no list.", "cluster.setup='[module load cuda]', say.")
    ahead = seconds(cluster, "stop_ahead")
    if cluster["time"] is not None and seconds(cluster, "time") <= ahead:
        raise ConfigError(
            f"cluster.time={cluster['time']} is over before anything is trained: the ranks are told to stop"
            f" {cluster['stop_ahead']} ahead.",
            "Raise cluster.time, or lower cluster.stop_ahead.",
        )


def gpus(cluster: dict[str, Any]) -> int:
    """GPUs per node: of 8, of `a100:4`, or 0. Raises ConfigError."""
    asked = str(cluster["gpus_per_node"] or 0)
    number = asked.rpartition(":")[2]
    if not number.isdigit():
        raise ConfigError(f"cluster.gpus_per_node={asked} names no number.", "Write 8 or a100:8, say.")
    return int(number)


def seconds(cluster: dict[str, Any], key: str) -> float:
    """A duration of the cluster's options. Raises ConfigError where it is not measured by a clock."""
    duration = Duration.parse(cluster[key])
    if not duration.timed:
        raise ConfigError(f"cluster.{key}={cluster[key]} is not a time.", f"cluster.{key}='2 hours', say.")
    return duration.amount


def _before(python: str, run_line: str) -> list[str]:
    """Lines before srun: the run's own code, never the current folder's, and a new attempt at every start."""
    return [
        run_line,
        f"export PYTHONSAFEPATH=1 PYTHONPATH=${RUN}/code${{PYTHONPATH:+:$PYTHONPATH}}",
        f'{ATTEMPT}=$({python} launch.prologue "${RUN}") || exit $?',
        f"export {ATTEMPT}",
    ]


def _after(python: str) -> list[str]:
    """Lines after srun."""
    return ["code=$?", f'{python} launch.epilogue "${RUN}" "${ATTEMPT}" "$code"', "exit $code", ""]


def one(config: dict[str, Any], run: Path) -> Sbatch:
    """What submits the job of one run."""
    return executor(config, run / "slurm", run.name, f"export {RUN}={shlex.quote(str(run))}")


def text(found: Sbatch) -> str:
    """The batch file."""
    return str(found._make_submission_file_text(found._submitit_command_str, "dry-run"))


def submit(found: Sbatch, runs: list[Path]) -> list[str]:
    """Submit a job per run; their ids. Raises ConfigError with the words of sbatch where it refuses."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            if len(runs) == 1:
                return [str(found.submit(on_slurm, str(runs[0])).job_id)]
            with found.batch():
                jobs = [found.submit(on_slurm, str(run)) for run in runs]
            return [str(job.job_id) for job in jobs]
    except submitit.core.utils.FailedJobError as error:
        words = " ".join(said.getvalue().split()) or "it gave no reason"
        raise ConfigError(
            f"sbatch refused the job: {words}",
            "The options are cluster.partition, cluster.time and so on; dry_run=true prints the batch file.",
        ) from error


def array(config: dict[str, Any], folder: Path, runs: list[Path]) -> Sbatch:
    """What submits the jobs of several runs as one array; `folder` keeps its files."""
    listed = folder / "runs.txt"
    listed.write_text("".join(f"{run}\n" for run in runs))
    for run in runs:
        (run / "slurm").symlink_to(folder)
    line = f'export {RUN}=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {shlex.quote(str(listed))})'
    return executor(config, folder, folder.name, line)
