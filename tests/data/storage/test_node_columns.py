"""Columns that the processes of a node share in a file: every value is that of columns in memory, whatever happens."""

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from io import FileIO
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from dist_ssl.config.percentage import Share
from dist_ssl.core.draws import Draws, Ints
from dist_ssl.core.plan import EpochPlan
from dist_ssl.core.progress import Progress
from dist_ssl.data.epoch_views import Colours
from dist_ssl.data.images.image_rules import RULES
from dist_ssl.data.images.views import Augmentation, Cutter, ViewCutter
from dist_ssl.data.loader.load import Loader
from dist_ssl.data.loader.loader_process import LoaderProcess, _lean
from dist_ssl.data.order.quarantine import Quarantine
from dist_ssl.data.storage import column_file, fields, manifest, mixture, pyramid, samples
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.column_file import KEYS, MappedSamples
from dist_ssl.data.storage.fetch import Fetcher
from dist_ssl.data.storage.manifest import Shard, Split
from dist_ssl.data.storage.node_columns import UNUSED_SECONDS, NodeColumns
from dist_ssl.data.storage.pyramid import Pyramid
from dist_ssl.data.storage.read import Reader
from dist_ssl.data.storage.reader_options import Access
from dist_ssl.data.storage.samples import Row, Samples, columns, joined
from dist_ssl.data.stream import Stream
from dist_ssl.distributed.world import World
from dist_ssl.errors import DataError
from shards import levels
from shards.command_line import Quality, Sides
from tests.web import serving

NO_HASH = "0" * 64
PLAN = EpochPlan(epoch=0, image_size=16, magnitude=1.0, views=2, batch_size=12, lanes=4)
LARGE = (1 << 15, 1 << 31, 1 << 40)


def written(folder: Path, seed: int) -> Path:
    """A data set of random samples, of which nothing fits the usual where the seed says so."""
    folder.mkdir(exist_ok=True)
    draw, rows = random.Random(seed), list[Row]()
    shards = list[Shard]()
    sides, most = draw.random() < 0.5, draw.choice([255, 70_000])
    for number in range(draw.randrange(1, 5)):
        size, count = draw.choice([10_000, 1 << 33]), draw.choice([0, 1, 7, KEYS, 1500])
        shards.append(Shard(f"{number}.tar", count, size, NO_HASH))
        for _ in range(count):
            offset = draw.randrange(size - 5000)
            label = draw.choice([-1, 3, draw.choice(LARGE)] if seed % 3 == 0 else [3, 999])
            key = draw.choice(["", "a/b", "größe", "k" * draw.randrange(40), str(draw.random())])
            more = (draw.randrange(most), draw.randrange(most)) if sides else ()
            rows.append((key, offset, draw.randrange(5000), label, *more))
    rows = rows or [("only", 0, 1, 0)]
    shards = shards if sum(shard.samples for shard in shards) else [Shard("0.tar", 1, 10, NO_HASH)]
    manifest.write(folder, {"train": (shards, columns(rows))})
    return folder


def node(folder: Path) -> NodeColumns:
    """Files for every split, however small."""
    return NodeColumns(folder / "node", least=1)


def same(found: Samples, plain: Samples) -> None:
    """Every value of columns in a file is that of plain columns in memory."""
    for name in ("offsets", "sizes", "labels", "widths", "heights"):
        own, expected = getattr(found, name), getattr(plain, name)
        assert (own is None) == (expected is None)
        if own is not None:
            np.testing.assert_array_equal(np.asarray(own, dtype=np.int64), np.asarray(expected, dtype=np.int64))
            assert [int(own[n]) for n in range(0, len(plain), 97)] == np.asarray(expected)[::97].tolist()
    assert [found.key(n) for n in range(len(plain))] == [plain.key(n) for n in range(len(plain))]
    assert len(found) == len(plain)
    assert found.unlabelled() == plain.unlabelled()


