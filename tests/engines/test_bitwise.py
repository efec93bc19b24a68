"""Bitwise mode: equal bits on 1, 2 and 4 ranks, over many steps and across kills; refusals that help."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dist_ssl.build import check
from dist_ssl.distributed.world import World
from dist_ssl.engines import tree
from dist_ssl.engines.parallel import Parallel
from dist_ssl.engines.tree import Node, add_up, block, tops, tree_sum
from dist_ssl.engines.virtual import check_number
from dist_ssl.errors import ConfigError
from dist_ssl.optim.recipes import LARS, SGD, Muon, OptimizerRecipe
from tests.engines.jobs import CONFIGS, filled, small_engine, small_method, trained
from tests.jobs import attempt, same_bits, small_config
from tests.ranks import Ranks

METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))
BITWISE = {"bitwise": True, "virtual_ranks": 4}
CASES: dict[str, tuple[str, dict[str, Any], OptimizerRecipe | None, dict[str, Any]]] = {
    **{name: (name, {"mix": False}, None, {}) for name in METHODS},
    "mocov3 + rotation": ("mocov3", {"rotation": True}, None, {}),
    "groups within a virtual rank": ("simclr", {"norm_group": 2}, None, {"virtual_ranks": 4}),
    "lars, clipped": ("byol", {}, LARS(0.1, 1e-4, trust=0.02), {"clip": 0.5}),
    "muon": ("simclr", {}, Muon(1e-3, 0.05), {}),
    "sgd, checkpointed": ("vicreg", {}, SGD(1e-2, 5e-4), {"activation_checkpointing": True}),
}


def made(case: str, world: World, seed: int = 0) -> Parallel:
    name, own, optimizer, options = CASES[case]
    method = small_method(World(), name, seed, **own)
    return filled(small_engine(world, "ddp", method, optimizer, torch.float32, **{**BITWISE, **options}))


def trainings(world: World, cases: list[str], steps: int) -> dict[str, tuple[list[float], dict[str, Tensor]]]:
    """Losses and state of every case, of this rank."""
    found = {}
    for case in cases:
        engine = made(case, world)
        losses = trained(engine, range(steps))
        found[case] = losses, {name: value.clone() for name, value in engine.state().items()}
    return found


def assert_equal_bits(ranks: Ranks, cases: dict[int, list[str]], steps: int) -> None:
    """Of everything that a run knows, after so many steps on one rank and on each of these numbers of ranks."""
    wanted = trainings(World(), list(CASES), steps)
    for size, chosen in cases.items():
        for rank, found in enumerate(ranks.run(trainings, size, chosen, steps)):
            for case, (losses, other) in found.items():
                state = wanted[case][1]
                assert losses == wanted[case][0], (case, size, rank)
                assert other.keys() == state.keys()
                assert not [name for name in state if not torch.equal(state[name], other[name])], (case, size, rank)


def test_weights_moments_statistics_and_memory_have_equal_bits_on_1_2_and_4_ranks(ranks: Ranks) -> None:
    assert_equal_bits(ranks, {2: list(CASES), 4: ["mocov3", "mocov2", "single_branch"]}, 2)


HARD = ("schedule.candidates=3", "schedule.candidates_from=0.5")


@pytest.mark.parametrize(
    ("views", "attempts"),
    [
        ((), [(1, 2), (4, 2), (2, 3), (4, 99)]),
        ((*HARD, "difficulty=parameters"), [(2, 7), (4, 99)]),
        ((*HARD, "difficulty=model", "difficulty.every=2", "method=simclr"), [(2, 7), (4, 99)]),
    ],
    ids=["drawn once", "chosen by parameters", "chosen by the model"],
)
def test_broken_off_and_resumed_on_other_ranks_it_ends_in_equal_bits(
    views: tuple[str, ...], attempts: list[tuple[int, int]], ranks: Ranks, demo_shards: Path, tmp_path: Path
) -> None:
    own = ("engine.bitwise=true", "engine.virtual_ranks=4", "epochs=2", "save_every=1 steps", "probe.every=9 epochs")
    config = small_config(demo_shards, *own, *views)
    alone = attempt(World(), config, tmp_path / "alone", 1, 99)
    for number, (size, batches) in enumerate(attempts, 1):
        answers = ranks.run(attempt, size, config, tmp_path / "moved", number, batches)
        assert all((answer is None) == (batches < 99) for answer in answers)
    assert alone
    for answer in answers:
        assert same_bits(answer, alone)


def test_one_thread_computes_whatever_was_asked_for() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        made("simclr", World())
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@given(st.integers(1, 40), st.data())
def test_a_tree_sums_alike_for_every_number_of_ranks(leaves: int, data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([n for n in range(1, leaves + 1) if leaves % n == 0]))
    terms = torch.randn(leaves, 3, generator=torch.Generator().manual_seed(leaves))
    nodes = [tops((0, leaves), block(leaves, rank, size)) for rank in range(size)]

    def known(node: Node) -> Tensor | None:
        return terms[node[0]].clone() if node[1] - node[0] == 1 else None

    own = {node: add_up(node, known) for row in nodes for node in row}
    assert sorted(n for first, end in own for n in range(first, end)) == list(range(leaves))
    assert max(map(len, nodes)) <= 2 * leaves.bit_length()
    whole = tree_sum(World(), leaves, lambda n: terms[n].clone())
    assert torch.equal(add_up((0, leaves), own.get), whole)
    torch.testing.assert_close(whole, terms.sum(0))


def test_a_tree_sums_in_slices_what_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    terms = torch.randn(6, 11)
    whole = tree_sum(World(), 6, lambda n: terms[n].clone())
    monkeypatch.setattr(tree, "NUMBERS", 4)
    assert torch.equal(tree_sum(World(), 6, lambda n: terms[n].clone()), whole)


@pytest.mark.parametrize(
    ("bitwise", "number", "batch_size", "ranks", "message"),
    [
        (True, None, 12, 2, r"needs engine.virtual_ranks.*\n.*2, 4, 6"),
        (False, 4, 12, 2, r"has no effect without engine.bitwise=true"),
        (True, 5, 12, 2, r"does not divide batch_size=12.*\n.*2, 4, 6"),
        (True, 12, 12, 2, r"parts of 2 or more.*\n.*2, 4, 6"),
        (True, 0, 12, 1, r"engine.virtual_ranks=0 does not divide"),
        (True, 4, 24, 3, r"3 ranks cannot share engine.virtual_ranks=4.*\n.*of ranks: 1, 2, 4.*: 3, 6, 12"),
        (True, 2, 8, 8, r"8 ranks cannot share.*\n.*none fit"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_with_those_that_do(
    bitwise: bool, number: int | None, batch_size: int, ranks: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_number(bitwise, number, batch_size, ranks)


@pytest.mark.parametrize(("number", "ranks"), [(4, 1), (4, 2), (4, 4), (6, 3), (1, 1), (12, 4)])
def test_numbers_that_fit(number: int, ranks: int) -> None:
    check_number(True, number, 24, ranks)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"accumulate": 2}, "engine.accumulate=2"),
        ({"deterministic": False}, "engine.deterministic=false"),
        ({"compile": True}, "engine.compile=true"),
        ({"compute": torch.bfloat16}, "precision=bf16"),
    ],
)
def test_options_that_it_excludes_are_refused_with_the_reason(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"engine.bitwise=true cannot be combined with {named}: "):
        small_engine(World(), "ddp", small_method(World(), "simclr"), None, torch.float32, **BITWISE, **options)


@pytest.mark.parametrize(
    ("name", "own", "named"),
    [("mocov2", {"shuffle": True, "norm_group": 2}, "method.shuffle"), ("single_branch", {"mix": True}, "method.mix")],
)
def test_what_exchanges_images_before_the_loss_is_refused(name: str, own: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot be combined with {named}"):
        small_engine(World(), "ddp", small_method(World(), name, **own), None, torch.float32, **BITWISE)


def test_a_config_that_does_not_fit_is_refused_before_the_start(demo_shards: Path) -> None:
    config = small_config(demo_shards, "engine.bitwise=true", "engine.virtual_ranks=4")
    check(config, 2)
    with pytest.raises(ConfigError, match="3 ranks cannot share"):
        check(config, 3)
    groups = small_config(demo_shards, "engine.bitwise=true", "engine.virtual_ranks=4", "method.norm_group=6")
    with pytest.raises(ConfigError, match=r"norm_group=6 does not fit the 3 samples"):
        check(groups, 2)
