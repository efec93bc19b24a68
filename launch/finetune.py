"""The command that trains a classifier on a pre-trained encoder, by a plain loop in one process.

Examples:

    python launch/finetune.py run=runs/NAME data.path=pictures out=finetuned             # all weights
    python launch/finetune.py run=runs/NAME data.path=pictures out=linear train=head     # the classifier alone

Keys:

    run=RUN                  a finished run, or encoder=FILE: a file that an export has written (to=safetensors)
    data.path=PATH           a folder whose sub-folders are classes, with train/ and val/ above them or not (then
                             val=20% of the pictures are held out), or shards with splits of these names
    out=FOLDER               gets encoder.safetensors, head.safetensors (weight [C, D] and bias [C]) and results.json
    flip=false               where a mirrored image may be of another class, as text is
    epochs=20 batch=64 lr=1e-3 encoder_lr=1e-4 weight_decay=0.05 seed=0
    workers=4                processes that decode; the views that are drawn depend on their number
    device=auto              or cpu, cuda
    data.cache=auto          a folder for local copies of remote shards, of data.cache_bytes=50GB

Exit codes: 0; 2 something in the command, the encoder or the data must be corrected; 130 interrupted.
"""

import math
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from multiprocessing.context import BaseContext
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from dist_ssl.config.command import run_command, say
from dist_ssl.config.long_work import LongWork
from dist_ssl.data.images.centre_crop import write_centre
from dist_ssl.data.storage.address import Address
from dist_ssl.errors import DataError, TrainingError, plural
from dist_ssl.evaluate.confidence import shown_interval
from dist_ssl.runtime.files import write_for_owner_alone
from dist_ssl.saved_encoder import Description, SavedEncoder, load_encoder
from dist_ssl.schedules.half_cosine import half_cosine
from launch.command_options import device_of, one_encoder, with_credentials
from launch.finetune_files import prepare, say_how_to_use, write
from launch.finetune_options import ENCODER_LR, FinetuneOptions
from launch.labelled_images import EncodedImages, Item, LabelledImages, LabelledSplits, labelled_splits

Batch = tuple[Tensor, Tensor]
"""Views [B, C, S, S] and labels [B]."""
Loader = DataLoader[Any]
"""A loader of what `collated` returns."""
SMALLEST_SHARE = 0.2
"""Least share of an image's area that a view of training shows."""


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
        """Return the logits, [B, channels, S, S] -> [B, C]."""
        with torch.no_grad() if self.frozen else nullcontext():
            features = self.encoder(x)
        logits: Tensor = self.head(features)
        return logits


def collated(items: list[Item]) -> tuple[Batch | None, list[int]] | DataError:
    """Return the batch of the items that can be decoded, None without one, and the numbers of the others.

    Or why an item cannot be read.
    """
    if problem := next((item for item in items if isinstance(item, DataError)), None):
        return problem
    found = [item for item in items if isinstance(item, tuple)]
    undecodable = [item for item in items if isinstance(item, int)]
    if not found:
        return None, undecodable
    views, labels = zip(*found, strict=True)
    return (torch.stack(views), torch.tensor(labels)), undecodable


def loaded(
    loader: Loader, saved: SavedEncoder, device: torch.device, passed: Callable[[], None], undecodable: set[int]
) -> Iterator[Batch]:
    """Yield the batches, normalised and on the device; add the numbers of undecodable images. Raises DataError.

    `passed`: called after each batch, for the person who waits.
    """
    for found in loader:
        if isinstance(found, DataError):
            raise found
        batch, numbers = found
        undecodable.update(numbers)
        if batch is not None:
            views, labels = batch
            yield saved.normalised(views.permute(0, 2, 3, 1)).to(device), labels.to(device)
        passed()


def centre(resize: int, crop: int, pixels: Tensor) -> Tensor:
    """Return the centre of an image as evaluations see it, [C, h, w] -> [C, crop, crop]."""
    out = torch.empty(crop, crop, len(pixels), dtype=pixels.dtype)
    write_centre(pixels.permute(1, 2, 0).contiguous().numpy(), resize, out.numpy())
    return out.permute(2, 0, 1)


