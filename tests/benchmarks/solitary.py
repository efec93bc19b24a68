"""Measurements of the loader that need a process of their own; `loader.py` runs them.

    python tests/benchmarks/solitary.py NAME SHARDS AMOUNT THREADS

prints one number. NAME with `-beside`: with the decode threads in a loader process.
"""

import gc
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dist_ssl.core.draws import Draws
from dist_ssl.data.images.views import Cutter
from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.read import Reader
from tests.benchmarks.pipelines import MOCO, Images, Work, imagefolder, ours
from tests.benchmarks.turns import rate


def unique_bytes(process: psutil.Process) -> int:
    """Memory that would be free if this process ended."""
    return int(process.memory_full_info().uss)


def delivered(shards: Path, rounds: int, threads: int, beside: bool) -> float:
    """The loader's rate over threads x the rate of decoding and cropping in one thread, in turns; the median."""
    split, epoch = manifest.read(shards).split("train"), 0
    cutter, reader = Cutter([MOCO] * 2, 224), Reader(split)
    images = Images(shards, shards, [])
    loader = ours(images, Work(2, 224, coloured=False), threads, beside=beside)
    out = [np.empty((224, 224, 3), np.uint8) for _ in range(2)]

    def single() -> int:
        numbers = cutter.draw(Draws(0, epoch), np.arange(len(split.samples)))
        for number in range(len(split.samples)):
            cutter.cut(reader.read(number), [n[number] for n in numbers], out)
        return len(split.samples)

    single(), loader()
    return statistics.median(rate(loader) / (threads * rate(single)) for _ in range(rounds))


def first(shards: Path, amount: int, threads: int, beside: bool) -> float:
    """Seconds from the imports to the first batch of views at 224, coloured; the compiled loops are on disk.

    The imports' garbage is theirs: with other loaders installed beside ours, torch imports more, and Python's full
    collection of that, 0.3 s, fell between the clock's two ends.
    """

    gc.collect()
    started = time.perf_counter()
    ours(Images(shards, shards, []), Work(2, 224), threads, batches=1)()
    return time.perf_counter() - started


def memory(shards: Path, amount: int, threads: int, beside: bool) -> float:
    """Memory that an extra thread adds over what a spawned worker of ImageFolder's loader takes."""
    images = Images(shards, shards, [])
    me = psutil.Process()

    def at_work(count: int) -> int:
        run = ours(images, Work(2, 224, coloured=False), count)
        run()
        return unique_bytes(me)

    at_work(2)
    few, many = at_work(2), at_work(10)
    return (many - few) / 8 / spawned_worker(shards)


def spawned_worker(shards: Path) -> int:
    """Unique memory of one worker process while its loader is iterated."""
    folder = next(
        path for path in shards.parent.iterdir() if path.is_dir() and path != shards and "shards" not in path.name
    )
    run = imagefolder(Images(folder, shards, []), Work(2, 224), 1, context="spawn")
    run()
    return sum(unique_bytes(child) for child in psutil.Process().children() if "spawn" in " ".join(child.cmdline()))


def flat(shards: Path, batches: int, threads: int, beside: bool) -> float:
    """Resident memory of this process and its children in the last quarter over that in the first, on average.

    The quarters are those of the batches after the first tenth. Of two images each, so that there are many.
    """
    batch, work = 2, Work(2, 64)
    run = ours(Images(shards, shards, []), work, threads, batch=batch, beside=beside)
    me = psutil.Process()
    family, taken, done = [me, *me.children(recursive=True)], [], 0
    while done < batches:
        done += run() // batch
        if done > batches // 10:
            taken.append(sum(process.memory_info().rss for process in family))
    quarter = max(1, len(taken) // 4)
    return statistics.fmean(taken[-quarter:]) / statistics.fmean(taken[:quarter])


if __name__ == "__main__":
    name, shards, amount, threads = sys.argv[1:]
    measures = {"delivered": delivered, "first": first, "memory": memory, "flat": flat}
    name, _, beside = name.partition("-")
    print(measures[name](Path(shards), int(amount), int(threads), beside == "beside"))
