"""Write beside, verify, rename, announce: a checkpoint is whole or it does not exist.

A checkpoint is a folder `step_00012000/` with one safetensors file per rank and `state.json`, which lists every
tensor's shape and dtype, the file that holds it and the xxh3 of its bytes, beside the progress of the run. It is
written as `.step_00012000.part/`, synced to disk, renamed by rank 0 and then named in `LATEST`; old ones are retired
last. What does not match its hash is passed over for the checkpoint before it, loudly. Nothing is ever unpickled.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import xxhash
from torch import Tensor

from dist_ssl.engine import Engine, State
from dist_ssl.errors import CheckpointError
from dist_ssl.progress import Progress
from dist_ssl.world import World

FORMAT = 1
LATEST = "LATEST"
log = logging.getLogger(__name__)


class DamagedError(Exception):
    """A checkpoint on disk is not what was written."""


@dataclass(frozen=True)
class Piece:
    """Where one tensor lies: file, shape, dtype (torch's name) and the xxh3-128 of its bytes."""

    file: str
    shape: tuple[int, ...]
    dtype: str
    xxh3: str


def digest(tensor: Tensor) -> str:
    """The xxh3-128 of a contiguous host tensor's bytes."""
    data: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return xxhash.xxh3_128_hexdigest(data)


def piece_of(tensor: Tensor, file: str) -> Piece:
    """What the table says of a contiguous host tensor."""
    return Piece(file, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), digest(tensor))


