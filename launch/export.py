"""The export of a run's encoder to a file that another library loads.

    python launch/export.py run=runs/NAME to=timm [branch=student] [checkpoint=latest] [out=FILE] [data.path=...]

to=timm          ResNets, transformers and all else that timm has: timm.create_model loads the file
   torchvision   ResNets and plain vision transformers
   safetensors   any encoder: dist_ssl.load_encoder loads the file

The file is checked before it is kept: all tensors must have their place in the library's network, and the library,
loading the file as the printed lines of Python do, must compute the same features of 16 images of the run's data, to
1e-5 of the largest in fp32. Otherwise nothing is written. Beside the file is a model card, FILE.md: recipe, data,
numbers, code. By default both are in runs/NAME/exports/.

branch=student, teacher (where the method has one) or ema (of a run with ema=0.999) is by default what the run's probe
measures. checkpoint=step_00012000 is another checkpoint than the newest. data.path= says where the run's data is now.
trust=true exports from a run whose folder others can change too. Exit code 0; 1 where the export failed its check; 2
where something in the command, the checkpoint or the data must be corrected.
"""

import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

from rich.console import Console

from dist_ssl.config.command import known_pair, run_command
from dist_ssl.config.instantiate import fit
from dist_ssl.errors import ConfigError, UserError
from dist_ssl.runtime.files import write_atomically
from launch import credentials, trust
from launch.handover import hand_over
from launch.run_dir import RunDir, write_for_owner_alone

if TYPE_CHECKING:
    from torch import Tensor

    from dist_ssl.saved_encoder import SavedEncoder
    from launch.export_targets import Target

FAILED_CODE = 1
BAR = 1e-5
"""Largest difference of a feature, as a share of the largest feature."""
IMAGES = 16
"""Images whose features are compared."""
TRIED = 64
"""Images that are tried, since some may be unreadable."""
PATH = "data.path"
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class ExportOptions:
    """The keys of the command; None stands for what the run has."""

    run: str
    to: Literal["timm", "torchvision", "safetensors"]
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
            key, text = known_pair(argument, names)
            if not text:
                raise ConfigError(f"{key} has no value.", f"Write {key}=...")
            values[names[key]] = fit(text, types[names[key]], key)
        for key in ("run", "to"):
            if key not in values:
                raise ConfigError(f"{key} is not given.", "Usage: python launch/export.py run=runs/NAME to=timm")
        if not str(values.get("out", SUFFIX)).endswith(SUFFIX):
            raise ConfigError(
                f"out={values['out']} does not end with {SUFFIX}, by which libraries know how to read a file.",
                f"Write out={values['out']}{SUFFIX}, say.",
            )
        return cls(**values)


def export(options: ExportOptions, run: RunDir, console: Console) -> int:
    """Export, check and write; return the exit code. Raises UserError."""
    from launch.checkpoint_encoder import of_checkpoint
    from launch.evaluation import checkpoint_of
    from launch.export_targets import TARGETS
    from launch.model_card import card

    checkpoint = checkpoint_of(run, options.checkpoint)
    config = {**run.config, "probe": run.last_config()["probe"]}  # a resume may change the probe
    saved = of_checkpoint(config, run.folder.resolve().name, checkpoint, options.branch)
    target, images = TARGETS[options.to](saved), sample(run, options.data_path, saved)
    name = f"{saved.description.step:08d}_{saved.description.branch}_{options.to}.safetensors"
    out = Path(options.out) if options.out else run.folder / "exports" / name
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        library = "dist_ssl" if options.to == "safetensors" else options.to
        problem, checked = keep_if_equal(saved, target, images, out, library)
        console.print(f"{checkpoint.name}, {saved.description.branch}: {checked}")
        if problem:
            console.print(f"Not written: {problem}")
            return FAILED_CODE
        write_atomically(Path(f"{out}.md"), card(run, saved, target.lines(out), checked))
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}.", "Name another file: out=...") from error
    console.print(f"Written to {out}, with its card {out.name}.md. To load it:")
    for line in target.lines(out):
        console.print(f"  {line}")
    return 0


def keep_if_equal(
    saved: "SavedEncoder", target: "Target", images: "Tensor", out: Path, library: str
) -> tuple[str, str]:
    """Write the file, load it by the library, and remove it again where it is not the same; return why and what.

    The first text is empty where the file was kept; the second says what was compared. Raises OSError.
    """
    from safetensors.torch import save

    from launch.export_targets import matched

    part = out.with_name(f".{os.getpid()}-{os.urandom(4).hex()}.{out.name}")  # nobody can have made a link of it
    try:
        with part.open("xb") as file:
            file.write(saved.content() if target.described else save(dict(target.renamed), {"format": "pt"}))
        try:
            model = target.load(part).eval()
        except (RuntimeError, UserError) as error:
            return f"{library} does not take the file: {str(error).strip()}", "the file was not loaded."
        same, count = matched(target, model)
        gap = difference(saved, model, images)
        checked = f"matched {same} of {count} tensors; "
        checked += f"{library} differs by {gap:.1e} of the largest feature of {len(images)} images (bar {BAR:g})."
        if same < count or not gap <= BAR:
            return f"{library} does not compute the same.", checked
        part.replace(out)
        return "", checked
    finally:
        part.unlink(missing_ok=True)


def difference(saved: "SavedEncoder", model: Any, images: "Tensor") -> float:
    """Return the largest difference of features, as a share of the largest feature. Raises UserError if none is."""
    import torch

    with torch.inference_mode():
        own, other = saved(images), model(images)
    if not own.isfinite().all():
        raise UserError("The features of the encoder are not finite: it has diverged.", "Name an earlier checkpoint.")
    if own.shape != other.shape:
        return float("inf")
    return float((own - other).abs().max() / own.abs().max().clamp_min(1e-30))


def sample(run: RunDir, path: str | None, saved: "SavedEncoder") -> "Tensor":
    """Return some images of the run's data as the encoder sees them, [N, 3, S, S]. Raises DataError."""
    from dist_ssl.config.instantiate import keywords
    from dist_ssl.data.data_keys import Data
    from dist_ssl.data.images.decode import decode
    from dist_ssl.data.images.unreadable import UnreadableError
    from dist_ssl.data.storage.read import Reader
    from dist_ssl.errors import DataError
    from dist_ssl.evaluate.features import subset

    now = credentials.restored(run.last_config())["data"]["path"]
    data = Data(**keywords(Data, {**run.config["data"], "path": path or now, "pyramid": None}, "data"))
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
    return saved.prepared(found)


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
