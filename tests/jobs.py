"""Small jobs for tests: seconds on one core, every part the real one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dist_ssl.build import Place, build
from dist_ssl.core.batch import Batch
from dist_ssl.core.plan import EpochPlan
from dist_ssl.data.stream import Stream
from dist_ssl.distributed.world import World
from dist_ssl.runtime.signals import Signals
from dist_ssl.train import Job, Outcome, train
from launch import settings
from launch.run_dir import PROJECT

SMALL = (
    "encoder.width=4",
    "method.hidden=16",
    "method.dim=8",
    "schedule.image_size=16",
    "batch_size=12",
    "lanes=12",
    "window=8",
    "log_every=1 step",
    "save_every=1 hour",
    "threads=1",
    "decode_threads=1",
    "probe.bank=24",
    "probe.queries=12",
)


def small_config(data: Path, *words: str) -> dict[str, Any]:
    """A config of a few seconds; `words` come last and win."""
    return settings.compose([*SMALL, f"data.path={data}", "data.source=null", *words], PROJECT / "configs")


class Recorder:
    """A stream that remembers which samples it delivered."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.ids: list[list[int]] = []

    def epoch(self, plan: EpochPlan, start: int = 0, before: int | None = None) -> Iterator[Batch]:
        for batch in self.stream.epoch(plan, start, before):
            self.ids.append(batch.ids.tolist())
            yield batch


def small_job(world: World, config: dict[str, Any], folder: Path, attempt: int = 1) -> Job:
    """The job of one rank in a run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return build(config, world, Signals(), Place(folder, attempt, lambda: True, {"worker died": attempt - 1}))


def finished(job: Job) -> bool:
    """Train to the end and close what is open; whether it came that far."""
    outcome = train(job)
    job.agreement.drain()
    job.meter.close()
    job.ledger.close()
    job.contents.close()
    return outcome is Outcome.FINISHED


def run_job(world: World, config: dict[str, Any], folder: Path, attempt: int = 1) -> tuple[list[list[int]], Any]:
    """Train to the end: the ids of every step on this rank, and the final state."""
    job = small_job(world, config, folder, attempt)
    recorder = Recorder(job.stream)
    job.stream = recorder  # type: ignore[assignment]
    assert finished(job)
    final = {}
    for name, value in job.engine.state().items():
        assert isinstance(value, Tensor), f"{name} is in pieces"
        final[name] = value.clone()
    return recorder.ids, final


def together(per_rank: list[list[list[int]]]) -> list[list[int]]:
    """The global batches, from every rank's own."""
    return [[number for part in parts for number in part] for parts in zip(*per_rank, strict=True)]


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Equal names and equal bits."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Cut(Exception):  # noqa: N818
    """The end of an attempt that was not asked for."""


class CutStream:
    """A stream that breaks off after so many batches."""

    def __init__(self, stream: Stream, batches: int) -> None:
        self.stream, self.left = stream, batches

    def epoch(self, plan: EpochPlan, start: int = 0, before: int | None = None) -> Iterator[Batch]:
        for batch in self.stream.epoch(plan, start, before):
            if self.left == 0:
                raise Cut
            self.left -= 1
            yield batch


def attempt(world: World, config: dict[str, Any], folder: Path, number: int, batches: int) -> dict[str, Tensor] | None:
    """Train on from what is saved; the state at the end, None where it was broken off before."""
    job = small_job(world, config, folder, number)
    job.stream = CutStream(job.stream, batches)  # type: ignore[assignment]
    try:
        train(job)
    except Cut:
        return None
    finally:
        job.agreement.drain()
        job.checkpoint.wait()
    state = job.engine.state()
    return {name: value.clone() for name, value in state.items() if isinstance(value, Tensor)}
