"""A checkpoint is whole or it does not exist, and a damaged one is passed over for the one before it."""

import errno
import io
import json
import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dist_ssl.checkpoint import index, saver
from dist_ssl.checkpoint.damage import DamagedError
from dist_ssl.checkpoint.index import read, share_out
from dist_ssl.checkpoint.saver import Checkpoint
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws
from dist_ssl.core.plan import EpochPlan, Hyperparameters
from dist_ssl.core.progress import Progress
from dist_ssl.distributed.world import World
from dist_ssl.engines.ddp import DDP
from dist_ssl.errors import CheckpointError
from dist_ssl.optim.recipes import AdamW
from dist_ssl.protocols.engine import State
from dist_ssl.protocols.method import Embeddings, LossOutput, Method
from tests.checkpoint.whole_checkpoints import put, put_format_2
from tests.fuzzing import bounded_memory, nested

PLAN = EpochPlan(0, 32, 1.0, 2, 48, 48)
FRESH = Progress(epochs=5, attempt=2)


def at(step: int) -> Progress:
    """The position after so many steps."""
    return Progress(epochs=5, step=step, lane_offset=step, samples=48 * step, plans=(PLAN,))


def tensors(seed: int) -> dict[str, Tensor]:
    """One tensor of every kind that a run may hold."""
    own = torch.Generator().manual_seed(seed)
    return {
        "model/weight": torch.randn(3, 5, generator=own),
        "model/conv": torch.randn(4, 3, 2, 2, generator=own).to(memory_format=torch.channels_last),
        "model/scalar": torch.randn((), generator=own),
        "model/double": torch.randn(4, dtype=torch.float64, generator=own),
        "model/count": torch.tensor(2**53 + seed),
        "model/ids": torch.randint(-(2**62), 2**62, (6,), generator=own),
        "model/half": torch.randn(7, generator=own).bfloat16(),
        "model/flags": torch.tensor([True, False, True]),
        "model/empty": torch.empty(0, 4),
        "model/not_finite": torch.tensor([float("nan"), float("inf"), -0.0]),
    }


class Store:
    """An engine that has nothing but a state."""

    def __init__(self, seed: int = 0) -> None:
        self.held: State = tensors(seed)

    def state(self) -> State:
        return self.held

    def wants(self, name: str, shape: tuple[int, ...]) -> range | None:
        return None

    def load(self, state: State) -> None:
        self.held = state


def keeper(folder: Path, *, attempt: int = 2, newest: Callable[[], bool] = lambda: True, **keep: Any) -> Checkpoint:
    return Checkpoint(folder, World(), **{"keep_last": 2, **keep}, attempt=attempt, newest=newest)


def saved(checkpoint: Checkpoint, engine: "Store", step: int) -> None:
    """Save this state as that of a step, and wait until it is on disk."""
    checkpoint.save(engine, at(step))  # type: ignore[arg-type]
    checkpoint.wait()


def save(folder: Path, *steps: int, **keep: Any) -> Checkpoint:
    """Checkpoints of these steps; the state is drawn from the step's number."""
    written = keeper(folder, **keep)
    for step in steps:
        saved(written, Store(step), step)
    return written


def restore(folder: Path) -> tuple[int, State]:
    """The step and the state that a new attempt begins with."""
    engine = Store(-1)
    progress = keeper(folder).restore(engine, FRESH)  # type: ignore[arg-type]
    return progress.step, engine.held


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def bits(x: Tensor) -> tuple[Any, ...]:
    return x.dtype, tuple(x.shape), x.contiguous().reshape(-1).view(torch.uint8).tolist()


def assert_same_bits(found: State, wanted: State) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert bits(found[name]) == bits(wanted[name]), name


def rank_file(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}" / "rank_00000.safetensors"


def state_file(folder: Path, step: int) -> Path:
    return folder / f"step_{step:08d}" / "state.json"


def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    save(tmp_path, 7)
    step, state = restore(tmp_path)
    assert step == 7
    assert_same_bits(state, tensors(7))


