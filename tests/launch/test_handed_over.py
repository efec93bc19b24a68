"""The run folder of somebody else, full of code: it can be looked at, and nothing of it is executed without a word."""

import compileall
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import yaml
from PIL import Image

from launch import audit, evaluate, export, handover, slurm
from launch.run_dir import PROJECT, RunDir
from launch.scheduler import UNKNOWN_JOB
from launch.source_commit import SNAPSHOT, copy_for_owner
from tests.launch.test_warm_start import words
from tests.test_fuzz_run_folder import run_folder
from tests.test_saved_encoder import tiny

STRANGER = 12345
ONLY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
HIDDEN = ("sitecustomize.py", "usercustomize.py", "torch/__init__.py", "numpy/__init__.py", "evil.pth", "setup.py")
LOOK = """
import json, os, runpy, sys
folder, commands = os.path.realpath(sys.argv[1]), json.loads(sys.argv[2])
found = []
def watch(event, given):
    name = getattr(given[0], "co_filename", "") if event == "exec" else ""
    if os.path.exists(name) and os.path.realpath(name).startswith(folder):
        found.append([event, given[0].co_filename])
    if event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen"):
        found.append([event, str(given[0])])
sys.addaudithook(watch)
codes = []
for words in commands:
    sys.argv = words
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        codes.append(end.code)
print(json.dumps([codes, found]))
"""
"""Runs commands in one process, and prints their exit codes and what of the folder they executed."""
OF_SLURM = ("squeue", "scontrol", "sacct")
OF_CTYPES = ("ldconfig", "gcc", "cc", "ld", "objdump")
"""Programs by which Python's ctypes looks for libraries of the system."""


def give_away(folder: Path) -> None:
    """Let another user own the folder, or, where that is not possible, let others write to it."""
    for path in (folder, *folder.rglob("*")):
        if os.geteuid() == 0:
            os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
        elif not path.is_symlink():
            path.chmod(path.stat().st_mode | 0o022)


CANARY = "canary"


@pytest.fixture
def canary(theirs: RunDir) -> Iterator[Path]:
    """A file that all code and all commands in the folder make; it is there before no test."""
    path = theirs.folder.parents[1] / CANARY
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory, demo_shards: Path) -> RunDir:
    """A run in whose folder everything that Python could find or a config could start makes the canary; read-only."""
    place = tmp_path_factory.mktemp("poisoned")
    canary, run = place / CANARY, RunDir(place / "runs" / "theirs")
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


def images(folder: Path) -> Path:
    """Two classes of three pictures."""
    for number in range(6):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((24, 24, 3), 40 * number, dtype=np.uint8)).save(path)
    return folder


def slurm_knows_no_job(folder: Path) -> None:
    """Put commands of Slurm into the folder that have forgotten every job."""
    folder.mkdir()
    for name in OF_SLURM:
        (folder / name).write_text(f"#!/bin/sh\necho 'error: {UNKNOWN_JOB}' >&2\nexit 1\n")
        (folder / name).chmod(0o755)


def test_looking_at_a_strangers_run_and_using_its_encoder_executes_nothing_of_it(
    theirs: RunDir, canary: Path, tmp_path: Path
) -> None:
    """One process, so that the start of Python and torch is paid once; its folder is the stranger's code."""
    run, pictures = f"run={theirs.folder}", f"data.path={images(tmp_path / 'pictures')}"
    commands = [
        ["launch/status.py", run],
        ["launch/status.py", f"runs={theirs.folder.parent}"],
        ["launch/slurm.py", f"follow={theirs.folder}"],
        ["launch/report.py", run, f"out={tmp_path / 'report.html'}"],
        ["launch/audit.py", run],
        ["launch/embed.py", run, pictures, f"out={tmp_path / 'features'}", "device=cpu"],
        ["launch/finetune.py", run, pictures, f"out={tmp_path / 'tuned'}", "epochs=1", "workers=0", "device=cpu"],
    ]
    full = [[str(PROJECT / script), *more] for script, *more in commands]
    start = [sys.executable, "-c", LOOK, str(theirs.folder), json.dumps(full)]
    slurm_knows_no_job(tmp_path / "bin")
    search = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    own = {**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONSAFEPATH": "1", "PATH": search}
    done = subprocess.run(start, capture_output=True, text=True, check=False, cwd=theirs.code, env=own)
    assert done.returncode == 0, done.stdout + done.stderr
    codes, found = json.loads(done.stdout.splitlines()[-1])
    assert codes == [0, 0, 1, 0, 2, 0, 0], done.stdout  # the run that is followed has failed
    assert [[event, what] for event, what in found if Path(what).name not in (*OF_SLURM, *OF_CTYPES)] == []
    assert not canary.exists()
    assert (tmp_path / "tuned").is_dir()


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
    whose: str, theirs: RunDir, canary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = RunDir(shutil.copytree(theirs.folder, tmp_path / "copy", symlinks=True))
    for path in (copy.folder, *copy.folder.rglob("*")):
        os.chown(path, STRANGER if whose == "another user's" else os.geteuid(), -1, follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o022)
    if whose == "open to others":
        copy.config_file.chmod(0o666)
    assert audit.main([f"run={copy.folder}"]) == 2
    said = capsys.readouterr().out
    assert canary.exists() == (whose == "the user's own"), "its owner has written and allowed the command"
    assert ("data.allow_pipe" in said) == (whose != "the user's own"), said
