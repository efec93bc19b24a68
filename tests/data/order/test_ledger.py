"""The hash depends on which samples they are and not on their order; what is written is read, whatever was cut."""

import json
import shutil
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws
from dist_ssl.core.progress import Progress
from dist_ssl.data.order import ledger, ledger_reader
from dist_ssl.data.order.ledger import Ledger, hash_ids, mix
from dist_ssl.data.order.ledger_blocks import FIELDS, HEADER, MAGIC, START, STEPS, Block
from dist_ssl.data.order.older_attempts import join
from dist_ssl.data.storage import contents
from dist_ssl.distributed.world import World
from dist_ssl.errors import DataError
from tests.disks import small_disk

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


def all_rows(folder: Path, attempt: int = 1) -> np.ndarray:
    """Every line of an attempt."""
    return ledger_reader.read(folder).between(attempt, 0, 1 << 60)


def at(step: int) -> Progress:
    """A position."""
    return Progress(epochs=1, step=step)


def test_what_is_recorded_is_read(tmp_path: Path) -> None:
    for rank in (0, 1):
        book = Ledger(tmp_path, 3, World(rank=rank, size=2))
        book.record(at(7), batch([4 + rank, 9], {9: "empty"} if rank else None))
        book.seal(at(8))
        book.close()
    found, own = ledger_reader.read(tmp_path), all_rows(tmp_path, 3)
    assert own["rank"].tolist() == [0, 1]
    assert own["step"].tolist() == [7, 7]
    assert own["hash"].tolist() == [hash_ids(array([4, 9])), hash_ids(array([5, 9]))]
    assert (own["ranks"].tolist(), own["count"].tolist()) == ([2, 2], [2, 2])
    assert own["replaced"].tolist() == [0, 1]
    assert own["replaced_hash"].tolist() == [0, hash_ids(array([9]))]
    assert found.saves == {(3, 8)}
    assert found.restored() == {3: 7}
    assert found.ranks == {2}
    assert found.of_step(3, 7).tolist() == own.tolist()
    assert not len(found.of_step(2, 7))


LINES = st.lists(
    st.tuples(st.lists(st.integers(0, 99), max_size=4), st.booleans(), st.sampled_from(["", "", "save", "again"])),
    max_size=40,
)


@settings(max_examples=60)
@given(st.lists(LINES, min_size=1, max_size=3), st.integers(0, 600), st.sampled_from([1, 2, 5, 1024]))
def test_any_steps_of_any_ranks_are_read_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, ranks: list[list], first: int, most: int
) -> None:
    folder, expected = tmp_path_factory.mktemp("any"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "STEPS", most)
        for rank, lines in enumerate(ranks):
            book = Ledger(folder, 4, World(rank=rank, size=len(ranks), local_rank=rank, local_size=len(ranks)))
            for step, (ids, bad, more) in enumerate(lines, first):
                unreadable = {ids[0]: "empty"} if bad and ids else {}
                for _ in range(2 if more == "again" else 1):
                    book.record(at(step), batch(ids, unreadable))
                    replaced = len(unreadable), hash_ids(array(ids)), hash_ids(array([*unreadable]))
                    expected.append((step, rank, len(ranks), len(ids), *replaced))
                if more == "save":
                    book.seal(at(step + 1))
            book.close()
    found = ledger_reader.read(folder)
    assert len([*folder.iterdir()]) == 1
    assert found.between(4, 0, 1 << 60).tolist() == sorted(expected, key=lambda line: line[:2])
    for step in (first, first + 1, 255, 256, 300):
        assert sorted(found.of_step(4, step).tolist()) == sorted(line for line in expected if line[0] == step)
    saved = {(4, n + 1) for lines in ranks for n, line in enumerate(lines, first) if line[2] == "save"}
    assert found.saves == saved
    assert found.restored() == ({4: first} if expected else {})
    shutil.rmtree(folder)


