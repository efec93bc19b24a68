"""Everything done before a run is started: composing and checking its config, drawing data, making the run folder."""

import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from dist_ssl.checkpoint.folder_names import INITIAL, published
from dist_ssl.config.durations import Duration
from dist_ssl.config.run_keys import all_epochs, check_units, method_of
from dist_ssl.data.storage.address import Address
from dist_ssl.distributed.place_variables import RANK
from dist_ssl.errors import ConfigError, plural
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.end_names import FINISHED
from dist_ssl.runtime.files import write_atomically
from dist_ssl.runtime.own_cores import own_cores
from dist_ssl.runtime.strange_files import numbers
from launch import (
    allocation,
    batch_shape,
    cluster_options,
    credentials,
    half_made,
    launch_keys,
    scheduler,
    science_keys,
    settings,
    submission,
    visible_gpus,
)
from launch.run_dir import PROJECT, RunDir

EXTEND = "extend="
OF_THIS_COMMAND = ("wait=", "dry_run=", *launch_keys.OF_A_RUN)
"""Keys that control one command and are not part of a run."""


def choose_cluster(config: dict[str, Any], console: Console) -> None:
    """Set a `cluster.kind` of `auto` to slurm or local, and print why the nodes are local. Raises ConfigError."""
    kind = config["cluster"]["kind"]
    lacks = "" if kind in ("local", "allocation", "torchrun") or config["dry_run"] else _what_is_missing()
    if kind == "auto":
        config["cluster"]["kind"] = "local" if lacks else "slurm"
        if lacks:
            several = f"the {config['nodes']} nodes run as local processes"
            nodes = several if config["nodes"] != 1 else "the node runs as a local process"
            console.print(f"{lacks}: {nodes}.", highlight=False)
    elif lacks:
        raise ConfigError(f"cluster=slurm is not possible: {lacks}.", "Leave cluster out to run local processes.")
    if kind == "allocation":
        allocation.fit(config)
    if config["cluster"]["kind"] != "local":
        submission.check(config["cluster"])


def _what_is_missing() -> str:
    """Return why no Slurm cluster is available; empty if one is. A cluster that does not answer counts as one."""
    if shutil.which("sbatch") is None:
        return "No sbatch on the PATH"
    return "" if scheduler.is_configured() else "sbatch is installed, but no cluster is configured"


