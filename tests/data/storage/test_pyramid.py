"""A sample is read at the smallest level that its crops allow, and its views show the same whichever that is."""

import os
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dist_ssl.config.percentage import Share
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws
from dist_ssl.core.plan import EpochPlan
from dist_ssl.core.progress import Progress
from dist_ssl.data.difficulty.model_score import ModelScore
from dist_ssl.data.difficulty.parameter_score import ParameterScore
from dist_ssl.data.epoch_views import Colours, Difficulty, Look
from dist_ssl.data.images.centre_crop import CentreCrop
from dist_ssl.data.images.image_rules import ImageRules
from dist_ssl.data.images.views import CROP_DRAWS, Augmentation, Crops, Cutter, crop_box
from dist_ssl.data.loader.load import Loader
from dist_ssl.data.loader.loader_process import LoaderProcess
from dist_ssl.data.order.quarantine import Quarantine
from dist_ssl.data.order.requests import Request
from dist_ssl.data.storage import manifest, pyramid
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.cache import Cache
from dist_ssl.data.storage.fetch import Fetcher
from dist_ssl.data.storage.manifest import Split
from dist_ssl.data.storage.pyramid import Pyramid
from dist_ssl.data.storage.read import Reader
from dist_ssl.data.storage.reader_options import Access
from dist_ssl.data.stream import Stream
from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError, DataError
from dist_ssl.runtime import jsonl
from shards import levels
from shards.command_line import Bytes, HeldOut, Quality, Sides
from shards.make import make
from shards.sources.imagefolder import FolderOptions
from tests.readers import access
from tests.shards.pictures import odd_pictures
from tests.web import Server, serving

