"""What a resume deep in a large epoch costs, against a cold start: a table, and exit code 1 on a missed bar.

    python tests/benchmarks/seek.py [rounds=15]

The data set has 1.28 M samples in 1,280 shards, all of them links to one small tar, so its bytes are in memory: what is
measured is everything that could depend on the position. A start: reader, loader, stream, and the first batch of 96.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from dist_ssl.core.plan import EpochPlan
from dist_ssl.data.epoch_views import Colours
from dist_ssl.data.images.views import Augmentation
from dist_ssl.data.loader.load import Loader
from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.read import Reader
from dist_ssl.data.storage.samples import Samples
from dist_ssl.data.stream import Stream
from dist_ssl.distributed.world import World
from shards import make
from shards.command_line import Bytes
from shards.sources import demo

SHARDS, PER_SHARD, IMAGES = 1280, 1000, 50
BAR = 1.1
PLAN = EpochPlan(epoch=0, image_size=32, magnitude=1.0, views=2, batch_size=96, lanes=48)
COLOURS = Colours((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def large(folder: Path) -> None:
    """A data set of 1.28 M samples around a few images."""
    make.make(
        "demo", folder / "few", Console(quiet=True), demo.DemoOptions(train=IMAGES, val=10, shard_bytes=Bytes(10**9))
    )
    few = manifest.read(folder / "few").split("train")
    (folder / "many").mkdir()
    shards = []
    for number in range(SHARDS):
        name = f"train-{number:06d}.tar"
        (folder / "many" / name).hardlink_to(few.path(0))
        shards.append(manifest.Shard(name, PER_SHARD, few.shards[0].bytes, few.shards[0].sha256))
    turns = SHARDS * PER_SHARD // IMAGES
    keys = [f"sample-{number:08d}".encode() for number in range(SHARDS * PER_SHARD)]
    columns = Samples(
        offsets=np.tile(few.samples.columns["offsets"], turns),
        sizes=np.tile(few.samples.columns["sizes"], turns),
        labels=np.tile(few.samples.labels, turns),
        keys=np.frombuffer(b"".join(keys), dtype=np.uint8),
        key_ends=np.arange(1, len(keys) + 1, dtype=np.int64) * len(keys[0]),
    )
    manifest.write(folder / "many", {"train": (shards, columns)})


def start(split: manifest.Split, share: float) -> float:
    """Seconds to the first batch after this share of the epoch."""
    length = len(split.samples) // PLAN.lanes
    at = int(length * share) // PLAN.samples_per_lane * PLAN.samples_per_lane
    started = time.perf_counter()
    with Reader(split) as reader:
        stream = Stream(
            Loader(reader, 2),
            [Augmentation(crop_min=0.2)],
            COLOURS,
            world=World(),
            seed=1,
            window=256,
            dtype=torch.float32,
        )
        batches = stream.epoch(PLAN, at)
        next(iter(batches))
        taken = time.perf_counter() - started
        batches.close()  # type: ignore[attr-defined]
    return taken


def interval(ratios: list[float]) -> tuple[float, float]:
    """95 % of the medians of resampled rounds."""
    drawn = np.random.default_rng(0).choice(ratios, size=(2000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(low), float(high)


def main(words: list[str]) -> int:
    """Measure, print, and say by the exit code whether the bar is met."""
    rounds = int(dict(word.split("=") for word in words).get("rounds", 15))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        large(Path(folder))
        started = time.perf_counter()
        split = manifest.read(Path(folder) / "many").split("train")
        opened = time.perf_counter() - started
        start(split, 0.0)  # imports and first-time costs
        pairs = [(start(split, 0.0), start(split, 0.9)) for _ in range(rounds)]
    ratios = [late / cold for cold, late in pairs]
    low, high = interval(ratios)
    table = Table("what", "median", "fastest", title=f"{SHARDS * PER_SHARD:,} samples, {rounds} rounds, interleaved")
    table.add_row("manifest read", f"{opened:.3f} s", "")
    for name, times in (("first batch at 0 %", [p[0] for p in pairs]), ("first batch at 90 %", [p[1] for p in pairs])):
        table.add_row(name, f"{np.median(times):.3f} s", f"{min(times):.3f} s")
    table.add_row(f"90 % over 0 % (bar {BAR})", f"{np.median(ratios):.3f}", f"95 %: {low:.3f} to {high:.3f}")
    Console().print(table)
    return int(np.median(ratios) > BAR)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
