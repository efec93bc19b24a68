"""Questions to Slurm and orders for it: always with a limit of patience, never with an exception."""

import re
import subprocess

COMMAND_SECONDS = 20
UNKNOWN_JOB = "Invalid job id"
NO_CLUSTER = "Could not establish a configuration source"
"""What the commands of Slurm say where they are installed and no cluster is."""
NO_ANSWER = "?"


def run(*words: str) -> tuple[int, str, str]:
    """Exit code, output and complaints of a command; exit code -1 where it is not there or does not answer."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except (subprocess.TimeoutExpired, FileNotFoundError) as error:
        return -1, "", str(error)
    return done.returncode, done.stdout, done.stderr


def queue_state(job: str) -> str:
    """`PENDING (Resources)`, `RUNNING n[1-4]`, ...; empty once the job has left the queue, `?` without an answer."""
    code, said, complaints = run("squeue", "--noheader", f"--jobs={job}", "--format=%T %R")
    if code:
        return "" if UNKNOWN_JOB in complaints else NO_ANSWER
    return said.strip()


def read_record(text: str) -> dict[str, str]:
    """What `scontrol show job` prints of one job, as key -> value."""
    return dict(re.findall(r"(\S+?)=(\S*)", text))


def record(job: str) -> dict[str, str]:
    """Slurm's record of a job; empty where it cannot be had."""
    return read_record(run("scontrol", "show", "job", job)[1])


def requeue(job: str) -> str:
    """Queue the job again; Slurm's words where it refuses, empty where it obeys."""
    code, _, complaints = run("scontrol", "requeue", job)
    return complaints.strip() or f"exit code {code}" if code else ""


def is_configured() -> bool:
    """Whether there is a cluster; one that does not answer now is one."""
    return NO_CLUSTER not in run("scontrol", "ping")[2]
