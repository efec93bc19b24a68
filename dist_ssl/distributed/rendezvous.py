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
from typing import NamedTuple, TypeVar

import psutil

from dist_ssl.errors import UserError
from dist_ssl.runtime import jsonl
from dist_ssl.runtime.files import write_atomically
from dist_ssl.runtime.strange_files import read_regular

POLL_SECONDS = 0.05
MOST_QUESTIONS = 1000
"""Questions per second that all ranks together ask the one store while they wait for each other, about."""
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


def await_value(
    look: Callable[[], T | None], seconds: float, missing: Callable[[], UserError], pause: float = POLL_SECONDS
) -> T:
    """Return the first result of `look` that is not None, polling; raise what `missing` returns after `seconds`.

    `pause`: seconds between two looks.
    """
    end = time.monotonic() + seconds
    while True:
        found = look()
        if found is not None:
            return found
        if time.monotonic() > end:
            raise missing()
        time.sleep(pause)


def pause_among(size: int) -> float:
    """Return how many seconds a rank of so many pauses between two questions to the store that they all ask."""
    return max(POLL_SECONDS, size / MOST_QUESTIONS)


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


class Network(NamedTuple):
    """Where ranks meet. `one_machine`: all are on this machine, so that loopback is enough.

    `interface`: name of the network interface that they use, None: one that reaches the others.
    """

    one_machine: bool = False
    interface: str | None = None


NETWORK = Network()


def use_interface(name: str | None) -> None:
    """Let gloo and NCCL use the network interface that the user has named, if any. Raises UserError without it."""
    if name is None:
        return
    own = sorted(psutil.net_if_addrs())
    if name not in own:
        raise UserError(
            f"cluster.interface={name}: {socket.gethostname()} has no network interface of this name.",
            f"It has {', '.join(own)}; null takes one that reaches the other nodes.",
        )
    os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"] = name, exactly(name)


def choose_interface(address: str, *, one_machine: bool) -> None:
    """Let gloo use the interface of an address that reaches the other ranks: node names may not resolve.

    NCCL finds the fast network by itself, and is kept from others than the loopback of one machine. What the
    environment says already stays.
    """
    name = interface_of(LOOPBACK if one_machine else address)
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    if name and one_machine:
        os.environ.setdefault("NCCL_SOCKET_IFNAME", exactly(name))


def exactly(interface: str) -> str:
    """Return NCCL's spelling of one interface: without the sign, a name stands for all that begin with it."""
    return f"={interface}"
