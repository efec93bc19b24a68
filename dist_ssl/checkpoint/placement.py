"""Which rank's file holds which elements of a tensor: a rule for all ranks, and the ranks that differ from it.

By the rule, which is what rank 0 holds of the tensor, rank r holds the elements from r * each up to (r + 1) * each as
far as the tensor has any, or as many rows as every other rank (EVEN). That is how engines shard, so the table of a
checkpoint does not grow with the number of ranks. A rank that holds another run of elements, or none, is listed. Ranks
compare their own runs with the rule, so only the differences are sent.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dist_ssl.checkpoint.rank_header import dtype_name
from dist_ssl.core.partition import partition
from dist_ssl.protocols.engine import Piece, State

EVEN = "even"
"""Rule by which the rows of a tensor are distributed evenly over the ranks, as those of a memory bank."""
Rule = int | str
"""Number of elements that each rank holds, as many as there are; 0: none holds any by the rule. Or EVEN."""
Outline = dict[str, dict[str, Any]]
"""Names of tensors, ascending, to {shape, dtype}, as plain values."""


def rank_file_name(rank: int) -> str:
    """Return the name of a rank's file in the folder of a checkpoint, which matches RANK_FILE."""
    return f"rank_{rank:05d}.safetensors"


def outline(state: State) -> Outline:
    """Return shape and element type of every tensor of a state."""
    return {name: _described(state[name]) for name in sorted(state)}


def _described(value: Any) -> dict[str, Any]:
    tensor = value.tensor if isinstance(value, Piece) else value
    return {"shape": list(value.shape), "dtype": dtype_name(tensor)}


def rule_of(shape: Sequence[int], first: range, ranks: int) -> Rule:
    """Return the rule by which rank 0 holds these elements of a tensor."""
    if not first or first.start:
        return 0
    rows, inner = (shape[0], math.prod(shape[1:])) if shape else (1, 1)
    even = rows % ranks and len(first) == inner * len(partition(rows, 0, ranks))
    return EVEN if even else len(first)


def by_rule(shape: Sequence[int], rule: Rule, rank: int, ranks: int) -> range:
    """Return the elements of a tensor that a rank holds by a rule."""
    if isinstance(rule, str):
        rows, inner = partition(shape[0], rank, ranks), math.prod(shape[1:])
        return range(rows.start * inner, rows.stop * inner)
    count = math.prod(shape)
    return range(min(rank * rule, count), min((rank + 1) * rule, count))


def rules(outlined: Outline, first: Mapping[str, Piece], ranks: int) -> list[Rule]:
    """Return the rule of each tensor, in the order of the outline. `first`: the pieces that rank 0 writes."""
    return [
        rule_of(row["shape"], first[name].span if name in first else range(0), ranks) for name, row in outlined.items()
    ]


def differences(
    outlined: Outline, given: Sequence[Rule], own: Mapping[str, Piece], rank: int, ranks: int
) -> list[list[int]]:
    """Return [number of the tensor, start, count] for those of which a rank writes another run than by the rule."""
    found = []
    for number, (name, row) in enumerate(outlined.items()):
        held = own[name].span if name in own else range(0)
        if held != by_rule(row["shape"], given[number], rank, ranks):
            found.append([number, held.start, len(held)])
    return found


@dataclass(frozen=True)
class Held:
    """A run of a tensor's elements in a rank's file; `xxh3`: its hash where the table and not the file has it."""

    file: str
    start: int
    count: int
    xxh3: str | None = None


@dataclass(frozen=True)
class ListedTensor:
    """A tensor of a checkpoint, whose runs are listed, as in the formats 1 and 2."""

    shape: tuple[int, ...]
    dtype: str
    listed: tuple[Held, ...] = ()

    def within(self, span: range | None) -> Iterator[Held]:
        """Yield the runs that hold some of the elements in `span`; None: all of them that hold any."""
        for held in self.near(span):
            first, end = held.start, held.start + held.count
            if first < end and (span is None or max(span.start, first) < min(span.stop, end)):
                yield held

    def near(self, span: range | None) -> Iterable[Held]:
        """Return runs among which are those of `within`."""
        return self.listed


@dataclass(frozen=True)
class RuledTensor(ListedTensor):
    """A tensor that lies in the files of `ranks` ranks by a rule; `others`: (rank, start, count) of those that differ.

    Each rank of `others` is listed once.
    """

    ranks: int = 1
    each: Rule = 0
    others: tuple[tuple[int, int, int], ...] = ()

    def near(self, span: range | None) -> Iterator[Held]:
        """Yield the runs of the ranks that have some of `span` by the rule, and of those that differ from it.

        One after the other: a stranger's rule may be for more ranks than there are files.
        """
        span = range(math.prod(self.shape)) if span is None else span
        listed = {rank for rank, _, _ in self.others}
        for rank in self._ranks(span):
            run = by_rule(self.shape, self.each, rank, self.ranks)
            if rank not in listed:
                yield Held(rank_file_name(rank), run.start, len(run))
        for rank, start, count in self.others:
            yield Held(rank_file_name(rank), start, count)

    def _ranks(self, span: range) -> range:
        """Return the ranks that hold some of these elements by the rule."""
        if not span or self.each == 0:
            return range(0)
        if isinstance(self.each, str):
            inner, rows = math.prod(self.shape[1:]), self.shape[0]
            first, last = (((at // inner + 1) * self.ranks - 1) // rows for at in (span.start, span.stop - 1))
        else:
            first, last = span.start // self.each, (span.stop - 1) // self.each
        return range(first, min(last + 1, self.ranks))

    def gap(self) -> str:
        """Return why the runs do not make up the whole tensor; empty if they do.

        Compared is how many runs begin and end where, so that no rank that follows the rule is looked at.
        """
        edges: Counter[int] = Counter()

        def count(run: range, times: int) -> None:
            edges[run.start] += times
            edges[run.stop] -= times

        count(range(by_rule(self.shape, self.each, self.ranks - 1, self.ranks).stop), 1)
        count(range(math.prod(self.shape)), -1)
        for rank, start, length in self.others:
            count(range(start, start + length), 1)
            count(by_rule(self.shape, self.each, rank, self.ranks), -1)
        return "overlap or leave a gap" if any(edges.values()) else ""
