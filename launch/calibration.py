"""Seconds per step of a planned run: from a few real steps of each kind on this machine, or from a past run's metrics.

A kind of step is what its cost depends on: the sides and the numbers of views, their candidates, the batch, and the
tokens. One process trains with a rank's share of the batch. Where all ranks are on this machine, they share its cores,
so a step takes at least the processor time of all ranks divided by the cores. What ranks exchange is not measured.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dist_ssl.build import Place, build
from dist_ssl.core.batch import Batch
from dist_ssl.core.plan import EpochPlan
from dist_ssl.core.progress import Progress
from dist_ssl.distributed.devices import own_device
from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError, plural
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.own_cores import own_cores
from dist_ssl.runtime.signals import Signals
from dist_ssl.train import Job
from launch.audit import plans_of
from launch.run_dir import AttemptDir, RunDir

Kind = tuple[int, int, int, int, int, float, int, int]
"""Side and number of global views, side and number of local views, samples per step, how a transformer cuts views,
candidates of a view."""
FIRST_STEPS = 2
"""Steps that are not measured: buffers are allocated and code is compiled in them."""
PROBED = {"bank": 600, "queries": 100}
"""Images, at most, on which the probe is timed."""
OF_GROUPS = {"norm_group": None, "loss_group": None, "shuffle": False}
"""Keys of a method that need the samples of several ranks: they are left out where one rank is timed."""


@dataclass(frozen=True)
class Cost:
    """Seconds of the epochs of each kind, and of one probe; `source` says where they come from.

    `seconds`: from the start of an epoch to its first batch, and per step.
    """

    seconds: Mapping[Kind, tuple[float, float]]
    probe: float
    source: str

    def epoch(self, plan: EpochPlan, steps: int) -> float:
        """Return the seconds of an epoch with `steps` steps; a kind that was not measured costs as its pixels do."""
        kind = kind_of(plan)
        nearest = min(self.seconds, key=lambda known: (known != kind, abs(pixels(known) - pixels(kind))))
        first, step = self.seconds[nearest]
        return (first + steps * step) * pixels(kind) / pixels(nearest)


def kind_of(plan: EpochPlan) -> Kind:
    """Return what the cost of a plan's steps depends on."""
    local = (plan.local_size, plan.local_views) if plan.local_views else (0, 0)
    cuts = plan.keep_tokens, plan.patch_size, plan.candidates
    return plan.image_size, plan.views, *local, plan.batch_size, *cuts


def described(plan: EpochPlan) -> str:
    """Return what the cost of a plan's steps depends on, in words."""
    tokens = f", {100 * plan.keep_tokens:.3g} % of the tokens" if plan.keep_tokens < 1 else ""
    tokens += f", patches of {plan.patch_size} px" if plan.patch_size else ""
    candidates = f", {plan.candidates} candidates" if plan.candidates > 1 else ""
    return f"{plan.views_in_words}{tokens}{candidates}, batch {plan.batch_size}"


def pixels(kind: Kind) -> int:
    """Return the pixels of all views that a step trains on."""
    side, views, local_side, local_views, batch, *_ = kind
    return batch * (views * side**2 + local_views * local_side**2)


def by_pixels(plans: Iterable[EpochPlan]) -> Cost:
    """Return costs in proportion to the number of pixels, in units of a step of the last plan."""
    *_, last = plans
    return Cost({kind_of(last): (0.0, 1.0)}, 0.0, "Costs are in proportion to the pixels: nothing was measured.")


def measured(
    config: Mapping[str, Any], plans: Iterable[EpochPlan], steps: int, images: Sequence[int], say: Callable[[str], None]
) -> Cost:
    """Return the costs of `steps` steps of every kind of plan on one process of this machine.

    `images`: number of images for training, and of held-out ones if there are any; `say` shows what is measured next.
    Raises UserError.
    """
    torch.set_num_threads(config["threads"])
    ranks = config["nodes"] * config["ranks_per_node"]
    here = ranks if config["cluster"]["kind"] == "local" else 1
    cores = own_cores()
    by_kind = {kind_of(plan): plan for plan in plans}
    with tempfile.TemporaryDirectory() as folder:
        job = build(of_one_rank(config), World(device=own_device(0)), Signals(), Place(Path(folder), 1, lambda: True))
        device = job.stream.world.device.type

        def of_all(clocks: Clocks) -> float:
            return max(clocks.wall, clocks.work * here / cores) if device == "cpu" else clocks.wall

        seconds = {}
        for number, (kind, plan) in enumerate(by_kind.items(), start=1):
            say(
                f"Measuring kind {number} of {len(by_kind)} (steps=0: none): {plural(steps, 'step')} with "
                f"{described(plan)} ..."
            )
            first, step = timed_steps(job, plan, ranks, steps)
            seconds[kind] = (of_all(first), of_all(step))
        say("Measuring the probe ...")
        probe = timed_probe(job)
        job.ledger.close()
        job.contents.close()
        job.stream.close()
    shared = f"; {here} ranks share {cores} cores" if device == "cpu" and here > 1 else ""
    source = (
        f"Measured here: {plural(steps, 'step')} of each of {plural(len(seconds), 'kind')} on one {device} "
        f"process{shared}."
    )
    return Cost(seconds, share_of_probe(config, images) * of_all(probe) / ranks, source)


