"""The evaluation of one checkpoint of a run: its config, its numbers, and the files that hold them.

runs/NAME/evaluations/STEP_BRANCH_PROTOCOL.json   an evaluation: numbers, settings, identity of the data
                      STEP_BRANCH_neighbours.png  the sheet of nearest neighbours
          evaluations.jsonl                       one line for each evaluation, in the order in which they were made
"""

import io
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from rich.table import Table

from dist_ssl.checkpoint.folder_names import published
from dist_ssl.checkpoint.retention import newest_first
from dist_ssl.config.long_work import LongWork
from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError, DataError, printable
from dist_ssl.evaluate.confidence import shown_interval
from dist_ssl.evaluate.evidence import doubts
from dist_ssl.evaluate.linear import Say
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.files import write_atomically
from dist_ssl.runtime.own_cores import own_cores
from dist_ssl.runtime.run_folder import RunFolder
from launch import credentials
from launch.evaluation_options import DataValues, Options
from launch.run_dir import RunDir

if TYPE_CHECKING:
    from launch.frozen import Frozen

NUMBER = re.compile(r"[0-9]{1,18}")
OF_QUERIES = ("knn_accuracy", "linear_accuracy", "best_epoch_accuracy")
"""Accuracies that are shares of the queries, so that their confidence intervals follow."""
ALL = 1 << 62
"""More images than any split has."""


@dataclass(frozen=True)
class Evaluation:
    """The numbers of a checkpoint with all that they depend on, the sheet of neighbours, and the file for both."""

    file: Path
    content: dict[str, Any]
    sheet: Image.Image | None

    @property
    def files(self) -> list[Path]:
        """Return the files: that of the numbers, and that of the sheet if there is one."""
        return [self.file, *([self.file.with_suffix(".png")] if self.sheet else [])]

    def write(self) -> None:
        """Write the files; that of the numbers comes last, so that it stands for all of them. Raises OSError."""
        self.file.parent.mkdir(exist_ok=True)
        if self.sheet:
            buffer = io.BytesIO()
            self.sheet.save(buffer, "PNG")
            write_atomically(self.files[-1], buffer.getvalue())
        text = json.dumps(self.content, indent=1, allow_nan=False) + "\n"
        row = {
            "time": round(time.time(), 3),
            "step": int(self.content["checkpoint"].removeprefix("step_")),
            "branch": self.content["settings"]["branch"],
            "protocol": self.content["protocol"],
            "file": self.file.name,
        }
        jsonl.append(RunFolder(self.file.parent.parent).evaluations, [{**row, **self.content["numbers"]}])
        write_atomically(self.file, text)

    def table(self) -> Table:
        """Return the numbers as a table."""
        shown = Table(box=None, header_style="", pad_edge=False, show_header=False)
        numbers = self.content["numbers"]
        for key, value in numbers.items():
            accuracy = key.partition(" ")[0].endswith(("accuracy", "same_class"))
            text = f"{100 * value:.2f} %" if accuracy else f"{value:.4g}" if isinstance(value, float) else str(value)
            if key in OF_QUERIES and 0 <= value <= 1 and numbers.get("queries", 0) >= 1:
                text = f"{text} {shown_interval(value, numbers['queries'])}"
            shown.add_row(key.replace("_", " "), text)
        for doubt in self.content.get("doubts", ()):
            shown.add_row("note", printable(doubt))
        return shown


def checkpoint_of(run: RunDir, name: str) -> Path:
    """Return the folder of a checkpoint: `latest`, `step_00012000`, or 12000. Raises ConfigError.

    The latest is the one that a resume begins with: the newest attempt's, even where an earlier one has a later step.
    """
    newest = next(iter(newest_first(run.checkpoints)), None)
    if newest is None:
        raise ConfigError(f"{run.folder} has no checkpoint yet.", "Wait for the first one.")
    if name == "latest":
        return newest
    step, found = name.removeprefix("step_"), published(run.checkpoints)
    if not NUMBER.fullmatch(step) or int(step) not in found:
        shown = ", ".join(path.name for path in list(found.values())[-8:])
        raise ConfigError(
            f"{run.folder} has no checkpoint {name}.", f"It has {shown}; checkpoint=latest is the newest."
        )
    return found[int(step)]


