"""Tensors in pieces: written by the ranks that hold them, read back in any other parts, on any number of ranks."""

import errno
import math
import os
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import safetensors.torch
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dist_ssl.checkpoint import index, rank_file, rank_header
from dist_ssl.checkpoint.damage import DamagedError
from dist_ssl.checkpoint.index import read, sealed_text, verify
from dist_ssl.checkpoint.rank_file import as_bytes
from dist_ssl.checkpoint.saver import Checkpoint
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws
from dist_ssl.core.plan import EpochPlan, Hyperparameters
from dist_ssl.core.progress import Progress
from dist_ssl.distributed.world import World
from dist_ssl.engines.ddp import DDP
from dist_ssl.errors import CheckpointError
from dist_ssl.memory.bank import Bank
from dist_ssl.memory.queue import Queue
from dist_ssl.optim.recipes import AdamW
from dist_ssl.protocols.engine import Piece, State
from dist_ssl.protocols.method import Embeddings, LossOutput, Method
from tests.checkpoint.whole_checkpoints import put, put_format_2
from tests.ranks import Ranks, collect_tensors

SHAPES = st.lists(st.integers(0, 6), max_size=3).map(tuple)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64])


def spans(cuts: list[int], count: int) -> list[range]:
    """Runs of `count` elements between cuts; some may be empty."""
    ends = [0, *sorted(min(cut, count) for cut in cuts), count]
    return [range(first, end) for first, end in pairwise(ends)]


def in_pieces(whole: Tensor, parts: list[range], beside: Tensor) -> list[State]:
    """States of ranks that each hold one run of `whole`, and `beside` whole."""
    flat = whole.reshape(-1)
    return [
        {"spread": Piece(flat[part.start : part.stop], tuple(whole.shape), part.start), "beside": beside}
        for part in parts
    ]


@given(
    shape=SHAPES,
    dtype=DTYPES,
    wrote=st.lists(st.integers(0, 200), max_size=4),
    reads=st.lists(st.integers(0, 200), max_size=4),
)
def test_any_parts_are_read_of_what_any_parts_were_written(
    shape: tuple[int, ...], dtype: torch.dtype, wrote: list[int], reads: list[int]
) -> None:
    count = math.prod(shape)
    whole = torch.arange(count).to(dtype).reshape(shape)
    with TemporaryDirectory() as name:
        put(Path(name), {}, in_pieces(whole, spans(wrote, count), torch.ones(3)))
        found = read(Path(name))[1]
        assert isinstance(found["spread"], Tensor)
        assert found["spread"].dtype == dtype
        assert torch.equal(found["spread"], whole)
        for span in spans(reads, count):
            state = read(Path(name), lambda name, _, span=span: span if name == "spread" else None)[1]
            assert isinstance(state["spread"], Piece)
            assert (state["spread"].shape, state["spread"].span) == (shape, span)
            assert torch.equal(state["spread"].tensor, whole.reshape(-1)[span.start : span.stop])
            assert isinstance(state["beside"], Tensor)


