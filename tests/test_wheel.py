"""An installation that is no link to the repository has everything that a run needs, from any folder."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from launch.run_dir import PROJECT
from launch.source_commit import SNAPSHOT
from launch.subcommands import SUBCOMMANDS
from tests.jobs import SMALL

PARTS = ("dist_ssl", "launch", "configs", "shards", "monitoring", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built of a copy of the files that make it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in PARTS:
        whole = PROJECT / name
        if whole.is_dir():
            shutil.copytree(whole, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(whole, source / name)
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(source)]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    return next(out.glob("*.whl"))


class Installation:
    """A new environment with the wheel, which borrows all other packages from this one; used in an empty folder."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.environment, self.empty = folder / "environment", folder / "empty"
        kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        self.variables = {**kept, "OMP_NUM_THREADS": "1"}
        venv.create(self.environment, symlinks=True)
        self.empty.mkdir()
        python = self.environment / "bin" / "python"
        install = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
        pip = [sys.executable, "-m", "pip", "--python", str(python), *install]
        subprocess.run(pip, env=self.variables, check=True)  # with PYTHONPATH it may find the package there already
        (self.site,) = self.environment.glob("lib/python*/site-packages")
        others = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (self.site / "borrowed.pth").write_text("".join(f"{place}\n" for place in others))

    def __call__(self, *words: str, code: int = 0) -> str:
        """Run `dist-ssl WORDS` in the empty folder; return what it prints."""
        command = [str(self.environment / "bin" / "dist-ssl"), *words]
        done = subprocess.run(command, cwd=self.empty, env=self.variables, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout


def test_the_wheel_has_all_configs_and_one_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entries = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    own = {str(path.relative_to(PROJECT)) for path in (PROJECT / "configs").rglob("*.yaml")}
    assert own == {name for name in names if name.startswith("configs/") and name.endswith(".yaml")}
    assert entries.split() == ["[console_scripts]", "dist-ssl", "=", "launch.subcommands:main"]
    assert {own.script for own in SUBCOMMANDS.values()} <= set(names)
    assert {"dist_ssl/py.typed", "launch/py.typed"} <= set(names), "type checkers of users read our annotations"


def test_the_installed_command_trains_and_uses_an_encoder_in_an_empty_folder(
    wheel: Path, demo_shards: Path, tmp_path: Path
) -> None:
    installed = Installation(tmp_path, wheel)
    small = (*SMALL, f"data.path={demo_shards}", "data.source=null", "epochs=1", "schedule.warmup=null")
    ran = installed("run", "nodes=1", "cluster=local", "name=first", "probe.every=2 epochs", *small)
    run = installed.empty / "runs" / "first"
    assert [path.name for path in installed.empty.iterdir()] == ["runs"]
    assert "Train longer: dist-ssl run resume=runs/first extend='24 epochs'" in ran
    assert {path.name for path in (run / "code").iterdir()} == set(SNAPSHOT)
    assert list((run / "code" / "dist_ssl" / "__pycache__").glob("train.*")), "the ranks run the copy"
    source = json.loads((run / "source.json").read_text())
    assert (source["commit"], source["changed"]) == (None, [])
    assert "launch/subcommands.py" in source["files"]
    assert not any(path.is_file() for path in (run / "code").rglob("*.pth")), "only the project's own files are copied"
    (row,) = (line for line in installed("status").splitlines() if line.startswith("first "))
    assert row.split()[1:3] == ["finished", "1/1"]
    assert "Clean: nothing was lost or repeated." in installed("audit", "run=runs/first")
    with (run / "code" / "launch" / "model_card.py").open("a") as file:
        file.write("# as if the package had been upgraded since\n")
    exported = installed("export", "run=runs/first", "to=safetensors")
    assert "runs/first was started with different code: this uses the code in its own folder." in exported
    assert "Written to runs/first/exports/" in exported
    assert "Usage: dist-ssl export run=runs/NAME to=timm" in installed("export", "run=runs/first", code=2)
