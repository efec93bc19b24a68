"""Exports are loaded by their libraries, compute the same there, and are refused where they do not."""

import json
import os
import re
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

import dist_ssl
from dist_ssl.config.encoder_node import make_encoder
from dist_ssl.config.instantiate import instantiate
from dist_ssl.errors import ConfigError
from dist_ssl.methods.emp_ssl import Widened
from dist_ssl.saved_encoder import KEY, SavedEncoder
from launch import huggingface_export
from launch.export import refuse_full
from launch.export_check import keep_if_equal
from launch.export_target import LoadedNetwork, Target
from launch.export_targets import TARGETS
from launch.image_check import drawn
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
    "short resnet": {**NARROW, "stem": "standard", "layers": [1, 1, 1, 1]},
    "bottlenecks": {**NARROW, "name": "resnet50", "stem": "standard", "layers": [1, 1, 2, 1]},
    "small stem": {**RESNET, "stem": "small"},
    "own transformer": {**OWN_VIT, "frozen_patches": True},
    "defaults left out": {"_target_": OWN_VIT["_target_"], "width": 16, "depth": 1, "heads": 2},
    "timm's transformer": TIMM_VIT,
    "mean of tokens": {**TIMM_VIT, "global_pool": "avg", "fc_norm": False},
}
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@cache
def saved_of(name: str) -> SavedEncoder:
    node = NODES[name]
    torch.manual_seed(1)
    return SavedEncoder(shaken(instantiate(node, "encoder")), replace(DESCRIPTION, encoder=node, resize=37, crop=32))


def kept(saved: SavedEncoder, target: Target, out: Path) -> tuple[str, str]:
    return keep_if_equal(saved, target, IMAGES, out, lambda checked: f"The card. {checked}")


FILES = ("safetensors", "timm", "torchvision")
PAIRS = [
    *(("narrow resnet", library) for library in ("timm", "safetensors", "huggingface")),
    ("short resnet", "onnx"),
    ("resnet", "torchvision"),
    ("bottlenecks", "huggingface"),
    *(("small stem", library) for library in ("timm", "torchvision")),
    *(("own transformer", library) for library in (*FILES, "huggingface")),
    ("defaults left out", "timm"),
    *(("timm's transformer", library) for library in (*FILES, "huggingface")),
]


@pytest.mark.parametrize(("name", "library"), PAIRS)
def test_the_printed_lines_load_a_network_that_computes_the_same(name: str, library: str, tmp_path: Path) -> None:
    saved, out = saved_of(name), tmp_path / ("it's" if library == "huggingface" else "it's.safetensors")
    target = TARGETS[library](saved)
    problem, checked = kept(saved, target, out)
    assert problem == "", checked
    names = len(target.renamed)
    assert names >= len(saved.tensors())
    assert checked.startswith(f"matched {names} of {names} tensors; {target.library} differs by ")
    assert set(tmp_path.iterdir()) == ({out} if target.folder else {out, target.card(out)})
    assert target.card(out).read_text() == f"{target.heading}The card. {checked}"
    assert_the_same(saved, target, out)
    if target.described:
        assert torch.equal(dist_ssl.load_encoder(out)(IMAGES), saved(IMAGES)), "the file is ours too"


def assert_the_same(saved: SavedEncoder, target: Target, out: Path, images: Tensor = IMAGES) -> None:
    space: dict[str, Any] = {"images": images.numpy() if target.library == "onnxruntime" else images}
    with torch.inference_mode():
        exec("\n".join(target.lines(out)), space)
        if "features" not in space:
            space["features"] = space["encoder" if target.library == "dist_ssl" else "model"].eval()(images)
        expected, found = saved(images), torch.as_tensor(space["features"])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[SavedEncoder, Target, Path]:
    """A transformer, as ONNX has it, and its file; treat it as read-only."""
    saved, out = saved_of("own transformer"), tmp_path_factory.mktemp("onnx") / "x.onnx"
    target = replace(TARGETS["onnx"](saved), recipe="epochs: 3\n")
    problem, checked = kept(saved, target, out)
    assert problem == "", checked
    return saved, target, out


