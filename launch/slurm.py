"""Start or resume a run: compose the config, check it, make the run folder, and start its nodes.

    python launch/slurm.py method=mocov3 nodes=4
    python launch/slurm.py resume=runs/mocov3-1121-0907 nodes=2

The nodes are local processes, each with its agent as on a cluster. Nothing is trained in this process.
"""

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from dist_ssl.errors import EXIT_CODE, ConfigError, UserError
from launch import settings
from launch.ending import FAILED, FINISHED, REFUSED, STOPPED, Ending
from launch.local import LocalAttempt, visible_gpus
from launch.progress_bar import RunView
from launch.run_dir import PROJECT, AttemptDir, RunDir

INTERRUPTED_CODE = 130
EXIT_CODES = {FINISHED: 0, STOPPED: 0, REFUSED: EXIT_CODE, FAILED: 1}


def place(config: dict[str, Any]) -> None:
    """Fill in what depends on this machine: ranks per node and threads. Raises ConfigError."""
    import torch

    for key in ("nodes", "ranks_per_node", "threads", "decode_threads"):
        value = config[key]
        if (value is None and key != "nodes") or (isinstance(value, int) and value >= 1):
            continue
        raise ConfigError(f"{key}={value} is not possible: it is a whole number of at least 1.", f"Set {key}=1, say.")
    gpus = torch.cuda.device_count() // config["nodes"]
    config["ranks_per_node"] = config["ranks_per_node"] or gpus or 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // (config["nodes"] * config["ranks_per_node"]))
    config["threads"] = config["threads"] or share
    config["decode_threads"] = config["decode_threads"] or config["threads"]


def make_data(config: dict[str, Any], console: Console) -> None:
    """Make the shards of a data set that our own code draws, on first use."""
    folder = Path(config["data"]["path"])
    if config["data"]["source"] == "demo" and not (folder / "manifest.json").exists():
        from shards.make import make

        console.print(f"Drawing the demo data into {folder} (once).", highlight=False)
        make("demo", folder, console)


def check(config: dict[str, Any]) -> str:
    """Check everything that can be checked before anything is started; the data's identity. Raises UserError."""
    from dist_ssl.build import check as check_parts

    place(config)
    return check_parts(config, config["nodes"] * config["ranks_per_node"])


def start(words: list[str], console: Console) -> tuple[RunDir, dict[str, Any]]:
    """A new run folder, with everything checked first."""
    config = settings.compose(words, PROJECT / "configs")
    make_data(config, console)
    config["data"]["identity"] = check(config)
    method = config["method"]["_target_"].split(".")[-2]
    run = RunDir.create(Path(config["runs"]), config["name"], method)
    run.begin(config, words)
    return run, config


def resume(words: list[str], folder: Path) -> tuple[RunDir, dict[str, Any]]:
    """A run that goes on, with the new words after those that it began with."""
    run = RunDir.open(folder)
    config = settings.compose([*run.overrides, *words], run.code / "configs")
    config["data"]["identity"] = run.config["data"]["identity"]
    settings.check_resume(run.config, config)
    keep_threads(run, config)
    check(config)
    return run, config


def keep_threads(run: RunDir, config: dict[str, Any]) -> None:
    """On as many nodes take as many threads as before: how threads split a sum is part of its bits."""
    if run.newest_attempt() and config["threads"] is None:
        last = AttemptDir(run, run.newest_attempt()).config
        if all(config[key] in (None, last[key]) for key in ("nodes", "ranks_per_node")):
            config["threads"] = last["threads"]


def say_how_it_ended(run: RunDir, words: list[str], ending: Ending, console: Console) -> None:
    """The last words on the screen: what happened, where things are, what to do next."""
    again = " ".join(["python launch/slurm.py", f"resume={run.folder}", *map(shlex.quote, words)])
    accuracy = RunView(run.folder, console).accuracy()
    score = f" kNN accuracy {100 * accuracy:.1f} %." if accuracy is not None else ""
    if ending.outcome == FINISHED:
        console.print(f"Finished.{score}\n  Run folder: {run.folder}", highlight=False)
        console.print(f"  Its numbers: {run.folder}/metrics.jsonl", highlight=False)
        console.print("  Next: longer (epochs=60), larger (encoder=resnet18 encoder.stem=small), or your own", end=" ")
        console.print("shards (data=shards data.path=...).", highlight=False)
    elif ending.outcome == STOPPED:
        how = ending.reason or "Stopped in order; nothing is lost."
        console.print(f"{how}{score}\n  Go on with: {again}", highlight=False)
    else:
        console.print(f"{ending.reason or 'The attempt failed.'}\n  Go on with: {again}", highlight=False)


def main(words: list[str]) -> int:
    """Run the command line; the exit code."""
    console = Console(soft_wrap=True)
    try:
        asked = [word for word in words if word.startswith("resume=")]
        others = [word for word in words if not word.startswith("resume=")]
        if asked:
            run, config = resume(others, Path(asked[-1].removeprefix("resume=")))
            return submit(run, config, others, console)
        run, config = start(others, console)
        return submit(run, config, [], console)
    except KeyboardInterrupt:
        console.print("Stopped before anything was started.", highlight=False)
        return INTERRUPTED_CODE
    except UserError as error:
        console.print(str(error), highlight=False, markup=False)
        return EXIT_CODE


def submit(run: RunDir, config: dict[str, Any], words: list[str], console: Console) -> int:
    """Run an attempt on this machine to its end; `words` are those of the resume."""
    if run.outcome() == FINISHED:
        console.print(f"{run.folder} has finished: nothing is left to train.", highlight=False)
        return 0
    nodes = config["nodes"]
    why = "No sbatch on the PATH" if shutil.which("sbatch") is None else "Jobs are not yet submitted to Slurm"
    console.print(f"{why}: the {nodes} nodes run as local processes.", highlight=False)
    if 0 < len(visible_gpus()) < nodes * config["ranks_per_node"]:
        console.print(f"Too few GPUs for {nodes} nodes: all ranks use the CPU. nodes=1 uses the GPUs.", highlight=False)
    console.print(f"Run folder: {run.folder}", highlight=False)
    attempt = run.new_attempt(config)
    ending = LocalAttempt(attempt, nodes, config["ranks_per_node"]).run(console)
    say_how_it_ended(run, words, ending, console)
    return EXIT_CODES[ending.outcome]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
