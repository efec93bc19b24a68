"""Ranks of an attempt meet; values and stores that are not from the attempt's own ranks are refused."""

import math
import os
import pickle
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed import Store, TCPStore

from dist_ssl.distributed import store
from dist_ssl.distributed.rendezvous import LOOPBACK, Meeting, Network
from dist_ssl.distributed.store import SignedStore, meet
from dist_ssl.errors import UserError
from launch.run_dir import PROJECT

STRANGER = 12345
"""Id of another user."""
INTRUDER = """
import os, pickle, sys
from datetime import timedelta
from torch.distributed import TCPStore

class Canary:
    def __reduce__(self):
        return os.system, (f"touch {sys.argv[2]}",)

os.setgid(int(sys.argv[3])), os.setuid(int(sys.argv[3]))
try:
    open(sys.argv[4]).read()
except PermissionError:
    print("the secret cannot be read")
store = TCPStore("127.0.0.1", int(sys.argv[1]), is_master=False, timeout=timedelta(seconds=20))
store.set("here/1", pickle.dumps(Canary()))
print("the store has been written to")
"""


def test_a_rank_that_does_not_come_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"After 0 s rank 1, 2 of 3 had not come"):
        meet(tmp_path / "rendezvous.json", rank=0, size=3, seconds=0.2)


@given(st.sets(st.integers(0, 99)), st.integers(1, 100))
def test_the_ranks_that_have_not_come_are_found_by_few_questions(here: set[int], size: int) -> None:
    class Some:
        asked = 0

        def check(self, keys: list[str]) -> bool:
            self.asked += 1
            return all(int(key) in here for key in keys)

    asked = Some()
    absent = sorted(set(range(size)) - here)
    assert store._absent(cast("SignedStore", asked), [str(rank) for rank in range(size)]) == absent
    assert asked.asked <= 1 + 2 * len(absent) * math.ceil(math.log2(size) if size > 1 else 0)


def test_a_rank_without_rank_0_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rank 0 had not come"):
        meet(tmp_path / "rendezvous.json", rank=1, size=2, seconds=0.2)


def test_a_stale_meeting_on_a_port_that_is_closed_is_not_taken(tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as stranger:
        port = stranger.getsockname()[1]
    Meeting((LOOPBACK,), port, "00" * 32).write(tmp_path / "rendezvous.json")
    with pytest.raises(UserError, match="rank 0 had not come"):
        meet(tmp_path / "rendezvous.json", rank=1, size=2, seconds=0.2)


def test_a_store_of_another_attempt_is_not_taken(tmp_path: Path) -> None:
    other = TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))
    SignedStore(other, b"another secret").set("attempt", "")
    Meeting((LOOPBACK,), other.port, "00" * 32).write(tmp_path / "rendezvous.json")
    with pytest.raises(UserError, match="rank 0 had not come"):
        meet(tmp_path / "rendezvous.json", rank=1, size=2, seconds=0.2)


class Counting(SignedStore):
    """A store that counts what a rank asks of it, but for the questions whether others have come."""

    def __init__(self, inner: Store, secret: bytes) -> None:
        super().__init__(inner, secret)
        self.calls: Counter[str] = Counter()

    def get(self, key: str) -> bytes:
        self.calls["get"] += 1
        return super().get(key)

    def get_all(self, keys: list[str]) -> list[bytes]:
        self.calls["get_all"] += 1
        return super().get_all(keys)

    def set(self, key: str, value: str | bytes) -> None:
        self.calls["set"] += 1
        super().set(key, value)


def test_a_rank_asks_the_store_as_often_however_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SignedStore", Counting)
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "as it was")
    size = 40
    with ThreadPoolExecutor(size) as pool:
        meeting = tmp_path / "rendezvous.json"
        came = [pool.submit(meet, meeting, rank, size, 100, Network(one_machine=True)) for rank in range(size)]
        stores = [one.result() for one in came]
    calls = [dict(one.calls) for one in stores if isinstance(one, Counting)]
    assert calls[0] == {"set": 3, "get_all": 1, "get": 1}
    assert calls[1:] == [{"get": 2, "set": 1}] * (size - 1)


@pytest.mark.parametrize("umask", [0, 0o022])
def test_the_secret_is_for_the_owner_alone_and_not_in_the_store(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        found = meet(tmp_path / "rendezvous.json", rank=0, size=1, seconds=20)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "rendezvous.json").stat().st_mode) == 0o600
    assert found.secret not in bytes(found.inner.get("attempt")) + bytes(found.inner.get("here/0"))


@pytest.mark.parametrize("one_machine", [True, False])
def test_ranks_of_one_machine_listen_on_loopback_alone(tmp_path: Path, one_machine: bool) -> None:
    own = meet(tmp_path / "rendezvous.json", rank=0, size=1, seconds=20, network=Network(one_machine))
    assert own.check(["attempt"])
    found = Meeting.read(tmp_path / "rendezvous.json")
    assert found
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    listening = [line[1].split(":") for line in lines if line[3] == "0A"]
    heard = {address for address, port in listening if int(port, 16) == found.port}
    assert heard == ({"0100007F"} if one_machine else {"00000000"})
    assert (found.addresses == (LOOPBACK,)) == one_machine


def test_values_are_read_back_and_others_are_refused() -> None:
    inner = TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))
    own = SignedStore(inner, b"secret")
    own.set("a", b"\x00\xff")
    own.set("b", "text")
    assert (own.get("a"), own.get("b")) == (b"\x00\xff", b"text")
    assert own.get_all(["b", "a"]) == [b"text", b"\x00\xff"]
    inner.set("b", inner.get("a"))  # signed, but under another key
    for forged in (None, b"", pickle.dumps("anything"), bytes(40)):
        if forged is not None:
            inner.set("b", forged)
        with pytest.raises(UserError, match="'b' in the ranks' store is not from a rank"):
            own.get("b")
        with pytest.raises(UserError, match="'b' in the ranks' store is not from a rank"):
            own.get_all(["a", "b"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_neither_reads_the_secret_nor_takes_a_ranks_place() -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)  # pytest's own folders are for their owner alone
        intrude(Path(folder))


def intrude(folder: Path) -> None:
    """Let another user write into the store of a rank 0 that waits for rank 1."""
    meeting, canary = folder / "rendezvous.json", folder / "canary"
    refused: list[UserError] = []

    def rank_0() -> None:
        try:
            meet(meeting, rank=0, size=2, seconds=60, network=Network(one_machine=True))
        except UserError as error:
            refused.append(error)

    thread = threading.Thread(target=rank_0)
    thread.start()
    while not (found := Meeting.read(meeting)):
        pass
    words = [str(found.port), str(canary), str(STRANGER), str(meeting)]
    done = subprocess.run(
        [sys.executable, "-c", INTRUDER, *words], capture_output=True, text=True, check=True, cwd=PROJECT
    )
    thread.join()
    assert done.stdout.splitlines() == ["the secret cannot be read", "the store has been written to"]
    assert "'here/1'" in refused[0].problem
    assert not canary.exists()