def test_a_folder_of_transformers_says_what_images_it_takes(tmp_path: Path) -> None:
    own, out = saved_of("own transformer"), tmp_path / "mine"
    saved = SavedEncoder(own.encoder, replace(own.description, resize=40))  # even margins: no library rounds them
    assert kept(saved, TARGETS["huggingface"](saved), out)[0] == ""
    names = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
    assert {path.name for path in out.iterdir()} == names
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1, "as readable as what else the run writes"
    assert json.loads((out / "config.json").read_text())["architectures"] == ["ViTModel"]
    pixels = np.random.default_rng(2).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((90, 60), Image.Resampling.BICUBIC)  # smooth: filters round differently
    found = transformers.AutoImageProcessor.from_pretrained(out, local_files_only=True)(picture, return_tensors="pt")
    torch.testing.assert_close(found["pixel_values"], saved.prepared([picture]), rtol=0, atol=0.02)


def test_the_preparation_of_images_is_checked_and_what_differs_is_said(tmp_path: Path) -> None:
    own, files = saved_of("own transformer"), drawn(40, None)[:1]
    saved = SavedEncoder(own.encoder, replace(own.description, resize=40, alpha="drop", range=4095))
    problem, checked = keep_if_equal(saved, TARGETS["huggingface"](saved), IMAGES, tmp_path / "x", str, files)
    assert problem == ""
    first, *said = checked.split(" It prepares ")
    assert first.endswith("(bar 1e-05).")
    assert [line.partition(" images")[0] for line in said] == ["transparent", "deep", "turned"]
    assert "than in training (data.alpha=drop): convert" in said[0]
    assert "than in training (data.range=4095): convert" in said[1]
    assert "than in training (upright, as their Exif orientation says): convert" in said[2]
    share = re.search(r" As it prepares them, the largest difference of features is ([\d.]+)% of the", checked)
    assert share, checked
    assert float(share[1]) < 5
    assert checked in (tmp_path / "x" / "README.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_mean": [0.0, 0.0, 0.0]}, r"\(\d+ of 255 levels\)"),
        ({"do_center_crop": False}, r"\(\[1, 3, \d+, \d+\], not \[1, 3, 32, 32\]\)"),
        ({"image_processor_type": "Missing"}, r"\(\w+Error: .*\)"),
    ],
)
def test_a_preparation_of_images_that_is_not_ours_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, right = saved_of("own transformer"), huggingface_export.preparation
    monkeypatch.setattr(huggingface_export, "preparation", lambda own: {**right(own), **change})
    problem, _ = kept(saved, TARGETS["huggingface"](saved), tmp_path / "x")
    assert re.fullmatch(f"transformers prepares images otherwise {message}\\.", problem, re.DOTALL), problem
    assert not list(tmp_path.iterdir())


def test_an_onnx_file_says_what_images_it_takes_and_how_it_was_trained(
    onnx_file: tuple[SavedEncoder, Target, Path],
) -> None:
    saved, target, out = onnx_file
    assert_the_same(saved, target, out)
    model = onnx.load(out)
    assert {one.name for one in model.graph.initializer} == set(saved.tensors())
    said = {one.key: one.value for one in model.metadata_props}
    assert said["recipe"] == "epochs: 3\n"
    assert {key: json.loads(said[key]) for key in ("image_size", "resize", "mean", "std", "data")} == {
        "image_size": 32,
        "resize": 37,
        "mean": list(DESCRIPTION.mean),
        "std": list(DESCRIPTION.std),
        "data": DESCRIPTION.data,
    }
    assert json.loads(said[KEY])["encoder"] == saved.description.encoder
    (images,) = model.graph.input
    assert [side.dim_param or side.dim_value for side in images.type.tensor_type.shape.dim] == ["batch", 3, 32, 32]


