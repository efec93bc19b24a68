"""Weights by the names of every library fill an encoder, what may be resized is, and all else is named."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dist_ssl.config.encoder_node import make_encoder
from dist_ssl.config.instantiate import instantiate
from dist_ssl.config.meta_device import on_meta_device
from dist_ssl.models.first_layer import for_channels
from dist_ssl.models.fixed_positions import stored_positions
from dist_ssl.models.patches import set_patch
from launch.export_targets import TARGETS
from launch.weight_match import PROJECTION, Match, heads_of, match
from launch.weight_names import in_timm_names
from tests.launch.test_export_targets import IMAGES, NODES, OWN_VIT, PAIRS, TIMM_VIT, saved_of
from tests.test_saved_encoder import shaken

BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
TOP = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}


def vit_of_hugging_face(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A transformer's tensors as `ViTForImageClassification` of transformers names them."""
    found = {}
    for name, value in tensors.items():
        if name in TOP:
            found[f"vit.{TOP[name]}"] = value
            continue
        _, number, inner = name.split(".", 2)
        layer, (part, kind) = f"vit.encoder.layer.{number}", inner.rsplit(".", 1)
        if part == "attn.qkv":
            for third, own in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[f"{layer}.attention.attention.{third}.{kind}"] = own
        else:
            found[f"{layer}.{BLOCK[part]}.{kind}"] = value
    return {**found, "classifier.weight": torch.zeros(7, 36), "classifier.bias": torch.zeros(7)}


