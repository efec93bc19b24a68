"""The export of a run's encoder to a file, or a folder, that another library loads.

Examples:

    python launch/export.py run=runs/NAME to=timm
    python launch/export.py run=runs/NAME to=safetensors branch=teacher checkpoint=step_00012000 out=teacher.safetensors

Keys:

    to=timm             ResNets, transformers and all else that timm has: timm.create_model loads the file
       torchvision      ResNets and plain vision transformers
       huggingface      the same: a folder that transformers.AutoModel.from_pretrained loads
       onnx             any encoder but a transformer of EMP-SSL: one file that onnxruntime and others compute
       safetensors      any encoder: dist_ssl.load_encoder loads the file
    branch=student      or teacher (where the method has one), ema (of a run with ema=0.999); by default what the run's
                        probe measures
    checkpoint=latest   or step_00012000, for example
    out=FILE            by default in runs/NAME/exports/
    data.path=PATH      where the run's data is now; also one place of several, or other data
    trust=true          export from a run whose folder others can change too

The file is checked before it is kept: all tensors must have their place in the library's network, and the library,
loading the file as the printed lines of Python do, must compute the same features of 16 images of the run's data, to
1e-5 of the largest in fp32, and of one image by itself. Otherwise nothing is written. Beside the file is a model card,
FILE.md (in a folder, README.md): recipe, data, numbers, code.

Exit codes: 0; 1 the export failed its check; 2 something in the command, the checkpoint or the data must be corrected;
130 interrupted.
"""

import os
import sys
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from rich.console import Console

from dist_ssl.config.command import filled_pair, run_command
from dist_ssl.config.instantiate import fit
from dist_ssl.config.long_work import LongWork
from dist_ssl.errors import ConfigError, cannot_be_written
from dist_ssl.runtime.files import write_for_owner_alone
from launch import credentials, trust
from launch.handover import hand_over
from launch.launch_keys import listed
from launch.run_dir import RunDir, of_a_run

if TYPE_CHECKING:
    from launch.export_target import Target

FAILED_CODE = 1
IMAGES = 16
"""Images whose features are compared."""
TRIED = 64
"""Images that are tried, since some may be unreadable."""
PATH = "data.path"
SUFFIX = ".safetensors"
EXPORTS = "exports"
"""Folder of a run for its exports. A file is written over an earlier one there, and over one that has a card."""
SUFFIXES = {"huggingface": "", "onnx": ".onnx"}
"""Endings of names of what is written, where it is no safetensors file; a folder has none."""


@dataclass(frozen=True)
class ExportOptions:
    """The keys of the command; None stands for what the run has."""

    run: str
    to: Literal["timm", "torchvision", "safetensors", "huggingface", "onnx"]
    branch: Literal["student", "teacher", "ema"] | None = None
    checkpoint: str = "latest"
    out: str | None = None
    data_path: str | None = None

    @classmethod
    def parse(cls, arguments: list[str]) -> "ExportOptions":
        """Return the options of a command line. Raises ConfigError."""
        types = get_type_hints(cls)
        names = {PATH if field.name == "data_path" else field.name: field.name for field in fields(cls)}
        values: dict[str, Any] = {}
        for argument in arguments:
            key, text = filled_pair(argument, names)
            values[names[key]] = fit(text, types[names[key]], key)
        for key in ("run", "to"):
            if key not in values:
                raise ConfigError(f"{key} is not given.", "Usage: python launch/export.py run=runs/NAME to=timm")
        options = cls(**values)
        if options.out is not None and not options.out.endswith(options.suffix):
            raise ConfigError(
                f"out={options.out} does not end with {options.suffix}, by which libraries know how to read a file.",
                f"Write out={options.out}{options.suffix}, say.",
            )
        return options

    @property
    def suffix(self) -> str:
        """Return the ending of the name of what is written, empty for a folder."""
        return SUFFIXES.get(self.to, SUFFIX)


