"""A linear classifier on augmented images: what it trains on is new in every epoch, and the same at any world size."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dist_ssl.core.draws import Draws, Ints, Purpose
from dist_ssl.data.epoch_views import Colours
from dist_ssl.data.loader.load import Loader
from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.read import Reader
from dist_ssl.distributed.world import World
from dist_ssl.engines.parallel import Parallel
from dist_ssl.evaluate.augmented import CROPS, AugmentedSet, regrouped
from dist_ssl.evaluate.features import Extractor
from dist_ssl.evaluate.inputs import CentreView, DrawnViews
from dist_ssl.evaluate.linear import LinearResult, fitted
from dist_ssl.evaluate.linear_recipes import LINEAR
from tests.engines.jobs import small_engine, small_method
from tests.ranks import Ranks

COLOURS = Colours((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
NUMBERS = np.arange(3, 50)
CENTRE = CentreView(COLOURS, torch.float32, resize=18, crop=16)
QUICK = replace(LINEAR["swav"], epochs=1, batch=10)


def encoder(world: World) -> Parallel:
    return small_engine(world, "ddp", small_method(world, "mocov3"), dtype=torch.float32)


def crops_of(epoch: int) -> DrawnViews:
    return DrawnViews(COLOURS, torch.float32, recipes=[CROPS], side=16, draws=Draws(5, 40 + epoch))


def training_set(world: World, engine: Parallel, loader: Loader) -> AugmentedSet:
    """The images `NUMBERS` in batches of four, and so several turns of the ranks."""
    labels = torch.from_numpy(loader.split.samples.labels[NUMBERS])
    classes, targets = labels.unique(return_inverse=True)
    return AugmentedSet(
        engine,
        "student",
        NUMBERS,
        crops=lambda epoch: Extractor(loader, crops_of(epoch), world=world, batch=4),
        centre=Extractor(loader, CENTRE, world=world, batch=4),
        targets=targets,
        classes=len(classes),
        width=10,
    )


def trained(world: World, folder: Path) -> tuple[Tensor, LinearResult]:
    """The weights after an epoch, and the result where the rate is chosen, tested on eight images."""
    with Reader(manifest.read(folder).split("train")) as reader:
        training = training_set(world, encoder(world), Loader(reader, 1))
        *_, found = training.train(np.arange(len(NUMBERS)), QUICK.rates, QUICK, 1)
        queries = torch.randn(8, 10, generator=torch.Generator().manual_seed(0))
        result = fitted(training, queries, torch.arange(8), QUICK.swept, seed=1)
    return found.weights.clone(), result


def test_the_classifier_has_the_same_bits_at_any_world_size(demo_shards: Path, ranks: Ranks) -> None:
    (weights, result), *_ = ranks.run(trained, 1, demo_shards)
    assert weights.abs().max() > 0.01
    assert len(result.sweep) == len(QUICK.swept.rates)
    for size in (2, 4):
        for own, other in ranks.run(trained, size, demo_shards):
            assert torch.equal(own, weights)
            assert other == result


def features(engine: Parallel, loader: Loader, epoch: int, order: Ints) -> Tensor:
    """The features of some images' crops, computed one by one."""
    own = [
        Extractor(loader, crops_of(epoch), world=World(), batch=1).features(engine, order[n : n + 1])
        for n in range(len(order))
    ]
    return torch.cat([found for found, _ in own])


def test_an_epoch_trains_on_the_crops_of_its_draws(demo_shards: Path) -> None:
    with Reader(manifest.read(demo_shards).split("train")) as reader:
        engine, loader = encoder(World()), Loader(reader, 1)
        training, rows = training_set(World(), engine, loader), np.arange(len(NUMBERS))
        order = rows[Draws(1, 2).order(Purpose.PROBE, rows)]
        batches = list(training.batches(order, 10, 1))
        assert [len(x) for x, _ in batches] == [10, 10, 10, 10, 7]
        seen = torch.cat([x for x, _ in batches])
        torch.testing.assert_close(seen, features(engine, loader, 1, NUMBERS[order]), atol=1e-5, rtol=1e-4)
        assert (seen - features(engine, loader, 0, NUMBERS[order])).abs().max() > 1e-3, "the crops of another epoch"
        assert torch.equal(torch.cat([y for _, y in batches]), training.targets[order])


def test_accuracies_of_the_sweep_are_those_on_the_centres(demo_shards: Path) -> None:
    with Reader(manifest.read(demo_shards).split("train")) as reader:
        engine, loader = encoder(World()), Loader(reader, 1)
        training = training_set(World(), engine, loader)
        *_, found = training.train(np.arange(len(NUMBERS)), [0.3, 30.0], QUICK, 1)
        held = np.array([2, 3, 5, 30, 40])
        centres, _ = Extractor(loader, CENTRE, world=World()).features(engine, NUMBERS[held])
        right = found.scores(centres).argmax(2) == training.targets[held][:, None]
        assert training.scored(found, held) == pytest.approx(right.double().mean(0).tolist())


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 7))
def test_parts_are_regrouped_in_order(sizes: list[int], size: int) -> None:
    rows = torch.arange(sum(sizes))
    groups = list(regrouped(zip(rows.split(sizes), (-rows).split(sizes), strict=True), size))
    assert all(len(first) == size for first, _ in groups[:-1])
    assert torch.equal(torch.cat([rows[:0], *(first for first, _ in groups)]), rows)
    assert all(torch.equal(first, -second) for first, second in groups)
    assert all(0 < len(first) <= size for first, _ in groups)
