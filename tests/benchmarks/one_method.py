"""Trains one method and measures what its features tell: a row of `methods.py`, in a process of its own, of one thread.

python tests/benchmarks/one_method.py BUDGET AMOUNT WORD... prints one JSON object. BUDGET is `crops` or `seconds`: the
run has as many whole epochs as come nearest to the amount, at least one. Crops are views of images, small ones too.
Seconds are processor time, so what else the machine does does not count; how long a step takes is measured first. The
words compose the config as those of `launch/slurm.py` do.
"""

import json
import resource
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dist_ssl.build import Place, build
from dist_ssl.core.plan import EpochPlan
from dist_ssl.distributed.world import World
from dist_ssl.errors import EXIT_CODE, UserError
from dist_ssl.evaluate.knn import KNN, knn_votes
from dist_ssl.evaluate.linear import Standardiser, logistic_regression
from dist_ssl.memory.initialise import plan_of_initial_pass, run_initial_pass
from dist_ssl.runtime.signals import Signals
from dist_ssl.train import Job, Outcome, train
from launch import settings
from launch.run_dir import PROJECT

WARM, TIMED = 5, 15
"""Steps before the clock starts, and under the clock."""
HELD = (
    "threads=1",
    "decode_threads=1",
    "nodes=1",
    "save_every=9 hours",
    "probe.every=999999 epochs",
    "log_every=20 steps",
)
STEADY = 1e-3
"""How strongly the linear classifier's weights are held back."""


def composed(words: list[str], epochs: int | None) -> dict[str, Any]:
    """The config of a run, of one process."""
    more = [] if epochs is None else [f"epochs={epochs}"]
    return settings.compose([*words, *HELD, *more], PROJECT / "configs")


def job_of(words: list[str], epochs: int | None, folder: Path) -> Job:
    """The product's own job of the only rank."""
    folder.mkdir()
    return build(composed(words, epochs), World(), Signals(), Place(folder, 1, lambda: True))


def plan_of(job: Job) -> EpochPlan:
    """How every epoch is read."""
    return job.schedule.plan(0)


def steps_of(job: Job) -> int:
    """Steps of an epoch."""
    return len(job.stream.split.samples) // plan_of(job).batch_size


def crops_of(job: Job) -> int:
    """Crops of an epoch."""
    plan = plan_of(job)
    return steps_of(job) * plan.batch_size * (plan.views + plan.local_views)


def pace(job: Job) -> tuple[float, float]:
    """Processor seconds of a step, and of the pass before the first one; the job is of no use afterwards."""
    plan = plan_of(job)
    started = time.process_time()
    run_initial_pass(job.engine, job.stream.epoch(plan_of_initial_pass(plan)), lambda: False)
    before, done, clock = time.process_time() - started, 0, 0.0
    while done < WARM + TIMED:  # epochs begin anew where they are short
        for batch in islice(job.stream.epoch(plan), WARM + TIMED - done):
            job.engine.step(batch, job.schedule.hyperparameters(job.fresh))
            done += 1
            clock = time.process_time() if done == WARM else clock
    return (time.process_time() - clock) / TIMED, before


def epochs_for(budget: str, amount: float, job: Job) -> int:
    """The number of whole epochs that comes nearest to the budget, at least one; the job is of no use afterwards."""
    if budget == "crops":
        return max(1, round(amount / crops_of(job)))
    step, before = pace(job)
    return max(1, round((amount - before) / (steps_of(job) * step)))


def linear_accuracy(known: Tensor, known_labels: Tensor, asked: Tensor, asked_labels: Tensor) -> float:
    """Return the accuracy, 0 to 1, of a linear classifier on standardised features, [N, D] each, fitted to the end."""
    standardise = Standardiser(known)
    weight, bias = logistic_regression(standardise(known), known_labels, STEADY)
    return float((F.linear(standardise(asked).double(), weight, bias).argmax(1) == asked_labels).double().mean())


def judged(job: Job) -> dict[str, float]:
    """Accuracies of the student's features, by the product's own probe's images."""
    probe = job.probe
    assert isinstance(probe, KNN), "the data has no labels or no held-out split"
    known, known_labels = probe.bank[0].features(job.engine, probe.bank[1])
    asked, asked_labels = probe.queries[0].features(job.engine, probe.queries[1])
    votes = knn_votes(known, known_labels, asked, probe.k, probe.temperature)
    knn = float((votes == asked_labels).double().mean())
    return {"knn": knn, "linear": linear_accuracy(known, known_labels, asked, asked_labels)}


def measure(budget: str, amount: float, words: list[str], folder: Path) -> dict[str, float]:
    """Train with this budget, and what came of it."""
    epochs = epochs_for(budget, amount, job_of(words, None, folder / "pace"))
    job = job_of(words, epochs, folder / "run")
    started = time.process_time()
    outcome = train(job)
    seconds = time.process_time() - started
    job.agreement.drain()
    job.meter.close()
    job.ledger.close()
    assert outcome is Outcome.FINISHED
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    steps = epochs * steps_of(job)
    found = {"epochs": epochs, "steps": steps, "crops": epochs * crops_of(job), "seconds": seconds, "peak_mib": peak}
    return found | judged(job)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            print(json.dumps(measure(sys.argv[1], float(sys.argv[2]), sys.argv[3:], Path(scratch))))
        except UserError as error:
            print(error, file=sys.stderr)
            sys.exit(EXIT_CODE)
