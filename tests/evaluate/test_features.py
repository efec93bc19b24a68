"""All ranks compute features together: each sample once, with the same bits whatever the number of ranks."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from dist_ssl.core.draws import Draws, Ints
from dist_ssl.data.epoch_views import Colours
from dist_ssl.data.images.views import Augmentation
from dist_ssl.data.loader.load import Loader
from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.read import Reader
from dist_ssl.distributed.world import World
from dist_ssl.evaluate.features import Cut, Extractor
from dist_ssl.evaluate.inputs import CentreView, DrawnViews, Inputs
from dist_ssl.protocols.engine import Branch
from tests.engines.jobs import small_engine, small_method
from tests.ranks import Ranks

COLOURS = Colours((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
CENTRE = CentreView(COLOURS, torch.float32, resize=12, crop=12)
RECIPE = Augmentation(0.3, 1.0, brightness=0.4, saturation=0.4, jitter_p=0.8, gray_p=0.2, blur_p=0.5)


class Numbered(Extractor):
    """Every image is drawn from its number, which is its label too."""

    def __init__(self, world: World, batch: int) -> None:
        split = SimpleNamespace(samples=SimpleNamespace(labels=np.arange(1000)))
        super().__init__(SimpleNamespace(split=split), CENTRE, world=world, batch=batch)  # type: ignore[arg-type]

    def _images(self, numbers: Ints, own: Ints) -> Iterator[Cut]:
        for start in range(0, len(own), self.batch):
            ids = own[start : start + self.batch]
            drawn = [torch.randint(256, (12, 12, 3), generator=torch.Generator().manual_seed(int(n))) for n in ids]
            yield [torch.stack(drawn).to(torch.uint8)], ids


def features(world: World, engine: str, count: int, batch: int = 2, branch: Branch = "student") -> tuple[Tensor, list]:
    own = small_engine(world, engine, small_method(world, "mocov3"), dtype=torch.float32)
    found, labels = Numbered(world, batch).features(own, np.arange(count), branch)
    return found, labels.tolist()


@pytest.mark.parametrize("engine", ["fsdp", "deepspeed 3"])
@pytest.mark.parametrize("count", [1, 5, 8])
def test_ranks_that_have_fewer_batches_than_others_still_gather_weights_with_them(
    engine: str, count: int, ranks: Ranks
) -> None:
    (expected, labels), *_ = ranks.run(features, 1, engine, count)
    assert labels == list(range(count))
    for found, own in ranks.run(features, 2, engine, count):
        assert own == labels
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("branch", ["student", "teacher"])
@pytest.mark.parametrize("count", [1, 3, 8, 13, 29])
def test_every_sample_once_with_the_same_bits_at_any_world_size(count: int, branch: Branch, ranks: Ranks) -> None:
    (expected, labels), *_ = ranks.run(features, 1, "ddp", count, 4, branch)
    assert labels == list(range(count))
    for size in (2, 4):
        for found, own in ranks.run(features, size, "ddp", count, 4, branch):
            assert own == labels
            assert torch.equal(found, expected)


def test_student_and_teacher_have_features_of_their_own(ranks: Ranks) -> None:
    (student, _), *_ = ranks.run(features, 1, "ddp", 3, 4, "student")
    (teacher, _), *_ = ranks.run(features, 1, "ddp", 3, 4, "teacher")
    assert (student - teacher).abs().max() > 1e-3


def decoded(world: World, folder: Path, inputs: Inputs, batch: int | None) -> tuple[Tensor, list[int], Tensor]:
    """The features of the real images of a split, their labels, and the features of every view."""
    engine = small_engine(world, "ddp", small_method(world, "mocov3"), dtype=torch.float32)
    with Reader(manifest.read(folder).split("val")) as reader:
        own = Extractor(Loader(reader, 1), inputs, world=world, batch=batch)
        found, labels = own.features(engine, np.arange(3, 20))
        views, _ = own.views(engine, np.arange(3, 20))
    return found, labels.tolist(), views


def drawn(patches: int, seed: int = 3) -> DrawnViews:
    """Patches of 16 px, drawn as in training."""
    return DrawnViews(COLOURS, torch.float32, recipes=[RECIPE] * patches, side=16, draws=Draws(seed, 7))


@pytest.mark.parametrize("patches", [0, 5])
def test_real_images_have_the_same_features_at_any_world_size(patches: int, demo_shards: Path, ranks: Ranks) -> None:
    inputs = drawn(patches) if patches else CentreView(COLOURS, torch.float32, resize=27, crop=24)
    (expected, labels, _), *_ = ranks.run(decoded, 1, demo_shards, inputs, 3)
    assert labels == manifest.read(demo_shards).split("val").samples.labels[3:20].tolist()
    for size in (2, 4):
        for found, own, _ in ranks.run(decoded, size, demo_shards, inputs, 3):
            assert own == labels
            assert torch.equal(found, expected)


def test_features_of_several_views_are_their_mean_and_the_draws_are_keyed(demo_shards: Path) -> None:
    found, _, views = decoded(World(), demo_shards, drawn(5), 3)
    again, _, others = decoded(World(), demo_shards, drawn(5), 4)
    other, *_ = decoded(World(), demo_shards, drawn(5, seed=4), 3)
    assert views.shape[:2] == (17, 5)
    torch.testing.assert_close(found, views.mean(1))
    torch.testing.assert_close(views, others)  # whichever images are computed with it
    torch.testing.assert_close(found, again)
    assert (views[:, 0] - views[:, 1]).abs().max() > 1e-3
    assert (found - other).abs().max() > 1e-3


def test_a_view_is_as_in_training(demo_shards: Path) -> None:
    """More patches are drawn beside the first ones, which stay."""
    few, many = (decoded(World(), demo_shards, drawn(patches), 2)[2] for patches in (2, 4))
    torch.testing.assert_close(few, many[:, :2])
