"""More ranks than the usual limit of open files allows can meet, and their checkpoints can be read."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dist_ssl.checkpoint.index import read, verify
from dist_ssl.distributed import world
from dist_ssl.runtime.open_files import MOST_FILES, allow_open_files
from tests.checkpoint.whole_checkpoints import put

RANKS = 80


@contextlib.contextmanager
def few_files(more: int) -> Iterator[int]:
    """This process may open so many more files than it has now; the limit of the machine."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + more, before[1]))
        yield before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_process_may_open_as_many_files_as_the_machine_allows() -> None:
    with few_files(20) as hard:
        allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(MOST_FILES, hard)


def test_a_checkpoint_of_more_ranks_than_open_files_are_usual_is_read(tmp_path: Path) -> None:
    state = {f"model/{number}": torch.full((3,), float(number)) for number in range(RANKS)}
    put(tmp_path, {"step": 1}, [state] * RANKS)
    for look in (read, verify):
        with few_files(RANKS // 2):
            look(tmp_path)


def test_ranks_that_torchrun_starts_may_open_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with few_files(20) as hard, world.joined(None):
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(MOST_FILES, hard)
