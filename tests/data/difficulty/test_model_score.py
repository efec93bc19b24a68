"""Candidates for the model: those that it scores are those that are trained on, only smaller."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws
from dist_ssl.core.plan import EpochPlan
from dist_ssl.data.difficulty.model_score import ModelScore, resized
from dist_ssl.data.epoch_views import Colours, Look
from dist_ssl.data.images.views import Augmentation
from dist_ssl.data.loader.load import Loader
from dist_ssl.data.order.lanes import EpochOrder
from dist_ssl.data.order.requests import Steps
from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.read import Reader
from dist_ssl.data.stream import Stream
from dist_ssl.distributed.world import World
from dist_ssl.errors import ConfigError

STRONG = Augmentation(crop_min=0.2, brightness=0.4, hue=0.1, jitter_p=0.8, gray_p=0.2, blur_p=1.0, turn_p=0.5)
RECIPES = [STRONG, replace(STRONG, blur_p=0.0, solarize_p=0.5), replace(STRONG, local=True)]
PLAN = EpochPlan(epoch=0, image_size=16, magnitude=1.0, views=2, batch_size=16, lanes=4, candidates=3)
COLOURS = Colours((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
WHOLE = ModelScore(0.5, size=1.0)


def epoch(reader: Reader, score: ModelScore, plan: EpochPlan = PLAN, world: World | None = None) -> list[Batch]:
    """One rank's batches of an epoch, in double precision."""
    stream = Stream(
        Loader(reader, 1),
        RECIPES,
        COLOURS,
        world=world or World(),
        seed=5,
        window=6,
        dtype=torch.float64,
        difficulty=score,
    )
    return list(stream.epoch(plan))


@pytest.fixture(scope="module")
def split(demo_shards: Path) -> manifest.Split:
    """The training split of the demo."""
    return manifest.read(demo_shards).split("train")


def views(batch: Batch, pair: tuple[int, int]) -> list[Tensor]:
    """The views of a batch with the same candidates of every sample."""
    assert batch.candidates is not None
    return batch.candidates.finish(np.repeat(np.array(pair)[:, None], len(batch.ids), axis=1))


def small(batch: Batch) -> Tensor:
    """The candidates that the model sees, [2, B, K, 3, s, s]."""
    assert batch.candidates is not None
    return torch.stack(batch.candidates.small).unflatten(1, (-1, batch.candidates.number))


def test_scored_at_full_size_they_are_the_views_themselves(split: manifest.Split) -> None:
    with Reader(split) as reader:
        batch = epoch(reader, WHOLE)[1]
    assert batch.views == []
    for number in range(3):
        for slot, view in enumerate(views(batch, (number, number))):
            torch.testing.assert_close(small(batch)[slot, :, number], view, rtol=0, atol=1e-12)


def test_the_first_candidates_are_the_views_without_a_choice_local_ones_too(split: manifest.Split) -> None:
    plan = replace(PLAN, local_views=2, local_size=8)
    with Reader(split) as reader:
        hard, plain = epoch(reader, WHOLE, plan), epoch(reader, WHOLE, replace(plan, candidates=1))
    for own, other in zip(hard, plain, strict=True):
        assert other.candidates is None
        for pair, same in (
            ((0, 0), [True] * 4),
            ((2, 0), [False, True, True, True]),
            ((0, 1), [True, False, True, True]),
        ):
            equal = [torch.equal(a, b) for a, b in zip(views(own, pair), other.views, strict=True)]
            assert equal == same


def test_every_sample_has_its_own_pair(split: manifest.Split) -> None:
    with Reader(split) as reader:
        batch = epoch(reader, WHOLE)[0]
    assert batch.candidates is not None
    pairs = np.random.default_rng(0).integers(0, 3, (2, 16))
    found = batch.candidates.finish(pairs)
    for slot in (0, 1):
        expected = torch.stack([small(batch)[slot, row, c] for row, c in enumerate(pairs[slot].tolist())])
        torch.testing.assert_close(found[slot], expected, rtol=0, atol=1e-11)


