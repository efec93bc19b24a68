"""SimCLR as a good tutorial writes it: ImageFolder, two loader workers, PIL views, AdamW, one process.

    python tests/benchmarks/plain_loop.py FOLDER [epochs=24] [size=32] [batch=256] [lr=1e-3] [out=FILE]

FOLDER has `train` and `val`, each with a folder per class. After every epoch it prints a JSON line: the seconds since
the process started without those of evaluations, the loss, and the accuracy of kNN on the held-out images. The encoder
is the product's `tiny`, in torch's own layout and with torch's own batch norms; the evaluation is `knn_of` here, for
both sides of a comparison.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

STARTED = time.monotonic()  # before torch is imported: its import is part of what a command takes

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dist_ssl.data.images.photometric import normalise
from dist_ssl.evaluate.knn import knn_votes
from dist_ssl.models.encoders import TinyResNet
from tests.benchmarks.plain_step import PlainSimCLR

HEADS = {"hidden": 512, "dim": 128, "temperature": 0.5}
"""SimCLR's temperature for small images (Chen et al. 2020, appendix B.9)."""
SIDE = 32
"""Side of an image that is evaluated, px."""
K, TEMPERATURE = 20, 0.07
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


class TwoViews:
    """Two random views of an image."""

    def __init__(self, size: int) -> None:
        jitter = transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)
        self.view = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale=(0.2, 1.0)),
                transforms.RandomHorizontalFlip(),
                transforms.RandomApply([jitter], p=0.8),
                transforms.RandomGrayscale(p=0.2),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __call__(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        return self.view(image), self.view(image)


def whole_images(folder: Path) -> tuple[Tensor, Tensor]:
    """Return the images of a split, uint8 [N, 3, SIDE, SIDE], and their labels, [N]."""
    found = ImageFolder(str(folder))
    pixels = [np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for image, _ in found]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), torch.tensor(found.targets)


def knn_of(
    encoder: nn.Module,
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> float:
    """Return the accuracy of kNN on the held-out images, 0 to 1."""
    was = encoder.training
    encoder.eval()
    with torch.inference_mode():
        bank, queries = (
            torch.cat([encoder(normalise(part.float() / 255, mean, std)) for part in images.split(500)])
            for images, _ in (train, val)
        )
    encoder.train(was)
    return float((knn_votes(bank, train[1], queries, K, TEMPERATURE) == val[1]).double().mean())


def main(arguments: list[str]) -> None:
    """Train, and print what was reached after each epoch."""
    folder, given = Path(arguments[0]), dict(argument.split("=", 1) for argument in arguments[1:])
    size, batch = int(given.get("size", "32")), int(given.get("batch", "256"))
    torch.manual_seed(int(given.get("seed", "0")))
    loader = DataLoader(
        ImageFolder(str(folder / "train"), TwoViews(size)), batch, shuffle=True, num_workers=2, drop_last=True
    )
    encoder = TinyResNet(width=16, blocks=1)
    model = PlainSimCLR(encoder, HEADS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=float(given.get("lr", "1e-3")))
    beside, known = 0.0, None
    for epoch in range(int(given.get("epochs", "24"))):
        losses = []
        for (first, second), _ in loader:
            loss = model(first, second)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        seconds = time.monotonic() - STARTED - beside
        since = time.monotonic()
        known = known or (whole_images(folder / "train"), whole_images(folder / "val"))
        accuracy = knn_of(encoder, *known)
        beside += time.monotonic() - since
        mean = sum(losses) / len(losses)
        print(json.dumps({"epoch": epoch + 1, "seconds": seconds, "loss": mean, "knn": accuracy}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
