"""How often ranks ask the store until all have met: a table, exit code 1 where a rank asks more among many.

    python tests/benchmarks/scale_startup.py [ranks=8,64,512]

Ranks are threads with a connection each to a real store. They come in any order; rank 0 and the busiest other rank are
shown. `waiting`: questions whether others have come, at most 1,000 a second of all ranks together. What gloo's groups
ask after that is not counted.
"""

import os
import resource
import sys
import tempfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch looks up the name of every client

from rich.console import Console
from rich.table import Table
from torch.distributed import Store  # type: ignore[attr-defined]

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from dist_ssl.distributed import store
from dist_ssl.distributed.rendezvous import Network

RANKS = (8, 64, 512)
SECONDS = 300.0
WAITING, ASKED, TAKEN = "waiting", "asked", "bytes taken"
COUNTED: dict[int, Counter[str]] = {}
"""What each rank has asked, by its thread."""


class Counting(store.SignedStore):
    """A store that counts the requests of the thread that makes them."""

    def __init__(self, inner: Store, secret: bytes) -> None:
        super().__init__(inner, secret)
        self.calls = COUNTED.setdefault(threading.get_ident(), Counter())

    def check(self, keys: list[str]) -> bool:
        self.calls[WAITING] += 1
        return super().check(keys)

    def set(self, key: str, value: str | bytes) -> None:
        self.calls[ASKED] += 1
        super().set(key, value)

    def get(self, key: str) -> bytes:
        self.calls[ASKED] += 1
        value = super().get(key)
        self.calls[TAKEN] += len(value)
        return value

    def get_all(self, keys: list[str]) -> list[bytes]:
        self.calls[ASKED] += 1
        values = super().get_all(keys)
        self.calls[TAKEN] += sum(map(len, values))
        return values


def met(ranks: int) -> tuple[Counter[str], Counter[str]]:
    """What rank 0 asked, and the most that any other rank did."""
    COUNTED.clear()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(ranks) as pool:
        barrier = threading.Barrier(ranks)  # every rank has a thread of its own

        def come(rank: int) -> tuple[store.SignedStore, Counter[str]]:
            barrier.wait()
            meeting = Path(folder) / "rendezvous.json"
            own = store.meet(meeting, rank, ranks, SECONDS, Network(one_machine=True))
            return own, COUNTED[threading.get_ident()]

        first, *others = list(pool.map(come, range(ranks)))
    return first[1], Counter({name: max(own[name] for _, own in others) for name in (ASKED, WAITING, TAKEN)})


def main(words: list[str]) -> int:
    given = dict(word.split("=", 1) for word in words)
    sizes = tuple(int(text) for text in given["ranks"].split(",")) if "ranks" in given else RANKS
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ[name] = "lo"
    store.SignedStore = Counting  # type: ignore[misc]
    table = Table("ranks", *(f"rank 0: {name}" for name in (ASKED, WAITING, TAKEN)), "another: asked", WAITING, TAKEN)
    asked = []
    for ranks in sizes:
        first, other = met(ranks)
        asked.append((first[ASKED], other[ASKED]))
        table.add_row(str(ranks), *(str(own[name]) for own in (first, other) for name in (ASKED, WAITING, TAKEN)))
    Console().print(table)
    return int(len(set(asked)) > 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
