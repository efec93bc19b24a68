"""An encoder in a file of its own: a run writes one when it has finished, and other programs load it.

    import dist_ssl
    encoder = dist_ssl.load_encoder("runs/NAME")      # or a file that launch/export.py has written
    features = encoder.embed(["a.jpg", "b.jpg"])      # [2, D]

The file is safetensors: fp32 tensors by the encoder's own names, which are timm's for ResNets and transformers. Its
metadata says how to build the encoder, and what it expects of images. Nothing in it is executed: the metadata is JSON,
and it may name only classes of `dist_ssl.models`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dist_ssl.checkpoint.folder_names import ENCODER
from dist_ssl.config.bounds import MAX_PIXELS, MOST_CHANNELS
from dist_ssl.config.encoder_node import make_encoder
from dist_ssl.config.instantiate import keywords
from dist_ssl.config.meta_device import on_meta_device
from dist_ssl.data.images.centre_crop import cut_centre, write_centre
from dist_ssl.data.images.image_rules import ImageRules, Pixels, White, is_white, to_channels
from dist_ssl.data.images.photometric import normalise
from dist_ssl.data.images.pixel_numbers import white
from dist_ssl.data.images.unreadable import DAMAGED, UnreadableError
from dist_ssl.errors import CheckpointError, ConfigError, DataError, reason_of
from dist_ssl.methods.emp_ssl import Widened
from dist_ssl.models.branch import width_of
from dist_ssl.models.fixed_positions import Patches, stored_positions
from dist_ssl.models.named_weights import misfits, without_counters
from dist_ssl.models.size_bound import no_larger_than
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.files import write_atomically

KEY = "dist_ssl"
"""Key of the file's metadata."""
FORMAT = 1
POSITIONS = "pos_embed"
"""Tensor that is computed here and stored for other libraries: fixed positions of the patches of a view."""
MOST_CROP = 4096
MOST_AT_ONCE = 3 * 64 << 20
"""Numbers of pixels that are computed at a time: those of 64 RGB images of 1,024 px, 0.8 GB in single precision."""
"""Side of the centre of an image, px, at most."""
BATCH = 64
Picture = str | Path | bytes | Image.Image | Pixels
"""An image: a file, the bytes of one, a PIL image, or pixels [h, w, C] of the bits of the encoder's images."""


@dataclass(frozen=True)
class Description:
    """The metadata of a file: how to build its encoder, what images it expects, and where it comes from."""

    format: int
    encoder: dict[str, Any]
    """The `encoder` node of the run's config."""
    extra_layer: int | None
    """Width of a layer on top, which EMP-SSL adds; None without one."""
    resize: int
    """Length of an image's shorter side before its centre is cut out, px."""
    crop: int
    """Side of that centre, px."""
    mean: tuple[float, ...]
    """Mean of every channel, for values in [0, 1]; as many as the images have channels."""
    std: tuple[float, ...]
    branch: str
    step: int
    method: str
    run: str
    data: str | None
    """Identity of the data set."""
    range: White = None
    """The value that is white in deep pixels, see `ImageRules`."""
    alpha: Literal["white", "black", "drop"] = "white"
    """The background of transparent images, see `ImageRules`."""
    bits: Literal[8, 16] = 8
    """Bits of the numbers of pixels, see `ImageRules`."""
    finetuned: str | None = None
    """The training with labels that followed the pre-training, for people; None without any."""

    @property
    def rules(self) -> ImageRules:
        """Return how the bytes of an image become pixels."""
        return ImageRules(range=self.range, alpha=self.alpha, channels=len(self.mean), bits=self.bits)

    def values(self) -> dict[str, Any]:
        """Return the fields; those that older versions do not know only where they have something to say."""
        usual = (("finetuned", None), ("bits", 8))
        return {key: value for key, value in asdict(self).items() if (key, value) not in usual}

    def check(self) -> None:
        """Raise ConfigError where a value cannot be that of an encoder."""
        sides = 0 < self.crop <= self.resize and self.resize**2 <= MAX_PIXELS and self.crop <= MOST_CROP
        layer = self.extra_layer is None or self.extra_layer > 0
        colours = 0 < len(self.mean) == len(self.std) <= MOST_CHANNELS and min(self.std) > 0
        if not (sides and layer and colours and is_white(self.range, len(self.mean))):
            raise ConfigError(
                f"resize={self.resize} crop={self.crop} mean={list(self.mean)} std={list(self.std)} range={self.range} "
                f"extra_layer={self.extra_layer} describe no encoder.",
                "Export it again: python launch/export.py run=...",
            )


