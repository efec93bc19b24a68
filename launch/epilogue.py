"""The last step of a batch script: reports how the attempt ended and requeues the job if it was interrupted.

    python -m launch.epilogue RUN_FOLDER ATTEMPT EXIT_CODE

A job that saves and exits cleanly during its preemption grace time counts as completed, so Slurm would not requeue it.
A rank must not requeue it either, because it cannot distinguish a preempted job from one that the user cancelled.
The epilogue can: Slurm does not run it for a cancelled job, and Slurm's record of the job has the time of a preemption.
A job is requeued too if no rank failed by itself, but a node, a rank's connection or a data server was lost: Slurm
notices a dead node only minutes later, when the other ranks have long ended because of it. The node where something was
lost is left out of the next attempt, if enough others remain, until the job is requeued for another reason.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from dist_ssl.checkpoint.folder_names import LATEST
from dist_ssl.errors import EXIT_CODE, printable
from dist_ssl.runtime.end_names import FAILED, LOST, OUT_OF_TIME, PREEMPTED, REFUSED, STOPPED
from dist_ssl.runtime.files import write_for_owner_alone
from dist_ssl.runtime.signals import TIME_LIMIT
from launch import scheduler
from launch.end_notice import announce
from launch.ending import Ending, of_attempt
from launch.run_dir import AttemptDir, RunDir
from launch.suspect_nodes import excluded_now, exclusion, suspect_names

MOST_LOST = 5
"""Number of attempts in a row that may be lost before they have saved anything; a checkpoint starts the count again."""
TRIES, PAUSE_SECONDS = 5, 2.0
"""Number of requests to Slurm, and seconds between them.

