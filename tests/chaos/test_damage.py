"""Whatever happens to a byte, a file or a folder of a checkpoint: it is never loaded, and the one before it is."""

import json
import logging
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from dist_ssl.checkpoint.saver import Checkpoint
from dist_ssl.distributed.world import World
from dist_ssl.protocols.engine import Piece, State
from tests.checkpoint.test_saver import FRESH, Store, assert_same_bits, at, tensors
from tests.checkpoint.whole_checkpoints import put

Files = dict[str, bytes]
RANKS = 3
NEWEST, OLDER = "step_00000002", "step_00000001"


def states(step: int) -> list[State]:
    """What three ranks hold, one tensor of which is spread over them."""
    found: list[State] = []
    for rank in range(RANKS):
        whole = tensors(step)
        rows = whole.pop("model/conv").contiguous().flatten()
        first, end = rank * len(rows) // RANKS, (rank + 1) * len(rows) // RANKS
        found.append({**whole, "model/conv": Piece(rows[first:end], (4, 3, 2, 2), first)})
    return found


def name_in(files: Files, chance: random.Random, besides: str = "") -> str:
    return chance.choice(sorted(files.keys() - {besides}))


def flipped(files: Files, older: Files, chance: random.Random) -> None:
    name = name_in(files, chance)
    place = chance.randrange(len(files[name]))
    one = files[name][place] ^ (1 << chance.randrange(8))
    files[name] = files[name][:place] + bytes([one]) + files[name][place + 1 :]


def overwritten(files: Files, older: Files, chance: random.Random) -> None:
    name = name_in(files, chance)
    first = chance.randrange(len(files[name]))
    count = min(chance.randint(1, 64), len(files[name]) - first)
    with_ = chance.choice([b"\0" * count, b" " * count, chance.randbytes(count)])
    files[name] = files[name][:first] + with_ + files[name][first + count :]


def cut(files: Files, older: Files, chance: random.Random) -> None:
    name = name_in(files, chance)
    files[name] = files[name][: chance.randrange(len(files[name]))]


def longer(files: Files, older: Files, chance: random.Random) -> None:
    name = name_in(files, chance)
    place = chance.choice([len(files[name]), chance.randrange(len(files[name]))])
    files[name] = files[name][:place] + chance.randbytes(chance.randint(1, 9)) + files[name][place:]


def shorter(files: Files, older: Files, chance: random.Random) -> None:
    name = name_in(files, chance)
    place = chance.randrange(len(files[name]))
    files[name] = files[name][:place] + files[name][place + chance.randint(1, 9) :]


def missing(files: Files, older: Files, chance: random.Random) -> None:
    del files[name_in(files, chance)]


def swapped(files: Files, older: Files, chance: random.Random) -> None:
    one = name_in(files, chance)
    other = name_in(files, chance, one)
    files[one], files[other] = files[other], files[one]


def stale(files: Files, older: Files, chance: random.Random) -> None:
    """A file, or all of them, of the step before."""
    some = chance.sample(sorted(files), chance.randint(1, len(files)))
    files |= {name: older[name] for name in some}


def doctored(files: Files, older: Files, chance: random.Random) -> None:
    """A number or a word of state.json that somebody has edited."""
    content = json.loads(files["state.json"])
    here = content
    while True:
        key = chance.choice(sorted(here) if isinstance(here, dict) else list(range(len(here))))
        if not isinstance(here[key], dict | list) or not here[key]:
            break
        here = here[key]
    here[key] = chance.choice([0, 1, -1, 7, "rank_00002.safetensors", "float64", "", None, [], "0" * 32])
    files["state.json"] = json.dumps(content, indent=1).encode()


DAMAGE: dict[str, Callable[[Files, Files, random.Random], None]] = {
    "a flipped bit": flipped,
    "bytes overwritten": overwritten,
    "a file cut short": cut,
    "bytes put in": longer,
    "bytes taken out": shorter,
    "a file missing": missing,
    "two files swapped": swapped,
    "files of another step": stale,
    "state.json edited": doctored,
}


def files_of(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def lay(folder: Path, files: Files) -> None:
    """Have these files in the folder and no others."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.chaos)])
def test_no_damage_is_loaded(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # nobody pulls the plug
    for step in (1, 2):
        put(tmp_path / f"step_{step:08d}", at(step).to_json(), states(step))
    newest, older = files_of(tmp_path / NEWEST), files_of(tmp_path / OLDER)
    tried: Counter[str] = Counter()

    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(kind=st.sampled_from(sorted(DAMAGE)), chance=st.randoms(use_true_random=False))
    def damage(kind: str, chance: random.Random) -> None:
        files = dict(newest)
        DAMAGE[kind](files, older, chance)
        assume(files != newest)
        lay(tmp_path / NEWEST, files)
        caplog.clear()
        engine = Store(-1)
        own = Checkpoint(tmp_path, World(), keep_last=2, attempt=2, newest=lambda: True)
        with caplog.at_level(logging.WARNING):
            assert own.restore(engine, FRESH).step == 1, kind  # type: ignore[arg-type]
        assert_same_bits(engine.held, tensors(1))
        assert "step_00000002 is damaged (" in caplog.text
        assert any(name in caplog.text for name in newest), caplog.text
        tried[kind] += 1

    damage()
    assert sum(tried.values()) >= count * 0.9
    table = Table("damage", "tried", "loaded", title=f"{sum(tried.values())} damaged checkpoints")
    for kind in DAMAGE:
        table.add_row(kind, str(tried[kind]), "0")
    Console().print(table)
