"""A rank can use its GPU's memory, or a share of the machine's, of which its control group may allow less."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from dist_ssl.distributed import memory_size
from dist_ssl.distributed.world import World

GROUPS: dict[str, tuple[str, dict[str, str], int]] = {
    "version 2": ("0::/job/step\n", {"job/memory.max": "5000\n", "job/step/memory.max": "max\n"}, 5000),
    "the tightest counts": ("0::/job/step\n", {"job/memory.max": "5000", "job/step/memory.max": "4000"}, 4000),
    "version 1": ("9:cpu:/job\n4:memory:/job\n", {"memory/job/memory.limit_in_bytes": "6000"}, 6000),
    "the group of a container": ("0::/../elsewhere\n", {"memory.max": "7000"}, 7000),
    "no limit": ("0::/job\n", {"job/memory.max": "max"}, 10_000),
    "a limit above the machine": ("0::/job\n", {"job/memory.max": "20000"}, 10_000),
    "no groups": ("", {}, 10_000),
}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 10,000 bytes, and 300 of swap."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=10_000))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(total=300))


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("case", GROUPS)
def test_a_control_group_limits_the_memory_of_a_host(tmp_path: Path, case: str) -> None:
    own, files, expected = GROUPS[case]
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    assert memory_size.host_memory(tmp_path / "groups", tmp_path / "own") == expected + 300


@pytest.mark.usefixtures("machine")
def test_the_ranks_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_size, "limits", lambda *_: iter(()))
    node: Any = World(3, 8, local_rank=1, local_size=2)
    assert memory_size.memory_size(node) == 10_300 // 2
    assert memory_size.memory_size(replace(node, shared_memory=object())) == 10_300 // 8, "all are on this machine"


def test_a_gpu_belongs_to_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=80 + device.index)
    )
    assert memory_size.memory_size(World(5, 8, 1, 4, torch.device("cuda", 1))) == 81


def test_this_machine_has_memory() -> None:
    assert 1 << 20 < memory_size.host_memory() < 1 << 50
