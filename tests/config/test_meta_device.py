"""Objects on the meta device have shapes and refuse what torch refuses, but use no memory and leave torch unchanged."""

import pytest
import torch
from torch import nn

from dist_ssl.config.meta_device import on_meta_device


def test_what_is_built_in_it_has_shapes_and_no_memory() -> None:
    with on_meta_device():
        layer = nn.Conv2d(3, 1 << 20, 3)
        nn.init.trunc_normal_(layer.weight)
        nn.init.kaiming_normal_(layer.weight)
        optimizer = torch.optim.AdamW(layer.parameters())
    assert layer.weight.is_meta
    assert layer.weight.shape == (1 << 20, 3, 3, 3)
    assert optimizer.param_groups[0]["params"] == list(layer.parameters())


def test_it_refuses_what_torch_refuses_and_leaves_torch_as_it_was() -> None:
    before = torch.optim.Optimizer.add_param_group
    weight = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="more than one parameter group"), on_meta_device():
        torch.optim.SGD([{"params": [weight]}, {"params": [weight]}])
    assert torch.optim.Optimizer.add_param_group is before
    assert torch.zeros(2).device.type == "cpu"
    assert nn.Linear(2, 2).weight.abs().sum() > 0
