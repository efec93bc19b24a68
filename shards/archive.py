"""One WebDataset tar: written so that the same samples give the same bytes, and indexed in one pass from its start.

The rule is WebDataset's: a sample's key is a member's name up to the first dot of its base name, what comes after is
the kind of the member. Names that begin with a dot, and `__name__` members, are no samples.
"""

import hashlib
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from dist_ssl.data.storage.manifest import Row, Shard
from dist_ssl.errors import DataError

KINDS = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif")
"""File name extensions of images, in the order in which one is chosen where a sample has several."""
NAME = re.compile(r"((?:.*/|)[^./]+)\.([^/]*)", re.DOTALL)
META = re.compile(r"__[^/]*__($|/)")
STEP = 1 << 16


@dataclass(frozen=True, slots=True)
class Sample:
    """An image file. `kind`: its extension, no dot; `label`: -1 for none.

    `sides`: of the original, where this is a smaller copy: width and height, px, or 0 and 0.
    """

    key: str
    kind: str
    image: bytes
    label: int = -1
    sides: tuple[int, ...] = ()


class Writer:
    """Writes one tar. `content`: bytes of the members so far, without headers."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, path.open("wb")
        self.hash, self.bytes, self.content = hashlib.sha256(), 0, 0
        self.rows: list[Row] = []

    def add(self, sample: Sample) -> None:
        """Append a sample: its label, where it has one, then its image."""
        label = str(sample.label).encode() if sample.label >= 0 else b""
        first = [*member(f"{sample.key}.cls", label)] if label else []
        header, *data = member(f"{sample.key}.{sample.kind}", sample.image)
        offset = self.bytes + sum(map(len, first)) + len(header)
        self._put(b"".join([*first, header, *data]))
        self.content += len(label) + len(sample.image)
        numbers: tuple[int, ...] = (offset, len(sample.image), sample.label, *sample.sides)
        self.rows.append((sample.key, *numbers))

    def _put(self, data: bytes) -> None:
        self.file.write(data)
        self.hash.update(data)
        self.bytes += len(data)

    def close(self, name: str) -> Shard:
        """End the tar and make it last; its row of the manifest under the name that it will have."""
        end = self.bytes + 2 * tarfile.BLOCKSIZE
        self._put(bytes(2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return Shard(name, len(self.rows), self.bytes, self.hash.hexdigest())


def member(name: str, data: bytes) -> tuple[bytes, bytes, bytes]:
    """The header, the bytes and the padding of a file in a tar."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uname, info.gname = len(data), 0o444, "bigdata", "bigdata"
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict"), data, bytes(-len(data) % tarfile.BLOCKSIZE)


def spelt(name: str) -> str:
    """A file name as a key: each byte that is no UTF-8 is `%XX`."""
    return "".join(c if not "\udc80" <= c <= "\udcff" else f"%{ord(c) - 0xDC00:02X}" for c in name)


class Readable(Protocol):
    """Anything that bytes can be read from, from first to last."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        ...


class _Hashed:
    """A file that is hashed and counted as it is read."""

    def __init__(self, file: Readable) -> None:
        self.file, self.hash, self.bytes = file, hashlib.sha256(), 0

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.hash.update(data)
        self.bytes += len(data)
        return data


class _Header(tarfile.TarInfo):
    """A tar header that is never passed over: tarfile takes a damaged one for the end of the tar."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> "_Header":
        try:
            return super().fromtarfile(tarfile)
        except _END:
            raise
        except _HEADER as error:
            raise _DamagedError(f"at byte {tarfile.offset}: {error}") from error


_END = tarfile.EOFHeaderError  # type: ignore[attr-defined]
_HEADER = tarfile.HeaderError


class _DamagedError(Exception):
    """What is wrong with a tar."""


@dataclass(frozen=True)
class Index:
    """What a tar holds. `several`: samples with more than one image; `bare`: samples with none."""

    rows: list[Row]
    members: dict[int, tuple[str, int]]
    """Key and size of every member of a sample, by the offset of its bytes."""
    labels: dict[str, int]
    bytes: int
    sha256: str
    several: int
    bare: int


