"""GPUs are counted by torch, which is not loaded where no driver offers one."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_ssl.distributed import world
from dist_ssl.distributed.world import World
from launch import settings, visible_gpus, worker
from launch.run_dir import PROJECT


@pytest.mark.parametrize("name", ["nvidia0", "nvidia12", "nvhost-gpu", "kfd", "dxg"])
def test_where_a_driver_offers_gpus_torch_counts_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).touch()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert visible_gpus.count(tmp_path) == 3


def test_elsewhere_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert visible_gpus.count(tmp_path) == 0


def test_names_of_the_environment_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-abc,")
    assert visible_gpus.visible_gpus() == ["4", "GPU-abc"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(visible_gpus, "count", lambda: 2)
    assert visible_gpus.visible_gpus() == ["0", "1"]


@pytest.mark.parametrize(
    ("named", "found"),
    [("-1", []), ("NoDevFiles", []), ("none", []), ("0,-1,1", ["0"]), ("0, 1", ["0", "1"]), ("MIG-a,b", ["MIG-a"])],
)
def test_what_names_no_gpu_hides_it_and_all_that_follow_as_cuda_has_it(
    named: str, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`CUDA_VISIBLE_DEVICES=-1` is the usual word for the CPU: its ranks must not ask for one GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr(visible_gpus, "present", lambda *_: True)
    assert visible_gpus.visible_gpus() == found
    assert visible_gpus.named_gpus() == len(found)


def test_a_machine_without_gpus_does_not_wait_for_torch(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from launch import slurm, visible_gpus
assert visible_gpus.count(Path({str(tmp_path)!r})) == 0
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)


def test_gpus_that_torch_cannot_use_are_said_before_a_run_trains_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visible_gpus, "present", lambda *_: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "has GPUs, and torch can use none of them" in visible_gpus.why_on_the_cpu(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus.why_on_the_cpu(2) == "", "the user wants it so"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert "1 GPU is too few for 2 ranks" in visible_gpus.why_on_the_cpu(2)
    monkeypatch.setattr(visible_gpus, "present", lambda *_: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus.why_on_the_cpu(2) == ""


@pytest.mark.parametrize(
    ("offered", "named", "least"), [(True, "0,1", 2), (True, "", 0), (True, None, 0), (False, "0,1", 0)]
)
def test_a_rank_on_this_machine_must_find_the_gpus_that_its_node_was_given(
    offered: bool, named: str | None, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its driver may fail between the launcher's look and its own: it would train on the CPU without a word."""
    found: list[int] = []

    @contextlib.contextmanager
    def joined(*_: Any, gpus: int, **__: Any) -> Iterator[World]:
        found.append(gpus)
        yield World()

    monkeypatch.setattr(world, "joined", joined)
    monkeypatch.setattr(visible_gpus, "present", lambda *_: offered)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    with worker.joined_ranks(settings.compose(["cluster=local", "nodes=1", "threads=1"], PROJECT / "configs"), None):
        assert found == [least]
