"""The launcher: starts, resumes, forks or follows a run.

Examples:

    python launch/slurm.py method=mocov3 nodes=4                               start a run
    python launch/slurm.py resume=runs/mocov3-1121-0907 nodes=2                resume it, on other nodes
    python launch/slurm.py resume=runs/mocov3-1121-0907 extend='24 epochs'     append a cycle to a finished run
    python launch/slurm.py fork=runs/mocov3-1121-0907@12000 epochs=20          start a run from a checkpoint of another
    python launch/slurm.py init=timm:resnet50 encoder=resnet50                 start from weights (timm, FILE, runs/X)
    python launch/slurm.py follow=runs/mocov3-1121-0907                        show the progress of a submitted run
    python launch/slurm.py -m method=mocov3 seed=0,1,2                         start a sweep: a run per combination
    python launch/slurm.py data=folder data.path=pictures nodes=1              train on a folder of pictures
    python launch/slurm.py method=mocov3 dry_run=true                          print the batch file and the config only

Arguments are key=value, for every key of the files in configs/, and trust=true, which resumes a run even where others
can change its folder, whose code runs. The launcher composes and checks the config, makes the run folder and starts the
nodes: as a Slurm job on a cluster, as local processes elsewhere. Training happens in other processes, never in this
one. Ctrl-C saves and stops; a second one kills.

Exit codes: 0 finished or submitted; 75 stopped in order; 1 failed; 2 something in the command, the data or the run must
be corrected; 130 interrupted.
"""

import gc
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from dist_ssl.config.command import INTERRUPTED_CODE, Screen, run_command, say
from dist_ssl.config.run_keys import method_of
from dist_ssl.errors import ConfigError, UserError
from dist_ssl.runtime.end_names import STOPPED
from dist_ssl.runtime.files import write_for_owner_alone
from launch import (
    credentials,
    following,
    launch_keys,
    preparation,
    run_lock,
    scheduler,
    submission,
    sweep,
    torchrun,
    trust,
)
from launch.allocation import AllocationAttempt
from launch.config_groups import keys_of_a_run
from launch.ending import CODE_OF_OUTCOME, STOPPED_CODE
from launch.environment_record import changes
from launch.handover import hand_over
from launch.last_lines import RUN_FOLDER, say_how_it_ended, train_longer
from launch.local import LocalAttempt
from launch.run_dir import PROJECT, RunDir
from launch.run_names import check_name, check_place
from launch.visible_gpus import why_on_the_cpu

INTERRUPTED = "Interrupted. Jobs submitted and run folders made before are listed above."
CODE_OF_THE_COMMAND = {**CODE_OF_OUTCOME, STOPPED: STOPPED_CODE}
"""Exit codes: a run that was stopped is not finished, so what a shell would do after it is not done."""
Prepared = tuple[RunDir, dict[str, Any]]


def run_here(run: RunDir, config: dict[str, Any], overrides: list[str], console: Console) -> int:
    """Run an attempt on this machine to its end; return the exit code. `overrides`: those of the resume command."""
    nodes, ranks = config["nodes"], config["nodes"] * config["ranks_per_node"]
    kind = AllocationAttempt if config["cluster"]["kind"] == "allocation" else LocalAttempt
    refuse_second_job(run)
    if kind is LocalAttempt and (note := why_on_the_cpu(ranks)):
        console.print(note, highlight=False)
    console.print(f"{RUN_FOLDER}{run.folder}", highlight=False)
    if note := changes(run, run.newest_attempt()):
        console.print(note, highlight=False, markup=False)
    with run_lock.held(run.folder):
        attempt = run.new_attempt(config)
        ending = kind(attempt, nodes, config["ranks_per_node"]).run(console)
    say_how_it_ended(run, overrides, ending, console, number=attempt.number)
    return CODE_OF_THE_COMMAND[ending.outcome]


def run_all_here(prepared: list[Prepared], overrides: list[str], console: Console) -> list[int]:
    """Run one after the other on this machine, until one is stopped; return the exit codes of those that were run."""
    codes: list[int] = []
    for run, config in prepared:
        if codes and codes[-1] == STOPPED_CODE:
            start = shlex.join(["python", "launch/slurm.py", f"resume={run.folder}", *overrides])
            console.print(f"Not started: {run.folder}. Start it with: {start}", highlight=False, markup=False)
        else:
            codes.append(run_here(run, config, overrides, console))
    return codes


