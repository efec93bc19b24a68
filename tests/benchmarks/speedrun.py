"""The speed run: seconds from a command to the accuracy of a plain loop, ours and a tutorial's on the same cores.

    python tests/benchmarks/speedrun.py [data=demo] [rounds=3] [epochs=24] [WORD...]

The plain loop is `plain_loop.py`: SimCLR around the same encoder, from an ImageFolder, with two loader workers. Ours is
`launch/slurm.py +recipe=speedrun_demo nodes=2`, from shards, with all that a run does: checkpoints, metrics, ledger.
The two take turns. Seconds are of the wall, from the start of the command: its imports, the loader and the training;
of the plain loop without its evaluations, of ours with those that the run makes. Both encoders are evaluated in the
same way afterwards, by kNN on whole images of 32 px. `data=garments` is the other data set, on which nothing was tuned;
further words come last in our command.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.read import Reader
from dist_ssl.saved_encoder import SavedEncoder, load_encoder
from launch.run_dir import PROJECT
from shards.make import make, source_of
from tests.benchmarks.plain_loop import knn_of, whole_images

SIZES = {"demo": {"train": 6000, "val": 2000}, "garments": {"train": 6000, "val": 2000, "size": 48}}
OURS = {"demo": [], "garments": ["data=garments", "views=garments"]}
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PROJECT)}


def draw(name: str, shards: Path, folder: Path) -> None:
    """Draw a data set as shards, and lay out the same files as a folder per split and class."""
    make(name, shards, Console(quiet=True), replace(source_of(name).options(), **SIZES[name]))
    for split_name in ("train", "val"):
        split = manifest.read(shards).split(split_name)
        with Reader(split) as reader:
            for number, label in enumerate(split.samples.labels):
                place = folder / split_name / str(label)
                place.mkdir(parents=True, exist_ok=True)
                (place / f"{number:06d}.jpg").write_bytes(reader.read(number))


def plain(folder: Path, epochs: int, seed: int) -> list[dict[str, Any]]:
    """Return the plain loop's lines, one of each epoch."""
    command = [sys.executable, "tests/benchmarks/plain_loop.py", str(folder), f"epochs={epochs}", f"seed={seed}"]
    found = subprocess.run(command, cwd=PROJECT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in found.stdout.splitlines()]


def ours(name: str, shards: Path, runs: Path, seed: int, words: list[str]) -> tuple[float, SavedEncoder]:
    """Return the seconds of our command, and the encoder that it wrote."""
    command = [sys.executable, "launch/slurm.py", "+recipe=speedrun_demo", *OURS[name], f"data.path={shards}"]
    command += ["nodes=2", "data.source=null", "cluster=local", f"runs={runs}", f"name={seed}", f"seed={seed}", *words]
    started = time.monotonic()
    subprocess.run(command, cwd=PROJECT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - started, load_encoder(runs / str(seed))


def seconds_to(bar: float, lines: list[dict[str, Any]]) -> float | None:
    """Return the seconds until a plain loop has an accuracy; None if it never has."""
    return next((line["seconds"] for line in lines if line["knn"] >= bar), None)


def main(arguments: list[str]) -> int:
    """Run both in turns; print what each took and reached."""
    keys = {"data": "demo", "rounds": "3", "epochs": "24"}
    given = keys | {key: value for key, _, value in (word.partition("=") for word in arguments) if key in keys}
    words = [word for word in arguments if word.partition("=")[0] not in keys]
    ratios = []
    with tempfile.TemporaryDirectory() as scratch:
        shards, folder, runs = (Path(scratch) / name for name in ("shards", "folder", "runs"))
        draw(given["data"], shards, folder)
        known = whole_images(folder / "train"), whole_images(folder / "val")
        print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
        for seed in range(int(given["rounds"])):
            lines = plain(folder, int(given["epochs"]), seed)
            seconds, saved = ours(given["data"], shards, runs, seed, words)
            reached = knn_of(saved, *known, saved.description.mean, saved.description.std)
            bar, whole = lines[-1]["knn"], lines[-1]["seconds"]
            sooner = f"{whole / seconds:.2f} times sooner" if reached >= bar else "below the plain loop"
            ratios += [whole / seconds] if reached >= bar else []
            equal = seconds_to(reached, lines)
            needs = f"which the plain loop has after {equal:.0f} s" if equal else "which the plain loop never has"
            print(
                f"seed {seed}: plain {100 * bar:.1f} % after {whole:.1f} s; ours {100 * reached:.1f} % after", end=" "
            )
            print(f"{seconds:.1f} s, {needs}: {sooner}", flush=True)
    if ratios:
        print(f"geometric mean of {len(ratios)} rounds: {statistics.geometric_mean(ratios):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
