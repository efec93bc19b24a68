"""Whole runs in one process: the real loop, lanes, loader, agreement, quarantine and ledger; ranks are threads.

Nothing is trained and no pixel is looked at. The engine's "weights" are the samples that it was fed, and are saved and
restored like weights, so that what a run has truly used is known beside what its ledger says.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dist_ssl.config.durations import Duration
from dist_ssl.config.percentage import Share
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws, Purpose
from dist_ssl.core.plan import EpochPlan, Hyperparameters
from dist_ssl.core.progress import Progress
from dist_ssl.data import epoch_views
from dist_ssl.data.epoch_views import Colours
from dist_ssl.data.images.image_rules import RULES
from dist_ssl.data.images.unreadable import UnreadableError
from dist_ssl.data.images.views import Augmentation
from dist_ssl.data.loader import load
from dist_ssl.data.order import ledger_reader
from dist_ssl.data.order.ledger import Ledger, file_of
from dist_ssl.data.order.ledger_audit import Audit, epochs
from dist_ssl.data.order.ledger_blocks import MAGIC
from dist_ssl.data.order.quarantine import Quarantine
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.contents import ShardContents
from dist_ssl.data.storage.manifest import Shard, Split
from dist_ssl.data.storage.mixture import MixedSplit, Source
from dist_ssl.data.storage.reader_options import Access
from dist_ssl.data.storage.samples import columns
from dist_ssl.data.stream import Stream
from dist_ssl.distributed.world import World
from dist_ssl.errors import UserError
from dist_ssl.evaluate.knn import NoProbe
from dist_ssl.protocols.engine import StepOutput
from dist_ssl.protocols.schedule import Schedule
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.agreement import Agreement
from dist_ssl.runtime.coordinator import Coordinator, check_plan
from dist_ssl.runtime.signals import STOPPING, Signals
from dist_ssl.runtime.step_clock import StepClock
from dist_ssl.train import Job, train


class KilledError(Exception):
    """A rank is gone."""


@dataclass(frozen=True)
class Answer:
    """An agreement that has been reached."""

    values: list[int]

    def result(self) -> list[int]:
        return self.values


class Table:
    """Where the ranks of one attempt meet. A rank that is gone is noticed by the others at their next exchange."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size)
        self.slots: list[list[Any]] = [[None] * size, [None] * size]


@dataclass(frozen=True)
class Side(World):
    """One rank, as a thread."""

    table: Table = field(default_factory=lambda: Table(1))
    rounds: list[int] = field(default_factory=lambda: [0])

    def collect(self, obj: Any) -> list[Any]:
        if self.size == 1:
            return [obj]
        slots = self.table.slots[self.rounds[0] % 2]
        self.rounds[0] += 1
        slots[self.rank] = obj
        try:
            self.table.barrier.wait(60)
        except threading.BrokenBarrierError as error:
            raise KilledError from error
        return list(slots)

    def share(self, obj: Any) -> Any:
        return self.collect(obj)[0]

    def agree_later(self, *values: int) -> Any:
        return Answer([max(column) for column in zip(*self.collect(values), strict=True)])


class Bytes:
    """A reader without tars: a sample's bytes are its number, and nothing for those that cannot be read."""

    def __init__(self, split: Split, bad: frozenset[int]) -> None:
        self.split, self.bad = split, bad

    def read(self, number: int) -> bytes:
        return b"" if number in self.bad else str(number).encode()

    def expect(self, shards: Any, levels: Any) -> None:
        """Nothing is fetched ahead."""

    def opened(self) -> tuple[int, ...]:
        return ()


class Scissors:
    """Cuts nothing."""

    rules = RULES

    def __init__(self, *given: Any) -> None:
        """Whatever a cutter is told."""

    def side(self, slot: int) -> int:
        return 1

    def draw(self, draws: Any, ids: Any) -> list[Any]:
        return []

    def cut(self, data: bytes, draws: Any, out: Any) -> None:
        if not data:
            raise UnreadableError("empty")


class Bare(Stream):
    """A stream whose batches show nothing."""

    def _batch(self, pixels: load.Loaded, views: Any, changes: Any, draws: Any, step: int) -> Batch:
        ids, valid = torch.from_numpy(pixels.ids), torch.from_numpy(pixels.valid)
        return Batch([], ids, valid, None, draws, step, pixels.unreadable)


