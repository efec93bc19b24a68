"""Make a data set: WebDataset tars with a manifest beside them that says where every sample lies.

    python shards/make.py source=imagefolder path=pictures out=data/mine
    python shards/make.py source=cifar10 path=downloads out=data/cifar10 download=true
    python shards/make.py source=tars path=data/tars
    python shards/make.py source=demo out=data/demo

Shards are written into `OUT.part` and renamed when they are whole, so a folder with a manifest is never half a data
set; the same command goes on where a kill stopped it. A source is a file of `shards/sources/`, its options are its own.
"""

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from dist_ssl.data import manifest
from dist_ssl.errors import ConfigError, nearest
from shards.source import Source
from shards.sources import demo, imagefolder, tars, vision
from shards.words import command, fill, pairs

SOURCES: dict[str, Source] = {**demo.SOURCES, **imagefolder.SOURCES, **tars.SOURCES, **vision.SOURCES}


def source_of(name: str) -> Source:
    """A source by its name. Raises ConfigError."""
    if name not in SOURCES:
        raise ConfigError(f"source={name} does not exist.", nearest(name, SOURCES))
    return SOURCES[name]


def make(source: str, out: Path | None, console: Console, options: Any = None) -> None:
    """Make the data set of a source; `options`: its own. Raises ConfigError, DataError."""
    found = source_of(source)
    if out is None and not found.in_place:
        raise ConfigError(f"source={source} needs out=..., the folder to write.", "Write out=data/mine, say.")
    found.write(out, options or found.options(), console)


def report(folder: Path, console: Console) -> None:
    """Say what was made, and the command that trains on it."""
    found = manifest.read(folder)
    for name, split in found.splits.items():
        labels = "labelled" if split.labelled else "no labels"
        console.print(f"{name}: {len(split.samples)} images in {len(split.shards)} shards, {labels}", highlight=False)
    probed = "val" in found.splits and all(found.splits[name].labelled for name in ("train", "val"))
    words = ["method=mocov3", "nodes=1", "data=shards", f"data.path={folder}", *(["data.val=val"] if probed else [])]
    console.print(f"python launch/slurm.py {' '.join(words)}", highlight=False, markup=False)


def run(words: list[str], console: Console) -> int:
    """Make what the words say. Raises UserError."""
    given = pairs(words)
    if "source" not in given:
        raise ConfigError("source=... is missing.", f"Sources: {', '.join(SOURCES)}.")
    source, out = given.pop("source"), given.pop("out", None)
    options = fill(source_of(source).options, given, f"source={source}")
    folder = Path(out).expanduser() if out else None
    make(source, folder, console, options)
    report(folder or options.path, console)
    return 0


if __name__ == "__main__":
    sys.exit(command(run, sys.argv[1:]))
