"""Checkpoints that are whole or do not exist, written by a thread while training continues.

A checkpoint is a folder `step_00012000/` with one safetensors file per rank and `state.json`: the progress of the run
and where each tensor lies (`index.py`). `Checkpoint` lists the steps of a save. The ranks' writing
threads agree through a process group of their own. A restore takes the newest checkpoint whose hashes match, and logs a
warning for each one that it passes over. Nothing is ever unpickled.

All ranks learn alike how a save ended when they wait for it: at the next save, or at `wait`. A save that fails for
lack of space costs that checkpoint only, as long as a later one succeeds.
"""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from dist_ssl.checkpoint.await_all import await_on_all
from dist_ssl.checkpoint.background import Background
from dist_ssl.checkpoint.costs import SaveCosts
from dist_ssl.checkpoint.damage import DamagedError
from dist_ssl.checkpoint.folder_names import KEPT, LATEST, name_of
from dist_ssl.checkpoint.index import own_pieces, progress_of, read, save_plan, save_report, table_text, write_table
from dist_ssl.checkpoint.placement import Outline, outline, rank_file_name
from dist_ssl.checkpoint.rank_file import sync, write
from dist_ssl.checkpoint.rank_header import Marked
from dist_ssl.checkpoint.read_on_all import read_on_all
from dist_ssl.checkpoint.retention import STATE, newest_first, remove_unfinished, retire
from dist_ssl.checkpoint.save_problems import SupersededError, on_all_ranks
from dist_ssl.checkpoint.staging import Staged, Staging
from dist_ssl.config.durations import Duration
from dist_ssl.core.progress import Progress
from dist_ssl.distributed.world import World
from dist_ssl.errors import CheckpointError, plural, printable
from dist_ssl.protocols.engine import Engine, State
from dist_ssl.runtime.files import remove, write_atomically

T = TypeVar("T")
log = logging.getLogger(__name__)
Records = Callable[[], object] | None


def with_own_group(world: World) -> World:
    """Return the same ranks with a process group of their own, for exchanges beside training; a collective.

    A slow disk does not mean a lost rank, so these exchanges have torch's default timeout of half an hour.
    """
    if world.alone:
        return world
    host = dist.new_group(backend="gloo")
    assert isinstance(host, dist.ProcessGroup)
    return replace(world, host=host, shared_memory=None)