def resnet_of_hugging_face(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A ResNet's tensors as `ResNetForImageClassification` of transformers names them."""
    found = {}
    for name, value in tensors.items():
        *way, part, kind = name.split(".")
        if not way:
            new = f"embedder.embedder.{'convolution' if part == 'conv1' else 'normalization'}"
        else:
            place = f"encoder.stages.{int(way[0][-1]) - 1}.layers.{way[1]}"
            if way[-1] == "downsample":
                new = f"{place}.shortcut.{('convolution', 'normalization')[int(part)]}"
            else:
                new = f"{place}.layer.{int(part[-1]) - 1}.{'convolution' if part[:-1] == 'conv' else 'normalization'}"
        found[f"resnet.{new}.{kind}"] = value
        if kind == "running_var":
            found[f"resnet.{new}.num_batches_tracked"] = torch.tensor(3)
    return {**found, "classifier.1.weight": torch.zeros(7, 32), "classifier.1.bias": torch.zeros(7)}


def fresh(node: dict[str, Any]) -> nn.Module:
    torch.manual_seed(1)
    encoder: nn.Module = instantiate(node, "encoder")
    return encoder.eval()


def filled(node: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[Match, nn.Module]:
    """The match with an encoder, of which shapes are enough, and an encoder with the weights that match."""
    with on_meta_device():
        shapes = instantiate(node, "encoder")
    found = match(shapes, in_timm_names(tensors)[0])
    encoder = fresh(node)
    encoder.load_state_dict(found.weights, strict=False)
    return found, encoder


@pytest.mark.parametrize(("name", "library"), PAIRS)
def test_every_export_fills_the_encoder_that_it_is_of(name: str, library: str) -> None:
    saved = saved_of(name)
    found, encoder = filled(NODES[name], dict(TARGETS[library](saved).renamed))
    own = [key for key in encoder.state_dict() if not key.endswith("num_batches_tracked")]
    assert (found.problems, found.head, found.count) == ([], [], f"matched {len(own)} of {len(own)} tensors")
    assert found.notes == (
        ["pos_embed: this encoder computes the same positions."]
        if NODES[name]["_target_"] == OWN_VIT["_target_"]
        else []
    )
    with torch.inference_mode():
        assert torch.equal(encoder(IMAGES), saved(IMAGES))


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize(
    ("name", "rename"), [("narrow resnet", resnet_of_hugging_face), ("timm's transformer", vit_of_hugging_face)]
)
def test_weights_by_hugging_faces_names_fill_the_encoder(name: str, rename: Any, prefix: bool) -> None:
    saved = saved_of(name)
    tensors = rename(saved.tensors())
    if not prefix:  # as of the model without its classifier
        tensors = {re.sub(r"^(vit|resnet)\.", "", key): value for key, value in tensors.items()}
    assert in_timm_names(tensors)[1] == "Hugging Face"
    found, encoder = filled(NODES[name], tensors)
    assert (found.problems, len(found.head)) == ([], 2)
    with torch.inference_mode():
        assert torch.equal(encoder(IMAGES), saved(IMAGES))


@pytest.mark.parametrize("name", ["narrow resnet", "own transformer", "timm's transformer"])
def test_what_does_not_match_is_named(name: str) -> None:
    tensors = saved_of(name).tensors()
    names = [key for key in tensors if key != "pos_embed"]
    first, second, third = names[0], names[4], names[-1]
    tensors |= {"renamed": tensors.pop(first), second: torch.zeros(5), third: tensors[third] * float("nan")}
    found, _ = filled(NODES[name], tensors)
    shape = list(saved_of(name).tensors()[second].shape)
    assert found.problems == [
        f"missing: {first}",
        "left over: renamed",
        f"of another shape: {second} [5], in the encoder {shape}",
        f"not finite: {third}",
    ]
    assert found.count == f"matched {found.total - 3} of {found.total} tensors"


@pytest.mark.parametrize("part", ["query.weight", "key.bias", "output.dense.weight", "intermediate.dense.bias"])
def test_a_renamed_tensor_of_another_library_is_named(part: str) -> None:
    tensors = vit_of_hugging_face(saved_of("timm's transformer").tensors())
    name = next(key for key in tensors if key.endswith(part))
    tensors["vit.renamed"] = tensors.pop(name)
    missing, left = filled(TIMM_VIT, tensors)[0].problems
    assert re.fullmatch(r"missing: blocks\.0\.[\w.]+", missing)
    assert "renamed" in left


def test_positions_and_patches_of_other_sizes_are_resized_as_the_encoder_itself_does_it() -> None:
    source = shaken(fresh(TIMM_VIT)).eval()
    x = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(2))
    found, larger = filled({**TIMM_VIT, "img_size": 48}, dict(source.state_dict()))
    assert (found.problems, found.notes) == ([], ["pos_embed: resized from 2 x 2 to 3 x 3 patches."])
    with torch.inference_mode():
        torch.testing.assert_close(larger(x), source(x), rtol=1e-5, atol=1e-5)
    found, finer = filled({**TIMM_VIT, "patch_size": 8}, dict(source.state_dict()))
    assert found.notes == [
        "pos_embed: resized from 2 x 2 to 4 x 4 patches.",
        "patch_embed.proj.weight: resized from patches of 16 px to 8 px.",
    ]
    set_patch(source.train(), 8)
    with torch.inference_mode():
        torch.testing.assert_close(finer(IMAGES), source(IMAGES), rtol=1e-5, atol=1e-5)


def test_the_projection_of_our_own_transformer_is_resized_too() -> None:
    saved = saved_of("own transformer")
    own: Any = saved.encoder
    found, finer = filled({**OWN_VIT, "patch": 4}, saved.tensors())
    assert found.problems == []
    assert "patch_embed.proj.weight: resized from patches of 8 px to 4 px." in found.notes
    assert torch.equal(finer.patch_embed.proj.weight, own.patch_embed.proj.resized(4))


def test_positions_that_the_encoder_would_not_compute_are_left_over() -> None:
    tensors = {**saved_of("own transformer").tensors()}
    stored = tensors["pos_embed"]
    assert torch.equal(stored, stored_positions(4, 32))
    for value, fits in ((stored.half(), True), (stored * 0.9, False), (stored[:, 1:], False), (stored[0], False)):
        found, _ = filled(OWN_VIT, {**tensors, "pos_embed": value})
        assert found.problems == ([] if fits else ["left over: pos_embed"])


@pytest.mark.parametrize("shape", [(1, 4, 36), (1, 7, 36), (1, 10, 24), (2, 10, 36), (10, 36), (1, 0, 36)])
def test_positions_that_are_no_square_grid_are_not_resized(shape: tuple[int, ...]) -> None:
    tensors = {**saved_of("timm's transformer").tensors(), "pos_embed": torch.zeros(shape)}
    assert filled(TIMM_VIT, tensors)[0].problems == [
        f"of another shape: pos_embed {list(shape)}, in the encoder [1, 5, 36]"
    ]


def test_a_classifier_is_left_out_and_nothing_else() -> None:
    tensors = {**saved_of("narrow resnet").tensors(), "fc.weight": torch.zeros(9, 32), "fc.bias": torch.zeros(9)}
    found, _ = filled(NODES["narrow resnet"], tensors)
    assert (found.problems, found.head) == ([], ["fc.bias", "fc.weight"])
    found, _ = filled(NODES["narrow resnet"], {**tensors, "fcx.weight": torch.zeros(9)})
    assert found.problems == ["left over: fcx.weight"]


def test_half_precision_becomes_that_of_the_encoder() -> None:
    tensors = {name: x.bfloat16() for name, x in saved_of("narrow resnet").tensors().items()}
    found, _ = filled(NODES["narrow resnet"], tensors)
    assert not found.problems
    assert {x.dtype for x in found.weights.values()} == {torch.float32}


@pytest.mark.parametrize("name", ["narrow resnet", "own transformer"])
@pytest.mark.parametrize(
    ("dtype", "short"),
    [
        *((torch.int8, "int8"), (torch.bool, "bool"), (torch.complex64, "complex64")),
        (torch.float8_e4m3fn, "float8_e4m3fn"),
    ],
)
def test_tensors_that_are_no_numbers_of_16_to_64_bits_are_refused(name: str, dtype: torch.dtype, short: str) -> None:
    tensors = {key: x.to(dtype) for key, x in saved_of(name).tensors().items()}
    found, _ = filled(NODES[name], tensors)
    assert found.weights == {}
    problem = found.problems[-1]
    assert problem.startswith(f"of another type: {found.of_another_type[0]}, ")
    assert problem.endswith(f" {short}, in the encoder float32")
    assert len(found.of_another_type) == found.total


@pytest.mark.parametrize("patch", [8, 4])
def test_numbers_that_are_too_large_for_the_encoder_are_named(patch: int) -> None:
    name = "patch_embed.proj.weight"
    tensors = {key: x.double() for key, x in saved_of("own transformer").tensors().items()}
    found, _ = filled({**OWN_VIT, "patch": patch}, {**tensors, name: tensors[name] * 1e60})
    assert found.problems == [f"not finite: {name}"]


def test_numbers_of_heads_are_counted_for_each_attention() -> None:
    assert heads_of(fresh(OWN_VIT)) == [4, 4]
    assert heads_of(fresh(TIMM_VIT)) == [3, 3]
    assert heads_of(fresh(NODES["narrow resnet"])) == []


def test_the_names_in_torchvisions_published_transformers_are_read() -> None:
    saved = saved_of("timm's transformer")
    tensors = dict(TARGETS["torchvision"](saved).renamed)
    older = {
        key.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): x for key, x in tensors.items()
    }
    assert older.keys() != tensors.keys()
    assert filled(TIMM_VIT, older)[0].problems == []


