"""How checkpoints are called, and the files in their folder that others look at. This module does not import torch."""

import re

LATEST, KEPT = "LATEST", "KEPT"
"""Name of the file that holds the newest checkpoint's name, and name of the empty file in a permanent checkpoint.

LATEST is for people, who read the name, and for its modification time, the time of the last publication: the Slurm
epilogue (has this attempt saved?), `launch/status.py` and the metric `checkpoint_age_seconds` read that. A restore
lists the folders.
"""
INITIAL = "init.safetensors"
"""File in the run folder with the weights that the encoder starts from, where they are not random."""
PUBLISHED = re.compile(r"step_(\d{8,})")


def name_of(step: int) -> str:
    """Return the name of the folder of a step's checkpoint."""
    return f"step_{step:08d}"
