"""Batches are the same at every world size, thread count and starting point; replacements keep their place."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws, Purpose
from dist_ssl.core.plan import EpochPlan
from dist_ssl.core.tokens import Tokens
from dist_ssl.data.epoch_views import Colours
from dist_ssl.data.images.photometric import Photometry
from dist_ssl.data.images.views import Augmentation, Cutter
from dist_ssl.data.loader.load import Loader
from dist_ssl.data.order.lanes import EpochOrder
from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.read import Reader
from dist_ssl.data.stream import Stream
from dist_ssl.distributed.world import World
from dist_ssl.errors import DataError
from tests.readers import Damaged

FIRST = Augmentation(
    crop_min=0.2, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, jitter_p=0.8, gray_p=0.2, blur_p=0.5
)
RECIPES = [FIRST, replace(FIRST, blur_p=0.1, solarize_p=0.2)]
COLOURS = Colours((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
PLAN = EpochPlan(epoch=0, image_size=16, magnitude=1.0, views=2, batch_size=16, lanes=4)
SEED, WINDOW = 11, 6


@pytest.fixture(scope="module")
def split(demo_shards: Path) -> manifest.Split:
    """The training split of the demo: 60 samples, so three batches of 16 and 12 left over."""
    return manifest.read(demo_shards).split("train")


def batches(
    reader: Reader,
    plan: EpochPlan = PLAN,
    start: int = 0,
    *,
    world: World | None = None,
    threads: int = 2,
    ahead: int = 10**6,
    dtype: torch.dtype = torch.float32,
    seed: int = SEED,
) -> list[Batch]:
    """One rank's batches of an epoch."""
    loader = Loader(reader, threads, ahead)
    stream = Stream(loader, RECIPES, COLOURS, world=world or World(), seed=seed, window=WINDOW, dtype=dtype)
    return list(stream.epoch(plan, start))


def order(split: manifest.Split, epoch: int = 0) -> EpochOrder:
    """The order that the stream follows."""
    return EpochOrder(split.shard_sizes, Draws(SEED, epoch), PLAN.lanes, WINDOW)


def same(own: Batch, other: Batch) -> bool:
    """Whether two batches are equal to the bit."""
    return (
        torch.equal(own.ids, other.ids)
        and torch.equal(own.valid, other.valid)
        and all(torch.equal(a, b) for a, b in zip(own.views, other.views, strict=True))
        and own.step == other.step
    )


def by_sample(found: list[Batch], slot: int = 0) -> dict[int, Tensor]:
    """One view of every sample, by its number."""
    return {int(n): view for batch in found for n, view in zip(batch.ids, batch.views[slot], strict=True)}


@pytest.fixture(scope="module")
def whole(split: manifest.Split) -> list[Batch]:
    """The first epoch in a world of one."""
    with Reader(split) as reader:
        return batches(reader)


def test_a_batch_has_all_its_parts(split: manifest.Split, whole: list[Batch]) -> None:
    assert [batch.step for batch in whole] == [0, 1, 2]
    for batch in whole:
        assert [view.shape for view in batch.views] == [(16, 3, 16, 16)] * 2
        assert batch.views[0].dtype == torch.float32
        assert batch.valid.all()
        assert batch.draws == Draws(SEED, 0)
        assert torch.equal(batch.labels, torch.from_numpy(split.samples.labels)[batch.ids])
        assert batch.costs["replaced_samples"] == 0
        assert batch.costs["data_wait_seconds"] >= 0
        assert not torch.equal(batch.views[0], batch.views[1])


def test_the_samples_are_those_of_the_lanes(split: manifest.Split, whole: list[Batch]) -> None:
    expected = [order(split).batch(0, 1, start, 4).tolist() for start in (0, 4, 8)]
    assert [batch.ids.tolist() for batch in whole] == expected


@pytest.mark.parametrize(("threads", "ahead"), [(1, 10**4), (3, 10**9), (3, 0), (1, 60_000)])
def test_threads_and_ahead_do_not_matter(split: manifest.Split, whole: list[Batch], threads: int, ahead: int) -> None:
    with Reader(split) as reader:
        found = batches(reader, threads=threads, ahead=ahead)
    assert len(found) == len(whole)
    assert all(same(own, other) for own, other in zip(found, whole, strict=True))


