"""A network gets all its weights or none, and the first name that does not fit is one that explains why."""

import pytest
import torch
from torch import nn

from dist_ssl.models.named_weights import load_weights, misfits, without_counters


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def test_counters_of_batch_norms_are_no_weights() -> None:
    assert {*network().state_dict()} - {*without_counters(network().state_dict())} == {"1.num_batches_tracked"}


def test_a_network_gets_all_its_weights() -> None:
    own, other = network(), network()
    own[1].num_batches_tracked.fill_(3)
    assert load_weights(own, without_counters(other.state_dict())) == []
    assert torch.equal(own[0].weight, other[0].weight)
    assert own[1].num_batches_tracked == 3


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"0.weight": torch.zeros(3, 2)}, ["0.weight"]),
        ({"1.num_batches_tracked": torch.tensor(1)}, ["1.num_batches_tracked"]),
        ({"0.bias": torch.zeros(3), "2.weight": torch.zeros(1)}, ["2.weight", "0.bias"]),
    ],
)
def test_a_network_stays_as_it_is_where_a_name_or_a_shape_differs(
    change: dict[str, torch.Tensor], wrong: list[str]
) -> None:
    own = network()
    before = own[0].weight.clone()
    assert load_weights(own, {**without_counters(network().state_dict()), **change}) == wrong
    assert torch.equal(own[0].weight, before)


def test_missing_names_are_wrong_too() -> None:
    assert misfits({"a": torch.zeros(2), "b": torch.zeros(1)}, {"a": torch.zeros(2)}) == ["b"]
