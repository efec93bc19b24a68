"""Start, resume or follow a run: compose the config, check it, make the run folder, and start its nodes.

    python launch/slurm.py method=mocov3 nodes=4
    python launch/slurm.py resume=runs/mocov3-1121-0907 nodes=2
    python launch/slurm.py follow=runs/mocov3-1121-0907
    python launch/slurm.py -m method=mocov3 seed=0,1,2

On a cluster the nodes are those of a Slurm job, elsewhere local processes, each with its agent as on a cluster.
Nothing is trained in this process.
"""

import gc
import shlex
import sys
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from dist_ssl.errors import EXIT_CODE, ConfigError, UserError
from dist_ssl.runtime import jsonl
from launch import credentials, following, preparation, scheduler, submission, sweep
from launch.ending import FAILED, FINISHED, REFUSED, STOPPED, Ending
from launch.handover import hand_over
from launch.local import LocalAttempt, visible_gpus
from launch.progress_bar import RunView
from launch.run_dir import RunDir

INTERRUPTED_CODE = 130
EXIT_CODES = {FINISHED: 0, STOPPED: 0, REFUSED: EXIT_CODE, FAILED: 1}
Prepared = tuple[RunDir, dict[str, Any]]


def say_how_it_ended(run: RunDir, words: list[str], ending: Ending, console: Console) -> None:
    """The last words on the screen: what happened, where things are, what to do next."""
    again = " ".join(["python launch/slurm.py", *map(shlex.quote, [f"resume={run.folder}", *words])])
    accuracy = RunView(run.folder, console).accuracy()
    score = f" kNN accuracy {100 * accuracy:.1f} %." if accuracy is not None else ""
    if ending.outcome == FINISHED:
        console.print(f"Finished.{score}\n  Run folder: {run.folder}", highlight=False)
        console.print(f"  Its numbers: {run.folder}/metrics.jsonl", highlight=False)
        if bad := len(jsonl.read(run.folder / "quarantine.jsonl")):
            console.print(f"  Samples that could not be read: {bad}, in {run.folder}/quarantine.jsonl", highlight=False)
        console.print("  Next: longer (epochs=60), larger (encoder=resnet18 encoder.stem=small), or your own", end=" ")
        console.print("shards (data=shards data.path=...).", highlight=False)
    elif ending.outcome == STOPPED:
        how = ending.reason or "Stopped in order; nothing is lost."
        console.print(f"{how}{score}\n  Go on with: {again}", highlight=False, markup=False)
    else:
        how = ending.reason or "The attempt failed."
        console.print(f"{how}\n  Go on with: {again}", highlight=False, markup=False)


def run_here(run: RunDir, config: dict[str, Any], words: list[str], console: Console) -> int:
    """Run an attempt on this machine to its end; `words` are those of the resume."""
    nodes = config["nodes"]
    refuse_second_job(run)
    if 0 < len(visible_gpus()) < nodes * config["ranks_per_node"]:
        console.print(f"Too few GPUs for {nodes} nodes: all ranks use the CPU. nodes=1 uses the GPUs.", highlight=False)
    console.print(f"Run folder: {run.folder}", highlight=False)
    attempt = run.new_attempt(config)
    ending = LocalAttempt(attempt, nodes, config["ranks_per_node"]).run(console)
    say_how_it_ended(run, words, ending, console)
    return EXIT_CODES[ending.outcome]


def submit(prepared: list[Prepared], console: Console) -> None:
    """Submit a Slurm job for every run: one array where there are several and their config asks for one."""
    for run, config in prepared:
        refuse_second_job(run)
        run.submit(config)
    first = prepared[0][1]
    alike = all((c["cluster"], c["nodes"]) == (first["cluster"], first["nodes"]) for _, c in prepared)
    if len(prepared) > 1 and first["cluster"]["array"] and alike:
        folders = [run.folder.resolve() for run, _ in prepared]
        jobs = submission.submit(submission.array(first, sweep.new_folder(folders[0].parent), folders), folders)
        for (run, _), job in zip(prepared, jobs, strict=True):
            say_submitted(run, job, console)
        return
    for run, config in prepared:
        folder = run.folder.resolve()
        say_submitted(run, submission.submit(submission.one(config, folder), [folder])[0], console)


def say_submitted(run: RunDir, job: str, console: Console) -> None:
    """Note the job in its run and say what can be done with it."""
    run.note_job(job)
    console.print(f"Submitted job {job}.\n  Run folder: {run.folder}", highlight=False)
    console.print(f"  Follow it: python launch/slurm.py {shlex.quote(f'follow={run.folder}')}", highlight=False)
    console.print(f"  Cancel it: scancel {job}", highlight=False)


