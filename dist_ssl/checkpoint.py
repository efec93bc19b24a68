"""Write beside, verify, rename, announce: a checkpoint is whole or it does not exist.

A checkpoint is a folder `step_00012000/` with one safetensors file per rank and `state.json`: where every tensor lies,
whole or in pieces, with their hashes (`checkpoint_files.py`), and the progress of the run. It is written as
`.step_00012000.part/`, synced to disk, renamed by rank 0 and then named in `LATEST`; old ones are retired last. What
does not match its hash is passed over for the checkpoint before it, loudly. Nothing is ever unpickled.
"""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors

from dist_ssl.checkpoint_files import (
    DamagedError,
    Entry,
    Table,
    join,
    own_pieces,
    read,
    sync,
    write,
    write_table,
)
from dist_ssl.engine import Engine
from dist_ssl.errors import CheckpointError
from dist_ssl.progress import Progress
from dist_ssl.world import World

LATEST = "LATEST"
log = logging.getLogger(__name__)


class Checkpoint:
    """The checkpoints of one run in `folder`.

    `keep`: how many to keep, at least 1. `attempt`: this attempt's number. `newest`: asks whether no newer attempt
    has begun; a commit is refused where one has, so a forgotten process cannot write into a resumed run.
    """

    def __init__(self, folder: Path, world: World, *, keep: int, attempt: int, newest: Callable[[], bool]) -> None:
        self.folder, self.world, self.keep = folder, world, keep
        self.attempt, self.newest = attempt, newest
        self._saved_step = -1

    def save(self, engine: Engine, progress: Progress) -> None:
        """Write the engine's state and the progress, unless this step is saved already.

        Raises CheckpointError on every rank when one cannot write.
        """
        if progress.step == self._saved_step:
            return
        part = self.folder / f".step_{progress.step:08d}.part"
        self._write_together(lambda: self._make_part(part))
        try:
            written = self._write_together(lambda: self._write_own(part, engine))
            self._write_together(lambda: self._commit(part, progress, join(written)))
        except CheckpointError:
            if self.world.rank == 0:
                shutil.rmtree(part, ignore_errors=True)  # a full disk gets its space back
            raise
        self._saved_step = progress.step

    def restore(self, engine: Engine, fresh: Progress) -> Progress:
        """Load the newest whole checkpoint into the engine; `fresh` where the run has none yet."""
        if self.world.rank == 0:
            for debris in self.folder.glob(".*.part"):
                shutil.rmtree(debris, ignore_errors=True)  # its writer may still be at work
        candidates = self.world.share([p.name for p in self._whole()] if self.world.rank == 0 else None)
        for name in candidates:
            try:
                values, state = read(self.folder / name, engine.wants)
                problem = ""
            except DamagedError as damage:
                problem = str(damage)
            if all(not other for other in self.world.collect(problem)):
                self._set_aside(candidates[: candidates.index(name)])
                engine.load(state)
                self._saved_step = int(values["step"])
                return Progress.from_json({**values, "epochs": fresh.epochs, "attempt": self.attempt})
            log.warning("Checkpoint %s is damaged (%s): passed over for the one before it.", name, problem)
        if candidates:
            raise CheckpointError(
                f"None of the {len(candidates)} checkpoints in {self.folder} is whole.",
                "Start a new run, or put a whole copy of a checkpoint folder back.",
            )
        return fresh

    def _set_aside(self, damaged: list[str]) -> None:
        """Take damaged checkpoints out of the count, so that none of them is kept in place of a whole one."""
        if self.world.rank == 0:
            for name in damaged:
                aside = self.folder / f"damaged_{name}"
                shutil.rmtree(aside, ignore_errors=True)
                (self.folder / name).rename(aside)

    def _write_together(self, write: Callable[[], Any]) -> list[Any]:
        """Let every rank write, and agree on whether all of them could."""
        result: Any = None
        problem = ""
        try:
            result = write()
        except (OSError, safetensors.SafetensorError, CheckpointError) as error:
            problem = error.problem if isinstance(error, CheckpointError) else f"Rank {self.world.rank}: {error}"
        both = self.world.collect((problem, result))
        problems = [p for p, _ in both if p]
        if problems:
            raise CheckpointError(
                f"The checkpoint could not be written to {self.folder}: {problems[0]}.",
                "The checkpoint before it is whole. Free some space (or stop the newer attempt), then resume the run.",
            )
        return [r for _, r in both]

    def _make_part(self, part: Path) -> None:
        if self.world.rank == 0:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)

    def _write_own(self, part: Path, engine: Engine) -> dict[str, Entry]:
        """This rank's pieces and its share of the whole tensors, into its own file."""
        own = own_pieces(engine.state(), self.world.rank, self.world.size)
        return write(part / f"rank_{self.world.rank:05d}.safetensors", own)

    def _commit(self, part: Path, progress: Progress, table: Table) -> None:
        """Rank 0: write `state.json`, rename, announce, retire."""
        if self.world.rank != 0:
            return
        if not self.newest():
            raise CheckpointError(f"attempt {self.attempt} is not the newest of this run", "")
        write_table(part / "state.json", progress.to_json(), self.world.size, table)
        sync(part)
        whole = self.folder / part.name.removeprefix(".").removesuffix(".part")
        shutil.rmtree(whole, ignore_errors=True)  # a damaged one that was passed over
        part.rename(whole)
        announcement = self.folder / f".{LATEST}"
        announcement.write_text(whole.name + "\n")
        sync(announcement)
        announcement.replace(self.folder / LATEST)
        sync(self.folder)
        for old in self._whole()[self.keep :]:
            shutil.rmtree(old)

    def _whole(self) -> list[Path]:
        """The committed checkpoints, newest first."""
        return sorted(self.folder.glob("step_*"), reverse=True)
