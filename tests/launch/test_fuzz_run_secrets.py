"""However a password is spelt on the command line, no file of a submitted run, no job and no message has it."""

import os
import random
import shutil
import stat
from pathlib import Path
from urllib.parse import unquote

import pytest

from launch import credentials, preparation, prologue, slurm, submission
from launch.environment_record import write_record
from launch.run_dir import AttemptDir, RunDir
from launch.variables import ADDRESS
from tests.launch.test_fuzz_credentials import SPELLINGS, word

SLURM = {
    "sbatch": 'printf "%s\\n" "$0" "$@" >>"$0.said"; cat "$@" >>"$0.said"; echo "Submitted batch job 7"',
    "scontrol": 'printf "%s\\n" "$0" "$@" >>"$0.said"; exit 0',
    "squeue": 'printf "%s\\n" "$0" "$@" >>"$0.said"; exit 0',
}
"""Programs in place of Slurm's, which write down their command lines: those that every user of the machine can read."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose `runs` go to programs in its `bin`; data are not looked at, and little code is copied."""
    (tmp_path / "bin").mkdir()
    for name, script in SLURM.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv(ADDRESS, "")
    monkeypatch.setattr(preparation, "check", lambda *_: "0" * 32)
    monkeypatch.setattr("launch.run_dir.SNAPSHOT", ("configs",))
    monkeypatch.setattr("launch.warm_start.initial_weights", lambda *_: None)
    return tmp_path


def telling(folder: Path, secrets: set[str]) -> list[Path]:
    """Files of a folder that have one of the secrets, in their content or their name."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if any(own.encode() in path.read_bytes() or own in str(path) for own in secrets)]


def started(run: RunDir) -> None:
    """Make what a job makes of a run before its ranks start."""
    assert prologue.main([str(run.folder)]) == 0
    attempt = AttemptDir(run, run.newest_attempt())
    write_record(attempt, 0)
    credentials.restored(attempt.config)
    (run.folder / "batch").write_text(submission.text(submission.one(run.submitted, run.folder.resolve())))


def work(given: str, secret: str, place: Path, capsys: pytest.CaptureFixture[str]) -> bool:
    """Submit a run with the word; return whether it was accepted. Fails where the secret is seen anywhere."""
    os.environ[ADDRESS] = ""
    name = "name=x" if not given.startswith("name=") else "seed=0"
    base = ["method=simclr", "data=shards", "data.source=null", "cluster=slurm", "nodes=1", "tracker=tensorboard", name]
    secrets = {secret, unquote(secret)}
    code = slurm.main([*base, f"runs={place / 'runs'}", given])
    for folder in (place / "runs").glob("*/config.yaml"):
        started(RunDir.open(folder.parent))
    text = "".join(capsys.readouterr())
    assert code in (0, 2)
    assert "Traceback" not in text
    assert not [own for own in secrets if own in text], given
    assert not telling(place, secrets), given
    if code == 0:
        assert any(own in os.environ[ADDRESS] for own in secrets), "the ranks get it by the environment"
        assert (place / "bin" / "sbatch.said").read_text().count("srun") > 0, "the batch file is searched"
    shutil.rmtree(place / "runs", ignore_errors=True)
    for path in (place / "bin").glob("*.said"):
        path.unlink()
    return code == 0


def test_every_spelling_of_the_key(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accepted, secret = set(), "s3cr3t%2Fx"
    for spelling in SPELLINGS:
        given = (
            spelling.replace("{{", "{")
            .replace("}}", "}")
            .replace("{}", f"https://user:{secret}@host/folder?sig={secret}")
        )
        if work(given, secret, place, capsys):
            accepted.add(spelling)
    assert {"data.path={}", "++data.path={}", "data.path='{}'", "++data={{path: '{}'}}"} <= accepted


@pytest.mark.chaos
@pytest.mark.parametrize("count", [1000])
def test_any_spelling_and_any_password(count: int, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is a whole command that starts Slurm's, so they are fewer than those of fuzzers within one process."""
    accepted = sum(work(*word(random.Random(number)), place, capsys) for number in range(count))
    assert accepted > count // 10