@pytest.mark.parametrize("start", [0, 4, 8, 12])
def test_a_stream_resumed_at_a_step_yields_exactly_the_rest(
    split: manifest.Split, whole: list[Batch], start: int
) -> None:
    with Reader(split) as reader:
        found = batches(reader, start=start)
    assert len(found) == 3 - start // 4
    assert all(same(own, other) for own, other in zip(found, whole[start // 4 :], strict=True))


@pytest.mark.parametrize("start", [1, 5, 9, 11, 12, 15])
def test_a_stream_may_begin_at_any_offset_of_the_lanes(split: manifest.Split, whole: list[Batch], start: int) -> None:
    with Reader(split) as reader:
        found = batches(reader, start=start)
    assert [b.ids.tolist() for b in found] == [
        order(split).batch(0, 1, at, 4).tolist() for at in range(start, 12, 4) if at + 4 <= 15
    ]
    known, views = by_sample(whole), by_sample(found)
    for number in views.keys() & known.keys():
        torch.testing.assert_close(views[number], known[number], rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_in_order_make_the_batch_of_one_rank(split: manifest.Split, size: int) -> None:
    with Reader(split) as reader:
        alone = batches(reader, dtype=torch.float64)
        ranks = [batches(reader, world=World(rank=r, size=size), dtype=torch.float64) for r in range(size)]
    for step, batch in enumerate(alone):
        parts = [rank[step] for rank in ranks]
        assert torch.equal(torch.cat([part.ids for part in parts]), batch.ids)
        for slot in (0, 1):
            joined = torch.cat([part.views[slot] for part in parts])
            torch.testing.assert_close(joined, batch.views[slot], rtol=0, atol=1e-11)


def test_a_sample_looks_the_same_in_a_batch_of_another_size(split: manifest.Split) -> None:
    with Reader(split) as reader:
        known = by_sample(batches(reader, dtype=torch.float64))
        other = by_sample(batches(reader, replace(PLAN, batch_size=20), dtype=torch.float64))
    assert len(known.keys() & other.keys()) == 48
    for number in known.keys() & other.keys():
        torch.testing.assert_close(known[number], other[number], rtol=0, atol=1e-11)


def test_another_epoch_or_seed_shows_other_samples_and_other_views(split: manifest.Split, whole: list[Batch]) -> None:
    with Reader(split) as reader:
        others = [batches(reader, replace(PLAN, epoch=1)), batches(reader, seed=SEED + 1)]
    known = by_sample(whole)
    for other in others:
        assert [b.ids.tolist() for b in other] != [b.ids.tolist() for b in whole]
        views = by_sample(other)
        assert not any(torch.equal(views[number], known[number]) for number in views.keys() & known.keys())


def test_the_plan_sets_image_size_number_of_views_and_tokens(split: manifest.Split) -> None:
    with Reader(split) as reader:
        (batch, *_) = batches(reader, replace(PLAN, image_size=24, views=3, keep_tokens=0.5, patch_size=8))
    assert batch.tokens == Tokens(0.5, 8)
    assert {draws.tokens for _, draws in batch.parts(2)} == {batch.tokens}
    assert [tuple(view.shape) for view in batch.views] == [(16, 3, 24, 24)] * 3
    assert not torch.equal(batch.views[0], batch.views[2])


def test_local_views_come_last_and_change_no_global_one(split: manifest.Split, whole: list[Batch]) -> None:
    plan = replace(PLAN, local_views=3, local_size=8)
    recipes = [replace(FIRST, crop_min=0.05, crop_max=0.2, local=True), *RECIPES]
    with Reader(split) as reader:
        stream = Stream(
            Loader(reader, 2), recipes, COLOURS, world=World(), seed=SEED, window=WINDOW, dtype=torch.float32
        )
        found = list(stream.epoch(plan))
    for own, other in zip(found, whole, strict=True):
        assert [view.shape[-1] for view in own.views] == [16, 16, 8, 8, 8]
        assert same(replace(own, views=own.views[:2]), other)
        assert not torch.equal(own.views[2], own.views[3])
        assert not torch.equal(own.views[3], own.views[4])


@pytest.mark.parametrize("size", [2, 4])
def test_local_views_are_the_same_at_every_world_size(split: manifest.Split, size: int) -> None:
    plan, recipes = replace(PLAN, local_views=2, local_size=8), [*RECIPES, replace(FIRST, local=True)]

    def views(rank: int, size: int) -> list[list[Tensor]]:
        world = World(rank=rank, size=size)
        stream = Stream(Loader(reader, 1), recipes, COLOURS, world=world, seed=1, window=6, dtype=torch.float64)
        return [batch.views for batch in stream.epoch(plan)]

    with Reader(split) as reader:
        alone, ranks = views(0, 1), [views(rank, size) for rank in range(size)]
    for step, whole_batch in enumerate(alone):
        for slot, view in enumerate(whole_batch):
            joined = torch.cat([rank[step][slot] for rank in ranks])
            torch.testing.assert_close(joined, view, rtol=0, atol=1e-11)


def test_views_take_turns_at_the_recipes(split: manifest.Split) -> None:
    recipes = [Augmentation(crop_min=0.2), Augmentation(crop_min=0.2, gray_p=1.0)]
    with Reader(split) as reader:
        stream = Stream(Loader(reader, 1), recipes, COLOURS, world=World(), seed=0, window=6, dtype=torch.float32)
        batch = next(iter(stream.epoch(replace(PLAN, views=4))))
    assert [bool((view[:, 0] == view[:, 2]).all()) for view in batch.views] == [False, True, False, True]


def test_without_strength_all_views_show_the_whole_image(split: manifest.Split) -> None:
    calm = Augmentation(crop_min=0.2, gray_p=0.5, solarize_p=0.5, flip_p=0.0)
    with Reader(split) as reader:
        stream = Stream(Loader(reader, 1), [calm], COLOURS, world=World(), seed=0, window=WINDOW, dtype=torch.float32)
        batch = next(iter(stream.epoch(replace(PLAN, magnitude=0.0))))
    assert torch.equal(batch.views[0], batch.views[1])


def test_a_damaged_sample_is_replaced_and_nothing_else_changes(split: manifest.Split, whole: list[Batch]) -> None:
    gone = {int(whole[0].ids[5]), int(whole[2].ids[0])}
    with Damaged(split, gone) as reader:
        found = batches(reader)
    for own, other in zip(found, whole, strict=True):
        assert torch.equal(own.ids, other.ids)
        assert torch.equal(own.labels, other.labels)
        assert own.valid.tolist() == [int(n) not in gone for n in own.ids]
        assert own.costs["replaced_samples"] == float((~own.valid).sum())
        assert own.unreadable == dict.fromkeys(gone & set(own.ids.tolist()), "not an image")
        for a, b in zip(own.views, other.views, strict=True):
            assert torch.equal(a[own.valid], b[own.valid])
            assert not any(torch.equal(x, y) for x, y in zip(a[~own.valid], b[~own.valid], strict=True))


@pytest.mark.parametrize(("step", "row"), [(0, 5), (2, 5), (2, 15)])
def test_the_replacement_is_drawn_from_the_window_and_under_the_replaced_id(
    split: manifest.Split, whole: list[Batch], step: int, row: int
) -> None:
    number = int(whole[step].ids[row])
    window = next(order(split).windows_from(row // 4, 4 * step + row % 4)).tolist()
    turn = int(Draws(SEED, 0).uniform(Purpose.REPLACEMENT, np.array([number]), 0, 1)[0, 0] * len(window))
    replacement = next(n for n in window[turn:] + window[:turn] if n != number)
    cutter, ids, draws = Cutter(RECIPES, 16), np.array([number]), Draws(SEED, 0)
    pixels = [np.zeros((1, 16, 16, 3), dtype=np.uint8) for _ in RECIPES]
    with Damaged(split, {number}) as reader:
        chosen = batches(reader)[step].views[1][row]
        cutter.cut(reader.read(replacement), [d[0] for d in cutter.draw(draws, ids)], [view[0] for view in pixels])
    colour = Photometry(RECIPES[1], 1, COLOURS.mean, COLOURS.std)
    expected = colour(torch.from_numpy(pixels[1]), ids, draws, torch.float32)[0]
    torch.testing.assert_close(chosen, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("window", [1, 2, 7])
def test_where_a_whole_window_is_unreadable_the_window_before_it_helps_out(split: manifest.Split, window: int) -> None:
    followed = EpochOrder(split.shard_sizes, Draws(SEED, 0), PLAN.lanes, window)
    gone = set(next(followed.windows_from(2, 8)).tolist())
    with Damaged(split, gone) as reader:
        stream = Stream(
            Loader(reader, 1), RECIPES, COLOURS, world=World(), seed=SEED, window=window, dtype=torch.float32
        )
        found = list(stream.epoch(PLAN))
    assert sum(int((~batch.valid).sum()) for batch in found) == len(gone & {int(n) for b in found for n in b.ids}) > 0


def test_the_replacement_is_the_same_at_every_world_size(split: manifest.Split, whole: list[Batch]) -> None:
    gone = {int(whole[step].ids[row]) for step, row in ((0, 3), (1, 9), (2, 15))}
    with Damaged(split, gone) as reader:
        alone = batches(reader, dtype=torch.float64)
        ranks = [batches(reader, world=World(rank=r, size=4), dtype=torch.float64) for r in range(4)]
    for step, batch in enumerate(alone):
        assert torch.equal(torch.cat([rank[step].valid for rank in ranks]), batch.valid)
        joined = torch.cat([rank[step].views[1] for rank in ranks])
        torch.testing.assert_close(joined, batch.views[1], rtol=0, atol=1e-11)


def test_data_without_any_readable_sample_is_an_error(split: manifest.Split) -> None:
    with Damaged(split, range(60)) as reader, pytest.raises(DataError, match="unreadable"):
        batches(reader)


def test_samples_without_labels_make_batches_without_labels(split: manifest.Split) -> None:
    bare = replace(split, samples=replace(split.samples, labels=np.full(60, -1)))
    with Reader(bare) as reader:
        assert batches(reader)[0].labels is None


def test_views_outlive_the_buffers_that_they_were_cut_into(split: manifest.Split, whole: list[Batch]) -> None:
    with Reader(split) as reader:
        stream = Stream(
            Loader(reader, 1, 0), RECIPES, COLOURS, world=World(), seed=SEED, window=WINDOW, dtype=torch.float32
        )
        kept = [(batch, [view.clone() for view in batch.views]) for batch in stream.epoch(PLAN)]
    for batch, copies in kept:
        assert all(torch.equal(view, copy) for view, copy in zip(batch.views, copies, strict=True))
