"""Watch a Slurm job from outside: its place in the queue, then its run, until the job has ended for good."""

import time

from rich.console import Console

from launch import scheduler
from launch.ending import FAILED, STOPPED, Ending
from launch.progress_bar import RunView
from launch.run_dir import AttemptDir, RunDir

LOOK_SECONDS = 0.5
ASK_SECONDS = 5.0
"""Between questions to Slurm, which others ask too."""
LATE_SECONDS = 20.0
"""For which a shared file system may hide the last words of a job that has ended."""


def final(run: RunDir, after: int) -> Ending | None:
    """How the newest attempt ended, where it is newer than `after` and its job does not come back."""
    newest = run.newest_attempt()
    ending = Ending.read(AttemptDir(run, newest).folder / "outcome.json") if newest > after else None
    return None if ending is None or ending.again else ending


def follow(run: RunDir, console: Console) -> Ending:
    """Show the run until its newest job has ended; attempts of earlier jobs are history."""
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
                return _without_a_word(run, job, after)
            view.refresh()
            if gone and ending:
                return ending
            time.sleep(LOOK_SECONDS)


def _cancelled(job: str) -> bool:
    return scheduler.record(job).get("JobState") == "CANCELLED"


def _without_a_word(run: RunDir, job: str, after: int) -> Ending:
    """How a job ended that left no word: cancelled, or ended before or beside its own script."""
    log = run.job_log(job, 0)
    if _cancelled(job):
        return Ending(STOPPED, f"Job {job} was cancelled: the run goes on from its last checkpoint.")
    if run.newest_attempt() <= after and not log.is_file():
        return Ending(STOPPED, f"Job {job} has left the queue before it began: it was cancelled.")
    said = (
        [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.is_file() else []
    )
    last = f": {said[-1]}" if said else ""
    return Ending(FAILED, f"Job {job} ended without a report{last}\n  Its log: {log}")