def test_two_tensors_of_a_file_for_one_place_are_named() -> None:
    tensors = dict(TARGETS["torchvision"](saved_of("timm's transformer")).renamed)
    name = next(key for key in tensors if key.endswith("mlp.0.weight"))
    second = name.replace("mlp.0", "mlp.linear_1")
    found, _ = filled(TIMM_VIT, {**tensors, second: torch.zeros_like(tensors[name])})
    assert found.problems == [f"left over: {second}"]


def test_names_of_many_digits_and_parts_without_dimensions_are_left_over() -> None:
    tensors = vit_of_hugging_face(saved_of("timm's transformer").tensors())
    name = f"encoder.layer.{'7' * 5000}.layernorm_before.weight"
    bare = {f"encoder.layer.8.attention.attention.{part}.bias": torch.zeros(()) for part in ("query", "key", "value")}
    assert {name, *bare} <= in_timm_names({**tensors, name: torch.zeros(1), **bare})[0].keys()


@pytest.mark.parametrize(("name", "tensor"), [("narrow resnet", "conv1.weight"), ("own transformer", PROJECTION)])
def test_weights_for_rgb_are_adapted_to_other_channels_and_it_is_said(name: str, tensor: str) -> None:
    tensors = saved_of(name).tensors()
    found = match(make_encoder(NODES[name], 5), tensors)
    assert found.problems == []
    assert torch.equal(found.weights[tensor], for_channels(tensors[tensor], 5))
    assert f"{tensor}: adapted from RGB to images of 5 channels." in found.notes


def test_weights_for_other_channels_are_not_adapted() -> None:
    five = make_encoder(NODES["narrow resnet"], 5)
    found = match(make_encoder(NODES["narrow resnet"], 3), dict(five.state_dict()))
    assert found.problems == ["of another shape: conv1.weight [64, 5, 7, 7], in the encoder [64, 3, 7, 7]"]
