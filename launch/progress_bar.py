"""The display of a run, read from its folder: a live bar on a terminal, and one line per epoch anywhere."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from dist_ssl.config.durations import clock
from dist_ssl.errors import plural
from dist_ssl.evaluate.confidence import shown_interval
from dist_ssl.runtime.run_folder import RunFolder
from dist_ssl.runtime.strange_files import numbers, parsed_object
from launch.run_files import read_numbers

DASH = "-"
MOST_LINE = 1 << 20
"""Bytes of a report, at most."""
POSITION = {"step", "total_steps", "epoch", "epochs"}
"""Keys of a status that say where a run is."""
OF_AN_EPOCH = {"step", "epoch", "knn_accuracy"}
"""Keys of a report that makes a line of its own."""


def epoch_line(report: dict[str, float]) -> str:
    """Return the printed line of one epoch, from its report in metrics.jsonl."""
    accuracy = f"kNN {100 * report['knn_accuracy']:5.1f} %"
    return f"epoch {int(report['epoch']):3d}   step {int(report['step']):6d}   {accuracy}"


class RunView:
    """The display of the run in `folder` on a console; a context manager, within which `refresh` shows what is new."""

    def __init__(self, folder: Path, console: Console) -> None:
        self.files, self.console = RunFolder(folder), console
        words = [TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[numbers]}")]
        columns = (words[0], BarColumn(bar_width=24), words[1])
        self.bar = Progress(*columns, console=console, transient=True)
        self.task = self.bar.add_task("starting", total=None, numbers="the ranks load torch and connect")
        self.read_to, self.read_of = 0, 0
        self.waiting, self.shown_state = False, ""
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
        """Print new epochs and update the bar."""
        for report in self._new_reports():
            self.console.print(epoch_line(report), highlight=False)
        status = self._status()
        if status.keys() >= POSITION and not self.waiting:
            self.bar.update(self.task, total=status["total_steps"], completed=status["step"])
            self.bar.update(self.task, description=self._description(status), numbers=self._numbers(status))

    def queue(self, job: str, state: str) -> None:
        """Show the queue state of a job that does not run; the status in the folder is outdated then."""
        self.waiting = not state.startswith("RUNNING") and state not in ("", "?")
        if self.waiting:
            self.bar.update(self.task, description=f"{job}: {state.lower()}", numbers="")
        if self.waiting and not self.console.is_terminal and state != self.shown_state:
            self.say(f"{job}: {state.lower()}")
            self.shown_state = state

    def say(self, note: str) -> None:
        """Print a line above the bar."""
        self.console.print(note, highlight=False, markup=False)

    def accuracy(self) -> str:
        """Return the newest kNN accuracy with its 95 % confidence interval, as text; empty without one."""
        status = self._status()
        if "knn_accuracy" not in status:
            return ""
        found, images = float(status["knn_accuracy"]), int(status.get("queries", 0))
        if images < 1 or not 0 <= found <= 1:
            return f"kNN accuracy {100 * found:.1f} %"
        return f"kNN accuracy {100 * found:.1f} % of {plural(images, 'image')} {shown_interval(found, images)}"

    def _description(self, status: dict[str, float]) -> str:
        epoch = min(int(status["epoch"]) + 1, int(status["epochs"]))
        return f"epoch {epoch}/{int(status['epochs'])}"

    def _numbers(self, status: dict[str, float]) -> str:
        parts = [f"step {int(status['step'])}/{int(status['total_steps'])}"]
        if "loss" in status:
            parts.append(f"loss {status['loss']:.3f}")
        if "images_per_second" in status:
            parts.append(f"{status['images_per_second']:.0f} images/s")
        if "seconds_left" in status:
            parts.append(f"{clock(status['seconds_left'])} left")
        return "  ".join(parts)

    def _status(self) -> dict[str, float]:
        """Return the numbers of the newest status; empty without one."""
        return read_numbers(self.files.status)

    def _skip_old(self) -> None:
        """Skip the reports of earlier attempts, which have been shown; a new attempt may remove some of them."""
        self.shown_step = max((report["step"] for report in self._reports()), default=-1.0)

    def _new_reports(self) -> Iterator[dict[str, float]]:
        for report in self._reports():
            if report["step"] > self.shown_step:
                self.shown_step = report["step"]
                yield report

    def _reports(self) -> Iterator[dict[str, float]]:
        """Yield the reports of epochs added since the last call, or all if an attempt has replaced the file.

        A line that is not complete yet is read again; from one of more than MOST_LINE bytes on nothing is.
        """
        path = self.files.metrics
        if not path.is_file():
            return
        with path.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino  # the length does not reveal a new file that has grown as long
            if inode != self.read_of:
                self.read_to, self.read_of = 0, inode
            file.seek(self.read_to)
            while (line := file.readline(MOST_LINE)).endswith(b"\n"):
                self.read_to += len(line)
                report = numbers(parsed_object(line) or {})
                if report.keys() >= OF_AN_EPOCH:
                    yield report
