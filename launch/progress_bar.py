"""What a person sees of a run, read from its folder: a live bar on a terminal, a line per epoch elsewhere."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

DASH = "-"


def clock(seconds: float) -> str:
    """Seconds as `4:05` or `1:04:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def epoch_line(report: dict[str, float]) -> str:
    """One epoch in words, from its line in metrics.jsonl."""
    accuracy = f"kNN {100 * report['knn_accuracy']:5.1f} %"
    return f"epoch {int(report['epoch']):3d}   step {int(report['step']):6d}   {accuracy}"


class RunView:
    """Follows the run in `folder` on this console; as a context manager, `refresh` it now and then."""

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder, self.console = folder, console
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.fields[numbers]}"))
        self.bar = Progress(*columns, console=console, transient=True)
        self.task = self.bar.add_task("starting", total=None, numbers="the ranks load torch and find each other")
        self.read_to, self.read_of = 0, 0
        self.waiting, self.told = False, ""
        self._skip_old()

    def __enter__(self) -> "RunView":
        if self.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refresh()
        if self.console.is_terminal:
            self.bar.stop()

    def refresh(self) -> None:
        """Show what is new."""
        for report in self._new_reports():
            if "knn_accuracy" in report:
                self.console.print(epoch_line(report), highlight=False)
        status = self._status()
        if status and "total_steps" in status and not self.waiting:
            self.bar.update(self.task, total=status["total_steps"], completed=status["step"])
            self.bar.update(self.task, description=self._description(status), numbers=self._numbers(status))

    def queue(self, who: str, state: str) -> None:
        """Show where a job is in the queue while it does not run: what the folder says is history then."""
        self.waiting = not state.startswith("RUNNING") and state not in ("", "?")
        if self.waiting:
            self.bar.update(self.task, description=f"{who}: {state.lower()}", numbers="")
        if self.waiting and not self.console.is_terminal and state != self.told:
            self.say(f"{who}: {state.lower()}")
            self.told = state

    def say(self, note: str) -> None:
        """Print a note above the bar."""
        self.console.print(note, highlight=False, markup=False)

    def accuracy(self) -> float | None:
        """The newest kNN accuracy, 0 to 1."""
        return (self._status() or {}).get("knn_accuracy")

    def _description(self, status: dict[str, Any]) -> str:
        epoch = min(int(status["epoch"]) + 1, int(status["epochs"]))
        return f"epoch {epoch}/{int(status['epochs'])}"

    def _numbers(self, status: dict[str, Any]) -> str:
        parts = [f"step {int(status['step'])}/{int(status['total_steps'])}"]
        if "loss" in status:
            parts.append(f"loss {status['loss']:.3f}")
        if "images_per_second" in status:
            parts.append(f"{status['images_per_second']:.0f} images/s")
        if "seconds_left" in status:
            parts.append(f"{clock(status['seconds_left'])} left")
        return "  ".join(parts)

    def _status(self) -> dict[str, Any] | None:
        path = self.folder / "status.json"
        if not path.is_file():
            return None
        values: dict[str, Any] = json.loads(path.read_text())
        return values

    def _skip_old(self) -> None:
        """Reports of earlier attempts have been shown; an attempt may drop some of their lines when it begins."""
        self.shown_step = max((r["step"] for r in self._reports() if "knn_accuracy" in r), default=-1.0)

    def _new_reports(self) -> Iterator[dict[str, float]]:
        for report in self._reports():
            if "knn_accuracy" in report and report["step"] > self.shown_step:
                self.shown_step = report["step"]
                yield report

    def _reports(self) -> Iterator[dict[str, float]]:
        """What was added since the last look; the whole file where an attempt has put a shorter one in its place."""
        path = self.folder / "metrics.jsonl"
        if not path.is_file():
            return
        with path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino  # by its length alone, one that has grown again is not told apart
            if inode != self.read_of:
                self.read_to, self.read_of = 0, inode
            file.seek(self.read_to)
            for line in file:
                if not line.endswith(b"}\n"):
                    return
                self.read_to += len(line)
                yield json.loads(line)
