"""The training loop, and nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from dist_ssl.checkpoint.saver import Checkpoint
from dist_ssl.config.durations import Duration
from dist_ssl.core.batch import Batch
from dist_ssl.core.plan import EpochPlan
from dist_ssl.core.progress import Progress
from dist_ssl.data.order.ledger import Ledger
from dist_ssl.data.order.quarantine import Quarantine
from dist_ssl.data.storage.contents import ShardContents
from dist_ssl.data.stream import Stream
from dist_ssl.memory.initialise import plan_of_initial_pass, run_initial_pass
from dist_ssl.metrics.meter import Meter
from dist_ssl.protocols.engine import Engine
from dist_ssl.protocols.probe import Probe
from dist_ssl.protocols.schedule import Schedule
from dist_ssl.runtime import end_names
from dist_ssl.runtime.agreement import Agreement
from dist_ssl.runtime.coordinator import Coordinator


class Outcome(Enum):
    """The ways in which an attempt ends without an error."""

    FINISHED = end_names.FINISHED
    STOPPED = end_names.STOPPED


@dataclass
class Job:
    """All parts of a run on one rank."""

    fresh: Progress
    engine: Engine
    stream: Stream
    schedule: Schedule
    coordinator: Coordinator
    checkpoint: Checkpoint
    agreement: Agreement
    probe: Probe
    meter: Meter
    ledger: Ledger
    quarantine: Quarantine
    contents: ShardContents
    log_every: Duration

    def batches(self, plan: EpochPlan, start: int = 0, before: int | None = None) -> Iterator[Batch]:
        """Yield the batches of an epoch (see `Stream`); the shards that they were read from are verified meanwhile."""
        for batch in self.stream.epoch(plan, start, before):
            self.contents.record(batch)
            yield batch

    def save(self, progress: Progress) -> None:
        """Save everything about the steps so far, if their samples came from the manifest's shards.

        The checkpoint is last, because it makes the other records valid.
        """
        self.contents.check()
        self.quarantine.share_news(progress)
        self.ledger.seal(progress)
        self.checkpoint.save(self.engine, progress, self.ledger.sync)

    def end(self, progress: Progress, outcome: Outcome) -> Outcome:
        """Wait until everything saved is on disk, report for the last time, and return the outcome."""
        self.checkpoint.wait()
        self.report(progress)
        return outcome

    def report(self, progress: Progress) -> None:
        """Send the metrics recorded so far to the sinks, with the costs of saving and of the parts of steps."""
        self.meter.record({**self.checkpoint.metrics(), **self.engine.clock.metrics()})
        self.meter.flush(progress)


def train(job: Job) -> Outcome:
    """Run the job until it has finished or the cluster requests its nodes back; return which."""
    progress = job.checkpoint.restore(job.engine, job.fresh)
    job.coordinator.check_memory(progress)
    job.meter.open(progress)
    while True:
        if progress.between_epochs:
            if job.agreement.stopping():
                return job.end(progress, Outcome.STOPPED)
            job.meter.record(job.probe.epoch(job.engine, progress))
            job.report(progress)
        if progress.finished:
            return job.end(progress, Outcome.FINISHED)
        plan = job.coordinator.plan(progress)
        if progress.step == 0 and not run_initial_pass(
            job.engine, job.batches(plan_of_initial_pass(plan)), job.agreement.stopping
        ):
            return Outcome.STOPPED
        progress = progress.begin(plan)
        for batch in job.batches(plan, progress.lane_offset, progress.samples_before):
            hyper = job.schedule.hyperparameters(progress)
            job.ledger.record(progress, batch)
            job.quarantine.record(progress, batch)
            out = job.engine.step(batch, hyper)
            progress = progress.advance()
            job.meter.record({**out.metrics, **hyper.values, **batch.costs, **job.coordinator.metrics(plan)})
            job.meter.record(job.quarantine.metrics)
            if job.log_every.due(progress):
                job.report(progress)
            decision = job.agreement.step(progress, job.quarantine.news, job.checkpoint.writing, job.checkpoint.stall)
            if decision.news:
                job.contents.check()  # an image that cannot be read may be one of a shard that has changed
                job.quarantine.share_news(progress)
            if decision.save:
                job.save(progress)
            if decision.stop:
                return job.end(progress, Outcome.STOPPED)
        progress = progress.next_epoch()
        job.report(progress)
        job.save(progress)
