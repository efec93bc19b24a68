"""Embeddings on disk: a folder of numbered parts, each complete or absent, and a description of what they are.

FOLDER/_embeddings.json       the encoder, the images, the number of parts and of rows in each
       part_00000.npz         key [n] text, id [n] int64, embedding [n, D] fp32; or part_00000.parquet
       _unreadable_00000.json the images of part 0 that could not be read: key, id and reason; absent where all could

Names that begin with `_` are left out by libraries that read a folder of Parquet files as one table.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xxhash

from dist_ssl.errors import ConfigError
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.files import write_atomically
from dist_ssl.runtime.strange_files import read_regular
from dist_ssl.saved_encoder import SavedEncoder
from launch.run_files import read_report

DESCRIPTION = "_embeddings.json"
FORMAT = 1
MOST_LISTED = 1 << 28
"""Bytes of a list of images that could not be read, at most: some 150 for an image."""
OTHER_FOLDER = "Name another folder: out=..."
Kind = Literal["npz", "parquet"]


@dataclass(frozen=True)
class EmbeddingPart:
    """The embeddings of some images, in ascending order of their numbers.

    `keys`: their names; `ids`: their numbers, [n]; `embeddings`: [n, D] fp32; `unreadable`: key, id and reason of each
    image that was left out.
    """

    keys: list[str]
    ids: npt.NDArray[np.int64]
    embeddings: npt.NDArray[np.float32]
    unreadable: list[dict[str, Any]]


@dataclass(frozen=True)
class EmbeddingParts:
    """The parts in a folder. `kind`: their format; `rows`: images of a part; `count`: images of all parts."""

    folder: Path
    kind: Kind
    rows: int
    count: int

    @property
    def number(self) -> int:
        """The number of parts."""
        return -(-self.count // self.rows)

    def path(self, part: int) -> Path:
        """Return the file of a part."""
        return self.folder / f"part_{part:05d}.{self.kind}"

    def ids(self, part: int) -> range:
        """Return the numbers of the images of a part."""
        return range(part * self.rows, min(self.count, (part + 1) * self.rows))

    def begin(self, about: Mapping[str, Any]) -> None:
        """Write the description, or find the same one there. Raises ConfigError where another one is, OSError.

        `about`: what the embeddings are of, plain values.
        """
        path = self.folder / DESCRIPTION
        new = {"format": FORMAT, "kind": self.kind, "rows": self.rows, "images": self.count, **about}
        self.folder.mkdir(parents=True, exist_ok=True)
        # Listed before it is read: another process that begins meanwhile describes the folder before it fills it.
        filled = any(not path.name.startswith(".") for path in self.folder.iterdir())
        old = read_report(path)
        if old is None and filled:
            raise ConfigError(f"{self.folder} holds other files, and no whole {DESCRIPTION}.", OTHER_FOLDER)
        if old is not None and old != new:
            key = next(key for key in [*new, *old] if old.get(key) != new.get(key))
            differs = f"their '{key}' is {old.get(key)}, not {new.get(key)}"
            why = "images were changed, added or removed since" if key == "data" else differs
            raise ConfigError(f"{self.folder} holds other embeddings: {why}.", OTHER_FOLDER)
        write_atomically(path, json.dumps(new, indent=1) + "\n")

    def write(self, part: int, found: EmbeddingPart) -> None:
        """Write a part, at once as a whole, after the list of what it lacks. Raises OSError."""
        if found.unreadable:
            listed = json.dumps(found.unreadable, indent=1) + "\n"
            write_atomically(self.folder / f"_unreadable_{part:05d}.json", listed, sync=True)
        content = as_npz(found) if self.kind == "npz" else as_parquet(found)
        write_atomically(self.path(part), content, sync=True)


def as_npz(part: EmbeddingPart) -> bytes:
    """Return the bytes of an npz file, which `numpy.load` reads without pickle."""
    file = io.BytesIO()
    np.savez(file, key=np.array(part.keys, dtype=np.str_), id=part.ids, embedding=part.embeddings)
    return file.getvalue()


def as_parquet(part: EmbeddingPart) -> bytes:
    """Return the bytes of a Parquet file, whose embeddings are lists of a fixed size. Raises ConfigError."""
    arrow, parquet = parquet_library()
    width = part.embeddings.shape[1]
    rows = arrow.FixedSizeListArray.from_arrays(arrow.array(part.embeddings.reshape(-1)), width)
    table = arrow.table({"key": arrow.array(part.keys, arrow.string()), "id": part.ids, "embedding": rows})
    file = io.BytesIO()
    parquet.write_table(table, file)
    return file.getvalue()


def parquet_library() -> tuple[Any, Any]:
    """Return pyarrow and its Parquet module. Raises ConfigError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            "format=parquet needs pyarrow.", "Install it: pip install pyarrow; or use format=npz."
        ) from error
    return pyarrow, pyarrow.parquet


def unreadable(folder: Path) -> int:
    """Return how many images of the parts in a folder could not be read. Raises ConfigError, OSError."""
    return sum(map(_listed, folder.glob("_unreadable_*.json")))


def _listed(path: Path) -> int:
    try:
        found = jsonl.parsed(read_regular(path, MOST_LISTED))
    except ValueError:
        found = None
    if not isinstance(found, list):
        raise ConfigError(f"{path} is damaged: it does not list images.", "Remove it with its part, and run again.")
    return len(found)


def described(encoder: SavedEncoder) -> dict[str, Any]:
    """Return what an encoder is, as plain values: what its file says, its width, and a hash of its tensors."""
    hashed = xxhash.xxh3_128()
    for name, tensor in sorted(encoder.tensors().items()):
        hashed.update(name.encode())
        hashed.update(tensor.cpu().numpy().tobytes())
    own: dict[str, Any] = json.loads(json.dumps(encoder.description.values()))
    return {"encoder": own, "width": encoder.num_features, "weights": hashed.hexdigest()}
