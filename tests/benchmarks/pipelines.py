"""The pipelines that the loader's benchmark compares, each as its own users write it, and the images they read."""

import io
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from rich.console import Console
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as tv
from torchvision.datasets import ImageFolder

from dist_ssl.core.draws import Draws
from dist_ssl.core.plan import EpochPlan
from dist_ssl.data.epoch_views import Colours
from dist_ssl.data.images.views import CROP_DRAWS, Augmentation, Cutter, crop_box
from dist_ssl.data.loader.load import Loader
from dist_ssl.data.loader.loader_process import LoaderProcess
from dist_ssl.data.order.lanes import EpochOrder
from dist_ssl.data.order.requests import Steps
from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.address import Address
from dist_ssl.data.storage.fetch import Fetcher
from dist_ssl.data.storage.pyramid import attach
from dist_ssl.data.storage.read import Reader
from dist_ssl.data.storage.samples import columns
from dist_ssl.data.stream import Stream
from dist_ssl.distributed.world import World
from shards import levels
from shards.command_line import Sides
from shards.picture_rules import IMAGENET
from tests.gpu.pictures import jpeg, noise
from tests.gpu.plain import Blur

BATCH = 32
MEAN, STD = IMAGENET
GRAIN = 18.0
LEVELS = Sides((160, 256))
MOCO = Augmentation(
    crop_min=0.2, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter_p=0.8, gray_p=0.2, blur_p=0.5
)


@dataclass(frozen=True)
class Images:
    """The same encoded images as a folder of files, as shards, and in memory."""

    folder: Path
    shards: Path
    files: list[Path]


@dataclass(frozen=True)
class Work:
    """What is made of every image: `views` crops of `size` px, coloured and normalised, or left as uint8 crops.

    `pyramid`: by us from smaller copies, as a run with the default `data.max_upsample` does.
    """

    views: int
    size: int
    coloured: bool = True
    pyramid: bool = False


Pass = Callable[[], int]
"""Loads every image once; how many there were."""


def draw(folder: Path, count: int, bits: float) -> None:
    """Write images of 500 x 375 whose JPEGs take about `bits` per pixel, into one class folder."""
    folder.mkdir(parents=True)
    for number in range(count):
        image, low, high = noise(number, GRAIN), 5, 98
        while low < high:  # the best quality within the size
            quality = (low + high + 1) // 2
            low, high = (quality, high) if len(jpeg(image, quality)) * 8 <= bits * 500 * 375 else (low, quality - 1)
        (folder / f"{number:05d}.jpg").write_bytes(jpeg(image, low))


def draw_small(folder: Path, count: int) -> None:
    """Write images of 100 x 75 px, for measurements that take many of them: tiles of larger ones."""
    folder.mkdir(parents=True)
    tiles = [(left, top, left + 100, top + 75) for top in range(0, 375, 75) for left in range(0, 500, 100)]
    for number in range(count):
        image, tile = divmod(number, len(tiles))
        if not tile:
            whole = noise(image, GRAIN)
        (folder / f"{number:05d}.jpg").write_bytes(jpeg(whole.crop(tiles[tile]), 90))


