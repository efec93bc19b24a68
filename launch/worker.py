"""The worker of a rank: joins the process group, builds the job, trains, and reports the outcome as its exit code.

    python -m launch.worker RUN_FOLDER ATTEMPT
    torchrun ... -m launch.worker run=RUN_FOLDER        # a new attempt, which rank 0 makes; further keys may follow

RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE come from the agent, or from torchrun. The worker installs its signal
handlers before it imports torch, and dies with its parent process, so that no rank is left behind on a node.
"""

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dist_ssl.checkpoint.folder_names import ENCODER
from dist_ssl.distributed.place_variables import RANK
from dist_ssl.errors import (
    EXIT_CODE,
    DisagreementError,
    LostPeerError,
    TooManyUnreadableError,
    TrainingError,
    UserError,
    explained,
    printable,
)
from dist_ssl.runtime.files import write_for_owner_alone
from dist_ssl.runtime.log_setup import open_journal
from dist_ssl.runtime.signals import Signals
from dist_ssl.runtime.tries import may_go_away
from launch import cluster_options, credentials
from launch.ending import DISAGREED_CODE, DIVERGED_CODE, LOST_CODE, STOPPED_CODE, UNREADABLE_CODE
from launch.lost_signs import GONE, LOST_GPU, LOST_RANK
from launch.parent import alone
from launch.private_cache import use_private_cache
from launch.restarts import restarts_before
from launch.run_dir import AttemptDir, RunDir
from launch.science_keys import science
from launch.variables import PARENT
from launch.visible_gpus import named_gpus

if TYPE_CHECKING:
    from dist_ssl.distributed.world import World
    from dist_ssl.train import Job, Outcome

OF_TORCHRUN = "run="
"""Beginning of the argument that names the run where torchrun starts the ranks."""
WATCH_SECONDS = 0.5
LOST_SECONDS = 3.0
"""Time that a save may still take when another rank is gone: enough for what only this rank has left to do."""


