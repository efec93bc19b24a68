"""The folder in which compilers keep code that runs again: one that no other user can write to.

torch's own choice is a folder with a predictable name in the shared temporary folder, and it executes what any user has
put there. Numba's is beside the source: in a run folder, from which everybody who resumes the run would unpickle it.
"""

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from launch.run_dir import PROJECT

VARIABLES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton", "NUMBA_CACHE_DIR": "numba"}
"""Variables that torch, Triton and Numba read, and the subfolder that each gets; a value that is set already stays."""
OF_NUMBA = "dist_ssl/data/images"
"""The folder of all code that Numba compiles."""


def use_private_cache() -> None:
    """Set the compilers' cache folders, before torch and Numba are imported."""
    os.environ.update(private_caches(PROJECT))


def private_caches(code: Path) -> dict[str, str]:
    """Return the variables that are not set yet, with their folders. `code`: the folder of the code that will run."""
    folder = private_folder(Path(tempfile.gettempdir()) / f"dist_ssl-compiled-{os.geteuid()}")
    places = {**VARIABLES, "NUMBA_CACHE_DIR": f"{VARIABLES['NUMBA_CACHE_DIR']}-{_version(code)}"}
    return {variable: str(folder / name) for variable, name in places.items() if variable not in os.environ}


def _version(code: Path) -> str:
    """Return a hash of the code that Numba compiles: Numba itself compares only the time and size of one file of it."""
    files = sorted((code / OF_NUMBA).glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def private_folder(folder: Path) -> Path:
    """Return the folder, made where it is missing; a new one where another user owns it or can write to it."""
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        state = folder.lstat()
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid() or state.st_mode & 0o022:
            return Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))
    return folder