def pack(folder: Path, shards: Path) -> Images:
    """One tar of all JPEGs below a folder, with its manifest."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    shards.mkdir(parents=True)
    tar = shards / "train-000000.tar"
    with tarfile.open(tar, "w") as archive:
        for number, path in enumerate(files):
            archive.add(path, f"{number:08d}.jpg", recursive=False)
    with tarfile.open(tar) as archive:
        rows = [(member.name[:-4], member.offset_data, member.size, 0) for member in archive]
    shard = manifest.Shard(tar.name, len(rows), tar.stat().st_size, "0" * 64)
    manifest.write(shards, {"train": ([shard], columns(rows))})
    return Images(folder.parent if any(path.parent == folder for path in files) else folder, shards, files)


def ours(
    images: Images, work: Work, threads: int, *, batch: int = BATCH, batches: int = 10**9, beside: bool = False
) -> Pass:
    """The stream of a run, or its loader alone where views are not coloured; at most so many batches a pass.

    `beside`: in a loader process.
    """
    data = manifest.read(images.shards)
    if work.pyramid:
        levels.write(images.shards, levels.LevelOptions(LEVELS), Console(quiet=True))
        data = attach(data, Address(str(images.shards)), LEVELS, Fetcher())
    split = data.split("train")
    own = Loader(Reader(split), threads)
    loader = LoaderProcess().serve(own) if beside else own
    plan = EpochPlan(0, work.size, 1.0, work.views, batch, 1)
    torch.set_num_threads(threads)
    epochs = iter(range(10**9))

    def coloured() -> int:
        stream = Stream(loader, [MOCO], Colours(MEAN, STD), world=World(), seed=0, window=256, dtype=torch.float32)
        found = stream.epoch(replace(plan, epoch=next(epochs)))
        return sum(len(batch.ids) for batch in islice(found, batches))

    def cut() -> int:
        steps = Steps(EpochOrder(split.shard_sizes, Draws(0, next(epochs)), 1, 256), 0, 1, 0, batch)
        return sum(len(found.ids) for found in loader.load(steps, Cutter([MOCO] * work.views, work.size), work.views))

    return coloured if work.coloured else cut


class Several:
    """As many augmented views of an image as the work wants."""

    def __init__(self, work: Work) -> None:
        crop = tv.RandomResizedCrop(work.size, scale=(0.2, 1.0))
        colours = [
            tv.RandomApply([tv.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            tv.RandomGrayscale(p=0.2),
            tv.RandomApply([Blur()], p=0.5),
            tv.RandomHorizontalFlip(),
            tv.ToTensor(),
            tv.Normalize(MEAN, STD),
        ]
        self.views, self.change = work.views, tv.Compose([crop, *(colours if work.coloured else [tv.PILToTensor()])])

    def __call__(self, image: Image.Image) -> list[torch.Tensor]:
        return [self.change(image) for _ in range(self.views)]


def counted(batches: DataLoader[Any]) -> Pass:
    """Iterate once."""
    return lambda: sum(len(batch[0]) for batch, *_ in batches)


def imagefolder(images: Images, work: Work, workers: int, context: str | None = None) -> Pass:
    """torchvision's ImageFolder under torch's DataLoader; the workers stay alive between passes."""
    data = ImageFolder(str(images.folder), Several(work))
    return counted(
        DataLoader(
            data,
            BATCH,
            shuffle=True,
            num_workers=workers,
            persistent_workers=True,
            drop_last=True,
            multiprocessing_context=context,
        )
    )


def webdatasets(images: Images, work: Work, workers: int) -> Pass:
    """webdataset's own pipeline over a tar per worker, under its loader."""
    names = sorted(images.shards.glob("worker-*.tar"))
    for worker in range(workers if not names else 0):
        with tarfile.open(images.shards / f"worker-{worker}.tar", "w") as archive:
            for number, path in enumerate(images.files[worker::workers]):
                archive.add(path, f"{number:08d}.jpg", recursive=False)
    urls = [str(path) for path in sorted(images.shards.glob("worker-*.tar"))]
    data = webdataset.WebDataset(urls, shardshuffle=False).shuffle(256).decode("pil").to_tuple("jpg")
    data = data.map_tuple(Several(work)).batched(BATCH, collation_fn=stacked, partial=False)
    return counted(DataLoader(data, batch_size=None, num_workers=workers, persistent_workers=True))


def stacked(samples: Sequence[tuple[list[torch.Tensor]]]) -> tuple[list[torch.Tensor]]:
    """Batches of every view."""
    return ([torch.stack(view) for view in zip(*(views for (views,) in samples), strict=True)],)


class Recorded(Dataset[tuple[list[torch.Tensor]]]):
    """LitData's dataset of the encoded images, with the same transformation."""

    def __init__(self, source: Any, work: Work) -> None:
        self.source, self.several = source, Several(work)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, number: int) -> tuple[list[torch.Tensor]]:
        return (self.several(Image.open(io.BytesIO(self.source[number])).convert("RGB")),)


