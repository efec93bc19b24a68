"""A run whose ranks are started by torchrun, by hand or by Kubernetes: nobody but the ranks makes its attempts.

`cluster=torchrun` makes the run folder and prints the command that every node executes (`command`). Each execution of
it, and each restart by torchrun, is a new attempt, which rank 0 makes once the ranks have met (`shared_attempt`).
"""

import contextlib
import os
import shlex
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console

from dist_ssl.distributed.place_variables import RESTARTS
from dist_ssl.errors import ConfigError, UserError
from dist_ssl.runtime.end_names import FAILED, NODE_LOST
from launch import preparation, run_lock, settings
from launch.ending import LOST_CODE, OUTCOME_OF_CODE, Ending
from launch.environment_record import write_record
from launch.run_dir import PROJECT, AttemptDir, RunDir

if TYPE_CHECKING:
    from dist_ssl.distributed.world import World

SIGNS = ("TORCHELASTIC_RUN_ID", RESTARTS)
"""Variables that torchrun sets."""
TO_MEET = ("timeout", "start_timeout", "cluster")
"""Keys that say how ranks meet."""
RESTARTS_HERE = 3
"""How often torchrun starts the ranks of a run on one node again."""


def command(run: RunDir, config: dict[str, Any], overrides: list[str]) -> str:
    """Return the command that starts and resumes the ranks of a node; `overrides`: those of a resume."""
    nodes, folder = config["nodes"], run.folder.resolve()
    place = "" if nodes == 1 else f"--nnodes={nodes} --node-rank=NODE --master-addr=HOST "
    # every torchrun counts its restarts by itself, and ranks meet those of the same count only
    restarts = RESTARTS_HERE if nodes == 1 else 0
    words = shlex.join([f"run={folder}", *overrides])
    code = shlex.quote(str(folder / "code"))
    return (
        f"PYTHONSAFEPATH=1 PYTHONPATH={code} torchrun {place}--nproc-per-node={config['ranks_per_node']} "
        f"--max-restarts={restarts} -m launch.worker {words}"
    )


def say_how(run: RunDir, config: dict[str, Any], overrides: list[str], console: Console) -> None:
    """Print how to start the ranks of a run that was made for torchrun."""
    console.print(f"Run folder: {run.folder}", highlight=False, markup=False)
    everywhere = "on every node (NODE: its number from 0; HOST: the address of node 0)"
    where, again = ("here", "") if config["nodes"] == 1 else (everywhere, ", on all nodes where one was lost")
    console.print(f"Start its ranks {where}; the same command resumes it{again}:", highlight=False, markup=False)
    console.print(f"  {command(run, config, overrides)}", highlight=False, markup=False, soft_wrap=True)


def config_to_meet(run: RunDir, overrides: list[str]) -> dict[str, Any]:
    """Return the config under which the ranks meet, before rank 0 has made the attempt.

    It is the last one's, with the keys of TO_MEET that the overrides give. Raises ConfigError where these cannot be
    composed.
    """
    config = run.last_config()
    given = {override.partition("=")[0].partition(".")[0] for override in overrides} & {*TO_MEET}
    if given:
        own = [override for override in overrides if override.startswith(TO_MEET)]
        composed = settings.compose([*run.overrides, *own], run.code / "configs")
        config = {**config, **{key: composed[key] for key in given}}
    return config


def check_place(run: RunDir) -> None:
    """Raise ConfigError where this process runs other code than that of the run, or was not started by torchrun."""
    if not all(sign in os.environ for sign in SIGNS):
        raise ConfigError(
            "launch.worker run=... was not started by torchrun.", f"Write: {command(run, run.last_config(), [])}"
        )
    if run.code.resolve() != PROJECT:
        raise ConfigError(
            f"The ranks run the code in {PROJECT}, and not that of the run.",
            f"Write: {command(run, run.last_config(), [])}",
        )


@contextlib.contextmanager
def shared_lock(run: RunDir, world: "World") -> Iterator[None]:
    """Let rank 0 hold the run's folder. Raises on every rank ConfigError where another launcher has it."""
    with contextlib.ExitStack() as held:

        def take() -> int:
            held.enter_context(run_lock.held(run.folder))
            return 0

        _by_rank_0(take, world)
        yield


def shared_attempt(run: RunDir, overrides: list[str], world: "World") -> AttemptDir | None:
    """Return the new attempt that rank 0 makes for all ranks, on as many nodes and ranks as torchrun has started.

    None where the run has finished: a restarted command then ends in order. Raises on every rank rank 0's UserError.
    """
    number = _by_rank_0(lambda: _new_attempt(run, overrides, world), world)
    return AttemptDir(run, number) if number else None


def _by_rank_0(work: Callable[[], int], world: "World") -> int:
    """Return what the work returns on rank 0, which alone does it; raise its UserError on every rank as ConfigError."""
    made: dict[str, Any] | None = None
    if world.rank == 0:
        try:
            made = {"number": work()}
        except UserError as error:
            made = {"problem": error.problem, "remedy": error.remedy}
    answer = world.share(made)
    if "problem" in answer:
        raise ConfigError(answer["problem"], answer["remedy"])
    return int(answer["number"])


def _new_attempt(run: RunDir, overrides: list[str], world: "World") -> int:
    """Make an attempt whose config was checked for these ranks; return its number, 0 where nothing is left to train.

    Raises UserError.
    """
    place = [f"nodes={world.size // world.local_size}", f"ranks_per_node={world.local_size}"]
    if os.environ.get(RESTARTS, "0") != "0" and not preparation.trained(run, run.config):
        # the start before this one has appended the cycle, which is being trained
        overrides = [override for override in overrides if not override.startswith(preparation.EXTEND)]
    run, config = preparation.resume([*overrides, *place], run.folder, Console(highlight=False))
    if config["cluster"]["kind"] != "torchrun":
        raise ConfigError(
            f"cluster.kind={config['cluster']['kind']} is not for ranks that torchrun starts.", "Add cluster=torchrun."
        )
    if preparation.trained(run, config):
        print(f"{run.folder} has finished: nothing is left to train.", flush=True)
        return 0
    attempt = run.new_attempt(config)
    write_record(attempt, 0)
    return attempt.number


def note_ending(attempt: AttemptDir, code: int) -> None:
    """Write how the attempt ended, as rank 0 knows it by its own exit code."""
    outcome = OUTCOME_OF_CODE.get(code, FAILED)
    lost = code == LOST_CODE
    cause = NODE_LOST if lost else ""
    Ending(outcome, attempt.reason(0), time.time(), lost=lost, cause=cause).write(attempt.outcome_file)