def workers_context() -> BaseContext:
    """Return how workers start: from a process that has loaded the code and has no open file or connection."""
    os.environ["PYTHONSAFEPATH"] = "1"  # the processes that it starts import nothing from the current folder
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([LabelledImages.__module__])
    return context


def batches(images: LabelledImages, options: FinetuneOptions, shuffle: bool) -> Loader:
    """Return the batches of images; the last one of an epoch of training is dropped where it is smaller."""
    # more workers than cores: views depend on their number; torch says it again when they start
    warnings.filterwarnings("ignore", "This DataLoader will create")
    return DataLoader(
        images,
        options.batch,
        shuffle=shuffle,
        num_workers=options.workers,
        collate_fn=collated,
        drop_last=shuffle and len(images) > options.batch,
        multiprocessing_context=workers_context() if options.workers else None,
        persistent_workers=options.workers > 0,
        generator=torch.Generator().manual_seed(options.seed),
    )


def train_epoch(
    model: Classifier,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    epoch: Iterator[Batch],
) -> float:
    """Train for one epoch; return the mean loss. Raises TrainingError where it is not finite, DataError."""
    model.train()
    losses, least = [], 1 if model.frozen else 2  # batch norms cannot normalise by the statistics of one image
    for x, labels in epoch:
        if len(x) < least:
            continue
        loss = F.cross_entropy(model(x), labels, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    if not losses:
        problem = f"Too few images to train on can be decoded: a batch needs {least}."
        raise DataError(problem, "Name other images: data.path=...")
    if not math.isfinite(sum(losses)):
        raise TrainingError("The loss is not finite.", "Use smaller rates: lr=..., encoder_lr=...")
    return sum(losses) / len(losses)


@torch.inference_mode()
def accuracy(model: Classifier, epoch: Iterator[Batch]) -> tuple[float, int]:
    """Return the share of images whose class is found, and the number of these images. Raises DataError."""
    model.eval()
    right = count = 0
    for x, labels in epoch:
        right += int((model(x).argmax(1) == labels).sum())
        count += len(labels)
    if not count:
        raise DataError("No image to test on can be decoded.", "Name other images: data.path=...")
    return right / count, count


def made(saved: SavedEncoder, classes: int, options: FinetuneOptions) -> Classifier:
    """Return the classifier before training, on its device. Raises ConfigError where the device is not there."""
    torch.manual_seed(options.seed)
    model = Classifier(saved.encoder, saved.num_features, classes, options.train == "head")
    return model.to(device_of(options.device))


def views_of(saved: SavedEncoder, splits: LabelledSplits, flip: bool) -> tuple[LabelledImages, LabelledImages]:
    """Return the images of both splits: drawn views to train on, centres to test on."""
    own = saved.description
    rules = own.rules
    drawn = [v2.RandomResizedCrop(own.crop, (SMALLEST_SHARE, 1.0), antialias=True), v2.RandomHorizontalFlip(flip / 2)]

    def images(samples: EncodedImages, view: Any) -> LabelledImages:
        return LabelledImages(samples, rules, view)

    return images(splits.train, v2.Compose(drawn)), images(splits.val, partial(centre, own.resize, own.crop))


def finetune(
    model: Classifier, saved: SavedEncoder, splits: LabelledSplits, options: FinetuneOptions, work: LongWork
) -> Iterator[dict[str, float]]:
    """Train; yield the numbers of every epoch. `work`: shows how far it is. Raises TrainingError, DataError."""
    parts: list[dict[str, Any]] = [{"params": model.head.parameters(), "lr": options.lr}]
    if not model.frozen:
        parts.append({"params": model.encoder.parameters(), "lr": options.encoder_lr or ENCODER_LR})
    optimizer = torch.optim.AdamW(parts, weight_decay=options.weight_decay)
    drawn, centres = views_of(saved, splits, options.flip)
    train, val = batches(drawn, options, shuffle=True), batches(centres, options, shuffle=False)
    steps, warm = options.epochs * len(train), len(train)  # one epoch of linear warm-up, then half a cosine
    share = partial(rate_share, warm=min(warm, steps // 2), steps=steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    bad: dict[str, set[int]] = {"train": set(), "test": set()}
    passed = partial(work.advance, work.add_task("batches", total=options.epochs * (len(train) + len(val))))
    load = partial(loaded, saved=saved, device=model.head.weight.device, passed=passed)
    for epoch in range(1, options.epochs + 1):
        loss = train_epoch(model, optimizer, scheduler, load(train, undecodable=bad["train"]))
        found, count = accuracy(model, load(val, undecodable=bad["test"]))
        numbers = {"epoch": epoch, "loss": loss, "accuracy": found, "images": count}
        yield {**numbers, **{f"undecodable_{use}": len(those) for use, those in bad.items()}}


def description_after(before: Description, images: int, classes: int, options: FinetuneOptions) -> Description:
    """Return the description of the encoder after this training, which says so wherever its weights have changed."""
    if options.train == "head":
        return before
    now = f"{plural(options.epochs, 'epoch')} on {plural(images, 'image')} of {plural(classes, 'class', 'classes')}"
    return replace(before, finetuned=f"{before.finetuned}, then {now}" if before.finetuned else now)


def rate_share(step: int, warm: int, steps: int) -> float:
    """Return the learning rate of a step as a share of the largest one."""
    if step < warm:
        return (step + 1) / warm
    return half_cosine(1.0, 0.0, step - warm, max(1, steps - warm))


def say_what_is_left_out(
    splits: LabelledSplits, now: Mapping[str, float], before: Mapping[str, float], console: Console
) -> None:
    """Print how many images cannot be decoded, where an epoch has found more of them than the one before."""
    for use, images in (("train", splits.train), ("test", splits.val)):
        key = f"undecodable_{use}"
        if now[key] > before.get(key, 0):
            say(console, f"{now[key]} of {len(images)} images to {use} on cannot be decoded; they do not count.")


def run(arguments: list[str], console: Console) -> int:
    """Train as the arguments say; return the exit code. Raises UserError."""
    options = FinetuneOptions.parse(arguments)
    saved = load_encoder(one_encoder(options.run, options.encoder))
    cache = None if options.data_cache == "null" else options.data_cache
    path = with_credentials(options.data_path)
    channels = saved.description.rules.channels
    splits = labelled_splits(path, options.val, cache, options.data_cache_bytes, console, channels)
    model = made(saved, len(splits.classes), options)
    prepare(options.out)
    counts = f"{plural(len(splits.train), 'image')} to train on, {len(splits.val)} to test on"
    say(console, f"{counts}; {plural(len(splits.classes), 'class', 'classes')}.")
    epochs: list[dict[str, float]] = []
    with LongWork(console) as work:
        for numbers in finetune(model, saved, splits, options, work):
            say_what_is_left_out(splits, numbers, epochs[-1] if epochs else {}, console)
            epochs.append(numbers)
            accuracy = numbers["accuracy"]
            text = f"top-1 {100 * accuracy:5.1f} % {shown_interval(accuracy, int(numbers['images']))}"
            say(console, f"epoch {numbers['epoch']:3d}   loss {numbers['loss']:.3f}   {text}")
    decoded = len(splits.train) - int(epochs[-1]["undecodable_train"])
    saved.description = description_after(saved.description, decoded, len(splits.classes), options)
    own = {**asdict(options), "data_path": Address.parse(path).shown, "out": str(options.out)}
    last = {key: epochs[-1][key] for key in ("accuracy", "images")}
    results = {**last, "options": own, "encoder": saved.description.values()}
    write(options.out, saved, model.head, splits.classes, {**results, "epochs": epochs})
    say_how_to_use(options.out, console)
    return 0


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    write_for_owner_alone()
    return run_command(run, arguments, interrupted="Interrupted: nothing was written.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
