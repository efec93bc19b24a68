"""Members of a tar that somebody else may have written: one pass, in which no header costs more than its length says.

tarfile reads the headers. What it would take without bound is refused before: long headers, many in a row, and fields
that do not follow each other.
"""

import hashlib
import re
import tarfile
from typing import Protocol

MOST_HEADER = 1 << 20
"""Bytes of a header that holds a long name or other fields: it is read into memory before anything of it is known."""
MOST_HEADERS = 16
"""Headers that one member may have in a row; tars have up to four."""
MOST_GLOBAL = 100
"""Fields of all members together, which each of them is given."""
MOST_ENDS = 4
"""How often reading may find the end of the file: a member is passed over in as many reads as its size says."""
FIELD = re.compile(rb"(\d{1,7}) ")
MANY_DIGITS = re.compile(rb"\d{256}")
"""More digits than a name can have: tarfile looks for the end of digits from each of them on."""
FIELDS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
SPARSE = "GNU.sparse."
"""Beginning of the fields of sparse members."""
LONG = (*FIELDS, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class Readable(Protocol):
    """A sequential source of bytes."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes; empty at the end."""
        ...


class DamagedTarError(Exception):
    """Damage of a tar, with its description."""


class Hashed:
    """A file whose bytes are hashed and counted as they are read."""

    def __init__(self, file: Readable) -> None:
        self.file, self.hash, self.bytes, self.ends = file, hashlib.sha256(), 0, 0

    def read(self, size: int) -> bytes:
        """Return at most `size` bytes; empty at the end. Raises DamagedTarError where the end was found too often."""
        data = self.file.read(size)
        self.ends += not data
        if self.ends > MOST_ENDS:
            raise DamagedTarError("unexpected end of data")
        self.hash.update(data)
        self.bytes += len(data)
        return data


class Archive(tarfile.TarFile):
    """A tar that keeps no members, and for which any error of tarfile about a header is damage.

    `ended`: False if the two blocks of zeros at the end are missing; `headers`: number of headers that the member that
    is being read has had so far.
    """

    ended = True
    headers = 0

    def next(self) -> tarfile.TarInfo | None:
        """Return the next member, None at the end. Raises DamagedTarError, tarfile.TarError, EOFError."""
        self.headers = 0
        try:
            return super().next()
        except (ValueError, LookupError, ArithmeticError, RecursionError) as error:
            raise DamagedTarError(f"at byte {self.offset}: {error}") from error
        finally:
            self.members.clear()  # type: ignore[attr-defined]


class _Header(tarfile.TarInfo):
    """A tar header that raises an error if it is damaged, where tarfile would end the tar silently.

    What reading one costs is bounded by its length. The map of a sparse member is not read: nothing here uses it.
    """

    _sparse_structs: tuple[object, bool, int]

    @classmethod
    def fromtarfile(cls, tarfile: Archive) -> "_Header":  # type: ignore[override]
        try:
            return super().fromtarfile(tarfile)
        except _END:
            raise
        except _EMPTY:
            if tarfile.offset:  # whole members, and no blocks of zeros behind them: every reader of tars takes it
                tarfile.ended = False
            raise
        except _HEADER as error:
            raise DamagedTarError(f"at byte {tarfile.offset}: {error}") from error

    def _proc_member(self, archive: Archive) -> tarfile.TarInfo | None:
        archive.headers += 1
        if archive.headers > MOST_HEADERS or len(archive.pax_headers) > MOST_GLOBAL:
            raise DamagedTarError(f"at byte {self.offset}: too many headers")
        if self.type in LONG:
            if not 0 <= self.size <= MOST_HEADER:
                raise DamagedTarError(f"at byte {self.offset}: a header of {self.size} bytes")
            _Given(archive, self._content(archive))
        found: tarfile.TarInfo | None = super()._proc_member(archive)  # type: ignore[misc]
        if found is not None and found.size < 0:
            raise DamagedTarError(f"at byte {self.offset}: a member of {found.size} bytes")
        if found is not None and any(name.startswith(SPARSE) for name in found.pax_headers):
            found.sparse = []  # type: ignore[assignment]  # its size is then what its fields say, with a map or without one
        return found

    def _content(self, archive: tarfile.TarFile) -> bytes:
        """Return what follows a header: a long name, or fields. Raises DamagedTarError."""
        data: bytes = archive.fileobj.read(self._block(self.size))  # type: ignore[attr-defined]
        if self.type in FIELDS and not _are_fields(data, self.size):
            raise DamagedTarError(f"at byte {self.offset}: a header whose fields make no sense")
        return data

    def _proc_sparse(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        _, more, size = self._sparse_structs
        while more:
            block = archive.fileobj.read(tarfile.BLOCKSIZE)
            more = bool(block[504])
        self.offset_data = archive.fileobj.tell()
        archive.offset = self.offset_data + self._block(self.size)  # type: ignore[attr-defined]
        self.size, self.sparse = size, []  # type: ignore[assignment]
        return self

    def _as_sparse(self, member: tarfile.TarInfo, *_: object) -> None:
        member.sparse = []  # type: ignore[assignment]

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _as_sparse


class _Given:
    """Bytes of a tar that were read already, for its next read; the tar goes on with its file from there."""

    def __init__(self, archive: tarfile.TarFile, data: bytes) -> None:
        self.archive, self.file, self.data = archive, archive.fileobj, data
        archive.fileobj = self  # type: ignore[assignment]

    def read(self, _size: int) -> bytes:
        self.archive.fileobj = self.file
        return self.data


def _are_fields(data: bytes, end: int) -> bool:
    """Return whether the first `end` bytes are fields, each of which lies behind the one before it."""
    at = 0
    while at < end and (found := FIELD.match(data, at)):
        after = at + int(found[1])
        name, equals, value = data[found.end() : after].partition(b"=")
        if not (name and equals and after <= end and value.endswith(b"\n")):
            return False
        at = after
    return at == end and not MANY_DIGITS.search(data)


_END = tarfile.EOFHeaderError  # type: ignore[attr-defined]
_EMPTY = tarfile.EmptyHeaderError  # type: ignore[attr-defined]
_HEADER = tarfile.HeaderError


def opened(file: Hashed, step: int) -> Archive:
    """Return the tar in a file, whose members come by `next`; it is read `step` bytes at a time.

    Raises DamagedTarError, tarfile.TarError, EOFError; `next` raises them too.
    """
    return Archive.open(fileobj=file, mode="r|", tarinfo=_Header, bufsize=step)  # type: ignore[call-overload,no-any-return]