@pytest.mark.parametrize("seed", range(24))
def test_every_value_is_that_of_columns_in_memory(tmp_path: Path, seed: int) -> None:
    written(tmp_path, seed)
    plain, found = manifest.read(tmp_path), manifest.read(tmp_path, node=node(tmp_path))
    assert isinstance(found.split("train").samples, MappedSamples)
    assert found.identity == plain.identity
    same(found.split("train").samples, plain.split("train").samples)
    assert found.split("train").labelled == plain.split("train").labelled
    again = manifest.read(tmp_path, node=node(tmp_path)).split("train").samples
    same(again, plain.split("train").samples)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.text(max_size=9), st.integers(0, 90), st.integers(0, 10), st.integers(-1, 5))))
def test_any_rows_are_returned(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> None:
    folder = tmp_path_factory.mktemp("any")
    rows = [("k", 0, 1, 0), *rows]
    shards = [Shard("a.tar", 1, 100, NO_HASH), Shard("b.tar", len(rows) - 1, 100, NO_HASH)]
    manifest.write(folder, {"train": (shards, columns(rows))})
    found = manifest.read(folder, node=node(folder)).split("train").samples
    assert isinstance(found, MappedSamples)
    same(found, manifest.read(folder).split("train").samples)
    shutil.rmtree(folder)


def test_blocks_have_no_influence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, 4)
    plain = manifest.read(tmp_path).split("train").samples
    monkeypatch.setattr(column_file, "BLOCK", 100)
    monkeypatch.setattr(samples, "BLOCK", 64)
    same(manifest.read(tmp_path, node=node(tmp_path)).split("train").samples, plain)


def test_small_splits_have_no_file(tmp_path: Path) -> None:
    written(tmp_path, 1)
    found = manifest.read(tmp_path, node=NodeColumns(tmp_path / "node")).split("train").samples
    assert type(found) is Samples
    assert not (tmp_path / "node").exists()


def file_of(folder: Path) -> Path:
    """The only file of columns."""
    (found,) = (folder / "node").iterdir()
    assert found.suffix == ".columns"
    assert found.stat().st_mode & 0o777 == 0o600
    assert (folder / "node").stat().st_mode & 0o777 == 0o700
    return found


def flipped(path: Path, place: int) -> None:
    """Change a bit of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "first byte": lambda path: flipped(path, 0),
    "header": lambda path: flipped(path, 50),
    "end of the header": lambda path: flipped(path, column_file.HEADER - 1),
    "numbers": lambda path: flipped(path, column_file.HEADER + 3),
    "last byte": lambda path: flipped(path, -1),
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "longer": lambda path: os.truncate(path, path.stat().st_size + 1),
    "empty": lambda path: os.truncate(path, 0),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_file_is_made_again(tmp_path: Path, how: str) -> None:
    written(tmp_path, 10)
    plain = manifest.read(tmp_path).split("train").samples
    manifest.read(tmp_path, node=node(tmp_path))
    whole = file_of(tmp_path).read_bytes()
    DAMAGE[how](file_of(tmp_path))
    same(manifest.read(tmp_path, node=node(tmp_path)).split("train").samples, plain)
    assert file_of(tmp_path).read_bytes() == whole


def test_it_is_made_once(tmp_path: Path) -> None:
    written(tmp_path, 10)
    manifest.read(tmp_path, node=node(tmp_path))
    made = file_of(tmp_path).stat()
    (tmp_path / "train.samples.safetensors").unlink()  # so that it cannot be read again
    manifest.read(tmp_path, node=node(tmp_path))
    assert file_of(tmp_path).stat().st_ino == made.st_ino


def test_other_shards_or_another_folder_have_another_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        written(tmp_path / name, 10)
        manifest.read(tmp_path / name, node=node(tmp_path))
    content = json.loads((tmp_path / "a" / manifest.NAME).read_text())
    content["splits"]["train"]["shards"][-1]["bytes"] += 1
    manifest.write_json(tmp_path / "a" / manifest.NAME, content)
    manifest.read(tmp_path / "a", node=node(tmp_path))
    assert len([*(tmp_path / "node").iterdir()]) == 3


OPEN = """
import sys
from pathlib import Path
from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.node_columns import NodeColumns
folder = Path(sys.argv[1])
sys.stdin.readline()
found = manifest.read(folder, node=NodeColumns(folder / "node", least=1)).split("train").samples
print(found.path.stat().st_ino, int(sum(found.offsets.tolist())), flush=True)
sys.stdin.read()
"""


def test_processes_that_start_at_once_share_one_file(tmp_path: Path) -> None:
    written(tmp_path, 10)
    command = [sys.executable, "-c", OPEN, str(tmp_path)]
    ranks = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for rank in ranks:
        assert rank.stdin
        rank.stdin.write("\n")
        rank.stdin.flush()
    said = {rank.stdout.readline() for rank in ranks if rank.stdout}
    for rank in ranks:
        rank.communicate()
    plain = manifest.read(tmp_path).split("train").samples
    assert said == {f"{file_of(tmp_path).stat().st_ino} {int(np.asarray(plain.offsets).sum())}\n"}


DIE = """
import os, sys
from pathlib import Path
from dist_ssl.data.storage import column_file, manifest
from dist_ssl.data.storage.node_columns import NodeColumns
write = column_file.write
def half(part, *more, **named):
    write(part, *more, **named)
    os.truncate(part.fileno(), 5000)
    os.kill(os.getpid(), 9)
