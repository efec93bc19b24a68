"""The command that writes the embeddings of images: of a folder of pictures, or of shards.

Examples:

    python launch/embed.py run=runs/NAME data.path=pictures out=features
    python launch/embed.py encoder=file.safetensors data.path=data/mine split=val out=features format=parquet
    torchrun --nproc-per-node 4 launch/embed.py run=runs/NAME data.path=data/mine split=train out=features

Keys:

    run=RUN                  a finished run, or encoder=FILE: a file that an export has written (to=safetensors)
    data.path=PATH           shards, on this machine or elsewhere, or a folder of pictures; split=NAME: of shards with
                             several
    out=FOLDER               gets one file for every rows=4096 images, with key, id and embedding
    format=npz               or parquet
    device=auto              or cpu, cuda; batch=64 images at a time, threads=N that decode
    data.cache=auto          a folder for local copies of remote shards, of data.cache_bytes=50GB

Images are prepared as by python launch/evaluate.py. A command that was interrupted goes on with the files that are
missing. Several processes share the files out, with the same bits as one.

Exit codes: 0; 2 something in the command, the encoder or the data must be corrected; 130 interrupted.
"""

import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress, TaskID

from dist_ssl.config.command import Screen, run_command, say
from dist_ssl.config.long_work import LongWork
from dist_ssl.data.images.centre_crop import cut_centre
from dist_ssl.data.images.image_rules import Pixels
from dist_ssl.data.images.unreadable import UnreadableError
from dist_ssl.data.storage.reader_options import CACHE_BYTES
from dist_ssl.distributed.place_variables import RANK
from dist_ssl.errors import cannot_be_written, plural
from dist_ssl.runtime.files import write_for_owner_alone
from dist_ssl.runtime.own_cores import own_cores
from dist_ssl.saved_encoder import SavedEncoder, load_encoder
from launch import credentials
from launch.command_options import check_least, device_of, one_encoder, parse, place_among, with_credentials
from launch.embedding_parts import EmbeddingPart, EmbeddingParts, Kind, described, parquet_library, unreadable
from launch.image_collection import ImageCollection, ImagePlace, collection
from shards.command_line import Threads

AHEAD = 2
"""Batches that are decoded while another one is computed."""
CORES = Threads(own_cores())
INTERRUPTED = "Interrupted. The files that are written are complete; the same command goes on with the others."


@dataclass(frozen=True)
class EmbedOptions:
    """Options of the command; exactly one of `run` and `encoder` is given."""

    data_path: str
    out: Path
    run: str | None = None
    encoder: str | None = None
    split: str | None = None
    format: Kind = "npz"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    rows: int = 4096
    batch: int = 64
    threads: Threads = CORES
    """Threads that decode."""
    data_cache: str = "auto"
    data_cache_bytes: str = CACHE_BYTES

    @classmethod
    def parse(cls, arguments: list[str]) -> "EmbedOptions":
        """Return the options of a command line. Raises ConfigError."""
        usage = "python launch/embed.py run=runs/NAME data.path=pictures out=features"
        found = parse(cls, credentials.set_aside(arguments), usage)
        one_encoder(found.run, found.encoder)
        check_least(found, rows=1, batch=1)
        return found

    def place(self, sharers: int, channels: int) -> ImagePlace:
        """Return where the images are, with credentials. See `ImagePlace` for `sharers` and `channels`."""
        cache = None if self.data_cache == "null" else self.data_cache
        path = with_credentials(self.data_path)
        return ImagePlace(path, self.split, cache, self.data_cache_bytes, sharers, self.threads, channels)


