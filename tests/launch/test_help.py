"""The commands print their usage when they are asked for it, and do nothing else; a full disk is no stack trace."""

import errno
import re
from dataclasses import MISSING, fields
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import pytest

from launch import audit, completion, embed, evaluate, export, finetune, plan, report, slurm, status
from launch.config_groups import config_groups, keys_of_a_run, run_keys
from launch.run_dir import PROJECT
from shards import make, show, verify
from shards.command_line import fill, pairs

SCRIPTS = [slurm, audit, completion, embed, evaluate, export, finetune, plan, report, status, make, show, verify]
BELOW = {
    slurm: keys_of_a_run(PROJECT / "configs"),
    plan: keys_of_a_run(PROJECT / "configs"),
    make: make.options_help(),
}
"""What stands below the docstring, because it follows from files and classes."""
WIDTH = 120


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("arguments", [["-h"], ["--help"], ["nodes=2", "--help"]])
def test_help_is_the_usage(
    script: ModuleType,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert script.main(arguments) == 0
    text = capsys.readouterr().out
    assert text.strip() == f"{(script.__doc__ or '').strip()}\n\n{BELOW.get(script, '')}".strip()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_has_examples_keys_in_groups_and_exit_codes(script: ModuleType) -> None:
    text = script.__doc__ or ""
    examples = text.partition("\nExamples:\n\n")[2].partition("\n\n")[0].splitlines()
    start = f"python {script.__name__.replace('.', '/')}.py "
    assert examples
    for line in examples:
        assert start in line or f"torchrun --nproc-per-node {start.removeprefix('python ')}" in re.sub(r" \d", "", line)
    assert script is completion or "\nExit codes: 0" in text
    assert all(len(line) <= WIDTH for line in f"{text}\n{BELOW.get(script, '')}".splitlines())


def test_help_of_a_run_has_all_groups_and_keys() -> None:
    text = keys_of_a_run(PROJECT / "configs")
    groups = {folder.name for folder in (PROJECT / "configs").iterdir() if any(folder.glob("*.yaml"))}
    assert {group.removeprefix("+") for group in config_groups(PROJECT / "configs")} == groups
    for group, choices in config_groups(PROJECT / "configs").items():
        assert f"\n    {group}=" in text
        assert set(choices) <= set(re.findall(r"\w+", text))
    for key in run_keys(PROJECT / "configs"):
        assert f"\n    {key}: " in text


def test_help_of_the_shards_has_the_options_of_every_source() -> None:
    text = re.sub(r"\n {8}", " ", make.options_help())
    assert set(make.SOURCES) <= set(re.findall(r"\w+", text))
    assert "\n    source=imagefolder: path=... shard_bytes=256MB val= labels= channels= threads=" in text
    assert re.search(r"\n    source=cifar10, .*places365: path=... download=false", text)
    for found in make.SOURCES.values():
        words = make.options_of(found.options).split()
        given = pairs([word for word in words if not word.endswith(("=", "=..."))])
        needed = {field.name: Path("p") for field in fields(found.options) if field.default is MISSING}
        assert fill(found.options, {**given, **dict.fromkeys(needed, "p")}, "") == found.options(**needed)


def test_the_usage_of_the_launcher_names_every_way_to_use_it() -> None:
    for argument in ("resume=", "fork=", "follow=", "-m ", "dry_run=true"):
        assert f"python launch/slurm.py {argument}" in slurm.__doc__ or f" {argument}" in slurm.__doc__


@pytest.mark.parametrize(("script", "part"), [(slurm, "command"), (evaluate, "evaluate")])
def test_a_full_disk_is_said(
    script: ModuleType, part: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failure = OSError(errno.ENOSPC, "No space left on device", "runs/mine/attempts/0001")

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(script, part, fail)
    for check in ("RunDir", "trust", "hand_over"):
        monkeypatch.setattr(evaluate, check, MagicMock())
    monkeypatch.setattr(evaluate.trust, "parse", lambda arguments: (False, arguments))
    assert script.main(["run=runs/mine"]) == 2
    text = capsys.readouterr().out
    assert "The disk is full: [Errno 28] No space left on device: 'runs/mine/attempts/0001'." in text
    assert "Free some space, then try again." in text
    failure.errno = errno.EFBIG
    with pytest.raises(OSError, match="No space"):
        script.main(["run=runs/mine"])
