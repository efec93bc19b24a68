"""Slurm's commands: every call has a timeout, and none raises an exception."""

import re
import subprocess

COMMAND_SECONDS = 20
UNKNOWN_JOB = "Invalid job id"
NO_CLUSTER = "Could not establish a configuration source"
"""Part of the error message of Slurm's commands where they are installed but no cluster is configured."""
NO_ANSWER = "?"


def run(*command: str) -> tuple[int, str, str]:
    """Run a command; return its exit code (-1 if it is missing or does not answer), stdout and stderr."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except (subprocess.TimeoutExpired, FileNotFoundError) as error:
        return -1, "", str(error)
    return done.returncode, done.stdout, done.stderr


def queue_state(job: str) -> str:
    """Return a job's state, such as `PENDING (Resources)` or `RUNNING n[1-4]`.

    Empty once the job has left the queue; NO_ANSWER if Slurm does not answer.
    """
    code, said, complaints = run("squeue", "--noheader", f"--jobs={job}", "--format=%T %R")
    if code:
        return "" if UNKNOWN_JOB in complaints else NO_ANSWER
    return said.strip()


def read_record(text: str) -> dict[str, str]:
    """Parse what `scontrol show job` prints for one job: key -> value."""
    return dict(re.findall(r"(\S+?)=(\S*)", text))


def record(job: str) -> dict[str, str]:
    """Return Slurm's record of a job; empty if it is not available."""
    return read_record(run("scontrol", "show", "job", job)[1])


def requeue(job: str) -> str:
    """Requeue a job; return Slurm's error message, empty on success."""
    code, _, complaints = run("scontrol", "requeue", job)
    return complaints.strip() or f"exit code {code}" if code else ""


def hosts(nodes: str) -> list[str]:
    """Return the names of the nodes in Slurm's short form, `n[1-4]`, in order; none if Slurm does not answer."""
    return run("scontrol", "show", "hostnames", nodes)[1].split() if nodes else []


def nodes_of(partition: str) -> dict[str, str]:
    """Return the nodes of a partition that are free or in use: name -> what it has; none if Slurm does not answer."""
    words = ("--noheader", "--Node", f"--partition={partition}", "--states=idle,alloc,mix,comp,resv")
    lines = run("sinfo", *words, "--format=%N %f|%G|%c|%m")[1].splitlines()
    return {name: has for name, _, has in (line.partition(" ") for line in lines)}


def reserved(reservation: str) -> list[str]:
    """Return the names of the nodes of a reservation; none if Slurm does not answer."""
    return hosts(read_record(run("scontrol", "show", "reservation", reservation)[1]).get("Nodes", ""))


def exclude(job: str, nodes: list[str]) -> str:
    """Let a job that waits to start get all nodes but these; return Slurm's error message, empty on success."""
    code, _, complaints = run("scontrol", "update", f"JobId={job}", f"ExcNodeList={','.join(nodes)}")
    return complaints.strip() or f"exit code {code}" if code else ""


def is_configured() -> bool:
    """Return whether a cluster is configured, even if it does not answer now."""
    return NO_CLUSTER not in run("scontrol", "ping")[2]
