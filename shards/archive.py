"""Writer and index of WebDataset tars: the same samples give the same bytes, and a tar is indexed in one pass.

Members are grouped by WebDataset's rule: a sample's key is the member's name up to the first dot of its base name, and
the rest is the kind of the member; or, where names have dots of their own (`cam1.000001.jpg`), up to the last dot.
Names that begin with a dot and `__name__` members belong to no sample. A label is whatever text its `.cls` member has.
"""

import hashlib
import os
import re
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from dist_ssl.data.images.file_formats import ARRAYS
from dist_ssl.data.storage.manifest import Shard
from dist_ssl.data.storage.samples import Row
from dist_ssl.errors import DataError
from shards.dotted_names import DottedNames
from shards.tar_headers import DamagedTarError, Hashed, Readable, opened

KINDS = (
    *("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "gif", "jfif", "jpe", "ppm", "pgm", "pnm", "jp2", "avif"),
    ARRAYS,
)
"""File name extensions of images, in order of preference for samples with several images."""
PICTURES = frozenset(KINDS) - {ARRAYS, "tif", "tiff"}
"""Those of images that have the channels of a picture."""
NAME = re.compile(r"((?:.*/|)[^./]+)\.([^/]*)", re.DOTALL)
NAME_TO_LAST_DOT = re.compile(r"((?:.*/|)[^./][^/]*)\.([^./]*)", re.DOTALL)
UNLABELLED = "-1"
"""Text of a `.cls` member that stands for no label."""
MOST_LABEL = 200
"""Longest label, bytes."""
META = re.compile(r"__[^/]*__($|/)")
MOST_MEMBERS = 1 << 22
"""Members of one tar: its index is made in memory, about a kilobyte for each."""
STEP = 1 << 16
"""Bytes read at a time."""


@dataclass(frozen=True, slots=True)
class Sample:
    """An image file with its key and label.

    `kind`: the file's extension, without the dot; `label`: class number, -1 for none; `sides`: for a smaller copy,
    width and height of the original in px (0 and 0 if it cannot be decoded), otherwise empty.
    """

    key: str
    kind: str
    image: bytes
    label: int = -1
    sides: tuple[int, ...] = ()


class Writer:
    """Writer of one tar, a new file. `content`: bytes of the members so far, without headers and padding."""

    def __init__(self, path: Path) -> None:
        self.path, self.file = path, path.open("xb")
        self.hash, self.bytes, self.content = hashlib.sha256(), 0, 0
        self.rows: list[Row] = []

    def add(self, sample: Sample) -> None:
        """Append a sample: its label, if it has one, then its image."""
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
        """Complete the tar and sync it to disk; return its manifest row under `name`, which it will be renamed to."""
        end = self.bytes + 2 * tarfile.BLOCKSIZE
        self._put(bytes(2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return Shard(name, len(self.rows), self.bytes, self.hash.hexdigest())


def member(name: str, data: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the header, the bytes and the padding of a file in a tar."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uname, info.gname = len(data), 0o444, "bigdata", "bigdata"
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict"), data, bytes(-len(data) % tarfile.BLOCKSIZE)


def spelt(name: str) -> str:
    """Return a file name as a key, with `%XX` for every byte that is not valid UTF-8."""
    return "".join(c if not "\udc80" <= c <= "\udcff" else f"%{ord(c) - 0xDC00:02X}" for c in name)


@dataclass(frozen=True)
class Index:
    """Contents of a tar. `several`: number of samples with more than one image; `bare`: number of samples with none."""

    rows: list[Row]
    """Label of a row: its position in `names`, -1 for none."""
    members: dict[int, tuple[str, int]]
    """Key and size in bytes of every member of a sample, by the offset of its bytes in the tar."""
    labels: dict[str, str]
    """Text of every label, by key."""
    names: tuple[str, ...]
    """The distinct labels, sorted."""
    bytes: int
    sha256: str
    several: int
    bare: int
    hidden: int = 0
    """Number of images that are not used because their sample has another one."""
    dotted: DottedNames = DottedNames()
    """The dots in the names of the images."""
    others: Counter[str] = field(default_factory=Counter)
    """Number of members that are neither images nor labels, by kind."""
    ended: bool = True
    """False if the two blocks of zeros that end a tar are missing; all members are whole."""
    bands: bool = True
    """Whether some image may be no picture, by its name: an array or a TIFF of bands."""
    arrays: tuple[int, ...] = ()
    """Positions of the rows whose image is an array of numpy; none where the caller asked for arrays."""


def index(file: Readable, name: str, image: str | None = None, *, labels: bool = True, last_dot: bool = False) -> Index:
    """Return the index of a tar, read in one pass.

    `name`: the tar's name, for messages; `image`: the kind of the members that are images. Without `image`, a sample's
    image is the member `KEY.EXT` whose EXT comes first in KINDS; if there is none, the member `KEY.ANYTHING.EXT` whose
    name sorts first; an array beside a picture is none. `labels`: take labels from .cls members. `last_dot`: keys end
    before the last dot. Raises DataError if the tar is damaged, a label is no text, or two samples have the same key.
    """
    hashed, found = Hashed(file), _Found(name, image, NAME_TO_LAST_DOT if last_dot else NAME, labels)
    try:
        with opened(hashed, STEP) as archive:
            while (member := archive.next()) is not None:
                found.take(archive, member)
            _finish(archive)
            found.ended = archive.ended
    except (DamagedTarError, tarfile.TarError, EOFError) as error:
        raise DataError(
            f"{name} is damaged: {error}.",
            "Fetch or make it again; a compressed tar must be decompressed first, because samples are read by offset.",
        ) from error
    return found.index(hashed)


def _finish(archive: tarfile.TarFile) -> None:
    """Read the rest of the tar behind its end mark; raise DamagedTarError if it is more than padding."""
    rest: IO[bytes] = archive.fileobj  # type: ignore[assignment]
    while data := rest.read(STEP):
        if data.count(0) != len(data):
            raise DamagedTarError("bytes follow its end mark (tars that were joined by `cat`?)")


class _Image(NamedTuple):
    """A member that may be the image of its sample: its priority, the lowest wins, and where its bytes are."""

    rank: tuple[int, str]
    offset: int
    size: int
    array: bool


class _Found:
    """Collector of a tar's samples from its members."""

    def __init__(self, name: str, image: str | None, rule: re.Pattern[str], labels: bool) -> None:
        self.name, self.image, self.rule = name, image.lower() if image else None, rule
        self.images: dict[str, list[_Image]] = {}
        self.labels: dict[str, str] = {}
        self.others: Counter[str] = Counter()
        self.ended, self.labelled, self.bands = True, labels, False
        self.keys: dict[str, set[str]] = {}
        self.members: dict[int, tuple[str, int]] = {}

    def take(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        """Record one member. Raises DataError."""
        named = self.rule.fullmatch(member.name)
        if named is None or member.isdir() or META.match(member.name):
            return
        key, kind = spelt(named[1]), named[2].lower()
        if kind in self.keys.setdefault(key, set()):
            raise DataError(
                f"{self.name} has key '{key}' twice: a second member {member.name}.",
                "Write that tar again with one key per sample.",
            )
        if len(self.members) >= MOST_MEMBERS:
            raise DataError(f"{self.name} has more than {MOST_MEMBERS} members.", "Write several tars with fewer each.")
        self.keys[key].add(kind)
        self.members[member.offset_data] = key, member.size
        rank = self._rank(kind)
        if rank is not None:
            if not member.isreg() or member.issparse():
                raise DataError(
                    f"{self.name} holds {member.name} as a link or a sparse file.",
                    "Write that tar again with regular files.",
                )
            last = kind.rpartition(".")[2]
            array = last == ARRAYS and self.image is None
            self.images.setdefault(key, []).append(_Image(rank, member.offset_data, member.size, array))
            self.bands |= last not in PICTURES
        elif kind == "cls" and self.labelled:
            self.labels[key] = self._label(archive, member)
        else:
            self.others[kind.rpartition(".")[2]] += 1

    def _rank(self, kind: str) -> tuple[int, str] | None:
        """Return the priority as the sample's image; the lowest wins, None if the member is not an image."""
        if self.image is not None:
            return (0, kind) if kind == self.image else None
        last = kind.rpartition(".")[2]
        if last not in KINDS:
            return None
        return (KINDS.index(kind), "") if kind == last else (len(KINDS), kind)

    def _label(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
        """Return the text of a .cls member: the number or the name of a class. Raises DataError."""
        content = archive.extractfile(member)
        data = content.read(MOST_LABEL + 1).strip() if content else b""
        text = data.decode(errors="replace")
        if not 0 < len(data) <= MOST_LABEL or not text.isprintable() or "\ufffd" in text:
            raise DataError(
                f"{self.name} has {member.name} with {text[:60]!r}: a label is a number or a name of one line.",
                "Write the class's number or name into it, or take no labels: labels=false.",
            )
        return str(int(text)) if text.isascii() and text.isdigit() else text

    def _leave_out_arrays(self) -> None:
        """Count the arrays of samples that have a picture among the other members."""
        for key, images in self.images.items():
            pictures = [image for image in images if not image.array]
            if pictures and len(pictures) < len(images):
                self.others[ARRAYS] += len(images) - len(pictures)
                self.images[key] = pictures

    def _hidden(self) -> int:
        """Return how many images are hidden behind the one of their sample that is used."""
        return sum(len(images) - 1 for images in self.images.values())

    def _dotted(self) -> DottedNames:
        """Return the dots in the names of the images."""
        own = {key: {one.rank[1] for one in images if "." in one.rank[1]} for key, images in self.images.items()}
        return DottedNames(
            frozenset[str]().union(*own.values()),
            len(self.images),
            self._hidden(),
            labels_of_samples=sum("cls" in self.keys[key] for key, kinds in own.items() if kinds),
            labels_of_images=sum(
                f"{name}.cls" in self.keys[key]
                for key, kinds in own.items()
                for name in {kind.rpartition(".")[0] for kind in kinds}
            ),
        )

    def index(self, read: Hashed) -> Index:
        """Return the index of all samples, ordered by the offset of their images."""
        self._leave_out_arrays()
        names = tuple(sorted({text for text in self.labels.values() if text != UNLABELLED}))
        numbers = {name: number for number, name in enumerate(names)}
        label = {key: numbers.get(text, -1) for key, text in self.labels.items()}
        chosen = sorted(((key, min(images)) for key, images in self.images.items()), key=lambda one: one[1].offset)
        rows: list[Row] = [(key, image.offset, image.size, label.get(key, -1)) for key, image in chosen]
        return Index(
            rows,
            self.members,
            self.labels,
            names,
            read.bytes,
            read.hash.hexdigest(),
            several=sum(len(images) > 1 for images in self.images.values()),
            bare=len(self.keys) - len(rows),
            hidden=self._hidden(),
            dotted=self._dotted(),
            others=self.others,
            ended=self.ended,
            bands=self.bands,
            arrays=tuple(number for number, (_, image) in enumerate(chosen) if image.array),
        )
