"""An attempt in an allocation that a person already has (salloc): srun starts an agent on each of its nodes.

The launcher stays in the foreground as with local processes: progress bar, Ctrl-C, exit codes. Nothing is submitted and
nothing is requeued; when the allocation ends, the run resumes from its last checkpoint in another one.
"""

import contextlib
import ctypes
import os
import re
import shlex
import subprocess
import sys
from typing import Any

from dist_ssl.errors import ConfigError
from dist_ssl.runtime.signals import Signals
from launch import scheduler
from launch.agent import IN_ALLOCATION, STOP_IN_ALLOCATION
from launch.local import LocalAttempt
from launch.progress_bar import RunView
from launch.run_dir import AttemptDir
from launch.variables import PARENT

JOB, NODES = "SLURM_JOB_ID", "SLURM_JOB_NUM_NODES"
CORES = ("SLURM_JOB_CPUS_PER_NODE", "SLURM_CPUS_ON_NODE")
"""Cores of every node of the allocation, `72(x2),36`, and of this node. salloc's own shell has the first only."""
GPUS = ("SLURM_GPUS_PER_NODE", "SLURM_GPUS_ON_NODE")
"""GPUs per node, `8` or `a100:8`, where they were requested so, and those of this node. salloc's own shell lacks both
where they were requested by --gres."""
GPUS_OF_JOB = re.compile(r"gres[:/]gpu(?:[:=][^,:=()]*[^,:=()0-9][^,:=()]*)?[:=]([0-9]+)")
"""A number of GPUs in Slurm's record of a job: `gres/gpu:8`, `gres:gpu:a100:8`, `gres/gpu=16`."""
KILL_SECONDS = 15.0
"""Time for the agents to kill all ranks and to end, before srun is given up."""
PARENT_DIED = 1
"""prctl's PR_SET_PDEATHSIG."""


def fit(config: dict[str, Any]) -> None:
    """Set the cores and GPUs per node that the user did not to those of the allocation.

    Raises ConfigError without one large enough; a dry run needs none.
    """
    if not (job := os.environ.get(JOB)):
        if config["dry_run"]:
            return
        raise ConfigError(
            "cluster=allocation is not possible: this shell is in no allocation of Slurm.",
            "Get one with salloc --nodes=2, or write cluster=slurm to submit a job.",
        )
    have = int(os.environ.get(NODES, "1"))
    if isinstance(config["nodes"], int) and config["nodes"] > have:
        raise ConfigError(f"nodes={config['nodes']} is more than the {have} of this allocation.", f"Set nodes={have}.")
    cluster = config["cluster"]
    if cluster["cpus_per_task"] is None:
        cluster["cpus_per_task"] = _cores()
    if cluster["gpus_per_node"] is None:
        cluster["gpus_per_node"] = _variable(GPUS) or _gpus_of_job(scheduler.record(job), have)


def _variable(names: tuple[str, ...]) -> str | None:
    """Return the value of the first of these variables that has one."""
    return next((value for name in names if (value := os.environ.get(name))), None)


def _cores() -> int | None:
    """Return the cores of the allocation's smallest node; None where Slurm does not say."""
    numbers = re.findall(r"(?:^|,)([0-9]+)", _variable(CORES) or "")
    return min(map(int, numbers), default=None)


def _gpus_of_job(record: dict[str, str], nodes: int) -> int | None:
    """Return the GPUs per node in Slurm's record of the allocation; None where it has none."""
    if found := GPUS_OF_JOB.search(record.get("TresPerNode", "")):
        return int(found[1])
    found = GPUS_OF_JOB.search(record.get("AllocTRES") or record.get("TRES", ""))
    return int(found[1]) // nodes if found else None


class AllocationAttempt(LocalAttempt):
    """One attempt whose agents run on the nodes of the allocation around this process."""

    STOP = STOP_IN_ALLOCATION

    def __init__(self, attempt: AttemptDir, nodes: int, ranks_per_node: int) -> None:
        super().__init__(attempt, nodes, ranks_per_node)
        self.cluster = attempt.config["cluster"]
        self.killed_on_request = False

    def _start_all(self) -> "list[subprocess.Popen[bytes]]":
        """Start srun, which starts the agents and ends with the worst of their exit codes."""
        environment = {**os.environ, "PYTHONPATH": self.attempt.run.python_path()}
        environment.pop(PARENT, None)  # an agent's parent is Slurm's daemon
        return [subprocess.Popen(self.command(), env=environment, start_new_session=True, preexec_fn=_end_with_parent)]

    def command(self) -> list[str]:
        """Return srun's command; each agent's log is that of its node in the attempt's folder."""
        folder, number = self.attempt.run.folder, self.attempt.number
        python = shlex.split(self.cluster["python"]) if self.cluster["python"] else [sys.executable]
        log = str(self._log(0)).replace("%", "%%").replace("node_0000", "node_%4n")
        return [
            *("srun", f"--nodes={self.nodes}", f"--ntasks={self.nodes}", "--ntasks-per-node=1"),
            *([f"--cpus-per-task={cpus}"] if (cpus := self.cluster["cpus_per_task"]) else []),
            *("--kill-on-bad-exit=1", "--unbuffered"),
            *("--open-mode=append", f"--output={log}", *self.cluster["srun_args"]),
            *(*python, "-P", "-m", "launch.agent", str(folder.resolve()), str(number)),
            *(IN_ALLOCATION, str(self.nodes), str(self.ranks_per_node)),
        ]

    def _codes(self) -> list[int | None]:
        """Return no exit code: srun has one for all agents, and those that lived have left a report."""
        return [None] * self.nodes

    def _report_for(self, node: int, code: int) -> None:
        """Write nothing: srun is none of the agents."""

    def _ask_to_stop(self, asked: int, view: RunView) -> None:
        unfailed = not self.attempt.failure.exists()
        self.killed_on_request |= asked > 1 and unfailed and any(srun.poll() is None for srun in self.agents)
        super()._ask_to_stop(asked, view)

    def _was_asked_for(self, signals: Signals) -> bool:
        """Return whether the second Ctrl-C has ended the ranks, and no failure before it: srun's code does not say."""
        return self.killed_on_request

    def _kill(self) -> None:
        """Let the agents kill their ranks; end srun where they do not."""
        for srun in self.agents:
            if srun.poll() is None:
                with contextlib.suppress(OSError):
                    self.attempt.failure.touch()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    srun.wait(KILL_SECONDS)
        super()._kill()


def _end_with_parent() -> None:
    """Let the kernel signal this process, a new srun, when the launcher has died: its ranks save and stop."""
    ctypes.CDLL(None).prctl(PARENT_DIED, int(STOP_IN_ALLOCATION))
