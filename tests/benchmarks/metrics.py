"""What metrics cost a step, in microseconds, without any sink: a table, and exit code 1 on a missed bar.

    python tests/benchmarks/metrics.py [steps=5000]

A step records what one of MoCo v3 from a bucket records, numbers of the device and of the host. A report reduces them
over the steps since the last one; its cost is shared out among these.
"""

import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from dist_ssl.core.plan import EpochPlan
from dist_ssl.core.progress import Progress
from dist_ssl.distributed.world import World
from dist_ssl.metrics.meter import Meter

BAR = 50.0
"""Microseconds of a step, where a report is made every EVERY steps."""
EVERY = 50
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
HERE = Progress(
    epochs=1, step=1, plans=(EpochPlan(epoch=0, image_size=32, magnitude=1.0, views=2, batch_size=96, lanes=48),)
)


def seconds(steps: int, every: int) -> tuple[float, float]:
    """Seconds of a step for recording, and for its share of the reports."""
    meter = Meter(World(), [], total_samples=10**9)
    device = {key: torch.ones((), requires_grad=True) * 2 for key in ON_DEVICE}
    values: dict[str, Tensor | float] = {**device, **dict.fromkeys(ON_HOST, 0.5)}
    recording = reporting = 0.0
    for step in range(1, steps + 1):
        started = time.perf_counter()
        meter.record(values)
        recorded = time.perf_counter()
        recording += recorded - started
        if step % every == 0:
            meter.flush(HERE)
            reporting += time.perf_counter() - recorded
    return recording / steps, reporting / steps


def main(arguments: list[str]) -> int:
    """Measure and print; return the exit code."""
    steps = int(dict(argument.split("=") for argument in arguments).get("steps", "5000"))
    seconds(500, 5)
    table = Table("report every", "record, us", "report, us a step", "together, us", box=None)
    costs = {}
    for every in (5, EVERY, 500):
        record, report = (1e6 * value for value in seconds(steps, every))
        costs[every] = record + report
        table.add_row(f"{every} steps", f"{record:.1f}", f"{report:.1f}", f"{costs[every]:.1f}")
    Console().print(table)
    return 0 if costs[EVERY] < BAR else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
