"""Chooses the checkpoint to evaluate: a named one, the latest, or one after the other while a run is followed.

Following a run only reads its folder, so it works beside the run on any machine that sees it. What has been evaluated
is what `evaluations/` holds, so a command that was interrupted continues where it stopped.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from dist_ssl.checkpoint.folder_names import KEPT, published
from dist_ssl.checkpoint.retention import newest_first
from dist_ssl.distributed.world import World
from dist_ssl.errors import CheckpointError, ConfigError, UserError
from dist_ssl.evaluate.linear import Say
from dist_ssl.runtime.end_names import FINISHED
from launch.ending import Ending
from launch.evaluation import checkpoint_of, config_of, file_of
from launch.evaluation_options import DataValues, Options
from launch.frozen import RetiredError
from launch.run_dir import AttemptDir, RunDir

LOOK_SECONDS = 2.0
"""Time between looks into the run folder."""


@dataclass
class Watch:
    """The checkpoints of a run that are evaluated one after the other, the earliest first; `say` shows a line.

    `options.watch`: `all` that it finds, or only those that are `kept` for ever and the last one of the finished run.
    """

    run: RunDir
    options: Options
    data: DataValues
    say: Say
    passed: set[str] = field(default_factory=set)
    ended: int = 0
    """Number of the newest attempt that is known to have ended without finishing the run."""

    def next(self) -> str | None:
        """Return the name of a checkpoint to evaluate, "" where there is none yet, None where none will come."""
        ending = self._ending()
        finished = ending is not None and ending.outcome == FINISHED  # before the look: no checkpoint comes later
        found, newest = published(self.run.checkpoints), next(iter(newest_first(self.run.checkpoints)), None)
        branch = config_of(self.run, self.options, self.data)["probe"]["branch"]
        for folder in found.values():
            kept = self.options.watch == "all" or (folder / KEPT).exists() or (finished and folder == newest)
            done = folder.name in self.passed or file_of(self.run, self.options, folder.name, branch).exists()
            if kept and not done:
                return folder.name
        if ending and not finished:
            self._note(ending)
        return None if finished else ""

    def pass_over(self, name: str, reason: str) -> None:
        """Leave a checkpoint out, and say why."""
        self.passed.add(name)
        self.say(f"{name} is passed over: {reason}")

    def _ending(self) -> Ending | None:
        """Return how the newest attempt ended, if it has and Slurm does not start the next one."""
        ending = Ending.read(AttemptDir(self.run, self.run.newest_attempt()).outcome_file)
        return None if ending is None or ending.again else ending

    def _note(self, ending: Ending) -> None:
        newest = self.run.newest_attempt()
        if newest != self.ended:
            self.ended = newest
            self.say(f"Attempt {newest} has ended ({ending.outcome}): waiting for the next one. Ctrl-C ends this.")


def evaluate_named(run: RunDir, name: str, world: World, one: Callable[[str], None]) -> None:
    """Evaluate a checkpoint by `one`: `latest`, `step_00012000`, or 12000. Raises UserError.

    Where the run removes the latest one before it is read, the one that is the latest by then takes its place.
    """
    removed: str | None = ""
    while True:
        found = of_rank_0(world, lambda: checkpoint_of(run, name).name)
        try:
            return one(str(found))
        except RetiredError:
            if name != "latest" or found == removed:
                raise
            removed = found


def of_rank_0(world: World, find: Callable[[], str | None]) -> str | None:
    """Return on every rank what `find` returns on rank 0. Raises ConfigError on every rank where it raises UserError.

    Ranks on several machines may see the run's folder at different times.
    """
    found: str | None = None
    problem: list[str] = []
    if world.rank == 0:
        try:
            found = find()
        except UserError as error:
            problem = [error.problem, error.remedy]
    found, problem = world.share([found, problem])
    if problem:
        raise ConfigError(*problem)
    return found


def follow(watch: Watch, world: World, one: Callable[[str], None]) -> None:
    """Evaluate checkpoints by `one`, given their names, until the run has finished.

    One that is damaged, diverged or removed is passed over. Raises UserError.
    """
    watch.say(f"Following {watch.run.folder}; Ctrl-C ends this.")
    while (name := of_rank_0(world, watch.next)) is not None:
        try:
            one(name) if name else time.sleep(LOOK_SECONDS)
        except CheckpointError as error:
            watch.pass_over(name, error.problem)
    watch.say("The run has finished, and its checkpoints have been evaluated.")
