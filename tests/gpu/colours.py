"""Shows on a GPU that views are coloured as the reference does it, fast, beside training, and without host stops.

    python tests/gpu/colours.py [--device cpu] [--seconds 45]

`--device cpu` runs it small: Triton's interpreter takes the GPU's place.
"""

import os
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dist_ssl.core.batch import Batch
from dist_ssl.core.draws import Draws
from dist_ssl.data.images import photometric
from dist_ssl.data.images.photometric import NUMBERS, SOLARIZE_FROM, Photometry
from dist_ssl.data.images.views import Augmentation
from dist_ssl.data.loader.feed import Feed, GpuSide
from dist_ssl.data.loader.loader_process import pin, unpin
from shards.picture_rules import IMAGENET
from tests.gpu.rows import Claim, Setting, claim, host_stops, leave, main

MEAN, STD = IMAGENET
FIRST = Augmentation(
    crop_min=0.2, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, jitter_p=0.8, gray_p=0.2, blur_p=1.0
)
MOCOV3 = (FIRST, replace(FIRST, blur_p=0.1, solarize_p=0.2))
FULL = replace(FIRST, hue=0.3, blur_p=0.5, solarize_p=0.3, invert_p=0.3, turn_p=0.5)
LAUNCHES, VIEWS_A_SECOND = 12, 50_000
"""Bars: at most so many launches and copies for a view; at least so many views of 224 px coloured by one H100."""
NEAR = {torch.float32: 1e-5, torch.bfloat16: 2**-7}


class HostSide:
    """Stands for a stream where there is no GPU: work is done when it is issued."""

    def within(self) -> AbstractContextManager[None]:
        return nullcontext()

    def event(self) -> "HostSide":
        return self

    def synchronize(self) -> None:
        pass

    def hand_over(self, tensors: Sequence[Tensor], after: Any) -> None:
        pass


