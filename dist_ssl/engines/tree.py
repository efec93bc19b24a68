"""A sum with the same additions in the same order at every distribution of its terms over ranks.

The terms are the leaves of one fixed binary tree. A rank has a run of consecutive leaves and adds up those that fill
whole nodes of the tree; only the sums of these nodes are exchanged, and every rank computes the rest of the tree.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dist_ssl.core.partition import partition
from dist_ssl.distributed.world import World

Node = tuple[int, int]
"""A node, given by the leaves below it: from the first number up to, not including, the second."""
NUMBERS = 1 << 20
"""Numbers of a node that are exchanged at a time; this bounds the memory for the sums of other ranks."""


def halves(node: Node) -> tuple[Node, Node]:
    """Return the two child nodes of a node with several leaves."""
    first, end = node
    middle = (first + end) // 2
    return (first, middle), (middle, end)


def tops(node: Node, own: range) -> list[Node]:
    """Return the largest nodes at or below `node` whose leaves are all in `own`, from left to right."""
    first, end = node
    if end <= own.start or own.stop <= first:
        return []
    if own.start <= first and end <= own.stop:
        return [node]
    left, right = halves(node)
    return [*tops(left, own), *tops(right, own)]


def add_up(node: Node, known: Callable[[Node], Tensor | None]) -> Tensor:
    """Return the sum of the leaves below a node, from nodes whose sums are `known`; these are changed in place."""
    found = known(node)
    if found is not None:
        return found
    left, right = halves(node)
    return add_up(left, known).add_(add_up(right, known))


def block(leaves: int, rank: int, size: int) -> range:
    """Return the leaves of rank `rank` of `size`; `size` divides the number of leaves."""
    assert leaves % size == 0
    return partition(leaves, rank, size)


def tree_sum(world: World, leaves: int, leaf: Callable[[int], Tensor]) -> Tensor:
    """Return the sum of all leaves, equal bits on every rank and at every world size that divides their number.

    `leaf`: returns the tensor [P] of a leaf of this rank's block, in its own memory; called once per leaf, in order.
    """
    nodes = [tops((0, leaves), block(leaves, rank, world.size)) for rank in range(world.size)]
    own = [add_up(node, lambda n: leaf(n[0]) if n[1] - n[0] == 1 else None) for node in nodes[world.rank]]
    padded = [*own, *[torch.zeros_like(own[0])] * (max(map(len, nodes)) - len(own))]
    parts = torch.split(torch.stack(padded), NUMBERS, dim=1)
    return torch.cat([_exchanged(world, leaves, nodes, part) for part in parts])


def _exchanged(world: World, leaves: int, nodes: list[list[Node]], own: Tensor) -> Tensor:
    """Return [p] the sum at the root; `own` [n, p]: the sums of this rank's nodes, padded with zeros."""
    everyone = world.gather_const(own).view(world.size, *own.shape)
    known = {node: everyone[rank, at] for rank, row in enumerate(nodes) for at, node in enumerate(row)}
    return add_up((0, leaves), known.get)
