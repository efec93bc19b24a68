"""Which elements of every parameter a rank holds under ZeRO, and where they lie in what the optimizer moves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dist_ssl.distributed.world import World
from dist_ssl.protocols.engine import Piece


@dataclass(frozen=True)
class Part:
    """This rank's elements of a parameter, and where they lie in what the optimizer moves."""

    flat: Tensor
    """Parts of several parameters, end to end."""
    at: int
    """Number of the first element within `flat`."""
    count: int
    start: int
    """Number of the first element within the parameter."""
    shape: tuple[int, ...]
    """Of the parameter."""

    def of(self, values: Tensor) -> Piece:
        """The piece that lies in values laid out as `flat` is."""
        return Piece(values.detach()[self.at : self.at + self.count], self.shape, self.start)


def parts_of_groups(named: Mapping[str, nn.Parameter], zero: Any) -> dict[str, Part]:
    """At stages 1 and 2: a rank has a run of every group's flattened parameters, and of many of these nothing."""
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
    """At stage 3: a rank has a run of every parameter; those that are trained lie end to end."""
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
