"""Heads have MoCo v3's layout: linear layers without biases, batch norm and ReLU between them."""

import pytest
import torch
from torch import nn

from dist_ssl.models.heads import mlp


def layout(head: nn.Sequential) -> list[str]:
    """Each layer in one word."""
    words = []
    for layer in head:
        if isinstance(layer, nn.Linear):
            words.append(f"{layer.in_features}-{layer.out_features}{'+bias' if layer.bias is not None else ''}")
        elif isinstance(layer, nn.BatchNorm1d):
            words.append(f"{'BN' if layer.affine else 'bn'}{layer.num_features}")
        else:
            words.append(type(layer).__name__)
    return words


def test_the_projector_of_a_resnet() -> None:
    head = mlp([2048, 4096, 256], last_norm=True)
    assert layout(head) == ["2048-4096", "BN4096", "ReLU", "4096-256", "bn256"]


def test_the_predictor_of_a_resnet() -> None:
    assert layout(mlp([256, 4096, 256], last_norm=False)) == ["256-4096", "BN4096", "ReLU", "4096-256"]


def test_the_heads_of_a_vit() -> None:
    projector = ["384-4096", "BN4096", "ReLU", "4096-4096", "BN4096", "ReLU", "4096-256", "bn256"]
    assert layout(mlp([384, 4096, 4096, 256], last_norm=True)) == projector
    assert layout(mlp([256, 4096, 256], last_norm=True)) == ["256-4096", "BN4096", "ReLU", "4096-256", "bn256"]


def test_one_layer_is_a_linear_map() -> None:
    assert layout(mlp([8, 4], last_norm=False)) == ["8-4"]
    assert layout(mlp([8, 4], last_norm=True)) == ["8-4", "bn4"]


@pytest.mark.parametrize("last_norm", [True, False])
def test_a_head_maps_rows(last_norm: bool) -> None:
    assert mlp([6, 16, 4], last_norm=last_norm)(torch.randn(5, 6)).shape == (5, 4)


def test_a_last_norm_gives_every_feature_mean_0_and_deviation_1() -> None:
    torch.manual_seed(0)
    out = mlp([6, 16, 4], last_norm=True).double()(torch.randn(64, 6, dtype=torch.float64))
    torch.testing.assert_close(out.mean(0), torch.zeros(4, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(out.var(0, correction=0), torch.ones(4, dtype=torch.float64), atol=1e-3, rtol=0)