column_file.write = half
folder = Path(sys.argv[1])
manifest.read(folder, node=NodeColumns(folder / "node", least=1))
"""


def test_what_a_killed_process_left_is_made_again(tmp_path: Path) -> None:
    written(tmp_path, 10)
    assert subprocess.run([sys.executable, "-c", DIE, str(tmp_path)], check=False).returncode == -9
    (left,) = (tmp_path / "node").iterdir()
    assert left.suffix == ".columns-part"
    plain = manifest.read(tmp_path).split("train").samples
    same(manifest.read(tmp_path, node=node(tmp_path)).split("train").samples, plain)
    file_of(tmp_path)


def test_files_that_nobody_uses_are_removed(tmp_path: Path) -> None:
    written(tmp_path / "a", 10)
    found = manifest.read(tmp_path / "a", node=node(tmp_path)).split("train").samples
    old = file_of(tmp_path)
    left, others = old.with_name("1" * 64 + ".columns-part"), [tmp_path / "node" / "a.columns", tmp_path / "node/x"]
    for path in (left, *others):
        path.touch()
    for path in (old, *others):
        os.utime(path, (0, old.stat().st_mtime - UNUSED_SECONDS - 10))
    written(tmp_path / "b", 1)
    manifest.read(tmp_path / "b", node=node(tmp_path))
    assert not old.exists()
    assert not left.exists()
    assert all(path.exists() for path in others)
    same(found, manifest.read(tmp_path / "a").split("train").samples)  # what is mapped stays


def test_others_have_no_say(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written(tmp_path, 10)
    plain = manifest.read(tmp_path).split("train").samples
    (tmp_path / "node").mkdir()
    (tmp_path / "node").chmod(0o777)
    found = manifest.read(tmp_path, node=node(tmp_path)).split("train").samples
    assert "memory of every process" in caplog.text
    assert type(found) is Samples
    same(found, plain)
    assert not [*(tmp_path / "node").iterdir()]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    written(tmp_path, 10)
    manifest.read(tmp_path, node=node(tmp_path))
    path = file_of(tmp_path)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="is a link, which the cache does not follow"):
        manifest.read(tmp_path, node=node(tmp_path))


@pytest.mark.parametrize("full", ["write", "mkdir"])
def test_without_a_file_the_columns_are_in_memory(
    tmp_path: Path, full: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path, 10)

    def fails(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    if full == "write":
        monkeypatch.setattr(column_file, "write", fails)
    else:
        monkeypatch.setattr(Path, "mkdir", fails)
    found = manifest.read(tmp_path, node=node(tmp_path)).split("train").samples
    assert type(found) is Samples
    assert "No space left" in caplog.text
    same(found, manifest.read(tmp_path).split("train").samples)


def spoilt(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Write other columns, with their hash in the manifest."""
    file = folder / "train.samples.safetensors"
    own = {name: values.copy() for name, values in safetensors.numpy.load(file.read_bytes()).items()}
    change(own)
    file.write_bytes(safetensors.numpy.save(own))
    content = json.loads((folder / manifest.NAME).read_text())
    content["splits"]["train"]["samples_xxh3"] = xxhash.xxh3_128_hexdigest(file.read_bytes())
    manifest.write_json(folder / manifest.NAME, content)