def test_learnt_positions_are_those_of_the_side_of_the_images(tmp_path: Path) -> None:
    own = saved_of("timm's transformer")
    saved = SavedEncoder(own.encoder, replace(own.description, resize=48, crop=48))
    target = TARGETS["onnx"](saved)
    problem, checked = keep_if_equal(saved, target, torch.randn(3, 3, 48, 48), tmp_path / "x.onnx", str)
    assert problem == "", checked
    assert target.renamed["pos_embed"].shape == (1, 10, 36)
    assert own.encoder.pos_embed.shape == (1, 5, 36)


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
    ("narrow resnet", "huggingface", renamed, "transformers does not take the file: 1 tensors are missing"),
    ("own transformer", "huggingface", renamed, "transformers does not take the file: 1 tensors are missing"),
    ("own transformer", "huggingface", changed, "transformers does not compute the same"),
    ("short resnet", "onnx", renamed, "onnxruntime does not take the file: 2 tensors are missing or unexpected"),
]


@pytest.mark.parametrize(("name", "library", "change", "message"), REFUSED)
def test_another_name_or_another_value_is_refused_and_nothing_is_written(
    name: str, library: str, change: Any, message: str, tmp_path: Path
) -> None:
    saved = saved_of(name)
    target = TARGETS[library](saved)
    target = replace(target, renamed=change(dict(target.renamed)), described=False)
    problem, _ = kept(saved, target, tmp_path / "x.safetensors")
    assert message in problem
    assert not list(tmp_path.iterdir())


def rename(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        node.input[:] = ["renamed" if name == "norm.bias" else name for name in node.input]
    next(one for one in model.graph.initializer if one.name == "norm.bias").name = "renamed"


def scale(model: onnx.ModelProto) -> None:
    tensor = next(one for one in model.graph.initializer if one.name == "norm.bias")
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * np.float32(1.01), "norm.bias"))


