"""Watch a Slurm job from outside: its place in the queue, then its run, until the job has ended for good."""

import subprocess
import time

from rich.console import Console

from launch.ending import FAILED, STOPPED, Ending
from launch.progress_bar import RunView
from launch.run_dir import AttemptDir, RunDir

LOOK_SECONDS = 0.5
ASK_SECONDS = 5.0
"""Between questions to Slurm, which others ask too."""
COMMAND_SECONDS = 30
UNKNOWN_JOB = "Invalid job id"


def queue_state(job: str) -> str:
    """`PENDING (Resources)`, `RUNNING (n[1-4])`, ...; empty once the job has left the queue, `?` without an answer."""
    words = ("squeue", "--noheader", f"--jobs={job}", "--format=%T %R")
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return "?"
    if done.returncode:
        return "" if UNKNOWN_JOB in done.stderr else "?"
    return done.stdout.strip()


def final(run: RunDir, after: int) -> Ending | None:
    """How the newest attempt ended, where it is newer than `after` and its job does not come back."""
    newest = run.newest_attempt()
    ending = Ending.read(AttemptDir(run, newest).folder / "outcome.json") if newest > after else None
    return None if ending is None or ending.again else ending


def follow(run: RunDir, job: str, after: int, console: Console) -> Ending:
    """Show the run until its job has ended; attempts up to number `after` are history."""
    asked, gone = 0.0, False
    with RunView(run.folder, console) as view:
        while True:
            ending = final(run, after)
            if ending or gone:
                return ending or _lost(run, job, after)
            if time.monotonic() > asked + ASK_SECONDS:
                state, asked = queue_state(job), time.monotonic()
                view.queue(f"job {job}: {state.lower()}")
                gone = not state  # one more look: the epilogue may have written meanwhile
            view.refresh()
            time.sleep(LOOK_SECONDS)


def _lost(run: RunDir, job: str, after: int) -> Ending:
    """How a job ended that left no word: cancelled, or killed with its epilogue."""
    if run.newest_attempt() <= after:
        return Ending(STOPPED, f"Job {job} has left the queue before it began: it was cancelled.")
    log = run.folder / "slurm" / f"{job}_0_log.out"
    return Ending(FAILED, f"Job {job} has left the queue without a word: cancelled, or killed. Its log: {log}")
