"""Exports are loaded by their libraries, compute the same there, and are refused where they do not."""

import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dist_ssl
from dist_ssl.config.instantiate import instantiate
from dist_ssl.errors import ConfigError
from dist_ssl.methods.emp_ssl import Widened
from dist_ssl.saved_encoder import SavedEncoder
from launch.export import keep_if_equal
from launch.export_targets import TARGETS
from tests.test_saved_encoder import DESCRIPTION, TINY, shaken

RESNET = {"_target_": "dist_ssl.models.encoders.timm_encoder", "name": "resnet18", "zero_init_last": True}
OWN_VIT = {"_target_": "dist_ssl.models.vit.vit", "width": 32, "depth": 2, "heads": 4, "patch": 8, "mlp_ratio": 2.0}
TIMM_VIT = {
    "_target_": "dist_ssl.models.encoders.timm_encoder",
    "name": "vit_tiny_patch16_224",
    "stem": "standard",
    "dynamic_img_size": True,
    "img_size": 32,
    "depth": 2,
    "embed_dim": 36,
    "num_heads": 3,
}
NARROW = {**RESNET, "channels": [8, 16, 24, 32]}
NODES: dict[str, dict[str, Any]] = {
    "resnet": {**RESNET, "stem": "standard"},
    "narrow resnet": {**NARROW, "stem": "standard"},
    "small stem": {**RESNET, "stem": "small"},
    "own transformer": {**OWN_VIT, "frozen_patches": True},
    "timm's transformer": TIMM_VIT,
}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@cache
def saved_of(name: str) -> SavedEncoder:
    node = NODES[name]
    return SavedEncoder(shaken(instantiate(node, "encoder")), replace(DESCRIPTION, encoder=node, resize=37, crop=32))


PAIRS = [
    *(("narrow resnet", library) for library in ("timm", "safetensors")),
    ("resnet", "torchvision"),
    *(("small stem", library) for library in ("timm", "torchvision")),
    *(("own transformer", library) for library in TARGETS),
    *(("timm's transformer", library) for library in TARGETS),
]


@pytest.mark.parametrize(("name", "library"), PAIRS)
def test_the_printed_lines_load_a_network_that_computes_the_same(name: str, library: str, tmp_path: Path) -> None:
    saved, out = saved_of(name), tmp_path / "it's.safetensors"
    target = TARGETS[library](saved)
    problem, checked = keep_if_equal(saved, target, IMAGES, out, library)
    assert problem == "", checked
    names = len(saved.tensors())
    assert checked.startswith(f"matched {names} of {names} tensors; {library} differs by ")
    assert list(tmp_path.iterdir()) == [out]
    space: dict[str, Any] = {}
    exec("\n".join(target.lines(out)), space)
    model: nn.Module = space["encoder" if library == "safetensors" else "model"].eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(IMAGES), saved(IMAGES), rtol=1e-5, atol=1e-5)
        if target.described:
            assert torch.equal(dist_ssl.load_encoder(out)(IMAGES), saved(IMAGES)), "the file is ours too"


def renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = sorted(tensors)[-1]
    return {("renamed" if key == name else key): value for key, value in tensors.items()}


def changed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = sorted(tensors)[-1]
    return {**tensors, name: tensors[name] * 1.01}


REFUSED = [
    ("resnet", "torchvision", renamed, "torchvision does not take the file"),
    ("own transformer", "timm", renamed, "timm does not take the file"),
    ("own transformer", "torchvision", renamed, "torchvision does not take the file"),
    ("own transformer", "timm", changed, "timm does not compute the same"),
    ("timm's transformer", "torchvision", changed, "torchvision does not compute the same"),
]


@pytest.mark.parametrize(("name", "library", "change", "message"), REFUSED)
def test_another_name_or_another_value_is_refused_and_nothing_is_written(
    name: str, library: str, change: Any, message: str, tmp_path: Path
) -> None:
    saved = saved_of(name)
    target = TARGETS[library](saved)
    target = replace(target, renamed=change(dict(target.renamed)), described=False)
    problem, _ = keep_if_equal(saved, target, IMAGES, tmp_path / "x.safetensors", library)
    assert message in problem
    assert not list(tmp_path.iterdir())


def test_a_tensor_of_the_library_that_the_file_lacks_is_refused(tmp_path: Path) -> None:
    saved = saved_of("own transformer")
    target, names = TARGETS["timm"](saved), len(saved.tensors())

    def careless(path: Path) -> nn.Module:
        model = target.load(path)
        model.added = nn.Linear(1, 1)
        return model

    problem, checked = keep_if_equal(saved, replace(target, load=careless), IMAGES, tmp_path / "x.safetensors", "timm")
    assert problem == "timm does not compute the same."
    assert checked.startswith(f"matched {names} of {names + 2} tensors")


def test_networks_that_a_library_lacks_are_refused() -> None:
    tiny = SavedEncoder(instantiate(TINY, "encoder"), DESCRIPTION)
    widened = SavedEncoder(Widened(instantiate(TINY, "encoder"), 8), replace(DESCRIPTION, extra_layer=8))
    for library in ("timm", "torchvision"):
        with pytest.raises(ConfigError, match=f"{library} has no TinyResNet"):
            TARGETS[library](tiny)
        with pytest.raises(ConfigError, match=f"one more layer, which {library} has not"):
            TARGETS[library](widened)
    assert set(TARGETS["safetensors"](widened).renamed) == set(widened.tensors())
    other = saved_of("timm's transformer")
    with pytest.raises(ConfigError, match="images of one side, here 32 px, not 48 px"):
        TARGETS["torchvision"](SavedEncoder(other.encoder, replace(other.description, resize=48, crop=48)))


def test_no_link_in_the_place_of_the_unfinished_file_is_followed(tmp_path: Path) -> None:
    canary, saved = tmp_path / "thesis", saved_of("own transformer")
    canary.write_text("years of work")
    (tmp_path / f".{os.getpid()}.x.safetensors").symlink_to(canary)
    keep_if_equal(saved, TARGETS["timm"](saved), IMAGES, tmp_path / "x.safetensors", "timm")
    assert canary.read_text() == "years of work"
