"""The one rule by which consecutive items (lanes, rows of a bank, ...) are divided among ranks."""


def partition(count: int, rank: int, size: int) -> range:
    """Return the items of `range(count)` that rank `rank` of `size` holds.

    The parts are consecutive in rank order, cover everything once, and their lengths differ by at most one.
    """
    return range(rank * count // size, (rank + 1) * count // size)
