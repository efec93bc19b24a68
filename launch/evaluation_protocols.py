"""The measures of a frozen encoder's features: the protocols of `evaluate.py`."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dist_ssl.build import centre_view
from dist_ssl.data.storage.manifest import Split
from dist_ssl.errors import ConfigError, plural
from dist_ssl.evaluate.augmented import CROPS, AugmentedSet
from dist_ssl.evaluate.features import Extractor, uncounted
from dist_ssl.evaluate.inputs import Inputs
from dist_ssl.evaluate.knn import knn_votes, nearest
from dist_ssl.evaluate.linear import LinearResult, check_classes, fitted, linear_probe, numbered
from dist_ssl.evaluate.neighbours import Tile, drawn_sheet, without_itself
from dist_ssl.evaluate.retrieval import mean_average_precision
from dist_ssl.evaluate.unlabelled import alignment, effective_rank, uniformity
from launch.frozen import Frozen

Numbers = Mapping[str, float]


@dataclass(frozen=True)
class Measured:
    """The numbers of an evaluation, and the picture that belongs to them, on rank 0."""

    numbers: Numbers
    sheet: Image.Image | None = None


def knn(frozen: Frozen, inputs: Inputs | None = None) -> Measured:
    """Return the accuracy of the kNN classifier."""
    bank, labels, queries, right = frozen.both(inputs)
    node = frozen.node
    predicted = knn_votes(bank, labels, queries, node.k, node.temperature, frozen.world.device)
    accuracy = float((predicted == right).double().mean())
    return Measured({"knn_accuracy": accuracy, "bank": len(bank), "queries": len(queries)})


def bag_of_patches(frozen: Frozen) -> Measured:
    """Return the accuracy of the kNN classifier on the mean features of patches that are drawn as in training."""
    return knn(frozen, frozen.drawn(frozen.patches, 1))


def linear(frozen: Frozen) -> Measured:
    """Return the accuracy of a linear classifier after its last epoch, and beside it the best of all epochs.

    The accuracies of the sweep are on the part of the training split that chooses the learning rate.
    """
    recipe = frozen.recipe
    if recipe.views == "crops":
        return _augmented(frozen)
    inputs = frozen.drawn(frozen.patches, 1) if recipe.views == "patches" else None
    bank, labels, queries, right = (given.to(frozen.world.device) for given in frozen.both(inputs))
    return _of_linear(linear_probe(bank, labels, queries, right, recipe=recipe), len(bank), len(queries))


def _augmented(frozen: Frozen) -> Measured:
    """Return the same for a classifier that is trained on crops, new ones in every epoch, and tested on the centres."""
    (train, held), node, device = frozen.labelled(), frozen.node, frozen.world.device
    queries, right = frozen.features(held, node.queries)
    numbers, centre = frozen.chosen(train, node.bank), centre_view(frozen.parts, node)
    labels = torch.from_numpy(train.samples.labels[numbers].astype(np.int64))
    check_classes(labels, right)
    classes, targets = torch.unique(labels, return_inverse=True)
    passes = frozen.recipe.epochs * (1 if len(frozen.recipe.rates) == 1 else 2)
    with (
        frozen.reading(train, len(numbers), centre) as own,
        frozen.counting("crops", len(numbers) * passes) as passed,
    ):
        own.passed = uncounted  # the tests between epochs

        def crops(epoch: int) -> Extractor:
            """Return the extractor of an epoch's crops, which no epoch of the run has drawn."""
            seen = frozen.views([CROPS], centre.side, frozen.parts.run.all_epochs + 1 + epoch)
            return Extractor(own.loader, seen, world=frozen.world, passed=passed)

        training = AugmentedSet(
            frozen.engine,
            node.branch,
            numbers,
            crops=crops,
            centre=own,
            targets=targets.to(device),
            classes=len(classes),
            width=queries.shape[1],
        )
        asked = numbered(right, classes).to(device)
        found = fitted(training, queries.to(device), asked, frozen.recipe, say=frozen.say)
    return _of_linear(found, len(numbers), len(queries))


def _of_linear(found: LinearResult, bank: int, queries: int) -> Measured:
    sweep = {f"sweep_accuracy at learning rate {rate:g}": value for rate, value in found.sweep.items()}
    numbers = {"linear_accuracy": found.last, "best_epoch_accuracy": found.best, "learning_rate": found.learning_rate}
    return Measured({**numbers, "bank": bank, "queries": queries, **sweep})


