"""Batch norm over the whole job: torch's own at one rank, and the same numbers at every other number of ranks."""

import threading
from collections.abc import Callable
from functools import partial

import pytest
import timm
import torch
from torch import Tensor, nn

from dist_ssl.models import norm, norm_cpu
from dist_ssl.models.norm import BatchNorm, Scope


@pytest.fixture(autouse=True, params=["cpu", "any device"])
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything holds for the kernels of the CPU and for the operations of every device."""
    if request.param != "cpu":
        monkeypatch.setattr(norm, "NormaliseCPU", norm.Normalise)
    return str(request.param)


class Ranks:
    """So many threads that add tensors up as ranks do."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size, timeout=20)
        self.offers: list[Tensor | None] = [None] * size

    def total(self, rank: int) -> norm.Sum:
        """The sum over the ranks, as this one calls it."""

        def add(x: Tensor) -> Tensor:
            self.offers[rank] = x.detach().clone()
            self.barrier.wait()
            summed = torch.stack([offer for offer in self.offers if offer is not None]).sum(0)
            self.barrier.wait()
            return summed

        return add

    def run(self, work: Callable[[int, norm.Sum], None]) -> None:
        """Do the work of all ranks at once; the first error of any of them is raised."""
        errors: list[BaseException] = []

        def guarded(rank: int) -> None:
            try:
                work(rank, self.total(rank))
            except BaseException as error:
                errors.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=guarded, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]


def data(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers, each channel with a mean and a standard deviation of its own."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    channel = torch.arange(shape[1], dtype=dtype).view(1, -1, *[1] * (len(shape) - 2))
    return x * (1 + channel) + 2 * channel - 1


def randomised(module: nn.Module, seed: int = 3) -> nn.Module:
    """The module with random weights and statistics."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator, dtype=torch.float64) + 0.5 * ("var" in name))
    return module


def close(own: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    """Assert that two tensors are equal up to rounding."""
    torch.testing.assert_close(own, expected, rtol=tolerance, atol=tolerance)


def gradients(module: nn.Module, x: Tensor, towards: Tensor) -> list[Tensor]:
    """Output, gradient of the input and of all parameters."""
    x = x.clone().requires_grad_()
    y = module(x)
    (y * towards).sum().backward()
    norm.update_running_statistics(module)
    return [y.detach(), x.grad, *[p.grad for p in module.parameters()]]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("shape", "kind"), [((12, 5), nn.BatchNorm1d), ((6, 5, 4, 3), nn.BatchNorm2d)])
def test_one_rank_equals_torch(shape: tuple[int, ...], kind: type[nn.Module], affine: bool) -> None:
    theirs = randomised(kind(5, eps=1e-4, momentum=0.3, affine=affine).double())
    own = BatchNorm(5, eps=1e-4, momentum=0.3, affine=affine).double()
    own.load_state_dict({k: v for k, v in theirs.state_dict().items() if k != "num_batches_tracked"})
    for step in range(3):
        x, towards = data(*shape, seed=step), data(*shape, seed=step + 10)
        own.zero_grad()
        theirs.zero_grad()
        for mine, expected in zip(gradients(own, x, towards), gradients(theirs, x, towards), strict=True):
            close(mine, expected)
    close(own.running_mean, theirs.running_mean)
    close(own.running_var, theirs.running_var)
    close(own.eval()(x), theirs.eval()(x))


def test_the_gradient_passes_a_numerical_check() -> None:
    own = randomised(BatchNorm(3).double())
    own.views = 2
    x = data(8, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: own(x), (x,))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_memory_layout_is_kept_and_does_not_matter(layout: torch.memory_format) -> None:
    own = randomised(BatchNorm(5).double())
    own.views = 2
    x, towards = data(6, 5, 4, 3), data(6, 5, 4, 3, seed=1)
    expected = gradients(own, x, towards)
    own.zero_grad()
    mine = gradients(own, x.contiguous(memory_format=layout), towards.contiguous(memory_format=layout))
    assert mine[0].is_contiguous(memory_format=layout)
    for one, other in zip(mine, expected, strict=True):
        close(one, other)


def test_groups_are_normalised_one_by_one_and_their_statistics_averaged() -> None:
    own, alone = randomised(BatchNorm(4).double()), [randomised(BatchNorm(4).double()) for _ in range(3)]
    own.views = 3
    x, towards = data(15, 4, 2, 2), data(15, 4, 2, 2, seed=1)
    y, dx, dw, db = gradients(own, x, towards)
    parts = [gradients(m, *part) for m, *part in zip(alone, x.chunk(3), towards.chunk(3), strict=True)]
    close(y, torch.cat([part[0] for part in parts]))
    close(dx, torch.cat([part[1] for part in parts]))
    close(dw, sum(part[2] for part in parts))
    close(db, sum(part[3] for part in parts))
    close(own.running_mean, torch.stack([m.running_mean for m in alone]).mean(0))
    close(own.running_var, torch.stack([m.running_var for m in alone]).mean(0))


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("affine", [True, False])
def test_ranks_together_equal_one_rank(size: int, groups: int, affine: bool) -> None:
    x, towards = data(24, 5, 3, 2), data(24, 5, 3, 2, seed=1)
    whole = randomised(BatchNorm(5, affine=affine).double())
    whole.views = groups
    expected = gradients(whole, x, towards)

    def share(batch: Tensor, rank: int) -> Tensor:
        """Every group's part of one rank, group after group."""
        return torch.cat([part.chunk(size)[rank] for part in batch.chunk(groups)])

    found: list[list[Tensor]] = [[] for _ in range(size)]
    modules = [randomised(BatchNorm(5, affine=affine).double()) for _ in range(size)]

    def work(rank: int, total: norm.Sum) -> None:
        modules[rank].views, modules[rank].scope = groups, Scope(total)
        found[rank] = gradients(modules[rank], share(x, rank), share(towards, rank))

    Ranks(size).run(work)
    for rank, (y, dx, *_) in enumerate(found):
        close(y, share(expected[0], rank))
        close(dx, share(expected[1], rank))
        close(modules[rank].running_mean, whole.running_mean)
        close(modules[rank].running_var, whole.running_var)
    for place in range(2, len(expected)):
        close(sum(one[place] for one in found), expected[place])


def test_ranks_of_unequal_batches_weigh_by_their_samples() -> None:
    x = data(9, 4)
    whole = BatchNorm(4).double()
    expected = whole(x)
    found: list[Tensor] = [torch.empty(0)] * 3

    def work(rank: int, total: norm.Sum) -> None:
        found[rank] = BatchNorm(4, scope=Scope(total)).double()(x.split([2, 3, 4])[rank]).detach()

    Ranks(3).run(work)
    close(torch.cat(found), expected.detach())


def test_a_network_gives_the_same_gradients_on_several_ranks() -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5, affine=False)).double()

    x, towards = data(8, 3, 6, 6), data(8, 5, seed=1)
    theirs = network()
    expected = gradients(theirs, x, towards)
    found: list[list[Tensor]] = [[] for _ in range(4)]

    def work(rank: int, total: norm.Sum) -> None:
        found[rank] = gradients(norm.convert(modules[rank], Scope(total)), x.chunk(4)[rank], towards.chunk(4)[rank])

    modules = [network() for _ in range(4)]
    Ranks(4).run(work)
    close(torch.cat([one[0] for one in found]), expected[0])
    close(torch.cat([one[1] for one in found]), expected[1])
    for place in range(2, len(expected)):
        close(sum(one[place] for one in found), expected[place], 1e-11)


