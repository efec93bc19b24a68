"""Several data sets as one: numbers, labels, held-out splits and identity of the union, and what is refused."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from dist_ssl.config.percentage import Share
from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws
from dist_ssl.core.plan import EpochPlan
from dist_ssl.data.data_keys import Data
from dist_ssl.data.epoch_views import Colours
from dist_ssl.data.images.views import Augmentation
from dist_ssl.data.loader.load import Loader
from dist_ssl.data.loader.loader_process import LoaderProcess
from dist_ssl.data.order.mixed_order import order_of
from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.cache import Cache
from dist_ssl.data.storage.mixture import MixedSplit, whole_weights
from dist_ssl.data.storage.read import Reader
from dist_ssl.data.storage.reader_options import Access
from dist_ssl.data.stream import Stream
from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError, DataError
from shards import levels, make
from shards.command_line import Sides
from shards.sources import demo
from tests.web import serving

PLAN = EpochPlan(epoch=0, image_size=16, magnitude=1.0, views=2, batch_size=24, lanes=12)


@pytest.fixture(scope="module")
def places(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three data sets, of 60, 30 and 14 samples; the second one has no held-out split."""
    made = tmp_path_factory.mktemp("sources")
    for name, options in (
        ("b", demo.DemoOptions(train=30, val=0, shard_bytes=10000)),
        ("c", demo.DemoOptions(train=14, val=12, shard_bytes=20000)),
    ):
        make.make("demo", made / name, Console(quiet=True), options)
    return [str(demo_shards), str(made / "b"), str(made / "c")]


def data_of(path: Any, **more: Any) -> Data:
    """The keys of the data node."""
    return Data(path=path, train="train", mean=(0.5,) * 3, std=(0.25,) * 3, max_bad=Share.parse("1 %"), **more)


def opened(path: Any, **more: Any) -> manifest.Manifest:
    """The data set that the keys name."""
    data = data_of(path, **more)
    return data.open(data.access(1))


def union(path: Any, **more: Any) -> MixedSplit:
    """The training split of a mixture."""
    found = opened(path, **more).split("train")
    assert isinstance(found, MixedSplit)
    return found


def batches(reader: Reader, start: int = 0, before: int | None = 0, *, process: bool = False) -> list[Batch]:
    """One rank's batches of an epoch."""
    loader: Any = Loader(reader, 2)
    served = LoaderProcess() if process else None
    stream = Stream(
        served.serve(loader) if served else loader,
        [Augmentation(crop_min=0.2)],
        Colours((0.5,) * 3, (0.25,) * 3),
        world=World(),
        seed=5,
        window=6,
        dtype=torch.float32,
    )
    found = list(stream.epoch(PLAN, start, before))
    if served:
        served.close()
    return found


def test_every_sample_has_the_bytes_and_the_key_of_its_source(places: list[str]) -> None:
    mixed, first = union(places, weights=[3, 2, 1]), 0
    with Reader(mixed) as reader:
        for number, place in enumerate(places):
            own = manifest.read(Path(place)).split("train")
            with Reader(own) as alone:
                for sample in range(len(own.samples)):
                    assert reader.read(first + sample) == alone.read(sample)
                    assert mixed.samples.key(first + sample) == own.samples.key(sample)
                    assert mixed.source_of(first + sample) == number
            assert mixed.folder_of(mixed.shard_of(first)) == own.folder
            first += len(own.samples)
    assert len(mixed.samples) == first == 104
    assert not mixed.labelled


def test_held_out_samples_are_those_of_the_first_source_that_has_them(places: list[str]) -> None:
    for order, samples, train in (([0, 1, 2], 20, 60), ([1, 2, 0], 12, 14), ([1, 0, 2], 20, 60)):
        found = opened([places[n] for n in order], val="val")
        assert len(found.split("val").samples) == samples
        assert found.companion is not None
        assert len(found.companion.samples) == train
        assert found.companion.labelled
    with pytest.raises(DataError, match="no split 'test'"):
        opened(places, val="test").split("test")


