"""Real gloo processes that are kept alive over many tests: every call joins a fresh world and leaves it again."""

import itertools
import os
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests import forks

if TYPE_CHECKING:
    from torch import Tensor

    from dist_ssl.distributed.world import World

WAIT_SECONDS = 600
"""A bound that only ranks that hang reach."""


def serve(line: Connection, rank: int) -> None:
    """One process: takes (function, size, meeting, grouped, arguments), answers (worked, result)."""
    import torch
    import torch.distributed as dist

    from dist_ssl.distributed.world import Waits, joined

    torch.set_num_threads(1)
    while True:
        function, size, meeting, grouped, arguments = line.recv()
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size))
        try:
            with joined(meeting, Waits(30, 30), grouped=grouped) as world:
                answer = (True, function(world, *arguments))
        except BaseException:
            answer = (False, traceback.format_exc())
            if dist.is_initialized():
                dist.destroy_process_group()
        line.send(answer)


class Ranks:
    """At most `most` processes; `run` uses as many as it is asked for.

    `grouped`: a single one has process groups too. `seconds`: that it may take to answer.
    """

    def __init__(self, most: int = 4, *, grouped: bool = False, seconds: float = WAIT_SECONDS) -> None:
        self.grouped, self.seconds = grouped, seconds
        self.folder = tempfile.TemporaryDirectory()
        self.calls = itertools.count()
        self.lines: list[Connection] = []
        self.processes = []
        for rank in range(most):
            ours, theirs = forks.pipe()
            self.processes.append(forks.start(serve, theirs, rank))
            self.lines.append(ours)

    def run(self, function: Callable[..., Any], size: int, *arguments: Any) -> list[Any]:
        """`function(world, *arguments)` on every rank of a world of `size`; the results in rank order."""
        meeting = Path(self.folder.name) / f"{next(self.calls)}" / "rendezvous.json"
        lines = self.lines[:size]
        for line in lines:
            line.send((function, size, meeting, self.grouped, arguments))
        answers = [self._answer(line) for line in lines]
        failed = [text for worked, text in answers if not worked]
        if failed:
            raise AssertionError("\n".join(failed))
        return [result for _, result in answers]

    def _answer(self, line: Connection) -> Any:
        if not line.poll(self.seconds):
            self.close()
            raise AssertionError(f"A rank gave no answer in {self.seconds} s.")
        try:
            return line.recv()
        except (EOFError, ConnectionError):
            self.close()
            raise AssertionError("A rank died before it answered.") from None

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.kill()
            process.join()
        self.folder.cleanup()


def collect_tensors(world: "World", own: "Tensor") -> "list[Tensor]":
    """This tensor of every rank, in rank order; they may differ in shape."""
    import torch

    values = world.collect([str(own.dtype).removeprefix("torch."), list(own.shape), own.flatten().tolist()])
    return [torch.tensor(numbers, dtype=getattr(torch, dtype)).view(shape) for dtype, shape, numbers in values]
