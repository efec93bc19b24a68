"""What a save and a restore cost rank 0 and any other rank, in bytes, at 8 to 1,024 ranks; exits with 1 beyond a bar.

    python tests/benchmarks/scale.py [tensors=2000] [ranks=8,64,1024] [samples=1000000]

Nothing is timed and no rank is started: the plan of a save, the reports of all ranks, `state.json` and the headers of
the ranks' files are made by the code that saves, for tensors without elements of the sizes that the ranks would hold,
and what a restore looks up is found by the code that restores. Counted are the bytes that a rank gives and takes in
exchanges, however the group passes them on, and the bytes of the tables that it writes or reads. The memory that a
manifest takes is measured by processes, see scale_manifest.py.
"""

import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from dist_ssl.checkpoint.index import own_pieces, save_plan, save_report, table_text
from dist_ssl.checkpoint.placement import by_rule, outline
from dist_ssl.checkpoint.rank_header import Marked, header_of
from dist_ssl.checkpoint.table_rules import whole_table
from dist_ssl.core.partition import partition
from dist_ssl.core.plan import EpochPlan
from dist_ssl.core.progress import Progress
from dist_ssl.engines.fsdp import shared_out
from dist_ssl.protocols.engine import Piece, State
from tests.benchmarks import scale_manifest

RANKS, TENSORS, SAMPLES = (8, 64, 1024), 2000, 1_000_000
MOST_PER_PIECE = 200
"""Bytes of the tables of a save for each piece, at most."""
MOST_AROUND = 1000
"""Bytes of what a table says but of its pieces."""
AGREEMENTS, NUMBER = 3, 8
"""How often the ranks of a save or a restore agree on a number, at the least, and its bytes."""
PER_NODE = 8
WIDTH = 1280
"""Of the transformer whose tensors are saved: that of a ViT-H."""
BLOCK = {
    "norm1.weight": (WIDTH,),
    "norm1.bias": (WIDTH,),
    "attn.qkv.weight": (3 * WIDTH, WIDTH),
    "attn.qkv.bias": (3 * WIDTH,),
    "attn.proj.weight": (WIDTH, WIDTH),
    "attn.proj.bias": (WIDTH,),
    "norm2.weight": (WIDTH,),
    "norm2.bias": (WIDTH,),
    "mlp.fc1.weight": (4 * WIDTH, WIDTH),
    "mlp.fc1.bias": (4 * WIDTH,),
    "mlp.fc2.weight": (WIDTH, 4 * WIDTH),
    "mlp.fc2.bias": (WIDTH,),
}
KINDS = ("model/student.{}", "optim/student.{}/exp_avg", "optim/student.{}/exp_avg_sq", "model/teacher.{}")
BANK = "model/bank.rows"
Shapes = dict[str, tuple[int, ...]]


def shapes_of(count: int) -> Shapes:
    """So many tensors of a transformer, its moments and its teacher, and a bank."""
    inner = [(f"encoder.blocks.{block}.{name}", shape) for block in range(count) for name, shape in BLOCK.items()]
    named = [(kind.format(name), shape) for name, shape in inner for kind in KINDS]
    return {**dict(named[: count - 1]), BANK: (1_281_167, 128)}


@cache
def sized(count: int) -> Tensor:
    """A tensor of so many elements that has none."""
    return torch.empty(count, device="meta")


