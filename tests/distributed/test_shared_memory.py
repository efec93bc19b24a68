"""Messages arrive whole and in rank order at any speed of the ranks, and a rank that does not write is named."""

import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_ssl.distributed.shared_memory import SharedFile, SharedMemory, file_bytes, remove_left_over, shared_path
from dist_ssl.distributed.world import World
from dist_ssl.errors import UserError
from tests.ranks import Ranks

CAPACITY = 4096


def test_every_round_of_threads_at_random_speeds_is_whole(tmp_path: Path) -> None:
    path = SharedFile(tmp_path, 3, CAPACITY).path
    wrong: list[tuple[int, int]] = []

    def talk(rank: int) -> None:
        memory = SharedMemory(path, rank, 3, CAPACITY, seconds=30)
        chance = np.random.default_rng(rank)
        for number in range(300):
            if chance.random() < 0.1:
                threading.Event().wait(0.0005)
            length = 1 + number * 13 % CAPACITY
            got = memory.exchange(np.full(length, (number + rank) % 256, dtype=np.uint8))
            expected = [np.full(length, (number + other) % 256) for other in range(3)]
            if not np.array_equal(got, np.stack(expected)):
                wrong.append((rank, number))

    threads = [threading.Thread(target=talk, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_silent_rank_is_named(tmp_path: Path) -> None:
    path = SharedFile(tmp_path, 2, CAPACITY).path
    memory = SharedMemory(path, 0, 2, CAPACITY, seconds=0.1)
    with pytest.raises(UserError, match="Rank 1 did not answer for 0 s"):
        memory.exchange(np.zeros(8, dtype=np.uint8))


def test_the_time_for_which_a_job_was_suspended_does_not_count_as_waited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = SharedFile(tmp_path, 2, CAPACITY).path
    own, other = (SharedMemory(path, rank, 2, CAPACITY, seconds=60) for rank in (0, 1))
    now, zeros = [1.0], np.zeros(8, dtype=np.uint8)
    woken_after = [86_400.0, 0.05]

    def suspended(*_: int) -> None:
        now[0] += woken_after.pop(0)
        if not woken_after:
            other.exchange(zeros)

    monkeypatch.setattr("dist_ssl.distributed.shared_memory.time.monotonic", lambda: now[0])
    monkeypatch.setattr(own.futexes, "wait", suspended)
    assert own.exchange(zeros).shape == (2, 8)


def test_the_file_of_a_killed_rank_is_removed_at_the_next_start_and_no_other(tmp_path: Path) -> None:
    old = time.time() - 60
    creating = "from dist_ssl.distributed.shared_memory import SharedFile; import pathlib, os, sys; "
    creating += "SharedFile(pathlib.Path(sys.argv[1]), 2, 4096); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", creating, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    remove_left_over(tmp_path)
    assert left.exists(), "it may have been created a moment ago"
    held, others = SharedFile(tmp_path, 2, CAPACITY), tmp_path / "dist_ssl-notes"
    others.touch()
    for path in (left, held.path, others):
        os.utime(path, (old, old))
    remove_left_over(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([held.path, others])
    held.remove()
    assert list(tmp_path.iterdir()) == [others]


HOLDER = """
import sys, time
from pathlib import Path
from dist_ssl.distributed.shared_memory import SharedMemory
memory = SharedMemory(Path(sys.argv[1]), 1, 2, 4096, seconds=60)
print(memory.liveness.locked, flush=True)
time.sleep(600)
"""


def test_a_wait_for_a_rank_that_was_killed_ends_with_an_error(tmp_path: Path) -> None:
    path = SharedFile(tmp_path, 2, CAPACITY).path
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "True\n"
        memory = SharedMemory(path, 0, 2, CAPACITY, seconds=60)
        assert memory.liveness.locked
        assert not memory.liveness.gone(1)
        memory.all_locked = True
        threading.Timer(0.5, holder.kill).start()
        with pytest.raises(ConnectionError, match="Rank 1 has ended"):
            memory.exchange(np.zeros(8, dtype=np.uint8))


WRITER = """
import sys
from pathlib import Path
import numpy as np
from dist_ssl.distributed.shared_memory import SharedMemory
from dist_ssl.errors import UserError
memory = SharedMemory(Path(sys.argv[1]), 1, 2, 4096, seconds=0)
try:
    memory.exchange(np.full(8, 3, dtype=np.uint8))
except UserError as error:
    print(error)
"""


def test_the_last_message_of_a_rank_that_has_ended_is_read(tmp_path: Path) -> None:
    path = SharedFile(tmp_path, 2, CAPACITY).path
    memory = SharedMemory(path, 0, 2, CAPACITY, seconds=60)
    memory.all_locked = True
    words = [sys.executable, "-c", WRITER, str(path)]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert said.startswith("Rank 0 did not answer"), "it has written"
    assert memory.liveness.gone(1)
    data = np.full(8, 3, dtype=np.uint8)
    assert np.array_equal(memory.exchange(data), np.stack([data, data]))
    with pytest.raises(ConnectionError, match="Rank 1 has ended"):
        memory.exchange(data)


def test_a_message_of_another_round_is_not_taken(tmp_path: Path) -> None:
    path = SharedFile(tmp_path, 2, CAPACITY).path
    early = SharedMemory(path, 1, 2, CAPACITY, seconds=0.05)
    early.round = 6  # its next message is of round 7
    with pytest.raises(UserError):
        early.exchange(np.ones(8, dtype=np.uint8))
    memory = SharedMemory(path, 0, 2, CAPACITY, seconds=0.05)
    with pytest.raises(UserError, match="Rank 1"):
        memory.exchange(np.zeros(8, dtype=np.uint8))


def sums(world: World, with_shared_memory: bool) -> tuple[torch.Tensor, torch.Tensor]:
    assert world.shared_memory is not None
    used = world if with_shared_memory else World(world.rank, world.size, device=world.device, host=world.host)
    x = torch.randn(1000, generator=torch.Generator().manual_seed(world.rank))
    return used.sum_const(x), used.gather_const(x)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_sums_have_the_same_bits_through_shared_memory_and_through_sockets(ranks: Ranks, size: int) -> None:
    messages, sockets = ranks.run(sums, size, True), ranks.run(sums, size, False)
    for (total, rows), (other_total, other_rows) in zip(messages, sockets, strict=True):
        assert torch.equal(total, messages[0][0])
        assert torch.equal(total, other_total)
        assert torch.equal(rows, other_rows)


@pytest.mark.parametrize("name", ["/etc/passwd", "../thesis", "thesis", "dist_ssl-", None, 3, f"dist_ssl-{'a' * 32}\n"])
def test_a_message_does_not_say_which_file_is_written_to(tmp_path: Path, name: object) -> None:
    with pytest.raises(ValueError, match="no name of shared memory"):
        shared_path(tmp_path, name)
    path = SharedFile(tmp_path, 2, CAPACITY).path
    assert shared_path(tmp_path, path.name) == path


def test_a_file_that_is_not_the_ranks_own_stays_as_it_is(tmp_path: Path) -> None:
    canary, link = tmp_path / "thesis", tmp_path / "link"
    canary.write_bytes(b"x" * (file_bytes(2, CAPACITY) + 1))
    with pytest.raises(ValueError, match="is not the shared memory of these ranks"):
        SharedMemory(canary, 1, 2, CAPACITY, seconds=0.1)
    canary.write_bytes(b"x" * file_bytes(2, CAPACITY))
    link.symlink_to(canary)
    with pytest.raises(OSError, match="symbolic links"):
        SharedMemory(link, 1, 2, CAPACITY, seconds=0.1)
    assert canary.read_bytes().strip(b"x") == b""


@pytest.mark.parametrize("umask", [0, 0o002])
def test_shared_memory_is_for_its_owner_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        file = SharedFile(tmp_path, 2, CAPACITY)
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    file.remove()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away and become another user")
def test_another_user_neither_reads_the_ranks_memory_nor_gives_them_its_own() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)  # pytest's own folders are for their owner alone
        file = SharedFile(folder, 2, CAPACITY)
        code = "import os, sys; os.setuid(12345); open(sys.argv[1], sys.argv[2])"
        for mode in ("rb", "r+b"):
            done = subprocess.run(
                [sys.executable, "-c", code, str(file.path), mode], capture_output=True, text=True, check=False
            )
            assert "PermissionError" in done.stderr
        os.chown(file.path, 12345, 12345)
        with pytest.raises(ValueError, match="is not the shared memory of these ranks"):
            SharedMemory(file.path, 1, 2, CAPACITY, seconds=0.1)
        file.remove()