def litdatas(images: Images, work: Work, workers: int) -> Pass:
    """LitData's optimised chunks under torch's DataLoader."""
    import litdata

    folder = images.shards / "litdata"
    if not folder.exists():
        litdata.optimize(Path.read_bytes, images.files, str(folder), chunk_bytes="64MB", num_workers=1, verbose=False)
    data = Recorded(litdata.StreamingDataset(str(folder)), work)
    return counted(DataLoader(data, BATCH, num_workers=workers, persistent_workers=True, drop_last=True))


def dali(images: Images, work: Work, threads: int) -> Pass:
    """NVIDIA DALI's operators on the CPU: decode once, a random crop, colours, blur and normalisation per view."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=BATCH, num_threads=threads, device_id=None, prefetch_queue_depth=2)  # type: ignore[untyped-decorator]
    def pipeline() -> tuple[Any, ...]:
        encoded, _ = fn.readers.file(files=[str(path) for path in images.files], random_shuffle=True, name="files")
        image = fn.decoders.image(encoded, device="cpu")
        return tuple(dali_view(fn, types, image, work) for _ in range(work.views))

    built = pipeline()
    built.build()

    def once() -> int:
        batches = len(images.files) // BATCH
        for number in range(
            -2, batches
        ):  # two ahead, and nothing is left under way that the other's turn would pay for
            if number >= 0:
                built.share_outputs()
                built.release_outputs()
            if number + 2 < batches:
                built.schedule_run()
        return batches * BATCH

    return once


def dali_view(fn: Any, types: Any, image: Any, work: Work) -> Any:
    """One view; colours and blur are multiplied away where a coin says so, as DALI has no branches for free."""
    x = fn.random_resized_crop(image, size=work.size, random_area=(0.2, 1.0))
    if not work.coloured:
        return x

    def coin(probability: float) -> Any:
        return fn.cast(fn.random.coin_flip(probability=probability), dtype=types.FLOAT)

    jittered, gray, blurred = coin(0.8), coin(0.2), coin(0.5)
    bright, contrast, saturation = (1 + jittered * fn.random.uniform(range=(-0.4, 0.4)) for _ in range(3))
    turned = jittered * fn.random.uniform(range=(-36.0, 36.0))
    x = fn.color_twist(x, brightness=bright, contrast=contrast, saturation=saturation * (1 - gray), hue=turned)
    x = fn.gaussian_blur(x, sigma=blurred * fn.random.uniform(range=(0.1, 2.0)) + (1 - blurred) * 0.01)
    scale = {"mean": [255 * m for m in MEAN], "std": [255 * s for s in STD], "dtype": types.FLOAT}
    return fn.crop_mirror_normalize(x, mirror=fn.random.coin_flip(), **scale)


def spdls(images: Images, work: Work, threads: int) -> Pass:
    """SPDL: its threads, FFmpeg's decoder, and FFmpeg's filters for crop and resize; uint8 views."""
    import spdl.io
    from spdl.pipeline import PipelineBuilder

    spdl.io.load_image(images.files[0].read_bytes())  # without FFmpeg's libraries this is an error that says so
    numbers = np.random.default_rng(0)

    def view(path: Path) -> np.ndarray:
        left, top, right, bottom = crop_box(*Image.open(path).size, MOCO, numbers.random(CROP_DRAWS, dtype=np.float32))
        crop = f"crop={right - left}:{bottom - top}:{left}:{top}"
        scale = f"scale={work.size}:{work.size}:flags=bilinear,format=pix_fmts=rgb24"
        return np.array(spdl.io.to_numpy(spdl.io.load_image(path.read_bytes(), filter_desc=f"{crop},{scale}")))

    def once() -> int:
        builder = PipelineBuilder().add_source(images.files).pipe(view, concurrency=threads)
        pipeline = builder.aggregate(BATCH, drop_last=True).pipe(np.stack).add_sink(3).build(num_threads=threads)
        with pipeline.auto_stop():
            return sum(len(batch) for batch in pipeline)

    return once


ROWS: dict[str, Callable[[Images, Work, int], Pass]] = {
    "ImageFolder": imagefolder,
    "webdataset": webdatasets,
    "LitData": litdatas,
    "DALI": dali,
    "SPDL": spdls,
}