def fsdp(shapes: Shapes, rank: int, ranks: int) -> State:
    """What a rank holds where rows of every tensor are spread over the ranks."""
    each = {name: -(-shape[0] // ranks) * math.prod(shape[1:]) for name, shape in shapes.items()}
    runs = {name: by_rule(shape, each[name], rank, ranks) for name, shape in shapes.items() if name != BANK}
    shards = {name: Piece(sized(len(run)), shapes[name], run.start) for name, run in runs.items()}
    return {**shards, **bank(shapes, rank, ranks)}


def ddp(shapes: Shapes, rank: int, ranks: int) -> State:
    """What a rank holds where every rank holds every tensor."""
    whole = {name: sized(math.prod(shape)).view(shape) for name, shape in shapes.items() if name != BANK}
    return {**whole, **bank(shapes, rank, ranks)}


def copies(shapes: Shapes, rank: int, ranks: int) -> State:
    """What a rank saves where each node of PER_NODE ranks has a copy of all tensors, as FSDP with replicate=nodes."""
    own = fsdp({**shapes}, rank % PER_NODE, PER_NODE)
    counts = {name: math.prod(shape) for name, shape in shapes.items() if name != BANK}
    writer = shared_out(counts, ranks // PER_NODE)
    mine = {
        name: own[name] if writer[name] == rank // PER_NODE else Piece(sized(0), shapes[name], 0) for name in counts
    }
    return {**mine, **bank(shapes, rank, ranks)}


def zero(shapes: Shapes, rank: int, ranks: int) -> State:
    """What a rank holds where all tensors are concatenated and cut into equal parts, so that borders are anywhere."""
    own = partition(sum(math.prod(shape) for name, shape in shapes.items() if name != BANK), rank, ranks)
    found, at = {}, 0
    for name, shape in shapes.items():
        if name != BANK:
            first, end = max(own.start - at, 0), min(own.stop - at, math.prod(shape))
            found[name] = Piece(sized(max(end - first, 0)), shape, first if first < end else 0)
            at += math.prod(shape)
    return {**found, **bank(shapes, rank, ranks)}


def bank(shapes: Shapes, rank: int, ranks: int) -> State:
    """The rows of the bank that a rank holds."""
    rows, (count, width) = partition(shapes[BANK][0], rank, ranks), shapes[BANK]
    return {BANK: Piece(sized(len(rows) * width).view(len(rows), width), (count, width), rows.start * width)}


LAYOUTS: dict[str, Callable[[Shapes, int, int], State]] = {"fsdp": fsdp, "copies": copies, "ddp": ddp, "zero": zero}


@dataclass(frozen=True)
class Cost:
    """Bytes that a rank handles."""

    given: int
    taken: int
    tables: int

    @property
    def all(self) -> int:
        """All of them."""
        return self.given + self.taken + self.tables


@dataclass(frozen=True)
class Scale:
    """What a save and a restore cost rank 0, and the other rank for which they are dearest."""

    save: tuple[Cost, Cost]
    restore: tuple[Cost, Cost]
    pieces: int
    first_table: int
    """Bytes of `state.json`."""
    own_pieces: int
    """Of rank 0, whose file has them in its header of `own_table` bytes."""
    own_table: int
    files: int
    """Files that a rank opens in a restore, at most."""


def size(value: object) -> int:
    """Bytes of a value in an exchange: it is sent as JSON, after its length."""
    return NUMBER + len(json.dumps(value))


def dearest(costs: Sequence[Cost]) -> Cost:
    """The cost of the rank that has the most."""
    return max(costs, key=lambda cost: cost.all)


def measured(layout: Callable[[Shapes, int, int], State], tensors: int, ranks: int) -> Scale:
    """Go through a save, and a restore on as many ranks."""
    shapes, agreed = shapes_of(tensors), AGREEMENTS * NUMBER
    states = [layout(shapes, rank, ranks) for rank in range(ranks)]
    own = [own_pieces(state, rank, ranks) for rank, state in enumerate(states)]
    outlined = outline(states[0])
    plan = save_plan(outlined, own[0], ranks)
    reports = [save_report(outlined, own[rank], plan, rank, ranks) for rank in range(ranks)]
    headers = [len(header_of(own[rank], Marked(plan["save"], rank))) for rank in range(ranks)]
    text = table_text(Progress(300, plans=(EpochPlan(0, 224, 1.0, 2, 4096, 4096),)).to_json(), outlined, plan, reports)
    sent = [size({**report, "length": 1 << 30}) for report in reports]
    table = whole_table(json.loads(text))

    def restored(rank: int) -> tuple[Cost, int]:
        held = {name: value.span if isinstance(value, Piece) else None for name, value in states[rank].items()}
        opened = {one.file for name, row in table.tensors.items() for one in row.within(held[name])}
        read = sum(headers[int(file[5:-12])] for file in opened)
        return Cost(agreed, agreed, len(text) + read), len(opened)

    some = sorted({1, ranks // 3, ranks // 2, ranks - 1})
    return Scale(
        (
            Cost(agreed + size(plan), agreed + sum(sent[1:]), headers[0] + len(text)),
            dearest([Cost(agreed + sent[rank], agreed + size(plan), headers[rank]) for rank in range(1, ranks)]),
        ),
        (restored(0)[0], dearest([restored(rank)[0] for rank in some])),
        sum(len(pieces) for pieces in own),
        len(text),
        len(own[0]),
        headers[0],
        max(restored(rank)[1] for rank in [0, *some]),
    )


def beyond(found: dict[int, Scale]) -> list[str]:
    """The bars that a layout misses, of what was measured at these numbers of ranks."""
    missed = []
    for ranks, scale in found.items():
        tables = (scale.first_table, scale.pieces), (scale.own_table, scale.own_pieces)
        if any(count > MOST_AROUND + MOST_PER_PIECE * pieces for count, pieces in tables):
            missed.append(f"{ranks} ranks: a table has more than {MOST_PER_PIECE} bytes a piece")
    for few, many in pairwise(sorted(found)):
        for what in ("save", "restore"):
            first, other = ([getattr(found[ranks], what)[which].all for ranks in (few, many)] for which in (0, 1))
            if first[1] * few > first[0] * many:
                missed.append(f"{few} to {many} ranks: a {what} grows faster than the ranks on rank 0")
            if other[1] * math.log2(few) > other[0] * math.log2(many):
                missed.append(f"{few} to {many} ranks: a {what} grows faster than their logarithm on another rank")
    return missed


def shown(name: str, found: dict[int, Scale], table: Table) -> None:
    """Add the rows of a layout to the table."""
    for ranks, scale in found.items():
        costs = [f"{cost.all / 1000:,.0f}" for cost in (*scale.save, *scale.restore)]
        pieces = f"{scale.first_table / scale.pieces:,.1f}", f"{scale.own_table / max(scale.own_pieces, 1):,.0f}"
        table.add_row(name, f"{ranks:,}", f"{scale.pieces:,}", *costs, *pieces, f"{scale.files:,}")


def main(arguments: list[str]) -> int:
    """Print the table; return 1 where a bar is missed."""
    options = dict(argument.split("=") for argument in arguments)
    tensors = int(options.get("tensors", TENSORS))
    ranks = [int(number) for number in options.get("ranks", ",".join(map(str, RANKS))).split(",")]
    costs = ("save, rank 0", "another", "restore, rank 0", "another")
    columns = "layout", "ranks", "pieces", *(f"{cost}, kB" for cost in costs)
    table = Table(*columns, "state.json, B a piece", "rank's file", "files opened", title=f"{tensors:,} tensors")
    missed = []
    for name, layout in LAYOUTS.items():
        found = {number: measured(layout, tensors, number) for number in ranks}
        shown(name, found, table)
        missed += [f"{name}, {problem}" for problem in beyond(found)]
    console = Console(width=150)
    console.print(table, *missed, sep="\n")
    return int(bool(missed)) | scale_manifest.report(int(options.get("samples", SAMPLES)), 4, console)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
