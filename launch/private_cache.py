"""The folder in which torch's compiler keeps code that it runs again: one that no other user can write to.

torch's own choice is a folder with a predictable name in the shared temporary folder, and it executes what any user has
put there.
"""

import os
import stat
import tempfile
from pathlib import Path

VARIABLES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
"""Variables that torch and Triton read, and the subfolder that each gets; a value that is set already stays."""


def use_private_cache() -> Path:
    """Set the compilers' cache folders, before torch is imported; return the folder that holds them."""
    folder = private_folder(Path(tempfile.gettempdir()) / f"dist_ssl-compiled-{os.geteuid()}")
    for variable, name in VARIABLES.items():
        os.environ.setdefault(variable, str(folder / name))
    return folder


def private_folder(folder: Path) -> Path:
    """Return the folder, made where it is missing; a new one where another user owns it or can write to it."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        state = folder.lstat()
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid() or state.st_mode & 0o022:
            return Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))
    return folder
