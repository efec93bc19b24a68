"""Proves batch norm's kernels on a GPU against the reference in double precision, times them, and counts launches.

    python tests/gpu/norms.py [--device cpu] [--repeats 20] [--kernels triton|torch]

`--kernels`: those that have to run, Triton's by default; torch's kernels are also timed beside them. `--device cpu`
runs the same rows in small sizes with the formulas of torch's kernels.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
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
from tests.gpu.rows import Claim, Setting, claim, host_stops, lasting, leave
from tests.gpu.rows import main as run

SHAPES = {"cuda": [(512, 64, 112, 112), (512, 2048, 7, 7)], "cpu": [(32, 8, 12, 12), (32, 64, 3, 3)]}
CLOSE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
Found = tuple[bool, str]
"""Whether a claim holds, and what was seen."""


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


def as_reference(shape: tuple[int, ...], device: str, dtype: torch.dtype, views: int, scope: Scope) -> Found:
    """Compare with double precision, which the kernels leave to the reference."""
    x, dy = data(shape, device, dtype)
    found = passed(made(shape, device, torch.float32, views, scope), x, dy)
    exact = passed(made(shape, device, torch.float64, views, scope), x.double(), dy.double())
    gaps = [float((a.double() - b).abs().max() / b.abs().max().clamp_min(1)) for a, b in zip(found, exact, strict=True)]
    return max(gaps) <= CLOSE[dtype], f"y, dx, dw, db, mean, var apart by {', '.join(f'{gap:.1e}' for gap in gaps)}"


def seconds(work: Callable[[], object], setting: Setting, repeats: int) -> float:
    """The time that a piece of work takes, warm."""
    lasting(work, setting, 3)
    return lasting(work, setting, repeats) / repeats


def launches(work: Callable[[], object], device: str) -> int:
    """Kernels and copies that a piece of work starts on a GPU; operations where there is none."""
    kinds = [ProfilerActivity.CUDA] if device == "cuda" else [ProfilerActivity.CPU]
    with profile(activities=kinds) as seen:
        work()
        if device == "cuda":
            torch.cuda.synchronize()
    return sum(event.count for event in seen.key_averages() if "Synchronize" not in event.key)


def beside_torch(shape: tuple[int, ...], setting: Setting, repeats: int) -> Found:
    """Forward and backward beside torch's own norm over both views at once, in bf16; at most half as slow again."""
    device = setting.device.type
    x, dy = data(shape, device, torch.bfloat16)
    torchs = nn.BatchNorm2d(shape[1]).to(device)

    def work(own: nn.Module) -> None:
        own(x.requires_grad_()).backward(dy)

    ours = made(shape, device, torch.float32, 2, Scope())

    def step() -> None:
        work(ours)
        ours.seen.clear()

    own, theirs = seconds(step, setting, repeats), seconds(partial(work, torchs), setting, repeats)
    counts = launches(step, device), launches(partial(work, torchs), device)
    with patch.object(norm_cuda, "TRITON_DEVICES", ()):
        spent, count = seconds(step, setting, repeats), launches(step, device)
    other = f"with torch's kernels {spent * 1e6:.0f} us, {count} launches"
    moved = 16 * x.numel() / own / 1e9
    seen = f"{own * 1e6:.0f} us, nn.BatchNorm2d {theirs * 1e6:.0f} us; {counts[0]} launches, {counts[1]}; {other}"
    return own <= 1.5 * theirs or device == "cpu", f"{seen}; {moved:.0f} GB/s of 16 bytes a number"


def by_kernel(shape: tuple[int, ...], device: str) -> Found:
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


def which(device: str, asked: str) -> Found:
    """The kernels that run for channels_last and for rows, and how long it took until they could."""
    since = time.perf_counter()
    inputs = [torch.zeros(shape, device=device, dtype=torch.bfloat16) for shape in ((2, 8, 3, 3), (4, 8))]
    inputs[0] = inputs[0].contiguous(memory_format=torch.channels_last)
    found = {"triton" if norm_cuda.by_triton(x) else "torch" for x in inputs}
    return found == {asked} or device == "cpu", f"{', '.join(sorted(found))}; {time.perf_counter() - since:.1f} s"


def never_waits(shape: tuple[int, ...], setting: Setting) -> Found:
    """The host does not wait for the device."""
    device = setting.device.type
    own = made(shape, device, torch.float32, 2, Scope())
    x, dy = data(shape, device, torch.bfloat16)
    passed(own, x, dy)
    stops, places = host_stops(partial(passed, own, x, dy), setting)
    return not stops, f"the host waited {stops} times: {places}"


def twice(shape: tuple[int, ...], device: str) -> Found:
    """The same bits, run after run."""
    x, dy = data(shape, device, torch.bfloat16)
    one, other = (passed(made(shape, device, torch.float32, 2, Scope()), x, dy) for _ in range(2))
    same = all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    return same, "equal bits" if same else "bits differ"


def claims(setting: Setting, repeats: int, kernels: str) -> Iterator[Claim]:
    """All claims."""
    device = setting.device.type

    def summed(x: Tensor) -> Tensor:
        return 3 * x  # as of three ranks with the same samples

    yield claim("norm's kernels", partial(which, device, kernels))
    for shape in SHAPES[device]:
        name, few = f"norm {list(shape)}", (64, *shape[1:])
        yield claim(f"{name} bf16", partial(as_reference, few, device, torch.bfloat16, 2, Scope()))
        yield claim(f"{name} bits", partial(twice, few, device))
        yield claim(f"{name} host", partial(never_waits, few, setting))
        yield claim(f"{name} time", partial(beside_torch, shape, setting, repeats))
        yield claim(f"{name} kernels", partial(by_kernel, shape, device))
    small = {"4-d": (48, 16, 9, 9), "2-d": (48, 16), "1 px": (48, 16, 1, 1), "odd": (48, 37, 40, 30)}
    for dtype, (name, size) in product(CLOSE, small.items()):
        for views, scope in ((1, Scope()), (2, Scope()), (2, Scope(samples=6)), (2, Scope(summed))):
            groups = ", groups of 6" * bool(scope.samples) + ", ranks" * (scope.total is summed)
            work = partial(as_reference, size, device, dtype, views, scope)
            yield claim(f"norm {name} {dtype} {views} views{groups}", work)


def with_kernels(setting: Setting, repeats: int, kernels: str) -> Iterator[Claim]:
    """The claims, which are looked at while these kernels are chosen; on a CPU, their formulas."""
    forced = patch.object(norm_cuda, "TRITON_DEVICES", ("cuda",) if kernels == "triton" else ())
    with nullcontext() if setting.gpu else emulated(), forced:
        yield from claims(setting, repeats, kernels)


def main(words: Sequence[str]) -> int:
    """Run the part; 1 where a claim does not hold."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--kernels", choices=["triton", "torch"], default="triton")
    asked, rest = parser.parse_known_args(words)
    return run(partial(with_kernels, repeats=asked.repeats, kernels=asked.kernels), words=rest)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