@pytest.mark.parametrize("mean", [1e2, 1e4])
def test_single_precision_stays_accurate_where_the_mean_is_large(mean: float, arithmetic: str) -> None:
    x = torch.randn(4096, 3, generator=torch.Generator().manual_seed(0)) + mean
    exact = x.double()
    own = BatchNorm(3, momentum=1.0)
    y = own(x)
    norm.update_running_statistics(own)
    variance, centre = torch.var_mean(exact, 0)
    torch.testing.assert_close(own.running_var.double(), variance, rtol=1e-6, atol=0)
    torch.testing.assert_close(own.running_mean.double(), centre, rtol=1e-7, atol=0)
    # an input of size `mean` is known to half a unit in its last place only
    expected = (exact - centre) / (exact.var(0, correction=0) + own.eps).sqrt()
    assert (y.double() - expected).abs().max() < mean * 2**-22


@pytest.mark.parametrize("mean", [0.0, 1.0, norm_cpu.FAR * 0.99, norm_cpu.FAR * 1.01, 30.0])
def test_single_precision_is_close_at_every_mean(mean: float, arithmetic: str) -> None:
    x = torch.randn(4096, 8, generator=torch.Generator().manual_seed(0)) + mean
    own = BatchNorm(8, momentum=1.0)
    own(x)
    norm.update_running_statistics(own)
    variance, centre = torch.var_mean(x.double(), 0)
    torch.testing.assert_close(own.running_var.double(), variance, rtol=3e-6, atol=0)
    torch.testing.assert_close(own.running_mean.double(), centre, rtol=0, atol=1e-5)


def test_large_means_on_several_ranks_keep_their_variance(arithmetic: str) -> None:
    x = torch.randn(512, 3, generator=torch.Generator().manual_seed(0)) + 1e4
    modules = [BatchNorm(3, momentum=1.0) for _ in range(4)]

    def work(rank: int, total: norm.Sum) -> None:
        modules[rank].scope = Scope(total)
        modules[rank](x.chunk(4)[rank])
        norm.update_running_statistics(modules[rank])

    Ranks(4).run(work)
    for module in modules:
        torch.testing.assert_close(module.running_var.double(), x.double().var(0), rtol=1e-6, atol=0)


def test_a_constant_channel_becomes_its_bias() -> None:
    own = BatchNorm(2).double()
    nn.init.constant_(own.bias, 0.25)
    close(own(torch.full((6, 2), 7.0, dtype=torch.float64)), torch.full((6, 2), 0.25, dtype=torch.float64), 1e-9)


