"""Measures the data plane against what else there is, and holds it to its bars.

    python tests/benchmarks/loader.py [images=FOLDER] [rounds=7] [count=256] [batches=20000] [quick=true] [only=WORDS]

Draws 500 x 375 JPEGs at 4 and 2 bit/pixel (or takes those of a folder of folders), runs every pair of pipelines (or
those whose name has the words) in turns (A, B, A, B, ...) on the same cores, and prints each ratio of speeds with a
95 % interval, its bar and its star; then what is measured in processes of its own, over so many batches where memory
is to stay flat. `pip install -e '.[peers]'` adds rows; one that cannot run is named with the reason. Exits 1 where a
bar is missed.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dist_ssl.runtime.own_cores import own_cores
from tests.benchmarks.pipelines import ROWS, Images, Work, draw, draw_small, ours, pack
from tests.benchmarks.turns import Quotient, in_turns, quotient, rate, verdict

CORES = own_cores()
TWO_VIEWS, CROPS, ONE_CROP = Work(2, 224), Work(2, 224, coloured=False), Work(1, 224, coloured=False)
PATCHES = Work(20, 96)
SMALL, SMALL_CROPS = Work(2, 112, pyramid=True), Work(2, 112, coloured=False, pyramid=True)


@dataclass(frozen=True)
class Pair:
    """Our work against a peer's. `heavy`: on fewer images; a bar of 0 is for information.

    `limit`: what is known of why the bar may be missed.
    """

    name: str
    own: Work
    peer: str
    theirs: Work
    bar: float
    star: float = 0.0
    heavy: bool = False
    limit: str = ""


EPOCH_LIMIT = (
    "CPU time per image in one thread of an AMD EPYC, 4 bit/px: libjpeg 0.23 ms, cutting 0.09, colours 0.17, Python "
    "0.17, most of it in the thread that asks for batches; ImageFolder 5.1 to 5.8. Without any Python: 10 to 12 times."
)
RATE_LIMIT = (
    "Two processes that only decode reach 0.84 to 0.94 of that on two shared cores; beyond, what is left is Python's "
    "work per image, 0.05 ms of it under its lock, and the asking thread, which has no core of its own."
)
"""Of rows whose bars may be missed."""
PAIRS = (
    Pair("headline: two MoCo v2 views at 224", TWO_VIEWS, "ImageFolder", TWO_VIEWS, 2, 3),
    Pair("two MoCo v2 views at 224", TWO_VIEWS, "webdataset", TWO_VIEWS, 0),
    Pair("two MoCo v2 views at 224", TWO_VIEWS, "LitData", TWO_VIEWS, 0),
    Pair("host's share, photometry not counted", CROPS, "ImageFolder", TWO_VIEWS, 7),
    Pair("two views at 224, DALI's own colours", TWO_VIEWS, "DALI", TWO_VIEWS, 1.2, 2),
    Pair("two crops at 224, uint8", CROPS, "DALI", CROPS, 1.2, 2),
    Pair("one crop at 224, uint8", ONE_CROP, "SPDL", ONE_CROP, 1.2, 2),
    Pair("20 patches at 96", PATCHES, "ImageFolder", PATCHES, 6, heavy=True),
    Pair("low-resolution epoch at 112, pyramid", SMALL, "ImageFolder", SMALL, 12, limit=EPOCH_LIMIT),
    Pair("low-resolution epoch, photometry not counted", SMALL_CROPS, "ImageFolder", SMALL, 12),
)
ABSENT = {
    "FFCV": "no wheel: its source needs OpenCV's headers and pkg-config",
}


@dataclass(frozen=True)
class Ratio:
    """Images per second of both, and their quotient over the rounds."""

    own: float
    peer: float
    over: Quotient


def compare(pair: Pair, images: Images, rounds: int) -> Ratio:
    """Both pipelines in turns, after one pass of each that is not counted."""
    runs = [ours(images, pair.own, CORES), ROWS[pair.peer](images, pair.theirs, CORES)]
    own, peer = in_turns(rounds, *(partial(rate, run) for run in runs))
    return Ratio(max(own), max(peer), quotient(own, peer))


def ratios(
    pairs: Sequence[Pair], sets: dict[str, Images], few: dict[str, Images], rounds: int, console: Console
) -> Iterator[bool]:
    """Print every pair on every set of images; whether each passed."""
    table = Table("work", "images", "against", "ours/s", "theirs/s", "ratio", "95 %", "bar", "", title="ratios")
    for pair in pairs:
        for name, images in (few if pair.heavy else sets).items():
            try:
                r = compare(pair, images, rounds)
            except Exception as error:  # any failure of a peer is that peer's row
                table.add_row(pair.name, name, pair.peer, "", "", f"cannot run: {error!s:.90}")
                continue
            word = verdict(r.over.mean, pair.bar, pair.star)
            interval = f"{r.over.low:.2f}-{r.over.high:.2f}"
            speeds = (f"{r.own:.0f}", f"{r.peer:.0f}", f"{r.over.mean:.2f}", interval)
            table.add_row(pair.name, name, pair.peer, *speeds, f"{pair.bar:g}" if pair.bar else "", word)
            console.print(f"{pair.name} | {name} | {pair.peer}: {r.over.mean:.2f} ({interval}) {word}", style="dim")
            if word == "MISSED" and pair.limit:
                console.print(pair.limit, style="dim")
            yield word != "MISSED"
    console.print(table)


def alone(name: str, shards: Path, amount: int) -> float:
    """A measurement in a process of its own (`solitary.py`)."""
    script = Path(__file__).with_name("solitary.py")
    words = [sys.executable, str(script), name, str(shards), str(amount), str(CORES)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return float(done.stdout.split()[-1])


def solitary(images: Images, small: Images, rounds: int, batches: int, only: str, console: Console) -> Iterator[bool]:
    """What is measured in processes of its own, against its bar; whether each passed."""
    rate, grown = (
        "delivered over threads x one thread's rate",
        f"resident memory over {batches:,} batches, last quarter",
    )
    measured = (
        (rate, "delivered", images, rounds, 0.90, True),
        (f"{rate}, in a loader process", "delivered-beside", images, rounds, 0.90, True),
        ("first batch after imports, s", "first", images, 1, 0.25, False),
        ("memory of a thread over a spawned worker's", "memory", images, 1, 0.10, False),
        (f"{grown} over first, after a tenth", "flat", small, batches, 1.005, False),
        (f"{grown} over first, after a tenth, in a loader process", "flat-beside", small, batches, 1.005, False),
    )
    table = Table("what", "value", "bar", "", title=f"{CORES} cores")
    for name, script, of, amount, bar, at_least in measured:
        if only not in name:
            continue
        value = alone(script, of.shards, amount)
        passed = value >= bar if at_least else value <= bar
        table.add_row(name, f"{value:.3f}", f"{'>=' if at_least else '<='} {bar:g}", "ok" if passed else "MISSED")
        if not passed and script.startswith("delivered"):
            console.print(RATE_LIMIT, style="dim")
        yield passed
    for name, why in ABSENT.items() if not only else ():
        table.add_row(name, why, "", "MISSED" if "bar" in name else "")
        yield "bar" not in name
    if table.row_count:
        console.print(table)


def generated(folder: Path, count: int) -> dict[str, Images]:
    """Drawn images at both sizes."""
    found = {}
    for bits in (4, 2):
        draw(folder / f"{bits}bit" / "class", count, bits)
        found[f"{bits} bit/px"] = pack(folder / f"{bits}bit" / "class", folder / f"{bits}bit-shards")
    return found


def main(words: list[str]) -> int:
    """Print both tables; 1 where a bar is missed."""
    options = {key: value for key, _, value in (word.partition("=") for word in words)}
    quick = options.pop("quick", "false") == "true"
    rounds, count = int(options.pop("rounds", 3 if quick else 7)), int(options.pop("count", 96 if quick else 256))
    given, console = options.pop("images", None), Console(width=150)
    only, batches = options.pop("only", ""), int(options.pop("batches", 2000 if quick else 20000))
    if options:
        console.print(f"There is no option {', '.join(options)}: images, rounds, count, batches, quick, only.")
        return 2
    if given and not any(Path(given).rglob("*.jp*g")):
        console.print(f"There are no JPEGs below {given}: name a folder of folders of them.")
        return 2
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sets = {"given": pack(Path(given), folder / "given")} if given else generated(folder, count)
        pairs = [pair for pair in PAIRS if only in pair.name]
        few = sets
        if not given and any(pair.heavy for pair in pairs):
            few = generated(folder / "few", max(128, count // 2))
        passed = list(ratios(pairs, sets, few, rounds, console)) if pairs else []
        draw_small(folder / "small" / "class", 256)
        small = pack(folder / "small" / "class", folder / "small-shards")
        passed += solitary(next(iter(sets.values())), small, 5 if quick else 15, batches, only, console)
    if not passed:
        console.print(f"No row is called {only!r}.")
        return 2
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
