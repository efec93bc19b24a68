"""No process of a run, and none that makes shards, creates a file that others can change, whatever its umask was."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from dist_ssl.errors import ConfigError
from dist_ssl.runtime.signals import Signals
from launch import agent, embed, epilogue, evaluate, export, finetune, prologue, slurm, worker
from shards import make, show, verify

STARTS: dict[ModuleType, Callable[[str], list[str]]] = {
    slurm: lambda folder: [f"resume={folder}"],
    prologue: lambda folder: [folder],
    agent: lambda folder: [folder, "1", "0", "1", "1"],
    worker: lambda folder: [folder, "1"],
    epilogue: lambda folder: [folder, "1", "0"],
    evaluate: lambda folder: [f"run={folder}"],
    export: lambda folder: [f"run={folder}", "to=safetensors"],
    embed: lambda folder: [f"run={folder}", "data.path=x", "out=y"],
    finetune: lambda folder: [f"run={folder}", "data.path=x", "out=y"],
    make: lambda folder: ["source=tars", f"path={folder}"],
    show: lambda folder: [folder],
    verify: lambda folder: [folder],
}
"""The processes that write into a run's folder or execute its code, or write shards, and how each is started."""


def without_effects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let agent and worker leave the signals, streams and variables of this process alone."""
    monkeypatch.setattr(Signals, "listen", lambda self: self)
    for name in ("use_private_cache", "die_with_parent", "open_journal"):
        monkeypatch.setattr(worker, name, lambda: None)


@pytest.mark.parametrize("umask", [0, 0o002, 0o027])
@pytest.mark.parametrize("started", STARTS, ids=lambda module: module.__name__)
def test_a_process_takes_the_right_to_write_from_others(
    started: ModuleType, umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_effects(monkeypatch)
    before = os.umask(umask)
    try:
        with contextlib.suppress(ConfigError):  # there is no such run
            started.main(STARTS[started](str(tmp_path / "none")))
    finally:
        found = os.umask(before)
    assert found == umask | 0o022
