"""Parameters in shards: the same training as with whole ones, less memory, refusals that help."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dist_ssl.checkpoint.saver import Checkpoint
from dist_ssl.core.progress import Progress
from dist_ssl.core.tokens import ALL_TOKENS, Tokens
from dist_ssl.distributed.world import World
from dist_ssl.engines.fsdp import FSDP, blocks, shared_out
from dist_ssl.errors import ConfigError, TrainingError
from dist_ssl.models.encoders import TinyResNet, timm_encoder
from dist_ssl.optim.recipes import LARS, SGD, AdamW, OptimizerRecipe
from dist_ssl.protocols.engine import Piece
from tests.engines.jobs import CONFIGS, batch, filled, hyper, small_engine, small_method, trained, whole_state
from tests.ranks import Ranks

METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))
OPTIMIZERS: dict[str, OptimizerRecipe] = {
    "sgd": SGD(1e-2, 5e-4),
    "lars": LARS(0.1, 1e-4, trust=0.02),
    "lars, parts": LARS(0.1, 1e-4, trust=0.02, ratio="parts", clip=True),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "clipped": {"clip": 0.01},
    "in parts": {"accumulate": 2},
    "kept gathered": {"reshard": False},
    "one unit": {"block_parameters": 10**9},
    "many units": {"block_parameters": 1},
}


@pytest.mark.parametrize(
    ("encoder", "kind", "number"),
    [
        (lambda: TinyResNet(64), "ResidualBlock", 3),
        (lambda: timm_encoder("vit_tiny_patch16_224"), "Block", 12),
        (lambda: timm_encoder("resnet50"), "Bottleneck", 13),
        (lambda: timm_encoder("convnext_atto"), "ConvNeXtBlock", 8),
    ],
    ids=["tiny", "vit", "resnet", "convnext"],
)
def test_units_are_the_blocks_of_a_network(encoder: Any, kind: str, number: int) -> None:
    with torch.device("meta"):
        units = blocks(encoder(), 100_000)
    assert sum(type(unit).__name__ == kind for unit in units) == number
    assert not any(isinstance(unit, nn.Sequential | nn.ModuleList) for unit in units)


def test_every_parameter_counts_for_one_unit() -> None:
    inner = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 5))
    outer = nn.ModuleList([nn.ModuleDict({"deep": inner, "own": nn.Linear(10, 3)}), nn.Linear(2, 2)])
    assert blocks(outer, 100) == [inner[0]]
    assert blocks(outer, 50) == [inner[0], inner[1], outer[0]] or blocks(outer, 50) == [inner[0], inner[1]]
    assert blocks(outer, 34) == [inner[0], inner[1]]
    assert blocks(outer, 33) == [inner[0], inner[1], outer[0]]


def both(world: World, name: str, **own: Any) -> tuple[Any, Any]:
    """Losses and states of a few steps with whole and with sharded parameters."""
    optimizer = own.pop("optimizer", OPTIMIZERS["sgd"])  # Adam would make steps of rounding errors
    tokens = own.pop("tokens", ALL_TOKENS)
    of_method = ("rotation", "norm_group", "shuffle", "mix", "local_views", "vit")
    method = {key: own.pop(key) for key in of_method if key in own}
    found = []
    for engine in ("ddp", "fsdp"):
        keys = own if engine == "fsdp" else {key: own[key] for key in ("clip", "accumulate") if key in own}
        made = filled(small_engine(world, engine, small_method(world, name, **method), optimizer, **keys))
        found.append((trained(made, range(2), tokens), whole_state(made)))
    return found[0], found[1]


def furthest(world: World) -> dict[str, float]:
    """By how much sharded training differs from training with whole parameters, for everything here."""
    cases: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in METHODS}
    cases["rotation"] = ("mocov3", {"rotation": True})
    cases["local views"] = ("dino", {"local_views": 2})
    cases["tokens"] = ("mocov3", {"vit": True, "tokens": Tokens(0.5, 6)})
    cases |= {name: ("mocov3", {"optimizer": optimizer}) for name, optimizer in OPTIMIZERS.items() if name != "sgd"}
    cases |= {name: ("mocov3", {"norm_group": 2, **own}) for name, own in VARIANTS.items()}
    found = {}
    for case, (name, own) in cases.items():
        (losses, state), (own_losses, own_state) = both(world, name, **own)
        assert state.keys() == own_state.keys()
        gaps = [abs(a - b) for a, b in zip(losses, own_losses, strict=True)]
        gaps += [float((state[key].double() - own_state[key].double()).abs().max()) for key in state]
        found[case] = max(gaps)
    return found


def test_every_method_optimizer_and_option_trains_as_with_whole_parameters(ranks: Ranks) -> None:
    for answer in ranks.run(furthest, 2):
        assert len(answer) == 2 + len(METHODS) + len(OPTIMIZERS) + len(VARIANTS)
        assert {case: gap for case, gap in answer.items() if not gap < 1e-9} == {}


def on_two_nodes(world: World) -> tuple[float, list[tuple[int, int]]]:
    """The largest gap where two nodes hold copies, and every rank's numbers of elements: held, and written."""
    placed = replace(world, local_size=2, local_rank=world.rank % 2)
    (losses, state), (own_losses, own_state) = both(placed, "mocov3", replicate="nodes")
    gaps = [abs(a - b) for a, b in zip(losses, own_losses, strict=True)]
    gaps += [float((state[key] - own_state[key]).abs().max()) for key in state]
    engine = small_engine(placed, "fsdp", small_method(placed, "mocov3"), replicate="nodes")
    pieces = [value for value in engine.state().values() if isinstance(value, Piece)]
    counts = sum(p.numel() for p in engine.own.values()), sum(piece.tensor.numel() for piece in pieces)
    with pytest.raises(ConfigError, match=r"replicate=nodes is not possible: 4 ranks are spread unevenly"):
        small_engine(
            replace(world, local_size=3, local_rank=world.rank % 3),
            "fsdp",
            small_method(world, "mocov3"),
            replicate="nodes",
        )
    return max(gaps), [tuple(own) for own in world.collect(counts)]


