"""Which rank holds which elements is said by a rule and what differs from it, and is found again, whatever it is."""

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dist_ssl.checkpoint.index import own_pieces, save_plan, save_report, table_text
from dist_ssl.checkpoint.placement import Held, RuledTensor, by_rule, outline
from dist_ssl.checkpoint.table_rules import whole_table
from dist_ssl.core.partition import partition
from dist_ssl.engines.fsdp import place
from dist_ssl.protocols.engine import Piece, State
from dist_ssl.runtime import jsonl

SHAPES = st.lists(st.integers(0, 7), max_size=3).map(tuple)


def brute(row: RuledTensor) -> bool:
    """Whether every element lies on one rank, counted one by one."""
    count = math.prod(row.shape)
    times: dict[int, int] = dict.fromkeys(range(count), 0)
    listed = {rank for rank, _, _ in row.others}
    runs = [by_rule(row.shape, row.each, rank, row.ranks) for rank in range(row.ranks) if rank not in listed]
    for run in [*runs, *(range(start, start + length) for _, start, length in row.others)]:
        for at in run:
            times[at] = times.get(at, 0) + 1
    return all(number == 1 for number in times.values()) and len(times) == count


@settings(deadline=None)
@given(
    shape=SHAPES,
    ranks=st.integers(1, 6),
    each=st.one_of(st.integers(0, 60), st.just("even")),
    others=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40), st.integers(0, 40)), max_size=4),
)
def test_what_is_no_whole_tensor_is_noticed(shape: tuple[int, ...], ranks: int, each: Any, others: Any) -> None:
    assume(each != "even" or shape)
    own = {rank: (rank, start, count) for rank, start, count in others if rank < ranks}
    row = RuledTensor(shape, "float32", ranks=ranks, each=each, others=tuple(own.values()))
    assert (row.gap() == "") == brute(row)


def states_of(kind: str, shape: tuple[int, ...], cuts: list[int], ranks: int) -> list[State]:
    """What ranks hold of a tensor that is sharded so, beside one that all hold whole."""
    count, found = math.prod(shape), []
    ends = [0, *sorted(min(cut, count) for cut in cuts[: ranks - 1]), *[count] * ranks][: ranks + 1]
    ends[-1] = count
    for rank in range(ranks):
        piece = {
            "rows": lambda r: by_rule(shape, -(-shape[0] // ranks) * math.prod(shape[1:]), r, ranks),
            "even rows": lambda r: by_rule(shape, "even", r, ranks),
            "elements": lambda r: by_rule(shape, -(-count // ranks), r, ranks),
            "cuts": lambda r: range(ends[r], ends[r + 1]),
            "cuts backwards": lambda r: range(ends[ranks - r - 1], ends[ranks - r]),
        }[kind](rank)
        found.append({"a": Piece(torch.empty(len(piece)), shape, piece.start), "b": torch.ones(2, 2)})
    return found


def table_of(states: list[State]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What `state.json` says, and what the ranks have reported for it."""
    ranks, outlined = len(states), outline(states[0])
    plan = save_plan(outlined, own_pieces(states[0], 0, ranks), ranks)
    reports = [
        save_report(outline(state), own_pieces(state, rank, ranks), plan, rank, ranks)
        for rank, state in enumerate(states)
    ]
    return jsonl.parsed(table_text({}, outlined, plan, reports)), reports


@settings(deadline=None)
@given(
    kind=st.sampled_from(["rows", "even rows", "elements", "cuts", "cuts backwards"]),
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple),
    cuts=st.lists(st.integers(0, 200), max_size=9),
    ranks=st.integers(1, 8),
    span=st.tuples(st.integers(0, 200), st.integers(0, 200)),
)
def test_every_element_is_found_where_it_was_written(
    kind: str, shape: tuple[int, ...], cuts: list[int], ranks: int, span: tuple[int, int]
) -> None:
    states = states_of(kind, shape, cuts, ranks)
    row = whole_table(table_of(states)[0]).tensors["a"]
    held = {
        (f"rank_{rank:05d}.safetensors", state["a"].start, state["a"].tensor.numel())
        for rank, state in enumerate(states)
    }  # type: ignore[union-attr]
    assert {(h.file, h.start, h.count) for h in row.within(None)} == {one for one in held if one[2]}
    asked = range(min(span), min(max(span), math.prod(shape)))
    near = {one for one in held if max(asked.start, one[1]) < min(asked.stop, one[1] + one[2])}
    assert {(h.file, h.start, h.count) for h in row.within(asked)} == near


@pytest.mark.parametrize("kind", ["rows", "even rows", "elements"])
@pytest.mark.parametrize("shape", [(7, 3), (96, 2), (64,), (5, 4, 3), (1, 50)])
def test_what_engines_shard_is_a_rule_and_nothing_else(kind: str, shape: tuple[int, ...]) -> None:
    table, reports = table_of(states_of(kind, shape, [], 6))
    few = kind == "even rows" and shape[0] < 6
    assert few or all(number == 1 for report in reports for number, *_ in report["others"])  # the whole one
    assert few or table["tensors"]["a"]["others"] == []


def test_the_rules_are_those_of_fsdp_and_of_a_bank() -> None:
    for rank in range(6):
        rows = by_rule((7, 3), -(-7 // 6) * 3, rank, 6)
        assert rows == place((7, 3), torch.empty(len(rows) // 3, 3), rank, 6).span
        own = partition(7, rank, 6)
        assert by_rule((7, 3), "even", rank, 6) == range(own.start * 3, own.stop * 3)


def test_ranks_that_hold_other_tensors_are_never_published() -> None:
    with pytest.raises(AssertionError, match="rank 1 has other tensors than rank 0"):
        table_of([{"a": torch.ones(2)}, {"a": torch.ones(3)}])


def test_a_rule_for_more_ranks_than_there_are_files_takes_no_memory() -> None:
    row = RuledTensor((1 << 40,), "float32", ranks=1 << 20, each=1 << 20)
    assert row.gap() == ""
    assert next(iter(row.within(None))) == Held("rank_00000.safetensors", 0, 1 << 20)
    assert [held.file for held in row.within(range(5 << 20, 6 << 20))] == ["rank_00005.safetensors"]