def test_progress_comes_back_with_the_new_attempt_and_the_wished_epochs(tmp_path: Path) -> None:
    save(tmp_path, 7)
    found = keeper(tmp_path, attempt=9).restore(Store(), Progress(epochs=8, attempt=9))  # type: ignore[arg-type]
    assert found == replace(at(7), epochs=8, attempt=9)


def test_a_run_without_checkpoints_begins_afresh(tmp_path: Path) -> None:
    engine = Store(3)
    assert keeper(tmp_path / "none").restore(engine, FRESH) == FRESH  # type: ignore[arg-type]
    assert_same_bits(engine.held, tensors(3))


def test_latest_names_the_newest_and_nothing_else_is_left(tmp_path: Path) -> None:
    save(tmp_path, 3, 6)
    assert names(tmp_path) == ["LATEST", "step_00000003", "step_00000006"]
    assert (tmp_path / "LATEST").read_text().strip() == "step_00000006"


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 5000), max_size=40), ranks=st.integers(1, 9))
def test_every_tensor_is_written_once_and_ranks_share_evenly(sizes: list[int], ranks: int) -> None:
    state = {f"t{number}": torch.empty(size, dtype=torch.uint8) for number, size in enumerate(sizes)}
    parts = share_out(state, ranks)
    assert len(parts) == ranks
    assert sorted(name for part in parts for name in part) == sorted(state)
    loads = [sum(state[name].nbytes for name in part) for part in parts]
    assert max(loads) - min(loads) <= max(sizes, default=0)


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 50), max_size=20), ranks=st.integers(1, 5))
def test_all_ranks_come_to_the_same_share_whatever_the_order_of_names(sizes: list[int], ranks: int) -> None:
    state = {f"t{number}": torch.empty(size) for number, size in enumerate(sizes)}
    assert share_out(state, ranks) == share_out(dict(reversed(state.items())), ranks)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    save(tmp_path, 1, 2, 3, 4, 5, keep_last=keep)
    assert names(tmp_path) == ["LATEST", *(f"step_{step:08d}" for step in range(6 - keep, 6))]


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(bytes(data))


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a byte of the last tensor": lambda f: flip(rank_file(f, 2), -1),
    "a byte of the header's length": lambda f: flip(rank_file(f, 2), 0),
    "a byte of the header": lambda f: flip(rank_file(f, 2), 12),
    "a file cut short": lambda f: rank_file(f, 2).write_bytes(rank_file(f, 2).read_bytes()[:-9]),
    "a file of no length": lambda f: rank_file(f, 2).write_bytes(b""),
    "a file gone": lambda f: rank_file(f, 2).unlink(),
    "a file of another checkpoint": lambda f: swap(rank_file(f, 1), rank_file(f, 2)),
    "state.json of no length": lambda f: state_file(f, 2).write_text(""),
    "state.json cut short": lambda f: state_file(f, 2).write_bytes(state_file(f, 2).read_bytes()[:-20]),
    "state.json no mapping": lambda f: state_file(f, 2).write_text("[1, 2]"),
    "state.json without tensors": lambda f: state_file(f, 2).write_text('{"format": 1, "progress": {}}'),
    "state.json gone": lambda f: state_file(f, 2).unlink(),
    "state.json no text": lambda f: flip(state_file(f, 2), 3),
}


@pytest.mark.parametrize("kind", [kind for kind in DAMAGE if kind != "a file of another checkpoint"])
def test_a_damaged_checkpoint_is_passed_over_loudly(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1, 2)
    DAMAGE[kind](tmp_path)
    with caplog.at_level(logging.WARNING):
        step, state = restore(tmp_path)
    assert step == 1
    assert_same_bits(state, tensors(1))
    assert "step_00000002" in caplog.text