def test_nodes_may_hold_copies_and_each_writes_its_share(ranks: Ranks) -> None:
    sizes = [p.numel() for p in small_method(World(), "mocov3").parameters()]
    whole = sum(sizes)
    for gap, counts in ranks.run(on_two_nodes, 4):
        assert gap < 1e-9
        assert sum(held for held, _ in counts) == 2 * whole
        assert sum(written for _, written in counts) == whole
        first, second = (sum(written for _, written in counts[node : node + 2]) for node in (0, 2))
        assert abs(first - second) <= max(sizes)


@given(st.lists(st.integers(0, 1000), max_size=30), st.integers(1, 5))
def test_copies_save_about_as_much_as_each_other_whatever_the_order_of_names(sizes: list[int], copies: int) -> None:
    counts = {f"t{number}": size for number, size in enumerate(sizes)}
    found = shared_out(counts, copies)
    assert found == shared_out(dict(reversed(counts.items())), copies)
    loads = [sum(counts[name] for name in counts if found[name] == copy) for copy in range(copies)]
    assert max(loads) - min(loads) <= max(sizes, default=0)


def saved_by_copies(world: World, folder: Path) -> dict[str, Any]:
    """What four ranks save of which two each have a copy; what a rank of another layout holds after loading it."""
    placed = replace(world, local_size=2, local_rank=world.rank % 2)
    made = filled(small_engine(placed, "fsdp", small_method(placed, "mocov3"), replicate="nodes"))
    trained(made, range(2))
    wanted = whole_state(made)
    own = Checkpoint(folder, world, keep_last=1, attempt=1, newest=lambda: True)
    own.save(made, Progress(epochs=1, step=2))
    own.wait()
    again = small_engine(world, "fsdp", small_method(world, "mocov3"))
    Checkpoint(folder, world, keep_last=1, attempt=2, newest=lambda: True).restore(again, Progress(epochs=1, attempt=2))
    found = whole_state(again)
    assert found.keys() == wanted.keys()
    return {name: bool(torch.equal(found[name], wanted[name])) for name in wanted}


def test_what_copies_share_out_is_read_by_ranks_that_share_everything(ranks: Ranks, tmp_path: Path) -> None:
    for same in ranks.run(saved_by_copies, 4, tmp_path):
        assert all(same.values()), same
    sizes = [file.stat().st_size for file in sorted((tmp_path / "step_00000002").glob("rank_*"))]
    assert max(sizes) < 2 * min(sizes)


