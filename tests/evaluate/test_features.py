"""All ranks compute features together, whatever the number of samples that falls to each."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from dist_ssl.data.stream import Colours
from dist_ssl.distributed.world import World
from dist_ssl.evaluate.features import Extractor, Ints
from tests.engines.jobs import small_engine, small_method
from tests.ranks import Ranks


class Drawn(Extractor):
    """Every image is drawn from its number, which is its label too."""

    def _images(self, numbers: Ints, own: Ints) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(own), self.batch):
            labels = torch.from_numpy(own[start : start + self.batch])
            drawn = [torch.randint(256, (12, 12, 3), generator=torch.Generator().manual_seed(int(n))) for n in labels]
            yield torch.stack(drawn).to(torch.uint8), labels


def features(world: World, engine: str, count: int) -> tuple[Tensor, list[int]]:
    own = small_engine(world, engine, small_method(world, "mocov3"), dtype=torch.float32)
    colours = Colours((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    given = Drawn(None, colours, world=world, size=12, dtype=torch.float32, batch=2)  # type: ignore[arg-type]
    found, labels = given.features(own, np.arange(count))
    return found, labels.tolist()


@pytest.mark.parametrize("engine", ["fsdp", "deepspeed 3"])
@pytest.mark.parametrize("count", [1, 5, 8])
def test_ranks_that_have_fewer_batches_than_others_still_gather_weights_with_them(
    engine: str, count: int, ranks: Ranks
) -> None:
    (wanted, labels), *_ = ranks.run(features, 1, engine, count)
    assert labels == list(range(count))
    for found, own in ranks.run(features, 2, engine, count):
        assert own == labels
        torch.testing.assert_close(found, wanted)