class SavedEncoder(nn.Module):
    """An encoder for use: frozen, in evaluation mode, fp32. Move it to a GPU as any module: `encoder.to("cuda")`.

    It stays in evaluation mode also within a module that is trained; fine-tune `encoder.encoder`, the plain network.
    """

    def __init__(self, encoder: nn.Module, description: Description) -> None:
        super().__init__()
        self.encoder = encoder.float().requires_grad_(False)
        self.description = description
        self.num_features = width_of(encoder)
        self.eval()

    def train(self, mode: bool = True) -> "SavedEncoder":
        """Stay in evaluation mode: features, and the statistics of batch norms, do not depend on the batch."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of normalised images, [B, C, S, S] -> [B, D]."""
        features: Tensor = self.encoder(x)
        return features

    @torch.inference_mode()
    def embed(self, images: Picture | Iterable[Picture], batch: int = BATCH) -> Tensor:
        """Return the features of images, [N, D] fp32 on the host; they are prepared as in `launch/evaluate.py`.

        `images`: files, bytes of files, PIL images or pixels, [h, w, C] uint8; `batch`: images at a time. Raises
        DataError where one cannot be read, ConfigError where `batch` is less than 1.
        """
        if batch < 1:
            raise ConfigError(f"batch={batch} is not possible: it must be at least 1.", "Leave it out.")
        batch = self.at_once(batch)
        single = isinstance(images, str | bytes | Path | Image.Image) or getattr(images, "ndim", 0) == 3
        listed: list[Any] = [images] if single else list(images)  # type: ignore[arg-type]
        own = next(self.parameters())
        parts = [
            self(self.prepared(listed[first : first + batch]).to(own.device, own.dtype)).float().cpu()
            for first in range(0, len(listed), batch)
        ]
        return torch.cat(parts) if parts else torch.empty(0, self.num_features)

    def at_once(self, batch: int) -> int:
        """Return how many images are computed at a time where `batch` is asked for: fewer if they are very large."""
        return max(1, min(batch, MOST_AT_ONCE // (self.description.crop**2 * len(self.description.mean))))

    def prepared(self, images: Sequence[Picture]) -> Tensor:
        """Return the normalised centres of images, [N, C, S, S] fp32. Raises DataError where one cannot be read."""
        own = self.description
        pixels = np.empty((len(images), own.crop, own.crop, own.rules.channels), dtype=own.rules.dtype)
        for number, image in enumerate(images):
            try:
                centre(image, own.resize, own.rules, pixels[number])
            except UnreadableError as error:
                name = f" ({image})" if isinstance(image, str | Path) else ""
                raise DataError(f"Image {number}{name} cannot be read: {error}.", "Leave it out.") from error
        return self.normalised(torch.from_numpy(pixels))

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return what the encoder takes, [N, C, S, S] fp32, of centres of images, [N, S, S, C] of 8 or 16 bits."""
        return normalise(
            pixels.permute(0, 3, 1, 2).float() / white(pixels), self.description.mean, self.description.std
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the file by their names; where positions are fixed, they too, for a view of `crop` px.

        Counters of batch norms are left out: no evaluation uses them.
        """
        found = {name: x.contiguous() for name, x in without_counters(self.encoder.state_dict()).items()}
        patches = getattr(self.encoder, "patch_embed", None)
        if isinstance(patches, Patches):
            found[POSITIONS] = stored_positions(self.description.crop // patches.proj.multiple_of, patches.width)
        return found

    def content(self) -> bytes:
        """Return the bytes of the file."""
        return save(self.tensors(), {KEY: json.dumps(self.description.values()), "format": "pt"})

    def write(self, path: Path) -> None:
        """Write the file, at once as a whole. Raises OSError."""
        write_atomically(path, self.content(), sync=True)


def centre(image: Picture, resize: int, rules: ImageRules, out: Pixels) -> None:
    """Write the centre of an image into `out` [crop, crop, C]. Raises UnreadableError, DataError."""
    if isinstance(image, str | Path):
        path = Path(image)
        try:
            image = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {reason_of(error)}.", "Correct its name.") from error
    if isinstance(image, bytes):
        cut_centre(image, resize, rules, out)
        return
    if isinstance(image, Image.Image):
        image = pixels_of(image, rules)
    if not isinstance(image, np.ndarray):
        kind = type(image).__name__
        raise DataError(f"An object of type {kind} is no image.", "Give a file, bytes, a PIL image or pixels.")
    if image.dtype != rules.dtype or image.ndim != 3 or image.shape[2] != rules.channels or 0 in image.shape:
        raise DataError(
            f"An array of {image.dtype} and shape {list(image.shape)} is no image.",
            f"Give pixels [h, w, {rules.channels}] of {rules.dtype}.",
        )
    write_centre(image if image.flags.writeable else image.copy(), resize, out)  # torch warns of others


def pixels_of(image: Image.Image, rules: ImageRules) -> Pixels:
    """Return the upright pixels [h, w, C] of a PIL image, which may not have been loaded. Raises UnreadableError."""
    deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
    try:
        return to_channels(ImageOps.exif_transpose(image), b"", rules if deep else replace(rules, range=None))
    except UnreadableError:
        raise
    except (OSError, ValueError, SyntaxError, ArithmeticError) as error:  # a truncated file, an image without pixels
        raise UnreadableError(DAMAGED, f"{type(error).__name__}: {error}") from error


def load_encoder(path: str | Path) -> SavedEncoder:
    """Return the encoder of a finished run, given by its folder, or of a file.

    Raises DataError, ConfigError, and CheckpointError where the file does not fit the encoder that it describes.
    """
    folder = Path(path).is_dir()
    file = Path(path) / ENCODER if folder else Path(path)
    if not file.is_file():
        command = f"python launch/export.py run={path if folder else '...'} to=safetensors"
        raise DataError(f"{file} does not exist.", f"A run writes it when it has finished; before: {command}")
    try:
        with safe_open(file, "pt") as opened:
            text = (opened.metadata() or {}).get(KEY)
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        values = None if text is None else jsonl.parsed(text)
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{file} is damaged: {error}.", "Export it again.") from error
    description = description_of(values, str(file))
    return filled(description, state, str(file))


def description_of(values: Any, origin: str) -> Description:
    """Return the description in a file's metadata, given as plain values. `origin`: the file, for messages.

    Raises DataError where there is none, ConfigError where it is not one that this version reads.
    """
    if not isinstance(values, dict):
        raise DataError(
            f"{origin} does not say how its encoder is built.", "Load it with the library that it was exported to."
        )
    if values.get("format") != FORMAT:
        raise ConfigError(
            f"{origin} has format {values.get('format')}: this version reads {FORMAT}.",
            "Load it with the version of dist_ssl that wrote it, or export it again: python launch/export.py run=...",
        )
    description = Description(**keywords(Description, values, KEY))
    description.check()
    return description


def filled(description: Description, state: Mapping[str, Tensor], origin: str) -> SavedEncoder:
    """Return the described encoder with these weights. `origin`: where they come from, for messages.

    Raises ConfigError, and CheckpointError where names or shapes differ.
    """
    values = {"encoder": description.encoder, "extra_layer": description.extra_layer}
    with no_larger_than(state, values, origin), on_meta_device():
        encoder = _untrained(description)
    _fitting(encoder, state, origin)
    encoder = _untrained(description)
    encoder.load_state_dict(_fitting(encoder, state, origin), strict=False)  # what is missing are the counters
    return SavedEncoder(encoder, description)


def _untrained(description: Description) -> nn.Module:
    encoder = make_encoder(description.encoder, len(description.mean))
    return encoder if description.extra_layer is None else Widened(encoder, description.extra_layer)


def _fitting(encoder: nn.Module, state: Mapping[str, Tensor], origin: str) -> Mapping[str, Tensor]:
    """Return the weights that an encoder loads. Raises CheckpointError where names or shapes differ."""
    if isinstance(getattr(encoder, "patch_embed", None), Patches):
        state = {name: x for name, x in state.items() if name != POSITIONS}  # computed for every grid
    own = without_counters(encoder.state_dict())
    if wrong := misfits(own, state):
        raise CheckpointError(
            f"{origin} matches {len(own.keys() - {*wrong})} of {len(own)} tensors: '{wrong[0]}' is missing, unknown "
            "or of another shape.",
            "Use the encoder that it was trained with.",
        )
    return state
