"""What an epoch needs in memory is known beforehand, from below: at most what a real step takes, and not much less."""

import ctypes
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from dist_ssl.config.instantiate import instantiate
from dist_ssl.config.meta_device import META, on_meta_device
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws
from dist_ssl.core.plan import EpochPlan
from dist_ssl.distributed.world import World
from dist_ssl.engines import saved_tensors
from dist_ssl.engines.memory_need import MemoryEstimate, MemoryNeed, check_memory, gib, is_small, largest
from dist_ssl.engines.parallel import Parallel
from dist_ssl.engines.saved_tensors import AbsentRanks
from dist_ssl.errors import ConfigError
from dist_ssl.methods.rotation import Rotation
from dist_ssl.methods.simclr import SimCLR
from dist_ssl.models.encoders import TinyResNet
from dist_ssl.models.fixed_positions import positions
from dist_ssl.models.vit import vit
from dist_ssl.optim.recipes import LARS, SGD, Muon
from dist_ssl.protocols.method import Method
from tests.engines.jobs import CONFIGS, hyper, small_engine
from tests.engines.peak import PeakMemory
from tests.methods.test_contract import NAMES
from tests.ranks import Ranks

ENCODERS = sorted(path.stem for path in (CONFIGS / "encoder").glob("*.yaml"))
ROWS, SIDE, LOCAL = 8, 24, 12
MOST = 1.5
"""Largest ratio of the memory of tensors of a real step to the estimate, for the cases here."""
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **{name: (name, {}, {}) for name in NAMES},
    "of a ViT": ("mocov3", {"vit": True}, {}),
    "of a ViT, local views, + rotation": ("dino", {"vit": True, "local_views": 2, "aux": True}, {}),
    "in parts": ("mocov3", {"norm_group": 4}, {"accumulate": 2}),
    "in double precision": ("vicreg", {}, {"dtype": torch.float64}),
    "in bfloat16": ("simclr", {"vit": True}, {"compute": torch.bfloat16}),
    "an average": ("simclr", {}, {"ema": 0.99}),
    "SGD": ("simclr", {}, {"optimizer": SGD(0.1, 0.0)}),
    "LARS": ("simclr", {}, {"optimizer": LARS(0.1, 0.0)}),
    "Muon": ("simclr", {}, {"optimizer": Muon(0.1, 0.0)}),
    "Muon of convolutions": ("simclr", {}, {"optimizer": Muon(0.1, 0.0, convolutions=True)}),
}
"""Names of methods, with keys of them, and options of the engine."""


def made(world: World, name: str, **own: Any) -> Method:
    """A method with the widths of its config."""
    node = yaml.safe_load((CONFIGS / "method" / f"{name}.yaml").read_text())
    keys = {key: value for key, value in own.items() if key in node}
    encoder = own.get("encoder") or (vit(64, 2, 2, patch=4) if own.get("vit") else TinyResNet(8))
    found: Method = instantiate({**node, **keys}, "method", offered={"num_samples": 120}, encoder=encoder, world=world)
    return Rotation(found, world=world, hidden=64) if own.get("aux") else found


def estimate(
    name: str, engine: str = "ddp", ranks: int = 1, *, per_node: int = 1, own: Any = None, **options: Any
) -> MemoryEstimate:
    """The estimate for an engine; `own`: keys of the method."""
    given = {"dtype": torch.float32, **options}
    with on_meta_device():
        method = made(AbsentRanks(size=ranks), name, **(own or {}))
        return MemoryEstimate(small_engine(World(device=META), engine, method, **given), ranks, per_node)


def plan_of(method: Method, batch_size: int = ROWS, side: int = SIDE) -> EpochPlan:
    local = LOCAL if method.local_views else 0
    return EpochPlan(0, side, 1.0, method.num_views, batch_size, 1, local_views=method.local_views, local_size=local)


