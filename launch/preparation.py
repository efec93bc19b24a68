"""What happens before anything is submitted: compose, check all that can be checked, make data and the run folder."""

import os
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from dist_ssl.data.storage.address import Address
from dist_ssl.errors import ConfigError
from launch import credentials, scheduler, settings, submission
from launch.run_dir import PROJECT, AttemptDir, RunDir

OF_THIS_COMMAND = ("wait=", "dry_run=", "follow=", "resume=")
"""Words that are not part of a run."""


def choose_cluster(config: dict[str, Any], console: Console) -> None:
    """Make `cluster.kind` slurm or local; says why where the nodes of an `auto` are local. Raises ConfigError."""
    kind = config["cluster"]["kind"]
    lacks = "" if kind == "local" or config["dry_run"] else _what_is_missing()
    if kind == "auto":
        config["cluster"]["kind"] = "local" if lacks else "slurm"
        if lacks:
            nodes = f"the {config['nodes']} nodes run as local processes" if config["nodes"] != 1 else "it runs here"
            console.print(f"{lacks}: {nodes}.", highlight=False)
    elif lacks:
        raise ConfigError(f"cluster=slurm is not possible: {lacks}.", "Leave cluster out to run local processes.")
    if config["cluster"]["kind"] == "slurm":
        submission.check(config["cluster"])


def _what_is_missing() -> str:
    """Why there is no Slurm to submit to; empty where there is one. One that does not answer is one."""
    if shutil.which("sbatch") is None:
        return "No sbatch on the PATH"
    return "" if scheduler.is_configured() else "sbatch is installed, but no cluster is configured"


def fill_in(config: dict[str, Any]) -> None:
    """Fill in what depends on the machines: ranks per node and threads. Raises ConfigError."""
    for key in ("nodes", "ranks_per_node", "threads", "decode_threads"):
        value = config[key]
        if (value is None and key != "nodes") or (isinstance(value, int) and value >= 1):
            continue
        raise ConfigError(f"{key}={value} is not possible: it is a whole number of at least 1.", f"Set {key}=1, say.")
    gpus, cores = _asked_for(config) if config["cluster"]["kind"] != "local" else _of_this_machine(config["nodes"])
    config["ranks_per_node"] = config["ranks_per_node"] or gpus or 1
    config["threads"] = config["threads"] or max(1, cores // config["ranks_per_node"])
    config["decode_threads"] = config["decode_threads"] or config["threads"]


def _asked_for(config: dict[str, Any]) -> tuple[int, int]:
    """GPUs and cores of one node of a Slurm job."""
    return submission.gpus(config["cluster"]), config["cluster"]["cpus_per_task"] or 1


def _of_this_machine(nodes: int) -> tuple[int, int]:
    """GPUs and cores of one of so many "nodes" of this machine."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return torch.cuda.device_count() // nodes, max(1, cores // nodes)


def make_data(config: dict[str, Any], console: Console) -> None:
    """Make the shards of a data set that our own code draws, on first use."""
    address = Address.parse(config["data"]["path"])
    if config["data"]["source"] != "demo" or not address.local:
        return
    folder = address.path
    if not (folder / "manifest.json").exists():
        from shards.make import make

        console.print(f"Drawing the demo data into {folder} (once).", highlight=False)
        make("demo", folder, console)


def check(config: dict[str, Any]) -> str:
    """Check everything that can be checked before anything is started; the data's identity. Raises UserError."""
    from dist_ssl.build import check as check_parts

    os.environ["DS_ACCELERATOR"] = "cpu"  # nothing is computed here, and DeepSpeed need not look for devices
    return check_parts(credentials.restored(config), config["nodes"] * config["ranks_per_node"])


def new_config(words: list[str], console: Console) -> dict[str, Any]:
    """The checked config of a run to be."""
    config = settings.compose(words, PROJECT / "configs")
    choose_cluster(config, console)
    fill_in(config)
    if not config["dry_run"]:
        make_data(config, console)
        config["data"]["identity"] = check(config)
    return config


def begin(words: list[str], config: dict[str, Any]) -> RunDir:
    """Make the run folder of a checked config."""
    run = RunDir.create(Path(config["runs"]), config["name"], method_of(config))
    run.begin(config, of_the_run(words))
    return run


def method_of(config: dict[str, Any]) -> str:
    """`mocov3`."""
    return str(config["method"]["_target_"].split(".")[-2])


def of_the_run(words: list[str]) -> list[str]:
    """The words that a resume repeats."""
    return [word for word in words if not word.startswith(OF_THIS_COMMAND)]


def resume(words: list[str], folder: Path, console: Console) -> tuple[RunDir, dict[str, Any]]:
    """A run that goes on, with the new words after those that it began with."""
    run = RunDir.open(folder)
    configs = run.code / "configs"
    config = settings.compose([*settings.of_another_choice(run.overrides, words, "engine", configs), *words], configs)
    config["data"]["identity"] = run.config["data"]["identity"]
    settings.check_resume(run.config, config)
    choose_cluster(config, console)
    _keep_threads(run, config)
    fill_in(config)
    check(config)
    return run, config


def _keep_threads(run: RunDir, config: dict[str, Any]) -> None:
    """On as many nodes take as many threads as before: how threads split a sum is part of its bits."""
    newest = AttemptDir(run, run.newest_attempt())
    if newest.config_file.is_file() and config["threads"] is None:
        last = newest.config
        if all(config[key] in (None, last[key]) for key in ("nodes", "ranks_per_node")):
            config["threads"] = last["threads"]