def put(name: str, place: int, value: int) -> Callable[[dict[str, np.ndarray]], object]:
    """A change of one value."""
    return lambda own: own[name].__setitem__(place, value)


WRONG: dict[str, Callable[[dict[str, np.ndarray]], object]] = {
    "offset": put("offsets", 5, -1),
    "size": put("sizes", 5, -1),
    "label": put("labels", 5, -2),
    "behind the end": put("offsets", -1, 1 << 34),
    "huge image": put("sizes", 0, 1 << 31),
    "ends": put("key_ends", 3, 1 << 20),
    "ends that fall": put("key_ends", 3, 0),
    "last end": lambda own: own.update(keys=own["keys"][:-1]),
    "one lacks": lambda own: own.pop("labels"),
    "one more": lambda own: own.update(more=own["sizes"]),
    "short": lambda own: own.update(sizes=own["sizes"][:-1].copy()),
    "type": lambda own: own.update(sizes=own["sizes"].astype(np.int32)),
    "shape": lambda own: own.update(sizes=own["sizes"][None].copy()),
    "type of keys": lambda own: own.update(keys=own["keys"].astype(np.int8)),
}


@pytest.mark.parametrize("what", WRONG)
def test_damaged_columns_are_refused_with_the_same_message(tmp_path: Path, what: str) -> None:
    written(tmp_path, 10)
    spoilt(tmp_path, WRONG[what])
    said = []
    for where in (None, node(tmp_path)):
        with pytest.raises(DataError) as raised:
            manifest.read(tmp_path, node=where)
        said.append((raised.value.problem, raised.value.remedy))
    assert said[0] == said[1]
    assert not [*(tmp_path / "node").iterdir()]


@pytest.mark.parametrize("place", [0, 8, 60, 5000, -1, None])
def test_columns_of_another_hash_are_refused_with_the_same_message(tmp_path: Path, place: int | None) -> None:
    written(tmp_path, 10)
    file = tmp_path / "train.samples.safetensors"
    os.truncate(file, 3000) if place is None else flipped(file, place)
    said = []
    for where in (None, node(tmp_path)):
        with pytest.raises(DataError) as raised:
            manifest.read(tmp_path, node=where)
        said.append(raised.value.problem)
    assert said[0] == said[1]
    assert not [*(tmp_path / "node").iterdir()]


