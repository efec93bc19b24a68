"""The run folder of somebody else, full of code: it can be looked at, and nothing of it is executed without a word."""

import compileall
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from launch import audit, evaluate, export, handover, slurm
from launch.run_dir import PROJECT, RunDir
from launch.source_commit import SNAPSHOT, copy_for_owner
from tests.launch.test_warm_start import words
from tests.test_fuzz_run_folder import run_folder
from tests.test_saved_encoder import tiny

STRANGER = 12345
ONLY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
HIDDEN = ("sitecustomize.py", "usercustomize.py", "torch/__init__.py", "numpy/__init__.py", "evil.pth", "setup.py")


def give_away(folder: Path) -> None:
    """Let another user own the folder, or, where that is not possible, let others write to it."""
    for path in (folder, *folder.rglob("*")):
        if os.geteuid() == 0:
            os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
        elif not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o022)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that all code and all commands in the folder make."""
    return tmp_path / "canary"


@pytest.fixture
def theirs(tmp_path: Path, demo_shards: Path, canary: Path) -> RunDir:
    """A run in whose folder everything that Python could find or a config could start makes the canary."""
    run = RunDir(tmp_path / "runs" / "theirs")
    run_folder(run.folder, demo_shards)
    for name in SNAPSHOT:
        copy_for_owner(PROJECT / name, run.code / name)
    poison = f"open({str(canary)!r}, 'w')\n"
    for path in [*run.code.rglob("*.py"), *(run.code / name for name in HIDDEN)]:
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"import os; {poison}" if path.suffix == ".pth" else poison)
    compileall.compile_dir(run.code / "launch", quiet=2)
    for config in (run.config_file, run.folder / "attempts" / "0001" / "config.yaml"):
        content = yaml.safe_load(config.read_text())
        content["data"].update(path=f"pipe:touch {shlex.quote(str(canary))}; cat %s", allow_pipe=True)
        config.write_text(yaml.safe_dump(content))
    tiny().write(run.folder / "encoder.safetensors")
    give_away(run.folder)
    return run


def test_the_poison_of_these_tests_works(theirs: RunDir, canary: Path) -> None:
    own = {**os.environ, "PYTHONPATH": str(theirs.code)}
    subprocess.run([sys.executable, "-P", "-c", "pass"], env=own, check=True)
    assert canary.exists()


@pytest.mark.parametrize(
    ("main", "given"),
    [
        (slurm.main, ["resume={}"]),
        (slurm.main, ["resume={}", "dry_run=true"]),
        (slurm.main, ["fork={}@4"]),
        (slurm.main, ["fork={}@4", "dry_run=true"]),
        (evaluate.main, ["run={}"]),
        (export.main, ["run={}", "to=safetensors"]),
    ],
    ids=["resume", "dry resume", "fork", "dry fork", "evaluate", "export"],
)
def test_what_executes_a_runs_code_needs_a_word(
    main: Callable[[list[str]], int],
    given: list[str],
    theirs: RunDir,
    canary: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class ReplacedError(Exception):
        """The process would now be that of the run's code."""

    def replace(_: str, command: list[str], environment: Any) -> NoReturn:
        raise ReplacedError(environment["PYTHONPATH"])

    monkeypatch.setattr(handover.os, "execve", replace)
    full = [word.format(theirs.folder) for word in given]
    assert main(full) == 2
    said = capsys.readouterr().out
    assert "is not yours alone" in said
    assert "Its code differs from this code in " in said
    assert main([*full, "trust=false"]) == 2
    with pytest.raises(ReplacedError, match=str(theirs.code)):
        main([*full, "trust=true"])
    assert not canary.exists()


def test_a_run_that_starts_from_a_strangers_weights_needs_a_word(
    theirs: RunDir, canary: Path, demo_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = words(demo_shards, tmp_path / "mine", f"init={theirs.folder}", "name=x")
    assert slurm.main(given) == 2
    assert "is not yours alone, and a run would start from weights that others may have" in capsys.readouterr().out
    assert slurm.main([*given, "trust=true"]) == 2
    said = capsys.readouterr().out
    assert "is not yours alone" not in said
    assert "probe.every is missing" in said, "its config is read then"
    assert not (tmp_path / "mine" / "x").exists()
    assert not canary.exists()


@pytest.mark.parametrize("whose", [pytest.param("another user's", marks=ONLY_ROOT), "open to others", "the user's own"])
def test_an_audit_starts_no_command_of_a_strangers_config(
    whose: str, theirs: RunDir, canary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (theirs.folder, *theirs.folder.rglob("*")):
        os.chown(path, STRANGER if whose == "another user's" else os.geteuid(), -1, follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o022)
    if whose == "open to others":
        theirs.config_file.chmod(0o666)
    assert audit.main([f"run={theirs.folder}"]) == 2
    said = capsys.readouterr().out
    assert canary.exists() == (whose == "the user's own"), "its owner has written and allowed the command"
    assert ("data.allow_pipe" in said) == (whose != "the user's own"), said
