"""How the ranks of one attempt find rank 0: through a small file in the run folder, never through names.

Node names need not resolve, so rank 0 publishes every address of its machine and the port of its store; the others
try the addresses in turn and keep the first one behind which they find this attempt's token.
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

POLL_SECONDS = 0.05
LOOPBACK = "127.0.0.1"

T = TypeVar("T")


@dataclass(frozen=True)
class Meeting:
    """Where rank 0 waits: its machine's addresses, its port, and a token that only this attempt's store holds."""

    addresses: tuple[str, ...]
    port: int
    token: str

    def write(self, path: Path) -> None:
        """Announce the meeting atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(asdict(self)))
        part.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Meeting | None":
        """The announced meeting, or None where nothing is announced yet."""
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        return cls(tuple(values["addresses"]), values["port"], values["token"])


def await_value(look: Callable[[], T | None], seconds: float, missing: Callable[[], UserError]) -> T:
    """Look again and again until there is something; raise what `missing` says after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        found = look()
        if found is not None:
            return found
        if time.monotonic() > end:
            raise missing()
        time.sleep(POLL_SECONDS)


def own_addresses() -> tuple[str, ...]:
    """Every IPv4 address of this machine, loopback last."""
    found = [a.address for card in psutil.net_if_addrs().values() for a in card if a.family == socket.AF_INET]
    return (*[a for a in found if a != LOOPBACK], LOOPBACK)


def own_end(address: str, port: int, seconds: float = 2.0) -> str | None:
    """This machine's address on the way there, or None where nothing listens."""
    try:
        with socket.create_connection((address, port), timeout=seconds) as line:
            return str(line.getsockname()[0])
    except OSError:
        return None


def interface_of(address: str) -> str | None:
    """The network interface that carries this address."""
    for name, card in psutil.net_if_addrs().items():
        if any(a.address == address for a in card):
            return str(name)
    return None


def machine_id() -> str:
    """The same on all processes of one machine, different on any two machines that are up."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else socket.gethostname()
