"""The evaluation of a run's features, after its training or during it.

    python launch/evaluate.py run=runs/NAME [protocol=knn] [checkpoint=latest] [branch=student] [data.path=...]

protocol=knn             weighted kNN (k=20, temperature=0.07): the training split votes on the held-out one
         linear          a linear classifier of the training split's features, tested on the held-out one
         retrieval       mean average precision: a held-out image finds the others of its class
         bag_of_patches  kNN on the mean features of patches=128 views of an image, drawn as in training: 128 times the
                         cost of knn
         unlabelled      effective rank, uniformity, alignment: without labels

checkpoint=step_00012000 is another checkpoint than the newest. bank=N and queries=N are the most images of the
training and of the held-out split, which by default are used whole. resize=256 crop=224 is the view of an image: its
shorter side in px, and the side of the centre that is cut out. What is not given is as the run's probe has it.
threads=N are those of torch; data.val=NAME is another held-out split. One process computes, on a GPU if there is one.

The numbers are printed, and written to runs/NAME/evaluations/STEP_BRANCH_PROTOCOL.json, whose name also has the
settings that were given. Of the linear protocol report `linear accuracy`, that of the last epoch: the best epoch is
chosen on the held-out split, and the sweep is on a tenth of the training split. Exit code 0; 2 where something in the
command, in the checkpoint or in the data must be corrected.
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml
from rich.console import Console
from rich.table import Table

from dist_ssl.config.instantiate import fit
from dist_ssl.errors import EXIT_CODE, ConfigError, DataError, UserError, nearest
from dist_ssl.runtime.files import write_atomically
from launch import credentials
from launch.handover import hand_over
from launch.run_dir import AttemptDir, RunDir

INTERRUPTED_CODE = 130
ALL = 1 << 62
"""More images than any split has."""
MOST = {"patches": 4096, "threads": 4096}
"""Largest value of a key; draws are keyed by at most so many views of an image."""
DATA = ("data.path", "data.val")
VOTING = ("knn", "bag_of_patches")
USED_BY = {
    "bank": (*VOTING, "linear"),
    "k": VOTING,
    "temperature": VOTING,
    "patches": ("bag_of_patches",),
}
"""Protocols that use a key; every protocol uses the others."""


@dataclass(frozen=True)
class Options:
    """The keys of the command; None stands for what the run's probe has, or for all images."""

    run: str
    protocol: Literal["knn", "linear", "retrieval", "bag_of_patches", "unlabelled"] = "knn"
    checkpoint: str = "latest"
    branch: Literal["student", "teacher"] | None = None
    bank: int | None = None
    queries: int | None = None
    k: int | None = None
    temperature: float | None = None
    resize: int | None = None
    crop: int | None = None
    patches: int = 128
    threads: int | None = None

    @classmethod
    def parse(cls, arguments: list[str]) -> tuple["Options", dict[str, str]]:
        """Return the options, and the keys of the data. Raises ConfigError."""
        names, types = [field.name for field in fields(cls)], get_type_hints(cls)
        values: dict[str, Any] = {}
        data: dict[str, str] = {}
        for argument in arguments:
            key, equals, text = argument.partition("=")
            if key not in (*names, *DATA):
                raise ConfigError(f"There is no key '{key}'.", nearest(key, (*names, *DATA)))
            if not equals or not text:
                raise ConfigError(f"{key} has no value.", f"Write {key}=...")
            if key in DATA:
                data[key.removeprefix("data.")] = text
            else:
                values[key] = text if types[key] is str else fit(_plain(key, text), types[key], key)
        if "run" not in values:
            raise ConfigError("No run is given.", "Usage: python launch/evaluate.py run=runs/NAME")
        found = cls(**values)
        given = {key: values[key] for key in ("bank", "queries", "patches", "threads") if values.get(key) is not None}
        for key, value in given.items():
            if not 1 <= value <= MOST.get(key, ALL):
                rule = f"from 1 to {MOST[key]}" if key in MOST else "at least 1"
                raise ConfigError(f"{key}={value} is not possible: it must be {rule}.", f"Set {key}=128, for example.")
        found.refuse_unused(values)
        return found, data

    def refuse_unused(self, values: Mapping[str, Any]) -> None:
        """Raise ConfigError for a given key that the protocol does not use."""
        for key, protocols in USED_BY.items():
            if key in values and self.protocol not in protocols:
                raise ConfigError(
                    f"{key}={values[key]} is not used by protocol={self.protocol}.",
                    f"Leave it out, or choose protocol={' or '.join(protocols)}.",
                )

    @property
    def suffix(self) -> str:
        """The given settings that change the numbers, for the name of the file that holds them."""
        given = {key: getattr(self, key) for key in ("bank", "queries", "k", "temperature", "resize", "crop")}
        given |= {"patches": self.patches if self.patches != Options.patches else None}
        return "".join(f"_{key}{value}" for key, value in given.items() if value is not None)


def _plain(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}={text} cannot be read.", "Write a number or a word.") from error


