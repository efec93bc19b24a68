"""The last lines of the launcher: how an attempt ended, where its files are, and the commands that fit."""

import shlex

from rich.console import Console

from dist_ssl.checkpoint.folder_names import ENCODER, published
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.end_names import FINISHED, STOPPED
from launch.ending import Ending
from launch.progress_bar import RunView
from launch.run_dir import RunDir

RUN_FOLDER = "Run folder: "
"""Beginning of the line that names the run folder."""


def say_how_it_ended(run: RunDir, overrides: list[str], ending: Ending, console: Console, *, number: int = 0) -> None:
    """Print how a run ended, where its files are, and the next command; `overrides`: those of the resume command.

    `number`: that of the attempt, where a newer one may have taken the run over.
    """
    accuracy = RunView(run.folder, console).accuracy()
    score = f" {accuracy}{of_what(run)}." if accuracy else ""
    if ending.outcome == FINISHED:
        lines = [f"Finished.{score}", *of_a_finished_run(run)]
    elif ending.outcome == STOPPED:
        lines = [f"{ending.reason or 'Stopped after saving; nothing is lost.'}{score}", resume_with(run, overrides)]
    else:
        lines = [ending.reason or "The attempt failed."]
        if not ending.unreadable and not 0 < number < run.newest_attempt():
            lines.append(from_old_weights(run) if ending.diverged else resume_with(run, overrides))
    console.print("\n  ".join(lines), highlight=False, markup=False)


def of_what(run: RunDir) -> str:
    """Return what must be said of an accuracy that was measured on the images of the training split; else nothing."""
    data = run.config.get("data")
    same = isinstance(data, dict) and data.get("val") is not None and data.get("val") == data.get("train")
    return ", which are trained on: it says nothing of other images" if same else ""


def resume_with(run: RunDir, overrides: list[str]) -> str:
    """Return the line with the command that resumes the run."""
    again = shlex.join(["python", "launch/slurm.py", f"resume={run.folder}", *overrides])
    return f"Resume with: {again}"


def from_old_weights(run: RunDir) -> str:
    """Return the line with the command that goes on where a resume would diverge again."""
    if not published(run.checkpoints):
        return "Nothing was saved yet: start a new run."
    fork = shlex.join(["python", "launch/slurm.py", f"fork={run.folder}@latest"])
    return f"Start from its last checkpoint with a lower rate: {fork} optim.base_lr=..."


def train_longer(run: RunDir) -> str:
    """Return the line with the command that appends a cycle to a finished run."""
    again = shlex.join(["python", "launch/slurm.py", f"resume={run.folder}"])
    return f"Train longer: {again} extend='24 epochs'"


def of_a_finished_run(run: RunDir) -> list[str]:
    """Return the lines about the files of a finished run, and its use."""
    lines = [f"{RUN_FOLDER}{run.folder}", f"Metrics: {run.metrics}"]
    if bad := len(jsonl.read(run.quarantine)):
        lines.append(f"Samples that could not be read: {bad}, in {run.quarantine}")
    lines.append(train_longer(run))
    data = run.config.get("data")
    if isinstance(data, dict) and data.get("source") is not None:  # data that our own code draws
        own, larger = "data=folder data.path=...", "encoder=resnet18 encoder.stem=small"
        lines.append(f"Next: your own images ({own}), or a larger encoder ({larger}).")
    if not (run.folder / ENCODER).is_file():
        again = shlex.join(["python", "launch/export.py", f"run={run.folder}", "to=safetensors"])
        return [*lines, f"Its encoder could not be written, as a log says. Write it: {again}"]
    return [
        *lines,
        f"Use the encoder: import dist_ssl; encoder = dist_ssl.load_encoder({str(run.folder)!r})",
        "                 features = encoder.embed(['a.jpg', 'b.jpg'])",
    ]
