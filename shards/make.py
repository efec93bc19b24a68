"""Pack images into WebDataset tars with a manifest beside them.

    python shards/make.py source=demo out=data/demo [train=6000] [val=2000] [shard_bytes=1MB]

Shards are written into `OUT.part` and renamed when they are whole, so a folder with a manifest is never half a data
set. A sample is `KEY.jpg` and, where it has a label, `KEY.cls`: plain WebDataset.
"""

import hashlib
import shutil
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import webdataset
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import track

from dist_ssl.data import manifest
from dist_ssl.errors import EXIT_CODE, ConfigError, DataError, UserError, nearest
from shards.sources import demo

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Options:
    """Images per split, and the size at which a shard is closed."""

    train: int = 6000
    val: int = 2000
    shard_bytes: int = 10**6


def parse_bytes(text: str) -> int:
    """`256MB` -> 256000000. Raises ConfigError."""
    number, unit = text.strip()[:-2], text.strip()[-2:].upper()
    if unit not in UNITS or not number.isdigit() or int(number) == 0:
        raise ConfigError(f"shard_bytes={text} is not a size.", "Write it like 256MB (units: KB, MB, GB).")
    return int(number) * UNITS[unit]


def make(source: str, out: Path, console: Console, options: Options | None = None) -> None:
    """Write the shards of a source into a new folder. Raises ConfigError, DataError."""
    if source != "demo":
        raise ConfigError(f"source={source} does not exist.", nearest(source, ["demo"]))
    if out.exists():
        raise DataError(f"{out} exists already.", "Choose another folder, or remove it first.")
    chosen = options or Options()
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    splits = {}
    for name, count in (("train", chosen.train), ("val", chosen.val)):
        samples = track(demo.samples(name, count), f"{name:5s}", count, console=console, transient=True)
        tars = pack(part, name, iter(samples), chosen.shard_bytes)
        splits[name] = index(tars)
    manifest.write(part, splits)
    part.rename(out)


def pack(folder: Path, split: str, samples: Iterator[tuple[str, bytes, int]], shard_bytes: int) -> list[Path]:
    """Write (key, JPEG bytes, label) as tars `SPLIT-000000.tar`, each closed once it passes `shard_bytes`."""
    tars: list[Path] = []
    pattern = str(folder / f"{split}-%06d.tar")
    written = webdataset.ShardWriter(
        pattern, maxsize=shard_bytes, verbose=0, post=lambda name: tars.append(Path(name)), mtime=0
    )
    with written as writer:
        for key, image, label in samples:
            writer.write({"__key__": key, "jpg": image, "cls": label})
    return tars


def index(tars: list[Path]) -> tuple[list[manifest.Shard], manifest.Samples]:
    """The manifest's rows of tars that lie on disk."""
    shards, rows = [], []
    for tar in tars:
        own = list(members(tar))
        shards.append(manifest.Shard(tar.name, len(own), tar.stat().st_size, sha256(tar)))
        rows += own
    return shards, manifest.columns(rows)


def members(tar: Path) -> Iterator[tuple[str, int, int, int]]:
    """(key, offset, size, label) of every sample: members of one key stand side by side."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    with tarfile.open(tar) as archive:
        for member in archive:
            key, _, kind = member.name.partition(".")
            if kind == "cls":
                content = archive.extractfile(member)
                assert content is not None
                labels[key] = int(content.read())
            elif kind == "jpg":
                images[key] = (member.offset_data, member.size)
    for key, (offset, size) in images.items():
        yield key, offset, size, labels.get(key, -1)


def sha256(path: Path) -> str:
    """The hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(words: list[str]) -> int:
    """Run the command line; the exit code."""
    console = Console(soft_wrap=True)
    try:
        given = {str(k): v for k, v in OmegaConf.from_cli(words).items()}
        for key in given:
            if key not in ("source", "out", "train", "val", "shard_bytes"):
                raise ConfigError(f"There is no key '{key}'.", "Keys: source, out, train, val, shard_bytes.")
        if "source" not in given or "out" not in given:
            raise ConfigError("source and out must both be given.", "python shards/make.py source=demo out=data/demo")
        size = parse_bytes(str(given.get("shard_bytes", "1MB")))
        options = Options(int(given.get("train", 6000)), int(given.get("val", 2000)), size)
        out = Path(given["out"])
        make(given["source"], out, console, options)
        console.print(f"Wrote {options.train} + {options.val} images to {out}.", highlight=False)
        return 0
    except UserError as error:
        console.print(str(error), highlight=False, markup=False)
        return EXIT_CODE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