@dataclass
class Attempt:
    """One attempt: how many ranks and threads, when it saves, and how it ends."""

    ranks: int
    threads: int
    save_every: int
    dies_at: tuple[int, int] | None = None
    """(step, rank): the engine of this rank is killed within this step."""
    stops_at: tuple[int, int] | None = None
    """(step, rank): this rank is asked to stop."""
    torn: bool = False
    """The kill cuts a line short."""


@dataclass
class Run:
    """A run in a folder. `batches`: per epoch the samples of a step; `spoil` may change what a rank's stream yields.

    `weights`: makes every shard a source of a mixture.
    """

    folder: Path
    shard_sizes: list[int]
    batches: list[int]
    lanes: int
    window: int
    seed: int
    bad: frozenset[int] = frozenset()
    max_bad: str = "100 %"
    spoil: Callable[[Iterator[Batch], int, EpochPlan, int], Iterator[Batch]] | None = None
    weights: Sequence[int] = ()
    attempts: int = 0
    saved: tuple[Progress, list[list[int]]] | None = None
    used: list[list[int]] = field(default_factory=list)
    """The global batches that the newest attempt's weights have seen."""

    def __post_init__(self) -> None:
        names = [f"train-{n:03d}.tar" for n in range(len(self.shard_sizes))]
        shards = tuple(Shard(name, size, 0, "") for name, size in zip(names, self.shard_sizes, strict=True))
        rows = columns([(f"key{n}", 0, 1, -1) for n in range(sum(self.shard_sizes))])
        self.split = Split(Address(str(self.folder)), "train", shards, rows)
        if self.weights:
            pairs = zip(self.shard_sizes, self.weights, strict=True)
            sources = tuple(Source(self.split.folder, 1, size, weight) for size, weight in pairs)
            self.split = MixedSplit(self.split.folder, "train", shards, rows, sources=sources)

    @property
    def plans(self) -> list[EpochPlan]:
        """The epochs as they are planned."""
        return [EpochPlan(n, 1, 1.0, 1, size, self.lanes) for n, size in enumerate(self.batches)]

    def go(self, attempt: Attempt) -> list[Any]:
        """Make an attempt; per rank what `train` returned, or the error that ended it."""
        self.attempts += 1
        table = Table(attempt.ranks)
        fed: list[dict[int, list[int]]] = [{} for _ in range(attempt.ranks)]
        endings: list[Any] = [None] * attempt.ranks

        def work(rank: int) -> None:
            job = None
            try:
                job = self._job(attempt, Side(rank, attempt.ranks, table=table), fed)
                endings[rank] = train(job)
            except Exception as error:
                endings[rank] = error
                if not isinstance(error, UserError):  # which all ranks raise, each by itself
                    table.barrier.abort()
            if job and not isinstance(endings[rank], KilledError):
                job.ledger.close()

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(attempt.ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if attempt.torn:
            with file_of(self.folder / "ledger", self.attempts, 0).open("ab") as file:
                file.write(MAGIC + bytes(50))
        return endings

    def _job(self, attempt: Attempt, world: Side, fed: list[dict[int, list[int]]]) -> Job:
        signals = Signals()
        stream = Bare(
            load.Loader(Bytes(self.split, self.bad), attempt.threads),  # type: ignore[arg-type]
            [Augmentation(crop_min=0.2)],
            Colours((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            world=world,
            seed=self.seed,
            window=self.window,
            dtype=torch.float32,
        )
        schedule = Schedule(PlansMadeBefore(self.plans), NoCurves())
        record = self.folder / "plan.jsonl"
        ranks, number = attempt.ranks, len(self.split.samples)
        return Job(
            fresh=Progress(epochs=len(self.batches), attempt=self.attempts),
            engine=Engine(attempt, world.rank, signals, fed),  # type: ignore[arg-type]
            stream=Spoilt(stream, self.spoil, world.rank) if self.spoil else stream,  # type: ignore[arg-type]
            schedule=schedule,
            coordinator=Coordinator(
                schedule,
                world=world,
                record=record,
                check=lambda plan: check_plan(plan.lanes, plan.batch_size, ranks, number),
            ),
            checkpoint=Memory(self, world, fed),  # type: ignore[arg-type]
            agreement=Agreement(world, signals, Duration.parse(f"{attempt.save_every} steps")),
            probe=NoProbe(),
            meter=Silence(),  # type: ignore[arg-type]
            ledger=Ledger(self.folder / "ledger", self.attempts, world),
            quarantine=Quarantine(
                self.folder / "quarantine.jsonl",
                self.split,
                world=world,
                attempt=self.attempts,
                max_bad=Share.parse(self.max_bad),
            ),
            contents=ShardContents(
                self.split, Access(), self.folder / "ledger", self.attempts, world=world, verify=False
            ),
            log_every=Duration.parse("1000 steps"),
        )

    def audit(self) -> Audit:
        """The audit of what is final."""
        listed = {row["number"] for row in self.quarantine()}
        found = epochs(self.plans, self.split, self.seed, self.window)
        final = self.saved[0].step if self.saved else 0
        return Audit(ledger_reader.read(self.folder / "ledger"), found, final, listed)

    def quarantine(self) -> list[dict[str, Any]]:
        """The lines of the quarantine."""
        return jsonl.read(self.folder / "quarantine.jsonl")


@dataclass
class PlansMadeBefore:
    """Plans that were made beforehand."""

    plans: list[EpochPlan]

    def plan(self, epoch: int) -> EpochPlan:
        return self.plans[epoch]


class NoCurves:
    """Steps without hyperparameters."""

    def hyperparameters(self, progress: Progress) -> Hyperparameters:
        return Hyperparameters({})


@dataclass
class Engine:
    """Keeps the samples that it is fed; dies or is asked to stop when its attempt says so."""

    attempt: Attempt
    rank: int
    signals: Signals
    fed: list[dict[int, list[int]]]
    steps: int = 0
    clock: StepClock = field(default_factory=StepClock)

    needs_initial_pass = False

    def step(self, batch: Batch, hyper: Hyperparameters) -> StepOutput:
        if self.attempt.dies_at == (self.steps, self.rank):
            raise KilledError
        if self.attempt.stops_at == (self.steps, self.rank):
            self.signals.received = STOPPING[0]
        self.fed[self.rank][self.steps] = batch.ids.tolist()
        self.steps += 1
        return StepOutput({})


@dataclass
class Memory:
    """Checkpoints that are kept in the run; the steps of an attempt before this one come from what was restored."""

    run: Run
    world: Side
    fed: list[dict[int, list[int]]]
    writing = False
    stall = 0.0

    def restore(self, engine: Engine, fresh: Progress) -> Progress:
        if self.run.saved is None:
            return fresh
        progress = replace(self.run.saved[0], attempt=self.run.attempts)
        engine.steps = progress.step
        return progress

    def save(self, engine: Engine, progress: Progress, records: Callable[[], object]) -> None:
        self.world.collect(None)  # all have come so far
        records()
        if self.world.rank == 0:
            before = self.run.saved[1] if self.run.saved else []
            new = [[i for own in self.fed for i in own[n]] for n in range(len(before), progress.step)]
            self.run.saved = (progress, [*before, *new])
        self.world.collect(None)

    def wait(self) -> None: ...

    def metrics(self) -> dict[str, float]:
        return {}


@dataclass
class Spoilt:
    """A stream with a fault."""

    stream: Stream
    spoil: Callable[[Iterator[Batch], int, EpochPlan, int], Iterator[Batch]]
    rank: int

    def epoch(self, plan: EpochPlan, start: int = 0, before: int | None = None) -> Iterator[Batch]:
        return self.spoil(self.stream.epoch(plan, start, before), self.rank, plan, start)


class Silence:
    """A meter that nobody reads."""

    def open(self, progress: Progress) -> None: ...

    def record(self, values: Any) -> None: ...

    def flush(self, progress: Progress) -> None: ...


def bare(monkeypatch: Any) -> None:
    """Cut nothing, draw no order twice, and do not wait for the disk: here nobody pulls the plug."""
    drawn: dict[Any, Any] = {}
    draw = Draws.order

    def order(draws: Draws, purpose: Purpose, ids: Any, slot: int = 0) -> Any:
        key = (draws, purpose, ids.tobytes(), slot)
        if key not in drawn:
            drawn[key] = draw(draws, purpose, ids, slot)
        return drawn[key]

    monkeypatch.setattr(Draws, "order", order)
    monkeypatch.setattr(epoch_views, "Cutter", Scissors)
    monkeypatch.setattr("os.fsync", lambda handle: None)


def expected(run: Run) -> list[list[int]]:
    """The global batches of an undisturbed run, from the lanes alone."""
    found = epochs(run.plans, run.split, run.seed, run.window)
    return [np.asarray(e.batch(e.first_step + n)).tolist() for e in found for n in range(e.steps)]