def export(options: ExportOptions, run: RunDir, console: Console) -> int:
    """Export, check and write; return the exit code. Raises UserError."""
    from launch.checkpoint_encoder import of_checkpoint
    from launch.evaluation import checkpoint_of
    from launch.export_check import keep_if_equal
    from launch.export_targets import TARGETS
    from launch.model_card import card, recipe

    checkpoint = checkpoint_of(run, options.checkpoint)
    config = {**run.config, "probe": run.last_config()["probe"]}  # a resume may change the probe
    saved = of_checkpoint(config, run.folder.resolve().name, checkpoint, options.branch)
    target = replace(TARGETS[options.to](saved), recipe=recipe(config))
    name = f"{saved.description.step:08d}_{saved.description.branch}_{options.to}{options.suffix}"
    out = Path(options.out) if options.out else run.folder / EXPORTS / name
    refuse_full(out, target)
    files = sample(run, options.data_path)
    images = saved.prepared(files)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        describe = partial(card, run, saved, target.lines(out))
        with LongWork(console) as work:
            work.add_task(f"writing for {options.to}, loading, comparing", total=None)
            problem, checked = keep_if_equal(saved, target, images, out, describe, files)
    except OSError as error:
        raise cannot_be_written(out, error, "Name another file: out=...") from error
    console.print(f"{checkpoint.name}, {saved.description.branch}: {checked}")
    if problem:
        console.print(f"Not written: {problem}")
        return FAILED_CODE
    console.print(f"Written to {out}, with its card {target.card(out).name}. To load it:")
    for line in target.lines(out):
        console.print(f"  {line}")
    return 0


def refuse_full(out: Path, target: "Target") -> None:
    """Raise ConfigError where something else would be lost: by a folder, or by a file among those of a run."""
    if not out.name or out.name == "..":
        raise ConfigError(f"out={out} has no name of its own.", "Name a new file or folder: out=NAME")
    if not target.folder:
        if out.is_dir():
            raise ConfigError(f"out={out} is a folder.", f"Name a file in it: out={out / 'encoder'}")
        run = run_around(out) if os.path.lexists(out) else None
        if run and out.parent.resolve() != run / EXPORTS and not target.card(out).exists():
            raise ConfigError(f"{out} is a file of the run {run}.", f"Name another file, or one in {EXPORTS}/: out=...")
    elif os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out} is there already, and a folder is not written over.", "Name a new folder: out=...")


def run_around(out: Path) -> Path | None:
    """Return the run folder that a file is in, at any depth; None where it is in none."""
    inner = out.parent.resolve()
    return next((folder for folder in (inner, *inner.parents) if of_a_run(folder / "config.yaml")), None)


def sample(run: RunDir, path: str | None) -> list[bytes]:
    """Return the contents of some image files of the run's data, or of other data at `path`. Raises DataError."""
    from dist_ssl.config.instantiate import keywords
    from dist_ssl.data.data_keys import Data
    from dist_ssl.data.images.decode import decode
    from dist_ssl.data.images.unreadable import UnreadableError
    from dist_ssl.data.storage.read import Reader
    from dist_ssl.errors import DataError
    from dist_ssl.evaluate.features import subset

    given = {"path": listed(path)} if path else run.last_config()["data"]
    place: dict[str, Any] = {"path": credentials.restored({"data": given})["data"]["path"]}
    if path:  # of the run's mixture one place may be given, or other data: some images are enough
        place |= {"weights": None, "identity": None, "manifest": None}
    data = Data(**keywords(Data, {**run.config["data"], **place, "pyramid": None}, "data"))
    try:
        access = data.access(1)
        split = data.open(access).split(data.val or data.train)
        found: list[bytes] = []
        with Reader(split, access, scattered=True) as reader:
            for number in subset(len(split.samples), TRIED, 0):
                content = reader.read(int(number))
                try:
                    decode(content, 1, data.rules)
                except UnreadableError:
                    continue
                found.append(content)
                if len(found) == IMAGES:
                    break
    except DataError as error:
        raise DataError(error.problem, f"{error.remedy} Say where the run's data is now: data.path=...") from error
    if not found:
        raise DataError(
            f"None of {TRIED} images of '{split.name}' can be read.", "Export from other data: data.path=..."
        )
    return found


def run(arguments: list[str], console: Console) -> int:
    """Export as the arguments say; return the exit code. Raises UserError."""
    trusted, others = trust.parse(credentials.set_aside(arguments))
    options = ExportOptions.parse(others)
    found = RunDir.open(Path(options.run))
    trust.check(found, trusted)
    hand_over(found, arguments, console, "export.py")
    return export(options, found, console)


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    write_for_owner_alone()
    return run_command(run, arguments, interrupted="Interrupted: nothing was written.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
