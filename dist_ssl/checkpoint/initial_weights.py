"""The weights that a run's encoder starts from where they are not random: `init.safetensors` in the run folder.

The launcher writes the file when the run is made, by the encoder's own names, and its hash into the run's config. Every
rank reads the whole file before the method is built, so a teacher begins as a copy of the same weights. The place that
the weights came from does not matter to the run any more.
"""

import hashlib
from pathlib import Path

from safetensors.torch import load
from torch import nn

from dist_ssl.errors import CheckpointError, reason_of
from dist_ssl.models.named_weights import load_weights
from dist_ssl.runtime.strange_files import read_regular


def verified(file: Path, sha256: str | None) -> bytes:
    """Return the content of a run's file. Raises CheckpointError where it is not the one that the run began with."""
    remedy = "Put back a copy of it, or start a new run."
    try:
        content = read_regular(file, file.stat().st_size)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file}, the initial weights of the run, cannot be read: {reason_of(error)}.", remedy
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise CheckpointError(
            f"{file} is not what the run began with: its sha256 is {found}, init_sha256 is {sha256}.", remedy
        )
    return content


def start_from(encoder: nn.Module, file: Path, sha256: str | None) -> None:
    """Give an encoder the weights in a run's file, all of them. Raises CheckpointError."""
    if wrong := load_weights(encoder, load(verified(file, sha256))):
        raise CheckpointError(
            f"{file} does not fit the encoder: '{wrong[0]}' is missing, unknown or of another shape.",
            "Use the versions of dist_ssl and timm that made the run.",
        )