def test_a_rank_opens_only_the_files_that_hold_what_it_wants(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    parts = [range(4), range(4, 8), range(8, 12)]
    put(tmp_path, {}, [{"spread": Piece(whole[p.start : p.stop], (12,), p.start)} for p in parts])
    (tmp_path / "rank_00001.safetensors").unlink()
    assert read(tmp_path, lambda *_: range(9, 11))[1]["spread"].tensor.tolist() == [9, 10]  # type: ignore[union-attr]
    with pytest.raises(DamagedError, match="rank_00001"):
        read(tmp_path, lambda *_: range(7, 9))


def refused(*_: Any) -> int:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_no_more_files_are_kept_open_than_a_process_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a thousand ranks that hold everything have written, one rank reads: every one of their files."""
    whole = torch.arange(30.0)
    put(tmp_path, {}, [{"spread": Piece(whole[3 * rank : 3 * rank + 3], (30,), 3 * rank)} for rank in range(10)])
    monkeypatch.setattr(index, "MOST_OPEN", 2)
    before, most, copy = len(list(Path("/proc/self/fd").iterdir())), [0], rank_file.RankFile.copy

    def counted(*given: Any) -> None:
        most.append(len(list(Path("/proc/self/fd").iterdir())))
        copy(*given)

    monkeypatch.setattr(rank_file.RankFile, "copy", counted)
    assert torch.equal(read(tmp_path)[1]["spread"], whole)  # type: ignore[arg-type]
    assert max(most) <= before + 2 + 2 * index.READERS
    verify(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(rank_file, "_read_anew", refused)
        with pytest.raises(CheckpointError, match="cannot be opened: Too many open files"):
            read(tmp_path)
    file = tmp_path / "rank_00009.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    for damaged in (read, verify):
        with pytest.raises(DamagedError, match="rank_00009"):
            damaged(tmp_path)


def test_of_a_piece_only_what_has_the_same_hash_as_the_slice_is_read_and_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (rank_file, rank_header):
        monkeypatch.setattr(module, "HASHED_BYTES", 80)  # 20 elements
    whole = torch.arange(100.0)
    put(tmp_path, {}, [{"spread": Piece(whole, (100,), 0)}])
    file = tmp_path / "rank_00000.safetensors"
    data = bytearray(file.read_bytes())
    data[-400 + 4 * 39] ^= 1
    file.write_bytes(data)
    for first in range(100):
        for end in (first + 1, min(first + 15, 100), 100):
            if first < 40 and end > 20:
                with pytest.raises(DamagedError, match="spread"):
                    read(tmp_path, lambda *_, span=range(first, end): span)
            else:
                found = read(tmp_path, lambda *_, span=range(first, end): span)[1]["spread"]
                assert found.tensor.tolist() == whole[first:end].tolist()  # type: ignore[union-attr]
    with pytest.raises(DamagedError, match="spread"):
        verify(tmp_path)


def test_a_slice_reads_no_more_than_what_has_its_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (rank_file, rank_header):
        monkeypatch.setattr(module, "HASHED_BYTES", 400)
    monkeypatch.setattr(rank_file, "CHUNK_BYTES", 64)
    put(tmp_path, {}, [{"spread": Piece(torch.arange(1000.0), (1000,), 0)}])
    read_bytes, plainly = [], os.preadv

    def counted(handle: int, buffers: list[Any], offset: int) -> int:
        read_bytes.append(sum(map(len, buffers)))
        return plainly(handle, buffers, offset)

    monkeypatch.setattr(os, "preadv", counted)
    for first in (0, 90, 250, 900):
        read_bytes.clear()
        read(tmp_path, lambda *_, span=range(first, first + 100): span)
        assert sum(read_bytes[2:]) == 400 * (1 + bool(first % 100))  # after the header


@pytest.mark.parametrize("starts", [(0, 5), (0, 3), (1, 4)], ids=["a gap", "an overlap", "no beginning"])
def test_pieces_that_are_not_the_whole_are_never_committed(tmp_path: Path, starts: tuple[int, int]) -> None:
    with pytest.raises(AssertionError, match="'spread'"):
        put(tmp_path, {}, [{"spread": Piece(torch.ones(4), (8,), start)} for start in starts])


def test_a_tensor_for_which_there_is_no_memory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's file of holes takes no disk, and is as long as its table says."""
    put(tmp_path, {}, [{"x": torch.arange(4.0)}])

    def full(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(CheckpointError, match=r"tensor 'x' takes 16 bytes here, and there is no such memory"):
        read(tmp_path)


def test_a_checkpoint_of_format_1_is_read(tmp_path: Path) -> None:
    held = {"model/a": torch.randn(3, 2), "model/count": torch.tensor(5)}
    safetensors.torch.save_file(held, tmp_path / "rank_00000.safetensors")
    table = {
        name: {
            "file": "rank_00000.safetensors",
            "shape": list(value.shape),
            "dtype": str(value.dtype).removeprefix("torch."),
            "xxh3": xxhash.xxh3_128_hexdigest(as_bytes(value)),
        }
        for name, value in held.items()
    }
    content = {"format": 1, "progress": {"step": 4}, "ranks": 1, "tensors": table}
    (tmp_path / "state.json").write_text(sealed_text(content))
    progress, state = read(tmp_path)
    assert progress == {"step": 4}
    assert state.keys() == held.keys()
    assert all(torch.equal(state[name], held[name]) for name in held)  # type: ignore[arg-type]


@pytest.mark.parametrize("files", [True, False])
def test_a_checkpoint_of_format_2_is_read_and_its_bytes_are_checked(tmp_path: Path, files: bool) -> None:
    """The first versions of this format did not list the files."""
    whole = torch.arange(12.0)
    parts = [range(5), range(5, 5), range(5, 12)]
    states: list[State] = [
        {"model/a": Piece(whole[p.start : p.stop], (3, 4), p.start), "model/b": torch.tensor(7)} for p in parts
    ]
    put_format_2(tmp_path, {"step": 4}, states, files=files)
    progress, state = read(tmp_path)
    assert progress == {"step": 4}
    assert torch.equal(state["model/a"], whole.view(3, 4))  # type: ignore[arg-type]
    assert torch.equal(state["model/b"], torch.tensor(7))  # type: ignore[arg-type]
    assert read(tmp_path, lambda *_: range(4, 6))[1]["model/a"].tensor.tolist() == [4, 5]  # type: ignore[union-attr]
    verify(tmp_path)
    file = tmp_path / "rank_00002.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1]))
    for damaged in (read, verify):
        with pytest.raises(DamagedError, match="rank_00002"):
            damaged(tmp_path)


ROWS, SLOTS, BATCH = 31, 17, 12
PLAN = EpochPlan(0, 32, 1.0, 1, BATCH, BATCH)


class Remembering(Method):
    """A linear encoder with everything that a method may remember."""

    num_views = 1

    def __init__(self, world: World, rows: int = ROWS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Linear(6, 4)
        self.teacher = None
        self.queue = Queue(SLOTS, 4, world=world)
        self.bank = Bank(rows, 4, world=world)

    @property
    def encoder(self) -> nn.Module:
        return self.student

    def embed(self, views: list[Tensor], draws: Any) -> Embeddings:
        return {"z": nn.functional.normalize(self.student(views[0]), dim=1)}

    def loss(self, embeddings: Embeddings, batch: Batch, hyper: Any) -> LossOutput:
        z = embeddings["z"]
        found = self.bank.compare(z, batch.ids[None], (0.5,))
        keys, usable = self.queue.negatives(batch.ids)
        crowd = (z @ keys.T).masked_fill(~usable, -9.0).logsumexp(1)
        loss = (found.logsumexp[0] - 2 * found.own[0] + crowd).mean()
        return LossOutput(loss, remember={**found.kept, "z": z.detach()})

    def remember(self, out: LossOutput, batch: Batch, hyper: Any) -> None:
        self.bank.pull(out.remember, 0.5, 0.8)
        self.queue.push(out.remember["z"], batch.ids, batch.valid)


def batch(world: World, step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    ids = torch.randperm(ROWS, generator=generator)[:BATCH]
    view = torch.randn(BATCH, 6, dtype=torch.float64, generator=generator)
    valid = torch.rand(BATCH, generator=generator) > 0.1
    mine = slice(world.rank * BATCH // world.size, (world.rank + 1) * BATCH // world.size)
    return Batch([view[mine]], ids[mine], valid[mine], None, Draws(0), step=step)


def build(world: World, folder: Path, rows: int = ROWS) -> tuple[DDP, Checkpoint]:
    engine = DDP(Remembering(world, rows), AdamW(1e-3, 0.0), world=world, dtype=torch.float64, deterministic=False)
    return engine, Checkpoint(folder, world, keep_last=9, attempt=1, newest=lambda: True)


def trained(world: World, folder: Path, until: int) -> dict[str, Tensor]:
    """Go on from the newest checkpoint to a step, save there; the whole state then."""
    engine, checkpoint = build(world, folder)
    progress = checkpoint.restore(engine, Progress(epochs=5, attempt=1))
    while progress.step < until:
        hyper = Hyperparameters({"lr": torch.tensor(0.05), "weight_decay": torch.tensor(0.0)})
        engine.step(batch(world, progress.step), hyper)
        step = progress.step + 1
        progress = Progress(epochs=5, step=step, lane_offset=step, samples=BATCH * step, plans=(PLAN,))
    checkpoint.save(engine, progress)
    checkpoint.wait()
    rows = torch.cat(collect_tensors(world, engine.method.bank.rows))  # type: ignore[union-attr,arg-type]
    whole = {name: value.clone() for name, value in engine.state().items() if isinstance(value, Tensor)}
    return {**whole, "model/bank.rows": rows}


def test_bank_and_queue_pass_through_checkpoints_of_4_2_3_and_1_ranks(ranks: Ranks, tmp_path: Path) -> None:
    undisturbed = trained(World(), tmp_path / "whole", 8)
    for size, until in [(4, 2), (2, 4), (3, 6), (1, 8)]:
        states = ranks.run(trained, size, tmp_path / "parts", until)
        for state in states[1:]:
            assert all(torch.equal(state[name], states[0][name]) for name in state)
        found = read(tmp_path / "parts" / f"step_{until:08d}")[1]
        assert found.keys() == states[0].keys()
        assert all(torch.equal(found[name], states[0][name]) for name in found)  # type: ignore[arg-type]
    for name, value in undisturbed.items():
        torch.testing.assert_close(states[0][name], value, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def held_after_load(world: World, folder: Path) -> tuple[Tensor, range]:
    engine, checkpoint = build(world, folder)
    checkpoint.restore(engine, Progress(epochs=5, attempt=1))
    return engine.method.bank.rows, engine.method.bank.own  # type: ignore[union-attr,return-value]


def test_every_rank_writes_its_own_rows_and_reads_its_own_back(ranks: Ranks, tmp_path: Path) -> None:
    wrote = ranks.run(trained, 4, tmp_path, 1)[0]["model/bank.rows"]
    folder = tmp_path / "step_00000001"
    for rank in range(4):
        with safetensors.safe_open(folder / f"rank_{rank:05d}.safetensors", "pt") as file:
            own = file.get_tensor("model/bank.rows")
        assert torch.equal(own, wrote[rank * ROWS // 4 : (rank + 1) * ROWS // 4])
    for size in (4, 2, 3, 1):
        for rows, own_range in ranks.run(held_after_load, size, tmp_path):
            assert torch.equal(rows, wrote[own_range.start : own_range.stop])


def rows_when_wrapped(world: World) -> Tensor:
    method = Remembering(world)
    method.bank.rows.fill_(world.rank + 1.0)
    DDP(method, AdamW(1e-3, 0.0), world=world, deterministic=False)
    return method.bank.rows


def test_wrapping_leaves_every_rank_its_own_rows(ranks: Ranks) -> None:
    for rank, rows in enumerate(ranks.run(rows_when_wrapped, 3)):
        assert rows.unique().tolist() == [rank + 1]


def test_damage_that_one_rank_meets_makes_all_pass_over(ranks: Ranks, tmp_path: Path) -> None:
    ranks.run(trained, 2, tmp_path, 1)
    before = ranks.run(trained, 2, tmp_path, 2)[0]
    file = tmp_path / "step_00000002" / "rank_00001.safetensors"
    rows = before["model/bank.rows"][ROWS // 2 :].contiguous().numpy().tobytes()
    data = file.read_bytes()
    at = data.index(rows)
    file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    again = ranks.run(trained, 2, tmp_path, 2)[0]
    assert all(torch.equal(again[name], before[name]) for name in before)
    assert (tmp_path / "damaged_step_00000002").is_dir()


def test_a_bank_of_another_data_set_is_refused(tmp_path: Path) -> None:
    trained(World(), tmp_path, 1)
    engine, checkpoint = build(World(), tmp_path, rows=ROWS + 1)
    with pytest.raises(CheckpointError, match=r"bank\.rows.*another shape"):
        checkpoint.restore(engine, Progress(epochs=5, attempt=1))


def test_a_state_in_pieces_names_the_bank_by_its_place_in_the_method() -> None:
    engine, _ = build(World(), Path())
    piece = engine.state()["model/bank.rows"]
    assert isinstance(piece, Piece)
    assert (piece.shape, piece.span) == ((ROWS, 4), range(ROWS * 4))
    assert engine.wants("model/bank.rows", (ROWS, 4)) == range(ROWS * 4)
    assert engine.wants("model/student.weight", (4, 6)) is None
