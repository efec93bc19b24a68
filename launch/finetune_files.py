"""The files of a fine-tuning: the encoder, the classifier and the results, in a folder that was empty before.

Training may have taken hours when they are written: where the folder cannot take them by then, they go elsewhere.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors.torch import save
from torch import nn

from dist_ssl.checkpoint.folder_names import ENCODER
from dist_ssl.config.command import say
from dist_ssl.errors import ConfigError, cannot_be_written, reason_of
from dist_ssl.runtime.files import write_atomically
from dist_ssl.saved_encoder import SavedEncoder

HEAD, RESULTS = "head.safetensors", "results.json"


def prepare(out: Path) -> None:
    """Make the folder of the results. Raises ConfigError where it holds anything, UserError where it cannot be made."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise ConfigError(f"out={out} holds files already.", "Name a new folder: out=...")
        write_atomically(out / RESULTS, "{}\n")
        (out / RESULTS).unlink()
    except OSError as error:
        raise cannot_be_written(f"out={out}", error, "Name another out=...") from error


def write(out: Path, saved: SavedEncoder, head: nn.Linear, classes: list[str], results: dict[str, Any]) -> None:
    """Write encoder, classifier and results.

    Raises UserError where the folder cannot be written, after writing them to a new temporary folder, which it names.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
    files = {
        ENCODER: saved.cpu().content(),
        HEAD: save(tensors, {"classes": json.dumps(classes)}),
        RESULTS: json.dumps(results, indent=1).encode() + b"\n",
    }
    try:
        write_all(out, files)
    except OSError as error:
        raise cannot_be_written(f"out={out}", error, _rescued(files)) from error


def write_all(folder: Path, files: dict[str, bytes]) -> None:
    """Write files by their names, each at once as a whole. Raises OSError."""
    for name, content in files.items():
        write_atomically(folder / name, content, sync=True)


def _rescued(files: dict[str, bytes]) -> str:
    """Write the files to a new folder that only this user can read; return where they are, for people."""
    try:
        folder = Path(tempfile.mkdtemp(prefix="finetuned-"))
        write_all(folder, files)
    except OSError as error:
        return f"No temporary folder can take the files either, and they are lost: {reason_of(error)}."
    return f"The files are in {folder} of this machine instead: move them to a place that lasts."


def say_how_to_use(out: Path, console: Console) -> None:
    """Print the lines of Python that classify an image."""
    say(console, f"Written to {out}. To use it:")
    say(console, "  import json, dist_ssl; from safetensors import safe_open; from safetensors.torch import load_file")
    say(console, f"  encoder, head = dist_ssl.load_encoder({str(out)!r}), load_file({str(out / HEAD)!r})")
    say(console, "  labels = (encoder.embed(['a.jpg']) @ head['weight'].T + head['bias']).argmax(1)")
    say(console, f"  names = json.loads(safe_open({str(out / HEAD)!r}, 'pt').metadata()['classes'])  # by label")