@pytest.mark.parametrize("keys", [0, fields.MOST_COLUMN_BYTES])
def test_columns_that_are_too_large_are_refused_before_they_are_written(tmp_path: Path, keys: int) -> None:
    total = 1 if keys else fields.MOST_COLUMN_BYTES // 32 + 1
    entries, at = {}, 0
    for name in ("offsets", "sizes", "labels", "key_ends"):
        entries[name] = {"dtype": "I64", "shape": [total], "data_offsets": [at, at + 8 * total]}
        at += 8 * total
    entries["keys"] = {"dtype": "U8", "shape": [keys], "data_offsets": [at, at + keys]}
    text = json.dumps(entries).encode()
    head, file = len(text).to_bytes(8, "little") + text, tmp_path / "train.samples.safetensors"
    file.write_bytes(head)
    os.truncate(file, len(head) + at + keys)  # some bytes on the disk, as many as it says by their number
    part = tmp_path / "part"
    with FileIO(part, "x+") as opened, pytest.raises(ValueError, match="it is too large"):
        column_file.write(opened, [head], NO_HASH[:32], [(total, 1 << 40)], wide=False)
    assert not part.stat().st_size
    row = {"name": "a.tar", "samples": total, "bytes": 1 << 40, "sha256": NO_HASH}
    split = {"shards": [row], "samples": file.name, "samples_xxh3": NO_HASH[:32]}
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "splits": {"train": split}}))
    if not keys:  # of one sample the file would be read into memory as far as one can need
        with pytest.raises(DataError, match="larger than the"):
            manifest.read(tmp_path, node=node(tmp_path))
        assert not [*(tmp_path / "node").iterdir()]


def test_columns_of_a_server(tmp_path: Path) -> None:
    written(tmp_path, 10)
    with serving(tmp_path) as server:
        found = manifest.read(Address.parse(server.url), node=node(tmp_path)).split("train").samples
        assert isinstance(found, MappedSamples)
    same(found, manifest.read(tmp_path).split("train").samples)


def test_what_another_process_gets(tmp_path: Path) -> None:
    written(tmp_path, 10)
    split = manifest.read(tmp_path, node=node(tmp_path)).split("train")
    sent = pickle.dumps(_lean(Loader(Reader(split, Access()), 1)))
    assert len(sent) < 3000  # the name of the file
    got = pickle.loads(sent).reader.split.samples
    plain = manifest.read(tmp_path).split("train").samples
    for name in ("offsets", "sizes"):
        np.testing.assert_array_equal(getattr(got, name), getattr(plain, name))
    assert (len(got.labels), len(got.keys)) == (0, 0)
    flipped(file_of(tmp_path), -1)
    with pytest.raises(OSError, match="resume the run"):
        pickle.loads(sent)