def config_of(run: RunDir, options: Options, data: DataValues, sharers: int = 1) -> dict[str, Any]:
    """Return the run's config with the options and with the place where its data was read last.

    `sharers`: ranks that share the cores of this machine. Raises ConfigError.
    """
    began, now = run.config, credentials.restored(run.last_config())
    threads = options.threads or max(1, own_cores() // sharers)
    probe = {"bank": options.bank or ALL, "queries": options.shown("queries") or ALL, "k": options.shown("k")}
    probe |= {key: getattr(options, key) for key in ("branch", "temperature", "resize", "crop")}
    if "planner" not in began["schedule"]:
        raise ConfigError(
            f"{run.folder} was started by code that is too old for this command.", "Evaluate a newer run."
        )
    there = {} if "path" in data else {"manifest": now["data"].get("manifest")}  # of another place it lies there
    place = {"path": now["data"]["path"], "manifest": None, **there, **data}
    plain = {key: value for key, value in began.items() if key != "format"}
    return {
        **plain,
        "probe": {**now["probe"], **{key: value for key, value in probe.items() if value is not None}},
        "data": {**began["data"], **place, "loader_process": False},
        "threads": threads,
        "decode_threads": threads,
    }


def file_of(run: RunDir, options: Options, checkpoint: str, branch: str) -> Path:
    """Return the file for the numbers of a checkpoint (`step_00012000`)."""
    name = f"{checkpoint.removeprefix('step_')}_{branch}_{options.protocol}{options.suffix}.json"
    return run.folder / "evaluations" / name


def settings_of(frozen: "Frozen") -> dict[str, Any]:
    """Return what an evaluation has seen and compared, by the keys of the command."""
    from dist_ssl.build import last_side

    node = frozen.node
    resize, crop = node.sides(last_side(frozen.parts))
    return {"branch": node.branch, "k": node.k, "temperature": node.temperature, "resize": resize, "crop": crop}


def recipe_of(options: Options) -> dict[str, str]:
    """Return the setting that names the recipe of a linear classifier; empty for other protocols."""
    return {"recipe": options.recipe or "fast"} if options.protocol == "linear" else {}


def evaluated(
    run: RunDir,
    options: Options,
    data: DataValues,
    checkpoint: Path,
    world: World,
    say: Say,
    work: LongWork | None = None,
) -> Evaluation:
    """Evaluate a checkpoint on all ranks. Raises UserError; RetiredError where the run has removed it meanwhile."""
    import torch

    from launch.evaluation_protocols import PROTOCOLS
    from launch.frozen import Frozen

    config = config_of(run, options, data, world.local_size)
    torch.set_num_threads(config["threads"])
    started = time.monotonic()
    try:
        frozen = Frozen.load(
            config, checkpoint, options.patches, world=world, recipe=options.linear, say=say, work=work
        )
        measured = PROTOCOLS[options.protocol](frozen)
    except DataError as error:
        raise DataError(error.problem, f"{error.remedy} Say where the run's data is now: data.path=...") from error
    split = {key: config["data"][key] for key in ("train", "val")}
    content = {
        "protocol": options.protocol,
        "checkpoint": checkpoint.name,
        "settings": {**settings_of(frozen), **recipe_of(options), "patches": options.patches, **split},
        "numbers": dict(measured.numbers),
        "data": frozen.parts.dataset.identity,
        "device": world.device.type,
        "threads": config["threads"],
        "ranks": world.size,
        "seconds": round(time.monotonic() - started, 3),
        "doubts": list(doubts(*frozen.labelled())) if any(key in measured.numbers for key in OF_QUERIES) else [],
    }
    return Evaluation(file_of(run, options, checkpoint.name, frozen.node.branch), content, measured.sheet)
