"""Submission of a resolved config as a Slurm job, through submitit: one task per node, which is the node's agent.

The batch script has three parts: the prologue makes the attempt's folder, srun starts the agents (and is ended if it
waits for a node that is dead), and the epilogue, which a cancelled job does not reach, decides whether to requeue the
job. All state comes from the run folder, none from a pickle: submitit passes on nothing but the folder's name.
"""

import contextlib
import io
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import submitit
from submitit.slurm.slurm import SlurmExecutor, SlurmJobEnvironment

from dist_ssl.errors import ConfigError
from dist_ssl.runtime.signals import TIME_LIMIT
from launch.agent import on_slurm
from launch.cluster_options import gpus, seconds
from launch.variables import ATTEMPT, RUN

FROM_CLUSTER = ("partition", "account", "qos", "gpus_per_node", "cpus_per_task", "mem", "constraint", "exclude")


STOP_SIGNAL = TIME_LIMIT.name.removeprefix("SIG")
HIDDEN = ("SLURM_", "SBATCH_", "SUBMITIT_")
KEPT = {
    *("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT"),
    *("SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_QOS", "SBATCH_RESERVATION", "SBATCH_CONSTRAINT", "SBATCH_CLUSTERS"),
}
"""Variables that say which cluster is meant and what the user may use there, not how a job is made."""


class Sbatch(SlurmExecutor):  # type: ignore[misc]  # submitit has no types
    """submitit's Slurm executor, made usable on machines without Slurm, for the text of the batch file."""

    @classmethod
    def affinity(cls) -> int:
        """Return 1: always available."""
        return 1


def executor(config: dict[str, Any], folder: Path, name: str, run_line: str, *, own: bool) -> Sbatch:
    """Return the executor that submits jobs of a config. Raises ConfigError where sbatch would not find the folder.

    `folder`: where batch files and logs go; `run_line`: the line of shell that sets the run folder's variable; `own`:
    the run folder belongs to this user.
    """
    if "%" in str(folder):
        raise ConfigError(
            f"A job cannot log to {folder}: sbatch replaces a % and what follows it in a path.",
            "Choose another name=... or runs=...",
        )
    cluster = config["cluster"]
    SlurmJobEnvironment.USR_SIG = STOP_SIGNAL  # a variable of the user's may have set another, which no rank listens to
    found = Sbatch(folder, python=cluster["python"])  # the agents'; prologue and epilogue need Slurm's commands
    python = f"{shlex.quote(sys.executable)} -m"
    given = {key: cluster[key] for key in FROM_CLUSTER if cluster[key] is not None}
    options: dict[str, Any] = {
        **given,
        "job_name": name,
        "nodes": config["nodes"],
        "ntasks_per_node": 1,
        "time": max(1, round(seconds(cluster, "time") / 60)) if cluster["time"] is not None else None,
        "signal_delay_s": round(seconds(cluster, "stop_ahead")),
        "srun_args": ["--kill-on-bad-exit=1", *_cores(cluster["cpus_per_task"]), *cluster["srun_args"]],
        "setup": [*cluster["setup"], *_before(python, run_line, own)],
        "teardown": _after(python),
        "stderr_to_stdout": True,
        "wckey": None,
        "additional_parameters": {"requeue": True, **cluster["extra"]},
    }
    found.update_parameters(**options)
    return found


def _cores(cpus: int | None) -> list[str]:
    """Return srun's option for the cores of a task, which it does not take over from the job; none: all of the job's.

    srun would confine a task to one core where it is given a number, so it is given none where the user gave none.
    """
    return [] if cpus is None else [f"--cpus-per-task={cpus}"]


def check(cluster: dict[str, Any]) -> None:
    """Raise ConfigError if an option of the cluster is not possible."""
    gpus(cluster)
    cpus = cluster["cpus_per_task"]
    if cpus is not None and (not isinstance(cpus, int) or cpus < 1):
        raise ConfigError(
            f"cluster.cpus_per_task={cpus} is not possible: it must be a whole number of at least 1.",
            "Set cluster.cpus_per_task=8, for example.",
        )
    if not isinstance(cluster["setup"], list):
        raise ConfigError(
            f"cluster.setup={cluster['setup']} is not a list of shell commands.",
            "Write cluster.setup='[module load cuda]', for example.",
        )
    options = cluster["srun_args"]
    if not isinstance(options, list) or not all(isinstance(own, str) and own.startswith("-") for own in options):
        raise ConfigError(
            f"cluster.srun_args={options} is not a list of options of srun.",
            "Write cluster.srun_args='[--cpu-bind=none,--container-image=/shared/image.sqsh]', for example.",
        )
    python = cluster["python"]
    if python is not None and not (isinstance(python, str) and python.strip()):
        raise ConfigError(
            f"cluster.python={python!r} is not the start of a command.",
            "Write cluster.python='apptainer exec --nv image.sif python', for example, or leave it out.",
        )
    stop_before = seconds(cluster, "stop_ahead")
    if cluster["time"] is not None and seconds(cluster, "time") <= stop_before:
        raise ConfigError(
            f"cluster.time={cluster['time']} leaves no time to train: the ranks are asked to stop"
            f" cluster.stop_ahead={cluster['stop_ahead']} before its end.",
            "Raise cluster.time, or lower cluster.stop_ahead.",
        )


