"""What a batch script does after its tasks have ended: say how the attempt ended, and whether the job comes back.

    python -m launch.epilogue RUN_FOLDER ATTEMPT EXIT_CODE

A job that saved its work and left in order before it was preempted would count as completed, and never come back,
unless somebody requeues it. No rank does so: a rank cannot tell a preempted job from one that a person cancelled.
Slurm does not run these lines for a cancelled job, and its record says which jobs it wants to preempt.
"""

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from launch.ending import STOPPED, Ending, of_attempt
from launch.run_dir import AttemptDir, RunDir

COMMAND_SECONDS = 30
TIME_LIMIT = signal.SIGUSR2.name


def read_record(text: str) -> dict[str, str]:
    """What `scontrol show job` prints, as key -> value."""
    return dict(re.findall(r"(\S+?)=(\S*)", text))


def why_again(ending: Ending, record: dict[str, str]) -> str:
    """Why the job is to come back; empty where it is not."""
    if record.get("JobState") == "CANCELLED" or ending.outcome not in (STOPPED, "failed"):
        return ""
    if record.get("PreemptTime", "None") not in ("None", "N/A"):
        return "preempted"
    return "time limit" if ending.outcome == STOPPED and ending.signal == TIME_LIMIT else ""


def show(job: str) -> dict[str, str]:
    """Slurm's record of a job; empty where it cannot be had."""
    words = ("scontrol", "show", "job", job)
    done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    return read_record(done.stdout)


def requeue(job: str) -> str:
    """Queue the job again; Slurm's words where it refuses."""
    words = ("scontrol", "requeue", job)
    done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    return done.stderr.strip() or f"exit code {done.returncode}" if done.returncode else ""


def main(words: list[str]) -> int:
    """Run the command line; the exit code."""
    run, number, code = RunDir.open(Path(words[0])), int(words[1]), int(words[2])
    attempt, job = AttemptDir(run, number), os.environ["SLURM_JOB_ID"]
    config = attempt.config
    codes: list[int | None] = [code or None] * config["nodes"]
    ending = of_attempt(attempt, config["nodes"], config["ranks_per_node"], codes)
    why = why_again(ending, show(job))
    outcome = attempt.folder / "outcome.json"
    replace(ending, again=why).write(outcome)  # first: to be requeued is to be killed
    print(f"attempt {number}: {ending.outcome}{f', requeued ({why})' if why else ''}", flush=True)
    if why and (refusal := requeue(job)):
        print(f"Slurm refused to requeue job {job}: {refusal}", flush=True)
        replace(ending, reason=f"Slurm refused to requeue the job ({why}): {refusal}").write(outcome)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
