"""Whole-file writes: a reader sees the old content or the new content of a file, never a part of it.

The bytes go into a temporary file in the same folder, which is then renamed over the target; a rename within one file
system is atomic. This module imports nothing heavy, so that launchers and agents can use it.
"""

import os
import shutil
import stat
from io import BufferedWriter, FileIO
from pathlib import Path


def write_for_owner_alone() -> None:
    """Set the umask of this process so that no file that it makes can be changed by others; they read as it allows.

    A run's code and configs are executed later, and images are decoded: with the umask 002 of many clusters the whole
    group could change them.
    """
    os.umask(os.umask(0o022) | 0o022)


def hidden_beside(path: Path, ending: str = ".part") -> Path:
    """Return a new hidden name in the folder of a path: no other process, on whatever node, uses or foresees it."""
    return path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}{ending}")


def write_atomically(path: Path, content: str | bytes, sync: bool = False, *, private: bool = False) -> None:
    """Write text (as UTF-8) or bytes to `path`, replacing what is there; the permission bits follow the umask.

    `sync`: force the content to disk before the rename, so that not even a power cut leaves a partial file under this
    name. `private`: no other user may read it, whatever the umask. The temporary name is hidden and belongs to this
    call alone, on whatever node it runs. Raises OSError; the target is then unchanged and the temporary file removed.
    """
    data = content.encode() if isinstance(content, str) else content
    part = hidden_beside(path)
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666), "wb") as file:
            file.write(data)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, whichever it is; do nothing where there is none. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_output(path: Path, content: bytes) -> None:
    """Write what a command makes to the file that it was given: a link is replaced and not followed.

    A device or a pipe, as /dev/null and /dev/stdout may be, is written to. Raises OSError.
    """
    if not ((path.is_char_device() or path.is_fifo()) and _written_to(path, content)):
        write_atomically(path, content)


def _written_to(path: Path, content: bytes) -> bool:
    """Write to a device or a pipe; return whether that is what is there. Raises OSError.

    Nothing is made or emptied: in a folder of others a link may have taken its place since somebody looked.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    with BufferedWriter(FileIO(descriptor, "w")) as file:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)):
            return False
        os.set_blocking(descriptor, True)  # it did not wait for a reader of the pipe
        file.write(content)
    return True
