"""Measures whether the demo data set is a fair test: hard on pixels and random features, easy with labels.

Four claims over a train and a val split, images resized to 32 px: nearest neighbours on raw pixels stay under 40 %,
on the features of an untrained encoder (three seeds) under 55 %, supervised training passes 95 %, all within the given
time. Prints one table and exits 1 when a claim fails. No self-supervised method takes part, so none can tune the data.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dist_ssl.models.encoders import TinyResNet
from shards.sources import demo

SIDE = 32
BATCH = 100


class Split(NamedTuple):
    """Images uint8 [N, 3, 48, 48] and labels int64 [N]."""

    images: Tensor
    labels: Tensor


class Claim(NamedTuple):
    """A measurement that returns an accuracy in 0..1, and the bound it must stay under or pass."""

    name: str
    measure: Callable[[], float]
    bound: float
    under: bool


def drawn(split: str, count: int) -> Split:
    """The first count images of a split, drawn without the JPEG step."""
    pairs = [demo.draw(0, split, index) for index in range(count)]
    images = torch.from_numpy(np.stack([np.asarray(image) for image, _ in pairs])).permute(0, 3, 1, 2).contiguous()
    return Split(images, torch.tensor([label for _, label in pairs]))


def normalised(images: Tensor) -> Tensor:
    """uint8 pixels as floats of mean about 0 and standard deviation about 1."""
    return (images.float() / 255 - 0.5) / 0.25


def resized(images: Tensor) -> Tensor:
    """uint8 [N, 3, 48, 48] -> normalised [N, 3, SIDE, SIDE], with antialias."""
    small = functional.interpolate(images.float(), (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    return normalised(small)


def neighbours(train: Tensor, train_labels: Tensor, val: Tensor, val_labels: Tensor) -> float:
    """Accuracy of 20 cosine neighbours voting with weight exp(similarity / 0.07), features [N, D]."""
    similarity = functional.normalize(val, dim=1) @ functional.normalize(train, dim=1).T
    top, index = similarity.topk(20, dim=1)
    votes = torch.zeros(len(val), len(demo.CLASSES))
    votes.scatter_add_(1, train_labels[index], (top / 0.07).exp())
    return float((votes.argmax(1) == val_labels).float().mean())


def better_centred(train: Tensor, train_labels: Tensor, val: Tensor, val_labels: Tensor) -> float:
    """The better neighbour accuracy of plain features and of features less the train mean."""
    mean = train.mean(0)
    plain = neighbours(train, train_labels, val, val_labels)
    return max(plain, neighbours(train - mean, train_labels, val - mean, val_labels))


def encoded(encoder: nn.Module, images: Tensor) -> Tensor:
    """Features [N, D] of the images, batch by batch."""
    return torch.cat([encoder(batch) for batch in torch.split(images, BATCH)])


@torch.no_grad()
def untrained(seed: int, train: Split, val: Split) -> float:
    """Neighbour accuracy of a random encoder whose batch norms averaged one pass over the train split."""
    torch.manual_seed(seed)
    encoder = TinyResNet(16)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # a cumulative mean over the pass instead of a moving one
    images = resized(train.images)
    encoded(encoder.train(), images)
    encoder.eval()
    return better_centred(encoded(encoder, images), train.labels, encoded(encoder, resized(val.images)), val.labels)


def augmented(images: Tensor) -> Tensor:
    """A random flip and a random crop of 70 to 100 % of the side per image, resized: [B, 3, 48, 48] -> 32 px floats."""
    count = len(images)
    scale = torch.empty(count).uniform_(0.7, 1.0)
    flips = torch.where(torch.rand(count, 2) < 0.5, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = scale * flips[:, 0], scale * flips[:, 1]
    theta[:, :, 2] = (1 - scale[:, None]) * torch.empty(count, 2).uniform_(-1, 1)
    grid = functional.affine_grid(theta, [count, 3, SIDE, SIDE], align_corners=False)
    return functional.grid_sample(normalised(images), grid, align_corners=False, padding_mode="reflection")


def supervised(train: Split, val: Split, epochs: int) -> float:
    """Val accuracy of an encoder and a linear layer trained with labels, with a one-cycle rate."""
    torch.manual_seed(0)
    model = nn.Sequential(TinyResNet(16), nn.Linear(128, len(demo.CLASSES)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.05)
    steps = epochs * -(-len(train.labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    for _ in range(epochs):
        for index in torch.split(torch.randperm(len(train.labels)), BATCH):
            scores = model(augmented(train.images[index]))
            loss = functional.cross_entropy(scores, train.labels[index], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return float((encoded(model.eval(), resized(val.images)).argmax(1) == val.labels).float().mean())


def pixels(train: Split, val: Split) -> float:
    """Neighbour accuracy on raw pixels, the better of four: less the mean of each image or not, centred or not."""
    flat = [resized(split.images).flatten(1) for split in (train, val)]
    less = [x - x.mean(1, keepdim=True) for x in flat]
    return max(better_centred(a, train.labels, b, val.labels) for a, b in (flat, less))


def claims(train: Split, val: Split, epochs: int) -> list[Claim]:
    """Every claim about the two splits, cheapest first."""
    rows = [Claim("raw pixels, neighbours", lambda: pixels(train, val), 0.40, under=True)]
    for seed in range(3):
        measure = partial(untrained, seed, train, val)
        rows.append(Claim(f"untrained encoder {seed}, neighbours", measure, 0.55, under=True))
    rows.append(Claim(f"supervised, {epochs} epochs", lambda: supervised(train, val, epochs), 0.95, under=False))
    return rows


def holds(claim: Claim) -> bool:
    """Measure one claim, print its line of the table, and tell whether it holds."""
    began = time.perf_counter()
    accuracy = claim.measure()
    seconds = time.perf_counter() - began
    kept = (accuracy < claim.bound) == claim.under
    verdict = "ok" if kept else "FAILS"
    bound = f"{'<' if claim.under else '>'} {100 * claim.bound:.0f} %"
    print(f"{claim.name:32} {100 * accuracy:8.2f} % {bound:>8} {seconds:8.1f} s  {verdict}", flush=True)
    return kept


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure whether the demo data set is a fair test.")
    parser.add_argument("--train", type=int, default=6000, help="images to train on")
    parser.add_argument("--val", type=int, default=2000, help="images to measure on")
    parser.add_argument("--epochs", type=int, default=12, help="of supervised training")
    parser.add_argument("--seconds", type=float, default=600, help="what the whole run may take")
    return parser.parse_args()


def main() -> int:
    """Measure, print the table, and return 0 when every claim holds within the allowed time, else 1."""
    chosen, began = options(), time.perf_counter()
    torch.set_num_threads(2)
    train, val = drawn("train", chosen.train), drawn("val", chosen.val)
    each = 1000 * (time.perf_counter() - began) / (chosen.train + chosen.val)
    print(f"drawn {chosen.train} train and {chosen.val} val images, {each:.2f} ms each")
    print(f"{'measurement':32} {'accuracy':>10} {'bound':>8} {'time':>10}")
    kept = [holds(claim) for claim in claims(train, val, chosen.epochs)]
    total = time.perf_counter() - began
    print(f"{total:.0f} s in all, {chosen.seconds:.0f} s allowed")
    return 0 if all(kept) and total <= chosen.seconds else 1


if __name__ == "__main__":
    sys.exit(main())