class Embedder:
    """Computes the embeddings of images by their numbers, always in the same batches."""

    def __init__(self, encoder: SavedEncoder, images: ImageCollection, pool: ThreadPoolExecutor, batch: int) -> None:
        self.encoder, self.images, self.pool, self.batch = encoder, images, pool, encoder.at_once(batch)
        own = encoder.description
        self.rules = own.rules

    @torch.inference_mode()
    def part(self, ids: range, progress: Progress, task: TaskID) -> EmbeddingPart:
        """Return the embeddings of the readable ones of these images; advances the task. Raises DataError."""
        own, found = next(self.encoder.parameters()), []
        reasons: list[tuple[int, str]] = []
        for numbers, pixels, reason in self._decoded([ids[n : n + self.batch] for n in range(0, len(ids), self.batch)]):
            x = self.encoder.normalised(torch.from_numpy(pixels)).to(own.device, own.dtype)
            found.append(self.encoder(x).float().cpu().numpy())
            reasons += zip(numbers, reason, strict=True)
            progress.advance(task, len(numbers))
        read = [number for number, reason in reasons if not reason]
        bad = [{"key": self.images.key(n), "id": n, "reason": reason} for n, reason in reasons if reason]
        rows = np.concatenate(found)[[not reason for _, reason in reasons]]
        return EmbeddingPart([self.images.key(n) for n in read], np.array(read, dtype=np.int64), rows, bad)

    def _decoded(self, batches: Sequence[range]) -> Iterator[tuple[range, Pixels, list[str]]]:
        """Yield numbers, pixels [B, S, S, C] and why an image is unreadable, [B], of every batch, some ahead."""
        waiting: deque[tuple[range, Pixels, list[Future[str]]]] = deque()
        for numbers in batches:
            pixels = np.zeros(
                (len(numbers), *[self.encoder.description.crop] * 2, self.rules.channels), dtype=self.rules.dtype
            )
            tasks = [self.pool.submit(self._cut, n, out) for n, out in zip(numbers, pixels, strict=True)]
            waiting.append((numbers, pixels, tasks))
            if len(waiting) > AHEAD:
                yield self._awaited(*waiting.popleft())
        while waiting:
            yield self._awaited(*waiting.popleft())

    def _awaited(self, numbers: range, pixels: Pixels, tasks: list[Future[str]]) -> tuple[range, Pixels, list[str]]:
        return numbers, pixels, [task.result() for task in tasks]

    def _cut(self, number: int, out: Pixels) -> str:
        """Write the centre of an image into `out`; return why it is unreadable, empty where it is not."""
        data = self.images.read(number)
        try:
            cut_centre(data, self.encoder.description.resize, self.rules, out)
        except UnreadableError as error:
            out[:] = 0
            return str(error)
        return ""


def write_parts(parts: EmbeddingParts, embedder: Embedder, own: range, progress: Progress) -> None:
    """Write the missing ones of this process's parts, `own`."""
    missing = [part for part in own if not parts.path(part).is_file()]
    embedder.images.expect(parts.ids(part) for part in missing)
    total, left = (sum(len(parts.ids(part)) for part in those) for those in (own, missing))
    task = progress.add_task("images", total=total)
    progress.advance(task, total - left)
    for part in missing:
        parts.write(part, embedder.part(parts.ids(part), progress, task))


def embed(options: EmbedOptions, rank: int, size: int, console: Console) -> None:
    """Write this process's share of the embeddings, that of number `rank` of `size`. Raises UserError."""
    encoder = load_encoder(one_encoder(options.run, options.encoder))
    device = device_of(options.device)
    encoder.to(device)
    if options.format == "parquet":
        parquet_library()
    images = collection(options.place(size, encoder.description.rules.channels), console)
    parts = EmbeddingParts(options.out, options.format, options.rows, images.count)
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    batch = encoder.at_once(options.batch)
    ran_with = {"data": images.identity, "batch": batch, "device": kind, "torch": torch.__version__}
    try:
        parts.begin({**described(encoder), **ran_with})
        say(
            console,
            f"{plural(images.count, 'image')} of {images.origin}, {encoder.num_features} numbers each, on {device}.",
        )
        if encoder.description.finetuned:
            say(console, f"The encoder was fine-tuned with labels: {encoder.description.finetuned}.")
        with ThreadPoolExecutor(options.threads) as pool, LongWork(console) as progress:
            embedder = Embedder(encoder, images, pool, options.batch)
            write_parts(parts, embedder, range(rank, parts.number, size), progress)
    except OSError as error:
        raise cannot_be_written(error.filename or options.out, error, "Name another out=...") from error
    say_what_is_there(parts, console)


def say_what_is_there(parts: EmbeddingParts, console: Console) -> None:
    """Print how many embeddings are in the folder, or that other processes still write."""
    missing = sum(not parts.path(part).is_file() for part in range(parts.number))
    if missing:
        say(console, f"The files of this process are written. {missing} of all {parts.number} are still to come.")
        return
    bad = unreadable(parts.folder)
    left_out = f"; {bad} could not be read, see {parts.folder}/_unreadable_*.json" if bad else ""
    say(
        console,
        f"{plural(parts.count - bad, 'embedding is', 'embeddings are')} in {parts.folder} "
        f"({plural(parts.number, 'file')}){left_out}.",
    )


def run(arguments: list[str], console: Console) -> int:
    """Embed as the arguments say; return the exit code. Raises UserError."""
    embed(EmbedOptions.parse(arguments), *place_among(), console)
    return 0


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code. Of several processes the first one prints, and each its errors."""
    write_for_owner_alone()
    first = os.environ.get(RANK, "0") == "0"
    console = Screen(quiet=not first)
    errors = None if first else Screen(stderr=True)
    return run_command(run, arguments, console, errors=errors, interrupted=INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