def test_the_identity_names_sources_order_and_weights(places: list[str], tmp_path: Path) -> None:
    known = opened(places, weights=[3, 2, 1]).identity
    copies = [str(shutil.copytree(place, tmp_path / str(n))) for n, place in enumerate(places)]
    assert opened(copies, weights=[3, 2, 1]).identity == known, "where the data lies does not matter"
    assert opened(places, weights=[1.5, 1, 0.5]).identity == known, "the ratio counts"
    others = [opened(places[::-1], weights=[3, 2, 1]), opened(places, weights=[3, 1, 2]), opened(places)]
    assert len({known, *(other.identity for other in others)}) == 4
    with pytest.raises(DataError, match=r"The data in .* and .* is not the run's"):
        opened(places, weights=[3, 1, 2], identity=known)


def test_without_weights_every_sample_is_used_once_in_an_epoch(places: list[str]) -> None:
    mixed = union(places)
    order = order_of(mixed, Draws(3), 4, 8, 0)
    ids = [number for start in range(26) for number in order.batch(0, 1, start, 1).tolist()]
    assert sorted(ids) == list(range(104))


def test_a_sample_that_is_used_again_has_other_views_and_a_loader_process_makes_the_same(places: list[str]) -> None:
    with Reader(union(places, weights=[1, 1, 8])) as reader:
        found, served = batches(reader), batches(reader, process=True)
        rest = batches(reader, start=4)
    for own, other in (*zip(found, served, strict=True), *zip(found[2:], rest, strict=True)):
        assert torch.equal(own.ids, other.ids)
        assert (own.draw_ids == other.draw_ids).all()
        assert all(torch.equal(a, b) for a, b in zip(own.views, other.views, strict=True))
    seen: dict[int, list[torch.Tensor]] = {}
    for batch in found:
        for number, view in zip(batch.ids.tolist(), batch.views[0], strict=True):
            assert not any(torch.equal(view, other) for other in seen.setdefault(number, []))
            seen[number].append(view)
    assert max(map(len, seen.values())) > 3
    assert all(batch.labels is None for batch in found)


def test_the_pass_before_the_first_step_has_every_sample_once(places: list[str]) -> None:
    with Reader(union(places, weights=[1, 1, 8])) as reader:
        ids = [number for batch in batches(reader, before=None) for number in batch.ids.tolist()]
    assert len(set(ids)) == len(ids) == 96


def test_local_and_remote_sources_are_read_together_and_only_remote_ones_are_cached(
    places: list[str], tmp_path: Path
) -> None:
    with serving(Path(places[1])) as server:
        data = data_of([places[0], server.url, places[2]], cache="auto")
        access = data.access(1)
        assert access.cache is not None
        assert access.only_remote
        access = replace(access, cache=Cache(tmp_path / "cache", 10**6))
        mixed = data.open(access).split("train")
        access.check(mixed, 4, 8)
        with Reader(mixed, access) as reader, Reader(union(places)) as local:
            assert [reader.read(number) for number in range(104)] == [local.read(number) for number in range(104)]
        kept = {path.stem for path in (tmp_path / "cache").glob("*.tar")}
        assert kept == {shard.sha256 for shard in manifest.read(Path(places[1])).split("train").shards}
        with pytest.raises(ConfigError, match="of every source at once"):
            replace(access, cache=Cache(tmp_path, 1000)).check(mixed, 4, 8)


def test_a_shard_of_any_source_that_is_missing_is_named(places: list[str], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(places[2], tmp_path / "c"))
    mixed = union([*places[:2], str(copy)])
    gone = manifest.read(copy).split("train").path(0)
    gone.unlink()
    with pytest.raises(DataError, match=f"Shard {gone} is missing"):
        Access().check(mixed, 4, 8)


def test_levels_of_all_sources_are_attached(places: list[str], tmp_path: Path) -> None:
    copies = [Path(shutil.copytree(place, tmp_path / str(n))) for n, place in enumerate(places)]
    for copy in copies[:2]:
        levels.write(copy, levels.LevelOptions(Sides((20,))), Console(quiet=True))
    mixed = union([str(copy) for copy in copies[:2]], pyramid=[20])
    (level,) = mixed.levels
    assert len(level.samples) == len(mixed.samples) == 90
    assert level.samples.widths is not None
    with Reader(mixed) as reader:
        for number in (0, 59, 60, 89):
            assert reader.read(number, 1) != reader.read(number)
    with pytest.raises(DataError, match="no level of 20 px"):
        union([str(copy) for copy in copies], pyramid=[20])


