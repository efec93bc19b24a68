"""What a step costs with candidates of its views: loading and training, with one candidate, or chosen from several.

    python tests/benchmarks/candidates.py [rounds=20] [candidates=4] [WORD...]

It takes turns at steps of four runs: one candidate, `difficulty=parameters`, `difficulty=model`, and that at every
other step. The words compose the config as those of `launch/slurm.py` do; the data must have been made. Seconds are
processor time of one process, all its threads together, batch and step. Exits with 1 where a choice by parameters costs
more than a tenth of a step.
"""

import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dist_ssl.build import Place, build
from dist_ssl.distributed.world import World
from dist_ssl.runtime.signals import Signals
from launch import settings
from launch.run_dir import PROJECT
from tests.benchmarks.turns import in_turns, quotient

MOST = 1.1
"""A step with a choice by parameters, as a share of one without a choice, at most."""
ALIKE = ("threads=1", "decode_threads=1", "schedule.candidates_from=0", "save_every=9 hours")


def steps(words: list[str], folder: Path) -> Callable[[], float]:
    """Return a function that loads a batch, takes a step and returns the processor seconds of both."""
    config = settings.compose([*ALIKE, *words], PROJECT / "configs")
    folder.mkdir()
    job = build(config, World(), Signals(), Place(folder, 1, lambda: True))
    plan, hyper = job.schedule.plan(0), job.schedule.hyperparameters(job.fresh)
    batches = (batch for epoch in itertools.count() for batch in job.stream.epoch(plan.numbered(epoch)))

    def measured() -> float:
        started = time.process_time()
        job.engine.step(next(batches), hyper)
        return time.process_time() - started

    return measured


def main(words: list[str]) -> int:
    """Print the table; return the exit code."""
    own = {"rounds": "20", "candidates": "4"} | dict(w.split("=", 1) for w in words if "=" in w)
    rest = [word for word in words if word.split("=")[0] not in ("rounds", "candidates")]
    several = f"schedule.candidates={own['candidates']}"
    cases = {
        "one candidate": [],
        "parameters": [several, "difficulty=parameters"],
        "model": [several, "difficulty=model"],
        "model, every=2": [several, "difficulty=model", "difficulty.every=2"],
    }
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        works = [steps([*rest, *case], Path(folder) / str(number)) for number, case in enumerate(cases.values())]

        def twice(work: Callable[[], float]) -> Callable[[], float]:
            return lambda: (work() + work()) / 2

        times = in_turns(int(own["rounds"]), *map(twice, works))
    shares = [quotient(found, times[0]) for found in times]
    for name, found, share in zip(cases, times, shares, strict=True):
        ms = 1e3 * statistics.median(found)
        print(f"{name:16} {ms:7.1f} ms   x {share.mean:.2f} ({share.low:.2f} to {share.high:.2f})")
    return 0 if shares[1].mean <= MOST else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