def submit(prepared: list[Prepared], console: Console) -> None:
    """Submit a Slurm job for every run; several with the same cluster options as one array, if configured."""
    for run, config in prepared:
        refuse_second_job(run)
        run.submit(config)
    first = prepared[0][1]
    alike = all((c["cluster"], c["nodes"]) == (first["cluster"], first["nodes"]) for _, c in prepared)
    if len(prepared) > 1 and first["cluster"]["array"] and alike:
        folders = [run.folder.resolve() for run, _ in prepared]
        jobs = submission.submit(submission.array(first, sweep.new_sweep(folders[0].parent), folders), folders)
        for (run, _), job in zip(prepared, jobs, strict=True):
            say_submitted(run, job, console)
        return
    for run, config in prepared:
        folder = run.folder.resolve()
        say_submitted(run, submission.submit(submission.one(config, folder), [folder])[0], console)


def say_submitted(run: RunDir, job: str, console: Console) -> None:
    """Store the job's id in its run, and print how to follow and cancel the job."""
    console.print(f"Submitted job {job}.\n  Run folder: {run.folder}", highlight=False)
    run.note_job(job)  # after its number is printed: a full disk may keep it out of the file
    console.print(f"  Follow it: python launch/slurm.py {shlex.quote(f'follow={run.folder}')}", highlight=False)
    console.print(f"  Cancel it: scancel {job}", highlight=False)


def refuse_second_job(run: RunDir) -> None:
    """Raise ConfigError if a job of this run may still train: two jobs would overwrite each other's work."""
    job, _ = run.job
    state = scheduler.queue_state(job) if job else ""
    if state == scheduler.NO_ANSWER:
        raise ConfigError(f"Slurm does not say whether job {job} of {run.folder} has ended.", "Try again later.")
    if state:
        raise ConfigError(
            f"Job {job} of {run.folder} is still in the queue: {state.lower()}.",
            f"Follow it with follow={run.folder}, or cancel it first: scancel {job}",
        )


def follow(run: RunDir, overrides: list[str], console: Console) -> int:
    """Show the run until its job has ended; return the exit code. `overrides`: those of the resume command."""
    job, _ = run.job
    try:
        ending = following.follow(run, console)
    except KeyboardInterrupt:
        console.print(f"Job {job} keeps running. Cancel it: scancel {job}", highlight=False)
        return INTERRUPTED_CODE
    say_how_it_ended(run, overrides, ending, console)
    return CODE_OF_THE_COMMAND[ending.outcome]


def show(config: dict[str, Any], folder: Path, console: Console) -> int:
    """Print what `dry_run` shows: the batch file, if the run would use Slurm, and the config; return 0."""
    if config["cluster"]["kind"] == "slurm":
        console.print(submission.text(submission.one(config, folder.resolve())), highlight=False, markup=False)
    console.print(yaml.safe_dump(config, sort_keys=False), highlight=False, markup=False)
    return 0


def go(prepared: list[Prepared], overrides: list[str], console: Console) -> int:
    """Run or submit all runs; return the worst exit code. `overrides`: those of the resume command."""
    unfinished = [(run, config) for run, config in prepared if not preparation.trained(run, config)]
    for run in {run for run, _ in prepared} - {run for run, _ in unfinished}:
        done = f"{run.folder} has finished: nothing is left to train."
        console.print(f"{done}\n  {train_longer(run)}", highlight=False, markup=False)
    here = [(run, config) for run, config in unfinished if config["cluster"]["kind"] in ("local", "allocation")]
    jobs = [(run, config) for run, config in unfinished if config["cluster"]["kind"] == "slurm"]
    for run, config in unfinished:
        if config["cluster"]["kind"] == "torchrun":
            torchrun.say_how(run, config, overrides, console)
    if jobs:
        submit(jobs, console)
    codes = run_all_here(here, overrides, console)
    codes += [follow(run, preparation.of_the_run(overrides), console) for run, config in jobs if config["wait"]]
    return max(codes, default=0)


def command(arguments: list[str], console: Console) -> int:
    """Execute the arguments: start, fork, resume or follow; return the exit code. Raises UserError."""
    trusted, complete = trust.parse(arguments)
    arguments = credentials.set_aside(complete)
    given, others = of_a_run(arguments)
    if "follow" in given:
        run = RunDir.open(Path(given["follow"]))
        if not run.job[0]:
            raise ConfigError(
                f"{run.folder} was never submitted to Slurm.",
                f"Run it: python launch/slurm.py {shlex.quote(f'resume={run.folder}')}",
            )
        return follow(run, [], console)
    if "resume" in given:
        run = RunDir.open(Path(given["resume"]))
        check_place(run.folder)
        trust.check(run, trusted)
        hand_over(run, complete, console)
        run, config = preparation.resume(others, Path(given["resume"]), console)
        others = [argument for argument in others if not argument.startswith(preparation.EXTEND)]  # done once
        return show(config, run.folder, console) if config["dry_run"] else go([(run, config)], others, console)
    if "fork" in given:
        return start_fork(given["fork"], others, complete, trusted, console)
    return start(arguments, console, trusted)