def index(file: Readable, name: str, image: str | None = None) -> Index:
    """Read a tar from its start to its end. `name` is for messages; `image`: the kind of member that is the image.

    Where `image` is not given, the image is the member `KEY.EXT` whose EXT comes first in KINDS; where there is none,
    of the members `KEY.ANYTHING.EXT` the one whose name sorts first. Raises DataError where the tar is damaged, a
    label is no number, or two samples have one key.
    """
    hashed, found = _Hashed(file), _Found(name, image)
    try:
        with tarfile.open(fileobj=hashed, mode="r|", tarinfo=_Header, bufsize=STEP) as archive:  # type: ignore[call-overload]
            for member in _members(archive):
                found.take(archive, member)
            _finish(archive)
    except (_DamagedError, tarfile.TarError, EOFError) as error:
        raise DataError(
            f"{name} is damaged: {error}.",
            "Fetch or make it again; a compressed tar must be decompressed first, because samples are read by offset.",
        ) from error
    return found.index(hashed)


def _members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The members, none of them kept in memory."""
    while (member := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]
        yield member


def _finish(archive: tarfile.TarFile) -> None:
    """Read what follows the end mark: nothing but padding."""
    rest: IO[bytes] = archive.fileobj  # type: ignore[assignment]
    while data := rest.read(STEP):
        if data.count(0) != len(data):
            raise _DamagedError("bytes follow its end mark (tars that were joined by `cat`?)")


class _Found:
    """The samples of a tar as its members come."""

    def __init__(self, name: str, image: str | None) -> None:
        self.name, self.image = name, image.lower() if image else None
        self.images: dict[str, list[tuple[tuple[int, str], int, int]]] = {}
        self.labels: dict[str, int] = {}
        self.keys: dict[str, set[str]] = {}
        self.members: dict[int, tuple[str, int]] = {}

    def take(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Note one member. Raises DataError."""
        named = NAME.fullmatch(member.name)
        if named is None or member.isdir() or META.match(member.name):
            return
        key, kind = spelt(named[1]), named[2].lower()
        if kind in self.keys.setdefault(key, set()):
            raise DataError(
                f"{self.name} has key '{key}' twice: a second member {member.name}.",
                "Make that tar again with one key per sample.",
            )
        self.keys[key].add(kind)
        self.members[member.offset_data] = key, member.size
        rank = self._rank(kind)
        if rank is not None:
            if not member.isreg() or member.issparse():
                raise DataError(
                    f"{self.name} holds {member.name} as a link or with holes.", "Make that tar again of whole files."
                )
            self.images.setdefault(key, []).append((rank, member.offset_data, member.size))
        elif kind == "cls":
            self.labels[key] = self._label(archive, member)

    def _rank(self, kind: str) -> tuple[int, str] | None:
        """The smaller, the rather is this kind of member the image; None where it is none."""
        if self.image is not None:
            return (0, kind) if kind == self.image else None
        last = kind.rpartition(".")[2]
        if last not in KINDS:
            return None
        return (KINDS.index(kind), "") if kind == last else (len(KINDS), kind)

    def _label(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> int:
        content = archive.extractfile(member)
        text = content.read(100).strip() if content else b""
        if not re.fullmatch(rb"-1|\d{1,18}", text):
            raise DataError(
                f"{self.name} has {member.name} with {text.decode(errors='replace')!r}: a label is a whole number.",
                "Write class numbers (0, 1, ...) into the .cls members, or leave those out.",
            )
        return int(text)

    def index(self, read: _Hashed) -> Index:
        """All samples, in the order of their images' bytes."""
        chosen = ((key, *min(images)[1:], self.labels.get(key, -1)) for key, images in self.images.items())
        rows: list[Row] = [*sorted(chosen, key=lambda row: row[1])]
        several = sum(len(images) > 1 for images in self.images.values())
        digest, bare = read.hash.hexdigest(), len(self.keys) - len(rows)
        return Index(rows, self.members, self.labels, read.bytes, digest, several, bare)
