"""GPUs are counted by torch, which is not loaded where no driver offers one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from launch import visible_gpus
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


def test_a_machine_without_gpus_does_not_wait_for_torch(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from launch import slurm, visible_gpus
assert visible_gpus.count(Path({str(tmp_path)!r})) == 0
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
