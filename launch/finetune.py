"""The command that trains a classifier on a pre-trained encoder: a plain loop of one process, to be read and copied.

    python launch/finetune.py run=runs/NAME data.path=pictures out=finetuned             # all weights
    python launch/finetune.py run=runs/NAME data.path=pictures out=linear train=head     # the classifier alone

run: a finished run, or encoder=FILE, which launch/export.py has written (to=safetensors). data.path: a folder whose
sub-folders are classes, with train/ and val/ above them or not (then val=20% of the pictures test), or shards with
splits of these names. The folder `out` gets encoder.safetensors, head.safetensors (weight [C, D] and bias [C]) and
results.json. flip=false where a mirrored image may be of another class, as text is. Further keys: epochs=20, batch=64,
lr=1e-3, encoder_lr=1e-4, weight_decay=0.05, seed=0, workers=..., device=auto|cpu|cuda.
"""

import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from rich.console import Console
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from dist_ssl.config.command import run_command, say
from dist_ssl.data.images.centre_crop import write_centre
from dist_ssl.data.images.image_rules import ImageRules
from dist_ssl.errors import DataError, TrainingError
from dist_ssl.evaluate.confidence import interval
from dist_ssl.runtime.files import write_atomically
from dist_ssl.saved_encoder import FILE, SavedEncoder, load_encoder
from launch.command_options import check_least, one_encoder, parse
from launch.embed import device_of
from launch.labelled_images import Item, LabelledImages, LabelledSplits, labelled_splits
from launch.run_dir import write_for_owner_alone
from shards.command_line import parse_held_out

Batch = tuple[Tensor, Tensor]
Loader = DataLoader[Any]
"""A loader of batches, or of why one cannot be read."""
HEAD, RESULTS = "head.safetensors", "results.json"
SMALLEST_SHARE = 0.2
"""Least share of an image's area that a view of training shows."""