def fix_batch(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def cut(model: onnx.ModelProto) -> None:
    del model.graph.node[3]


@pytest.mark.parametrize(
    ("change", "message", "more"),
    [
        (rename, "onnxruntime does not have the same tensors.", (-1, 1)),
        (scale, "onnxruntime does not compute the same.", (0, 0)),
        (fix_batch, "onnxruntime does not take the file: it computes only", None),
        (cut, "onnxruntime does not take the file: ", None),
    ],
)
def test_an_onnx_file_in_which_something_else_stands_is_refused(
    change: Any,
    message: str,
    more: tuple[int, int] | None,
    onnx_file: tuple[SavedEncoder, Target, Path],
    tmp_path: Path,
) -> None:
    saved, target, out = onnx_file

    def other(_: Target, path: Path) -> None:
        model = onnx.load(out)
        change(model)
        onnx.save(model, path)

    problem, checked = kept(saved, replace(target, write=other), tmp_path / "x.onnx")
    assert message in problem
    if more:
        names = len(saved.tensors())
        assert checked.startswith(f"matched {names + more[0]} of {names + more[1]} tensors; ")
    assert not list(tmp_path.iterdir())


def test_a_tensor_of_the_library_that_the_file_lacks_is_refused(tmp_path: Path) -> None:
    saved = saved_of("own transformer")
    target, names = TARGETS["timm"](saved), len(saved.tensors())

    def careless(path: Path) -> nn.Module:
        model = target.load(path)
        model.added = nn.Linear(1, 1)
        return model

    problem, checked = kept(saved, replace(target, load=careless), tmp_path / "x.safetensors")
    assert problem == "timm does not have the same tensors."
    assert checked.startswith(f"matched {names} of {names + 2} tensors")


@pytest.mark.parametrize("library", ["safetensors", "huggingface"])
def test_a_link_that_another_user_makes_while_the_file_is_checked_is_not_written_through(
    library: str, tmp_path: Path
) -> None:
    saved, out, canary, modes = saved_of("narrow resnet"), tmp_path / "x", tmp_path / "canary", list[int]()
    canary.write_text("mine")
    target = TARGETS[library](saved)

    def plant(path: Path) -> nn.Module:
        modes.append(path.stat().st_mode & 0o022)
        target.card(path).symlink_to(canary)
        return target.load(path)

    umask = os.umask(0 if target.folder else 0o022)
    try:
        problem, checked = kept(saved, replace(target, load=plant), out)
    finally:
        os.umask(umask)
    assert problem == "", checked
    assert canary.read_text() == "mine"
    assert target.card(out).read_text() == f"{target.heading}The card. {checked}"
    assert not target.card(out).is_symlink()
    assert modes == [0], "nobody else could write into the folder"


def nan_for_one(own: torch.Tensor) -> torch.Tensor:
    return own * (1.0 if len(own) > 1 else float("nan"))


def failing(error: Exception) -> Any:
    def fail(_: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize(
    ("loading", "computing", "message"),
    [
        (None, nan_for_one, "dist_ssl does not compute the same."),
        (None, failing(ValueError("of a shape")), "dist_ssl does not take the file: ValueError: of a shape"),
        (failing(KeyError("x")), None, "dist_ssl does not take the file: KeyError: 'x'"),
        (failing(OSError("no config")), None, "dist_ssl does not take the file: OSError: no config"),
    ],
)
def test_a_library_that_fails_in_any_way_is_refused(loading: Any, computing: Any, message: str, tmp_path: Path) -> None:
    saved = saved_of("own transformer")
    network = LoadedNetwork(lambda x: computing(saved(x)), saved.tensors())
    target = replace(TARGETS["safetensors"](saved), load=loading or (lambda _: network))
    assert kept(saved, target, tmp_path / "x.safetensors")[0] == message
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_no_fault_of_the_library(tmp_path: Path) -> None:
    saved = saved_of("own transformer")
    full = replace(TARGETS["safetensors"](saved), write=lambda *_: failing(OSError("disk full"))(0))
    with pytest.raises(OSError, match="disk full"):
        kept(saved, full, tmp_path / "x.safetensors")


class Masked(nn.Module):
    """An encoder with a tensor that it computes when it is built: it is in no file of weights."""

    num_features = 4

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, 4, 32)
        self.register_buffer("mask", torch.arange(4.0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.proj(x).flatten(1) + self.mask
        return features


def test_what_a_network_computes_when_it_is_built_is_no_tensor_of_a_file(tmp_path: Path) -> None:
    saved = SavedEncoder(Masked(), replace(DESCRIPTION, encoder={"_target_": "x"}, resize=32, crop=32))
    problem, checked = kept(saved, TARGETS["onnx"](saved), tmp_path / "x.onnx")
    assert (problem, checked.partition(";")[0]) == ("", "matched 2 of 2 tensors")
    assert "mask" in {one.name for one in onnx.load(tmp_path / "x.onnx").graph.initializer}


def test_networks_that_a_library_lacks_are_refused() -> None:
    tiny = SavedEncoder(instantiate(TINY, "encoder"), DESCRIPTION)
    widened = SavedEncoder(Widened(instantiate(TINY, "encoder"), 8), replace(DESCRIPTION, extra_layer=8))
    for to, library in (("timm", "timm"), ("torchvision", "torchvision"), ("huggingface", "transformers")):
        with pytest.raises(ConfigError, match=f"{library} has no TinyResNet"):
            TARGETS[to](tiny)
        with pytest.raises(ConfigError, match=f"one more layer, which {library} has not"):
            TARGETS[to](widened)
    for to in ("safetensors", "onnx"):
        assert set(TARGETS[to](widened).renamed) == set(widened.tensors())
    other = saved_of("timm's transformer")
    larger = SavedEncoder(other.encoder, replace(other.description, resize=48, crop=48))
    for to in ("torchvision", "huggingface"):
        with pytest.raises(ConfigError, match="images of one side, here 32 px, not 48 px"):
            TARGETS[to](larger)
        with pytest.raises(ConfigError, match="are its class token; this encoder has global_pool=avg"):
            TARGETS[to](saved_of("mean of tokens"))
    with pytest.raises(ConfigError, match=r"begin with a 7x7 .* of stride 2; encoder\.stem=small has"):
        TARGETS["huggingface"](saved_of("small stem"))
    node = NODES["own transformer"]
    emp = SavedEncoder(Widened(instantiate(node, "encoder"), 8), replace(DESCRIPTION, encoder=node, extra_layer=8))
    with pytest.raises(ConfigError, match="transformer of EMP-SSL cannot be written as an ONNX file"):
        TARGETS["onnx"](emp)


@pytest.mark.parametrize(
    ("to", "package", "remedy"),
    [
        ("huggingface", "transformers", r"dist_ssl\[huggingface\]', or pip install transformers\."),
        ("onnx", "onnxruntime", r"dist_ssl\[onnx\]', or pip install onnx onnxscript onnxruntime\."),
    ],
)
def test_a_package_that_is_not_installed_is_named(
    to: str, package: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=f"to={to} needs .*{package}(?s:.*){remedy}"):
        TARGETS[to](saved_of("own transformer"))


def test_a_folder_is_written_over_nothing(tmp_path: Path) -> None:
    saved, out = saved_of("own transformer"), tmp_path / "mine"
    folder, file = TARGETS["huggingface"](saved), TARGETS["timm"](saved)
    out.mkdir()
    refuse_full(out, folder)
    assert kept(saved, folder, out)[0] == ""
    refuse_full(out / "config.json", file)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nothing")
    for place in (out, out / "config.json", link):
        with pytest.raises(ConfigError, match="is there already, and a folder is not written over"):
            refuse_full(place, folder)
    with pytest.raises(OSError, match="not empty"):
        kept(saved, folder, out)
    assert set(tmp_path.iterdir()) == {out, link}
    for place in (".", "/", "x/.."):
        with pytest.raises(ConfigError, match="has no name of its own"):
            refuse_full(Path(place), folder)


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("run/init.safetensors", False),
        ("run/checkpoints/step_1/rank_0.safetensors", False),
        ("link/init.safetensors", False),
        ("run/new.safetensors", True),
        ("run/earlier.safetensors", True),
        ("run/exports/x.safetensors", True),
        ("elsewhere.safetensors", True),
    ],
)
def test_no_file_of_a_run_is_written_over_but_an_earlier_export(name: str, fits: bool, tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints" / "step_1").mkdir(parents=True)
    (tmp_path / "run" / "exports").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("format: 1\n")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    (tmp_path / "run" / "earlier.safetensors.md").touch()
    out, target = tmp_path / name, TARGETS["safetensors"](saved_of("own transformer"))
    if "new" not in name:
        out.touch()
    if fits:
        refuse_full(out, target)
    else:
        with pytest.raises(ConfigError, match=f"is a file of the run {tmp_path}/run"):
            refuse_full(out, target)


MEANS = {channels: (0.5,) * channels for channels in (1, 5)}


@cache
def of_channels(name: str, channels: int) -> SavedEncoder:
    """An encoder of images of so many channels."""
    torch.manual_seed(1)
    own = replace(DESCRIPTION, encoder=NODES[name], mean=MEANS[channels], std=MEANS[channels], resize=37, crop=32)
    return SavedEncoder(shaken(make_encoder(NODES[name], channels)), own)


@pytest.mark.parametrize(
    ("name", "library", "channels"),
    [
        ("narrow resnet", "timm", 5),
        ("small stem", "timm", 1),
        ("own transformer", "timm", 5),
        ("short resnet", "safetensors", 1),
        ("short resnet", "onnx", 5),
    ],
)
def test_encoders_of_other_channels_are_loaded_by_those_that_have_them(
    name: str, library: str, channels: int, tmp_path: Path
) -> None:
    saved, out = of_channels(name, channels), tmp_path / f"x.{'onnx' if library == 'onnx' else 'safetensors'}"
    images = torch.randn(2, channels, 32, 32, generator=torch.Generator().manual_seed(1))
    target = TARGETS[library](saved)
    problem, checked = keep_if_equal(saved, target, images, out, str)
    assert problem == "", checked
    assert_the_same(saved, target, out, images)


@pytest.mark.parametrize("library", ["torchvision", "huggingface"])
@pytest.mark.parametrize("name", ["resnet", "own transformer"])
def test_libraries_of_rgb_refuse_other_channels(name: str, library: str) -> None:
    with pytest.raises(ConfigError, match=f"takes images of 5 channels, and {library} takes RGB"):
        TARGETS[library](of_channels(name, 5))