@dataclass(frozen=True)
class Thread(World):
    """A rank that is a thread: what ranks tell each other passes through a list, beside training through another."""

    table: list[Any] = field(default_factory=list)
    together: Barrier = field(default_factory=lambda: Barrier(1))
    beside: "Thread | None" = None

    def collect(self, obj: Any) -> list[Any]:
        self.table[self.rank] = obj
        self.together.wait(20)
        found = list(self.table)
        self.together.wait(20)
        return found

    def collect_on_first(self, obj: Any) -> list[Any]:
        found = self.collect(obj)
        return found if self.rank == 0 else []

    def share(self, obj: Any) -> Any:
        return self.collect(obj)[0]

    def agree(self, value: int) -> int:
        return max(self.collect(value))


@pytest.fixture(autouse=True)
def without_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that are threads have no process groups."""
    monkeypatch.setattr(saver, "with_own_group", lambda world: getattr(world, "beside", None) or world)


def on_ranks(size: int, work: Callable[[World], Any]) -> list[Any]:
    """What the work comes to on every rank; an error is a result too."""
    tables, barriers = [[None] * size, [None] * size], [Barrier(size), Barrier(size)]

    def run(rank: int) -> Any:
        beside = Thread(rank=rank, size=size, table=tables[1], together=barriers[1])
        try:
            return work(Thread(rank=rank, size=size, table=tables[0], together=barriers[0], beside=beside))
        except CheckpointError as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


def saved_by_ranks(folder: Path, size: int, step: int) -> list[Any]:
    def save_own(world: World) -> None:
        saved(Checkpoint(folder, world, keep_last=2, attempt=2, newest=lambda: True), Store(step), step)

    return on_ranks(size, save_own)


def test_what_three_ranks_wrote_one_rank_and_two_ranks_read(tmp_path: Path) -> None:
    assert saved_by_ranks(tmp_path, 3, 7) == [None] * 3
    assert len(list((tmp_path / "step_00000007").glob("rank_*"))) == 3
    assert_same_bits(restore(tmp_path)[1], tensors(7))

    def load(world: World) -> State:
        engine = Store(-1)
        Checkpoint(tmp_path, world, keep_last=2, attempt=2, newest=lambda: True).restore(engine, FRESH)  # type: ignore[arg-type]
        return engine.held

    for state in on_ranks(2, load):
        assert_same_bits(state, tensors(7))


def test_what_one_rank_cannot_open_is_an_error_on_all(tmp_path: Path) -> None:
    """A checkpoint that one machine cannot read for now may be whole: nothing is passed over, and no rank waits."""
    saved_by_ranks(tmp_path, 2, 7)

    def load(world: World) -> str:
        found = Checkpoint(tmp_path, world, keep_last=2, attempt=2, newest=lambda: True)
        if world.rank == 1:

            def refuse(*_: Any) -> Any:
                raise CheckpointError("Too many open files.", "Raise the limit.")

            found._read = refuse  # type: ignore[method-assign]
        with pytest.raises(CheckpointError) as caught:
            found.restore(Store(-1), FRESH)  # type: ignore[arg-type]
        return str(caught.value)

    assert on_ranks(2, load) == ["Too many open files.\n  Raise the limit."] * 2
    assert (tmp_path / "step_00000007").is_dir()


def weight(table: dict[str, Any]) -> dict[str, Any]:
    """What a table of format 3 says of a tensor of 15 elements, all of them on rank 0."""
    return table["tensors"]["model/weight"]  # type: ignore[no-any-return]


def reshaped(row: dict[str, Any], count: int) -> None:
    """Let a row of a table say that its tensor is a vector of so many elements, in one piece."""
    row.update(shape=[count])
    if "pieces" in row:
        row.update(pieces=[{**row["pieces"][0], "count": count}])
    else:
        row.update(each=count)


def listed(*others: Any, each: Any = 0) -> Callable[[dict[str, Any]], None]:
    """Let a table of format 3 say that these ranks hold other elements of a tensor than by this rule."""
    return lambda table: weight(table).update(each=each, others=list(others))


OF_ALL_FORMATS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a side beyond 64 bits": lambda table: table["tensors"]["model/empty"].update(shape=[0, 2**64]),
    "an empty tensor with absurd sides": lambda table: table["tensors"]["model/empty"].update(shape=[0, 2**40, 2**40]),
    "a thousand sides": lambda table: table["tensors"]["model/empty"].update(shape=[1] * 999 + [0]),
    "more elements than memory": lambda table: reshaped(weight(table), 2**40),
    "more elements than the file": lambda table: reshaped(weight(table), 2**34),
    "the same bytes again and again": lambda table: table["tensors"].update(
        {f"model/{number}": table["tensors"]["model/weight"] for number in range(1000)}
    ),
    "a deep nesting": lambda table: table.update(more=nested(300)),
    "a number of ranks as a text": lambda table: table.update(ranks="1"),
    "a text as a shape": lambda table: weight(table).update(shape="35"),
}
SEALED: dict[str, Callable[[dict[str, Any]], object]] = {
    "no rank": lambda table: table.update(ranks=0),
    "more ranks than there are": lambda table: table.update(ranks=2**21),
    "a number of ranks with a fraction": lambda table: table.update(ranks=1.0),
    "no number of the save": lambda table: table.pop("save"),
    "a number of the save that is none": lambda table: table.update(save="../x"),
    "no rule": lambda table: weight(table).pop("each"),
    "an unknown rule": lambda table: weight(table).update(each="odd"),
    "a rule of a fraction": lambda table: weight(table).update(each=15.0),
    "a rule of less than nothing": lambda table: weight(table).update(each=-15),
    "rows of a scalar": lambda table: table["tensors"]["model/scalar"].update(each="even"),
    "too little by the rule": lambda table: weight(table).update(each=14),
    "a rank too many": listed([1, 0, 15]),
    "a rank below 0": listed([-1, 0, 15]),
    "a rank twice": listed([0, 0, 8], [0, 8, 7]),
    "no list of ranks": lambda table: weight(table).update(others=None),
    "a number as a rank's elements": listed(0),
    "a text as a rank's elements": listed("015"),
    "too few numbers of a rank": listed([0, 0]),
    "too many numbers of a rank": listed([0, 0, 15, 0]),
    "elements beyond the end": listed([0, 0, 16]),
    "elements that do not begin": listed([0, 1, 14]),
    "a rank that holds nothing after all": listed([0, 0, 0], each=15),
}
SEALED_OF_FORMAT_2: dict[str, Callable[[dict[str, Any]], object]] = {
    "a length as a text": lambda table: table["files"]["rank_00000.safetensors"].update(length="9"),
    "a list as a header": lambda table: table["files"]["rank_00000.safetensors"].update(header=[]),
    "a piece without a hash": lambda table: weight(table)["pieces"][0].pop("xxh3"),
    "a number as a hash": lambda table: weight(table)["pieces"][0].update(xxh3=5),
    "no list of files": lambda table: table.update(files=None),
    "a file without its length": lambda table: table["files"].clear(),
    "a negative length": lambda table: table["files"]["rank_00000.safetensors"].update(length=-1),
    "a file elsewhere": lambda table: table["files"].update({"../x": table["files"]["rank_00000.safetensors"]}),
    "a hash that is none": lambda table: weight(table)["pieces"][0].update(xxh3="../x"),
    "another hash": lambda table: weight(table)["pieces"][0].update(xxh3="0" * 32),
    "a piece elsewhere": lambda table: weight(table)["pieces"][0].update(file="../x/rank_00000.safetensors"),
    "a piece in no file": lambda table: weight(table)["pieces"][0].update(file="rank_00007.safetensors"),
    "another header": lambda table: table["files"]["rank_00000.safetensors"].update(header="0" * 32),
    "another length": lambda table: table["files"]["rank_00000.safetensors"].update(length=5),
    "a gap": lambda table: weight(table)["pieces"][0].update(start=1),
    "too few elements": lambda table: weight(table)["pieces"][0].update(count=1),
    "a wider type": lambda table: weight(table).update(dtype="float64"),
    "no pieces": lambda table: weight(table).pop("pieces"),
    "a repeated text as a shape of format 1": lambda table: of_format_1(table, ["x", 2**40]),
    "a repeated list as a shape of format 1": lambda table: of_format_1(table, [[0] * 1000, 2**30]),
}


def of_format_1(table: dict[str, Any], shape: list[Any]) -> None:
    """Let a table be one of format 1, with a tensor of this shape."""
    own = {"shape": shape, "dtype": weight(table)["dtype"], "file": "rank_00000.safetensors", "xxh3": "0" * 32}
    table.update(format=1, tensors={"model/weight": own})


@pytest.mark.parametrize(
    ("written", "edit"),
    [
        *(pytest.param(put, edit, id=what) for what, edit in {**OF_ALL_FORMATS, **SEALED}.items()),
        *(
            pytest.param(put_format_2, edit, id=f"{what}, format 2")
            for what, edit in {**OF_ALL_FORMATS, **SEALED_OF_FORMAT_2}.items()
        ),
    ],
)
def test_a_table_that_was_edited_and_sealed_is_damage(tmp_path: Path, written: Any, edit: Any) -> None:
    for step in (1, 2):
        written(tmp_path / f"step_{step:08d}", at(step).to_json(), [tensors(step)])
    assert_same_bits(read(tmp_path / "step_00000002")[1], tensors(2))
    path = state_file(tmp_path, 2)
    table = json.loads(path.read_text())
    table.pop("xxh3")
    edit(table)
    path.write_text(index.sealed_text(table))
    with bounded_memory():
        with pytest.raises(DamagedError, match=r"state\.json|rank_0000"):
            read(path.parent)
        assert restore(tmp_path)[0] == 1


@pytest.mark.parametrize("kind", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_table_that_is_no_regular_file_is_damage_and_not_waited_for(
    tmp_path: Path, kind: Callable[[Path], None]
) -> None:
    save(tmp_path, 1, 2)
    state_file(tmp_path, 2).unlink()
    kind(state_file(tmp_path, 2))
    assert restore(tmp_path)[0] == 1


def test_a_table_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, 2)
    monkeypatch.setattr(index, "MOST_TABLE", state_file(tmp_path, 2).stat().st_size)
    assert restore(tmp_path)[0] == 2
    state_file(tmp_path, 2).open("a").write(" ")
    with pytest.raises(DamagedError, match=r"state\.json: .* has more than"):
        read(state_file(tmp_path, 2).parent)


def test_a_table_has_a_largest_number_of_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, 2)
    monkeypatch.setattr(index, "MOST_VALUES", 20)
    with pytest.raises(DamagedError, match=r"state\.json: it has more than 20 values"):
        read(state_file(tmp_path, 2).parent)


def test_two_files_swapped_within_a_checkpoint_are_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2):
        saved_by_ranks(tmp_path, 2, step)
    swap(rank_file(tmp_path, 2), rank_file(tmp_path, 2).with_name("rank_00001.safetensors"))
    step, state = restore(tmp_path)
    assert step == 1
    assert_same_bits(state, tensors(1))
    assert "step_00000002" in caplog.text


def test_a_rank_that_cannot_write_stops_the_save_on_all_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved_by_ranks(tmp_path, 2, 1)
    before = names(tmp_path)
    whole = saver.write

    def full_for_one(path: Path, *own: Any) -> Any:
        if path.name == "rank_00001.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(path, *own)

    monkeypatch.setattr(saver, "write", full_for_one)
    for error in saved_by_ranks(tmp_path, 2, 2):
        assert isinstance(error, CheckpointError)
        assert "Rank 1: " in error.problem
    assert names(tmp_path) == before


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("fault", [MemoryError("no host memory"), AssertionError("the pieces overlap")], ids=repr)
def test_a_fault_in_the_writer_of_one_rank_ends_the_save_on_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, fault: Exception
) -> None:
    whole = saver.write

    def broken_on_one(path: Path, *own: Any) -> Any:
        if path.name == f"rank_{rank:05d}.safetensors":
            raise fault
        return whole(path, *own)

    def save_own(world: World) -> Exception:
        own = Checkpoint(tmp_path, world, keep_last=2, attempt=2, newest=lambda: True)
        with pytest.raises((RuntimeError, type(fault))) as raised:
            saved(own, Store(1), 1)
        return raised.value

    monkeypatch.setattr(saver, "write", broken_on_one)
    found = on_ranks(2, save_own)
    assert found[rank] is fault
    assert f"Rank {rank}: {fault!r}" in str(found[1 - rank])
    assert not list(tmp_path.glob("step_*"))


@pytest.mark.parametrize("kind", DAMAGE)
def test_no_whole_checkpoint_left_is_an_error_that_names_the_folder(tmp_path: Path, kind: str) -> None:
    save(tmp_path, 1, 2)
    DAMAGE[kind](tmp_path)
    if kind != "a file of another checkpoint":
        flip(rank_file(tmp_path, 1), -1)
    with pytest.raises(CheckpointError, match="None of the 2 checkpoints") as raised:
        restore(tmp_path)
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize("file", ["state.json", "rank_00000.safetensors"])
def test_what_cannot_be_opened_for_a_reason_of_its_own_is_not_taken_for_damage(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        saved(keeper(tmp_path), Store(step), step)
    before, opened, io_open = names(tmp_path), os.open, io.open

    def refuse(path: Any, plainly: Any, *given: Any, **named: Any) -> Any:
        if str(path).endswith(f"step_00000002/{file}"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return plainly(path, *given, **named)

    monkeypatch.setattr(os, "open", lambda path, *given, **named: refuse(path, opened, *given, **named))
    monkeypatch.setattr(io, "open", lambda path, *given, **named: refuse(path, io_open, *given, **named))
    with pytest.raises(CheckpointError, match=f"{file} cannot be opened: Too many open files"):
        restore(tmp_path)
    assert names(tmp_path) == before  # nothing is set aside


def test_no_changed_byte_of_a_rank_file_goes_unnoticed(tmp_path: Path) -> None:
    small = {"model/a": torch.tensor([1.5, -2.0], dtype=torch.float64), "model/b": torch.tensor(3)}
    engine = Store()
    engine.held = small
    saved(keeper(tmp_path), engine, 1)
    path = rank_file(tmp_path, 1)
    whole = path.read_bytes()
    wrong = []
    for place in range(len(whole)):
        for mask in (0x01, ord("F") ^ ord("I"), 0x80):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
            try:
                found = read(path.parent)[1]
            except DamagedError:
                continue
            if any(bits(found[name]) != bits(small[name]) for name in small):
                wrong.append(f"byte {place} ^ {mask:#x}: {whole[max(0, place - 12) : place + 4]!r}")
    assert not wrong, wrong


def test_no_changed_byte_of_the_state_file_goes_unnoticed(tmp_path: Path) -> None:
    engine = Store()
    engine.held = {"model/a": torch.tensor([1.5, -2.0])}
    saved(keeper(tmp_path), engine, 21)
    path = state_file(tmp_path, 21)
    whole = path.read_bytes()
    meant = read(path.parent)
    wrong = []
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x01]) + whole[place + 1 :])
        try:
            progress, state = read(path.parent)
        except (DamagedError, CheckpointError):
            continue
        except Exception as error:
            wrong.append(f"byte {place} {whole[max(0, place - 12) : place + 4]!r}: {error!r}")
            continue
        if progress != meant[0] or state.keys() != meant[1].keys():
            wrong.append(f"byte {place} {whole[max(0, place - 12) : place + 4]!r}: unnoticed")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(whole)} bytes", *wrong[:8]])


def test_training_on_past_a_damaged_checkpoint_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 10, 20)
    flip(rank_file(tmp_path, 20), -1)
    engine = Store()
    again = keeper(tmp_path)
    assert again.restore(engine, FRESH).step == 10  # type: ignore[arg-type]
    saved(again, Store(5), 20)
    step, state = restore(tmp_path)
    assert step == 20
    assert_same_bits(state, tensors(5))


def test_a_copy_that_a_person_made_is_neither_restored_nor_removed(tmp_path: Path) -> None:
    saved(keeper(tmp_path, keep_last=1), Store(1), 1)
    shutil.copytree(tmp_path / "step_00000001", tmp_path / "step_00000001_good")
    own = keeper(tmp_path, keep_last=1)
    assert own.restore(Store(), FRESH).step == 1  # type: ignore[arg-type]
    saved(own, Store(2), 2)
    assert names(tmp_path) == ["LATEST", "step_00000001_good", "step_00000002"]


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        saved(keeper(tmp_path), Store(3), step)
    assert restore(tmp_path)[0] == 100_000_000


def test_a_damaged_checkpoint_does_not_push_out_whole_ones(tmp_path: Path) -> None:
    save(tmp_path, 10, 20)
    flip(rank_file(tmp_path, 20), -1)
    again = keeper(tmp_path, keep_last=1)
    assert again.restore(Store(), FRESH).step == 10  # type: ignore[arg-type]
    saved(again, Store(15), 15)
    step, state = restore(tmp_path)
    assert step == 15
    assert_same_bits(state, tensors(15))


def test_another_format_is_refused_and_both_numbers_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    monkeypatch.setattr(index, "FORMAT", 7)
    save(tmp_path, 2)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"format 7: this version reads 1, 2, 3\."):
        restore(tmp_path)


def test_what_a_kill_left_half_written_is_ignored_and_removed(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "step_00000002").rename(tmp_path / ".step_00000002.part")
    step, state = restore(tmp_path)
    assert step == 1
    assert_same_bits(state, tensors(1))
    assert ".step_00000002.part" not in names(tmp_path)


def test_a_kill_before_the_announcement_loses_nothing(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    (tmp_path / "LATEST").write_text("step_00000001\n")
    assert restore(tmp_path)[0] == 2


def test_a_superseded_attempt_commits_nothing(tmp_path: Path) -> None:
    save(tmp_path, 1)
    before = names(tmp_path)
    forgotten = keeper(tmp_path, newest=lambda: False, attempt=4)
    with pytest.raises(CheckpointError, match="attempt 4 is not the newest"):
        saved(forgotten, Store(2), 2)
    assert names(tmp_path) == before
    assert (tmp_path / "LATEST").read_text().strip() == "step_00000001"
    assert restore(tmp_path)[0] == 1


@pytest.mark.parametrize("method", ["open", "write_text", "rename", "mkdir"])
def test_a_disk_that_is_full_stops_the_save_and_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    save(tmp_path, 1)
    before = names(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, method, full)
    with pytest.raises(CheckpointError, match=r"Rank 0: .*No space left on device") as caught:
        saved(keeper(tmp_path), Store(2), 2)
    monkeypatch.undo()
    assert "Free some space" in caught.value.remedy
    assert names(tmp_path) == before
    step, state = restore(tmp_path)
    assert step == 1
    assert_same_bits(state, tensors(1))


def test_a_save_that_failed_is_not_taken_for_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = keeper(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(saver, "sync", lambda path: (_ for _ in ()).throw(OSError(errno.EIO, "broken disk")))
        with pytest.raises(CheckpointError, match="broken disk") as caught:
            saved(written, Store(2), 2)
    assert "See that it can be written" in caught.value.remedy
    saved(written, Store(2), 2)
    assert restore(tmp_path)[0] == 2


def test_one_step_is_written_once(tmp_path: Path) -> None:
    written = save(tmp_path, 4)
    stamp = rank_file(tmp_path, 4).stat().st_mtime_ns
    saved(written, Store(9), 4)
    assert rank_file(tmp_path, 4).stat().st_mtime_ns == stamp
    assert_same_bits(restore(tmp_path)[1], tensors(4))


def test_a_restored_step_is_not_written_again(tmp_path: Path) -> None:
    save(tmp_path, 4)
    stamp = rank_file(tmp_path, 4).stat().st_mtime_ns
    again = keeper(tmp_path)
    again.restore(Store(), FRESH)  # type: ignore[arg-type]
    saved(again, Store(9), 4)
    assert rank_file(tmp_path, 4).stat().st_mtime_ns == stamp


def test_nothing_in_a_checkpoint_is_pickled(tmp_path: Path) -> None:
    save(tmp_path, 4)
    assert names(tmp_path / "step_00000004") == ["rank_00000.safetensors", "state.json"]


class Tiny(Method):
    """A method of one linear layer."""

    num_views = 1

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.student = nn.Linear(2, width)
        self.teacher = None

    @property
    def encoder(self) -> nn.Module:
        return self.student

    def embed(self, views: list[Tensor], draws: Any) -> Embeddings:
        return {"z": self.student(views[0])}

    def loss(self, embeddings: Embeddings, batch: Any, hyper: Any) -> LossOutput:
        return LossOutput(embeddings["z"].square().mean())


@pytest.fixture
def engine() -> DDP:
    """An engine one step into its run."""
    made = DDP(Tiny(), AdamW(1e-3, 0.0), world=World(), deterministic=False)
    batch = Batch([torch.randn(4, 2)], torch.arange(4), torch.ones(4, dtype=torch.bool), None, Draws(0), step=0)
    made.step(batch, Hyperparameters({"lr": torch.tensor(0.1), "weight_decay": torch.tensor(0.0)}))
    return made


OTHERS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "a parameter is missing": lambda s: {k: v for k, v in s.items() if k != "model/student.bias"},
    "a parameter is unknown": lambda s: {**s, "model/student.scale": torch.ones(3)},
    "a parameter has another shape": lambda s: {**s, "model/student.bias": torch.ones(4)},
    "a moment has another shape": lambda s: {**s, "optim/student.bias/exp_avg": torch.ones(4)},
    "a moment belongs to nobody": lambda s: {**s, "optim/student.scale/exp_avg": torch.ones(3)},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_an_engine_refuses_a_state_that_does_not_fit(engine: DDP, kind: str) -> None:
    before = {name: value.clone() for name, value in engine.state().items()}
    name = "student.scale" if kind.endswith(("unknown", "nobody")) else "student.bias"
    with pytest.raises(CheckpointError, match=name):
        engine.load(OTHERS[kind](before))
    assert_same_bits(engine.state(), before)


def test_foreign_names_among_checkpoints_are_left_alone_and_stop_nothing(tmp_path: Path) -> None:
    own = keeper(tmp_path)
    for step in (1, 2):
        own.save(Store(step), at(step))  # type: ignore[arg-type]
        own.wait()
    (tmp_path / "step_00000002" / "state.json").write_text("{}")
    foreign = [tmp_path / "damaged_step_00000002", tmp_path / "step_00000099", tmp_path / "step_00000003"]
    for path in foreign:
        path.write_text("a person's")
    step, held = restore(tmp_path)
    assert step == 1
    assert_same_bits(held, tensors(1))
    assert foreign[0].is_dir(), "the damaged one has this name"
    own = keeper(tmp_path)
    own.save(Store(3), at(3))  # type: ignore[arg-type]
    own.wait()
    assert restore(tmp_path)[0] == 3
    assert foreign[1].read_text() == "a person's"


def test_what_was_just_saved_stays_though_a_forgotten_attempt_has_saved_a_later_step(tmp_path: Path) -> None:
    save(tmp_path, 200, attempt=1, keep_last=1)
    save(tmp_path, 150, attempt=2, keep_last=1)
    assert {"step_00000150", "step_00000200"} <= {*names(tmp_path)}