def seal(content: Mapping[str, Any]) -> str:
    """The xxh3-128 of plain values."""
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def share_out(state: State, ranks: int) -> list[list[str]]:
    """The names that each rank writes: largest first, each to the rank that has the fewest bytes so far."""
    parts: list[list[str]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for name in sorted(state, key=lambda n: (-state[n].nbytes, n)):
        rank = loads.index(min(loads))
        parts[rank].append(name)
        loads[rank] += state[name].nbytes
    return parts


def sync(path: Path) -> None:
    """Force a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Checkpoint:
    """The checkpoints of one run in `folder`.

    `keep`: how many to keep, at least 1. `attempt`: this attempt's number. `newest`: asks whether no newer attempt
    has begun; a commit is refused where one has, so a forgotten process cannot write into a resumed run.
    """

    def __init__(self, folder: Path, world: World, *, keep: int, attempt: int, newest: Callable[[], bool]) -> None:
        self.folder, self.world, self.keep = folder, world, keep
        self.attempt, self.newest = attempt, newest
        self._saved_step = -1

    def save(self, engine: Engine, progress: Progress) -> None:
        """Write the engine's state and the progress, unless this step is saved already.

        Raises CheckpointError on every rank when one cannot write.
        """
        if progress.step == self._saved_step:
            return
        part = self.folder / f".step_{progress.step:08d}.part"
        self._write_together(lambda: self._make_part(part))
        try:
            pieces = self._write_together(lambda: self._write_pieces(part, engine.state()))
            table = {name: vars(piece) for own in pieces for name, piece in own.items()}
            self._write_together(lambda: self._commit(part, progress, table))
        except CheckpointError:
            if self.world.rank == 0:
                shutil.rmtree(part, ignore_errors=True)  # a full disk gets its space back
            raise
        self._saved_step = progress.step

    def restore(self, engine: Engine, fresh: Progress) -> Progress:
        """Load the newest whole checkpoint into the engine; `fresh` where the run has none yet."""
        if self.world.rank == 0:
            for debris in self.folder.glob(".*.part"):
                shutil.rmtree(debris, ignore_errors=True)  # its writer may still be at work
        candidates = self.world.share([p.name for p in self._whole()] if self.world.rank == 0 else None)
        for name in candidates:
            try:
                values, state = read(self.folder / name)
                problem = ""
            except DamagedError as damage:
                problem = str(damage)
            if all(not other for other in self.world.collect(problem)):
                self._set_aside(candidates[: candidates.index(name)])
                engine.load(state)
                self._saved_step = int(values["step"])
                return Progress.from_json({**values, "epochs": fresh.epochs, "attempt": self.attempt})
            log.warning("Checkpoint %s is damaged (%s): passed over for the one before it.", name, problem)
        if candidates:
            raise CheckpointError(
                f"None of the {len(candidates)} checkpoints in {self.folder} is whole.",
                "Start a new run, or put a whole copy of a checkpoint folder back.",
            )
        return fresh

    def _set_aside(self, damaged: list[str]) -> None:
        """Take damaged checkpoints out of the count, so that none of them is kept in place of a whole one."""
        if self.world.rank == 0:
            for name in damaged:
                aside = self.folder / f"damaged_{name}"
                shutil.rmtree(aside, ignore_errors=True)
                (self.folder / name).rename(aside)

    def _write_together(self, write: Callable[[], Any]) -> list[Any]:
        """Let every rank write, and agree on whether all of them could."""
        result: Any = None
        problem = ""
        try:
            result = write()
        except (OSError, safetensors.SafetensorError, CheckpointError) as error:
            problem = error.problem if isinstance(error, CheckpointError) else f"Rank {self.world.rank}: {error}"
        both = self.world.collect((problem, result))
        problems = [p for p, _ in both if p]
        if problems:
            raise CheckpointError(
                f"The checkpoint could not be written to {self.folder}: {problems[0]}.",
                "The checkpoint before it is whole. Free some space (or stop the newer attempt), then resume the run.",
            )
        return [r for _, r in both]

    def _make_part(self, part: Path) -> None:
        if self.world.rank == 0:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)

    def _write_pieces(self, part: Path, state: State) -> dict[str, Piece]:
        """This rank's share of the tensors, into its own file."""
        names = share_out(state, self.world.size)[self.world.rank]
        own = {name: state[name].to("cpu", copy=False).contiguous() for name in names}
        file = part / f"rank_{self.world.rank:05d}.safetensors"
        file.write_bytes(safetensors.torch.save(own))
        sync(file)
        return {name: piece_of(t, file.name) for name, t in own.items()}

    def _commit(self, part: Path, progress: Progress, table: Mapping[str, Any]) -> None:
        """Rank 0: write `state.json`, rename, announce, retire."""
        if self.world.rank != 0:
            return
        if not self.newest():
            raise CheckpointError(f"attempt {self.attempt} is not the newest of this run", "")
        content = {"format": FORMAT, "progress": progress.to_json(), "ranks": self.world.size, "tensors": table}
        (part / "state.json").write_text(json.dumps({**content, "xxh3": seal(content)}, indent=1))
        sync(part / "state.json")
        sync(part)
        whole = self.folder / part.name.removeprefix(".").removesuffix(".part")
        shutil.rmtree(whole, ignore_errors=True)  # a damaged one that was passed over
        part.rename(whole)
        announcement = self.folder / f".{LATEST}"
        announcement.write_text(whole.name + "\n")
        sync(announcement)
        announcement.replace(self.folder / LATEST)
        sync(self.folder)
        for old in self._whole()[self.keep :]:
            shutil.rmtree(old)

    def _whole(self) -> list[Path]:
        """The committed checkpoints, newest first."""
        return sorted(self.folder.glob("step_*"), reverse=True)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Progress (as plain values) and all tensors of a checkpoint, verified. Raises DamagedError, CheckpointError."""
    try:
        content = json.loads((folder / "state.json").read_text())
        version, sealed = content["format"], content.pop("xxh3")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"state.json: {error}") from error
    if version != FORMAT:
        raise CheckpointError(
            f"{folder} has checkpoint format {version}: this version reads {FORMAT}.",
            "Resume with the version of dist_ssl that wrote it.",
        )
    if sealed != seal(content):
        raise DamagedError("state.json: its hash is another")
    return content["progress"], dict(_tensors(folder, content["tensors"]))


def _tensors(folder: Path, table: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for file in sorted({piece["file"] for piece in table.values()}):
        try:
            held = safetensors.torch.load_file(folder / file)
        except (OSError, safetensors.SafetensorError) as error:
            raise DamagedError(f"{file}: {error}") from error
        for name in [n for n in table if table[n]["file"] == file]:
            piece = Piece(**{**table[name], "shape": tuple(table[name]["shape"])})
            tensor = held.get(name)
            if tensor is None or piece_of(tensor, file) != piece:
                raise DamagedError(f"{file}: tensor '{name}'")
            yield name, tensor