def test_smaller_ones_show_the_same_with_a_blur_of_the_same_share(split: manifest.Split) -> None:
    with Reader(split) as reader:
        batch = epoch(reader, ModelScore(0.5, size=0.5))[0]
    for number in range(3):
        for slot, view in enumerate(views(batch, (number, number))):
            own = small(batch)[slot, :, number]
            assert own.shape == (16, 3, 8, 8)
            shrunk = torch.nn.functional.interpolate(view, size=(8, 8), mode="bilinear", antialias=True)
            others = [
                torch.nn.functional.interpolate(other, size=(8, 8), mode="bilinear", antialias=True)
                for other in (views(batch, ((number + 1) % 3,) * 2)[slot],)
            ]
            near, far = (float((own - x).abs().mean()) for x in (shrunk, others[0]))
            assert near < 0.25 * far


def test_only_every_so_many_steps_have_candidates_wherever_an_epoch_is_resumed(split: manifest.Split) -> None:
    with Reader(split) as reader:
        found = epoch(reader, ModelScore(0.5, every=2))
        plain = epoch(reader, WHOLE, replace(PLAN, candidates=1))
    assert [batch.candidates is None for batch in found] == [False, True, False]
    assert all(torch.equal(a, b) for a, b in zip(found[1].views, plain[1].views, strict=True))


def test_a_loaders_process_cuts_candidates_where_they_are_scored_and_no_others_elsewhere(split: manifest.Split) -> None:
    made = ModelScore(0.5, every=2).views(PLAN, Look(RECIPES, COLOURS, torch.float32))
    steps = Steps(EpochOrder(split.shard_sizes, Draws(5), 4, 6), 0, 1, 4, 4, made.cut_in)
    sent, cutter = pickle.loads(pickle.dumps((steps, made.cutter)))
    assert [request.views for request in sent] == [2, 6]
    with Reader(split) as reader:
        loads = [(x.ids, [v.copy() for v in x.views]) for x in Loader(reader, 1).load(sent, cutter, made.number_cut)]
        whole = Loader(reader, 1).load(replace(steps, views=None), made.cutter, made.number_cut)
        for (ids, views_), other in zip(loads, whole, strict=True):
            np.testing.assert_array_equal(ids, other.ids)
            np.testing.assert_array_equal(views_, other.views[: len(views_)])
    assert [len(views_) for _, views_ in loads] == [2, 6]


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_have_the_candidates_of_one(split: manifest.Split, size: int) -> None:
    score = ModelScore(0.5)
    with Reader(split) as reader:
        alone = small(epoch(reader, score)[0])
        ranks = [small(epoch(reader, score, world=World(rank=rank, size=size))[0]) for rank in range(size)]
    torch.testing.assert_close(torch.cat(ranks, dim=1), alone, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("size", "multiple", "image", "side"), [(0.5, 1, 20, 10), (0.5, 4, 20, 8), (0.5, 16, 224, 112), (0.1, 16, 32, 16)]
)
def test_sides_are_the_nearest_that_the_encoder_takes(size: float, multiple: int, image: int, side: int) -> None:
    assert ModelScore(0.5, size=size, multiple=multiple).side(image) == side


def test_an_image_shrinks_to_its_means() -> None:
    image = torch.tensor([[0, 100], [200, 255]], dtype=torch.uint8).repeat_interleave(8, 0).repeat_interleave(8, 1)
    image = image[None, :, :, None].expand(1, 16, 16, 3)
    assert resized(image, 16) is image
    small = resized(image, 4)
    assert (small.shape, small.dtype) == ((1, 4, 4, 3), torch.uint8)
    assert small[0, [0, 0, 3, 3], [0, 3, 0, 3], 0].tolist() == [0, 100, 200, 255]


@pytest.mark.parametrize(("key", "value"), [("temperature", -0.1), ("size", 0.0), ("size", 1.5), ("every", 0)])
def test_values_out_of_range_are_refused(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"difficulty\.{key}"):
        ModelScore(**{"temperature": 0.5, key: value})


def test_it_says_how_many_bytes_wait_for_its_choice(split: manifest.Split) -> None:
    score, plan = ModelScore(1.0, size=0.5), replace(PLAN, local_views=0, local_size=0)
    with Reader(split) as reader:
        first, *_ = epoch(reader, score, plan)
    given = first.candidates
    assert given is not None
    held = sum(x.nbytes for x in [*given.small, *given.pixels])
    assert held == len(first.ids) * score.scored_bytes(plan, given.small[0].itemsize)
    assert score.scored_bytes(replace(plan, candidates=1), 4) == 0
    deep = replace(score, pixel_bytes=2).scored_bytes(plan, given.small[0].itemsize)
    assert deep * len(first.ids) == held + sum(x.nbytes for x in given.pixels)