def test_evaluation_asks_no_other_rank_and_changes_nothing() -> None:
    def never(x: Tensor) -> Tensor:
        raise AssertionError("asked for a sum")

    own = randomised(BatchNorm(4, scope=Scope(never)).double()).eval()
    before = {name: value.clone() for name, value in own.state_dict().items()}
    own(data(3, 4))
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())


def test_one_exchange_forward_and_one_backward() -> None:
    calls = []

    def count(x: Tensor) -> Tensor:
        calls.append((tuple(x.shape), x.dtype))
        return x

    own = BatchNorm(4, scope=Scope(count))
    own.views = 2
    own(data(8, 4, dtype=torch.float32).requires_grad_()).sum().backward()
    assert calls == [((3, 2, 4), torch.float64), ((2, 2, 4), torch.float64)]


def test_convert_keeps_weights_statistics_names_and_mode() -> None:
    plain = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))).eval()
    plain[1].requires_grad_(False)
    state = {k: v.clone() for k, v in plain.state_dict().items() if not k.endswith("num_batches_tracked")}
    wanted = {name: p.requires_grad for name, p in plain.named_parameters()}
    own = norm.convert(plain, Scope())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in own.modules())
    assert list(own.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in own.state_dict().items())
    assert {name: p.requires_grad for name, p in own.named_parameters()} == wanted
    assert not any(module.training for module in own.modules())


def test_convert_keeps_double_precision_and_the_settings() -> None:
    own = norm.convert(nn.BatchNorm1d(3, eps=1e-3, momentum=0.25, affine=False).double(), Scope())
    assert isinstance(own, BatchNorm)
    assert (own.eps, own.momentum, own.weight, own.running_mean.dtype) == (1e-3, 0.25, None, torch.float64)


def test_convert_leaves_other_norms_alone() -> None:
    layers = nn.Sequential(nn.LayerNorm(4), nn.GroupNorm(2, 4))
    assert [type(layer) for layer in norm.convert(layers, Scope())] == [nn.LayerNorm, nn.GroupNorm]


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "regnety_002"])
def test_convert_does_not_change_what_an_encoder_of_timm_computes(name: str) -> None:
    torch.manual_seed(0)
    encoder = timm.create_model(name, num_classes=0).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = encoder(x)
        torch.testing.assert_close(norm.convert(encoder, Scope())(x), expected, rtol=1e-5, atol=1e-5)


def test_set_views_reaches_every_batch_norm() -> None:
    network = norm.convert(nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.BatchNorm1d(2))), Scope())
    norm.set_views(network, 4)
    assert [module.views for module in network.modules() if isinstance(module, BatchNorm)] == [4, 4]


@pytest.mark.parametrize("samples", [2, 3, 6, 12, 24])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_groups_of_samples_have_the_same_statistics_on_any_number_of_ranks(size: int, samples: int) -> None:
    views = 2
    x, towards = data(views * 24, 5, 3, 2), data(views * 24, 5, 3, 2, seed=1)
    alone = randomised(BatchNorm(5).double())
    alone.views = views * 24 // samples  # to one rank, groups are as good as views
    expected = gradients(alone, x, towards)

    def share(batch: Tensor, rank: int) -> Tensor:
        return torch.cat([view.chunk(size)[rank] for view in batch.chunk(views)])

    found: list[list[Tensor]] = [[] for _ in range(size)]
    modules = [randomised(BatchNorm(5).double()) for _ in range(size)]

    def work(rank: int, total: norm.Sum) -> None:
        module = modules[rank]
        module.views = views
        module.scope = Scope(total, lambda of: partial(in_slots, total, rank // of, size // of), samples)
        own = share(x, rank).requires_grad_()
        (module(own) * share(towards, rank)).sum().backward()
        norm.update_running_statistics(module, lambda seen: total(seen) / size)
        found[rank] = [own.grad, *[p.grad for p in module.parameters()]]

    Ranks(size).run(work)
    for rank, (dx, *_) in enumerate(found):
        close(dx, share(expected[1], rank))
        close(modules[rank].running_mean, alone.running_mean)
        close(modules[rank].running_var, alone.running_var)
    for place in (1, 2):
        close(sum(one[place] for one in found), expected[place + 1])


def in_slots(total: norm.Sum, block: int, blocks: int, x: Tensor) -> Tensor:
    """The sum over one block of ranks, by the sum over all."""
    slots = x.new_zeros((blocks, *x.shape))
    slots[block] = x
    return total(slots)[block]


def test_the_running_statistics_move_once_for_all_passes_of_a_step() -> None:
    own, expected = BatchNorm(4).double(), BatchNorm(4).double()
    parts = data(12, 4).chunk(3)
    before = own.running_mean.clone()
    for _ in range(2):  # as two-pass accumulation does
        for part in parts:
            own(part)
    assert torch.equal(own.running_mean, before)
    norm.update_running_statistics(own)
    expected.views = 3
    expected(torch.cat(parts))
    norm.update_running_statistics(expected)
    close(own.running_mean, expected.running_mean)
    close(own.running_var, expected.running_var)
