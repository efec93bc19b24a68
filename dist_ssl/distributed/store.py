"""The key-value store through which the ranks of an attempt meet, and the proof that a value comes from one of them.

A TCP store has no passwords: every user of a machine that reaches its port may read and write. So each value carries a
code (HMAC-SHA256) of its key and content under the attempt's secret, which stands in a file that only the owner of the
run can read, never in the store; a value without the right code is refused. Where all ranks are on one machine the
store listens on loopback alone.

Ranks on GPUs use the TCP store itself for their process groups, because NCCL's own threads call it: there the network
between the nodes must be trusted, as NCCL's connections are neither authenticated nor encrypted.
"""

import hmac
import json
import secrets
import socket
from datetime import timedelta
from pathlib import Path

from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]

from dist_ssl.distributed.rendezvous import (
    LOOPBACK,
    NETWORK,
    Meeting,
    Network,
    await_value,
    choose_interface,
    machine_id,
    own_addresses,
    own_end,
    pause_among,
    use_interface,
)
from dist_ssl.errors import LostPeerError, UserError

CODE_BYTES = 32
SECRET_BYTES = 32
MARK = "attempt"
"""Key whose value shows that a store is the one of this attempt."""
PLACE = "place of rank 0"
"""Key of what `_place_of_first` returns, which rank 0 sets once all ranks have come."""


class SignedStore(Store):
    """A store whose values are signed with the attempt's secret; counters are not. Raises UserError on a forged value.

    torch calls these methods by name, from its own threads too.
    """

    def __init__(self, inner: Store, secret: bytes) -> None:
        super().__init__()
        self.inner, self.secret = inner, secret

    def _code(self, key: str, value: bytes) -> bytes:
        return hmac.digest(self.secret, f"{len(key)} {key} ".encode() + value, "sha256")

    def set(self, key: str, value: str | bytes) -> None:
        """Store a value with its code."""
        data = value.encode() if isinstance(value, str) else bytes(value)
        self.inner.set(key, self._code(key, data) + data)  # type: ignore[arg-type]  # torch's stub names text alone

    def get(self, key: str) -> bytes:
        """Return a value, once it is there."""
        return self._signed(key, bytes(self.inner.get(key)))

    def _signed(self, key: str, data: bytes) -> bytes:
        """Return the value in signed data. Raises UserError."""
        code, value = data[:CODE_BYTES], data[CODE_BYTES:]
        if not hmac.compare_digest(code, self._code(key, value)):
            raise UserError(
                f"The value '{key}' in the ranks' store is not from a rank of this attempt.",
                "Another process writes to its port: ask who runs it, and resume the run.",
            )
        return value

    def get_all(self, keys: list[str]) -> list[bytes]:
        """Return the values of keys that are all there, by one request."""
        return [self._signed(key, bytes(data)) for key, data in zip(keys, self.inner.multi_get(keys), strict=True)]

    def add(self, key: str, amount: int) -> int:
        """Add to a counter and return its value."""
        return int(self.inner.add(key, amount))

    def check(self, keys: list[str]) -> bool:
        """Return whether all of these keys have a value."""
        return bool(self.inner.check(keys))

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Wait until all of these keys have a value."""
        self.inner.wait(keys) if timeout is None else self.inner.wait(keys, timeout)

    def delete_key(self, key: str) -> bool:
        """Remove a key; return whether it was there."""
        return bool(self.inner.delete_key(key))

    def set_timeout(self, timeout: timedelta) -> None:
        """Bound every wait."""
        self.inner.set_timeout(timeout)

    def has_extended_api(self) -> bool:
        """Return False: torch then sets and gets values one by one, which are signed."""
        return False


def meet(meeting: Path, rank: int, size: int, seconds: float, network: Network = NETWORK) -> SignedStore:
    """Return a store that all ranks of this attempt share, once every rank has connected to it. Raises UserError.

    Rank 0 alone reads what all ranks say, so each of the others asks the store a few times, however many there are.
    """
    use_interface(network.interface)
    if rank == 0:
        store, route = _open_store(meeting, seconds, network.one_machine), ("", "")
    else:
        store, route = await_value(
            lambda: _find_store(meeting, seconds),
            seconds,
            lambda: _not_arrived("rank 0", seconds, meeting),
            pause_among(size),
        )
    here = [f"here/{other}" for other in range(size)]
    store.set(here[rank], json.dumps([machine_id(), *route]))
    awaited = here if rank == 0 else [PLACE]

    def arrived() -> bool | None:
        return True if store.check(awaited) else None

    def missing() -> UserError:
        late = ", ".join(str(other) for other in _absent(store, here)) or "0"
        return _not_arrived(f"rank {late} of {size}", seconds, meeting)

    await_value(arrived, seconds, missing, pause_among(size))
    if rank == 0:
        store.set(PLACE, json.dumps(_place_of_first([json.loads(value) for value in store.get_all(here)])))
    machine, address = json.loads(store.get(PLACE))
    own = address if machine_id() == machine else route[0]
    choose_interface(own, one_machine=not address)
    return store


def _place_of_first(here: list[list[str]]) -> tuple[str, str]:
    """Return rank 0's machine, and its address on the way to the first rank of another one; empty if there is none.

    `here`: of every rank its machine, its own address on the way to rank 0, and rank 0's.
    """
    first = here[0][0]
    return first, next((peer for machine, _, peer in here if machine != first), "")


def _absent(store: SignedStore, keys: list[str], start: int = 0) -> list[int]:
    """Return the positions of the keys that have no value, counted from `start`: few questions if few are missing."""
    if not keys or store.check(keys):
        return []
    if len(keys) == 1:
        return [start]
    half = len(keys) // 2
    return _absent(store, keys[:half], start) + _absent(store, keys[half:], start + half)


def _not_arrived(ranks: str, seconds: float, meeting: Path) -> UserError:
    return LostPeerError(
        f"After {seconds:.0f} s {ranks} had not come to the rendezvous.",
        f"Logs are in {meeting.parent / 'logs'}; a firewall between the nodes looks the same.",
    )


def _open_store(meeting: Path, seconds: float, one_machine: bool) -> SignedStore:
    secret = secrets.token_bytes(SECRET_BYTES)
    listener = socket.create_server((LOOPBACK if one_machine else "", 0))
    port = listener.getsockname()[1]
    inner = TCPStore(
        LOOPBACK,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=seconds),
        master_listen_fd=listener.detach(),
    )
    store = SignedStore(inner, secret)
    store.set(MARK, "")
    Meeting((LOOPBACK,) if one_machine else own_addresses(), port, secret.hex()).write(meeting)
    return store


def _find_store(meeting: Path, seconds: float) -> "tuple[SignedStore, tuple[str, str]] | None":
    """Return rank 0's store and the route to it as (own address, rank 0's address); None if it is not found yet."""
    found = Meeting.read(meeting)
    for address in found.addresses if found else ():
        own = own_end(address, found.port) if found else None
        if found is None or own is None:
            continue
        inner = TCPStore(address, found.port, is_master=False, timeout=timedelta(seconds=seconds))
        store = SignedStore(inner, bytes.fromhex(found.secret))
        if store.check([MARK]) and _genuine(store):
            return store, (own, address)
    return None


def _genuine(store: SignedStore) -> bool:
    """Return whether the store is that of this attempt, and not another one that now has its address and port."""
    try:
        return store.get(MARK) == b""
    except UserError:
        return False
