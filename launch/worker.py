"""One worker per rank: joins the world, builds the job, trains, and says by its exit code how that ended.

    python -m launch.worker RUN_FOLDER ATTEMPT

RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE come from the agent, or from torchrun. The worker listens to
signals before it loads torch, and dies with its parent: no rank is left behind on a node.
"""

import contextlib
import errno
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from dist_ssl.errors import EXIT_CODE, UserError
from dist_ssl.runtime.log_setup import open_journal
from dist_ssl.runtime.signals import Signals
from launch import credentials
from launch.ending import STOPPED_CODE
from launch.parent import alone
from launch.run_dir import AttemptDir, RunDir

WATCH_SECONDS = 0.5


def die_with_parent() -> None:
    """Kill this process as soon as the one that started it is gone."""

    def watch() -> None:
        while not alone():
            time.sleep(WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def train_attempt(attempt: AttemptDir, signals: Signals) -> int:
    """Train until the end or an agreed stop; the exit code."""
    import torch

    from dist_ssl.build import Place, build
    from dist_ssl.config.durations import Duration
    from dist_ssl.distributed.world import joined
    from dist_ssl.train import Outcome, train

    config = credentials.restored(attempt.config)
    torch.set_num_threads(config["threads"])
    torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    with joined(None if torchrun else attempt.meeting, Duration.parse(config["timeout"]).amount) as world:
        run = attempt.run
        place = Place(run.folder, attempt.number, lambda: run.newest_attempt() == attempt.number)
        job = build(config, world, signals, place)
        try:
            outcome = train(job)
        finally:
            job.checkpoint.close()
        job.agreement.drain()
        job.meter.close()
        job.ledger.close()
        job.stream.close()
    return 0 if outcome is Outcome.FINISHED else STOPPED_CODE


def explain(error: BaseException) -> UserError | None:
    """The error as something that a person can mend, where it is."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"The disk is full: {error}.", "Free some space, then resume the run: nothing is lost.")
    return None


def main(words: list[str]) -> int:
    """Run the worker that the command line describes."""
    signals = Signals().listen()
    die_with_parent()
    open_journal()
    attempt = AttemptDir(RunDir.open(Path(words[0])), int(words[1]))
    try:
        return train_attempt(attempt, signals)
    except Exception as error:
        known = explain(error)
        if known:
            attempt.give_reason(int(os.environ.get("RANK", "0")), str(known))
        with contextlib.suppress(OSError):  # the log may lie on a full disk
            print(known, file=sys.stderr) if known else traceback.print_exc()
        return EXIT_CODE if known else 1


def end(code: int) -> None:
    """Leave now: threads of a broken collective would hold the interpreter's own exit."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    end(main(sys.argv[1:]))