@dataclass(frozen=True)
class FinetuneOptions:
    """Options of the command; exactly one of `run` and `encoder` is given."""

    data_path: str
    out: str
    run: str | None = None
    encoder: str | None = None
    train: Literal["all", "head"] = "all"
    val: str = "20%"
    epochs: int = 20
    batch: int = 64
    lr: float = 1e-3
    """Largest learning rate of the classifier."""
    encoder_lr: float = 1e-4
    """Largest learning rate of the encoder."""
    weight_decay: float = 0.05
    flip: bool = True
    """Whether half of the views are mirrored."""
    seed: int = 0
    workers: int = -1
    """Processes that decode; -1: as many as this process may use cores, but one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @classmethod
    def parse(cls, arguments: list[str]) -> "FinetuneOptions":
        """Return the options of a command line. Raises ConfigError."""
        found = parse(cls, arguments, "python launch/finetune.py run=runs/NAME data.path=pictures out=finetuned")
        one_encoder(found.run, found.encoder)
        check_least(found, epochs=1, batch=2, workers=-1, lr=0.0, encoder_lr=0.0, weight_decay=0.0)
        return found


class Classifier(nn.Module):
    """An encoder and a linear classifier on its features; with `frozen`, the classifier alone is trained."""

    def __init__(self, encoder: nn.Module, width: int, classes: int, frozen: bool) -> None:
        super().__init__()
        self.encoder, self.head, self.frozen = encoder.requires_grad_(not frozen), nn.Linear(width, classes), frozen

    def train(self, mode: bool = True) -> "Classifier":
        """Set the mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.train(mode and not self.frozen)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, [B, 3, S, S] -> [B, C]."""
        with torch.no_grad() if self.frozen else nullcontext():
            features = self.encoder(x)
        logits: Tensor = self.head(features)
        return logits


def collated(items: list[Item]) -> Batch | DataError:
    """Return views [B, 3, S, S] and labels [B] of the items that can be decoded, or why one cannot be read."""
    if problem := next((item for item in items if isinstance(item, DataError)), None):
        return problem
    found = [item for item in items if isinstance(item, tuple)]
    if not found:
        return DataError("None of the images of a batch can be decoded.", "Name a folder of pictures: data.path=...")
    views, labels = zip(*found, strict=True)
    return torch.stack(views), torch.tensor(labels)


def loaded(loader: Loader) -> Iterator[Batch]:
    """Yield the batches. Raises DataError."""
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch


def centre(resize: int, crop: int, pixels: Tensor) -> Tensor:
    """Return the centre of an image as evaluations see it, [3, h, w] uint8 -> [3, crop, crop]."""
    out = torch.empty(crop, crop, 3, dtype=torch.uint8)
    write_centre(pixels.permute(1, 2, 0).contiguous().numpy(), resize, out.numpy())
    return out.permute(2, 0, 1)


def batches(images: LabelledImages, options: FinetuneOptions, shuffle: bool) -> Loader:
    """Return the batches of images; the last one of an epoch of training is dropped where it is smaller."""
    workers = options.workers if options.workers >= 0 else len(os.sched_getaffinity(0)) - 1
    return DataLoader(
        images,
        options.batch,
        shuffle=shuffle,
        num_workers=workers,
        collate_fn=collated,
        drop_last=shuffle and len(images) > options.batch,
        multiprocessing_context="fork" if workers else None,
        generator=torch.Generator().manual_seed(options.seed),
    )


def train_epoch(
    model: Classifier,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    loader: Loader,
    saved: SavedEncoder,
) -> float:
    """Train for one epoch; return the mean loss. Raises TrainingError where it is not finite."""
    model.train()
    total = count = 0.0
    for pixels, labels in loaded(loader):
        x = saved.normalised(pixels.permute(0, 2, 3, 1)).to(model.head.weight.device)
        loss = F.cross_entropy(model(x), labels.to(x.device), label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
        total, count = total + loss.item(), count + 1
    if not math.isfinite(total):
        raise TrainingError("The loss is not finite.", "Use smaller rates: lr=..., encoder_lr=...")
    return total / count


@torch.inference_mode()
def accuracy(model: Classifier, loader: Loader, saved: SavedEncoder) -> tuple[float, int]:
    """Return the share of images whose class is found, and their number."""
    model.eval()
    right = count = 0
    for pixels, labels in loaded(loader):
        x = saved.normalised(pixels.permute(0, 2, 3, 1)).to(model.head.weight.device)
        right += int((model(x).argmax(1).cpu() == labels).sum())
        count += len(labels)
    return right / count, count


def made(saved: SavedEncoder, splits: LabelledSplits, options: FinetuneOptions) -> Classifier:
    """Return the classifier before training. Raises ConfigError where its device is not there."""
    torch.manual_seed(options.seed)
    model = Classifier(saved.encoder, saved.num_features, len(splits.classes), options.train == "head")
    return model.to(device_of(options.device, 0))


def finetune(
    model: Classifier, saved: SavedEncoder, splits: LabelledSplits, options: FinetuneOptions
) -> Iterator[dict[str, float]]:
    """Train; yield the numbers of every epoch. Raises TrainingError, DataError."""
    parts: list[dict[str, Any]] = [{"params": model.head.parameters(), "lr": options.lr}]
    if not model.frozen:
        parts.append({"params": model.encoder.parameters(), "lr": options.encoder_lr})
    optimizer = torch.optim.AdamW(parts, weight_decay=options.weight_decay)
    train, val = batches(splits.train, options, shuffle=True), batches(splits.val, options, shuffle=False)
    steps, warm = options.epochs * len(train), len(train)  # one epoch of linear warm-up, then half a cosine
    share = partial(rate_share, warm=min(warm, steps // 2), steps=steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    for epoch in range(1, options.epochs + 1):
        loss = train_epoch(model, optimizer, scheduler, train, saved)
        found, count = accuracy(model, val, saved)
        yield {"epoch": epoch, "loss": loss, "accuracy": found, "images": count}


def rate_share(step: int, warm: int, steps: int) -> float:
    """Return the learning rate of a step as a share of the largest one."""
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def write(out: Path, saved: SavedEncoder, model: Classifier, classes: list[str], results: dict[str, Any]) -> None:
    """Write encoder, classifier and results. Raises OSError."""
    out.mkdir(parents=True, exist_ok=True)
    saved.cpu().write(out / FILE)
    head = {
        "weight": model.head.weight.detach().cpu().contiguous(),
        "bias": model.head.bias.detach().cpu().contiguous(),
    }
    write_atomically(out / HEAD, save(head, {"classes": json.dumps(classes)}), sync=True)
    write_atomically(out / RESULTS, json.dumps(results, indent=1) + "\n")


def run(arguments: list[str], console: Console) -> int:
    """Train as the arguments say; return the exit code. Raises UserError."""
    options = FinetuneOptions.parse(arguments)
    saved = load_encoder(one_encoder(options.run, options.encoder))
    own = saved.description
    views = [
        v2.RandomResizedCrop(own.crop, (SMALLEST_SHARE, 1.0), antialias=True),
        v2.RandomHorizontalFlip(options.flip / 2),
    ]
    cut = v2.Compose(views)
    rules, seen = ImageRules(range=own.range, alpha=own.alpha), partial(centre, own.resize, own.crop)
    held_out = parse_held_out(options.val, "val")
    splits = labelled_splits(options.data_path, held_out, rules, cut, seen, console)
    say(console, f"{len(splits.train)} images train, {len(splits.val)} test; {len(splits.classes)} classes.")
    model = made(saved, splits, options)
    epochs = []
    for numbers in finetune(model, saved, splits, options):
        epochs.append(numbers)
        low, high = interval(numbers["accuracy"], int(numbers["images"]))
        text = f"top-1 {100 * numbers['accuracy']:5.1f} % (95 %: {100 * low:.1f} to {100 * high:.1f})"
        say(console, f"epoch {numbers['epoch']:3d}   loss {numbers['loss']:.3f}   {text}")
    results = {"accuracy": epochs[-1]["accuracy"], "options": asdict(options), "encoder": asdict(own), "epochs": epochs}
    write(Path(options.out), saved, model, splits.classes, results)
    say(console, f"Written to {options.out}. To use it:")
    say(console, f"  encoder = dist_ssl.load_encoder({options.out!r}); features = encoder.embed(['a.jpg'])")
    say(console, f"  head = safetensors.torch.load_file({str(Path(options.out) / HEAD)!r})")
    say(console, "  classes = (features @ head['weight'].T + head['bias']).argmax(1)")
    return 0


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    write_for_owner_alone()
    return run_command(run, arguments, interrupted="Interrupted: nothing was written.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