def need(name: str, batch_size: int = ROWS, side: int = SIDE, **given: Any) -> MemoryNeed:
    found = estimate(name, **given)
    return found(plan_of(found.engine.method, batch_size, side))


def one_batch(world: World, engine: Parallel, plan: EpochPlan) -> Batch:
    """Random views of a plan, a rank's share."""
    rows, sides = plan.batch_size // world.size, [plan.image_size] * plan.views + [plan.local_size] * plan.local_views
    views = [torch.randn(rows, 3, side, side, dtype=engine.dtype) for side in sides]
    return Batch(views, torch.arange(rows), torch.ones(rows, dtype=torch.bool), None, Draws(0), step=0)


def peak(engine: Parallel, plan: EpochPlan) -> int:
    """The memory of a real step with moments: the second."""
    batch = one_batch(World(), engine, plan)
    engine.step(batch, hyper(engine.method))
    state = (x for moments in engine.optimizer.state.values() for x in moments.values() if isinstance(x, Tensor))
    kept = engine.average.held.values() if engine.average else ()
    with PeakMemory([*engine.own.values(), *engine.method.buffers(), *batch.views, *kept, *state]) as memory:
        engine.step(batch, hyper(engine.method))
    return memory.most


@contextmanager
def nothing_left_out(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a method that fake tensors cannot run raise its error."""
    monkeypatch.setattr(saved_tensors, "_or_none", lambda call: call())
    yield


@pytest.mark.parametrize("case", CASES)
def test_a_step_never_takes_less_than_is_estimated_and_not_much_more(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, own, options = CASES[case]
    with nothing_left_out(monkeypatch):
        least = estimate(name, own=own, **options)
        expected = least(plan_of(least.engine.method)).total
    given = {"dtype": torch.float32, **options}
    engine = small_engine(World(), "ddp", made(World(), name, **own), **given)
    found = peak(engine, plan_of(engine.method))
    assert expected <= found <= MOST * expected
    assert not is_small(engine.method, [plan_of(engine.method)], 1, found), "it would not have been counted"


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_of_the_config_tree_can_be_counted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    node = yaml.safe_load((CONFIGS / "encoder" / f"{name}.yaml").read_text())
    with on_meta_device():
        encoder = instantiate(node, "encoder")
    with nothing_left_out(monkeypatch):
        least = estimate("simsiam", own={"encoder": encoder})
        plan = plan_of(least.engine.method, 2, 32)
        found = least(plan)
    assert found.activations > 2 * found.views, "more than one layer keeps its input"
    assert not is_small(least.engine.method, [plan], 1, 2 * found.total), "it would not have been counted"


def job_peak(world: World, name: str, engine: str, batch_size: int) -> int:
    """The memory of a rank's second step in a job, with all that its engine has allocated before."""
    method = made(world, name)
    with PeakMemory([*method.parameters(), *method.buffers()], resized=True) as memory:
        wrapped = small_engine(world, engine, method, dtype=torch.float32)
        batch = one_batch(world, wrapped, plan_of(method, batch_size))
        wrapped.step(batch, hyper(method))
        memory.most = 0
        wrapped.step(batch, hyper(method))
    return memory.most


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_a_rank_of_a_job_never_takes_less_than_is_estimated(ranks: Ranks, engine: str) -> None:
    found = ranks.run(job_peak, 2, "mocov3", engine, 2 * ROWS)
    expected = need("mocov3", 2 * ROWS, engine=engine, ranks=2).total
    assert expected <= min(found)
    assert max(found) <= 2.5 * expected, "small nets gather most of their weights at once"


@pytest.mark.parametrize("name", ["byol", "mocov3", "simclr", "single_branch"])
def test_a_rank_needs_the_same_for_its_share_of_the_batch_but_for_what_it_gathers(name: str) -> None:
    alone, two, four = (need(name, ranks * ROWS, ranks=ranks) for ranks in (1, 2, 4))
    assert alone.views == two.views == four.views
    assert alone.weights == two.weights == four.weights
    assert alone.activations <= two.activations <= four.activations < 1.1 * alone.activations
    assert (alone.activations == four.activations) == (name == "byol"), "it gathers nothing"


def test_more_pixels_samples_and_views_need_more() -> None:
    found = estimate("dino", own={"local_views": 1})
    base = plan_of(found.engine.method)
    more = ({"image_size": 32}, {"local_size": 20}, {"batch_size": 16}, {"views": 3}, {"local_views": 2})
    for larger in more:
        assert found(replace(base, **larger)).total > found(base).total
    assert found(replace(base, epoch=7, magnitude=0.5, scale=0.5)) is found(base), "counted once"


def test_fewer_tokens_and_larger_patches_need_less() -> None:
    found = estimate("simclr", own={"vit": True})
    base = plan_of(found.engine.method)
    for smaller in ({"keep_tokens": 0.5}, {"patch_size": 8}):
        assert found(replace(base, **smaller)).activations < 0.8 * found(base).activations


def test_candidates_that_the_model_scores_are_counted_with_the_views() -> None:
    found = estimate("simclr")
    base = plan_of(found.engine.method)
    views = found(base).views
    found.scored = lambda plan, itemsize: plan.candidates * itemsize
    assert found(replace(base, candidates=3)).views == views + ROWS * 3 * 4


def test_recomputation_keeps_little_and_a_compiler_is_credited_with_as_much() -> None:
    plain, again, compiled, parts, half = (
        need("simclr", own={"vit": True, "norm_group": 4}, **options).activations
        for options in (
            {},
            {"activation_checkpointing": True},
            {"compile": True},
            {"accumulate": 2},
            {"compute": torch.bfloat16},
        )
    )
    assert again == compiled < 0.3 * plain
    assert 0.4 * plain < parts < 0.5 * plain
    assert half < 0.8 * plain


SHARES: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "ddp": ({}, (1, 1, 1)),
    "fsdp": ({}, (4, 4, 4)),
    "fsdp within nodes": ({"replicate": "nodes"}, (2, 2, 2)),
    "deepspeed 0": ({}, (1, 1, 1)),
    "deepspeed 1": ({}, (1, 1, 4)),
    "deepspeed 2": ({}, (1, 4, 4)),
    "deepspeed 3": ({}, (4, 4, 4)),
}
"""Options, and the numbers of ranks, of four on two nodes, that share weights, gradients and moments."""