def fill_in(config: dict[str, Any]) -> None:
    """Fill in what depends on the machines: ranks per node, threads, the endpoint's address. Raises ConfigError."""
    for key in ("nodes", "ranks_per_node", "threads", "decode_threads"):
        value = config[key]
        if (value is None and key != "nodes") or (isinstance(value, int) and value >= 1):
            continue
        raise ConfigError(f"{key}={value} is not possible: it must be a whole number of at least 1.", f"Set {key}=1.")
    local = config["cluster"]["kind"] == "local"
    gpus, cores = _of_this_machine(config["nodes"]) if local else _requested(config)
    if local and config["metrics"]["bind"] is None:
        config["metrics"]["bind"] = "127.0.0.1"
    config["ranks_per_node"] = config["ranks_per_node"] or gpus or 1
    config["threads"] = config["threads"] or max(1, cores // config["ranks_per_node"])
    config["decode_threads"] = config["decode_threads"] or config["threads"]


def _requested(config: dict[str, Any]) -> tuple[int, int]:
    """Return the GPUs and cores that a Slurm job requests per node, or that torchrun finds there."""
    return cluster_options.gpus(config["cluster"]), config["cluster"]["cpus_per_task"] or 1


def _of_this_machine(nodes: int) -> tuple[int, int]:
    """Return the GPUs and cores per "node" if this machine is divided into `nodes`."""
    cores = own_cores()
    return visible_gpus.count() // nodes, max(1, cores // nodes)


def make_data(config: dict[str, Any], console: Console) -> None:
    """Write the shards of a data set that our own code draws, on its first use. Raises ConfigError, DataError."""
    path, source = config["data"]["path"], config["data"]["source"]
    if source is None or not isinstance(path, str):  # the sources of a mixture have been made before
        return
    address = Address.parse(path)
    if not address.local or (address.path / "manifest.json").exists():
        return
    from shards.make import make, source_of

    if source_of(source).drawn:
        console.print(f"Drawing the data of source={source} into {address.path} (once).", highlight=False)
        make(source, address.path, console)


def pack_folders(combinations: list[list[str]], console: Console, last: list[str] | None = None) -> list[list[str]]:
    """Return the overrides of new runs, `data=folder` replaced by shards and by what fits them. Raises UserError.

    `last`: a list that gets what a dry run says at its end.
    """
    if not any(launch_keys.FOLDER in overrides for overrides in combinations):
        return combinations
    from launch import own_pictures  # needs torch, which following a run does without

    return own_pictures.fitted(combinations, console, [] if last is None else last)


def check_shape(config: dict[str, Any]) -> None:
    """Check the top-level keys, and that the ranks can share the lanes: all that needs no data. Raises UserError."""
    from dist_ssl.config.run_keys import top_level
    from dist_ssl.runtime.coordinator import check_plan

    run = top_level(config)
    check_plan(run.lanes, run.batch_size, config["nodes"] * config["ranks_per_node"], num_samples=run.batch_size)


def check(config: dict[str, Any], console: Console, memory: int | None = None) -> str:
    """Check everything that can be checked before a start; return the data's identity. Raises UserError.

    Prints what a person should know of data that is accepted. `memory`: bytes that every rank will have, if known.
    """
    from dist_ssl.build import check as check_parts

    if RANK not in os.environ:  # nothing is computed here, so DeepSpeed need not search for devices
        os.environ["DS_ACCELERATOR"] = "cpu"
    complete, ranks = credentials.restored(config), config["nodes"] * config["ranks_per_node"]
    return check_parts(complete, ranks, lambda text: console.print(text, highlight=False, markup=False), memory)


def new_config(overrides: list[str], console: Console) -> dict[str, Any]:
    """Return the checked config of a new run. Raises UserError."""
    config = settings.compose(overrides, PROJECT / "configs")
    launch_keys.check_types(config)
    choose_cluster(config, console)
    fill_in(config)
    fit_batch(config, overrides, console)
    check_shape(config)
    if not config["dry_run"]:
        make_data(config, console)
    if not config["dry_run"] or has_data(config, console):
        config["data"]["identity"] = check(config, console, cluster_options.memory_of_rank(config))
    return config


def has_data(config: dict[str, Any], console: Console) -> bool:
    """Return whether a dry run can check the config against its data, which it does not make; print it where not."""
    path = config["data"]["path"]
    addresses = [Address.parse(place) for place in (path if isinstance(path, list) else [path])]
    lacking = [address for address in addresses if address.local and not (address.path / "manifest.json").exists()]
    for address in lacking:
        console.print(f"Not checked: there are no shards in {address.path}.", highlight=False, markup=False)
    return not lacking and all(address.local for address in addresses)


def fit_batch(config: dict[str, Any], overrides: list[str], console: Console) -> None:
    """Choose lanes and batch size for the ranks where the overrides say neither; print what differs from the defaults.

    Raises ConfigError.
    """
    before, given = (config["lanes"], config["batch_size"]), batch_shape.said(overrides)
    if given == set(batch_shape.KEYS) or not all(type(value) is int and value > 0 for value in before):
        return  # the check of the config says what is wrong with other values
    ranks = config["nodes"] * config["ranks_per_node"]
    config["lanes"], config["batch_size"] = chosen = batch_shape.fitted(*before, ranks, given)
    if chosen != before:
        console.print(f"For {plural(ranks, 'rank')}: lanes={chosen[0]} batch_size={chosen[1]}.", highlight=False)


def begin(overrides: list[str], config: dict[str, Any], weights: bytes | None = None) -> RunDir:
    """Create and return the run folder of a checked config. `weights`: content of the file of initial weights, if any.

    Raises ConfigError if its name is taken, its copy of the configs would hold a login, or it cannot be written: it
    is not left behind then.
    """
    credentials.check_files(PROJECT / "configs")
    run = RunDir.create(Path(config["runs"]), config["name"], method_of(config))
    chosen = [f"{key}={config[key]}" for key in batch_shape.KEYS if key not in batch_shape.said(overrides)]
    with half_made.being_made(run.folder):
        try:
            if weights is not None:
                write_atomically(run.folder / INITIAL, weights, sync=True)
            run.begin(config, [*of_the_run(overrides), *chosen])
        except OSError as error:
            raise ConfigError(
                f"{run.folder} cannot be written: {first_reason(error)}.", "Free some space, or choose another runs=..."
            ) from error
    return run


def first_reason(error: OSError) -> Any:
    """Return why a copy has failed: of the errors of several files (shutil.Error), the first."""
    return error.args[0][0] if isinstance(error, shutil.Error) else error


def of_the_run(overrides: list[str]) -> list[str]:
    """Return the overrides that a resume must repeat."""
    return [override for override in overrides if not override.startswith(OF_THIS_COMMAND)]


def resume(overrides: list[str], folder: Path, console: Console) -> tuple[RunDir, dict[str, Any]]:
    """Return an existing run and its checked config, with new overrides after those it started with.

    `extend='100 epochs'` among them appends a cycle of that length to a finished run. Raises UserError.
    """
    run = RunDir.open(folder)
    configs = run.code / "configs"
    further = [override.removeprefix(EXTEND) for override in overrides if override.startswith(EXTEND)]
    overrides = [override for override in overrides if not override.startswith(EXTEND)]
    kept = run.overrides
    for group in ("engine", "tracker"):
        kept = settings.of_another_choice(kept, overrides, group, configs)
    config = settings.compose([*kept, *overrides], configs)
    config["data"]["identity"] = run.config["data"]["identity"]
    config["extend"] = run.config.get("extend", [])
    config["init_sha256"] = config["init_sha256"] or run.config.get("init_sha256")
    science_keys.check_resume(run.config, config)
    launch_keys.check_types(config)
    refuse_lost_checkpoints(run)
    if further:
        config["extend"] = [*config["extend"], *_further_cycles(run, further)]
    choose_cluster(config, console)
    _keep_threads(run, config)
    fill_in(config)
    if not local_again(run, config):
        check(config, console)
    if further and not config["dry_run"]:
        run.extend(config["extend"])
    return run, config


def refuse_lost_checkpoints(run: RunDir) -> None:
    """Raise ConfigError where a run has saved checkpoints and has none: it would begin at step 0 without a word."""
    if published(run.checkpoints):
        return
    reports = map(numbers, jsonl.read(run.metrics))
    if step := int(max((report.get("saved_step", 0) for report in reports), default=0)):
        raise ConfigError(
            f"There is no checkpoint in {run.checkpoints}, and the run has saved one of step {step}.",
            "Put the folder back (is its disk mounted?). To train from the first step again, start a new run.",
        )


def local_again(run: RunDir, config: dict[str, Any]) -> bool:
    """Return whether the ranks start at once, here, with the very config of the last attempt.

    It was checked before that one, and the ranks look at the data again; a check would delay them by seconds. A job
    waits in a queue first, so it is checked before.
    """
    return config["cluster"]["kind"] == "local" and run.newest_attempt() > 0 and config == run.last_config()


def trained(run: RunDir, config: dict[str, Any]) -> bool:
    """Return whether the newest attempt has finished all cycles of this config."""
    return run.outcome() == FINISHED and run.last_config().get("extend", []) == config.get("extend", [])


def _further_cycles(run: RunDir, values: list[str]) -> list[str]:
    """Return the lengths of cycles to append. Raises ConfigError where the run has not finished those that it has."""
    if not trained(run, run.config):
        raise ConfigError(
            f"{run.folder} has not finished its {plural(all_epochs(run.config), 'epoch')}: no cycle can be "
            "appended yet.",
            f"Train them first: python launch/slurm.py {shlex.quote(f'resume={run.folder}')}",
        )
    read = [_list_or_text(value) for value in values]
    lengths = [str(length) for value in read for length in (value if isinstance(value, list) else [value])]
    for length in lengths:
        check_units("extend", Duration.parse(length), "epochs")
    return lengths


def _list_or_text(value: str) -> Any:
    """Return the list that a value of the command line writes in brackets, or another value of YAML."""
    try:
        return yaml.safe_load(value) if value else value
    except yaml.YAMLError:
        return value  # the check of lengths says what is wrong with it


def _keep_threads(run: RunDir, config: dict[str, Any]) -> None:
    """Keep the number of threads if the number of ranks is unchanged: how threads split a sum changes its rounding."""
    if run.newest_attempt() and config["threads"] is None:
        last = run.last_config()
        if all(config[key] in (None, last[key]) for key in ("nodes", "ranks_per_node")):
            config["threads"] = last["threads"]
