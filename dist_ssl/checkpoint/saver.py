"""Stage, write beside, verify, rename, announce: a checkpoint is whole or it does not exist.

A checkpoint is a folder `step_00012000/` with one safetensors file per rank and `state.json`: where every tensor lies,
whole or in pieces, with their hashes (`checkpoint_files.py`), and the progress of the run. A save copies the state to
host memory and returns; a thread writes it while training goes on, and the ranks' threads agree through a process group
of their own. It is written into `.step_00012000.ATTEMPT.part/`, synced to disk, renamed by rank 0 and then named in
`LATEST`; old ones are retired last. What does not match its hash is passed over for the checkpoint before it, loudly.
Nothing is ever unpickled.

How a save ended is known to all ranks alike, once they have waited for it: at the next save, or at `commit`. One that
fails for want of room costs that checkpoint and no more, as long as a later one succeeds.
"""

import logging
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from dist_ssl.checkpoint.background import Background
from dist_ssl.checkpoint.index import own_pieces, read, write_table
from dist_ssl.checkpoint.rank_file import DamagedError, sync, write
from dist_ssl.checkpoint.staging import Staged, Staging
from dist_ssl.config.durations import Duration
from dist_ssl.core.progress import Progress
from dist_ssl.distributed.world import World
from dist_ssl.errors import CheckpointError
from dist_ssl.protocols.engine import Engine, State

LATEST, KEPT = "LATEST", "KEPT"
PUBLISHED = re.compile(r"step_(\d{8,})")
log = logging.getLogger(__name__)


class SupersededError(CheckpointError):
    """A newer attempt of the run has begun: this one may write nothing any more."""


def apart(world: World) -> World:
    """The same ranks with a group of their own, for exchanges beside training; all ranks ask for it together.

    A slow disk is no lost rank, so these exchanges have torch's own half hour.
    """
    if world.alone:
        return world
    host = dist.new_group(backend="gloo")
    assert isinstance(host, dist.ProcessGroup)
    return replace(world, host=host, shared_memory=None)


