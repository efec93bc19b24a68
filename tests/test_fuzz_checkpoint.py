"""The file of a rank that a stranger has written, sealed as if it were whole: it is loaded or passed over.

A hundred inputs in the suite, 20,000 under `make chaos`.
"""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import xxhash

from dist_ssl.checkpoint import index as checkpoints
from dist_ssl.checkpoint.rank_file import write
from dist_ssl.checkpoint.saver import Checkpoint
from dist_ssl.distributed.world import World
from dist_ssl.errors import UserError
from tests.checkpoint.test_saver import FRESH, Store, at, tensors
from tests.fuzzing import edited, shares, tried

ENDS = (0, 8, 16, 1.0, 8.0, 0.5, -1, -8, 2**40, 2**63, 2**64, 10**300, 1e308, float("nan"), True, None, "8", [], {})
"""Where a header says that a tensor begins or ends."""


def with_header(data: bytes, chance: random.Random) -> bytes:
    """Return the bytes of a rank's file with something edited in its header, mostly where a tensor begins or ends."""
    count = int.from_bytes(data[:8], "little")
    rows = json.loads(data[8 : 8 + count])
    if chance.random() < 0.7:
        ends, place = rows[chance.choice(sorted(rows))]["data_offsets"], chance.randrange(2)
        ends[place] = chance.choice([float(ends[place]), chance.choice(ENDS)])
    else:
        rows = edited(rows, chance)
    text = json.dumps(rows).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + count :]


def of_file(table: dict[str, Any], file: Path) -> str:
    """Return state.json, sealed again, with the length and the hash of the header that this file has."""
    data, content = file.read_bytes(), {key: value for key, value in table.items() if key != "xxh3"}
    header = xxhash.xxh3_128_hexdigest(data[: 8 + int.from_bytes(data[:8], "little")])
    return checkpoints.sealed_text({**content, "files": {file.name: {"length": len(data), "header": header}}})


@pytest.mark.parametrize("inputs", shares(100))
def test_a_rank_file_whose_header_was_edited_is_loaded_or_passed_over(
    inputs: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    folder = tmp_path / "step_00000002"
    folder.mkdir()
    file = folder / "rank_00000.safetensors"
    row = write(file, checkpoints.own_pieces(tensors(2), 0, 1))
    checkpoints.write_table(folder / "state.json", at(2).to_json(), [row])
    table, data = json.loads((folder / "state.json").read_text()), file.read_bytes()

    def work(chance: random.Random) -> bool:
        shutil.rmtree(tmp_path / "damaged_step_00000002", ignore_errors=True)
        folder.mkdir(exist_ok=True)
        file.write_bytes(with_header(data, chance))
        (folder / "state.json").write_text(of_file(table, file))
        engine = Store(-1)
        try:
            Checkpoint(tmp_path, World(), keep_last=2, attempt=2, newest=lambda: True).restore(engine, FRESH)  # type: ignore[arg-type]
        except UserError:
            return False
        return True

    assert 0 < tried(inputs, work, tmp_path) < len(inputs)