class Checkpoint:
    """The checkpoints of one run in `folder`. A save takes these steps; from 2 on they run in a thread of every rank:

    1. Stage: copy this rank's part of the state into host memory; training continues.
    2. Write beside: rank 0 makes `.step_00012000.ATTEMPT.part/`, and tells the others the rule by which it writes its
       part of each tensor; every rank syncs the records that the checkpoint makes valid, then its file in the folder.
    3. Sync: once all ranks have succeeded, they tell rank 0 where their parts differ from the rules. It writes and
       syncs `state.json`, and syncs the folder.
    4. Verify on rank 0 that no newer attempt has started, so that a forgotten process cannot change a resumed run.
    5. Publish: rename the folder to `step_00012000/`. From here on, and only from here on, the checkpoint counts.
    6. Write its name into LATEST.
    7. Retire: remove the checkpoints that are neither among the newest nor permanent.

    Once the folder of 2 is made, after 2 and after 7 the ranks exchange whether they succeeded; an error on one is an
    error on all.

    `keep_last`: how many of the newest to keep, at least 1. `keep_every`: those at its multiples (steps or epochs) are
    permanent: they have a file KEPT. `attempt`: this attempt's number. `newest`: returns whether it is the newest one.
    `science`: what the result depends on, which checkpoints tell and a restore compares.
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
        science: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.world = folder, world
        self.keep_last, self.keep_every = keep_last, keep_every
        self.attempt, self.newest, self.science = attempt, newest, science
        self._staging = Staging(world.device)
        self._writers: World | None = None
        self._running: Background | None = None
        self._staged_step = self._saved_step = -1
        self._costs = SaveCosts()

    def save(self, engine: Engine, progress: Progress, records: Records = None) -> None:
        """Stage the engine's state and the progress and start to write them, unless this step is staged already.

        `records`: forces to disk what must be there before the checkpoint counts; called by the thread of this rank.
        Waits for the previous save; if that failed for lack of space, this one takes its place. Raises CheckpointError
        on every rank if a newer attempt has started.
        """
        permanent = self.keep_every is not None and self.keep_every.due(progress)
        if progress.step == self._staged_step and not permanent:
            return
        with self._costs.waiting():
            problem = self._finish()
            if isinstance(problem, SupersededError):
                raise problem
            if progress.step == self._staged_step:
                self._begin(lambda: self._mark(progress.step))
            else:
                self._staged_step = progress.step
                with self._costs.staging():
                    state = engine.state()
                    staged = self._staging.take(own_pieces(state, self.world.rank, self.world.size))
                    outlined = outline(state)
                if staged.await_device:
                    engine.hold_updates(staged.await_device)
                self._begin(lambda: self._write(staged, outlined, progress, permanent, records))

    def wait(self) -> None:
        """Wait until what was staged is published. Raises CheckpointError on every rank if the save failed."""
        with self._costs.waiting():
            problem = self._finish()
        if problem:
            raise problem

    @property
    def writing(self) -> bool:
        """Return whether this rank is writing beside training."""
        return self._running is not None and not self._running.ended

    @property
    def stall(self) -> float:
        """Return the seconds for which training on this rank has waited while the newest save copied its state.

        Neither the wait for the save before it nor what only the first one allocates says what the next one will cost.
        """
        return self._costs.staged or 0.0

    def close(self, seconds: float | None = None) -> None:
        """Wait for the end of a running save, failed or not, before the process groups are destroyed.

        `seconds`: at most so long. Where a rank is gone, the others' threads may wait for it for half an hour.
        """
        if self._running:
            self._running.wait(seconds)

    def metrics(self) -> Mapping[str, float]:
        """Return the costs since the last call, and how saves ended, by the keys of the metric table."""
        return {**self._costs.report(), "saved_step": float(max(self._saved_step, 0))}

    def restore(self, engine: Engine, fresh: Progress) -> Progress:
        """Load the newest whole checkpoint into the engine and return its progress; `fresh` if there is none yet.

        Raises CheckpointError if there are checkpoints but none is whole.
        """
        with self._costs.restoring():
            return self._restore(engine, fresh)

    def _restore(self, engine: Engine, fresh: Progress) -> Progress:
        if self.world.rank == 0:
            remove_unfinished(self.folder)
        candidates = self.world.share([p.name for p in newest_first(self.folder)] if self.world.rank == 0 else None)
        for name in candidates:
            try:
                found, state = read_on_all(self.world, partial(self._read, name, engine))
            except DamagedError as damage:
                self._costs.damaged += 1
                said = printable(str(damage))  # it quotes what somebody may have written there
                log.warning("Checkpoint %s is damaged (%s): passed over for the one before it.", name, said)
                continue
            self._set_aside(candidates[: candidates.index(name)])
            engine.load(state)
            self._staged_step = self._saved_step = found.step
            return replace(found, epochs=fresh.epochs, attempt=self.attempt)
        if candidates:
            raise CheckpointError(
                f"None of the {plural(len(candidates), 'checkpoint')} in {self.folder} is whole.",
                "Start a new run, or put a whole copy of a checkpoint folder back.",
            )
        return fresh

    def _read(self, name: str, engine: Engine) -> tuple[Progress, State]:
        values, state = read(self.folder / name, engine.wants, self.science)
        found = progress_of(values)
        if name != name_of(found.step):
            raise DamagedError(f"state.json: it describes step {found.step}")
        return found, state

    def _set_aside(self, damaged: list[str]) -> None:
        """Rename damaged checkpoints, so that none of them is kept in place of a whole one."""
        if self.world.rank == 0:
            for name in damaged:
                aside = self.folder / f"damaged_{name}"
                try:
                    remove(aside)
                    (self.folder / name).rename(aside)
                except OSError as error:  # it is damaged under this name too, and passed over again
                    log.warning("The damaged checkpoint %s cannot be renamed: %s", self.folder / name, error)

    def _begin(self, work: Callable[[], None]) -> None:
        """Start the work in a thread; the first call makes the process group of these threads."""
        self._writers = self._writers or with_own_group(self.world)
        self._running = Background(work, "checkpoint")

    def _finish(self) -> CheckpointError | None:
        """Wait for the running save; return its error, the same on every rank, or None.

        Raises what an exchange raises where a rank is gone.
        """
        if self._running:
            await_on_all(self.world, self._running)
        running, self._running = self._running, None
        try:
            if running:
                running.result()
        except CheckpointError as problem:
            self._staged_step = self._saved_step
            return problem
        return None

    def _write(self, staged: Staged, outlined: Outline, progress: Progress, permanent: bool, records: Records) -> None:
        """Take steps 2 to 7, in the thread of every rank. Raises CheckpointError in all of them."""
        assert self._writers is not None
        started = time.monotonic()
        own, rank, size = staged.own, self.world.rank, self.world.size
        part = self.folder / f".{name_of(progress.step)}.{self.attempt:04d}.part"

        def make() -> dict[str, Any] | None:
            if rank != 0:
                return None
            self._make(part)
            return save_plan(outlined, own, size)

        def write_own() -> dict[str, Any]:
            if records:
                records()
            length = write(part / rank_file_name(rank), staged.pieces(), Marked(plan["save"], rank))
            return {**save_report(outlined, own, plan, rank, size), "length": length}

        def publish() -> None:
            if rank == 0:
                text = table_text(progress.to_json(), outlined, plan, reports, self.science)
                self._publish(part, progress, text, permanent)
                self._costs.size = float(len(text) + sum(report["length"] for report in reports))

        try:
            plan = self._writers.share(self._on_all_ranks(make))
            reports = self._writers.collect_on_first(self._on_all_ranks(write_own))
            self._on_all_ranks(publish)
        except CheckpointError:
            if rank == 0:
                shutil.rmtree(part, ignore_errors=True)  # a full disk gets its space back
            raise
        self._saved_step, self._costs.written = progress.step, time.monotonic() - started

    def _on_all_ranks(self, work: Callable[[], T]) -> T:
        """Run `work` on every rank; return its result on this one. Raises one error on all ranks."""
        assert self._writers is not None
        try:
            return on_all_ranks(self._writers, self.folder, work)
        except CheckpointError as failure:
            self._costs.failed += 1
            if self.world.rank == 0:
                log.warning("%s", failure)
            raise

    def _make(self, part: Path) -> None:
        # a save that was killed between steps 5 and 7 has retired nothing
        retire(self.folder, self.keep_last, self.attempt)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)

    def _publish(self, part: Path, progress: Progress, text: str, permanent: bool) -> None:
        """Take steps 3 to 7, on rank 0. `text`: of `state.json`. Raises SupersededError, OSError."""
        write_table(part / STATE, text)
        if permanent:
            (part / KEPT).touch()
        sync(part)
        if not self.newest():
            raise SupersededError(f"Nothing was saved: attempt {self.attempt} is not the newest of this run.", "")
        whole = self.folder / name_of(progress.step)
        remove(whole)  # from an attempt that had been superseded unnoticed, or a person's file
        part.rename(whole)
        write_atomically(self.folder / LATEST, whole.name + "\n", sync=True)
        sync(self.folder)
        retire(self.folder, self.keep_last, self.attempt, whole)

    def _mark(self, step: int) -> None:
        """Make a published checkpoint permanent."""
        self._on_all_ranks(lambda: (self.folder / name_of(step) / KEPT).touch() if self.world.rank == 0 else None)
