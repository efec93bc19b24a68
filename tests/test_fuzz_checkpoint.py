"""The file of a rank that a stranger has written, sealed as if it were whole: it is loaded or passed over.

A hundred inputs in the suite, 20,000 under `make chaos`.
"""

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from dist_ssl.checkpoint.rank_header import BEGIN, sealed_header
from dist_ssl.checkpoint.saver import Checkpoint
from dist_ssl.distributed.world import World
from dist_ssl.errors import UserError
from tests.checkpoint.test_saver import FRESH, Store, at, tensors
from tests.checkpoint.whole_checkpoints import put
from tests.fuzzing import edited, shares, tried

ENDS = (0, 8, 16, 1.0, 8.0, 0.5, -1, -8, 2**40, 2**63, 2**64, 10**300, 1e308, float("nan"), True, None, "8", [], {})
"""Where a header says that a tensor begins or ends."""


PIECES = ("", "0:", ":", "0", "-1:", "9" * 19 + ":", "0:" + "g" * 32, "0:" + "0" * 31, "0:" + "0" * 32, "0:,", "5:")
"""What a header may say of a piece: its first element, and its hashes."""


def with_header(data: bytes, chance: random.Random) -> bytes:
    """Return the bytes of a rank's file with something edited in its header, which is sealed again.

    Mostly where a tensor begins or ends, or what the metadata say of a piece.
    """
    count = int.from_bytes(data[:8], "little")
    rows = json.loads(data[8 : 8 + count])
    kind = chance.random()
    if kind < 0.4:
        names = sorted(rows.keys() - {"__metadata__"})
        ends, place = rows[chance.choice(names)]["data_offsets"], chance.randrange(2)
        ends[place] = chance.choice([float(ends[place]), chance.choice(ENDS)])
    elif kind < 0.7:
        pieces = rows["__metadata__"]["pieces"].split(" ")
        pieces[chance.randrange(len(pieces))] = chance.choice([*PIECES, pieces[0]])
        rows["__metadata__"]["pieces"] = " ".join(pieces[: chance.choice([1, len(pieces), len(pieces), len(pieces)])])
    else:
        rows = edited(rows, chance)
    text = json.dumps(rows, separators=(",", ":")).encode()
    begins = text.startswith(BEGIN.encode())
    return (sealed_header(text) if begins else len(text).to_bytes(8, "little") + text) + data[8 + count :]


@pytest.mark.parametrize("inputs", shares(100))
def test_a_rank_file_whose_header_was_edited_is_loaded_or_passed_over(
    inputs: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    folder = tmp_path / "step_00000002"
    file = folder / "rank_00000.safetensors"
    put(folder, at(2).to_json(), [tensors(2)])
    table, data = (folder / "state.json").read_text(), file.read_bytes()

    def work(chance: random.Random) -> bool:
        shutil.rmtree(tmp_path / "damaged_step_00000002", ignore_errors=True)
        folder.mkdir(exist_ok=True)
        file.write_bytes(with_header(data, chance))
        (folder / "state.json").write_text(table)
        engine = Store(-1)
        try:
            Checkpoint(tmp_path, World(), keep_last=2, attempt=2, newest=lambda: True).restore(engine, FRESH)  # type: ignore[arg-type]
        except UserError:
            return False
        return True

    assert 0 < tried(inputs, work, tmp_path) < len(inputs)
