"""Every rank has a GPU of its own, or all have the CPU."""

import pytest
import torch

from dist_ssl.distributed.devices import own_device, set_single_precision
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


@pytest.mark.parametrize("shown", [0, 7])
def test_a_node_that_lacks_gpus_is_named_and_does_not_train_on_its_cpu(
    monkeypatch: pytest.MonkeyPatch, shown: int
) -> None:
    show(monkeypatch, shown)
    monkeypatch.setattr("socket.gethostname", lambda: "n17")
    with pytest.raises(ConfigError, match=f"8 GPUs were requested for each node, and n17 shows {shown}"):
        own_device(0, 8)
    assert own_device(0, shown).type == ("cuda" if shown else "cpu")


@pytest.mark.parametrize(("rank", "asked"), [(0, 2), (1, 0)])
def test_several_parts_of_a_gpu_are_refused_as_such(monkeypatch: pytest.MonkeyPatch, rank: int, asked: int) -> None:
    show(monkeypatch, 1)  # torch finds the first MIG instance alone
    monkeypatch.setattr("socket.gethostname", lambda: "n17")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-5c1c,MIG-77ab")
    with pytest.raises(ConfigError, match="n17 grants 2 MIG instances: a process can use one"):
        own_device(rank, asked)


def test_one_part_of_a_gpu_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    show(monkeypatch, 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-5c1c")
    assert own_device(0, 1) == torch.device("cuda", 0)


def test_single_precision_is_exact_on_a_gpu_unless_tf32_is_asked_for() -> None:
    def products_and_convolutions() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        for tf32 in (True, False):
            set_single_precision(torch.device("cuda", 0), tf32=tf32)
            assert products_and_convolutions() == (tf32, tf32)
        set_single_precision(torch.device("cpu"), tf32=True)
        assert products_and_convolutions() == (False, False)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
