"""Part a: what the machine has, and the two things of it that nothing else can be tried without.

    python tests/gpu/machine.py [--device cpu] [--seconds 15]

Versions; whether numba compiles; whether host memory can be pinned, copied from and given back, and whether a refusal
to pin leaves an error behind.
"""

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dist_ssl.runtime.own_cores import own_cores
from tests.gpu.rows import Claim, Row, Setting, judged, leave, main, seen

PACKAGES = (
    *("torch", "torchvision", "triton", "timm", "numpy", "numba", "simplejpeg", "pillow", "hydra-core", "omegaconf"),
    *("safetensors", "xxhash", "psutil", "submitit", "prometheus-client", "deepspeed"),
)


def installed(name: str) -> str:
    """The version of a package."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"no {name}"


def versions(setting: Setting) -> Iterator[Row]:
    """Python, packages, card, cores, memory and disk."""
    yield seen("Python", f"{platform.python_version()} on {platform.machine()}, {platform.release()}")
    yield seen("packages", ", ".join(map(installed, PACKAGES)))
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    room = shutil.disk_usage(tempfile.gettempdir()).free
    cores = own_cores()
    yield seen("host", f"{cores} cores, {pages / 2**30:.0f} GiB of memory, {room / 2**30:.0f} GiB of scratch")
    if setting.gpu:
        card = torch.cuda.get_device_properties(0)
        count = torch.cuda.device_count()
        known = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        yield seen("GPU", f"{count} x {card.name}, {card.total_memory / 2**30:.0f} GiB, {known}")


def numba_compiles() -> Iterator[Row]:
    """A loop over threads that gives the right numbers."""
    import numba

    def twice(x: Any) -> Any:
        out = np.empty_like(x)
        for n in numba.prange(len(x)):
            out[n] = 2 * x[n]
        return out

    doubled = numba.njit(parallel=True)(twice)
    start, x = time.perf_counter(), np.arange(1000.0)
    right = bool((doubled(x) == 2 * x).all())
    layer = getattr(numba, "threading_layer", lambda: "unknown")()
    yield judged("numba compiles", right, f"{time.perf_counter() - start:.1f} s, threads by {layer}")


def one_image() -> Iterator[Row]:
    """A JPEG is drawn and decoded by the loader's own code."""
    from dist_ssl.data.images.decode import decode
    from tests.gpu.pictures import drawn_jpeg

    data = drawn_jpeg(0)
    shape = decode(data, 375).pixels.shape
    yield judged("a JPEG is decoded", shape == (375, 500, 3), f"{len(data) / 1000:.0f} kB, {shape}")


def pinned(setting: Setting) -> Iterator[Row]:
    """Memory that two processes could share is pinned, copied from and given back; a refusal leaves no error behind."""
    from dist_ssl.data.loader.loader_process import pin, unpin
    from dist_ssl.data.loader.shared_buffers import mapped, new_memory

    shape = (512, 224, 224, 3)
    handle = new_memory(int(np.prod(shape)))
    arrays = mapped(handle, [shape])
    os.close(handle)
    arrays[0][:] = 7
    rates = []
    for lock in (False, True):
        if lock:
            yield judged("host memory is pinned", bool(pin(arrays)), f"{arrays[0].nbytes / 1e6:.0f} MB")
            again = pin(arrays)
            torch.ones(1, device=setting.device).add_(1)
            yield judged("a refusal to pin leaves no error behind", not again, f"pinned twice: {again}")
        start = setting.wait()
        there = [torch.from_numpy(arrays[0]).to(setting.device) for _ in range(3)]
        rates.append(3 * arrays[0].nbytes / (setting.wait() - start) / 1e9)
    right = bool((there[-1] == 7).all())
    yield judged("copies of pinned memory", right, f"{rates[1]:.1f} GB/s, not pinned {rates[0]:.1f} GB/s")
    unpin(arrays)
    unpin(arrays)  # a second time: CUDA refuses, and the next kernel must not know
    value = float(torch.ones(1, device=setting.device).add_(1))
    yield judged("pinned memory is given back", value == 2, "also where it was not pinned any more")


def claims(setting: Setting) -> Iterable[Claim]:
    """All of this part."""
    yield "versions", lambda: versions(setting)
    yield "numba compiles", numba_compiles
    yield "a JPEG is decoded", one_image
    if setting.gpu:
        yield "host memory is pinned", lambda: pinned(setting)


if __name__ == "__main__":
    leave(main(claims))
