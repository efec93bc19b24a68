"""Code of a run folder that others own or can change is not executed without a word."""

import importlib._bootstrap_external
import os
import shutil
import stat
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from dist_ssl.errors import ConfigError
from dist_ssl.runtime import strange_files
from launch import settings, trust
from launch.run_dir import PROJECT, RunDir
from tests.fuzzing import bounded_memory

STRANGER = 12345


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run with the code of this project."""
    found = RunDir(tmp_path / "run")
    found.begin({"seed": 0}, [])
    return found


def test_ones_own_run_needs_no_word(run: RunDir) -> None:
    assert not list(trust.dangers(run))
    trust.check(run, trusted=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("place", [".", "config.yaml", "code", "code/launch/slurm.py", "code/sitecustomize.py"])
def test_what_another_user_owns_is_refused_by_name(run: RunDir, place: str) -> None:
    path = run.folder / place
    path.touch()
    os.chown(path, STRANGER, STRANGER)
    with pytest.raises(ConfigError, match=f"is not yours alone, .*: {path} belongs to user {STRANGER}"):
        trust.check(run, trusted=False)
    trust.check(run, trusted=True)


@pytest.mark.parametrize(("mode", "refused"), [(0o644, False), (0o646, True), (0o600, False)])
def test_what_others_can_change_is_refused(run: RunDir, mode: int, refused: bool) -> None:
    (run.code / "launch" / "slurm.py").chmod(mode)
    assert bool(list(trust.dangers(run))) == refused


def test_what_root_owns_is_as_safe_as_the_machine(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: STRANGER)
    assert bool(list(trust.dangers(run))) == (run.folder.stat().st_uid != 0)


@pytest.mark.parametrize("private", [True, False])
def test_a_group_of_ones_own_is_nobody_else(run: RunDir, monkeypatch: pytest.MonkeyPatch, private: bool) -> None:
    (run.code / "launch" / "slurm.py").chmod(0o664)
    monkeypatch.setattr(strange_files, "_of_one_user", lambda group: private)
    assert bool(list(trust.dangers(run))) != private


def test_the_refusal_names_what_differs(run: RunDir) -> None:
    (run.code / "configs" / "config.yaml").write_text("seed: 1\n")
    (run.code / "sitecustomize.py").touch()
    (run.code / "launch" / "__pycache__").mkdir()
    (run.code / "launch" / "__pycache__" / "slurm.cpython-311.pyc").touch()
    run.code.chmod(0o777)
    with pytest.raises(ConfigError) as caught:
        trust.check(run, trusted=False)
    files = "configs/config.yaml, sitecustomize.py"
    assert f"differs from this code in {files}." in caught.value.remedy
    assert "trust=true" in caught.value.remedy
    assert caught.value.remedy.endswith(f"chmod -R go-w {run.folder}"), "the owner can close it"


@pytest.mark.parametrize("open_folder", [".", "code", "code/launch"])
def test_nothing_is_removed_below_a_folder_that_others_can_change(run: RunDir, open_folder: str) -> None:
    compiled = run.code / "launch" / "__pycache__"
    compiled.mkdir(mode=0o750)
    (run.folder / open_folder).chmod(0o777)
    with pytest.raises(ConfigError, match="is not yours alone"):
        trust.check(run, trusted=False)
    assert stat.S_IMODE(compiled.stat().st_mode) == 0o750
    trust.check(run, trusted=True)
    assert not compiled.exists()


def test_compiled_code_that_others_can_change_is_removed_and_no_danger(run: RunDir) -> None:
    compiled = run.code / "launch" / "__pycache__"
    compiled.mkdir()
    (compiled / "slurm.cpython-311.pyc").touch()
    for path in (compiled, *compiled.iterdir()):
        path.chmod(0o777)
    trust.check(run, trusted=False)
    assert not compiled.exists()


def test_the_word_is_taken_out_of_the_arguments() -> None:
    assert trust.parse(["resume=a", "trust=true", "nodes=2"]) == (True, ["resume=a", "nodes=2"])
    assert trust.parse(["resume=a", "trust=false"]) == (False, ["resume=a"])
    with pytest.raises(ConfigError, match="trust=yes is not possible"):
        trust.parse(["trust=yes"])


def test_the_word_holds_for_the_folders_own_code_too(tmp_path: Path) -> None:
    """Other code than this one takes over: it is trusted already, and does not ask again."""
    run = RunDir(tmp_path / "run")
    run.begin(settings.compose(["cluster=local"], PROJECT / "configs"), ["cluster=local"])
    (run.code / "launch" / "calibration.py").write_text("# another version\n")
    run.code.chmod(0o777)
    command = [sys.executable, str(PROJECT / "launch" / "slurm.py"), f"resume={run.folder}", "nodes=0", "trust=true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "it resumes with the code in its own folder" in done.stdout
    assert "nodes=0 is not possible" in done.stdout, done.stdout + done.stderr


def test_a_dry_run_of_a_poisoned_folder_executes_nothing(run: RunDir, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for place in ("launch/slurm.py", "sitecustomize.py"):
        (run.code / place).write_text(f"open({str(canary)!r}, 'w')\n")
    run.code.chmod(0o777)
    command = [sys.executable, str(PROJECT / "launch" / "slurm.py"), f"resume={run.folder}", "dry_run=true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is not yours alone" in done.stdout
    assert not canary.exists()
    again = subprocess.run([*command, "trust=true"], capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert canary.exists(), "otherwise this test would show nothing"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_link_to_ones_own_project_does_not_make_a_strangers_configs_trusted(run: RunDir, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    shutil.rmtree(run.code)
    run.code.symlink_to(PROJECT)
    words = ["cluster.kind=local", f"data.path='pipe:touch {canary}; false %s'", "data.allow_pipe=true"]
    config = settings.compose(words, PROJECT / "configs")
    config["data"]["identity"] = "0" * 32
    (run.folder / "config.yaml").write_text(yaml.safe_dump({"format": 1, **config}))
    (run.folder / "overrides.yaml").write_text(yaml.safe_dump(words))
    for path in [run.folder, *run.folder.iterdir()]:
        os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
    command = [sys.executable, str(PROJECT / "launch" / "slurm.py"), f"resume={run.folder}", "dry_run=true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is not yours alone" in done.stdout
    assert not canary.exists()


def test_a_refusal_reads_neither_what_links_lead_to_nor_more_than_code(run: RunDir) -> None:
    run.code.chmod(0o777)
    large = run.code / "launch" / "large.py"
    with large.open("wb") as file:
        file.truncate(1 << 40)
    (run.code / "shards").rename(run.folder / "elsewhere")
    (run.code / "shards").symlink_to("/")
    with bounded_memory(), pytest.raises(ConfigError, match="is not yours alone") as caught:
        trust.check(run, trusted=False)
    assert "launch/large.py" in caught.value.remedy
    shutil.rmtree(run.code)
    run.code.symlink_to("/")
    with pytest.raises(ConfigError, match="is a link, and a run's code has none"):
        trust.check(run, trusted=False)


@pytest.mark.parametrize("name", ["sitecustomize.py", "usercustomize.py", "torch/__init__.py", "numpy.py"])
def test_what_lies_beside_the_code_is_refused_whoever_owns_it(run: RunDir, name: str) -> None:
    path = run.code / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("x = 1")
    with pytest.raises(ConfigError, match="is no part of a run's code"):
        trust.check(run, trusted=False)


@pytest.mark.parametrize(
    "place",
    [
        *("attempts", "attempts/0001", "slurm", "checkpoints", "checkpoints/step_00000001", "ledger"),
        *("tensorboard", "wandb", "evaluations", "exports"),
    ],
)
def test_a_folder_in_which_others_can_replace_files_is_refused(run: RunDir, place: str) -> None:
    (run.folder / place).mkdir(parents=True, exist_ok=True)
    trust.check(run, trusted=False)
    (run.folder / place).chmod(0o777)
    with pytest.raises(ConfigError, match="can be changed by others"):
        trust.check(run, trusted=False)


def test_a_group_with_other_members_is_not_ones_own(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    run.code.chmod(0o775)
    monkeypatch.setattr(strange_files.grp, "getgrgid", lambda group: SimpleNamespace(gr_name="root", gr_mem=[]))
    trust.check(run, trusted=False)
    monkeypatch.setattr(
        strange_files.grp, "getgrgid", lambda group: SimpleNamespace(gr_name="root", gr_mem=["somebody"])
    )
    with pytest.raises(ConfigError, match="can be changed by others"):
        trust.check(run, trusted=False)


def poisons_until_checked(run: RunDir, canary: Path) -> None:
    """The import of a module of the run's code writes the canary, and no longer does once the folder was checked."""
    command = [sys.executable, "-P", "-c", "import launch.run_names"]
    own = {**os.environ, "PYTHONPATH": str(run.code)}
    subprocess.run(command, env=own, check=True)
    assert canary.exists(), "the poison works"
    canary.unlink()
    trust.check(run, trusted=False)
    subprocess.run(command, env=own, check=True)
    assert not canary.exists()


