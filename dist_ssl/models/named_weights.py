"""The weights of a network by their names, and whether those of a file or a checkpoint fit it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

COUNTERS = "num_batches_tracked"
"""Ending of names of batch norms' counters, which are no weights: no file has them and no evaluation uses them."""


def without_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a state by their names, but the counters of batch norms."""
    return {name: value for name, value in state.items() if not name.endswith(COUNTERS)}


def misfits(own: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return the names in which found tensors differ from one's own: missing and unknown ones, then other shapes.

    The values are tensors, or pieces of tensors that have the shape of the whole.
    """
    other = [name for name in own.keys() & found.keys() if own[name].shape != found[name].shape]
    return sorted(own.keys() ^ found.keys()) + sorted(other)


def load_weights(network: nn.Module, found: Mapping[str, Tensor]) -> list[str]:
    """Give a network all its weights, or none where some do not fit; return the names of these, see `misfits`."""
    wrong = misfits(without_counters(network.state_dict()), found)
    if not wrong:
        network.load_state_dict(found, strict=False)  # what is missing are the counters
    return wrong
