"""An encoder as transformers has it: a folder with its configuration, weights and preparation of images.

The names of the tensors are those of the files on its hub, which all versions read. transformers draws at random what a
file lacks and says so in a warning only; here that is an error.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor, nn

from dist_ssl.data.images.file_formats import FORMATS
from dist_ssl.errors import ConfigError
from dist_ssl.models.named_weights import COUNTERS
from dist_ssl.runtime.files import write_atomically
from dist_ssl.saved_encoder import Description, SavedEncoder
from launch.export_target import LoadedNetwork, Target, is_resnet, needs, plain_sizes, refuse_channels, with_path
from launch.weight_names import HUGGINGFACE_RESNET, in_huggingface_vit_names, renamed

LIBRARY = "transformers"
CONFIG, WEIGHTS, PREPARATION = "config.json", "model.safetensors", "preprocessor_config.json"
"""Names by which the library finds them in a folder."""
BILINEAR = 2
"""PIL's number of the filter with which images are resized."""


def of_huggingface(saved: SavedEncoder) -> Target:
    """Return the encoder as transformers has it. Raises ConfigError where transformers has no such network."""
    refuse_channels(saved, "huggingface")
    own, resnet = saved.tensors(), is_resnet(saved)
    values = resnet_values(saved) if resnet else transformer_values(saved)
    try:
        import transformers
    except ImportError as error:
        raise needs("huggingface", LIBRARY) from error
    config = (transformers.ResNetConfig if resnet else transformers.ViTConfig)(**values)
    config.architectures = ["ResNetModel" if resnet else "ViTModel"]
    options = {} if resnet else {"add_pooling_layer": False}

    def write(target: Target, folder: Path) -> None:
        write_atomically(folder / CONFIG, config.to_json_string())
        tensors = with_counters(target.renamed) if resnet else dict(target.renamed)
        write_atomically(folder / WEIGHTS, save(tensors, {"format": "pt"}))
        write_atomically(folder / PREPARATION, json.dumps(preparation(saved.description), indent=2) + "\n")

    def load(folder: Path) -> nn.Module:
        model = loaded(folder, **options)
        return LoadedNetwork(pooled(model) if resnet else class_token(model), written_again(model, folder))

    given = "".join(f", {key}={value}" for key, value in options.items())
    features = "pooler_output.flatten(1)" if resnet else "last_hidden_state[:, 0]"
    lines = (
        f"import {LIBRARY}",
        f"model = {LIBRARY}.AutoModel.from_pretrained({{path!r}}{given})",
        f"features = model(images).{features}",
    )
    tensors = renamed(own, HUGGINGFACE_RESNET) if resnet else in_huggingface_vit_names(own)
    heading = f"---\nlibrary_name: {LIBRARY}\npipeline_tag: image-feature-extraction\n---\n\n"
    return Target(LIBRARY, tensors, False, load, with_path(lines), write, True, heading=heading, prepare=prepared)


def loaded(folder: Path, **options: Any) -> Any:
    """Return the network that transformers builds from a folder. Raises RuntimeError where a tensor has no place."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model, found = transformers.AutoModel.from_pretrained(
        folder, local_files_only=True, output_loading_info=True, **options
    )
    for kind in ("missing", "unexpected", "mismatched"):
        if names := sorted(map(str, found[f"{kind}_keys"])):
            raise RuntimeError(f"{len(names)} tensors are {kind}, such as {names[0]}.")
    return model


def prepared(folder: Path, files: Sequence[bytes]) -> Tensor:
    """Return images as the library prepares them, by what a folder says of it, [N, 3, S, S]. Raises many errors."""
    import transformers

    prepare = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    pictures = [Image.open(io.BytesIO(content), formats=FORMATS) for content in files]
    found: Tensor = prepare(pictures, return_tensors="pt")["pixel_values"]
    return found


def written_again(model: Any, inside: Path) -> dict[str, Tensor]:
    """Return the tensors of a network as the library writes them: it may have other names for them in memory."""
    with TemporaryDirectory(dir=inside) as folder:
        model.save_pretrained(folder)
        return {name: value for file in Path(folder).glob("*.safetensors") for name, value in load_file(file).items()}


def pooled(model: Any) -> Callable[[Tensor], Tensor]:
    """Return the function that computes the features of a ResNet, [B, 3, S, S] -> [B, D]."""
    return lambda x: model(x).pooler_output.flatten(1)


def class_token(model: Any) -> Callable[[Tensor], Tensor]:
    """Return the function that computes the features of a transformer, [B, 3, S, S] -> [B, D]."""
    return lambda x: model(x).last_hidden_state[:, 0]


def resnet_values(saved: SavedEncoder) -> dict[str, Any]:
    """Return the configuration of a ResNet. Raises ConfigError where its first layers are those for small images."""
    own: Any = saved.encoder
    if saved.description.encoder.get("stem") == "small":
        raise ConfigError(
            f"ResNets of {LIBRARY} begin with a 7x7 convolution of stride 2; encoder.stem=small has another beginning.",
            "Use to=timm, to=torchvision or to=onnx.",
        )
    stages = [own.layer1, own.layer2, own.layer3, own.layer4]
    wide = hasattr(own.layer1[0], "conv3")
    last = [(stage[-1].conv3 if wide else stage[-1].conv2).out_channels for stage in stages]
    return {
        "embedding_size": own.conv1.out_channels,
        "hidden_sizes": last,
        "depths": [len(stage) for stage in stages],
        "layer_type": "bottleneck" if wide else "basic",
    }


def transformer_values(saved: SavedEncoder) -> dict[str, Any]:
    """Return the configuration of a plain transformer. Raises ConfigError where it is none."""
    own: Any = saved.encoder
    sizes = plain_sizes(saved, LIBRARY)
    return {
        "image_size": sizes.image,
        "patch_size": sizes.patch,
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.hidden,
        "layer_norm_eps": own.norm.eps,
        "qkv_bias": own.blocks[0].attn.qkv.bias is not None,
    }


def with_counters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors and the counters of batch norms, which the library expects and no evaluation uses."""
    norms = [name.rpartition(".")[0] for name in tensors if name.endswith(".running_mean")]
    return {**tensors, **{f"{norm}.{COUNTERS}": torch.zeros((), dtype=torch.int64) for norm in norms}}


def preparation(own: Description) -> dict[str, Any]:
    """Return how the library prepares images: the shorter side resized, the centre cut out, normalised."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": own.resize},
        "resample": BILINEAR,
        "do_center_crop": True,
        "crop_size": {"height": own.crop, "width": own.crop},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(own.mean),
        "image_std": list(own.std),
    }
