"""Memory that comes back by itself does so when nothing looks at it any more, and not before."""

import torch

from dist_ssl.data.loader.buffers import KEPT, Returning


def test_memory_is_used_again_once_nothing_lies_in_it() -> None:
    memory = Returning()
    first = memory.take(100)
    place, view = first.data_ptr(), first[10:90].view(8, 10).permute(1, 0)
    del first
    second = memory.take(100)
    assert second.data_ptr() != place
    array = view.numpy()
    del view
    third = memory.take(100)
    assert third.data_ptr() != place
    del array
    assert memory.take(100).data_ptr() == place


def test_what_lies_in_memory_that_is_held_never_changes() -> None:
    memory, held = Returning(), []
    for number in range(20):
        lent = memory.take(64).fill_(number)
        held += [lent[number:]] if number % 3 == 0 else []
    assert [int(part[0]) for part in held] == list(range(0, 20, 3))
    assert all(bool((part == part[0]).all()) for part in held)


def test_memory_of_another_size_is_let_go_and_little_is_kept() -> None:
    memory = Returning()
    lent = [memory.take(50) for _ in range(KEPT + 3)]
    del lent
    assert len(memory._spare) == KEPT
    other = memory.take(51)
    assert other.shape == (51,)
    assert not memory._spare


def test_memory_that_a_gradient_needs_is_held() -> None:
    memory, weight = Returning(), torch.ones(64, requires_grad=True)
    product = (memory.take(64).fill_(3) * weight).sum()
    memory.take(64).fill_(5)
    product.backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [3.0] * 64