def of_one_rank(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a single rank that is timed."""
    found = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    for name in (name for name in ("method", "aux") if found[name]):
        found[name] = {**found[name], **{k: v for k, v in OF_GROUPS.items() if k in found[name]}}
    if "bitwise" in found["engine"]:
        found["engine"] |= {"bitwise": False, "virtual_ranks": None}
    found["probe"] |= {key: min(most, found["probe"][key]) for key, most in PROBED.items()}
    found["probe"]["every"] = "1 epoch"
    found["data"]["verify"] = False  # hashing beside the timed steps would slow them down
    return found


def share_of_probe(config: Mapping[str, Any], images: Sequence[int]) -> float:
    """Return how many times as many images as were timed the probe has, of those that there are."""
    whole = [min(config["probe"][key], there) for key, there in zip(PROBED, images, strict=False)]
    timed = sum(min(number, most) for number, most in zip(whole, PROBED.values(), strict=False))
    return float(sum(whole) / timed)


@dataclass(frozen=True)
class Clocks:
    """Wall time and this process's processor time, in seconds."""

    wall: float
    work: float

    @classmethod
    def now(cls, job: Job) -> "Clocks":
        """Return both clocks once the device has done its work."""
        if job.stream.world.device.type == "cuda":
            torch.cuda.synchronize()
        return cls(time.perf_counter(), time.process_time())

    def since(self, before: "Clocks", times: int = 1) -> "Clocks":
        """Return what has passed since then, divided by a number of times."""
        return Clocks((self.wall - before.wall) / times, (self.work - before.work) / times)


def timed_steps(job: Job, plan: EpochPlan, ranks: int, steps: int) -> tuple[Clocks, Clocks]:
    """Return what the first batch of an epoch takes, and then a step, with a rank's share of the plan."""
    share = share_of(plan, ranks)
    hyper = job.schedule.hyperparameters(job.fresh)  # at the start: those of a later step might diverge
    batches = endless(job, share)
    for number in range(FIRST_STEPS):
        batch = next(batches)
        if number == 0 and job.engine.needs_initial_pass:
            job.engine.initialise_memory(batch)
        job.engine.step(batch, hyper)
    batches.close()
    opened = Clocks.now(job)
    batches = endless(job, share)
    batch = next(batches)
    began = Clocks.now(job)
    for _ in range(steps):
        job.engine.step(batch, hyper)
        batch = next(batches)
    ended = Clocks.now(job)
    batches.close()
    return began.since(opened), ended.since(began, steps)


def share_of(plan: EpochPlan, ranks: int) -> EpochPlan:
    """Return the plan of one rank's share of the batch."""
    return replace(plan, batch_size=plan.batch_size // ranks, lanes=plan.lanes // ranks)


def endless(job: Job, plan: EpochPlan) -> Generator[Batch, None, None]:
    """Yield batches of this plan without end."""
    for epoch in itertools.count(plan.epoch):
        yield from job.stream.epoch(plan.numbered(epoch))


def timed_probe(job: Job) -> Clocks:
    """Return what a probe of few images takes, the second time."""
    job.probe.epoch(job.engine, Progress(epochs=1, epoch=1))
    began = Clocks.now(job)
    job.probe.epoch(job.engine, Progress(epochs=1, epoch=1))
    return Clocks.now(job).since(began)


def of_run(run: RunDir, ranks: int) -> Cost:
    """Return the costs that a past run's metrics show, for `ranks` ranks as fast as its own. Raises ConfigError."""
    plans, _ = plans_of(run)
    rows: dict[Kind, list[float]] = {}
    probes: list[float] = []
    attempt = 0
    for row in jsonl.read(run.metrics):
        if "step_seconds" in row and row["attempt"] == attempt:  # the first report of an attempt has its start in it
            plan = plans[min(int(row["epoch"]), len(plans) - 1)]
            if row.get("image_size") == plan.image_size:
                rows.setdefault(kind_of(plan), []).append(row["step_seconds"])
        attempt = row["attempt"]
        if "probe_seconds" in row:
            probes.append(row["probe_seconds"])
    if not rows:
        raise ConfigError(f"{run.folder} has no steps in its metrics.", "Name a run that has trained, or measure here.")
    newest = AttemptDir(run, run.newest_attempt())
    config = newest.config if newest.config_file.is_file() else run.config
    own = config["nodes"] * config["ranks_per_node"]
    seconds = {kind: (0.0, statistics.fmean(found) * own / ranks) for kind, found in rows.items()}
    probe = statistics.median(probes) * own / ranks if probes else 0.0
    scaled = f", divided by {ranks / own:g} for {plural(ranks, 'rank')}" if ranks != own else ""
    return Cost(seconds, probe, f"From the metrics of {run.folder}, with {plural(own, 'rank')}{scaled}.")