The scheduler is slow to answer when it preempts many jobs at once, and the grace time is short.
"""
T = TypeVar("T")


def own_job() -> str:
    """Return the id of this job.

    Within an array it is ARRAY_TASK: SLURM_JOB_ID of the array's last task is also the id of the whole array.
    """
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def why_again(ending: Ending, record: dict[str, str], progressed: bool, lost_before: int = 0) -> str:
    """Return why the job must be requeued; empty if it must not.

    `progressed`: the attempt has saved a checkpoint; `lost_before`: see `lost_in_a_row`.
    """
    if record.get("JobState") == "CANCELLED" or not may_go_on(ending):
        return ""
    if record.get("PreemptTime", "None") not in ("None", "N/A"):
        return PREEMPTED
    if ending.signal == TIME_LIMIT.name and progressed:  # also where a rank died while it stopped
        return OUT_OF_TIME
    lost = ending.outcome == FAILED and ending.lost and not ending.signal
    return LOST if lost and (progressed or lost_before < MOST_LOST) else ""


def may_go_on(ending: Ending) -> bool:
    """Return whether another attempt may succeed where this one ended so.

    A rank that was asked to stop and could not save, for lack of room say, is no reason to stay down: the checkpoint
    before is whole, and the disk may have room again.
    """
    hindered = ending.signal and not (ending.cause or ending.diverged or ending.unreadable)
    return ending.outcome in (STOPPED, FAILED) or bool(ending.outcome == REFUSED and hindered)


def lost_in_a_row(run: RunDir, number: int) -> int:
    """Return how many attempts just before this one were lost without having saved anything."""
    count = 0
    for before in range(number - 1, 0, -1):
        ending = Ending.read(AttemptDir(run, before).outcome_file)
        if ending is None or ending.again != LOST or ending.saved:
            break
        count += 1
    return count


def persist(ask: Callable[[], T], good: Callable[[T], bool]) -> T:
    """Call `ask` up to TRIES times; return the first answer that is `good`, or the last one."""
    for _ in range(TRIES - 1):
        answer = ask()
        if good(answer):
            return answer
        time.sleep(PAUSE_SECONDS)
    return ask()


def has_progressed(attempt: AttemptDir) -> bool:
    """Return whether the attempt has saved a checkpoint; without one, a requeued job might never get further."""
    latest = attempt.run.checkpoints / LATEST
    return latest.is_file() and latest.stat().st_mtime > attempt.config_file.stat().st_mtime


def note(ending: Ending, path: Path) -> None:
    """Write how the attempt ended; a full disk must not keep the job from being requeued."""
    try:
        ending.write(path)
    except OSError as error:
        print(printable(f"{path} cannot be written: {error}"), flush=True)


def left_out_before(attempt: AttemptDir, record: dict[str, str]) -> list[str]:
    """Return the nodes that earlier attempts of this job have left out."""
    if record.get("Restarts", "0") == "0":
        return []  # the attempt before this one was another job's
    ending = Ending.read(AttemptDir(attempt.run, attempt.number - 1).outcome_file)
    return ending.left_out.split(",") if ending and ending.left_out else []


def leave_out(job: str, suspects: list[str], nodes: int, record: dict[str, str], before: list[str]) -> list[str]:
    """Let a requeued job get none of the nodes where it was lost; return all that are left out because of that.

    `before`: those of earlier attempts. What else the job excludes stays so.
    """
    chosen = exclusion(record, suspects, nodes, before)
    refusal = "without it the job might never get its nodes"
    if chosen:
        refusal = persist(lambda: scheduler.exclude(job, chosen), lambda refusal: not refusal)
    said = f"could not be left out: {refusal}" if refusal else "is left out of the next attempt"
    print(printable(f"{', '.join(suspects)} {said}"), flush=True)
    return before if refusal else [name for name in chosen if name in (*before, *suspects)]


def let_in(job: str, record: dict[str, str], before: list[str]) -> None:
    """Let a requeued job get again what it was kept from since something was lost there."""
    excluded = excluded_now(record) or []
    if set(before) & set(excluded):
        others = [name for name in excluded if name not in before]
        persist(lambda: scheduler.exclude(job, others), lambda refusal: not refusal)


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    write_for_owner_alone()
    run, number, code = RunDir.open(Path(arguments[0])), int(arguments[1]), int(arguments[2])
    attempt, job = AttemptDir(run, number), own_job()
    config, outcome = attempt.config, attempt.outcome_file
    # srun's own errors have the same exit code as an agent that refuses, but leave no reason
    refused = code == EXIT_CODE and any(map(attempt.reason, range(config["nodes"] * config["ranks_per_node"])))
    codes: list[int | None] = [EXIT_CODE if refused else None] * config["nodes"]
    ending = of_attempt(attempt, config["nodes"], config["ranks_per_node"], codes, lambda node: run.job_log(job, node))
    record = persist(lambda: scheduler.record(job), lambda found: "JobState" in found)
    ending = replace(ending, saved=has_progressed(attempt))
    why = why_again(ending, record, ending.saved, lost_in_a_row(run, number))
    before = left_out_before(attempt, record) if why else []
    again = replace(ending, again=why, left_out=",".join(before) if why == LOST else "")
    note(again, outcome)  # first: a requeue kills this process
    print(f"attempt {number}: {ending.outcome}{f', requeued ({why})' if why else ''}", flush=True)
    if why:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what a requeue sends at once; this and its children have time
        if refusal := persist(lambda: scheduler.requeue(job), lambda refusal: not refusal):
            print(printable(f"Slurm refused to requeue job {job}: {refusal}"), flush=True)
            note(replace(ending, reason=f"Slurm refused to requeue the job ({why}): {refusal}"), outcome)
        elif why == LOST and (suspects := suspect_names(attempt, config["nodes"])):
            left_out = leave_out(job, suspects, config["nodes"], record, before)
            note(replace(again, left_out=",".join(left_out)), outcome)
        elif why != LOST:
            let_in(job, record, before)
    announce(attempt, ending)  # last: the folder that it looks into may be another user's
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
