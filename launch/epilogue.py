"""What a batch script does after its tasks have ended: say how the attempt ended, and whether the job comes back.

    python -m launch.epilogue RUN_FOLDER ATTEMPT EXIT_CODE

A job that saved its work and left in order before it was preempted would count as completed, and never come back,
unless somebody requeues it. No rank does so: a rank cannot tell a preempted job from one that a person cancelled.
Slurm does not run these lines for a cancelled job, and its record says which jobs it wants to preempt.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from dist_ssl.errors import EXIT_CODE
from launch import scheduler
from launch.ending import FAILED, STOPPED, Ending, of_attempt
from launch.run_dir import AttemptDir, RunDir

TIME_LIMIT = signal.SIGUSR2.name
TRIES, PAUSE_SECONDS = 5, 2.0
"""A scheduler that preempts many jobs at once is slow to answer, and a grace is short."""
T = TypeVar("T")


def own_job() -> str:
    """The id of this job. In an array SLURM_JOB_ID will not do: that of its last task stands for the whole array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def why_again(ending: Ending, record: dict[str, str], progressed: bool) -> str:
    """Why the job is to come back; empty where it is not. `progressed`: the attempt has saved something."""
    if record.get("JobState") == "CANCELLED" or ending.outcome not in (STOPPED, FAILED):
        return ""
    if record.get("PreemptTime", "None") not in ("None", "N/A"):
        return "preempted"
    out_of_time = ending.outcome == STOPPED and ending.signal == TIME_LIMIT
    return "time limit" if out_of_time and progressed else ""


def persist(ask: Callable[[], T], good: Callable[[T], bool]) -> T:
    """The first good answer, or the last."""
    for _ in range(TRIES - 1):
        answer = ask()
        if good(answer):
            return answer
        time.sleep(PAUSE_SECONDS)
    return ask()


def has_progressed(attempt: AttemptDir) -> bool:
    """Whether the attempt has saved: one that is stopped before it could do so would be stopped there for ever."""
    latest = attempt.run.folder / "checkpoints" / "LATEST"
    return latest.is_file() and latest.stat().st_mtime > attempt.config_file.stat().st_mtime


def main(words: list[str]) -> int:
    """Run the command line; the exit code."""
    run, number, code = RunDir.open(Path(words[0])), int(words[1]), int(words[2])
    attempt, job = AttemptDir(run, number), own_job()
    config, outcome = attempt.config, attempt.folder / "outcome.json"
    # srun's own errors end with the same code as an agent that refuses, but give no reason
    refused = code == EXIT_CODE and any(map(attempt.reason, range(config["nodes"] * config["ranks_per_node"])))
    codes: list[int | None] = [EXIT_CODE if refused else None] * config["nodes"]
    ending = of_attempt(attempt, config["nodes"], config["ranks_per_node"], codes, lambda node: run.job_log(job, node))
    record = persist(lambda: scheduler.record(job), lambda found: "JobState" in found)
    why = why_again(ending, record, has_progressed(attempt))
    replace(ending, again=why).write(outcome)  # first: to be requeued is to be killed
    print(f"attempt {number}: {ending.outcome}{f', requeued ({why})' if why else ''}", flush=True)
    if why and (refusal := persist(lambda: scheduler.requeue(job), lambda refusal: not refusal)):
        print(f"Slurm refused to requeue job {job}: {refusal}", flush=True)
        replace(ending, reason=f"Slurm refused to requeue the job ({why}): {refusal}").write(outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
