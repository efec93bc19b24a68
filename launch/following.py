"""Follows a Slurm job from outside: shows its state in the queue, then its run, until the job has finally ended."""

import time

from rich.console import Console

from dist_ssl.runtime.end_names import FAILED, STOPPED
from launch import scheduler
from launch.ending import Ending, last_line
from launch.progress_bar import RunView
from launch.run_dir import AttemptDir, RunDir

LOOK_SECONDS = 0.5
ASK_SECONDS = 5.0
"""Seconds between requests to Slurm, which serves other users too."""
LATE_SECONDS = 20.0
"""How long a shared file system may take to show the last files of a job that has ended."""


def final(run: RunDir, after: int) -> Ending | None:
    """Return how the newest attempt ended; None if its number is not above `after`, it runs, or it was requeued."""
    newest = run.newest_attempt()
    ending = Ending.read(AttemptDir(run, newest).outcome_file) if newest > after else None
    return None if ending is None or ending.again else ending


def follow(run: RunDir, console: Console) -> Ending:
    """Show the run until its newest job has ended, and return how; attempts of earlier jobs are ignored."""
    job, after = run.job
    asked, gone_at = float("-inf"), float("inf")
    with RunView(run.folder, console) as view:
        while True:
            ending = final(run, after)
            if time.monotonic() > asked + ASK_SECONDS or ending:
                state, asked = scheduler.queue_state(job), time.monotonic()
                view.queue(f"job {job}", state)
                gone_at = min(gone_at, time.monotonic()) if not state else float("inf")
            gone = time.monotonic() >= gone_at
            if gone and not ending and (_cancelled(job) or time.monotonic() > gone_at + LATE_SECONDS):
                return _without_report(run, job, after)
            view.refresh()
            if gone and ending:
                return ending
            time.sleep(LOOK_SECONDS)


def _cancelled(job: str) -> bool:
    return scheduler.record(job).get("JobState") == "CANCELLED"


def _without_report(run: RunDir, job: str, after: int) -> Ending:
    """Return how a job without a report ended: cancelled, or its batch script failed or never ran."""
    log = run.job_log(job, 0)
    if _cancelled(job):
        return Ending(STOPPED, f"Job {job} was cancelled: a resume continues from the last checkpoint.")
    if run.newest_attempt() <= after and not log.is_file():
        return Ending(STOPPED, f"Job {job} left the queue before it started: it was cancelled.")
    return Ending(FAILED, f"Job {job} ended without a report{last_line(log)}\n  Its log: {log}")
