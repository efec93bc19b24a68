"""Trains one row of a table and measures its features, in a process of its own, of one thread on a CPU.

The run has as many whole epochs as come nearest to the budget, at least one, with a learning-rate schedule of its own
length; crops are views of images, small ones too. A warm-up has 5 % of the steps, unless the words leave it out.
Seconds are processor time, so what else the machine does counts little; on a GPU they are wall time. Both are of the
training alone: the loader and the loop count, imports and the evaluation do not.
"""

import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dist_ssl.build import Place, build
from dist_ssl.distributed.devices import own_device
from dist_ssl.distributed.world import World
from dist_ssl.errors import CheckpointError, TrainingError, UserError
from dist_ssl.evaluate.inputs import Inputs
from dist_ssl.evaluate.knn import knn_votes
from dist_ssl.evaluate.linear import linear_probe
from dist_ssl.parts import Parts, parts, probing
from dist_ssl.runtime.signals import Signals
from dist_ssl.train import Job, Outcome, train
from launch import settings
from launch.frozen import Frozen
from launch.run_dir import PROJECT
from tests.benchmarks.pace import clock, pace

HELD = (
    "threads=1",
    "decode_threads=1",
    "nodes=1",
    "save_every=9 hours",
    "probe.every=999999 epochs",
    "log_every=99 steps",
)
WARM = 0.05
"""Share of the steps that warm up."""
QUERY = 5
"""One of so many training images is a query where a setting is tuned."""


def config_of(words: list[str], budget: float, world: World) -> tuple[dict[str, Any], dict[str, float]]:
    """Return a row's config, and how long it is: `epochs`, `steps`, `images` (each time that one is seen), `crops`."""
    config = settings.compose([*words, *(word for word in HELD if not_given(word, words))], PROJECT / "configs")
    found = parts(config, world, 1)
    plan = found.schedule.plan(0)
    views, steps = plan.views + plan.local_views, len(found.train.samples) // plan.batch_size
    epochs = max(1, round(2 * budget / views))
    if config["schedule"].get("warmup") is not None:
        config["schedule"]["warmup"] = f"{max(1, round(WARM * epochs * steps))} steps"
    config["epochs"] = epochs
    images = epochs * steps * plan.batch_size
    return config, {"epochs": epochs, "steps": epochs * steps, "images": images, "crops": images * views}


def not_given(word: str, words: list[str]) -> bool:
    """Return whether no word has the key of `word`."""
    return not any(other.startswith(word.partition("=")[0] + "=") for other in words)


def trained(config: dict[str, Any], world: World, folder: Path) -> Job:
    """Return the product's own job after its training."""
    job = build(config, world, Signals(), Place(folder, 1, lambda: True))
    outcome = train(job)
    job.agreement.drain()
    job.meter.close()
    job.ledger.close()
    assert outcome is Outcome.FINISHED
    return job


def cut(frozen: Frozen, split: str, inputs: Inputs | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return features and labels of the images that vote, then of the queries.

    `split`: `val`, as evaluations have it; `train`: every fifth training image is a query, so that nothing is tuned on
    images that a number is reported of.
    """
    if split == "val":
        return frozen.both(inputs)
    features, labels = frozen.features(frozen.labelled()[0], frozen.node.bank, inputs)
    asked = torch.arange(len(features)) % QUERY == 0
    return features[~asked], labels[~asked], features[asked], labels[asked]


def accuracies(frozen: Frozen, split: str, inputs: Inputs | None = None) -> dict[str, float]:
    """Return the accuracies of kNN and of the linear probe after its last epoch, 0 to 1."""
    device, node = frozen.world.device, frozen.node
    known, labels, asked, right = (tensor.to(device) for tensor in cut(frozen, split, inputs))
    votes = knn_votes(known, labels, asked, node.k, node.temperature)
    return {
        "knn": float((votes == right).double().mean()),
        "linear": linear_probe(known, labels, asked, right).last,
    }


def measure(words: list[str], budget: float, split: str, bag: int, folder: Path) -> dict[str, Any]:
    """Train a row and return its numbers: accuracies, length, times, peak memory. Raises UserError.

    `pace_seconds`: those of a fixed piece of work, the mean of one before the training and one after it.
    """
    world = World(device=own_device(0))
    config, length = config_of(words, budget, world)
    before, started, began = pace(world.device), clock(world.device), time.perf_counter()
    job = trained(config, world, folder)
    times = {"seconds": clock(world.device) - started, "wall_seconds": time.perf_counter() - began}
    times["pace_seconds"] = (before + pace(world.device)) / 2
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    own: Parts = parts(config, world, 1)
    frozen = Frozen(own, job.engine, world, probing(config), bag)
    found = accuracies(frozen, split)
    if bag:
        patches = accuracies(frozen, split, frozen.drawn(bag, 1))
        found |= {f"bag_{name}": value for name, value in patches.items()}
    found |= {"budget": budget, "peak_mib": round(peak), **{name: round(value, 3) for name, value in times.items()}}
    return {**found, **length, "data": own.dataset.identity[:16], "device": world.device.type}


def work(sink: Any, words: list[str], budget: float, split: str, bag: int) -> None:
    """Measure a row and send its numbers to the parent; after a UserError `broken`, why, and whether it diverged."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    started = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            found = measure(words, budget, split, bag, Path(scratch))
        except UserError as error:
            found = {"broken": str(error), "diverged": isinstance(error, TrainingError | CheckpointError)}
    sink.send({**found, "process_seconds": round(time.process_time() - started, 2)})
