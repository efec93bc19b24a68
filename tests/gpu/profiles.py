"""Profiles of work on a GPU: its launches, its kernels, the time of every kind of kernel, and what share it is idle."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]

from tests.gpu.rows import Setting

ROWS, NAME_LENGTH = 15, 100
"""Of what is printed."""
NOISE = re.compile(r"^void |at::native::|\(anonymous namespace\)::|at::cuda::|c10::")
"""What C++ names of kernels have in common."""
KINDS = (
    ("compiled", r"^triton_"),
    ("optimizer", r"multi_tensor|fused_?adam|foreach"),
    ("layer norm", r"layer_?norm|gammabeta"),
    ("batch norm", r"batch_?norm|bn_|(^|_)norm(s|ed|_|$)|moments"),
    ("attention", r"sdpa|flash|fmha|attention"),
    ("copies, cat", r"catarray|copy|memcpy|memset|fillfunctor"),
    ("pooling", r"pool"),
    ("convolution, matmul", r"gemm|nvjet|cutlass|cudnn|conv|xmma|[wd]grad|fprop|splitk|gemv|sm\d\d_"),
    ("softmax, loss", r"softmax|cross_entropy|nll"),
    ("reductions", r"reduce"),
    ("elementwise", r"elementwise|pointwise|gelu|relu|functor"),
)
"""Kinds of kernels with what their names contain; the first that fits counts."""


def kind_of(name: str) -> str:
    """Return the kind of a kernel."""
    plain = NOISE.sub("", name).lower()
    return next((kind for kind, pattern in KINDS if re.search(pattern, plain)), "other")


@dataclass(frozen=True)
class Profile:
    """What the work does, once: launches, copies, and the milliseconds and number of runs of each kernel."""

    launches: float
    copies: float
    kernels: Sequence[tuple[str, float, float]]

    @property
    def milliseconds(self) -> float:
        """The time of all kernels."""
        return sum(time for _, time, _ in self.kernels)

    @property
    def by_kind(self) -> str:
        """The time of every kind of kernel, the longest first."""
        kinds: dict[str, tuple[float, float]] = {}
        for name, time, count in self.kernels:
            before = kinds.get(kind_of(name), (0.0, 0.0))
            kinds[kind_of(name)] = before[0] + time, before[1] + count
        longest = sorted(kinds.items(), key=lambda item: -item[1][0])
        return ", ".join(f"{kind} {time:.1f} ms ({count:.0f} x)" for kind, (time, count) in longest)

    def print(self) -> None:
        """Print the kernels that take longest."""
        for name, time, count in self.kernels[:ROWS]:
            print(f"    {time:9.2f} ms {count:7.0f} x {NOISE.sub('', name)[:NAME_LENGTH]}", flush=True)


def profile(work: Callable[[], Any], setting: Setting, times: int = 3) -> Profile:
    """Print the kernels that take longest in the work, and return what it does once."""
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CPU, *([activity.CUDA] if setting.gpu else [])]) as profiler:
        for _ in range(times):
            work()
        setting.wait()
    found: list[Any] = list(profiler.key_averages())
    if setting.gpu:
        taken = [(own_device_time(e), e) for e in found if e.device_type == DeviceType.CUDA and not annotation(e)]
    else:
        taken = [(float(e.self_cpu_time_total), e) for e in found]
    taken.sort(key=lambda pair: -pair[0])

    def calls(*names: str) -> float:
        return float(sum(e.count for e in found if e.key.startswith(names))) / times

    told = Profile(
        launches=calls("cudaLaunch", "cuLaunch") if setting.gpu else calls("aten::"),
        copies=calls("cudaMemcpy", "cudaMemset"),
        kernels=[(str(e.key), micros / 1e3 / times, e.count / times) for micros, e in taken],
    )
    told.print()
    return told


def own_device_time(event: Any) -> float:
    """Microseconds of a kernel, which versions of torch name differently."""
    taken: float = getattr(event, "self_device_time_total", 0.0) or getattr(event, "self_cuda_time_total", 0.0)
    return taken


def annotation(event: Any) -> bool:
    """Whether this is no kernel, but the time between the first and the last kernel of a named stretch of code."""
    name = str(getattr(event, "key", "") or getattr(event, "name", ""))
    return bool(getattr(event, "is_user_annotation", False)) or name.startswith(("Optimizer.", "ProfilerStep", "## "))


def idle_share(work: Callable[[], Any], setting: Setting, times: int = 10) -> float:
    """The share of the time in which no kernel runs while the work is done so often; copies count as idleness."""
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CUDA if setting.gpu else activity.CPU]) as profiler:
        for _ in range(times):
            work()
        setting.wait()
    wanted = DeviceType.CUDA if setting.gpu else DeviceType.CPU
    events: Iterable[Any] = profiler.events() or []
    kernels = (e for e in events if e.device_type == wanted and not annotation(e))
    spans = sorted((e.time_range.start, e.time_range.end) for e in kernels if not e.name.startswith("Mem"))
    return uncovered(spans)


def uncovered(spans: list[tuple[float, float]]) -> float:
    """The share of the time from the first start to the last end in which none of these spans, in order, runs."""
    if not spans:
        return math.nan
    busy, reached = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return 1 - busy / (reached - spans[0][0])
