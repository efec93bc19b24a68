"""Ranks of an attempt meet; values and stores that are not from the attempt's own ranks are refused."""

import os
import pickle
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from dist_ssl.distributed.rendezvous import LOOPBACK, Meeting
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


@pytest.mark.parametrize("umask", [0, 0o022])
def test_the_secret_is_for_the_owner_alone_and_not_in_the_store(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        store = meet(tmp_path / "rendezvous.json", rank=0, size=1, seconds=20)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "rendezvous.json").stat().st_mode) == 0o600
    assert store.secret not in bytes(store.inner.get("attempt")) + bytes(store.inner.get("here/0"))


@pytest.mark.parametrize("one_machine", [True, False])
def test_ranks_of_one_machine_listen_on_loopback_alone(tmp_path: Path, one_machine: bool) -> None:
    store = meet(tmp_path / "rendezvous.json", rank=0, size=1, seconds=20, one_machine=one_machine)
    assert store.check(["attempt"])
    found = Meeting.read(tmp_path / "rendezvous.json")
    assert found
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    listening = [line[1].split(":") for line in lines if line[3] == "0A"]
    own = {address for address, port in listening if int(port, 16) == found.port}
    assert own == ({"0100007F"} if one_machine else {"00000000"})
    assert (found.addresses == (LOOPBACK,)) == one_machine


def test_values_are_read_back_and_others_are_refused() -> None:
    inner = TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))
    store = SignedStore(inner, b"secret")
    store.set("a", b"\x00\xff")
    store.set("b", "text")
    assert (store.get("a"), store.get("b")) == (b"\x00\xff", b"text")
    inner.set("b", inner.get("a"))  # signed, but under another key
    for forged in (None, b"", pickle.dumps("anything"), bytes(40)):
        if forged is not None:
            inner.set("b", forged)
        with pytest.raises(UserError, match="'b' in the ranks' store is not from a rank"):
            store.get("b")


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
            meet(meeting, rank=0, size=2, seconds=60, one_machine=True)
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
