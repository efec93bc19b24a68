"""Forks: a new run that begins with a checkpoint of another one, and continues under another schedule or length.

    python launch/slurm.py fork=runs/NAME@12000 epochs=20

The fork takes over what the other run has recorded up to that step (plans, ledger, metrics, quarantine), so that it can
be resumed and audited by itself; the other run is not changed. An epoch that the step lies in keeps its plan.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from dist_ssl.checkpoint.damage import DamagedError
from dist_ssl.checkpoint.folder_names import INITIAL, KEPT, LATEST
from dist_ssl.checkpoint.index import name_science, progress_of, read_table, verify
from dist_ssl.checkpoint.initial_weights import verified
from dist_ssl.config.run_keys import method_of
from dist_ssl.core.progress import Progress
from dist_ssl.errors import CheckpointError, ConfigError, plural
from dist_ssl.metrics.sinks import read_reports, stands
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.files import write_atomically
from launch import credentials, half_made, preparation, science_keys, settings
from launch.evaluation import checkpoint_of
from launch.run_dir import PROJECT, RunDir
from launch.run_files import write_yaml
from launch.source_commit import copy_for_owner

MAY_CHANGE = ("epochs", "extend", "schedule", "difficulty", "ema", "optim.base_lr", "optim.weight_decay", "engine.clip")
"""Keys and nodes of the science that a fork may change."""


def source_of(text: str) -> tuple[RunDir, Path]:
    """Return the run and the folder of its checkpoint that `runs/NAME@STEP` names. Raises ConfigError."""
    folder, _, step = text.rpartition("@")
    if not folder or not step:
        raise ConfigError(
            f"fork={text} does not name a run and a step.", "Write fork=runs/NAME@latest, or the step of a checkpoint."
        )
    run = RunDir.open(Path(folder))
    return run, checkpoint_of(run, step)


def forked_config(
    source: RunDir, checkpoint: Path, overrides: list[str], console: Console
) -> tuple[dict[str, Any], list[str], Progress]:
    """Return the checked config of a fork, the overrides that make it, and the position it begins at. Raises UserError.

    The config is the other run's, with `overrides`.
    """
    try:
        progress = progress_of(read_table(checkpoint).progress)
    except DamagedError as damage:
        raise _damaged(checkpoint, damage) from damage
    kept = source.overrides
    for group in ("schedule", "difficulty", "engine", "tracker"):
        kept = settings.of_another_choice(kept, overrides, group, PROJECT / "configs")
    kept = [override for override in kept if not override.startswith("name=")]
    if appended := source.config.get("extend"):
        keys = {override.partition("=")[0] for override in overrides}
        if "epochs" in keys and "extend" not in keys:
            raise ConfigError(
                f"{source.folder} has appended cycles, {', '.join(appended)}: epochs alone does not say whether the "
                "fork has them.",
                "Add extend=[] for a fork without any, or name those that it has: extend=[...].",
            )
        kept.append(f"extend={json.dumps(appended)}")
    words = [*kept, *overrides]
    config = preparation.new_config(words, console)
    config["init_sha256"] = config["init_sha256"] or source.config.get("init_sha256")
    refuse_other_science(source.config, config)
    if not config["dry_run"]:
        refuse_other_position(config, progress)
    return config, words, progress


def refuse_other_science(source: dict[str, Any], config: dict[str, Any]) -> None:
    """Raise ConfigError where a fork changes more than its length and schedule."""
    old, new = science_keys.science(source), science_keys.science(config)
    for key in sorted(old.keys() | new.keys()):
        allowed = {key, key.partition(".")[0]} & {*MAY_CHANGE, "data.identity"}
        if old.get(key) != new.get(key) and not allowed:
            raise ConfigError(
                f"{key}={new.get(key)} is not what the run has ({old.get(key)}): its checkpoint depends on it.",
                f"A fork may change {', '.join(MAY_CHANGE)}, and the keys that a resume may change.",
            )
    if config["data"]["identity"] not in (None, source["data"]["identity"]):
        raise ConfigError("The data is not that of the run.", "Say where the run's data is now: data.path=...")


def refuse_other_position(config: dict[str, Any], progress: Progress) -> None:
    """Raise ConfigError where the position lies after the end of the fork, or in other batches than it plans."""
    from dist_ssl.config.meta_device import on_meta_device
    from dist_ssl.distributed.world import World
    from dist_ssl.parts import parts

    with on_meta_device():
        timeline = parts(config, World(), config["nodes"] * config["ranks_per_node"]).timeline
    epochs = len(timeline.batch_sizes)
    if progress.epoch >= epochs:
        raise ConfigError(
            f"Step {progress.step} is after {plural(progress.epoch, 'epoch')}: nothing is left of the fork's {epochs}.",
            "Raise epochs: they are counted from the start of the run.",
        )
    before = tuple(plan.batch_size for plan in progress.plans)
    if timeline.batch_sizes[: len(before)] != before:
        raise ConfigError(
            f"This schedule has other batches than the run had before step {progress.step}.",
            "Let the fork begin with the same batch sizes, epoch by epoch.",
        )


def begin(config: dict[str, Any], words: list[str], source: RunDir, checkpoint: Path, progress: Progress) -> RunDir:
    """Create and return the run folder of a fork. Raises ConfigError if its name is taken, CheckpointError.

    What cannot be started leaves no folder; nor does one whose copy of the configs would hold a login (ConfigError).
    """
    credentials.check_files(PROJECT / "configs")
    run = RunDir.create(Path(config["runs"]), config["name"], method_of(config))
    with half_made.being_made(run.folder):
        try:
            _take_over(run, source, checkpoint, progress)
            name_science(run.checkpoints / checkpoint.name, science_keys.science(config))
            run.begin(config, preparation.of_the_run(words))
        except DamagedError as damage:
            raise _damaged(checkpoint, damage) from damage
        except OSError as error:
            raise CheckpointError(
                f"{checkpoint} cannot be taken over to {run.folder}: {preparation.first_reason(error)}.",
                "Where the disk is full, free some space. Where the other run has removed it meanwhile, fork a newer "
                "one, or raise that run's keep_last.",
            ) from error
    return run


def _damaged(checkpoint: Path, damage: DamagedError) -> CheckpointError:
    return CheckpointError(f"{checkpoint} is damaged: {damage}.", "Fork the run at another checkpoint.")


def _take_over(run: RunDir, source: RunDir, checkpoint: Path, progress: Progress) -> None:
    """Copy the checkpoint and what the other run has recorded up to it. Raises OSError, DamagedError."""
    copy_for_owner(checkpoint, run.checkpoints / checkpoint.name, [KEPT], links=True)  # its hashes are compared
    verify(run.checkpoints / checkpoint.name)
    write_atomically(run.checkpoints / LATEST, checkpoint.name + "\n")
    if source.config.get("init") is not None:
        content = verified(source.folder / INITIAL, source.config.get("init_sha256"))
        write_atomically(run.folder / INITIAL, content)
    if source.quarantine.is_file():
        shutil.copyfile(source.quarantine, run.quarantine)
    reports = read_reports(source.metrics)  # later ones would count as work that the fork has lost
    jsonl.append(run.metrics, [report for report in reports if stands(report, progress)])
    rows = jsonl.read(source.plans)
    jsonl.append(run.plans, [row for row in rows if row["epoch"] < len(progress.plans)])
    copy_for_owner(source.ledger, run.ledger, [])
    # the numbers of attempts go on: ledger and checkpoints tell attempts apart by them
    (run.folder / "attempts" / f"{source.newest_attempt():04d}").mkdir(parents=True)
    write_yaml(run.folder / "forked.yaml", {"run": str(source.folder), "step": progress.step})
