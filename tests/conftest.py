"""What all tests share: one torch thread, repeatable hypothesis, and a small demo data set on disk."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from rich.console import Console

from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.samples import Samples
from shards import make
from shards.sources import demo
from tests.ranks import Ranks

LONGEST = (
    *("test_kill.py", "test_slurm.py", "test_gpu_script.py", "test_documented_commands.py", "test_loader_process.py"),
    *("test_moments.py", "test_handed_over.py", "test_exchange.py", "test_ledger_audit.py"),
)
"""Files that come first: otherwise one of two processes works on them alone at the end."""
LONG = ("system", "tests")
"""Folders whose files come next, for the same reason."""

os.environ["OMP_NUM_THREADS"] = "1"  # processes that tests start share two cores
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded
torch.set_num_threads(1)
settings.register_profile("quiet", deadline=None, max_examples=50, derandomize=True, database=None)
settings.load_profile("quiet")


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Each test leaves environment variables and signal handlers as it found them: which test is next is chance.

    A signal that is ignored stays so in all processes that later tests start.
    """
    before, handlers = dict(os.environ), {number: signal.getsignal(number) for number in SIGNALS}
    yield
    if dict(os.environ) != before:
        os.environ.clear()
        os.environ.update(before)
    for number, handler in handlers.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def demo_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of demo shards: 60 training and 20 held-out images of 48 px; treat it as read-only."""
    folder = tmp_path_factory.mktemp("shards") / "demo"
    make.make("demo", folder, Console(quiet=True), demo.DemoOptions(train=60, val=20, shard_bytes=20000))
    return folder


@pytest.fixture(scope="session")
def listed_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 12,000 samples that a manifest lists and nobody reads: recipes have large batches."""
    folder, found = tmp_path_factory.mktemp("listed"), {}
    for name in ("train", "val"):
        (folder / f"{name}.tar").touch()
        count, none = np.arange(12000), np.zeros(12000, np.int64)
        samples = Samples(none, none, count % 10, np.zeros(12000, np.uint8), count + 1)
        found[name] = ([manifest.Shard(f"{name}.tar", 12000, 0, "0" * 64)], samples)
    manifest.write(folder, found)
    return folder


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Up to four gloo processes that stay alive."""
    pool = Ranks(4)
    yield pool
    pool.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; the order within a file stays."""
    places = {name: number for number, name in enumerate([*LONGEST, *LONG])}
    items.sort(key=lambda item: places.get(item.path.name, places.get(item.path.parent.name, len(places))))
