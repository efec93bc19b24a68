"""A sum whose additions are the same, in the same order, however its terms are spread over ranks.

Terms are the leaves of one fixed binary tree. A rank has a run of neighbouring leaves; of these it adds up what fills
whole nodes of the tree, only the sums of those nodes travel, and every rank adds up the rest of the tree itself.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dist_ssl.distributed.world import World

Node = tuple[int, int]
"""The leaves below a node: from the first up to before the second."""
NUMBERS = 1 << 20
"""Of one node that are exchanged at a time: it bounds the memory that the other ranks' sums take."""


def halves(node: Node) -> tuple[Node, Node]:
    """The two nodes below one of several leaves."""
    first, end = node
    middle = (first + end) // 2
    return (first, middle), (middle, end)


def tops(node: Node, own: range) -> list[Node]:
    """The largest nodes from `node` on down whose leaves are all in `own`, from left to right."""
    first, end = node
    if end <= own.start or own.stop <= first:
        return []
    if own.start <= first and end <= own.stop:
        return [node]
    left, right = halves(node)
    return [*tops(left, own), *tops(right, own)]


def add_up(node: Node, known: Callable[[Node], Tensor | None]) -> Tensor:
    """The sum of the leaves below a node, from nodes whose sums are `known`; those are added to in place."""
    found = known(node)
    if found is not None:
        return found
    left, right = halves(node)
    return add_up(left, known).add_(add_up(right, known))


def block(leaves: int, rank: int, size: int) -> range:
    """The leaves of one rank of `size`, a divisor of their number."""
    assert leaves % size == 0
    return range(rank * leaves // size, (rank + 1) * leaves // size)


def tree_sum(world: World, leaves: int, leaf: Callable[[int], Tensor]) -> Tensor:
    """The sum of all leaves, equal bits on every rank and at every world size that divides their number.

    `leaf`: makes the tensor [P] of a leaf of this rank's block, in memory of its own; asked once each, in their order.
    """
    nodes = [tops((0, leaves), block(leaves, rank, world.size)) for rank in range(world.size)]
    own = [add_up(node, lambda n: leaf(n[0]) if n[1] - n[0] == 1 else None) for node in nodes[world.rank]]
    padded = [*own, *[torch.zeros_like(own[0])] * (max(map(len, nodes)) - len(own))]
    parts = torch.split(torch.stack(padded), NUMBERS, dim=1)
    return torch.cat([_exchanged(world, leaves, nodes, part) for part in parts])


def _exchanged(world: World, leaves: int, nodes: list[list[Node]], own: Tensor) -> Tensor:
    """[p] the sum at the root, of `own` [n, p]: the sums of this rank's nodes, and of nothing where it has fewer."""
    everyone = world.gather_const(own).view(world.size, *own.shape)
    known = {node: everyone[rank, at] for rank, row in enumerate(nodes) for at, node in enumerate(row)}
    return add_up((0, leaves), known.get)