def test_compiled_python_in_a_run_folder_is_not_executed(run: RunDir, tmp_path: Path) -> None:
    module, canary = run.code / "launch" / "run_names.py", tmp_path / "canary"
    compiled = module.parent / "__pycache__" / f"run_names.{sys.implementation.cache_tag}.pyc"
    poison = tmp_path / "poison.py"
    poison.write_text(f"open({str(canary)!r}, 'w')\n" + "#" * 10_000)
    time, size = int(module.stat().st_mtime), module.stat().st_size
    code = compile(poison.read_text(), str(module), "exec")
    compiled.parent.mkdir(exist_ok=True)
    compiled.write_bytes(importlib._bootstrap_external._code_to_timestamp_pyc(code, time, size))
    poisons_until_checked(run, canary)


def test_compiled_python_in_place_of_a_module_is_not_executed(run: RunDir, tmp_path: Path) -> None:
    canary, package = tmp_path / "canary", run.code / "launch" / "run_names"
    code = compile(f"open({str(canary)!r}, 'w')\n", "poison", "exec")
    package.mkdir()
    (package / "__init__.pyc").write_bytes(importlib._bootstrap_external._code_to_timestamp_pyc(code, 0, 0))
    poisons_until_checked(run, canary)


@pytest.mark.parametrize("kind", ["link", "closed"])
def test_compiled_python_is_removed_however_it_is_kept(run: RunDir, tmp_path: Path, kind: str) -> None:
    elsewhere, compiled = tmp_path / "elsewhere", run.code / "dist_ssl" / "__pycache__"
    elsewhere.mkdir()
    (elsewhere / "errors.pyc").write_text("anything")
    if kind == "link":
        compiled.symlink_to(elsewhere)
    else:
        shutil.copytree(elsewhere, compiled)
        compiled.chmod(0o555)
    trust.check(run, trusted=False)
    assert not os.path.lexists(compiled)
    assert (elsewhere / "errors.pyc").exists(), "a link is removed, not followed"