def test_the_first_step_is_on_disk_at_once_and_the_others_at_a_save(tmp_path: Path) -> None:
    book = Ledger(tmp_path, 1, World())
    for step in (5, 6, 7):
        book.record(at(step), batch([step]))
        assert all_rows(tmp_path)["step"].tolist() == [5], "so that the attempt has its place"
    book.seal(at(8))
    assert all_rows(tmp_path)["step"].tolist() == [5, 6, 7]
    book.record(at(8), batch([8]))
    book.close()
    book.close()
    assert all_rows(tmp_path)["step"].tolist() == [5, 6, 7, 8]


def test_a_step_takes_eight_bytes(tmp_path: Path) -> None:
    book = Ledger(tmp_path, 1, World())
    for step in range(4096):
        book.record(at(step), batch([step, 1]))
    book.close()
    assert ledger.file_of(tmp_path, 1, 0).stat().st_size < 8.1 * 4096
    assert len(all_rows(tmp_path)) == 4096


@pytest.mark.parametrize("cut", [1, 3, 4, 11, 30, HEADER, HEADER + 7])
@pytest.mark.parametrize("zeros", [0, 9, 70_000])
def test_a_block_cut_short_is_passed_over_and_the_next_one_is_whole(tmp_path: Path, cut: int, zeros: int) -> None:
    book = Ledger(tmp_path, 1, World())
    book.record(at(0), batch([1]))
    path = ledger.file_of(tmp_path, 1, 0)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:cut] + bytes(zeros))
    Ledger(tmp_path, 1, World()).record(at(1), batch([2]))
    assert all_rows(tmp_path)["step"].tolist() == [0, 1]


@pytest.mark.parametrize("place", range(HEADER + 16))
def test_a_block_with_a_wrong_bit_is_none(tmp_path: Path, place: int) -> None:
    book = Ledger(tmp_path, 1, World())
    for step in range(3):
        book.record(at(step), batch([step]))
    book.close()
    path = ledger.file_of(tmp_path, 1, 0)
    data = bytearray(path.read_bytes())
    data[len(data) - HEADER - 16 + place] ^= 16
    path.write_bytes(data)
    assert all_rows(tmp_path)["step"].tolist() == [0]


IMPOSSIBLE = [
    {"rank": 2},
    {"ranks": 0},
    {"steps": STEPS + 1},
    {"exceptions": 3},
    {"first": -1},
    {"first": 1 << 61},
    {"saved": -2},
    {"saved": 1 << 61},
]


@pytest.mark.parametrize("change", IMPOSSIBLE)
def test_a_block_that_no_rank_wrote_is_none(tmp_path: Path, change: dict[str, int]) -> None:
    fields = {"rank": 1, "ranks": 2, "samples": 6, "steps": 2, "exceptions": 0, "first": 5, "saved": -1}
    for own, expected in ((fields, [5, 6]), (fields | change, [])):
        block = Block(**own)
        rest = FIELDS.pack(*block) + bytes(max(block.size, 0))
        ledger.file_of(tmp_path, 1, 0).write_bytes(START.pack(MAGIC, xxhash.xxh3_64_intdigest(rest)) + rest)
        assert all_rows(tmp_path)["step"].tolist() == expected


