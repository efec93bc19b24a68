"""The commands print their usage when they are asked for it, and do nothing else; a full disk is no stack trace."""

import errno
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import pytest

from launch import audit, embed, evaluate, export, plan, slurm, status


@pytest.mark.parametrize("script", [slurm, audit, embed, evaluate, export, plan, status])
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
    assert f"    python launch/{script.__name__.rpartition('.')[2]}.py " in text
    assert text.strip() == (script.__doc__ or "").strip()
    assert not list(tmp_path.iterdir())


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
    failure.errno = errno.EIO
    with pytest.raises(OSError, match="No space"):
        script.main(["run=runs/mine"])
