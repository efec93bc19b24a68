"""The commands print their usage when they are asked for it, and do nothing else."""

from pathlib import Path
from types import ModuleType

import pytest

from launch import audit, evaluate, export, plan, slurm


@pytest.mark.parametrize("script", [slurm, audit, evaluate, export, plan])
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
