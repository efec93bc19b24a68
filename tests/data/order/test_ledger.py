"""The hash depends on which samples they are and not on their order; what is written is read, whatever was cut."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws
from dist_ssl.core.progress import Progress
from dist_ssl.data.order import ledger
from dist_ssl.data.order.ledger import Ledger, hash_ids, mix
from dist_ssl.data.storage import contents
from dist_ssl.distributed.world import World
from dist_ssl.errors import DataError

NUMBERS = st.lists(st.integers(0, 2**40), max_size=20)


def batch(ids: list[int], unreadable: dict[int, str] | None = None) -> Batch:
    """A batch without views."""
    valid = torch.tensor([number not in (unreadable or {}) for number in ids])
    return Batch([], torch.tensor(ids, dtype=torch.int64), valid, None, Draws(0), 0, unreadable or {})


def array(ids: list[int]) -> np.ndarray:
    return np.array(ids, dtype=np.int64)


@given(NUMBERS, NUMBERS, st.randoms())
def test_the_hash_is_that_of_a_multiset_and_adds_up(a: list[int], b: list[int], chance) -> None:
    both = a + b
    chance.shuffle(both)
    assert hash_ids(array(both)) == (hash_ids(array(a)) + hash_ids(array(b))) % 2**64


def test_the_hash_of_known_numbers_never_changes() -> None:
    assert hash_ids(array([])) == 0
    assert hash_ids(array([0])) == 0xE220A8397B1DCDAF  # splitmix64's first output of seed 0
    assert len(set(mix(np.arange(100000)).tolist())) == 100000


def test_what_is_recorded_is_read(tmp_path: Path) -> None:
    for rank in (0, 1):
        book = Ledger(tmp_path, 3, World(rank=rank, size=2))
        book.record(Progress(epochs=1, step=7), batch([4 + rank, 9], {9: "empty"} if rank else None))
        book.seal(Progress(epochs=1, step=8))
        book.close()
    found = ledger.read(tmp_path)
    assert found.rank.tolist() == [0, 1]
    assert (found.step.tolist(), found.attempt.tolist()) == ([7, 7], [3, 3])
    assert found.hash.tolist() == [hash_ids(array([4, 9])), hash_ids(array([5, 9]))]
    assert (found.ranks.tolist(), found.count.tolist()) == ([2, 2], [2, 2])
    assert found.replaced.tolist() == [0, 1]
    assert found.replaced_hash.tolist() == [0, hash_ids(array([9]))]
    assert found.saves == {(3, 8)}
    assert found.restored() == {3: 7}


def test_a_line_cut_short_is_passed_over_and_the_next_one_is_whole(tmp_path: Path) -> None:
    Ledger(tmp_path, 1, World()).record(Progress(epochs=1, step=0), batch([1]))
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text() + '{"step": 1, "coun')
    Ledger(tmp_path, 1, World()).record(Progress(epochs=1, step=1), batch([2]))
    assert ledger.read(tmp_path).step.tolist() == [0, 1]


def test_a_save_of_another_step_than_the_last_one_made_is_no_save(tmp_path: Path) -> None:
    book = Ledger(tmp_path, 1, World())
    book.seal(Progress(epochs=1, step=5))
    book.record(Progress(epochs=1, step=5), batch([1]))
    book.seal(Progress(epochs=1, step=7))
    assert ledger.read(tmp_path).saves == {(1, 5)}


def test_an_empty_ledger_is_read(tmp_path: Path) -> None:
    assert len(ledger.read(tmp_path).step) == 0


def test_a_ledger_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "attempt_0001_rank_00000.jsonl").write_text('{"step": 0, "epoch": 0, "count": 1, "hash": 2}\n')
    with pytest.raises(DataError, match="has a line without 'ranks'"):
        ledger.read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"step": "x"}, {"step": -1}, {"ranks": 0}, {"ranks": 1.5}, {"count": None}, {"hash": 2**64}, {"step": 2**63}],
)
def test_a_line_that_no_rank_wrote_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    line = {"step": 0, "epoch": 0, "ranks": 2, "count": 6, "hash": 7, **change}
    (tmp_path / "attempt_0001_rank_00000.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(DataError, match="impossible"):
        ledger.read(tmp_path)


def test_a_file_that_is_no_ledger_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "attempt_x_rank_y_z.jsonl").write_text('{"step": 0}\n')
    assert not len(ledger.read(tmp_path).step)


@pytest.mark.parametrize("module", [ledger, contents])
@pytest.mark.parametrize(("attempt", "number"), [(1, 0), (12_345, 100_000)])
def test_every_file_that_is_written_is_one_that_is_read(
    tmp_path: Path, module: ModuleType, attempt: int, number: int
) -> None:
    named = module.NAME.fullmatch(module.file_of(tmp_path, attempt, number).stem)
    assert (int(named[1]), int(named[2])) == (attempt, number)
