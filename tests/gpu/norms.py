"""Proves batch norm's kernels on a GPU against the reference in double precision, times them, and counts launches.

    python tests/gpu/norms.py [--device cpu] [--repeats 20] [--kernels triton|torch]

A row is printed as soon as it is known: `name | right/WRONG | seen`. Exits 1 where one is wrong. `--kernels`: those
that have to run, Triton's by default; torch's kernels are also timed beside them. `--device cpu` runs the same rows in
small sizes with the formulas of torch's kernels.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dist_ssl.models import norm, norm_cuda
from dist_ssl.models.norm import BatchNorm, Scope
from tests.emulated_norms import emulated

SHAPES = {"cuda": [(512, 64, 112, 112), (512, 2048, 7, 7)], "cpu": [(32, 8, 12, 12), (32, 64, 3, 3)]}
CLOSE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
Row = tuple[bool, str]


def made(shape: tuple[int, ...], device: str, dtype: torch.dtype, views: int, scope: Scope) -> BatchNorm:
    """A norm whose weights are not those of the start."""
    own = BatchNorm(shape[1], scope=scope).to(device, dtype)
    own.views = views
    with torch.no_grad():
        for number, parameter in enumerate(own.parameters()):
            parameter.copy_(torch.linspace(0.5, 1.5, shape[1]) - number)
    return own


def data(shape: tuple[int, ...], device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """An input whose channels have means and standard deviations of their own, and a gradient of the output."""
    generator = torch.Generator(device).manual_seed(0)
    x, dy = (torch.randn(shape, generator=generator, device=device) for _ in range(2))
    channel = torch.linspace(0, 1, shape[1], device=device).view(1, -1, *[1] * (len(shape) - 2))
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return tuple(v.to(dtype).contiguous(memory_format=layout) for v in (x * (0.5 + channel) + channel, dy))  # type: ignore[return-value]


def passed(own: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    """Output, all gradients, running statistics."""
    x = x.detach().requires_grad_()
    y = own(x)
    y.backward(dy)
    norm.update_running_statistics(own)
    assert x.grad is not None
    return [y.detach(), x.grad, *[p.grad for p in own.parameters() if p.grad is not None], *own.buffers()]


def as_reference(shape: tuple[int, ...], device: str, dtype: torch.dtype, views: int, scope: Scope) -> Row:
    """Compare with double precision, which the kernels leave to the reference."""
    x, dy = data(shape, device, dtype)
    found = passed(made(shape, device, torch.float32, views, scope), x, dy)
    exact = passed(made(shape, device, torch.float64, views, scope), x.double(), dy.double())
    gaps = [float((a.double() - b).abs().max() / b.abs().max().clamp_min(1)) for a, b in zip(found, exact, strict=True)]
    return max(gaps) <= CLOSE[dtype], f"y, dx, dw, db, mean, var apart by {', '.join(f'{gap:.1e}' for gap in gaps)}"


def seconds(work: Callable[[], object], device: str, repeats: int) -> float:
    """The time that a piece of work takes, warm."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(3):
        work()
    wait()
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    wait()
    return (time.perf_counter() - started) / repeats


def launches(work: Callable[[], object], device: str) -> int:
    """Kernels and copies that a piece of work starts on a GPU; operations where there is none."""
    kinds = [ProfilerActivity.CUDA] if device == "cuda" else [ProfilerActivity.CPU]
    with profile(activities=kinds) as seen:
        work()
        if device == "cuda":
            torch.cuda.synchronize()
    return sum(event.count for event in seen.key_averages() if "Synchronize" not in event.key)


def beside_torch(shape: tuple[int, ...], device: str, repeats: int) -> Row:
    """Forward and backward beside torch's own norm over both views at once, in bf16; at most half as slow again."""
    x, dy = data(shape, device, torch.bfloat16)
    torchs = nn.BatchNorm2d(shape[1]).to(device)

    def work(own: nn.Module) -> None:
        own(x.requires_grad_()).backward(dy)

    ours = made(shape, device, torch.float32, 2, Scope())

    def step() -> None:
        work(ours)
        ours.seen.clear()

    own, theirs = seconds(step, device, repeats), seconds(partial(work, torchs), device, repeats)
    counts = launches(step, device), launches(partial(work, torchs), device)
    with patch.object(norm_cuda, "TRITON_DEVICES", ()):
        other = f"with torch's kernels {seconds(step, device, repeats) * 1e6:.0f} us, {launches(step, device)} launches"
    moved = 16 * x.numel() / own / 1e9
    seen = f"{own * 1e6:.0f} us, nn.BatchNorm2d {theirs * 1e6:.0f} us; {counts[0]} launches, {counts[1]}; {other}"
    return own <= 1.5 * theirs or device == "cpu", f"{seen}; {moved:.0f} GB/s of 16 bytes a number"


