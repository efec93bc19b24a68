"""Batch norm by a GPU's kernels, emulated, is that of the reference: values, gradients, running statistics."""

import threading
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from dist_ssl.models import norm, norm_cuda
from dist_ssl.models.norm import BatchNorm, Scope
from tests.emulated_norms import emulated
from tests.launches import Calls

SHAPES = [(24, 5), (24, 5, 4, 3), (24, 5, 1, 1)]
CLOSE = {torch.float32: 1e-6, torch.bfloat16: 1e-2}


@pytest.fixture(autouse=True)
def _emulated() -> Iterator[None]:
    with emulated():
        yield


class Ranks:
    """Threads that add tensors up as ranks do."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=20)
        self.offers: list[Tensor] = [torch.empty(0)] * size
        self.asked: list[tuple[torch.Size, torch.dtype]] = []

    def add(self, rank: int, x: Tensor) -> Tensor:
        """The sum over the ranks."""
        self.offers[rank] = x.detach().clone()
        self.barrier.wait()
        if rank == 0:
            self.asked.append((x.shape, x.dtype))
        summed = torch.stack(self.offers).sum(0)
        self.barrier.wait()
        return summed

    def run(self, work: list) -> list:
        """What the work of every rank comes to."""
        found: list = [None] * len(work)

        def one(rank: int) -> None:
            found[rank] = work[rank]()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(len(work))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


def data(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    """Channels with means and standard deviations of their own, as the precision under test can hold them."""
    generator = torch.Generator().manual_seed(seed)
    channel = torch.arange(shape[1]).view(1, -1, *[1] * (len(shape) - 2)) / shape[1]
    x = torch.randn(shape, generator=generator) * (0.5 + channel) + channel
    return x.to(dtype).contiguous(memory_format=torch.channels_last if len(shape) == 4 else torch.contiguous_format)


def made(dtype: torch.dtype, affine: bool = True) -> BatchNorm:
    """A norm with weights and statistics that are not those of the start."""
    own = BatchNorm(5, eps=1e-3, momentum=0.3, affine=affine)
    generator = torch.Generator().manual_seed(3)
    for value in own.state_dict().values():
        value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return own.to(dtype)


def learnt(own: BatchNorm, x: Tensor, towards: Tensor) -> list[Tensor]:
    """Output, all gradients and the running statistics, after two steps."""
    for _ in range(2):
        own.zero_grad()
        x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        y = own(x)
        y.backward(towards.to(y.dtype))
        norm.update_running_statistics(own)
    assert x.grad is not None
    return [
        y.detach(),
        x.grad,
        *[p.grad for p in own.parameters() if p.grad is not None],
        own.running_mean,
        own.running_var,
    ]


def close(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    """Assert that tensors are as equal as sums in single precision of numbers of this precision can be."""
    for one, other in zip(found, expected, strict=True):
        size = float(other.abs().max())
        assert (one.double() - other.double()).abs().max() <= CLOSE[dtype] * max(size, 1.0)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("views", "rows", "samples"), [(1, 1, None), (3, 1, None), (2, 2, 3), (2, 1, 4), (1, 6, 2)])
def test_it_is_the_reference(
    dtype: torch.dtype, shape: tuple[int, ...], affine: bool, views: int, rows: int, samples: int | None
) -> None:
    x, towards = data(shape, 0, dtype), data(shape, 1, dtype)
    own, exact = made(torch.float32, affine), made(torch.float64, affine)
    for module in (own, exact):
        module.views, module.rows, module.scope = views, rows, Scope(samples=samples)
    found = learnt(own, x, towards)
    assert found[0].dtype == found[1].dtype == dtype
    assert found[0].stride() == found[1].stride() == x.stride()
    close(found, learnt(exact, x.double(), towards), dtype)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("cuts", [[12, 12], [3, 21], [6, 6, 12]])
@pytest.mark.parametrize("affine", [True, False])
def test_ranks_together_are_one_rank(dtype: torch.dtype, cuts: list[int], affine: bool) -> None:
    shape = (48, 5, 4, 3)
    x, towards = data(shape, 0, dtype), data(shape, 1, dtype)

    def share(of: Tensor, rank: int) -> Tensor:
        return torch.cat([view.split(cuts)[rank] for view in of.chunk(2)])

    whole = made(torch.float64, affine)
    whole.views = 2
    y, dx, *parameters, mean, var = learnt(whole, x.double(), towards)
    ranks = Ranks(len(cuts))
    modules = [made(torch.float32, affine) for _ in cuts]
    for rank, module in enumerate(modules):
        module.views, module.scope = 2, Scope(partial(ranks.add, rank))
    of_ranks = ranks.run([partial(learnt, m, share(x, r), share(towards, r)) for r, m in enumerate(modules)])
    for rank, (own_y, own_dx, *_, own_mean, own_var) in enumerate(of_ranks):
        close([own_y, own_dx, own_mean, own_var], [share(y, rank), share(dx, rank), mean, var], dtype)
    for place, expected in enumerate(parameters, start=2):
        close([sum(found[place] for found in of_ranks)], [expected], dtype)
    assert ranks.asked[:2] == [((3, 2, 5), torch.float64), ((2, 2, 5), torch.float64)]


def test_double_precision_stays_with_the_reference() -> None:
    assert not norm_cuda.serves(torch.zeros(1, dtype=torch.float64), torch.float64)
    assert not norm_cuda.serves(torch.zeros(1), torch.float64)
    own, expected = made(torch.float64), nn.BatchNorm1d(5, eps=1e-3, momentum=0.3).double()
    expected.load_state_dict(own.state_dict(), strict=False)
    x = data((24, 5), 0, torch.float64)
    torch.testing.assert_close(own(x), expected(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("strides", ["contiguous", "transposed", "expanded"])
def test_other_layouts_are_normalised_too(strides: str) -> None:
    x = data((24, 5, 4, 3), 0, torch.float32).contiguous()
    x = x.transpose(2, 3).contiguous().transpose(2, 3) if strides == "transposed" else x
    own, exact = made(torch.float32), made(torch.float64)
    towards = torch.full((), 1 / 64).expand(x.shape) if strides == "expanded" else data(x.shape, 1, torch.float32)
    close(learnt(own, x, towards), learnt(exact, x.double(), towards), torch.float32)


def test_evaluation_reads_and_writes_the_precision_of_its_input() -> None:
    own, exact = made(torch.float32).eval(), made(torch.float64).eval()
    x = data((24, 5, 4, 3), 0, torch.bfloat16)
    assert own(x).dtype == torch.bfloat16
    close([own(x).detach()], [exact(x.double()).detach()], torch.bfloat16)


def test_two_views_take_four_launches_forward_and_six_backward() -> None:
    own = made(torch.float32)
    own.views = 2
    x, towards = data((24, 5, 4, 3), 0, torch.bfloat16).requires_grad_(), data((24, 5, 4, 3), 1, torch.bfloat16)
    own(x)  # constants are made at the first use of a shape
    with Calls() as forward:
        y = own(x)
    with Calls() as backward:
        torch.autograd.grad(y, [x, *own.parameters()], towards)
    assert len(forward.launches) == 4, forward.launches
    assert len(backward.launches) == 6, backward.launches
    assert not {"_to_copy", "_local_scalar_dense"} & {*forward.names, *backward.names}


def test_all_running_statistics_move_in_a_few_launches() -> None:
    net = nn.Sequential(*[made(torch.float32) for _ in range(40)])
    norm.set_views(net, 2)
    net(data((24, 5), 0, torch.float32))
    with Calls() as calls:
        norm.update_running_statistics(net)
    assert len(calls.launches) <= 15, calls.launches


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moving_all_at_once_has_the_bits_of_moving_one_by_one(dtype: torch.dtype) -> None:
    norms = [made(dtype) for _ in range(6)]
    for place, one in enumerate(norms):
        one.momentum = (0.1, 0.3)[place % 2]
    seen = {one: torch.randn(2, 5, dtype=dtype) for one in norms}
    expected = [
        [torch.lerp(old, new, one.momentum) for old, new in zip((one.running_mean, one.running_var), pair, strict=True)]
        for one, pair in seen.items()
    ]
    norm.move(seen)
    for one, (mean, var) in zip(norms, expected, strict=True):
        assert torch.equal(one.running_mean, mean)
        assert torch.equal(one.running_var, var)