def test_compiled_python_that_stays_is_refused(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    (run.code / "dist_ssl" / "__pycache__").mkdir()
    monkeypatch.setattr(trust.shutil, "rmtree", lambda path: None)
    with pytest.raises(ConfigError, match="__pycache__ cannot be removed"):
        trust.check(run, trusted=True)


@pytest.mark.parametrize("place", ["dist_ssl/errors", "launch/run_names.py"])
@pytest.mark.parametrize("dangling", [False, True])
def test_links_in_the_code_are_refused(run: RunDir, tmp_path: Path, place: str, dangling: bool) -> None:
    path = run.code / place
    path.unlink(missing_ok=True)
    path.symlink_to(tmp_path / "later" if dangling else run.code / "launch")
    with pytest.raises(ConfigError, match="is a link, and a run's code has none"):
        trust.check(run, trusted=False)


@pytest.mark.parametrize("name", [".nfs000012", ".DS_Store", "._dist_ssl"])
def test_hidden_files_of_file_systems_are_no_modules(run: RunDir, name: str) -> None:
    (run.code / name).touch()
    trust.check(run, trusted=False)


@pytest.mark.parametrize("suffix", EXTENSION_SUFFIXES)
def test_machine_code_in_place_of_a_module_is_refused(run: RunDir, suffix: str) -> None:
    (run.code / "dist_ssl" / f"errors{suffix}").write_bytes(b"\x7fELF")
    with pytest.raises(ConfigError, match="is no part of a run's code, and would be found in place of a module"):
        trust.check(run, trusted=False)
    trust.check(run, trusted=True)
