"""An installation that is no link to the repository has everything that a run needs, from any folder."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from launch.run_dir import PROJECT

PARTS = ("dist_ssl", "launch", "configs", "shards", "monitoring", "pyproject.toml", "README.md", "LICENSE")


def test_a_wheel_starts_a_run_in_an_empty_folder(tmp_path: Path) -> None:
    source, site, empty = tmp_path / "source", tmp_path / "site", tmp_path / "empty"
    for folder in (source, empty):
        folder.mkdir()
    for name in PARTS:
        whole = PROJECT / name
        if whole.is_dir():
            shutil.copytree(whole, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(whole, source / name)
    build = ["pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run([sys.executable, "-m", *build], check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    own = {path.relative_to(PROJECT) for path in (PROJECT / "configs").rglob("*.yaml")}
    assert own == {path.relative_to(site) for path in (site / "configs").rglob("*.yaml")}
    command = [sys.executable, "-P", "-m", "launch.slurm", "method=mocov3", "nodes=4", "dry_run=true", "cluster=local"]
    done = subprocess.run(command, cwd=empty, env={"PYTHONPATH": str(site)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "_target_: dist_ssl.methods.mocov3.MoCoV3" in done.stdout
    assert list(empty.iterdir()) == []