def refuse_second_job(run: RunDir) -> None:
    """Raise ConfigError where a job of this run may still train: two would take turns in undoing each other."""
    job, _ = run.job
    state = scheduler.queue_state(job) if job else ""
    if state == scheduler.NO_ANSWER:
        raise ConfigError(f"Slurm does not say whether job {job} of {run.folder} has ended.", "Try again later.")
    if state:
        raise ConfigError(
            f"Job {job} of {run.folder} is still in the queue: {state.lower()}.",
            f"Follow it with follow={run.folder}, or cancel it first: scancel {job}",
        )


def follow(run: RunDir, words: list[str], console: Console) -> int:
    """Stay until the run's job has ended; `words` are those of a resume."""
    job, _ = run.job
    try:
        ending = following.follow(run, console)
    except KeyboardInterrupt:
        console.print(f"Job {job} goes on. Cancel it: scancel {job}", highlight=False)
        return INTERRUPTED_CODE
    say_how_it_ended(run, words, ending, console)
    return EXIT_CODES[ending.outcome]


def show(config: dict[str, Any], folder: Path, console: Console) -> int:
    """What `dry_run` prints: the batch file, where there would be one, and the config."""
    if config["cluster"]["kind"] == "slurm":
        console.print(submission.text(submission.one(config, folder.resolve())), highlight=False, markup=False)
    console.print(yaml.safe_dump(config, sort_keys=False), highlight=False, markup=False)
    return 0


def go(prepared: list[Prepared], words: list[str], console: Console) -> int:
    """Run or submit; the exit code is the worst of all. `words` are those of a resume."""
    unfinished = [(run, config) for run, config in prepared if run.outcome() != FINISHED]
    for run in {run for run, _ in prepared} - {run for run, _ in unfinished}:
        console.print(f"{run.folder} has finished: nothing is left to train.", highlight=False)
    here = [(run, config) for run, config in unfinished if config["cluster"]["kind"] == "local"]
    jobs = [(run, config) for run, config in unfinished if config["cluster"]["kind"] == "slurm"]
    if jobs:
        submit(jobs, console)
    codes = [run_here(run, config, words, console) for run, config in here]
    codes += [follow(run, preparation.of_the_run(words), console) for run, config in jobs if config["wait"]]
    return max(codes, default=0)


def command(words: list[str], console: Console) -> int:
    """What the words ask for; the exit code."""
    whole, words = words, credentials.set_aside(words)
    given = {
        key: word.partition("=")[2] for word in words for key in ("resume", "follow") if word.startswith(f"{key}=")
    }
    others = [word for word in words if not word.startswith(("resume=", "follow="))]
    if "follow" in given:
        run = RunDir.open(Path(given["follow"]))
        if not run.job[0]:
            raise ConfigError(f"{run.folder} was never submitted to Slurm.", f"Run it: resume={run.folder}")
        return follow(run, [], console)
    if "resume" in given:
        hand_over(RunDir.open(Path(given["resume"])), whole, console)
        run, config = preparation.resume(others, Path(given["resume"]), console)
        return show(config, run.folder, console) if config["dry_run"] else go([(run, config)], others, console)
    several = any(word in sweep.FLAGS for word in words)
    combinations = sweep.expand([w for w in words if w not in sweep.FLAGS]) if several else [words]
    configs = [preparation.new_config(combination, console) for combination in combinations]
    if configs[0]["dry_run"]:
        names = [config["name"] or preparation.method_of(config) for config in configs]
        return max(show(c, Path(c["runs"]) / name, console) for c, name in zip(configs, names, strict=True))
    runs: list[RunDir] = []
    try:
        for combination, config in zip(combinations, configs, strict=True):
            runs.append(preparation.begin(combination, config))
        return go(list(zip(runs, configs, strict=True)), [], console)
    except (ConfigError, KeyboardInterrupt):
        for run in runs:
            run.discard()  # nothing was submitted: a command that is mended may use the name
        raise


def main(words: list[str]) -> int:
    """Run the command line; the exit code."""
    console = Console(soft_wrap=True)
    try:
        return command(words, console)
    except KeyboardInterrupt:
        console.print("Stopped. What was submitted or begun before is named above.", highlight=False)
        return INTERRUPTED_CODE
    except UserError as error:
        console.print(str(error), highlight=False, markup=False)
        return EXIT_CODE


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    gc.freeze()  # torch's objects: the interpreter would take a second to collect them one by one
    sys.exit(exit_code)