@pytest.mark.parametrize("name", SHARES)
def test_ranks_share_what_their_engine_shards(name: str) -> None:
    options, shares = SHARES[name]
    method = made(World(), "mocov3")
    whole, learnt = (
        4 * sum(p.numel() for p in method.parameters() if p.requires_grad or every) for every in (True, False)
    )
    engine = name.removesuffix(" within nodes")
    found = need("mocov3", 4 * ROWS, engine=engine, ranks=4, per_node=2, **options)
    parts = [whole, learnt, 2 * learnt]
    assert [found.weights, found.gradients, found.moments] == [part // n for part, n in zip(parts, shares, strict=True)]
    assert found.buckets == (learnt if name == "ddp" else 0)
    assert found.buffers == sum(x.nbytes for x in method.buffers())


def test_shards_in_host_memory_take_none_of_the_device() -> None:
    found = need("mocov3", 2 * ROWS, engine="fsdp", ranks=2, cpu_offload=True)
    assert (found.weights, found.gradients, found.moments) == (0, 0, 0)
    assert found.total == found.buffers + found.views + found.activations


def test_bitwise_mode_computes_one_virtual_rank_at_a_time() -> None:
    with on_meta_device():
        engine = small_engine(
            World(device=META), "ddp", made(World(), "mocov3"), dtype=torch.float32, bitwise=True, virtual_ranks=4
        )
    found = MemoryEstimate(engine, 2, 1)(plan_of(engine.method, 2 * ROWS))
    assert found.activations < 0.6 * need("mocov3").activations
    assert (found.buckets, found.accumulates) == (0, False)


def test_a_loss_that_looks_at_values_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = need("simclr").activations
    monkeypatch.setattr(SimCLR, "loss", lambda self, embeddings, batch, hyper: float(embeddings["z1"].detach().sum()))
    assert 0.9 * whole < need("simclr").activations < whole


class Stubborn(nn.Module):
    """An encoder that looks at values."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.stem(x * float(x.abs().max())).mean((2, 3))
        return found


def test_an_encoder_that_looks_at_values_is_not_refused_for_what_is_not_known() -> None:
    found = need("simclr", own={"encoder": Stubborn()})
    assert found.activations == 0
    assert found.total == found.weights + found.moments + found.gradients + found.buffers + found.views


def with_forward(forward: Callable[[Tensor], Tensor]) -> nn.Module:
    """An encoder that looks at no values, with an own end of its forward pass: [B, 8, S, S] -> [B, 8]."""
    encoder = Stubborn()
    encoder.forward = lambda x: forward(encoder.stem(x))  # type: ignore[method-assign]
    return encoder


def for_a_gpu_alone(x: Tensor) -> Tensor:
    raise ValueError("Pointer argument (at 0) cannot be accessed from Triton (cpu tensor?)")


def for_a_pointer(x: Tensor) -> Tensor:
    return mean(x) + ctypes.c_float.from_address(x.data_ptr()).value


def attention(x: Tensor, **given: Any) -> Tensor:
    """Every pixel looks at all others, with two heads."""
    rows = x.flatten(2).mT.unflatten(2, (2, 4)).transpose(1, 2)
    return F.scaled_dot_product_attention(rows, rows, rows, **given).mean(2).flatten(1)


def mean(x: Tensor) -> Tensor:
    return x.mean((2, 3))


ENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "attention": attention,
    "attention with dropout": lambda x: attention(x, dropout_p=0.1),
    "attention with a learnt bias": lambda x: attention(x, attn_mask=torch.zeros(1, requires_grad=True)),
    "dropout": lambda x: mean(F.dropout(x, 0.1)),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_nothing_is_counted_that_a_gpu_does_not_keep(end: str, compute: torch.dtype) -> None:
    """A GPU keeps rows that attend, with their output, and a byte for each number that dropout may drop."""
    own = None if compute is torch.float32 else compute
    found, without = (
        need("simclr", own={"encoder": with_forward(forward)}, compute=own).activations for forward in (ENDS[end], mean)
    )
    least = 2 * ROWS * 8 * (SIDE - 2) ** 2 * (1 if end == "dropout" else 2 * compute.itemsize)
    assert least <= found - without <= 1.05 * least


@pytest.mark.parametrize("kernel", [for_a_gpu_alone, for_a_pointer])
def test_an_encoder_with_a_kernel_that_needs_real_tensors_is_left_out(kernel: Callable[[Tensor], Tensor]) -> None:
    assert need("simclr", own={"encoder": with_forward(kernel)}).activations == 0


def test_a_sparse_tensor_that_is_kept_is_left_out() -> None:
    own = with_forward(lambda x: torch.sparse.mm(torch.eye(8).to_sparse(), mean(x).mT).mT)
    assert need("simclr", own={"encoder": own}).activations > 0


def test_averaged_weights_lie_beside_the_weights_in_host_memory() -> None:
    without, averaged = (
        need("mocov3", 2 * ROWS, engine="fsdp", ranks=2, cpu_offload=True, ema=ema) for ema in (None, 0.9)
    )
    assert averaged.total == without.total


def test_counting_changes_neither_random_numbers_nor_what_is_cached() -> None:
    draws = with_forward(lambda x: mean(x) * torch.rand(len(x), 1))
    before = torch.get_rng_state()
    need("simclr", own={"vit": True})
    need("simclr", own={"encoder": draws})
    assert torch.equal(torch.get_rng_state(), before)
    assert type(positions(6, 6, 64, torch.float32, torch.device("cpu"))) is Tensor


def growing(found: MemoryEstimate) -> list[EpochPlan]:
    """Five epochs whose views grow from the third on."""
    base = plan_of(found.engine.method, 2 * ROWS)
    return [replace(base, epoch=epoch, image_size=side) for epoch, side in enumerate((16, 16, 24, 24, 32))]


def refusal(found: MemoryEstimate, room: int, plans: list[EpochPlan]) -> ConfigError:
    with pytest.raises(ConfigError) as raised:
        check_memory(found, room, plans)
    return raised.value


def test_the_first_epoch_that_does_not_fit_is_named_with_what_would_help(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    found = estimate("mocov3", ranks=2)
    plans = growing(found)
    third, fifth = (found(plans[epoch]).total for epoch in (2, 4))
    kept = gib(found(plans[2]).activations)
    error = refusal(found, third - 1, plans)
    assert error.problem == (
        f"Epoch 3 does not fit into memory: its 2 views of 24 px, batch 16 on 2 ranks, need at least {gib(third)} on "
        f"each rank ({kept} of it activations), and a rank has {gib(third - 1)}."
    )
    assert error.remedy == (
        "Use a smaller batch_size, smaller or fewer views, more machines (nodes), precision=bf16, "
        "engine.activation_checkpointing=true or engine=fsdp."
    )
    assert refusal(found, fifth - 1, plans).problem.startswith("Epoch 5 does not fit")
    check_memory(found, fifth, plans)
    assert caplog.messages == [f"Memory: epoch 5 needs at least {gib(fifth)} on each rank, which has {gib(fifth)}."]


def test_small_runs_are_not_counted_and_a_plan_among_them_that_is_not_small_counts() -> None:
    method = made(World(), "mocov3")
    small = plan_of(method)
    huge = replace(small, image_size=4096)
    assert is_small(method, [small, small], 1, 1 << 32)
    assert is_small(method, [], 1, 1 << 32), "nothing is left to train"
    assert not is_small(method, [small, huge], 1, 1 << 32)
    assert not is_small(method, [small, replace(small, batch_size=1 << 14)], 2, 1 << 32)


def test_only_plans_that_may_be_the_largest_are_counted() -> None:
    found = estimate("simclr", own={"vit": True})
    plans = growing(found)
    wide = replace(plans[0], epoch=5, batch_size=4 * ROWS)
    coarse = replace(plans[0], epoch=6, patch_size=8)
    assert [plan.epoch for plan in largest([*plans, wide, coarse, replace(wide, epoch=7)])] == [4, 5, 6]
    check_memory(found, 1 << 40, plans)
    assert [plan.image_size for plan in found._known] == [32]
    check_memory(found, 0, [])


REMEDIES: dict[str, tuple[Callable[[], MemoryEstimate], str, str]] = {
    "parts of a batch": (lambda: estimate("mocov3", own={"norm_group": 4}), "engine.accumulate=2", "fsdp"),
    "shards, where weights are most": (lambda: estimate("mocov3", ranks=2), "engine=fsdp", "accumulate"),
    "no option twice": (
        lambda: estimate("mocov3", ranks=2, activation_checkpointing=True, compute=torch.bfloat16),
        "more machines",
        "checkpointing|bf16",
    ),
}


@pytest.mark.parametrize("case", REMEDIES)
def test_only_what_can_help_is_offered(case: str) -> None:
    make, offered, not_offered = REMEDIES[case]
    found = make()
    few = plan_of(found.engine.method, found.ranks * (1 if "weights" in case else 16))
    remedy = refusal(found, 1000, [few]).remedy
    assert offered in remedy
    assert not re.search(not_offered, remedy)
