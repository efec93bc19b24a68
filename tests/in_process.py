"""Commands in the process of a test: a launcher whose attempts are trained here, by one rank, in tenths of a second.

Nothing else is other than it is for a user: words, checks, run folder, training, checkpoints, encoder, exit code.
"""

import signal

import pytest
from rich.console import Console

from dist_ssl.build import Place, build
from dist_ssl.distributed.world import World
from dist_ssl.runtime.end_names import FINISHED, STOPPED
from dist_ssl.runtime.signals import Signals
from dist_ssl.train import Outcome, train
from launch import slurm
from launch.ending import Ending
from launch.run_dir import AttemptDir
from launch.worker import write_encoder


class AttemptHere:
    """An attempt that this process trains as the only rank; with `stopped`, one that is asked to stop at once."""

    stopped = False

    def __init__(self, attempt: AttemptDir, nodes: int, ranks_per_node: int) -> None:
        self.attempt = attempt

    def run(self, console: Console) -> Ending:
        """Train, and return how it ended."""
        signals = Signals(signal.SIGTERM, 1) if self.stopped else Signals()
        outcome = trained(self.attempt, signals)
        ending = Ending(FINISHED if outcome is Outcome.FINISHED else STOPPED)
        ending.write(self.attempt.outcome_file)
        return ending


class AttemptCutShort(AttemptHere):
    """An attempt that is asked to stop at its first step."""

    stopped = True


def trained(attempt: AttemptDir, signals: Signals) -> Outcome:
    """Train an attempt in this process; return its outcome."""
    place = Place(attempt.run.folder, attempt.number, lambda: True, {})
    job = build(attempt.config, World(), signals, place)
    try:
        outcome = train(job)
    finally:
        job.checkpoint.close()
    job.agreement.drain()
    job.meter.close()
    job.ledger.close()
    job.contents.close()
    job.stream.close()
    if outcome is Outcome.FINISHED:
        write_encoder(attempt)
    return outcome


def here(monkeypatch: pytest.MonkeyPatch, kind: type[AttemptHere] = AttemptHere) -> None:
    """Let the launcher of this process train here."""
    monkeypatch.setattr(slurm, "LocalAttempt", kind)
