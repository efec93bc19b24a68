"""Compiled modules for the copy of the code that a run makes: the processes of an attempt need not compile them again.

What lay in the run's folder before is never kept, since it may be of somebody else: see `trust`.
"""

import struct
import sys
from importlib.util import MAGIC_NUMBER, cache_from_source
from os import stat_result
from pathlib import Path

from dist_ssl.runtime.files import write_atomically
from launch.source_commit import SNAPSHOT

HEADER = struct.Struct("<4s3I")
"""Magic number of the Python that compiled, kind of check (0: by the next two), time and size of the source."""


def copy_compiled(project: Path, code: Path) -> None:
    """Write what is compiled of a project beside a copy of it, where source and copy are the same.

    Where this fails, it costs the time that it would have saved, and nothing else.
    """
    ending = f".{sys.implementation.cache_tag}.pyc"
    try:
        for name in SNAPSHOT:
            for compiled in sorted((project / name).rglob(f"__pycache__/*{ending}")):
                source = compiled.parent.parent / f"{compiled.name.removesuffix(ending)}.py"
                copy = code / source.relative_to(project)
                if copy.is_file() and not copy.is_symlink() and (content := _of_copy(compiled, source, copy)):
                    (place := Path(cache_from_source(str(copy)))).parent.mkdir(exist_ok=True)
                    write_atomically(place, content)
    except OSError:
        return


def _of_copy(compiled: Path, source: Path, copy: Path) -> bytes:
    """Return what is compiled of a source as that of its copy; empty where the source is not the copy's any more."""
    content = compiled.read_bytes()
    if len(content) < HEADER.size or HEADER.unpack_from(content) != (MAGIC_NUMBER, 0, *_stamp(source.stat())):
        return b""
    if source.read_bytes() != copy.read_bytes():  # read after what is compiled, which may be of an earlier source
        return b""
    return HEADER.pack(MAGIC_NUMBER, 0, *_stamp(copy.stat())) + content[HEADER.size :]


def _stamp(state: stat_result) -> tuple[int, int]:
    """Return time and size of a source as Python keeps them."""
    return int(state.st_mtime) & 0xFFFFFFFF, state.st_size & 0xFFFFFFFF
