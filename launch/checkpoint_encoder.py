"""The encoder of a checkpoint, by itself: read from the files of any engine and any number of ranks.

A run that has finished writes it to `runs/NAME/encoder.safetensors`; `launch/export.py` writes any other.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dist_ssl.checkpoint.damage import DamagedError
from dist_ssl.checkpoint.folder_names import INITIAL
from dist_ssl.checkpoint.index import progress_of, read, read_table
from dist_ssl.config.run_keys import method_of
from dist_ssl.engines.average import EMA
from dist_ssl.errors import CheckpointError
from dist_ssl.parts import probing
from dist_ssl.protocols.engine import Branch
from dist_ssl.saved_encoder import FORMAT, Description, SavedEncoder, filled

EXTRA_LAYER = "pre.0.weight"
"""Tensor of the layer that EMP-SSL adds to an encoder."""
FINETUNED = "finetuned"
"""Key of the metadata of initial weights that says which training with labels they have seen."""
PLACE = re.compile(r"model/(ema\.)?(?:[\w.]*\.)?(student|teacher)\.encoder\.(.+)")
"""Canonical names of tensors of encoders."""


def of_checkpoint(config: Mapping[str, Any], run: str, checkpoint: Path, branch: Branch | None = None) -> SavedEncoder:
    """Return the encoder of a checkpoint of a run. `branch`: by default the one that the run's probe measures.

    Raises CheckpointError where the checkpoint is damaged, or has no such branch; ConfigError.
    """
    node = probing(config)
    branch = branch or node.branch
    try:
        progress = progress_of(read_table(checkpoint).progress)
        state = read(checkpoint, lambda name, _: None if PLACE.fullmatch(name) else range(0))[1]
    except DamagedError as error:
        raise CheckpointError(f"{checkpoint} is damaged ({error}).", "Name another one: checkpoint=...") from error
    found = {name: value.float() for name, value in of_branch(state, branch).items()}
    if not found:
        raise CheckpointError(f"{checkpoint} has no weights of branch={branch}.", "Use branch=student.")
    # as for probes and evaluations: the side of the last epoch, which a checkpoint of an earlier one may not have yet
    resize, crop = node.sides(config["schedule"].get("image_size", progress.plans[-1].image_size))
    extra = found[EXTRA_LAYER].shape[0] if EXTRA_LAYER in found else None
    data = config["data"]
    description = Description(
        format=FORMAT,
        encoder=dict(config["encoder"]),
        extra_layer=extra,
        resize=resize,
        crop=crop,
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        branch=branch,
        step=progress.step,
        method=method_of(config),
        run=run,
        data=data["identity"],
        range=data.get("range"),
        alpha=data.get("alpha", "drop"),  # as before there was the key
        bits=data.get("bits", 8),
        finetuned=finetuned_before(checkpoint.parent.parent / INITIAL),
    )
    return filled(description, found, f"{checkpoint}, branch={branch},")


def finetuned_before(initial: Path) -> str | None:
    """Return the training with labels that a run's initial weights had seen, for people; None without any."""
    if not initial.is_file():
        return None
    try:
        with safe_open(initial, "pt") as file:
            mark = (file.metadata() or {}).get(FINETUNED)
    except SafetensorError as error:
        raise CheckpointError(f"{initial} is damaged ({error}).", "Put a copy of it back.") from error
    return f"{mark}, before this pre-training" if mark else None


def of_branch(state: Mapping[str, Any], branch: Branch) -> dict[str, Tensor]:
    """Return the tensors of a branch's encoder by the encoder's own names.

    An average of weights has no buffers that are not averaged: those are the student's.
    """
    found: dict[str, Tensor] = {}
    averaged: dict[str, Tensor] = {}
    for name, value in state.items():
        place = PLACE.fullmatch(name)
        if place and place[2] == ("teacher" if branch == "teacher" else "student"):
            (averaged if place[1] == EMA else found)[place[3]] = value
    if branch != "ema":
        return found
    return {**found, **averaged} if averaged else {}
