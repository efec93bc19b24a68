"""Ends srun where a dead node keeps it: it waits for that node's tasks until Slurm notices, which takes minutes.

    python -m launch.srun_guard RUN_FOLDER ATTEMPT PID

The batch script starts it beside srun (`PID`). An agent whose ranks fail leaves a marker in the attempt's folder, and
all agents that are alive end soon after it. If srun still runs a minute later, it gets SIGTERM, so that the
epilogue can requeue the job.
"""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

from launch.run_dir import AttemptDir, RunDir

PATIENCE_SECONDS = 60.0
"""Time for srun to end after a failure: more than the agents take to end all workers."""
POLL_SECONDS = 2.0


def runs(process: int) -> bool:
    """Return whether a process of this user still runs."""
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


def guard(failure: Path, process: int) -> bool:
    """Wait until the process ends, or end it if it outlives a failure by too much; return whether it was ended."""
    deadline = float("inf")
    while runs(process):
        with contextlib.suppress(OSError):  # a file system that does not answer says nothing
            if deadline == float("inf") and failure.exists():
                deadline = time.monotonic() + PATIENCE_SECONDS
        if time.monotonic() > deadline:
            print("srun still waits for a node a minute after the failure: it is ended.", flush=True)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
            return True
        time.sleep(POLL_SECONDS)
    return False


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    attempt = AttemptDir(RunDir.open(Path(arguments[0])), int(arguments[1]))
    guard(attempt.failure, int(arguments[2]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