def various(world: World) -> dict[str, Any]:
    """What is true of a sharded engine, asked in one go."""
    engine = small_engine(world, "fsdp", small_method(world, "mocov3"), clip=None)
    state = engine.state()
    view = torch.randn(4, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = small_method(world, "mocov3").double().eval()
    gaps = []
    for lr in (0.0, 0.05):
        trained(engine, range(1)) if lr else None
        plain.load_state_dict({n.removeprefix("model/"): v for n, v in whole_state(engine).items() if "model/" in n})
        with torch.no_grad():
            gaps += [(engine.embed(view, "student") - plain.encoder(view)).abs().max()]
            gaps += [(engine.embed(view, "teacher") - plain.teacher.encoder(view)).abs().max()]  # type: ignore[union-attr,operator]
    before = whole_state(engine)
    broken = batch(world, 2, 1)
    if world.rank == 1:
        broken.views[0][0, 0, 0, 0] = torch.nan
    with pytest.raises(TrainingError, match="must be finite"):
        engine.step(broken, hyper(engine.method))
    after = whole_state(engine)
    weights = [name for name in before if "running" not in name]
    return {
        "embeds": float(max(gaps)),
        "unmoved": all(torch.equal(after[name], before[name]) for name in weights),
        "held": sum(p.numel() for p in engine.own.values()),
        "empty": sum(p.numel() == 0 for p in engine.own.values()),
        "wants": engine.wants("model/predictor.3.weight", (6, 10)),
        "wants of a moment": engine.wants("optim/predictor.3.weight/exp_avg", (6, 10)),
        "wants all": [engine.wants(n, ()) for n in ("optim/predictor.3.weight/step", "model/x", "optim/x/exp_avg")],
        "wants nothing": engine.wants("model/predictor.3.weight", (7, 10)),
        "in pieces": sum(isinstance(value, Piece) for value in state.values()),
    }


def test_a_rank_holds_its_rows_and_all_come_to_the_same_verdict(ranks: Ranks) -> None:
    whole = dict(small_method(World(), "mocov3").named_parameters())
    found = ranks.run(various, 4)
    assert sum(answer["held"] for answer in found) == sum(p.numel() for p in whole.values())
    assert [answer["wants"] for answer in found] == [range(20), range(20, 40), range(40, 60), range(60, 60)]
    assert found[3]["empty"] > 0
    for answer in found:
        assert answer["embeds"] < 1e-6
        assert answer["unmoved"]
        assert answer["wants of a moment"] == answer["wants"]
        assert answer["wants all"] == [None, None, None]
        assert answer["wants nothing"] == range(0)
        assert answer["in pieces"] == len(whole)


def in_half_precision(world: World) -> dict[str, tuple[list[float], list[str], bool]]:
    """Losses in bf16, the precisions in the state, and whether the gathered products were computed in bf16."""
    found = {}
    for name in ("mocov3", "single_branch", "swav"):
        for engine, compute in (("ddp", None), ("ddp", torch.bfloat16), ("fsdp", torch.bfloat16)):
            method = small_method(world, name)
            made = filled_in_fp32(small_engine(world, engine, method, dtype=torch.float32, compute=compute))
            seen: set[torch.dtype] = set()
            linear = next(m for m in made.method.student.modules() if isinstance(m, nn.Linear))
            linear.register_forward_hook(lambda _m, _i, out, seen=seen: seen.add(out.dtype))
            losses = trained(made, range(3))
            dtypes = {str(v.dtype) for v in whole_state(made).values() if v.is_floating_point()}
            found[f"{name} {engine} {compute}"] = losses, sorted(dtypes), seen == {compute or torch.float32}
    return found


def filled_in_fp32(engine: Any) -> Any:
    for step in range(5 if engine.needs_initial_pass else 0):
        engine.initialise_memory(batch(engine.world, engine.method.num_views, step, torch.float32))
    return engine


@pytest.mark.parametrize("size", [1, 2])
def test_in_bf16_products_are_halved_and_all_that_is_kept_is_not(ranks: Ranks, size: int) -> None:
    for answer in ranks.run(in_half_precision, size):
        for case, (losses, dtypes, as_asked) in answer.items():
            assert as_asked, case
            assert dtypes == ["torch.float32"], case
            wanted = answer[f"{case.split()[0]} ddp None"][0]
            assert losses == pytest.approx(wanted, rel=0.1), case
            assert (losses == wanted) == case.endswith("None"), case


class Single(nn.Module):
    """A network with a parameter that has no rows."""

    num_features = 3

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))


def test_what_cannot_be_is_refused() -> None:
    method = small_method(World(), "simclr")
    with pytest.raises(ConfigError, match=r"cpu_offload=true is not possible: these ranks compute on the CPU"):
        small_engine(World(), "fsdp", method, cpu_offload=True)
    with pytest.raises(ConfigError, match=r"block_parameters=0 is not possible"):
        small_engine(World(), "fsdp", method, block_parameters=0)
    with pytest.raises(ConfigError, match=r"engine\.replicate='node'"):
        small_engine(World(), "fsdp", method, replicate="node")
    single = copy.deepcopy(method)
    single.add_module("single", Single())
    with pytest.raises(ConfigError, match=r"cannot shard 'single\.scale'"):
        FSDP(single, AdamW(1e-3, 0.0), world=World())


def test_alone_in_its_world_nothing_is_wrapped() -> None:
    engine = small_engine(World(), "fsdp", small_method(World(), "mocov3"))
    assert all(isinstance(value, Tensor) for value in engine.state().values())
    assert engine.wants("model/predictor.3.weight", (6, 10)) is None
