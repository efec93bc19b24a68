"""Every rank has a GPU of its own, or all have the CPU."""

import pytest
import torch

from dist_ssl.distributed.devices import own_device
from dist_ssl.errors import ConfigError


def show(monkeypatch: pytest.MonkeyPatch, gpus: int) -> list[torch.device]:
    """Let torch report so many GPUs; what is made current."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


def test_a_rank_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    current = show(monkeypatch, 4)
    assert own_device(3) == torch.device("cuda", 3)
    assert current == [torch.device("cuda", 3)]


def test_without_gpus_all_ranks_share_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    current = show(monkeypatch, 0)
    assert own_device(7) == torch.device("cpu")
    assert not current


def test_a_rank_without_a_gpu_says_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    show(monkeypatch, 2)
    with pytest.raises(ConfigError, match="no GPU for rank 2 of this node") as caught:
        own_device(2)
    assert "ranks_per_node=2" in str(caught.value)
