"""What is staged is what was there, whatever happens to it later."""

import pytest
import torch
from torch import Tensor

from dist_ssl.checkpoint.staging import Staging
from dist_ssl.protocols.engine import Piece

KINDS = {
    "a matrix": torch.randn(3, 5),
    "a convolution in channels_last": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
    "a number": torch.tensor(2**53),
    "nothing": torch.empty(0, 4),
    "every other column": torch.randn(6, 8)[:, ::2],
    "a transposed matrix": torch.randn(5, 3).T,
    "rows from the middle": torch.arange(40).reshape(10, 4)[3:7],
    "half precision": torch.randn(7).bfloat16(),
    "flags": torch.tensor([True, False, True]),
    "one repeated": torch.ones(1).expand(6),
}


def pieces(tensors: dict[str, Tensor]) -> dict[str, Piece]:
    return {name: Piece(value, tuple(value.shape), 0) for name, value in tensors.items()}


def test_every_kind_of_tensor_is_copied_as_it_is() -> None:
    staged = Staging(torch.device("cpu")).take(pieces(KINDS)).pieces()
    for name, value in KINDS.items():
        assert staged[name].tensor.dtype == value.dtype
        assert torch.equal(staged[name].tensor, value), name
        assert staged[name].tensor.stride() == value.stride() or not value.is_contiguous()


def test_what_changes_later_is_not_seen() -> None:
    held = {name: value.clone() for name, value in KINDS.items()}
    staged = Staging(torch.device("cpu")).take(pieces(held))
    for value in held.values():
        value.zero_()
    for name, value in KINDS.items():
        assert torch.equal(staged.pieces()[name].tensor, value), name


def test_memory_is_allocated_once_and_grows_where_it_must() -> None:
    staging = Staging(torch.device("cpu"))
    places = [staging.take(pieces({"x": torch.randn(size)})).memory.data_ptr() for size in (1000, 1000, 10, 1000)]
    assert len(set(places)) == 1
    big = torch.randn(5000)
    assert torch.equal(staging.take(pieces({"x": big})).pieces()["x"].tensor, big)


def test_on_the_host_no_update_has_to_wait() -> None:
    assert Staging(torch.device("cpu")).take(pieces(KINDS)).await_device is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_what_lies_on_a_gpu_is_copied_before_it_changes() -> None:
    device = torch.device("cuda")
    held = {name: torch.randn(1 << 22, device=device) for name in "abcdefgh"}
    before = {name: value.cpu() for name, value in held.items()}
    staged = Staging(device).take(pieces(held))
    assert staged.memory.is_pinned()
    assert staged.await_device is not None
    staged.await_device()
    for value in held.values():
        value.zero_()
    found = staged.pieces()
    assert all(torch.equal(found[name].tensor, before[name]) for name in held)
