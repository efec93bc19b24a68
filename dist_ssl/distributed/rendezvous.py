"""Rendezvous of the ranks of one attempt through a small file in the run folder, without host names.

Node names need not resolve, so rank 0 publishes every address of its machine and the port of its store (`store.py`);
the other ranks try the addresses in turn and keep the first one whose store is signed with this attempt's secret.
"""

import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from dist_ssl.errors import UserError
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.files import write_atomically
from dist_ssl.runtime.strange_files import read_regular

POLL_SECONDS = 0.05
LOOPBACK = "127.0.0.1"
MOST_BYTES = 1 << 20
"""Bytes of the file of a meeting, at most: it has a line for each address of a machine."""

T = TypeVar("T")


@dataclass(frozen=True)
class Meeting:
    """The address of rank 0's store: its machine's addresses, its port, and the secret of its signatures, in hex."""

    addresses: tuple[str, ...]
    port: int
    secret: str

    def write(self, path: Path) -> None:
        """Publish it atomically, readable by its owner alone; the folder is made where it is missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asdict(self)), private=True)

    @classmethod
    def read(cls, path: Path) -> "Meeting | None":
        """Return the published meeting, or None where there is none yet."""
        try:
            values = jsonl.parsed(read_regular(path, MOST_BYTES))
        except FileNotFoundError:
            return None
        return cls(tuple(values["addresses"]), values["port"], values["secret"])


def await_value(look: Callable[[], T | None], seconds: float, missing: Callable[[], UserError]) -> T:
    """Return the first result of `look` that is not None, polling; raise what `missing` returns after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        found = look()
        if found is not None:
            return found
        if time.monotonic() > end:
            raise missing()
        time.sleep(POLL_SECONDS)


def own_addresses() -> tuple[str, ...]:
    """Return every IPv4 address of this machine, loopback last."""
    found = [a.address for card in psutil.net_if_addrs().values() for a in card if a.family == socket.AF_INET]
    return (*[a for a in found if a != LOOPBACK], LOOPBACK)


def own_end(address: str, port: int, seconds: float = 2.0) -> str | None:
    """Return this machine's own address on the route to `address`, or None where nothing listens on the port."""
    try:
        with socket.create_connection((address, port), timeout=seconds) as line:
            return str(line.getsockname()[0])
    except OSError:
        return None


def interface_of(address: str) -> str | None:
    """Return the name of the network interface that has this address, or None."""
    for name, card in psutil.net_if_addrs().items():
        if any(a.address == address for a in card):
            return str(name)
    return None


def machine_id() -> str:
    """Return an id that all processes of one machine share and that differs between any two running machines."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else socket.gethostname()


def choose_interface(here: list[list[str]], rank: int) -> None:
    """Set the network interface of gloo and NCCL to one that reaches the other ranks: node names may not resolve."""
    remote = [own_and_peer for machine, *own_and_peer in here if machine != here[0][0]]
    if not remote:
        address = LOOPBACK
    elif here[rank][0] == here[0][0]:
        address = remote[0][1]
    else:
        address = here[rank][1]
    name = interface_of(address)
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        if name and variable not in os.environ:
            os.environ[variable] = name
