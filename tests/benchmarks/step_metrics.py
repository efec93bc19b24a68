"""The cost of a step's metrics: the account of its parts, recording what has been measured, and its share of a report.

    python tests/benchmarks/step_metrics.py

On the device of this process, a GPU where there is one, without any sink. The bar is 50 us a step, where a report is
made every 50 steps.
"""

import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dist_ssl.core.plan import EpochPlan
from dist_ssl.core.progress import Progress
from dist_ssl.distributed.devices import own_device
from dist_ssl.distributed.world import World
from dist_ssl.metrics.meter import Meter
from dist_ssl.runtime.step_clock import Part, StepClock

BAR = 50e-6
STEPS, ROUNDS, EVERY = 500, 9, 50
HERE = Progress(epochs=1, step=1, plans=(EpochPlan(0, image_size=32, magnitude=1.0, views=2, batch_size=96, lanes=48),))
ON_DEVICE = ("loss", "gradient_norm", "positive_similarity", "negative_similarity", "feature_std", "effective_rank")
ON_HOST = (
    *("teacher_distance", "lr", "weight_decay", "momentum", "image_size", "magnitude", "batch_size"),
    *("data_wait_seconds", "fetched_bytes", "fetch_retries", "cache_hits", "cache_misses", "replaced_samples"),
    *(
        "slow_images/CMYK",
        "slow_images/format",
        "bad_samples/empty",
        "save_stall_seconds",
        "saved_step",
        "failed_saves",
    ),
)
"""What a step of MoCo v3 records that reads shards from a bucket."""
LAPS: tuple[Part, ...] = ("data", "copy", "other", "forward", "loss", "backward", "backward", "optimizer", "memory")


def cost_of_laps(device: torch.device) -> float:
    """Seconds of a step for its laps, read at every report."""
    clock = StepClock.of(device, 8)
    clock.start()
    started = time.perf_counter()
    for step in range(STEPS):
        for part in LAPS:
            clock.lap(part)
        if step % EVERY == EVERY - 1:
            clock.metrics()
    return (time.perf_counter() - started) / STEPS


def metered(device: torch.device, *, reports: bool) -> float:
    """Seconds of a step for recording what one of MoCo v3 records, or for its share of the reports."""
    meter, spent = Meter(World(device=device), [], total_samples=10**9), 0.0
    values: dict[str, Tensor | float] = {key: torch.ones((), device=device) for key in ON_DEVICE}
    values |= dict.fromkeys(ON_HOST, 0.5)
    for step in range(STEPS):
        started = time.perf_counter()
        meter.record(values)
        recorded = time.perf_counter()
        if step % EVERY == EVERY - 1:
            meter.flush(HERE)
        spent += time.perf_counter() - recorded if reports else recorded - started
    return spent / STEPS


def cost_of_records(device: torch.device) -> float:
    """Seconds of a step for recording numbers of the device and of the host."""
    return metered(device, reports=False)


def cost_of_reports(device: torch.device) -> float:
    """Seconds of a step for its share of the reductions."""
    return metered(device, reports=True)


WORKS = (cost_of_laps, cost_of_records, cost_of_reports)


def main() -> int:
    """Measure and print; 1 where the bar is missed."""
    device = own_device(0)
    costs = {work: statistics.median(work(device) for _ in range(ROUNDS)) for work in WORKS}
    for work, seconds in costs.items():
        print(f"{work.__name__:18}{1e6 * seconds:8.1f} us a step")
    whole = sum(costs.values())
    verdict = "ok" if whole < BAR else "MISSED"
    print(f"{'together':18}{1e6 * whole:8.1f} us a step on {device.type}; bar {1e6 * BAR:.0f}: {verdict}")
    return int(whole >= BAR)


if __name__ == "__main__":
    sys.exit(main())
