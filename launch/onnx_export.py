"""An encoder as one ONNX file of fp32, for any number of images at a time.

The file has the tensors by their names, and in its properties what images it takes and how it was trained.
"""

import copy
import json
import warnings
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dist_ssl.errors import ConfigError
from dist_ssl.models.named_weights import COUNTERS, without_counters
from dist_ssl.models.resampling import ResizedPositions, resized
from dist_ssl.saved_encoder import KEY, SavedEncoder
from launch.export_target import OWN_VIT, LoadedNetwork, Target, needs, timm_call, with_path

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INPUT, OUTPUT, BATCH = "images", "features", "batch"
"""Names of what the file takes and gives, and of the number of images."""
LARGEST = 1_900_000_000
"""Bytes of weights that one file can hold: a Protocol Buffers message has less than 2 GiB."""


def of_onnx(saved: SavedEncoder) -> Target:
    """Return the encoder as an ONNX file has it. Raises ConfigError where no file can hold it."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise needs("onnx", *PACKAGES) from error
    network = self_contained(saved)
    tensors = {name: x.contiguous() for name, x in without_counters(network.state_dict()).items()}
    if (size := sum(value.nbytes for value in tensors.values())) > LARGEST:
        raise ConfigError(
            f"The encoder has {size / 1e9:.1f} GB of weights, and one ONNX file has less than 2 GiB.",
            "Use to=safetensors or to=timm.",
        )

    def write(target: Target, path: Path) -> None:
        own = copy.deepcopy(network)
        missing = own.load_state_dict(target.renamed, strict=False)
        wrong = [*missing.unexpected_keys, *(name for name in missing.missing_keys if not name.endswith(COUNTERS))]
        if wrong:
            raise RuntimeError(f"{len(wrong)} tensors are missing or unexpected, such as {wrong[0]}.")
        write_network(own, saved, path, {**properties(saved), "recipe": target.recipe})

    lines = (
        "import onnxruntime",
        "session = onnxruntime.InferenceSession({path!r}, providers=['CPUExecutionProvider'])",
        f"{OUTPUT} = session.run(None, {{{INPUT!r}: {INPUT}}})[0]",
    )
    computed = {name for name, _ in network.named_buffers()} - network.state_dict().keys()
    return Target("onnxruntime", tensors, False, partial(loaded, computed=computed), with_path(lines), write)


def self_contained(saved: SavedEncoder) -> nn.Module:
    """Return a copy of the network whose positions are tensors for the side of its images, not computed for any side.

    Raises ConfigError.
    """
    side = saved.description.crop
    if saved.description.encoder["_target_"] == OWN_VIT:
        import timm

        if saved.description.extra_layer is not None:
            raise ConfigError("A transformer of EMP-SSL cannot be written as an ONNX file.", "Use to=safetensors.")
        name, options = timm_call(saved)
        plain: nn.Module = timm.create_model(name, num_classes=0, **options)
        plain.load_state_dict(saved.tensors())
        return plain
    network = copy.deepcopy(saved.encoder)
    if isinstance(network, ResizedPositions):
        patches, learnt = network.patch_embed, network.pos_embed
        grid = (side // patches.patch_size[0], side // patches.patch_size[1])
        count = 0 if network.no_embed_class else network.num_prefix_tokens
        own = resized(learnt[:, count:], patches.grid_size, grid)
        network.pos_embed = nn.Parameter(torch.cat([learnt[:, :count], own], dim=1), requires_grad=False)
        patches.grid_size = grid
    return network


def properties(saved: SavedEncoder) -> dict[str, str]:
    """Return what the file says of the encoder: all in one, and by itself what a program needs to use it."""
    own = saved.description
    alone = {"image_size": own.crop, "resize": own.resize, "mean": own.mean, "std": own.std, "data": own.data}
    return {KEY: json.dumps(own.values()), **{key: json.dumps(value) for key, value in alone.items()}}


def write_network(network: nn.Module, saved: SavedEncoder, path: Path, said: Mapping[str, str]) -> None:
    """Write the network of an encoder, [B, C, S, S] -> [B, D]. Raises RuntimeError where torch cannot write it."""
    side = saved.description.crop
    two = torch.zeros(2, saved.description.rules.channels, side, side)  # torch takes one of one image as a constant
    network = network.eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        network(two)  # what is computed once for a size is computed now, and not while the network is read
        program: Any = torch.onnx.export(
            network,
            (two,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim(BATCH, min=1)},),
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    program.model.metadata_props.update(said)
    program.save(path, external_data=False)


def loaded(path: Path, computed: Collection[str] = ()) -> nn.Module:
    """Return the network that onnxruntime loads from a file, and the tensors of the file. Raises RuntimeError.

    `computed`: names of tensors that the network computes when it is built, and that no file of weights has, such as
    masks of windows. The ONNX file has them as constants.
    """
    import onnx
    import onnxruntime

    try:
        onnx.checker.check_model(path, full_check=True)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # those of onnxruntime have no class in common
        raise RuntimeError(str(error)) from error
    (images,) = session.get_inputs()
    if isinstance(images.shape[0], int):
        raise RuntimeError(f"it computes only {images.shape[0]} images at a time.")
    stored = [one for one in onnx.load(str(path)).graph.initializer if one.name not in computed]
    tensors = {one.name: torch.from_numpy(onnx.numpy_helper.to_array(one).copy()) for one in stored}

    def features(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {INPUT: x.numpy()})[0])

    return LoadedNetwork(features, tensors)
