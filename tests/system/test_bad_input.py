"""Bad input gets one clear message with value, rule and remedy, exit code 2, and loses nothing."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch import slurm
from launch.run_dir import RunDir
from launch.run_files import read_yaml, write_yaml
from tests.disks import small_disk
from tests.system.launching import PRINTED, Launch, await_that, losses, words
from tests.web import serving


def refusal(capsys: pytest.CaptureFixture[str], *given: str) -> str:
    """What the launcher prints when it refuses these words."""
    assert slurm.main(list(given)) == 2
    text = capsys.readouterr().out
    assert "Traceback" not in text
    return text


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("method=mocov4", "method=mocov4 does not exist.\n  Did you mean 'mocov3'?"),
        ("ndoes=2", "There is no key 'ndoes'.\n  Did you mean 'nodes'?"),
        ("method.hiden=3", "There is no key 'method.hiden'.\n  Did you mean 'method.hidden'?"),
        ("nodes", "'nodes' is not of the form key=value."),
        ("nodes=0", "nodes=0 is not possible: it must be a whole number of at least 1."),
        ("nodes=many", "nodes=many is not possible"),
        ("nodes=5", "5 ranks cannot share lanes=12 equally.\n  Use one of these numbers of ranks: 1, 2, 3, 4, 6, 12."),
        ("batch_size=20", "batch_size=20 is no multiple of lanes=12.\n  Use batch_size=24"),
        ("batch_size=120", "batch_size=120 is more than the 60 samples of the data set."),
        ("save_every=30", "'30' is not a duration: it takes a number and a unit."),
        ("precision=fp8", "precision=fp8 is not possible."),
        ("epochs=few", "epochs='few' is not possible: it takes a value of type int."),
        ("data.max_bad=0.01", "'0.01' is not a share: it takes a number from 0 to 100 and %.\n  Write '1 %', say."),
        ("data.path=nowhere", "The shard folder nowhere does not exist."),
        ("encoder._target_=os.system", "encoder._target_=os.system is outside"),
        ("data.path=2012", "The shard folder 2012 does not exist."),
        ("data.path=null", "data.path=None is not possible: it takes a value of type str."),
        ("data.std=[0.2,0.2,0]", "data.std=[0.2, 0.2, 0.0] is not possible: pixels are divided by it"),
        ("name=[a]", "name=['a'] is not possible: it takes a value of type str."),
        ("runs=null", "runs=None is not possible: it takes a value of type str."),
        ("wait=maybe", "wait='maybe' is not possible: it takes a value of type bool."),
        ("dry_run=maybe", "dry_run='maybe' is not possible: it takes a value of type bool."),
        ("cluster.kind=slrum", "cluster.kind='slrum' is not possible.\n  Did you mean 'slurm'?"),
        ("cluster.extra=5", "cluster.extra=5 is not possible: it takes a value of type dict."),
        ("~cluster", "The config has no cluster.kind."),
        ("metrics.port=-1", "metrics.port=-1 is not possible: it must be from 0 to 65535."),
        ("seed=99999999999999999999", "seed is 99999999999999999999: that is not possible, it must be at most"),
        ("epochs=99999999999", "epochs, with those of extend, is 99999999999: that is not possible"),
        ("extend=99999999999 epochs", "epochs, with those of extend, is "),
        ("engine.accumulate=0", "engine.accumulate=0 is not possible: it must be a whole number of at least 1."),
        ("engine.accumulate=x", "engine.accumulate=x is not possible: it must be a whole number of at least 1."),
        ("++resume=runs/x", "resume=runs/x is not possible here: a new run is described."),
    ],
)
def test_a_wrong_word_is_refused_before_a_run_folder_is_made(
    word: str, message: str, demo_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(capsys, *words(demo_shards, tmp_path / "runs", "nodes=1"), word)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["resume=runs/a", "fork=runs/b@5"], "resume=runs/a fork=runs/b@5 cannot be done at once."),
        (["resume=runs/a", "resume=runs/b"], "cannot be done at once."),
        (["follow=runs/a", "nodes=2"], "nodes=2 has no effect beside follow=runs/a."),
        (["fork="], "fork names no run.\n  Write fork=runs/NAME@STEP."),
        (["resume="], "resume names no run.\n  Write resume=runs/NAME."),
    ],
)
def test_a_command_is_about_one_run(given: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refusal(capsys, *given)


@pytest.mark.parametrize("name", ["1", "nan", "true"])
def test_a_name_may_look_like_a_number(
    name: str, demo_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*words(demo_shards, tmp_path / "runs", "nodes=1"), f"name={name}", "dry_run=true"]
    assert slurm.main(given) == 0
    assert re.search(rf"^name: '?{name}'?$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (f"name={'x' * 300}", "is too long for a folder.\n  Use at most 200 bytes."),
        ("runs=/proc/abc", "cannot be made: No such file or directory.\n  Choose another runs=..."),
        ("runs=FILE/x", "cannot be made: Not a directory.\n  Choose another runs=..."),
        ("resume", "resume= is not possible here: a new run is described.\n  A run is resumed by:"),
        ("simclr", "'simclr' is not of the form key=value."),
    ],
)
def test_a_folder_or_a_word_that_cannot_be_is_one_message(
    word: str,
    message: str,
    demo_shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()
    assert message in refusal(capsys, *words(demo_shards, tmp_path / "runs", "nodes=1"), word)


def test_the_exit_code_of_the_command_is_2(demo_shards: Path, tmp_path: Path) -> None:
    code, text = Launch(*words(demo_shards, tmp_path, "ndoes=1")).finish()
    assert code == 2
    assert text.splitlines() == ["There is no key 'ndoes'.", "  Did you mean 'nodes'?"]


def test_an_empty_shard_folder_and_a_changed_tar_are_refused(
    demo_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    text = refusal(capsys, *words(tmp_path / "empty", tmp_path / "runs", "nodes=1"))
    assert "empty has no manifest.json" in text
    copy = tmp_path / "copy"
    shutil.copytree(demo_shards, copy)
    tar = sorted(copy.glob("train-*.tar"))[1]
    os.truncate(tar, tar.stat().st_size - 512)
    text = refusal(capsys, *words(copy, tmp_path / "runs", "nodes=1"))
    assert f"Shard {tar} has" in text
    assert "make the shards again" in text


def test_the_literal_command_finishes_and_says_so(followed: Path) -> None:
    text = (followed.parent / PRINTED).read_text()
    assert "Finished. kNN accuracy" in text
    assert "epoch   2   step     10   kNN" in text
    assert not list(followed.rglob("*.nbi")), "what Numba compiled, which is unpickled, is not in the run folder"


def test_a_taken_name_is_refused(followed: Path, demo_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = refusal(capsys, *words(demo_shards, followed.parent, "nodes=1", "name=followed"))
    assert f"Resume it with resume={followed}" in text


def test_a_resume_with_a_changed_science_key_is_refused_by_name(
    followed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = losses(followed)
    text = refusal(capsys, f"resume={followed}", "optim.base_lr=0.5")
    assert "optim.base_lr=0.5 is not what the run began with (0.015): its result depends on it." in text
    assert losses(followed) == before
    assert RunDir(followed).newest_attempt() == 1


def test_a_resume_of_what_is_no_run_names_the_nearest_one(followed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = refusal(capsys, f"resume={followed.parent / 'folowed'}")
    assert f"is not a run folder.\n  Did you mean '{followed}'?" in text


def test_a_resume_with_other_data_is_refused(
    followed: Path, tmp_path: Path, demo_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(demo_shards, copy)
    manifest = copy / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    assert f"The data in {copy} is not the run's" in refusal(capsys, f"resume={followed}", f"data.path={copy}")


def test_a_run_folder_of_another_version_is_refused(
    followed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(followed, other)
    write_yaml(other / "config.yaml", {**read_yaml(other / "config.yaml"), "format": 99})
    text = refusal(capsys, f"resume={other}")
    assert "has format 99: this version reads 1.\n  Resume it with the version" in text


def test_a_finished_run_is_not_run_again(followed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert slurm.main([f"resume={followed}"]) == 0
    text = capsys.readouterr().out
    assert "has finished: nothing is left to train" in text
    assert f"Train longer: python launch/slurm.py resume={followed} extend='24 epochs'" in text


def test_a_run_of_other_code_goes_on_with_its_own(followed: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(followed, other)
    script = other / "code" / "launch" / "slurm.py"
    script.write_text(script.read_text().replace("has finished:", "has finished long ago:"))
    code, text = Launch(f"resume={other}").finish()
    assert code == 0, text
    assert f"{other} was started with different code: it resumes with the code in its own folder." in text
    assert f"{other} has finished long ago: nothing is left to train" in text


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    with small_disk(tmp_path, 8) as mounted:
        yield mounted


def test_a_full_disk_loses_nothing(disk: Path, demo_shards: Path) -> None:
    run = disk / "full"
    ballast = disk / "ballast"
    with serving(demo_shards) as server:
        server.hold_after = 2 * 60  # it cannot end before the disk is full
        own = ("nodes=2", "name=full", "epochs=6", "method.hidden=256", "save_every=1 step")
        launch = Launch(*words(demo_shards, disk, *own, "data.cache=null", f"data.path={server.url}"), forked=True)
        await_that((run / "checkpoints" / "LATEST").exists, "a checkpoint")
        try:
            ballast.write_bytes(b"0" * 8_000_000)
        except OSError:
            assert ballast.stat().st_size > 0
        server.released.set()
        code, text = launch.finish()
    assert code == 2, text
    assert "No space left on device" in text
    assert f"resume={run}" in text
    ballast.unlink()
    code, text = Launch(f"resume={run}", f"data.path={demo_shards}", forked=True).finish()
    assert code == 0, text
    assert sorted(losses(run)) == list(range(1, 31))


@pytest.mark.parametrize("word", ["nodes=5", "batch_size=20", "epochs=0", "save_every=30", "name=a:b", "probe.bank=0"])
def test_what_a_run_refuses_a_dry_run_refuses_too(
    word: str, demo_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert word.partition("=")[2] in refusal(capsys, *words(demo_shards, tmp_path, "nodes=1", "dry_run=true"), word)


@pytest.mark.parametrize("dry_run", ["true", "false"])
@pytest.mark.parametrize("key", ["name", "runs"])
def test_no_line_of_a_batch_script_comes_from_the_name_of_a_run(
    key: str, dry_run: str, demo_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*words(demo_shards, tmp_path / "runs", "nodes=1", f"dry_run={dry_run}"), "cluster.kind=local"]
    text = refusal(capsys, *given, f"{key}={tmp_path if key == 'runs' else ''}x\n#SBATCH --wrap=id")
    assert "#SBATCH" not in [line.strip()[:7] for line in text.splitlines()]
    assert "cannot be" in text
    assert not (tmp_path / "runs").exists()
    assert [path for path in tmp_path.iterdir() if "SBATCH" in path.name] == []
