"""Compiled code that another user has planted, where compilers look for it, is not executed."""

import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.private_cache import VARIABLES, use_private_cache

STRANGER = 12345
OWN = "own = True\n"


class Touch:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is there once planted code has run; the temporary folder is one of this test, and no cache is set."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    return tmp_path / "canary"


def by_torch(_: Path) -> None:
    """Let torch load generated Python as its compiler does."""
    from torch._inductor.codecache import PyCodeCache

    PyCodeCache.modules_no_attr.clear()
    assert PyCodeCache.load(OWN).own


def by_triton(_: Path) -> None:
    """Let Triton find a launcher as it does before it compiles one, and run what it finds."""
    pytest.importorskip("triton")
    from triton.runtime.cache import get_cache_manager

    manager = get_cache_manager("ab" * 32)
    found = manager.get_file("launcher.py") or manager.put(OWN, "launcher.py", binary=False)
    exec(Path(found).read_text())


def by_numba(folder: Path) -> None:
    """Compile a function as our own loops are, with numba's cache where the environment says."""
    import numba

    from dist_ssl.data.images.numba_tools import entrance

    source = folder / "doubled.py"
    if not source.exists():
        source.write_text("def doubled(x):\n    return 2 * x\n")
    spec = importlib.util.spec_from_file_location("doubled", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = os.environ["NUMBA_CACHE_DIR"]  # numba reads the variable when it is imported
    try:
        assert entrance("int64(int64)", module.doubled)(4) == 8
    finally:
        numba.config.CACHE_DIR = before


WAYS: dict[str, Callable[[Path], None]] = {"inductor": by_torch, "triton": by_triton, "numba": by_numba}


def plant(folder: Path, canary: Path) -> None:
    """Replace all that a compiler has written by code that makes the canary, as another user who owns the folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        if path.suffix == ".py":
            path.write_text(f"open({str(canary)!r}, 'w').close()\n{OWN}")
        else:
            path.write_bytes(pickle.dumps(Touch(canary)))
    assert files
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777)
        if os.geteuid() == 0:
            os.chown(path, STRANGER, STRANGER)


@pytest.mark.parametrize("name", WAYS)
def test_a_folder_of_another_user_in_place_of_the_private_one_is_not_used(
    name: str, canary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, [variable] = WAYS[name], [key for key, value in VARIABLES.items() if value == name]
    use_private_cache()
    place = Path(os.environ[variable])
    private = tmp_path / f"dist_ssl-compiled-{os.geteuid()}"
    assert private in place.parents
    run(tmp_path)
    plant(private, canary)
    run(tmp_path)
    assert canary.exists(), "whoever may write to the folder can have code executed"
    canary.unlink()
    for own in VARIABLES:
        monkeypatch.delenv(own)
    use_private_cache()
    run(tmp_path)
    assert not canary.exists()
    assert Path(os.environ[variable]) != place


def test_what_lies_where_torch_looks_by_itself_is_not_executed(
    canary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_torch(tmp_path)
    [usual] = tmp_path.glob("torchinductor_*")
    plant(usual, canary)
    by_torch(tmp_path)
    assert canary.exists()
    canary.unlink()
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    use_private_cache()
    by_torch(tmp_path)
    assert not canary.exists()
    shutil.rmtree(usual)


LOOK = """
import sys
from launch import worker
worker.use_private_cache = lambda: print(sorted({"torch", "numba", "triton"} & set(sys.modules)), flush=True)
sys.exit(worker.main(["nowhere", "1"]))
"""


def test_a_rank_sets_its_folder_before_it_imports_a_compiler() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "DIST_SSL_PARENT"}
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=False, env=environment)
    assert (done.stdout, done.returncode) == ("[]\n", 2), done.stderr
