"""A run's frozen encoder, on one process, and the measures of its features: the protocols of `evaluate.py`."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dist_ssl.build import Parts, build_engine, centre_view, extractor, parts, probing
from dist_ssl.checkpoint.index import read
from dist_ssl.checkpoint.rank_file import DamagedError
from dist_ssl.core.draws import Draws
from dist_ssl.data.images.views import of_views
from dist_ssl.data.storage.manifest import Split
from dist_ssl.distributed.devices import own_device
from dist_ssl.distributed.world import World
from dist_ssl.errors import CheckpointError, ConfigError
from dist_ssl.evaluate.features import subset
from dist_ssl.evaluate.inputs import DrawnViews, Inputs
from dist_ssl.evaluate.knn import knn_votes
from dist_ssl.evaluate.probe_keys import Probing
from dist_ssl.evaluate.retrieval import mean_average_precision
from dist_ssl.evaluate.unlabelled import alignment, effective_rank, uniformity
from dist_ssl.protocols.engine import Engine

DDP = {"_target_": "dist_ssl.engines.ddp.DDP"}
"""The engine of an evaluation: it reads the checkpoints of every engine."""
Numbers = Mapping[str, float]


@dataclass(frozen=True)
class Frozen:
    """An encoder that is not trained, and the keys of its evaluation: those of the probe, and `patches` of an image."""

    parts: Parts
    engine: Engine
    world: World
    node: Probing
    patches: int

    @classmethod
    def load(cls, config: Mapping[str, Any], checkpoint: Path, patches: int) -> "Frozen":
        """Return the encoder of a checkpoint, of which only the weights are read. Raises UserError."""
        config = {**config, "engine": DDP}
        world = World(device=own_device(0))
        found = parts(config, world, 1)
        engine = build_engine(config, found, world)

        def wants(name: str, shape: tuple[int, ...]) -> range | None:
            """Request no moments of the optimizer."""
            return engine.wants(name, shape) if name.startswith("model/") else range(0)

        try:
            _, state = read(checkpoint, wants)
        except DamagedError as error:
            if not checkpoint.exists():
                raise CheckpointError(
                    f"The run has removed {checkpoint} meanwhile.", "Evaluate a newer one, or raise keep_last."
                ) from error
            raise CheckpointError(f"{checkpoint} is damaged ({error}).", "Name another one: checkpoint=...") from error
        engine.load({name: value for name, value in state.items() if name.startswith("model/")})
        return cls(found, engine, world, probing(config), patches)

    def labelled(self) -> tuple[Split, Split]:
        """Return the training split and the held-out one. Raises ConfigError where they or their labels are missing."""
        held = self.held_out()
        if held is self.parts.train:
            raise ConfigError("There is no held-out split.", "Name it: data.val=..., or use protocol=unlabelled.")
        for split in (self.parts.train, held):
            if not split.labelled:
                raise ConfigError(f"The split '{split.name}' has no labels.", "Use protocol=unlabelled.")
        return self.parts.train, held

    def held_out(self) -> Split:
        """Return the held-out split, or the training split where there is none."""
        p = self.parts
        return p.train if p.data.val is None else p.dataset.split(p.data.val)

    def features(
        self, split: Split, most: int, inputs: Inputs | None = None, *, views: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return the features of at most `most` images of a split, and their labels.

        `inputs`: by default the centres of the images; `views`: return those of every view, [N, views, D].
        """
        numbers = subset(len(split.samples), most, self.parts.run.seed)
        seen = inputs or centre_view(self.parts, self.node)
        whole = len(numbers) == len(split.samples)
        own = extractor(self.parts, split, seen, self.world, None, scattered=not whole)
        try:
            found, labels = (own.views if views else own.features)(self.engine, numbers, self.node.branch)
        finally:
            own.loader.close()
        if broken := int((~found.isfinite()).flatten(1).any(1).sum()):
            raise CheckpointError(
                f"The features of {broken} of {len(found)} images of '{split.name}' are not finite.",
                "The encoder has diverged: name an earlier checkpoint.",
            )
        return found, labels

    def drawn(self, count: int, slots: int) -> DrawnViews:
        """Return `count` views of an image, drawn as in the last epoch: by its first `slots` recipes in turn.

        The draws are those of the epoch after the last one: the images have not been seen like this.
        """
        p = self.parts
        plan = p.schedule.plan(p.run.all_epochs - 1)
        strength = plan.magnitude, plan.scale, plan.fixed
        recipes = [recipe.at(*strength) for recipe in of_views(p.recipes, max(plan.views, slots), 0)[:slots]]
        centre, draws = centre_view(p, self.node), Draws(p.run.seed, p.run.all_epochs)
        turns = [recipes[slot % slots] for slot in range(count)]
        return DrawnViews(
            centre.colours,
            centre.dtype,
            recipes=turns,
            side=plan.image_size,
            draws=draws,
            max_pixels=centre.cutter.max_pixels,
        )

    def both(self, inputs: Inputs | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return features and labels of the training split, then those of the held-out one. Raises ConfigError."""
        train, held = self.labelled()
        bank, queries = self.features(train, self.node.bank, inputs), self.features(held, self.node.queries, inputs)
        return *bank, *queries


def knn(frozen: Frozen, inputs: Inputs | None = None) -> Numbers:
    """Return the accuracy of the kNN classifier."""
    bank, labels, queries, right = frozen.both(inputs)
    node = frozen.node
    predicted = knn_votes(bank, labels, queries, node.k, node.temperature, frozen.world.device)
    accuracy = float((predicted == right).double().mean())
    return {"knn_accuracy": accuracy, "bank": len(bank), "queries": len(queries)}


def bag_of_patches(frozen: Frozen) -> Numbers:
    """Return the accuracy of the kNN classifier on the mean features of patches that are drawn as in training."""
    return knn(frozen, frozen.drawn(frozen.patches, 1))


def linear(frozen: Frozen) -> Numbers:
    """Return the accuracy of a linear classifier after its last epoch, and beside it the best of all epochs.

    The accuracies of the sweep are on the part of the training split that chooses the learning rate.
    """
    from dist_ssl.evaluate.linear import linear_probe

    bank, labels, queries, right = frozen.both()
    device = frozen.world.device
    found = linear_probe(bank.to(device), labels.to(device), queries.to(device), right.to(device))
    sweep = {f"sweep_accuracy at learning rate {rate:g}": value for rate, value in found.sweep.items()}
    numbers = {"linear_accuracy": found.last, "best_epoch_accuracy": found.best, "learning_rate": found.learning_rate}
    return {**numbers, "bank": len(bank), "queries": len(queries), **sweep}


def retrieval(frozen: Frozen) -> Numbers:
    """Return the mean average precision with which held-out images find the others of their class."""
    queries, labels = frozen.features(frozen.labelled()[1], frozen.node.queries)
    precision = mean_average_precision(queries, labels, frozen.world.device)
    if math.isnan(precision):
        raise ConfigError(f"None of the {len(queries)} images has another one of its class.", "Use more: queries=...")
    return {"mean_average_precision": precision, "queries": len(queries)}


def unlabelled(frozen: Frozen) -> Numbers:
    """Return effective rank, uniformity and alignment of the held-out images, of the training split without any."""
    split, most = frozen.held_out(), frozen.node.queries
    features, _ = frozen.features(split, most)
    if len(features) < 2:
        raise ConfigError(f"queries={most} is not possible: pairs of images are compared.", "Use more.")
    pairs, _ = frozen.features(split, most, frozen.drawn(2, 2), views=True)
    return {
        "effective_rank": effective_rank(features),
        "uniformity": uniformity(features, frozen.world.device),
        "alignment": alignment(pairs[:, 0], pairs[:, 1]),
        "queries": len(features),
    }


PROTOCOLS: dict[str, Callable[[Frozen], Numbers]] = {
    "knn": knn,
    "retrieval": retrieval,
    "unlabelled": unlabelled,
    "linear": linear,
    "bag_of_patches": bag_of_patches,
}
"""Function of each protocol."""
