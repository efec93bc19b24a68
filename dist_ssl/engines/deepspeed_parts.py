"""The elements of every parameter that a rank holds under ZeRO, and their places in the optimizer's flat tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dist_ssl.distributed.world import World
from dist_ssl.protocols.engine import Piece


@dataclass(frozen=True)
class Part:
    """This rank's elements of a parameter, and their place in a flat tensor that the optimizer updates."""

    flat: Tensor
    """The flat tensor: parts of several parameters, concatenated."""
    at: int
    """Index of the first element within `flat`."""
    count: int
    start: int
    """Index of the first element within the flattened parameter."""
    shape: tuple[int, ...]
    """Shape of the parameter."""

    def of(self, values: Tensor) -> Piece:
        """Return the piece of the parameter in `values`, a tensor laid out like `flat`."""
        return Piece(values.detach()[self.at : self.at + self.count], self.shape, self.start)


def parts_of_groups(named: Mapping[str, nn.Parameter], zero: Any) -> dict[str, Part]:
    """Return the parts at stages 1, 2: a rank holds a run of every group's flattened parameters; parts may be empty."""
    names = {id(parameter): name for name, parameter in named.items()}
    found = {}
    for group, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
        for parameter in group:
            own, shape = parameter._hp_mapping, tuple(parameter.shape)
            if own is None:
                part = Part(flat, 0, 0, 0, shape)
            else:
                at = own.hp_fragment_address
                part = Part(flat, at.start, at.numel, own.lp_fragment_address.start, shape)
            found[names[id(parameter)]] = part
    return found


def parts_of_parameters(named: Mapping[str, Any], zero: Any, world: World) -> dict[str, Part]:
    """Return the parts at stage 3: a rank holds a run of every parameter; trained ones are concatenated per group."""
    found = {}
    for name, parameter in named.items():
        rows = parameter.ds_tensor.ds_numel
        start = min(world.rank * rows, parameter.ds_numel)
        count = min(rows, parameter.ds_numel - start)
        flat, at = parameter.ds_tensor, 0
        if parameter.requires_grad:
            group, at, _ = zero.grad_position[zero.get_param_id(parameter)]
            flat = zero.fp32_partitioned_groups_flat[group]
        found[name] = Part(flat, at, count, start, tuple(parameter.ds_shape))
    return found
