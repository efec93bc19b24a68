"""Runs rows of a table, each in a process of its own, and keeps their numbers."""

import math
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess

from rich.console import Console

from launch.run_dir import PROJECT
from tests.benchmarks.table_rows import Found, Results, Row


class Runner:
    """Runs rows, each in a process that is forked from one that has imported torch already, and keeps their numbers."""

    def __init__(self, results: Results, console: Console, minutes: float | None) -> None:
        self.results, self.console = results, console
        self.until = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self.live: set[BaseProcess] = set()
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["__main__", "tests.benchmarks.one_row"])

    def run(self, row: Row) -> str:
        """Run a row, unless it is done or the time is over; return why it broke, if it did.

        A row that diverged is done; what a setting of the tuning may do.
        """
        found = self.results.get(row)
        if found is None:
            if time.monotonic() > self.until:
                return ""
            found = self._measured(row)
            self.console.print(f"{row.name}: {said(found)}", soft_wrap=True)
            if found.get("diverged", True):
                self.results.add(row, found)
        accepted = "broken" not in found or (row.split == "train" and found["diverged"])
        return "" if accepted else f"{row.name}: {found['broken']}"

    def _measured(self, row: Row) -> Found:
        from tests.benchmarks.one_row import work

        source, sink = self.context.Pipe(duplex=False)
        given = (sink, list(row.words), row.budget, row.split, row.bag)
        process = self.context.Process(target=work, args=given)
        process.start()
        self.live.add(process)
        sink.close()
        try:
            found: Found = source.recv()
        except EOFError:
            found = {"broken": "its process ended without an answer", "diverged": False}
        process.join()
        self.live.discard(process)
        return found

    def run_all(self, rows: Sequence[Row], jobs: int) -> list[str]:
        """Run rows, `jobs` beside each other, and return why some broke."""
        with ThreadPoolExecutor(jobs) as pool:
            try:
                return [what for what in pool.map(self.run, rows) if what]
            except KeyboardInterrupt:
                self.until = -math.inf
                for process in list(self.live):
                    process.terminate()
                raise


def said(found: Found) -> str:
    """Return a line about what a row found."""
    if "broken" in found:
        return f"broke: {found['broken']}"
    shown = [
        f"{name} {100 * found[name]:.1f} %" for name in ("knn", "linear", "bag_knn", "bag_linear") if name in found
    ]
    return f"{', '.join(shown)}, {found['seconds']:.0f} s of training, {found['process_seconds']:.0f} s in all"