def test_a_ledger_on_a_full_disk_ends_no_run_and_has_every_step_once_there_is_room(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with small_disk(tmp_path, 1) as disk:
        book = Ledger(disk, 1, World())
        book.record(at(0), batch([0]))
        with pytest.raises(OSError, match="No space left"):
            (disk / "ballast").write_bytes(b"0" * (2 << 20))
        for step in range(1, STEPS + 100):  # a block of 8 kB, of which a part finds room, and what is left
            book.record(at(step), batch([step]))
        book.seal(at(STEPS + 100))
        book.sync()
        assert len(all_rows(disk)) < STEPS
        (disk / "ballast").unlink()
        book.record(at(STEPS + 100), batch([7]))
        book.close()
        assert all_rows(disk)["step"].tolist() == list(range(STEPS + 101))
        assert ledger_reader.read(disk).saves == {(1, STEPS + 100)}
    said = [record.getMessage() for record in caplog.records]
    assert ["its blocks wait" in said[0], "has all its blocks again" in said[1]] == [True, True]
    assert len(said) == 2, "once, however long it lasts"


def test_the_end_of_a_run_says_how_many_blocks_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    book = Ledger(tmp_path, 1, World())
    monkeypatch.setattr(book, "file", SimpleNamespace(write=lambda block: len(block) - 1, close=lambda: None))
    book.record(at(0), batch([1]))
    book.close()
    assert "lacks its last 1 blocks" in caplog.text


def test_an_error_that_does_not_go_away_is_raised(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        Ledger(tmp_path / "file" / "ledger", 1, World()).record(at(0), batch([1]))


def test_a_save_of_another_step_than_the_last_one_made_is_no_save(tmp_path: Path) -> None:
    book = Ledger(tmp_path, 1, World())
    book.seal(at(5))
    book.record(at(5), batch([1]))
    book.seal(at(7))
    book.seal(at(6))
    assert ledger_reader.read(tmp_path).saves == {(1, 5), (1, 6)}


def test_an_empty_ledger_is_read(tmp_path: Path) -> None:
    assert ledger_reader.read(tmp_path).lines == []
    assert not len(all_rows(tmp_path))


# ---- files of older versions: lines of JSON


def old(folder: Path, rank: int, *lines: dict[str, object] | str) -> None:
    """Write the file of a rank of attempt 1."""
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    (folder / f"attempt_0001_rank_{rank:05d}.jsonl").write_text(text)


def test_a_ledger_of_lines_is_read(tmp_path: Path) -> None:
    line = {"step": 3, "epoch": 0, "ranks": 2, "count": 6, "hash": 2**63 + 7}
    old(tmp_path, 0, line, line | {"step": 4, "replaced": 1, "replaced_hash": 9}, {"saved": 5}, {"saved": 9})
    old(tmp_path, 1, line | {"hash": 8}, '{"step": 1, "coun\n', line | {"step": 600}, line | {"step": 4})
    found = ledger_reader.read(tmp_path)
    assert found.of_step(1, 3).tolist() == [(3, 0, 2, 6, 0, 2**63 + 7, 0), (3, 1, 2, 6, 0, 8, 0)]
    assert found.of_step(1, 4)[["rank", "replaced", "replaced_hash"]].tolist() == [(0, 1, 9), (1, 0, 0)]
    assert found.of_step(1, 600)["rank"].tolist() == [1]
    assert (found.saves, found.restored(), found.ranks) == ({(1, 5)}, {1: 3}, {2})


def test_an_attempt_of_this_version_follows_one_of_an_older_version(tmp_path: Path) -> None:
    old(tmp_path, 0, {"step": 0, "epoch": 0, "ranks": 1, "count": 1, "hash": 7}, {"saved": 1})
    book = Ledger(tmp_path, 2, World())
    book.record(at(1), batch([1]))
    found = ledger_reader.read(tmp_path)
    assert (found.restored(), found.saves) == ({1: 0, 2: 1}, {(1, 1)})


def test_a_ledger_of_another_version_is_refused(tmp_path: Path) -> None:
    old(tmp_path, 0, {"step": 0, "epoch": 0, "count": 1, "hash": 2})
    with pytest.raises(DataError, match="has a line without 'ranks'"):
        ledger_reader.read(tmp_path)


@pytest.mark.parametrize(
    "change",
    [{"step": "x"}, {"step": -1}, {"ranks": 0}, {"ranks": 1.5}, {"count": None}, {"hash": 2**64}, {"step": 2**63}],
)
def test_a_line_that_no_rank_wrote_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    old(tmp_path, 0, {"step": 0, "epoch": 0, "ranks": 2, "count": 6, "hash": 7, **change})
    with pytest.raises(DataError, match="impossible"):
        ledger_reader.read(tmp_path)


def test_a_file_that_is_no_ledger_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "attempt_x_rank_y_z.jsonl").write_text('{"step": 0}\n')
    (tmp_path / "attempt_x_node_y.ledger").write_text("no")
    assert not len(all_rows(tmp_path))


# ---- older attempts


def nodes(folder: Path, attempt: int, count: int, first: int = 0) -> None:
    """What the nodes of an attempt write, of one rank each: two steps, and which shards they have verified."""
    for rank in range(count):
        book = Ledger(folder, attempt, World(rank=rank, size=count))
        for step in (first, first + 1):
            book.record(at(step), batch([step, rank]))
        book.seal(at(first + 2))
        book.close()
        rows = json.dumps({"how": "in place"}) + "\n" + json.dumps({"level": 0, "shard": rank}) + '\n{"lev'
        contents.file_of(folder, attempt, rank).write_text(rows)


def test_older_attempts_become_a_file_each_and_say_the_same(tmp_path: Path) -> None:
    for attempt in (1, 2, 3):
        nodes(tmp_path, attempt, 3, 2 * attempt)
    before = [all_rows(tmp_path, attempt).tolist() for attempt in (1, 2, 3)]
    saves, vouched = ledger_reader.read(tmp_path).saves, contents.vouched(tmp_path)
    book = Ledger(tmp_path, 3, World(size=3))
    book.sync()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [name for name in names if "joined" in name] == [
        f"attempt_000{number}_joined.{ending}" for number in (1, 2) for ending in ("jsonl", "ledger")
    ]
    assert all("attempt_0003_node" in name or "joined" in name for name in names)
    assert [all_rows(tmp_path, attempt).tolist() for attempt in (1, 2, 3)] == before
    assert (ledger_reader.read(tmp_path).saves, contents.vouched(tmp_path)) == (saves, vouched)


def test_other_ranks_join_nothing(tmp_path: Path) -> None:
    nodes(tmp_path, 1, 2)
    Ledger(tmp_path, 2, World(rank=1, size=2)).sync()
    assert not [*tmp_path.glob("*joined*")]


def test_what_a_kill_left_of_a_join_counts_once(tmp_path: Path) -> None:
    nodes(tmp_path, 1, 2)
    kept = {path: path.read_bytes() for path in tmp_path.glob("attempt_0001_node*")}
    before = all_rows(tmp_path).tolist()
    join(tmp_path, 2)
    for path, data in kept.items():  # as if it had been killed before it removed them
        path.write_bytes(data)
    assert all_rows(tmp_path).tolist() == before
    joined = (tmp_path / "attempt_0001_joined.ledger").read_bytes()
    next(iter(tmp_path.glob("*node_00000.ledger"))).write_bytes(b"of a process that was forgotten")
    join(tmp_path, 2)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".jsonl", ".ledger"]
    assert (tmp_path / "attempt_0001_joined.ledger").read_bytes() == joined
    assert all_rows(tmp_path).tolist() == before


def test_what_cannot_be_joined_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nodes(tmp_path, 1, 2)
    before = all_rows(tmp_path).tolist(), sorted(tmp_path.iterdir())

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", fails)
    join(tmp_path, 2)
    assert "No space left" in caplog.text
    assert (all_rows(tmp_path).tolist(), sorted(tmp_path.iterdir())) == before


def test_a_file_that_is_joined_while_it_is_audited_is_named(tmp_path: Path) -> None:
    nodes(tmp_path, 1, 2)
    found = ledger_reader.read(tmp_path)
    join(tmp_path, 2)
    with pytest.raises(DataError, match=r"cannot be read: .*\n.*audit it again"):
        found.of_step(1, 0)


@pytest.mark.parametrize("module", [ledger, contents])
@pytest.mark.parametrize(("attempt", "number"), [(1, 0), (12_345, 100_000)])
def test_every_file_that_is_written_is_one_that_is_read(
    tmp_path: Path, module: ModuleType, attempt: int, number: int
) -> None:
    named = module.NAME.fullmatch(module.file_of(tmp_path, attempt, number).stem)
    assert (int(named[1]), int(named[2])) == (attempt, number)