def retrieval(frozen: Frozen) -> Measured:
    """Return the mean average precision with which held-out images find the others of their class."""
    queries, labels = frozen.features(frozen.labelled()[1], frozen.node.queries)
    precision = mean_average_precision(queries, labels, frozen.world.device)
    if math.isnan(precision):
        raise ConfigError(
            f"None of the {plural(len(queries), 'image')} has another one of its class.", "Use more: queries=..."
        )
    return Measured({"mean_average_precision": precision, "queries": len(queries)})


def unlabelled(frozen: Frozen) -> Measured:
    """Return effective rank, uniformity and alignment of the held-out images, of the training split without any."""
    split, most = frozen.held_out(), frozen.node.queries
    features, _ = frozen.features(split, most)
    if len(features) < 2:
        raise ConfigError(f"queries={most} is not possible: pairs of images are compared.", "Use more.")
    pairs, _ = frozen.features(split, most, frozen.drawn(2, 2), views=True)
    return Measured(
        {
            "effective_rank": effective_rank(features),
            "uniformity": uniformity(features, frozen.world.device),
            "alignment": alignment(pairs[:, 0], pairs[:, 1]),
            "queries": len(features),
        }
    )


def neighbours(frozen: Frozen) -> Measured:
    """Return how near the nearest training images of some held-out images are, and a sheet that shows them.

    Without a held-out split the images are of the training split, and none is a neighbour of itself.
    """
    held, k = frozen.held_out(), frozen.node.k
    train = frozen.neighbours_of(held)
    asked, own = _numbered_features(frozen, held, frozen.node.queries)
    bank, known = _numbered_features(frozen, train, frozen.node.bank)
    similar, rows = (found.cpu() for found in nearest(bank, asked, k + (held is train), frozen.world.device))
    found = known[rows]
    if held is train:
        similar, found = without_itself(similar, found, own)
    if not found.numel():
        raise ConfigError("The image has no other one to be compared with.", "Use more: bank=...")
    numbers = {"mean_similarity": float(similar.double().mean()), "bank": len(bank), "queries": len(asked)}
    same = None
    if train.labelled and held.labelled:
        labels, others = (torch.from_numpy(split.samples.labels.astype(np.int64)) for split in (held, train))
        same = others[found] == labels[own][:, None]
        numbers["same_class"] = float(same.double().mean())
    sheet = _sheet(frozen, own, found, similar, same) if frozen.world.rank == 0 else None
    return Measured(numbers, sheet)


def _numbered_features(frozen: Frozen, split: Split, most: int) -> tuple[Tensor, Tensor]:
    """Return the features of at most `most` images of a split, [N, D], and their numbers, [N]."""
    numbers = frozen.chosen(split, most)
    with frozen.reading(split, len(numbers)) as own:
        found, known = own.known(frozen.engine, numbers, frozen.node.branch)
    return frozen.finite(found, split), known


def _sheet(frozen: Frozen, asked: Tensor, found: Tensor, similar: Tensor, same: Tensor | None) -> Image.Image:
    """Return the sheet: each of the `asked` images, [Q], in a row with its neighbours `found`, [Q, k], as encoded."""
    splits = (held := frozen.held_out()), frozen.neighbours_of(held)
    pixels = []
    for split, ids in zip(splits, (asked, found), strict=True):
        numbers = np.unique(ids.numpy())
        with frozen.reading(split, 1) as own:
            images = own.images(numbers).numpy()
        pixels.append(dict(zip(numbers.tolist(), images, strict=True)))

    def called(split: Split, number: int) -> str:
        label, names = int(split.samples.labels[number]), frozen.parts.dataset.classes
        return "" if label < 0 else names[label] if label < len(names) else f"class {label}"

    rows = []
    for row, number in enumerate(asked.tolist()):
        tiles = [Tile(pixels[0][number], f"image {number}", called(splits[0], number), None)]
        for place, other in enumerate(found[row].tolist()):
            equal = None if same is None else bool(same[row, place])
            tiles.append(Tile(pixels[1][other], f"{similar[row, place]:.3f}", called(splits[1], other), equal))
        rows.append(tiles)
    return drawn_sheet(rows)


PROTOCOLS: dict[str, Callable[[Frozen], Measured]] = {
    "knn": knn,
    "retrieval": retrieval,
    "unlabelled": unlabelled,
    "neighbours": neighbours,
    "linear": linear,
    "bag_of_patches": bag_of_patches,
}
"""Function of each protocol."""
