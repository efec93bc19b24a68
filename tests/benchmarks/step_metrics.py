"""The cost of a step's metrics: the account of its parts, and recording what a step and its batch have measured.

    python tests/benchmarks/step_metrics.py

On the device of this process, a GPU where there is one. The bar is 50 us a step, without the reduction at a report.
"""

import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dist_ssl.distributed.devices import own_device
from dist_ssl.distributed.world import World
from dist_ssl.metrics.meter import Meter
from dist_ssl.runtime.step_clock import Part, StepClock

BAR = 50e-6
STEPS, ROUNDS = 500, 9
LAPS: tuple[Part, ...] = ("data", "copy", "other", "forward", "loss", "backward", "backward", "optimizer", "memory")


def cost_of_laps(device: torch.device) -> float:
    """Seconds of a step for its laps, read at every report of 50 steps."""
    clock = StepClock.of(device, 8)
    clock.start()
    started = time.perf_counter()
    for step in range(STEPS):
        for part in LAPS:
            clock.lap(part)
        if step % 50 == 49:
            clock.metrics()
    return (time.perf_counter() - started) / STEPS


def cost_of_records(device: torch.device) -> float:
    """Seconds of a step for recording five numbers of the device and a dozen of the host."""
    meter = Meter(World(device=device), [], total_samples=1)
    found = {key: torch.zeros((), device=device) for key in ("loss", "gradient_norm", "feature_std", "effective_rank")}
    host = {key: torch.zeros((), dtype=torch.float64) for key in ("lr", "weight_decay", "momentum")}
    batch = dict.fromkeys(("data_wait_seconds", "replaced_samples", "fetched_bytes", "cache_hits", "magnitude"), 1.0)
    started = time.perf_counter()
    for _ in range(STEPS):
        meter.record({**found, **host, **batch})
    return (time.perf_counter() - started) / STEPS


def main() -> int:
    """Measure and print; 1 where the bar is missed."""
    device = own_device(0)
    costs = {work: statistics.median(work(device) for _ in range(ROUNDS)) for work in (cost_of_laps, cost_of_records)}
    for work, seconds in costs.items():
        print(f"{work.__name__:18}{1e6 * seconds:8.1f} us a step")
    whole = sum(costs.values())
    verdict = "ok" if whole < BAR else "MISSED"
    print(f"{'together':18}{1e6 * whole:8.1f} us a step on {device.type}; bar {1e6 * BAR:.0f}: {verdict}")
    return int(whole >= BAR)


if __name__ == "__main__":
    sys.exit(main())