def _same_owner() -> str:
    """Return the line of shell that ends a job whose run folder has been replaced by another user, who then owns it."""
    places = " ".join(f'"${RUN}{part}"' for part in ("", "/code", "/code/dist_ssl", "/code/launch", "/slurm"))
    refusal = 'echo "$path is not yours any more: another user has replaced it."; exit 2'
    return f'for path in {places}; do [ -O "$path" ] || {{ {refusal}; }}; done'


def _before(python: str, run_line: str, own: bool) -> list[str]:
    """Return the shell lines before srun: they select the run's code and make a new attempt at every start.

    `own`: the run folder is the user's.
    """
    return [
        run_line,
        *([_same_owner()] if own else []),
        f"export PYTHONSAFEPATH=1 PYTHONPATH=${RUN}/code${{PYTHONPATH:+:$PYTHONPATH}}",
        f'{ATTEMPT}=$({python} launch.prologue "${RUN}") || exit $?',
        f"export {ATTEMPT}",
        # the line that submitit writes calls this function: a dead node would keep srun itself for minutes
        f'srun() {{ command srun "$@" & local srun=$!; {python} launch.srun_guard "${RUN}" "${ATTEMPT}" "$srun" & '
        'local guard=$! code; wait "$srun"; code=$?; kill "$guard" 2>/dev/null; wait "$guard" 2>/dev/null; '
        "return $code; }",
    ]


def _after(python: str) -> list[str]:
    """Return the shell lines after srun."""
    return ["code=$?", f'{python} launch.epilogue "${RUN}" "${ATTEMPT}" "$code"', "exit $code", ""]


def one(config: dict[str, Any], run: Path) -> Sbatch:
    """Return the executor that submits the job of one run."""
    line = f"export {RUN}={shlex.quote(str(run))}"
    return executor(config, run / "slurm", run.name, line, own=_is_own(run))


def _is_own(run: Path) -> bool:
    """Return whether a run folder belongs to this user, as one does that is not made yet."""
    return not run.exists() or run.stat().st_uid == os.geteuid()


@contextlib.contextmanager
def own_environment() -> Iterator[None]:
    """Hide what an allocation or a user's own jobs have put into the environment, while a job is submitted.

    sbatch takes options from SBATCH_* before those of the batch file, and hands SLURM_* of an allocation around it to
    the job.
    """
    before = dict(os.environ)
    for name in before:
        if name.startswith(HIDDEN) and name not in KEPT:
            del os.environ[name]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def text(found: Sbatch) -> str:
    """Return the text of the batch file."""
    with own_environment():
        return str(found._make_submission_file_text(found._submitit_command_str, "dry-run"))


def submit(found: Sbatch, runs: list[Path]) -> list[str]:
    """Submit a job per run; return the job ids. Raises ConfigError with the message of sbatch if it refuses."""
    said = io.StringIO()
    try:
        with own_environment(), contextlib.redirect_stderr(said):
            if len(runs) == 1:
                return [str(found.submit(on_slurm, str(runs[0])).job_id)]
            with found.batch():
                jobs = [found.submit(on_slurm, str(run)) for run in runs]
            return [str(job.job_id) for job in jobs]
    except submitit.core.utils.FailedJobError as error:
        reason = " ".join(said.getvalue().split()) or "it gave no reason"
        raise ConfigError(
            f"sbatch refused the job: {reason}",
            "Correct cluster.partition, cluster.time or another option of cluster; dry_run=true prints the batch file.",
        ) from error


def array(config: dict[str, Any], folder: Path, runs: list[Path]) -> Sbatch:
    """Return the executor that submits the jobs of several runs as one array; its files go to `folder`."""
    listed = folder / "runs.txt"
    listed.write_text("".join(f"{run}\n" for run in runs))
    for run in runs:
        (run / "slurm").symlink_to(folder)
    line = f'export {RUN}=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {shlex.quote(str(listed))})'
    return executor(config, folder, folder.name, line, own=all(map(_is_own, runs)))
