"""Twenty runs that wander over world sizes under random kills, each with another sequence: every audit is clean."""

import random
import time
from pathlib import Path

import pytest

from tests.system.launching import Launch, words
from tests.system.test_audit import audited, rows, spoilt_shards, wander

__all__ = ["spoilt_shards"]
SIZES = (1, 2, 3, 4)
LENGTH = ("epochs=60", "probe.every=200 epochs", "data.max_bad=10%")


@pytest.mark.chaos
@pytest.mark.parametrize("number", range(20))
def test_a_random_schedule_has_a_clean_audit(
    number: int, spoilt_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(time.time()) + number
    print(f"seed {seed}")
    chance = random.Random(seed)
    first, save, threads = chance.choice(SIZES), chance.randint(1, 9), chance.randint(1, 2)
    more = (
        f"nodes={first}",
        f"save_every={save} steps",
        f"decode_threads={threads}",
        f"window={chance.randint(2, 12)}",
    )
    launch = Launch(*words(spoilt_shards, tmp_path, "name=wandering", *LENGTH, *more))
    wander(tmp_path / "wandering", launch, chance.randint(2, 5), chance, SIZES)
    code, text = audited(capsys, tmp_path / "wandering")
    assert code == 0, text
    assert [row[2:4] for row in rows(text)] == [[57, 3]] * 60