QUIET = Console(quiet=True)
SIDES = (24, 48)
RECIPES = [Augmentation(crop_min=0.3, brightness=0.4, jitter_p=0.5, gray_p=0.2)] * 2
COLOURS = Colours((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
PLAN = EpochPlan(epoch=0, image_size=16, magnitude=1.0, views=2, batch_size=12, lanes=4)
BAD = ("text", "empty", "cut")
LENGTHS = st.integers(1, 900)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 40 pictures, three of them unreadable, with two levels."""
    root = tmp_path_factory.mktemp("pyramid")
    odd_pictures(root / "in")
    make("imagefolder", root / "data", QUIET, FolderOptions(root / "in", Bytes(20_000), val=HeldOut()))
    levels.write(root / "data", levels.LevelOptions(Sides(SIDES), Quality(95)), QUIET)
    return root / "data"


def of(folder: Path | str, found: Access | None = None, sides: tuple[int, ...] = SIDES) -> Split:
    """The training split with these levels."""
    where, get = Address.parse(str(folder)), (found or Access()).fetcher
    return pyramid.attach(manifest.read(where, get), where, sides, get).split("train")


@pytest.fixture
def split(folder: Path) -> Split:
    """The split with both levels."""
    return of(folder)


class Watched(Reader):
    """A reader that notes what is read, for which the bytes of some copies are no image."""

    def __init__(self, split: Split, damaged: Iterable[tuple[int, int]] = (), found: Access | None = None) -> None:
        super().__init__(split, found)
        self.damaged, self.asked = set(damaged), set()

    def read(self, number: int, level: int = 0) -> bytes:
        self.asked.add((number, level))
        return b"damaged" if (number, level) in self.damaged else super().read(number, level)

    def levels_of(self, numbers: Iterable[int]) -> dict[int, set[int]]:
        """The levels at which each sample was read."""
        wanted = set(numbers)
        return {n: {level for number, level in self.asked if number == n} for n in wanted}


def batches(
    reader: Reader, plan: EpochPlan = PLAN, start: int = 0, *, most: float = 1.0, **options: object
) -> list[Batch]:
    """One rank's batches of an epoch."""
    world = options.pop("world", World())
    loader = Loader(reader, int(options.pop("threads", 2)), max_upsample=most)  # type: ignore[call-overload]
    stream = Stream(
        loader,
        RECIPES,
        COLOURS,
        world=world,
        seed=5,
        window=6,
        dtype=torch.float64,
        **options,  # type: ignore[arg-type]
    )
    return list(stream.epoch(plan, start))


def same(own: Batch, other: Batch) -> bool:
    """Whether two batches are equal."""
    views = zip(own.views, other.views, strict=True)
    return torch.equal(own.ids, other.ids) and all(torch.allclose(a, b, rtol=0, atol=1e-11) for a, b in views)


def boxes(width: int, height: int, seed: int, size: int = 16) -> Crops:
    """Random crops of an image."""
    draws = np.random.default_rng(seed).random((2, CROP_DRAWS), dtype=np.float32)
    return Crops(width, height, [crop_box(width, height, RECIPES[0], row) for row in draws], (size, 2 * size))


@given(LENGTHS, LENGTHS, st.integers(0, 2**32), st.integers(4, 300), st.floats(1, 4), st.sets(LENGTHS, min_size=1))
def test_the_level_is_the_smallest_that_enlarges_no_crop_by_more_than_may_be(
    width: int, height: int, seed: int, size: int, most: float, sides: set[int]
) -> None:
    crops, nothing = boxes(width, height, seed, size=size), np.zeros(0, dtype=np.int64)
    chosen = Pyramid(tuple(sorted(sides)), nothing, nothing, most).level(crops)
    fitting = []
    for place, side in enumerate(sorted(sides), 1):
        scale = min(1.0, side / min(width, height))
        pairs = zip(crops.boxes, (size, 2 * size), strict=True)
        growth = max(own / (scale * min(x2 - x1, y2 - y1)) for (x1, y1, x2, y2), own in pairs)
        if abs(growth - most) < 1e-9:
            return  # either is right
        if growth <= most or scale == 1.0:
            fitting.append(place)
    assert chosen == (fitting[0] if fitting else 0)


@given(LENGTHS, LENGTHS, LENGTHS, LENGTHS, st.integers(0, 2**32))
def test_boxes_lie_at_the_same_place_of_every_copy(width: int, height: int, w: int, h: int, seed: int) -> None:
    crops = boxes(width, height, seed)
    assert crops.placed(width, height) == list(crops.boxes)
    for box, placed in zip(crops.boxes, crops.placed(w, h), strict=True):
        left, top, right, bottom = placed
        assert 0 <= left < right <= w
        assert 0 <= top < bottom <= h
        scales = (w / width, h / height) * 2
        narrow = (box[2] - box[0]) * scales[0] < 1 or (box[3] - box[1]) * scales[1] < 1
        bound = 1.0 if narrow else 0.5
        assert all(
            abs(edge - own * scale) <= bound + 1e-9 for edge, own, scale in zip(placed, box, scales, strict=True)
        )


def test_the_level_of_a_centre_crop_follows_from_the_side_that_the_image_is_resized_to() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    assert [
        Pyramid(SIDES, nothing, nothing, 1.0).level(CentreCrop(s, s - 4).crops((90, 70), [])) for s in (16, 24, 25, 49)
    ] == [
        1,
        1,
        2,
        0,
    ]


@pytest.mark.parametrize(
    ("sides", "message"),
    [
        ([], r"key=\[\] names no level"),
        ([0], r"key=\[0\] is not possible: 0 is no side"),
        ([24, -1], r"key=\[24,-1\] is not possible: -1 is no side"),
        ([24, "a"], r"a is no side of an image, a whole number"),
        ([1.5], r"1\.5 is no side"),
        ([True], r"True is no side"),
        ([48, 24], r"named once each, the smallest first\.\n.*Write key=\[24,48\]"),
        ([24, 24], r"Write key=\[24\]"),
    ],
)
def test_sides_that_make_no_pyramid_are_refused(sides: list[object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pyramid.check_sides(sides, "key")  # type: ignore[arg-type]


def test_views_are_those_of_the_original_but_for_resampling(split: Split) -> None:
    ids = np.array([n for n in range(40) if not split.samples.key(n).endswith(BAD)])
    draws, cutter, found = Draws(3), Cutter(RECIPES, 16), []
    numbers = cutter.draw(draws, ids)
    choice = Pyramid.of(split, 2.0)
    assert choice
    with Reader(split) as reader:
        for row, number in enumerate(ids.tolist()):
            crops = choice.crops(number, cutter, [n[row] for n in numbers])
            assert crops
            out = [[np.zeros((16, 16, 3), np.uint8) for _ in RECIPES] for _ in range(3)]
            for level in range(3):
                crops.cut(reader.read(number, level), out[level])
            found.append(
                [[np.sqrt(np.mean((np.float64(a) - b) ** 2)) for a, b in zip(o, out[0], strict=True)] for o in out]
            )
    rms = np.mean(found, axis=(0, 2))
    assert rms[0] == 0
    assert 0 < rms[2] < rms[1] < 12


def test_without_levels_nothing_has_changed(folder: Path, split: Split) -> None:
    plain = manifest.read(folder).split("train")
    with Reader(plain) as reader, Watched(split) as other:
        assert all(
            same(a, b) for a, b in zip(batches(reader), batches(Watched(replace(split, levels=()))), strict=True)
        )
        assert not all(same(a, b) for a, b in zip(batches(reader), batches(other), strict=True))


@pytest.mark.parametrize("size", [8, 16, 32, 64])
def test_every_epoch_reads_the_levels_that_its_image_size_needs(split: Split, size: int) -> None:
    plan, choice = replace(PLAN, image_size=size, epoch=size), Pyramid.of(split, 1.0)
    assert choice
    with Watched(split) as reader:
        found = batches(reader, plan)
        ids = np.concatenate([batch.ids[batch.valid].numpy() for batch in found])
        wanted = choice.levels(Cutter(RECIPES, size), Draws(5, size), ids)
        read = reader.levels_of(ids.tolist())
        assert all(level in read[number] for number, level in wanted.items())
        tiny = {n for n in wanted if split.samples.key(n).endswith("tiny")}
        assert all(wanted[n] == 1 for n in tiny)  # which no level makes smaller
        used = {level for n, level in wanted.items() if n not in tiny}
        assert used == {8: {1}, 16: {1, 2}, 32: {0, 2}, 64: {0}}[size]
        assert all(view.shape[-1] == size for batch in found for view in batch.views)
        first = choice.levels(Cutter(RECIPES, size), Draws(5, size), ids, 1)
        assert first == choice.levels(Cutter(RECIPES[:1], size), Draws(5, size), ids)


@pytest.mark.parametrize(
    "difficulty", [ParameterScore(0.5), ModelScore(0.5, size=1.0, every=2)], ids=["parameters", "model"]
)
def test_with_candidates_a_sample_is_read_at_the_level_that_those_which_are_cut_need(
    split: Split, difficulty: Difficulty
) -> None:
    plan, choice = replace(PLAN, candidates=3), Pyramid.of(split, 1.0)
    made = difficulty.views(plan, Look(RECIPES, COLOURS, torch.float64))
    assert choice
    with Watched(split) as reader:
        found = batches(reader, plan, difficulty=difficulty)
        for batch in found:
            cut = made.cut_in(batch.step) if made.cut_in else None
            wanted = choice.levels(made.cutter, Draws(5, 0), batch.ids[batch.valid].numpy(), cut)
            read = reader.levels_of(list(wanted))
            assert all(level in read[number] for number, level in wanted.items())
            known = batch.levels.items()
            assert known == choice.levels(made.cutter, Draws(5, 0), batch.ids[~batch.valid].numpy(), cut).items()
        plain = [choice.levels(Cutter(RECIPES, 16), Draws(5, 0), b.ids[b.valid].numpy()) for b in found]
        assert any(level not in reader.levels_of([n])[n] for own in plain for n, level in own.items())


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_threads_and_starts_do_not_matter(split: Split, size: int) -> None:
    with Reader(split) as reader:
        alone = batches(reader, most=1.5)
        assert all(same(a, b) for a, b in zip(batches(reader, most=1.5, threads=1), alone, strict=True))
        assert all(same(a, b) for a, b in zip(batches(reader, start=3, most=1.5), alone[1:], strict=True))
        ranks = [batches(reader, most=1.5, world=World(rank=r, size=size)) for r in range(size)]
    for step, batch in enumerate(alone):
        assert torch.equal(torch.cat([rank[step].ids for rank in ranks]), batch.ids)
        for slot in (0, 1):
            joined = torch.cat([rank[step].views[slot] for rank in ranks])
            torch.testing.assert_close(joined, batch.views[slot], rtol=0, atol=1e-11)


def reads_of(found: list[Batch]) -> dict[str, float]:
    """How many images were read from each level."""
    keys = [key for key in found[0].costs if key.startswith("read_images/")]
    return {key.partition("/")[2]: sum(batch.costs[key] for batch in found) for key in keys}


def test_a_loader_process_reads_the_same_levels_and_cuts_the_same_bytes(split: Split, tmp_path: Path) -> None:
    level, damaged = split.levels[0], chosen(split, 1)
    shard, at = level.shard_of(damaged), int(level.samples.offsets[damaged])
    tar = bytearray(level.path(shard).read_bytes())
    tar[at : at + int(level.samples.sizes[damaged])] = bytes(int(level.samples.sizes[damaged]))
    (tmp_path / "a.tar").write_bytes(tar)
    shards = list(level.shards)
    shards[shard] = replace(shards[shard], name=os.path.relpath(tmp_path / "a.tar", split.folder.path))
    levels = replace(level, shards=tuple(shards)), split.levels[1]
    local = [RECIPES[0], replace(RECIPES[0], crop_min=0.1, crop_max=0.3, local=True)]
    plans = [replace(PLAN, epoch=n, image_size=8 << n, local_views=2, local_size=4) for n in range(3)]
    process = LoaderProcess()
    try:
        loader = Loader(Reader(replace(split, levels=levels)), 2, max_upsample=1.25)
        supplies = loader, process.serve(loader)
        options = {"world": World(), "seed": 5, "window": 6, "dtype": torch.float32}
        for plan, start in zip(plans, (0, 3, 6), strict=True):
            own, other = (list(Stream(s, local, COLOURS, **options).epoch(plan, start)) for s in supplies)  # type: ignore[arg-type]
            assert len(own) == len(other) == 3 - start // 3
            for a, b in zip(own, other, strict=True):
                assert all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))
                assert torch.equal(a.ids, b.ids)
                assert torch.equal(a.valid, b.valid)
                assert (a.unreadable, a.levels, a.labels is None) == (b.unreadable, b.levels, b.labels is None)
                assert a.costs.keys() == b.costs.keys()
            assert reads_of(own) == reads_of(other)
            assert sum(reads_of(other).values()) >= sum(len(batch.ids) for batch in other)
            assert plan.epoch or other[0].levels[damaged] == 1
    finally:
        process.close()


def test_reads_are_counted_by_level(split: Split) -> None:
    with Watched(split) as reader:
        found = reads_of(batches(reader))
        ids = {name: len({n for n, level in reader.asked if level == place}) for place, name in enumerate(found)}
    assert list(ids) == ["original", "24", "48"]
    assert all(found[name] >= ids[name] > 0 for name in found)
    with Reader(replace(split, levels=())) as plain:
        assert reads_of(batches(plain)) == {}


def chosen(split: Split, level: int) -> int:
    """A readable sample of the first batch that is read at this level."""
    choice, cutter = Pyramid.of(split, 1.0), Cutter(RECIPES, PLAN.image_size)
    assert choice
    with Reader(split) as reader:
        first = batches(reader)[0]
    ids = first.ids[first.valid].numpy()
    return next(n for n, own in choice.levels(cutter, Draws(5, 0), ids).items() if own == level)


def test_a_damaged_copy_is_replaced_and_nothing_else_changes(split: Split, tmp_path: Path) -> None:
    number = chosen(split, 1)
    with Reader(split) as reader, Watched(split, [(number, 1)]) as other:
        good, found = batches(reader), batches(other)
    with Watched(split, [(number, 0), (number, 2)]) as untouched:
        assert all(same(a, b) for a, b in zip(good, batches(untouched), strict=True))
    for own, known in zip(found, good, strict=True):
        kept = own.ids != number
        assert torch.equal(own.valid[kept], known.valid[kept])
        for a, b in zip(own.views, known.views, strict=True):
            assert torch.allclose(a[kept], b[kept], rtol=0, atol=1e-11)
    assert found[0].unreadable[number] == "not an image"
    assert found[0].levels[number] == 1
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(path, split, world=World(), attempt=1, max_bad=Share.parse("100 %"))
    quarantine.record(Progress(epochs=1), found[0])
    quarantine.share_news(Progress(epochs=1, step=1))
    (row,) = [row for row in jsonl.read(path) if row["number"] == number]
    assert row["shard"] == split.levels[0].shards[split.shard_of(number)].name
    assert row["shard"].startswith("level-24/train-")


def test_replacements_for_copies_are_the_same_at_every_world_size(split: Split) -> None:
    bad = [(chosen(split, 1), 1), (chosen(split, 2), 2)]
    with Watched(split, bad) as reader:
        alone = batches(reader)
        ranks = [batches(reader, world=World(rank=r, size=4)) for r in range(4)]
    for step, batch in enumerate(alone):
        assert torch.equal(torch.cat([rank[step].valid for rank in ranks]), batch.valid)
        joined = torch.cat([rank[step].views[1] for rank in ranks])
        torch.testing.assert_close(joined, batch.views[1], rtol=0, atol=1e-11)


def test_originals_that_cannot_be_decoded_are_unreadable_at_every_size(split: Split) -> None:
    bad = {n for n in range(40) if split.samples.key(n).endswith(BAD)}
    assert len(bad) == 3
    for size in (8, 40):
        with Watched(split) as reader:
            found = batches(reader, replace(PLAN, image_size=size))
            unreadable = {n: why for batch in found for n, why in batch.unreadable.items()}
            met = bad & {int(n) for batch in found for n in batch.ids}
            assert unreadable.keys() == met
            assert set(unreadable.values()) <= {"not an image", "empty", "damaged image"}
            assert all(found == {0} for found in reader.levels_of(met).values())
            assert not any(batch.levels.get(n) for batch in found for n in met)


def test_images_of_too_many_pixels_are_so_at_every_level(split: Split) -> None:
    wide = next(n for n in range(40) if split.samples.key(n).endswith("wide"))
    for size in (8, 16, 40):
        with Reader(split) as reader:
            found = batches(reader, replace(PLAN, image_size=size, batch_size=40), rules=ImageRules(max_pixels=9999))
        unreadable = {n: why for batch in found for n, why in batch.unreadable.items()}
        assert unreadable[wide] == "too many pixels"
        assert len(unreadable) == 4


def test_probes_read_levels_too(split: Split) -> None:
    with Watched(split) as reader:
        ids = np.array([n for n in range(40) if not split.samples.key(n).endswith((*BAD, "tiny"))][:8])
        (loaded,) = Loader(reader, 1, max_upsample=1.0).load(
            [Request(ids, Draws(0), lambda row: ())], CentreCrop(30, 30), 1
        )
        assert loaded.valid.all()
        assert reader.asked == {(int(n), 2) for n in ids}


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    """A server of the data."""
    with serving(folder) as found:
        yield found


def names(cache: Path) -> set[str]:
    """The shards that a cache holds."""
    return {path.stem for path in cache.glob("*.tar")}


def test_an_epoch_from_a_server_fetches_the_levels_that_it_reads_and_no_others(
    server: Server, split: Split, tmp_path: Path
) -> None:
    found, plan = access(tmp_path / "cache"), replace(PLAN, image_size=8)
    remote = of(server.url, found)
    for shard in range(len(split.shards)):
        assert str(remote.levels[0].address(shard)).endswith(f"level-24/train-{shard:06d}.tar")
    with Reader(split) as local, Watched(remote, found=found) as reader:
        remotely = batches(reader, plan)
        assert all(same(a, b) for a, b in zip(remotely, batches(local, plan), strict=True))
        assert {level for _, level in reader.asked} == {0, 1}  # the originals of those that are unreadable
        assert sum(batch.costs["fetched_bytes"] for batch in remotely) > 0
    assert names(tmp_path / "cache") == {shard.sha256 for shard in split.levels[0].shards}


def test_shards_of_a_level_that_few_need_are_not_fetched_whole(server: Server, split: Split, tmp_path: Path) -> None:
    found = access(tmp_path / "cache")
    with Reader(of(server.url, found), found) as reader, Reader(split) as local:
        reader.expect([], {1})
        assert reader.read(3, 2) == local.read(3, 2)
        assert reader.read(3) == local.read(3)
        assert names(tmp_path / "cache") == set()
        assert reader.read(3, 1) == local.read(3, 1)
        assert names(tmp_path / "cache") == {split.levels[0].shards[split.shard_of(3)].sha256}


def test_a_cache_of_data_on_this_machine_serves_levels(split: Split, tmp_path: Path) -> None:
    with Reader(split, Access(cache=Cache(tmp_path / "c", 10**9))) as reader, Reader(split) as local:
        reader.expect([], {1})
        assert all(reader.read(n, level) == local.read(n, level) for n in range(40) for level in range(3))


def test_missing_shards_of_a_level_and_small_caches_are_found_before_the_run(
    folder: Path, split: Split, tmp_path: Path
) -> None:
    Access().check(split, 4, 6)
    total = sum(shard.bytes for part in (split, *split.levels) for shard in part.shards)
    Access(cache=Cache(tmp_path, total)).check(split, 10**6, 6)
    with pytest.raises(ConfigError, match=r"data\.cache_bytes=.* is too little"):
        Access(cache=Cache(tmp_path, total - 1)).check(split, 10**6, 6)
    level = split.levels[1]
    lost = replace(level, shards=(replace(level.shards[0], name="level-48/gone.tar"), *level.shards[1:]))
    with pytest.raises(DataError, match=r"level-48/gone\.tar is missing"):
        Access().check(replace(split, levels=(split.levels[0], lost)), 4, 6)


def test_the_command_that_is_named_acts_on_no_other_folder_however_it_is_called(folder: Path, tmp_path: Path) -> None:
    named = tmp_path / "a; touch canary #"
    named.mkdir()
    with pytest.raises(DataError) as caught:
        pyramid.attach(manifest.read(folder), Address(str(named)), [32], Fetcher())
    command = caught.value.remedy.removeprefix("Make it: ").rpartition("; or set")[0]
    assert shlex.split(command) == ["python", "shards/make.py", f"out={named}", "pyramid=[32]"]


def test_levels_that_a_server_does_not_have_are_named(server: Server, folder: Path) -> None:
    found = access(None)
    with pytest.raises(DataError, match=r"has no level of 32 px: it has 24, 48"):
        of(server.url, found, (32,))
    where = Address.parse(f"{server.url}/level-24")
    with pytest.raises(DataError, match=r"levels of data\.pyramid are not available: .*pyramid\.json does not exist"):
        pyramid.attach(manifest.read(where, found.fetcher), where, (8,), Fetcher())


def test_local_views_are_considered_too(split: Split) -> None:
    plan = replace(PLAN, image_size=8, local_views=2, local_size=40)
    recipes = [RECIPES[0], replace(RECIPES[0], crop_min=0.1, crop_max=0.3, local=True)]
    with Watched(split) as reader:
        loader = Loader(reader, 2, max_upsample=1.0)
        options = {"world": World(), "seed": 5, "window": 6, "dtype": torch.float64}
        found = list(Stream(loader, recipes, COLOURS, **options).epoch(plan))  # type: ignore[arg-type]
        assert [view.shape[-1] for view in found[0].views] == [8, 8, 40, 40]
        tiny = next(n for n in range(40) if split.samples.key(n).endswith("tiny"))
        assert all(level == 0 for number, level in reader.asked if number != tiny)
