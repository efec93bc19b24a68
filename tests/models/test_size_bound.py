"""What a description makes an encoder compute on the way is bounded too, before any memory is used for it."""

import pytest
import torch
from torch import Tensor, nn

from dist_ssl.config.meta_device import on_meta_device
from dist_ssl.errors import CheckpointError, ConfigError
from dist_ssl.models import size_bound
from dist_ssl.models.encoders import timm_encoder
from dist_ssl.models.size_bound import SmallTensors, no_larger_than

FILE = {"a": torch.zeros(4)}


class Wide(nn.Module):
    """A module without parameters whose buffer is of a given length."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.register_buffer("places", torch.empty(length), persistent=False)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoders may have 100,000 numbers more than the file."""
    monkeypatch.setattr(size_bound, "SPARE_NUMBERS", 100_000)
    monkeypatch.setattr(size_bound, "SPARE_TENSORS", 100)


@pytest.mark.usefixtures("small")
def test_buffers_and_modules_are_counted() -> None:
    said = "x describes an encoder that cannot be built: it has more"
    for count, length in ((3, 40_000), (1000, 0)):
        with pytest.raises(CheckpointError, match=said), no_larger_than(FILE, {}, "x"), on_meta_device():
            nn.ModuleList(Wide(length) for _ in range(count))
    with pytest.raises(CheckpointError, match="many more modules"), no_larger_than(FILE, {}, "x"), on_meta_device():
        nn.ModuleList(nn.Identity() for _ in range(1000))
    with no_larger_than(FILE, {}, "x"), on_meta_device():
        nn.ModuleList(Wide(10_000) for _ in range(9))
    assert nn.ModuleList(nn.Identity() for _ in range(1000)), "the bound ends with its context"


@pytest.mark.parametrize("node", [{"a": {"b": [1, [1 << 21]]}}, {"a": -(1 << 21)}])
def test_a_number_that_is_no_size_is_refused_before_anything_is_built(node: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="2097152 is larger than any size"), no_larger_than(FILE, node, "x"):
        raise AssertionError("the encoder is built")


def on_the_host(name: str) -> Tensor:
    """A large tensor in memory, of small ones or of none."""
    rows = torch.arange(1000, device="cpu")
    if name == "pairs":
        return rows[:, None] - rows[None]
    if name == "copy":
        return rows[None].expand(1000, -1).clone()
    return torch.zeros(1000, 1000, device="cpu")


@pytest.mark.parametrize("name", ["pairs", "copy", "zeros"])
def test_no_operation_makes_a_large_tensor_of_small_ones(name: str) -> None:
    with SmallTensors(1_000_000):
        assert on_the_host(name).shape == (1000, 1000)
    with pytest.raises(RuntimeError, match="a tensor of 1000000 numbers"), SmallTensors(999_999):
        on_the_host(name)


@pytest.mark.usefixtures("small")
def test_the_windows_of_a_transformer_are_bounded_by_the_file() -> None:
    refused = pytest.raises(ConfigError, match="it makes a tensor of")
    with refused, no_larger_than(FILE, {}, "x"), on_meta_device():
        timm_encoder("swin_tiny_patch4_window7_224", img_size=256, window_size=32)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_encoders_of_timm_are_not_larger_than_their_files(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with on_meta_device():
        state = timm_encoder(name).state_dict()
    monkeypatch.setattr(size_bound, "SPARE_NUMBERS", 0)
    monkeypatch.setattr(size_bound, "SPARE_TENSORS", 0)
    with no_larger_than(state, {"name": name}, "x"), on_meta_device():
        again = timm_encoder(name)
    assert again.state_dict().keys() == state.keys()
