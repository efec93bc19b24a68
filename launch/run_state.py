"""The state of a run and its newest numbers, read from its folder; nothing of its code is executed."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from dist_ssl.checkpoint.folder_names import LATEST
from dist_ssl.runtime.end_names import LOST, OUT_OF_TIME, PREEMPTED, STOPPED
from launch import run_lock, scheduler
from launch.charts import duration
from launch.ending import Ending
from launch.run_dir import AttemptDir, RunDir
from launch.run_files import read_numbers

NOT_STARTED, QUEUED, RUNNING, KILLED, SILENT = "not started", "queued", "running", "killed", "silent"
"""States beside how an attempt ended and, while its job waits to start again, why that was requeued."""
GOING = (QUEUED, RUNNING, PREEMPTED, OUT_OF_TIME, LOST)
"""States after which more comes without anybody's doing."""
AT_WORK = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED")
"""States in which Slurm has given a job its nodes."""
SILENT_SECONDS = 600.0
"""A run that nobody can be asked about counts as running for this long after its last report."""


@dataclass(frozen=True)
class RunState:
    """The state of a run, why it is in it, and its newest numbers."""

    run: RunDir
    state: str
    why: str
    """One line; may be empty."""
    numbers: Mapping[str, float]
    """The keys of status.json that hold numbers; empty before the first report."""
    reported: float | None
    """When these were written, in seconds since 1970."""
    saved: float | None
    """When the newest checkpoint was published, in seconds since 1970."""

    @classmethod
    def of(cls, run: RunDir) -> "RunState":
        """Read the state of a run. Raises ConfigError, OSError."""
        status, latest = run.status, run.checkpoints / LATEST
        reported, saved = (path.stat().st_mtime if path.is_file() else None for path in (status, latest))
        state, why = state_of(run, reported)
        return cls(run, state, why, read_numbers(status), reported, saved)


def state_of(run: RunDir, reported: float | None) -> tuple[str, str]:
    """Return the state of a run, and why it is in it. `reported`: time of its last report, in seconds since 1970."""
    (job, before), held = run.job, run_lock.is_held(run.folder)
    attempt = newest_started(run)
    started = attempt is not None and attempt.number > before
    ending = Ending.read(attempt.outcome_file) if attempt and started else None
    if held and not ending:
        return RUNNING, ""  # here, whatever became of an earlier job
    if ending and not ending.again:
        return ending.outcome, ending.reason.partition("\n")[0]
    if job and not (attempt and started and is_local(attempt)):
        return _state_of_job(job, scheduler.queue_state(job), ending, started)
    if not started:
        return NOT_STARTED, ""
    if held is False:
        return KILLED, "its launcher has ended without a report"
    if reported is not None and time.time() - reported < SILENT_SECONDS:
        return RUNNING, ""
    return SILENT, f"its last report is {duration(time.time() - reported)} old" if reported else "it never reported"


def is_local(attempt: AttemptDir) -> bool:
    """Return whether an attempt was started without a job of its own, as its config says."""
    cluster = attempt.config.get("cluster")
    return isinstance(cluster, dict) and cluster.get("kind") in ("local", "allocation", "torchrun")


def newest_started(run: RunDir) -> AttemptDir | None:
    """Return the newest attempt that has a config: a kill may leave one without, and a fork begins with one."""
    found = (AttemptDir(run, number) for number in sorted(run.attempts(), reverse=True))
    return next((attempt for attempt in found if attempt.config_file.is_file()), None)


def _state_of_job(job: str, queue: str, ending: Ending | None, started: bool) -> tuple[str, str]:
    """Return the state of a run whose job is in this state of the queue; `ending`: how an attempt was requeued."""
    place = f"job {job}: {queue.lower()}"
    if queue.startswith(AT_WORK):
        return RUNNING, place
    if queue and queue != scheduler.NO_ANSWER:
        return (ending.again if ending else QUEUED), place
    if queue:
        unknown = RUNNING if started else QUEUED
        return (ending.again if ending else unknown), f"Slurm does not answer about job {job}"
    if ending:
        return STOPPED, f"job {job} was cancelled while it waited to start again"
    return (KILLED, f"job {job} ended without a report") if started else (STOPPED, f"job {job} never started")