def test_a_source_without_the_training_split_is_named(places: list[str], tmp_path: Path) -> None:
    make.make("demo", tmp_path / "d", Console(quiet=True), demo.DemoOptions(train=6, val=6))
    found = manifest.read(tmp_path / "d")
    (tmp_path / "e").mkdir()
    manifest.write(tmp_path / "e", {"other": (list(found.split("train").shards), found.split("train").samples)})
    with pytest.raises(DataError, match=f"The data set in {tmp_path / 'e'} has no split 'train'"):
        opened([places[0], str(tmp_path / "e")])


@pytest.mark.parametrize(
    ("given", "whole"),
    [([3, 2, 1], [3, 2, 1]), ([0.5, 0.25, 0.25], [2, 1, 1]), ([0.1, 0.2, 0.7], [1, 2, 7]), ([60, 30, 10], [6, 3, 1])],
)
def test_weights_become_whole_numbers(given: list[float], whole: list[int]) -> None:
    assert whole_weights(given, 3) == whole


REFUSED = [
    (["a", "b"], [1], "data.weights=[1] is not possible: data.path names 2 places"),
    (["a", "b"], [1, 0], "0 is no number above 0"),
    (["a", "b"], [1, -2.5], "-2.5 is no number above 0"),
    (["a", "b"], [1, math.nan], "nan is no number above 0"),
    (["a", "b"], [1, math.inf], "inf is no number above 0"),
    (["a", "b"], [1, True], "True is no number above 0"),
    (["a", "b"], [1, "x"], "is no number above 0"),
    (["a", "b"], [1, 10**400], "is no number above 0"),
    (["a", "b"], [1, 5e-324], "too many digits"),
    (["a", "b"], [1 / 3, 1 / 7], "too many digits"),
    (["a", "b"], 3, "data.weights=3 is not possible"),
    (["a", "b", "./a/"], None, "data.path names the same data twice: a"),
    (["a"], None, "data.path=[a] is a list of 1"),
    (["https://user:word@host/a"], None, "data.path=[https://host/a] is a list of 1"),
    (["https://user:word@host/a", 7], None, "data.path=[https://host/a,7] is not possible"),
    ([], None, "data.path=[] is a list of 0"),
    ([f"{n}" for n in range(200)], None, "is a list of 200"),
    (["a", 2012], None, "every place is a text"),
    ("a", [1], "data.weights=[1] is not possible with a single data.path"),
    (None, None, "data.path=None is not possible: it takes a value of type str."),
    (["a", "ftp://b"], None, "ftp:// addresses are not supported"),
]


@pytest.mark.parametrize(("path", "weights", "message"), REFUSED)
def test_what_is_no_mixture_is_refused_in_one_sentence(path: Any, weights: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        data_of(path, weights=weights).access(1)
    assert message in caught.value.problem
    assert caught.value.remedy
    assert len(caught.value.problem) < 600


def test_the_same_data_at_two_places_is_refused(places: list[str], tmp_path: Path) -> None:
    copy = str(shutil.copytree(places[2], tmp_path / "copy"))
    with pytest.raises(ConfigError, match=f"the same data twice: {places[2]} and {copy}"):
        opened([*places, copy])


def test_columns_that_only_some_sources_have_are_left_out(places: list[str], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(places[2], tmp_path / "copy"))
    found = manifest.read(copy).split("train")
    sides = np.full(14, 48)
    wide = replace(found.samples, widths=sides, heights=sides)
    manifest.write(copy, {"train": (list(found.shards), wide)})
    assert union([places[0], str(copy)]).samples.widths is None


def test_sources_of_other_channels_are_refused_with_both_numbers(places: list[str], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(places[1], other)
    content = json.loads((other / manifest.NAME).read_text())
    (other / manifest.NAME).write_text(json.dumps({**content, "channels": 5}))
    with pytest.raises(DataError, match=f"have 3 channels, those in {other} 5"):
        opened([places[0], str(other)])
    (other / manifest.NAME).write_text(json.dumps({**content, "channels": 1}))
    with pytest.raises(DataError, match=f"The images in {other} have 1 channel, those in .* 3"):
        opened([str(other), places[0]])


def test_levels_have_8_bits_and_are_refused_where_16_are_asked_for(places: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"data.bits=16 is not possible with data.pyramid=\[16\]"):
        opened(places[0], bits=16, pyramid=[16])