def checkpoint_of(run: RunDir, name: str) -> Path:
    """Return the folder of a checkpoint: `latest`, `step_00012000`, or 12000. Raises ConfigError."""
    found = {
        int(path.name[5:]): path for path in (run.folder / "checkpoints").glob("step_*") if path.name[5:].isdigit()
    }
    if not found:
        raise ConfigError(f"{run.folder} has no checkpoint yet.", "Wait for the first one.")
    step = name.removeprefix("step_")
    if name == "latest":
        return found[max(found)]
    if not step.isdigit() or int(step) not in found:
        shown = ", ".join(found[step].name for step in sorted(found)[-8:])
        raise ConfigError(
            f"{run.folder} has no checkpoint {name}.", f"It has {shown}; checkpoint=latest is the newest."
        )
    return found[int(step)]


def config_of(run: RunDir, options: Options, data: dict[str, str]) -> dict[str, Any]:
    """Return the run's config with the options and with the place where its data was read last."""
    began, newest = run.config, AttemptDir(run, run.newest_attempt())
    now = credentials.restored(newest.config if newest.config_file.is_file() else began)
    threads = options.threads or len(os.sched_getaffinity(0))
    probe = {"bank": options.bank or ALL, "queries": options.queries or ALL}
    for key in ("branch", "k", "temperature", "resize", "crop"):
        if (value := getattr(options, key)) is not None:
            probe[key] = value
    if "planner" not in began["schedule"]:
        raise ConfigError(
            f"{run.folder} was started by code that is too old for this command.", "Evaluate a newer run."
        )
    return {
        **began,
        "probe": {**now["probe"], **probe},
        "data": {**began["data"], "path": now["data"]["path"], "loader_process": False, **data},
        "threads": threads,
        "decode_threads": threads,
    }


def evaluate(run: RunDir, options: Options, data: dict[str, str]) -> tuple[Path, dict[str, Any]]:
    """Evaluate a checkpoint; return the file for its numbers, and its content. Raises UserError, OSError."""
    import torch

    from dist_ssl.build import last_side
    from launch.frozen import PROTOCOLS, Frozen

    checkpoint, config = checkpoint_of(run, options.checkpoint), config_of(run, options, data)
    torch.set_num_threads(config["threads"])
    started = time.monotonic()
    try:
        frozen = Frozen.load(
            {key: value for key, value in config.items() if key != "format"}, checkpoint, options.patches
        )
        numbers = dict(PROTOCOLS[options.protocol](frozen))
    except DataError as error:
        raise DataError(error.problem, f"{error.remedy} Say where the run's data is now: data.path=...") from error
    node = frozen.node
    resize, crop = node.sides(last_side(frozen.parts))
    settings = {"branch": node.branch, "k": node.k, "temperature": node.temperature, "resize": resize, "crop": crop}
    split = {key: config["data"][key] for key in ("train", "val")}
    content = {
        "protocol": options.protocol,
        "checkpoint": checkpoint.name,
        "settings": settings | {"patches": options.patches, **split},
        "numbers": numbers,
        "data": frozen.parts.dataset.identity,
        "device": frozen.world.device.type,
        "threads": config["threads"],
        "seconds": round(time.monotonic() - started, 3),
    }
    file = (
        run.folder
        / "evaluations"
        / f"{checkpoint.name.removeprefix('step_')}_{node.branch}_{options.protocol}{options.suffix}.json"
    )
    return file, content


def table(content: dict[str, Any]) -> Table:
    """Return the numbers of an evaluation as a table."""
    shown = Table(box=None, header_style="", pad_edge=False, show_header=False)
    for key, value in content["numbers"].items():
        accuracy = key.partition(" ")[0].endswith("accuracy")
        text = f"{100 * value:.2f} %" if accuracy else f"{value:.4g}" if isinstance(value, float) else str(value)
        shown.add_row(key.replace("_", " "), text)
    return shown


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    if {"-h", "--help"} & set(arguments):
        console.print(__doc__)
        return 0
    try:
        options, data = Options.parse(arguments)
        run = RunDir.open(Path(options.run))
        hand_over(run, arguments, console, "evaluate.py")
        if options.protocol == "bag_of_patches":
            console.print(f"Computing {options.patches} views of every image; bank=N and queries=N make it shorter.")
        file, content = evaluate(run, options, data)
        console.print(f"{content['checkpoint']}, {content['settings']['branch']}, {content['protocol']}:")
        console.print(table(content))
        file.parent.mkdir(exist_ok=True)
        write_atomically(file, json.dumps(content, indent=1, allow_nan=False) + "\n")
    except UserError as error:
        console.print(str(error).replace("probe.", ""))  # the keys of the probe are keys of this command
        return EXIT_CODE
    except OSError as error:
        console.print(
            f"{error.filename} cannot be written: {error.strerror}.\n  Free some space or fix the permissions."
        )
        return EXIT_CODE
    except KeyboardInterrupt:
        console.print("Interrupted: nothing was written.")
        return INTERRUPTED_CODE
    console.print(f"Written to {file}.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