class Checkpoint:
    """The checkpoints of one run in `folder`.

    `keep_last`: how many of the newest to keep, at least 1. `keep_every`: those at its multiples (steps or epochs) are
    kept for ever; they have a file KEPT. `attempt`: this attempt's number. `newest`: asks whether no newer attempt has
    begun; a commit is refused where one has, so a forgotten process cannot write into a resumed run.
    """

    def __init__(
        self,
        folder: Path,
        world: World,
        *,
        keep_last: int,
        keep_every: Duration | None = None,
        attempt: int,
        newest: Callable[[], bool],
    ) -> None:
        self.folder, self.world = folder, world
        self.keep_last, self.keep_every = keep_last, keep_every
        self.attempt, self.newest = attempt, newest
        self._staging = Staging(world.device)
        self._beside: World | None = None
        self._under_way: Background | None = None
        self._staged_step = self._saved_step = -1
        self._stall, self._seconds, self._failed = 0.0, float("nan"), 0

    def save(self, engine: Engine, progress: Progress) -> None:
        """Stage the engine's state and the progress and begin to write them, unless this step is staged already.

        Waits for the save before; where that has failed for want of room, this one takes its place. Raises
        CheckpointError on every rank where a newer attempt has begun.
        """
        for_ever = self.keep_every is not None and self.keep_every.due(progress)
        if progress.step == self._staged_step and not for_ever:
            return
        began = time.monotonic()
        problem = self._finish()
        if isinstance(problem, SupersededError):
            raise problem
        if progress.step == self._staged_step:
            self._begin(lambda: self._mark(progress.step))
        else:
            self._staged_step = progress.step
            staged = self._staging.take(own_pieces(engine.state(), self.world.rank, self.world.size))
            if staged.await_device:
                engine.hold_updates(staged.await_device)
            self._begin(lambda: self._write(staged, progress, for_ever))
        self._stall += time.monotonic() - began

    def wait(self) -> None:
        """Wait until what was staged is on disk, whole. Raises CheckpointError on every rank where it is not."""
        began = time.monotonic()
        problem = self._finish()
        self._stall += time.monotonic() - began
        if problem:
            raise problem

    @property
    def writing(self) -> bool:
        """Whether this rank is writing beside training."""
        return self._under_way is not None and not self._under_way.ended

    def close(self) -> None:
        """Let what is being written come to its end, whatever that is, before the ranks part."""
        if self._under_way:
            self._under_way.wait()

    def metrics(self) -> Mapping[str, float]:
        """What saving has cost since the last look, and what came of it, by the keys of the metric table."""
        stall, self._stall = self._stall, 0.0
        return {
            "save_stall_seconds": stall,
            "save_seconds": self._seconds,
            "saved_step": float(max(self._saved_step, 0)),
            "failed_saves": float(self._failed),
        }

    def restore(self, engine: Engine, fresh: Progress) -> Progress:
        """Load the newest whole checkpoint into the engine; `fresh` where the run has none yet."""
        if self.world.rank == 0:
            for debris in self.folder.glob(".*.part"):
                shutil.rmtree(debris, ignore_errors=True)  # its writer may still be at work
        candidates = self.world.share([p.name for p in self._whole()] if self.world.rank == 0 else None)
        for name in candidates:
            problem = ""
            try:
                found, state = self._read(name, engine)
            except DamagedError as damage:
                problem = str(damage)
            problems = [other for other in self.world.collect(problem) if other]
            if not problems:
                self._set_aside(candidates[: candidates.index(name)])
                engine.load(state)
                self._staged_step = self._saved_step = found.step
                return replace(found, epochs=fresh.epochs, attempt=self.attempt)
            log.warning("Checkpoint %s is damaged (%s): passed over for the one before it.", name, problems[0])
        if candidates:
            raise CheckpointError(
                f"None of the {len(candidates)} checkpoints in {self.folder} is whole.",
                "Start a new run, or put a whole copy of a checkpoint folder back.",
            )
        return fresh

    def _read(self, name: str, engine: Engine) -> tuple[Progress, State]:
        values, state = read(self.folder / name, engine.wants)
        try:
            found = Progress.from_json(values)
        except (KeyError, TypeError) as error:
            raise DamagedError(f"state.json: its progress cannot be read ({error!r})") from error
        if name != name_of(found.step):
            raise DamagedError(f"state.json: it is of step {found.step}")
        return found, state

    def _set_aside(self, damaged: list[str]) -> None:
        """Take damaged checkpoints out of the count, so that none of them is kept in place of a whole one."""
        if self.world.rank == 0:
            for name in damaged:
                aside = self.folder / f"damaged_{name}"
                shutil.rmtree(aside, ignore_errors=True)
                (self.folder / name).rename(aside)

    def _begin(self, work: Callable[[], None]) -> None:
        """Have a thread do the work, and be sure that the threads of all ranks can agree."""
        self._beside = self._beside or apart(self.world)
        self._under_way = Background(work, "checkpoint")

    def _finish(self) -> CheckpointError | None:
        """Wait for what is under way; what went wrong, the same on every rank."""
        under_way, self._under_way = self._under_way, None
        try:
            if under_way:
                under_way.result()
        except CheckpointError as problem:
            self._staged_step = self._saved_step
            return problem
        return None

    def _write(self, staged: Staged, progress: Progress, for_ever: bool) -> None:
        """Write what was staged, as the thread of every rank does. Raises CheckpointError in all of them."""
        began = time.monotonic()
        part = self.folder / f".{name_of(progress.step)}.{self.attempt:04d}.part"
        try:
            self._together(lambda: self._make(part))
            own = part / f"rank_{self.world.rank:05d}.safetensors"
            written = self._together(lambda: write(own, staged.pieces()))
            self._together(lambda: self._publish(part, progress, written, for_ever))
        except CheckpointError:
            if self.world.rank == 0:
                shutil.rmtree(part, ignore_errors=True)  # a full disk gets its space back
            raise
        self._saved_step, self._seconds = progress.step, time.monotonic() - began

    def _together(self, work: Callable[[], Any]) -> list[Any]:
        """Let every rank do its work, and agree on whether all of them could; what came of it, in rank order."""
        assert self._beside is not None
        result: Any = None
        problem, superseded = "", False
        try:
            result = work()
        except SupersededError as error:
            problem, superseded = error.problem, True
        except OSError as error:
            problem = f"Rank {self.world.rank}: {error}"
        answers = self._beside.collect((problem, superseded, result))
        failure: CheckpointError | None = None
        for problem, superseded, _ in answers:
            if superseded:
                failure = SupersededError(problem, "Nothing is lost: the newer attempt goes on. End this one.")
            elif problem and failure is None:
                failure = CheckpointError(
                    f"The checkpoint could not be written to {self.folder}: {problem}.",
                    "The checkpoint before it is whole. Free some space; if the run has ended, resume it then.",
                )
        if failure:
            self._failed += 1
            if self.world.rank == 0:
                log.warning("%s", failure)
            raise failure
        return [found for _, _, found in answers]

    def _make(self, part: Path) -> None:
        if self.world.rank == 0:
            self._retire()  # a save that came as far as its announcement, and no further, has retired nothing
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)

    def _publish(self, part: Path, progress: Progress, written: list[Any], for_ever: bool) -> None:
        """Rank 0: write `state.json`, rename, announce, retire."""
        if self.world.rank != 0:
            return
        write_table(part / "state.json", progress.to_json(), written)
        if for_ever:
            (part / KEPT).touch()
        sync(part)
        if not self.newest():
            raise SupersededError(f"Nothing was saved: attempt {self.attempt} is not the newest of this run.", "")
        whole = self.folder / name_of(progress.step)
        shutil.rmtree(whole, ignore_errors=True)  # of an attempt that did not know that it was over
        part.rename(whole)
        announcement = self.folder / f".{LATEST}"
        announcement.write_text(whole.name + "\n")
        sync(announcement)
        announcement.replace(self.folder / LATEST)
        sync(self.folder)
        self._retire()

    def _retire(self) -> None:
        """Remove what is neither new nor kept for ever."""
        for old in self._whole()[self.keep_last :]:
            try:
                if not (old / KEPT).exists():
                    shutil.rmtree(old)
            except OSError as error:
                log.warning("The old checkpoint %s cannot be removed: %s", old, error)

    def _mark(self, step: int) -> None:
        """Keep a checkpoint for ever that is on disk already."""
        self._together(lambda: (self.folder / name_of(step) / KEPT).touch() if self.world.rank == 0 else None)

    def _whole(self) -> list[Path]:
        """The committed checkpoints, newest first; what a person keeps beside them (`step_00000100_good`) is theirs."""
        found = {int(m[1]): path for path in self.folder.glob("step_*") if (m := PUBLISHED.fullmatch(path.name))}
        return [found[step] for step in sorted(found, reverse=True)]


def name_of(step: int) -> str:
    """The folder of a step's checkpoint."""
    return f"step_{step:08d}"
