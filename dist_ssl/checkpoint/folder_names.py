"""How checkpoints are called, the files in their folder that others look at, and the files of encoders in a run folder.

This module does not import torch.
"""

import re
from pathlib import Path

LATEST, KEPT = "LATEST", "KEPT"
"""Name of the file that holds the newest checkpoint's name, and name of the empty file in a permanent checkpoint.

LATEST is for people, who read the name, and for its modification time, the time of the last publication: the Slurm
epilogue (has this attempt saved?), `launch/status.py` and the metric `checkpoint_age_seconds` read that. A restore
lists the folders.
"""
INITIAL = "init.safetensors"
"""File in the run folder with the weights that the encoder starts from, where they are not random."""
ENCODER = "encoder.safetensors"
"""File with the encoder of a finished run, in its folder, and with one that was fine-tuned."""
PUBLISHED = re.compile(r"step_(\d{8,})")


def published(folder: Path) -> dict[int, Path]:
    """Return the folders of the checkpoints in a folder by their steps, ascending.

    A person's own (`step_00000100_good`, or a file) are none.
    """
    named = {int(name[1]): path for path in folder.glob("step_*") if (name := PUBLISHED.fullmatch(path.name))}
    return {step: named[step] for step in sorted(named) if named[step].is_dir()}


def name_of(step: int) -> str:
    """Return the name of the folder of a step's checkpoint."""
    return f"step_{step:08d}"