def by_kernel(shape: tuple[int, ...], device: str) -> Row:
    """The time of each kernel of a step, and the bytes a second that it moves where it reads or writes x or dy."""
    x, dy = data(shape, device, torch.bfloat16)
    own = made(shape, device, torch.float32, 2, Scope())
    passed(own, x, dy)
    kinds = [ProfilerActivity.CUDA] if device == "cuda" else [ProfilerActivity.CPU]
    with profile(activities=kinds) as seen:
        for _ in range(5):
            own(x.requires_grad_()).backward(dy)
        if device == "cuda":
            torch.cuda.synchronize()
    passes = {"block_moments": 1, "normalise_block": 2, "block_sums": 2, "gradient_block": 3}
    times = {event.key: event.device_time_total / 5 for event in seen.key_averages() if event.device_time_total}
    rows = sorted(times.items(), key=lambda row: -row[1])[:8]
    rates = {name: f" {2 * passes[name] * x.numel() / us / 1e3:.0f} GB/s" for name, us in rows if name in passes}
    return True, ", ".join(f"{name[:40]} {us:.0f} us{rates.get(name, '')}" for name, us in rows)


def which(device: str, asked: str) -> Row:
    """The kernels that run for channels_last and for rows, and how long it took until they could."""
    since = time.perf_counter()
    inputs = [torch.zeros(shape, device=device, dtype=torch.bfloat16) for shape in ((2, 8, 3, 3), (4, 8))]
    inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
    found = {"triton" if norm_cuda.by_triton(x) else "torch" for x in inputs}
    return found == {asked} or device == "cpu", f"{', '.join(sorted(found))}; {time.perf_counter() - since:.1f} s"


def never_waits(shape: tuple[int, ...], device: str) -> Row:
    """Torch raises an error where the host waits for a GPU."""
    own = made(shape, device, torch.float32, 2, Scope())
    x, dy = data(shape, device, torch.bfloat16)
    passed(own, x, dy)
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        passed(own, x, dy)
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return True, "the host did not wait"


def twice(shape: tuple[int, ...], device: str) -> Row:
    """The same bits, run after run."""
    x, dy = data(shape, device, torch.bfloat16)
    one, other = (passed(made(shape, device, torch.float32, 2, Scope()), x, dy) for _ in range(2))
    same = all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    return same, "equal bits" if same else "bits differ"


def claims(device: str, repeats: int, kernels: str) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Every row's name and how to find out."""

    def summed(x: Tensor) -> Tensor:
        return 3 * x  # as of three ranks with the same samples

    yield "norm's kernels", partial(which, device, kernels)
    for shape in SHAPES[device]:
        yield f"norm {list(shape)} bf16", partial(as_reference, (64, *shape[1:]), device, torch.bfloat16, 2, Scope())
        yield f"norm {list(shape)} bits", partial(twice, (64, *shape[1:]), device)
        yield f"norm {list(shape)} host", partial(never_waits, (64, *shape[1:]), device)
        yield f"norm {list(shape)} time", partial(beside_torch, shape, device, repeats)
        yield f"norm {list(shape)} kernels", partial(by_kernel, shape, device)
    small = {"4-d": (48, 16, 9, 9), "2-d": (48, 16), "1 px": (48, 16, 1, 1), "odd": (48, 37, 40, 30)}
    for dtype, (name, size) in product(CLOSE, small.items()):
        for views, scope in ((1, Scope()), (2, Scope()), (2, Scope(samples=6)), (2, Scope(summed))):
            groups = ", groups of 6" * bool(scope.samples) + ", ranks" * (scope.total is summed)
            work = partial(as_reference, size, device, dtype, views, scope)
            yield f"norm {name} {dtype} {views} views{groups}", work


def main() -> int:
    """Print all rows; 1 where one is wrong."""
    parser = argparse.ArgumentParser(description="Proves and times batch norm's kernels on a GPU.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--kernels", choices=["triton", "torch"], default="triton")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no further row is started")
    asked, start = parser.parse_args(), time.monotonic()
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("SKIPPED tests/gpu/norms.py: no GPU is here (--device cpu runs it without)")
        return 0
    wrong = 0
    forced = patch.object(norm_cuda, "TRITON_DEVICES", ("cuda",) if asked.kernels == "triton" else ())
    with emulated() if asked.device == "cpu" else nullcontext(), forced:
        for name, find_out in claims(asked.device, asked.repeats, asked.kernels):
            if time.monotonic() - start > asked.seconds:
                print(name, "SKIPPED", "no time was left", sep=" | ", flush=True)
                continue
            try:
                right, seen = find_out()
            except Exception as error:  # one row is not to keep the others from being known
                right, seen = False, f"{type(error).__name__}: {error}"[:300]
            wrong += not right
            print(name, "right" if right else "WRONG", seen, sep=" | ", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