def pixels(images: int, side: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[images, side, side, 3]: noise at two scales."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (images, -(-side // 8), -(-side // 8), 3)).repeat(8, 1).repeat(8, 2)
    return (0.6 * coarse[:, :side, :side] + 0.4 * rng.integers(0, 256, (images, side, side, 3))).astype(np.uint8)


def numbers(recipe: Augmentation, view: Tensor) -> Any:
    """What the kernels are given for a view."""
    change = Photometry(recipe, 0, MEAN, STD)
    return photometric._numbers(change, view, change.looks(Draws(3).uniforms(NUMBERS, np.arange(len(view)), 0)))


def by_kernels(recipe: Augmentation, view: Tensor, dtype: torch.dtype) -> Tensor:
    from dist_ssl.data.images.photometric_triton import colour_views

    return colour_views([numbers(recipe, view)], dtype)[0]


def equal(device: torch.device, recipe: Augmentation, side: int, dtype: torch.dtype) -> tuple[bool, str]:
    """Compare the kernels with torch's operations in double precision on the CPU."""
    images = 64 if device.type == "cuda" else 4
    view = torch.from_numpy(pixels(images, side))
    change = Photometry(recipe, 0, MEAN, STD)
    wanted = change(view, np.arange(images), Draws(3), torch.float64)
    own = by_kernels(recipe, view.to(device), dtype).cpu()
    apart = (own.double() - wanted).abs()
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    undecided = ((wanted * std + mean - 0.5).abs() - (SOLARIZE_FROM - 0.5)).abs() < 1e-5  # at solarize's threshold
    apart = torch.where(undecided, 0, apart) / wanted.abs().clamp_min(1)
    holds = bool(apart.max() <= 2 * NEAR[dtype]) and own.is_contiguous(memory_format=torch.channels_last)
    return holds, f"at most {apart.max():.1e} apart, {int(undecided.sum())} numbers at the threshold"


def selected(device: torch.device) -> tuple[bool, str]:
    """Whether `colour` uses the kernels for what engines compute in, and torch for double precision."""
    since = time.perf_counter()
    found = [photometric._has_kernels(device, x) for x in (torch.float32, torch.bfloat16, torch.float64)]
    return found == [True, True, False], f"fp32, bf16, fp64: {found}, {time.perf_counter() - since:.1f} s to compile"


def again(device: torch.device) -> tuple[bool, str]:
    """Whether the same view has the same bits twice, and in another batch."""
    view = torch.from_numpy(pixels(16 if device.type == "cuda" else 3, 40)).to(device)
    first, second = (by_kernels(FULL, view, torch.float32) for _ in range(2))
    part = by_kernels(FULL, view[:2], torch.float32)
    return torch.equal(first, second) and torch.equal(first[:2], part), "bits of two runs and of a part of the batch"


def beside(device: torch.device) -> tuple[bool, str]:
    """Feed batches from memory that is filled anew as soon as it is let go, while the GPU is kept busy."""
    gpu = device.type == "cuda"
    images, side, count = (128, 224, 12) if gpu else (4, 24, 4)
    change, memory = Photometry(FULL, 0, MEAN, STD), np.zeros((images, side, side, 3), np.uint8)
    ids, own = np.arange(images), [pixels(images, side, seed) for seed in range(count)]

    def source() -> Generator[int, None, None]:
        for number in range(count):
            memory[:] = own[number]
            yield number
            memory[:] = 0

    def make(number: int, views: list[Tensor]) -> Batch:
        found = photometric.colour([change], views, ids, Draws(number), torch.float32)
        valid = torch.ones(images, dtype=torch.bool, device=device)
        return Batch(found, torch.from_numpy(ids), valid, None, Draws(number), number)

    def copy(number: int) -> list[Tensor]:
        return [torch.from_numpy(memory).to(device, non_blocking=True)]

    busy, kept = torch.randn(4096 if gpu else 16, 4096 if gpu else 16, device=device), []
    if gpu:
        pin([memory])
    for batch in Feed(source(), copy, make, GpuSide(device) if gpu else HostSide()):
        for _ in range(8):
            busy = (busy @ busy).clamp(-1, 1)
        kept.append(batch.views[0].clone())
    if gpu:
        torch.cuda.synchronize()
        unpin([memory])
    plain = [change(torch.from_numpy(x).to(device), ids, Draws(number), torch.float32) for number, x in enumerate(own)]
    wrong = [number for number, (a, b) in enumerate(zip(kept, plain, strict=True)) if not torch.equal(a, b)]
    return not wrong and len(kept) == count, f"{count} batches, wrong: {wrong}"


def rate(device: torch.device, dtype: torch.dtype, kernels: bool) -> tuple[bool, str]:
    """Time both views of MoCo v3: the GPU's part alone, and with the host's, which draws the parameters."""
    views = [torch.from_numpy(pixels(256, 224, seed)).to(device) for seed in range(2)]
    changes, ids = [Photometry(r, slot, MEAN, STD) for slot, r in enumerate(MOCOV3)], np.arange(256)

    def coloured(step: int) -> None:
        if kernels:
            photometric.colour(changes, views, ids, Draws(0, step), dtype)
        else:
            drawn = Draws(0, step).of_slots(NUMBERS, ids, range(2))
            looks = [c.looks({p: n[slot] for p, n in drawn.items()}) for slot, c in enumerate(changes)]
            there = photometric._there(looks, device)
            for change, view, look, on in zip(changes, views, looks, there, strict=True):
                change.change(view, look, on, dtype)

    for step in range(3):
        coloured(step)
    torch.cuda.synchronize()
    since = time.perf_counter()
    for step in range(10):
        coloured(step)
    torch.cuda.synchronize()
    whole = 10 * 512 / (time.perf_counter() - since)
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        coloured(0)
        torch.cuda.synchronize()
    events = [event for event in seen.events() or [] if str(event.device_type).endswith("CUDA")]
    busy = sum(event.time_range.elapsed_us() for event in events) / 1e6
    alone = 512 / busy if busy else float("nan")
    holds = not kernels or (alone >= VIEWS_A_SECOND and len(events) <= 2 * LAUNCHES)
    return holds, f"{alone:,.0f} views/s on the GPU, {whole:,.0f} with the host; {len(events)} launches and copies"


def stops(setting: Setting, device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
    """Count how often the host waits for the GPU while it issues a batch's colours."""
    views = [torch.from_numpy(pixels(8, 64, seed)).to(device) for seed in range(2)]
    changes = [Photometry(r, slot, MEAN, STD) for slot, r in enumerate((FULL, FULL))]
    photometric.colour(changes, views, np.arange(8), Draws(0), dtype)
    count, places = host_stops(lambda: photometric.colour(changes, views, np.arange(8), Draws(1), dtype), setting)
    return not count, f"{count} stops: {places}"


def claims(setting: Setting) -> Iterator[Claim]:
    """All claims."""
    if setting.gpu:
        device = torch.device("cuda", 0)
        yield claim("colours: kernels are chosen", partial(selected, device))
    else:
        device = setting.device
        os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported, which is in the first row
    for side in (224, 96, 33) if setting.gpu else (24,):
        for dtype in NEAR:
            name = str(dtype).removeprefix("torch.")
            work = partial(equal, device, FULL, side, dtype)
            yield claim(f"colours: {side} px {name}, kernels as the reference", work)
    yield claim("colours: same bits again", partial(again, device))
    yield claim("colours: made beside training", partial(beside, device))
    if setting.gpu:
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            yield claim(f"colours: host stops, {dtype}", partial(stops, setting, device, dtype))
        for dtype in (torch.bfloat16, torch.float32):
            yield claim(f"colours: MoCo v3, 2 x 256 x 224 px, {dtype}", partial(rate, device, dtype, True))
        yield claim("colours: the same by torch's operations, fp32", partial(rate, device, torch.float32, False))


if __name__ == "__main__":
    leave(main(claims))
