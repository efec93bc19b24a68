"""The memory that a manifest takes on a node, by process, measured and computed: a table, exit code 1 on a missed bar.

    python tests/benchmarks/scale_manifest.py [samples=1000000] [ranks=4]

Ranks are processes that open the data set as a rank does, loader processes get what a rank sends them, and the launcher
opens it as it does on the login node; all stay until everybody has been measured. `own`: bytes that a process has for
itself; `mapped`: those of the file of columns that it has touched, which all share; `peak`: the most of both while it
opened the data set. A node has the file once, whatever part of it the system keeps in memory, and what its ranks own.
"""

import gc
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from dist_ssl.config.instantiate import keywords
from dist_ssl.data.data_keys import Data
from dist_ssl.data.loader.load import Loader
from dist_ssl.data.loader.loader_process import _lean
from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.manifest import Split
from dist_ssl.data.storage.read import Reader
from dist_ssl.data.storage.samples import Samples

SHARD = 10_000
"""Samples of a shard."""
CLASSES = 1000
COMPUTED = 100_000_000
BAR = 3_000_000_000
"""Bytes of a node."""


def write(folder: Path, samples: int) -> None:
    """Write the manifest of a data set whose tars do not exist: keys like those of ImageNet, images of some 100 kB."""
    rng = np.random.default_rng(0)
    numbers = np.arange(samples)
    labels = numbers * CLASSES // samples
    sizes = rng.integers(20_000, 180_000, samples)
    counts = [len(part) for part in np.split(numbers, range(SHARD, samples, SHARD))]
    steps, offsets = (sizes + 1535) // 512 * 512, np.empty(samples, np.int64)
    shards = []
    for number, first in enumerate(range(0, samples, SHARD)):
        ends = np.cumsum(steps[first : first + SHARD])
        offsets[first : first + SHARD] = ends - steps[first : first + SHARD] + 512
        shards.append(manifest.Shard(f"train-{number:06d}.tar", counts[number], int(ends[-1]) + 1024, "0" * 64))
    keys = [f"n{label:08d}/n{label:08d}_{number}".encode() for number, label in enumerate(labels.tolist())]
    joined = np.frombuffer(b"".join(keys), np.uint8)
    columns = Samples(offsets, sizes, labels, joined, np.cumsum([len(key) for key in keys]))
    manifest.write(folder, {"train": (shards, columns)})


def memory() -> dict[str, int]:
    """Return the bytes of this process: its own, its part of those that several share, and all that are resident."""
    text = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in text}
    return {"own": found["Pss_Anon"], "resident": found["Rss"]}


def peak() -> int:
    """Return the largest number of resident bytes of this process since the peak was set back."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def opened(folder: Path) -> Split:
    """Return the training split, opened as a rank does."""
    own = {"path": str(folder), "train": "train", "mean": [0.5] * 3, "std": [0.5] * 3, "max_bad": "1 %"}
    data = Data(**keywords(Data, own, "data"))
    return data.open(data.access(1)).split("train")


def read_all(split: Split) -> int:
    """Read the position of every sample, as an epoch does."""
    return sum(int(split.samples.offsets[n]) + int(split.samples.sizes[n]) for n in range(0, len(split.samples), 50))


def use(job: str, folder: Path) -> None:
    """Open the data set (`rank`, `launcher`), or take what a loader process gets (`loader`), report it, and stay."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before, started = memory(), time.perf_counter()
    file = folder / "loader.pickle"
    split = pickle.loads(file.read_bytes()).reader.split if job == "loader" else opened(folder)
    seconds = time.perf_counter() - started
    if job == "rank" and not file.exists():
        file.write_bytes(pickle.dumps(_lean(Loader(Reader(split), 1))))
    read_all(split)
    gc.collect()
    own, resident = (memory()[name] - before[name] for name in ("own", "resident"))
    most = peak() - before["resident"]
    row = {"job": job, "own": own, "mapped": resident - own, "peak": most, "seconds": seconds}
    print(json.dumps(row), flush=True)
    sys.stdin.read()


def measure(folder: Path, ranks: int) -> list[dict[str, Any]]:
    """Return what the processes of a node report that all live at once: the launcher's too, as on a single machine."""
    found = []
    with ExitStack() as stack:
        for job in ("launcher", *["rank"] * ranks, *["loader"] * ranks):
            command = [sys.executable, __file__, f"job={job}", f"folder={folder}"]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.enter_context(process)
            assert process.stdout
            found.append(json.loads(process.stdout.readline()))
    return found


def table(rows: list[dict[str, Any]], samples: int) -> Table:
    """Return the bytes per sample of every process, as measured."""
    names = ("own", "mapped", "peak")
    shown = Table("process", *(f"{name}, B/sample" for name in names), "opened in s", box=None)
    for row in rows:
        shown.add_row(row["job"], *(f"{row[name] / samples:.1f}" for name in names), f"{row['seconds']:.2f}")
    return shown


def costs(samples: int, ranks: int, console: Console) -> tuple[float, float]:
    """Print what was measured; return the bytes per sample of a node's file, and of what each of its ranks owns."""
    with tempfile.TemporaryDirectory() as text:
        write(Path(text), samples)
        os.environ["TMPDIR"] = text
        rows = measure(Path(text), ranks)
        file = sum(path.stat().st_size for path in Path(text).glob("dist_ssl-*/*")) / samples
    console.print(f"{samples:,} samples, a node of {ranks} ranks:")
    console.print(table(rows, samples))
    each = sum(max(row["own"], 0) for row in rows if row["job"] != "launcher") / ranks / samples
    return file, each


def report(samples: int, ranks: int, console: Console) -> int:
    """Print measured and computed costs; return 1 where a node with 100 M samples has more than the bar."""
    file, each = costs(samples, ranks, console)
    console.print(f"The file of columns: {file:.1f} B/sample, once a node. A rank and its loader process: {each:.1f}.")
    for count in (8, 64):
        whole = (file + count * each) * COMPUTED / 1e9
        console.print(f"Computed for {COMPUTED:,} samples, {count} ranks a node: {whole:.2f} GB, bar {BAR / 1e9:.0f}")
    return int((file + 64 * each) * COMPUTED > BAR)


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    given = dict(argument.split("=") for argument in arguments)
    if "job" in given:
        use(given["job"], Path(given["folder"]))
        return 0
    return report(int(given.get("samples", 1_000_000)), int(given.get("ranks", 4)), Console())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