@pytest.fixture(scope="module")
def leveled(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo data with two levels."""
    folder = tmp_path_factory.mktemp("leveled") / "data"
    shutil.copytree(demo_shards, folder)
    levels.write(folder, levels.LevelOptions(Sides((8, 16)), Quality(95)), Console(quiet=True))
    return folder


def with_levels(folder: Path, where: NodeColumns | None) -> Split:
    """The training split with its levels."""
    address = Address(str(folder))
    found = manifest.read(folder, node=where)
    return pyramid.attach(found, address, (8, 16), Fetcher(), node=where).split("train")


def batches(split: Split, process: LoaderProcess | None = None) -> list[list[torch.Tensor]]:
    """What an epoch yields of a split: pixels, numbers, labels."""
    loader = Loader(Reader(split, Access()), 2)
    colours = Colours((0.5,) * 3, (0.25,) * 3)
    source = process.serve(loader) if process else loader
    stream = Stream(
        source, [Augmentation(crop_min=0.3)] * 2, colours, world=World(), seed=5, window=6, dtype=torch.float32
    )
    found = list(stream.epoch(PLAN, 0))
    return [[*(v.clone() for v in b.views), b.ids, b.labels if b.labels is not None else b.ids] for b in found]


@pytest.mark.parametrize("separate", [False, True])
def test_an_epoch_of_levels_yields_the_same_bits(tmp_path: Path, leveled: Path, separate: bool) -> None:
    plain, found = with_levels(leveled, None), with_levels(leveled, node(tmp_path))
    for own, expected in zip((found, *found.levels), (plain, *plain.levels), strict=True):
        assert isinstance(own.samples, MappedSamples)
        same(own.samples, expected.samples)
    process = LoaderProcess() if separate else None
    for one, other in zip(batches(found, process), batches(plain), strict=True):
        assert all(map(torch.equal, one, other))
    if process:
        process.close()


def test_the_expected_levels_do_not_depend_on_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, 18)
    found = manifest.read(tmp_path, node=node(tmp_path)).split("train").samples
    plain, looked = manifest.read(tmp_path).split("train").samples, list[list[int]]()
    assert plain.widths is not None
    most = int(np.median(np.asarray(plain.widths) * np.asarray(plain.heights)))  # half of them are too large
    cutter, draws = Cutter([Augmentation(crop_min=0.3)] * 2, 16, replace(RULES, max_pixels=most)), Draws(3, 1)
    take = Pyramid.levels

    def noted(self: Pyramid, cutter: ViewCutter, draws: Draws, ids: Ints) -> dict[int, int]:
        looked.append(ids.tolist())
        return take(self, cutter, draws, ids)

    monkeypatch.setattr(Pyramid, "levels", noted)
    for block, looked_at in ((7, 512), (7, 5), (1 << 20, 512), (1 << 20, 5), (100, 5000)):
        monkeypatch.setattr(samples, "BLOCK", block)
        monkeypatch.setattr(pyramid, "LOOKED_AT", looked_at)
        expected = _expected(plain, most)
        assert len(expected) in (5, 512, 516)
        for own in (found, plain):
            Pyramid((8, 16), own.widths, own.heights, 1.25).expected(cutter, draws)  # type: ignore[arg-type]
            assert looked.pop() == expected


def _expected(plain: Samples, most: int) -> list[int]:
    """The samples that are looked at, computed with whole columns."""
    pixels = np.asarray(plain.widths) * np.asarray(plain.heights)
    known = np.flatnonzero((pixels > 0) & (pixels <= most))
    numbers = np.unique(np.linspace(0, max(0, len(known) - 1), pyramid.LOOKED_AT).astype(np.int64))
    found: list[int] = known[numbers[: len(known)]].tolist()
    return found


def mixed(folders: list[Path], where: NodeColumns | None) -> Split:
    """The mixture of data sets."""
    found = [(Address(str(folder)), manifest.read(folder, node=where)) for folder in folders]
    return mixture.mix(found, None, "train", None).split("train")


@pytest.mark.parametrize("mapped", [False, True])
def test_a_mixture_is_its_sources_side_by_side(tmp_path: Path, mapped: bool) -> None:
    folders = [written(tmp_path / str(seed), seed) for seed in (1, 2, 4, 5)]
    parts = [manifest.read(folder).split("train").samples for folder in folders]
    plain = joined([replace(part, widths=None, heights=None) for part in parts])
    found = mixed(folders, node(tmp_path) if mapped else None)
    same(found.samples, replace(plain, labels=np.full_like(plain.labels, -1)))
    assert not found.labelled
    sent = pickle.dumps(found.samples.to_read())
    if mapped:
        assert len(sent) < 4000
    got = pickle.loads(sent)
    np.testing.assert_array_equal(got.offsets, plain.offsets)
    np.testing.assert_array_equal(np.asarray(got.sizes), plain.sizes)
    ends = [int(n) for n in np.cumsum([len(part) for part in parts])]
    for start, stop in ((0, 5), (ends[0] - 2, ends[1] + 3), (ends[-1] - 1, ends[-1] + 9), (4, 4)):
        assert np.asarray(found.samples.offsets[start:stop]).tolist() == plain.offsets[start:stop].tolist()


def test_quarantine_names_the_same_samples(tmp_path: Path, demo_shards: Path) -> None:
    rows = []
    for where in (None, node(tmp_path)):
        split = manifest.read(demo_shards, node=where).split("train")
        found = Quarantine(tmp_path / "q.jsonl", split, world=World(), attempt=1, max_bad=Share.parse("5 %"))
        rows.append([found._row(Progress(epochs=2), n, "cut", 0) for n in range(len(split.samples))])
    assert rows[0] == rows[1]