def of_a_run(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return the run that the arguments name, by `resume`, `follow` or `fork`, and the other arguments.

    Raises ConfigError for several, for others beside `follow`, which would have no effect, and for a folder to pack.
    """
    found = [argument for argument in arguments if argument.startswith(launch_keys.OF_A_RUN)]
    others = [argument for argument in arguments if not argument.startswith(launch_keys.OF_A_RUN)]
    if len(found) > 1:
        raise ConfigError(f"{' '.join(found)} cannot be done at once.", "Give one of them.")
    given = dict(argument.partition("=")[::2] for argument in found)
    for key, value in given.items():
        if not value:
            raise ConfigError(f"{key} names no run.", f"Write {key}=runs/NAME{'@STEP' if key == 'fork' else ''}.")
    if given and launch_keys.FOLDER in others:
        raise ConfigError(f"{launch_keys.FOLDER} is for a new run: {found[0]} has its shards.", "Leave it out.")
    if "follow" in given and others:
        raise ConfigError(f"{others[0]} has no effect beside {found[0]}.", "Leave it out.")
    return given, others


def start_fork(name: str, overrides: list[str], complete: list[str], trusted: bool, console: Console) -> int:
    """Start the fork of a run; return the exit code. `complete`: the whole command line. Raises UserError."""
    from launch import forking  # needs torch, which no other way of use needs in this process so early

    source, checkpoint = forking.source_of(name)
    trust.check(source, trusted)
    hand_over(source, complete, console)
    config, words, progress = forking.forked_config(source, checkpoint, overrides, console)
    if config["dry_run"]:
        return show(config, planned(config), console)
    run = forking.begin(config, words, source, checkpoint, progress)
    return go_or_discard([(run, config)], console)


def planned(config: dict[str, Any]) -> Path:
    """Return the folder that a dry run shows for a new run, whose time is not part of it. Raises ConfigError."""
    runs, name = Path(config["runs"]), config["name"] or method_of(config)
    check_name(runs, name)
    return runs / name


def go_or_discard(prepared: list[Prepared], console: Console) -> int:
    """Run or submit new runs; return the worst exit code.

    Raises ConfigError, OSError; what was not started is removed then.

    So a corrected command may use the same name.
    """
    try:
        return go(prepared, [], console)
    except (ConfigError, OSError, KeyboardInterrupt):
        for run, _ in prepared:
            run.discard()
        raise


def start(arguments: list[str], console: Console, trusted: bool) -> int:
    """Start a new run, or several of a sweep; return the exit code. Raises UserError."""
    overrides = [argument for argument in arguments if argument not in sweep.FLAGS]
    combinations = sweep.expand(overrides) if overrides != arguments else [overrides]
    last: list[str] = []
    combinations = preparation.pack_folders(combinations, console, last)
    configs = [preparation.new_config(combination, console) for combination in combinations]
    if configs[0]["dry_run"]:
        code = max(show(config, planned(config), console) for config in configs)
        for text in last:
            say(console, text)
        return code
    runs: list[RunDir] = []
    try:
        for combination, config in zip(combinations, configs, strict=True):
            runs.append(preparation.begin(combination, config, weights_of(config, trusted, console)))
    except (UserError, KeyboardInterrupt):
        for run in runs:
            run.discard()
        raise
    return go_or_discard(list(zip(runs, configs, strict=True)), console)


def weights_of(config: dict[str, Any], trusted: bool, console: Console) -> bytes | None:
    """Return the content of the file with a run's initial weights, None without any. Raises UserError."""
    if config["init"] is None and config["init_sha256"] is None:
        return None
    from launch.warm_start import initial_weights  # needs timm, which takes seconds to import

    return initial_weights(config, trusted, console)


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    write_for_owner_alone()
    keys = partial(keys_of_a_run, PROJECT / "configs")
    return run_command(command, arguments, Screen(), interrupted=INTERRUPTED, more_help=keys)


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    gc.freeze()  # torch's objects: the interpreter would take a second to collect them one by one
    sys.exit(exit_code)