def die_with_parent() -> None:
    """Start a thread that kills this process as soon as its parent process is gone."""

    def watch() -> None:
        while not alone():
            time.sleep(WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def train_attempt(attempt: AttemptDir, signals: Signals) -> int:
    """Train an attempt until the end of the run or an agreed stop; return the exit code."""
    RunDir.open(attempt.run.folder)
    with joined_ranks(attempt.config, attempt.meeting) as world:
        return train_on(world, attempt, signals)


def train_under_torchrun(run: RunDir, overrides: list[str], signals: Signals) -> int:
    """Train a new attempt of a run on the ranks that torchrun has started; return the exit code."""
    from launch import torchrun

    RunDir.open(run.folder)
    torchrun.check_place(run)
    with joined_ranks(torchrun.config_to_meet(run, overrides), None) as world, torchrun.shared_lock(run, world):
        attempt = torchrun.shared_attempt(run, overrides, world)
        if attempt is None:
            return 0
        use_threads(attempt.config)
        code = explained_code(lambda: train_on(world, attempt, signals), attempt)
        if world.rank == 0:
            torchrun.note_ending(attempt, code)
        if code not in (0, STOPPED_CODE):
            end(code)  # the process groups cannot be left in order
        return code


def use_threads(config: dict[str, Any]) -> None:
    """Let torch compute with as many threads as the config says."""
    import torch

    torch.set_num_threads(config["threads"])


@contextlib.contextmanager
def joined_ranks(config: dict[str, Any], meeting: Path | None) -> "Iterator[World]":
    """Yield the world of the ranks, which meet through the file `meeting`, or as torchrun says."""
    from dist_ssl.config.durations import Duration
    from dist_ssl.distributed.rendezvous import Network
    from dist_ssl.distributed.world import Waits, joined
    from dist_ssl.runtime.deferred_compiler import defer_compiler

    if not config["engine"].get("compile"):
        defer_compiler()
    use_threads(config)
    local = config["cluster"]["kind"] == "local"
    gpus = named_gpus() if local else cluster_options.gpus(config["cluster"])
    one_machine = local or config["nodes"] == 1
    waits = Waits(*(Duration.parse(config[key]).amount for key in ("start_timeout", "timeout")))
    network = Network(one_machine, config["cluster"]["interface"])
    with joined(meeting, waits, gpus=gpus, network=network) as world:
        yield world


def train_on(world: "World", attempt: AttemptDir, signals: Signals) -> int:
    """Train on these ranks; return the exit code."""
    from dist_ssl.build import Place, build
    from dist_ssl.train import Outcome

    folder, number, config = attempt.run.folder, attempt.number, attempt.config
    place = Place(folder, number, lambda: is_newest(attempt), restarts_before(attempt), science(config))
    job = build(credentials.restored(config), world, signals, place)
    outcome = train_to_the_last_save(job)
    job.agreement.drain()
    for part in (job.meter, job.ledger, job.contents, job.stream):
        part.close()
    if outcome is Outcome.FINISHED and world.rank == 0:
        write_encoder(attempt)
    return 0 if outcome is Outcome.FINISHED else STOPPED_CODE


def is_newest(attempt: AttemptDir) -> bool:
    """Return whether no newer attempt of the run has been made, as the file server knows it.

    A client of NFS lists a folder from its own copy, up to a minute old, until it has changed the folder itself.
    """
    look = attempt.folder.with_name(f".look.{attempt.number:04d}")
    with contextlib.suppress(OSError):  # a full disk: an old list is better than none
        look.touch()
        look.unlink()
    return attempt.run.newest_attempt() == attempt.number


def train_to_the_last_save(job: "Job") -> "Outcome":
    """Train, and wait for a save that is being written; after an error too, unless a rank that it needs is gone.

    Where a server of data or a GPU is lost, all ranks are there: they write what was staged.
    """
    from dist_ssl.train import train

    try:
        outcome = train(job)
    except Exception as error:
        job.checkpoint.close(LOST_SECONDS if rank_is_gone(error) else None)
        raise
    job.checkpoint.close()
    return outcome


def write_encoder(attempt: AttemptDir) -> None:
    """Write the encoder of the last checkpoint into the run folder; what prevents it is logged, and fails nothing."""
    from launch.checkpoint_encoder import of_checkpoint
    from launch.evaluation import checkpoint_of

    folder = attempt.run.folder
    try:
        saved = of_checkpoint(attempt.config, folder.resolve().name, checkpoint_of(attempt.run, "latest"))
        saved.write(folder / ENCODER)
    except Exception as error:  # whatever it is: the run has finished
        print(f"{folder / ENCODER} could not be written: {error!r}", file=sys.stderr)


def something_is_gone(error: BaseException) -> bool:
    """Return whether an error is not this rank's own: a peer, its node, a server, a file system or the GPU is gone."""
    if isinstance(error, UserError):
        return error.transient
    if isinstance(error, OSError) and may_go_away(error):
        return True
    return rank_is_gone(error) or (isinstance(error, RuntimeError) and bool(LOST_GPU.search(str(error))))


def rank_is_gone(error: BaseException) -> bool:
    """Return whether an error says that another rank is gone, or cannot be reached."""
    if isinstance(error, RuntimeError):
        return bool(LOST_RANK.search(str(error)))
    return isinstance(error, (ConnectionError, LostPeerError))


def code_of(error: Exception) -> int:
    """Return the exit code of a worker that an error ends."""
    if something_is_gone(error):
        return LOST_CODE
    if isinstance(error, TrainingError):
        return DIVERGED_CODE
    if isinstance(error, DisagreementError):
        return DISAGREED_CODE
    if isinstance(error, TooManyUnreadableError):
        return UNREADABLE_CODE
    return EXIT_CODE if explained(error) else 1


def main(arguments: list[str]) -> int:
    """Run the worker that the command line describes; return its exit code."""
    signals = Signals().listen()
    write_for_owner_alone()
    use_private_cache()
    if torchrun := arguments[0].startswith(OF_TORCHRUN):
        os.environ[PARENT] = str(os.getppid())
    die_with_parent()
    open_journal()
    run = RunDir(Path(arguments[0].removeprefix(OF_TORCHRUN)))
    if torchrun:
        return explained_code(lambda: train_under_torchrun(run, arguments[1:], signals))
    attempt = AttemptDir(run, int(arguments[1]))
    return explained_code(lambda: train_attempt(attempt, signals), attempt)


def explained_code(work: Callable[[], int], attempt: AttemptDir | None = None) -> int:
    """Return the exit code that the work returns, or that of its error, which is explained in the log.

    The attempt keeps what a user can fix, if it is known.
    """
    try:
        return work()
    except Exception as error:
        known = explained(error)
        with contextlib.suppress(OSError):  # a full disk: the log says it
            if known and attempt:
                attempt.give_reason(int(os.environ.get(RANK, "0")), str(known))
        with contextlib.suppress(OSError):  # the log may lie on a full disk too
            say_why(error)
        return code_of(error)


def say_why(error: Exception) -> None:
    """Print to the log why this rank ends: with a stack trace only where the error may be one of this code.

    The last line says what happened, since reports quote it: of a message of CUDA that is the first of many lines.
    """
    if known := explained(error):
        print(known, file=sys.stderr)
        return
    summary = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if something_is_gone(error):
        print(printable(f"{GONE}{summary}"), file=sys.stderr)
        return
    print(printable(traceback.format_exc()), file=sys.stderr)
    if "\n" in str(error).strip():
        print(printable(summary), file=sys.stderr)


def end(code: int) -> None:
    """Exit at once: threads of a broken collective would block a normal interpreter exit."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    end(main(sys.argv[1:]))
