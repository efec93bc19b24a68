"""Runs the cases of `test_norm_triton.py` by Triton's interpreter, which is chosen when Triton is imported.

    TRITON_INTERPRET=1 python -m tests.models.interpreted_norms FOLDER

FOLDER then holds what each case came to, `found.safetensors`, and the kernels that it started, `launches.json`.
"""

import json
import sys
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from safetensors.torch import save_file
from torch import Tensor

from dist_ssl.models import norm, norm_cuda
from dist_ssl.models.norm import BatchNorm, Scope
from tests.models.test_norm_cuda import Ranks

EPS, MOMENTUM = 1e-3, 0.3
SINGLE, SHORT = torch.float32, torch.bfloat16
NAMES = ("y", "dx", "dw", "db", "mean", "var")


class Case(NamedTuple):
    """A batch norm of one input. `far`: how many standard deviations the means are from zero."""

    shape: tuple[int, ...]
    dtype: torch.dtype = SINGLE
    views: int = 1
    samples: int | None = None
    affine: bool = True
    far: float = 1.0
    cuts: tuple[int, ...] = ()
    """Samples of a view on each rank; none: one rank."""

    def __str__(self) -> str:
        parts = ["x".join(map(str, self.shape)), str(self.dtype).removeprefix("torch."), f"{self.views} views"]
        parts += [f"groups of {self.samples}"] * (self.samples is not None) + ["plain"] * (not self.affine)
        return " ".join([*parts, f"far {self.far:g}", *map(str, self.cuts)])

    def data(self, seed: int) -> Tensor:
        """Channels with means and standard deviations of their own, as the precision can hold them."""
        generator = torch.Generator().manual_seed(seed)
        channels = self.shape[1]
        one = torch.arange(channels).view(1, -1, *[1] * (len(self.shape) - 2)) / channels
        spread = 0.5 + one
        x = torch.randn(self.shape, generator=generator) * spread + (self.far * spread if seed == 0 else one)
        layout = torch.channels_last if len(self.shape) == 4 else torch.contiguous_format
        return x.to(self.dtype).contiguous(memory_format=layout)

    def share(self, of: Tensor, rank: int) -> Tensor:
        """A rank's samples of all views."""
        return torch.cat([view.split(self.cuts)[rank] for view in of.chunk(self.views)]) if self.cuts else of

    def made(self, dtype: torch.dtype, scope: Scope | None = None) -> BatchNorm:
        """A norm whose weights and statistics are not those of the start."""
        own = BatchNorm(self.shape[1], eps=EPS, momentum=MOMENTUM, affine=self.affine)
        generator = torch.Generator().manual_seed(3)
        for value in own.state_dict().values():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        own.views, own.scope = self.views, scope or Scope(samples=self.samples)
        return own.to(dtype)


CASES = [
    *(
        Case(shape, dtype, views, samples, affine)
        for shape in ((24, 5), (24, 5, 4, 3), (24, 48, 1, 1))
        for dtype in (SINGLE, SHORT)
        for views, samples, affine in ((1, None, True), (2, None, False), (2, 6, True))
    ),
    *(Case((12, channels, 3, 5), SINGLE, 2) for channels in (1, 16, 96, 129, 320)),
    Case((2, 5), SINGLE, 2),  # one row a group: the variance is zero
    *(Case((8, 64, 9, 9), dtype, 2, far=far) for dtype in (SINGLE, SHORT) for far in (0, 100, -100)),
    *(Case((6, 5, 33, 31), dtype, 2, far=100) for dtype in (SINGLE, SHORT)),  # several blocks, the last one short
    Case((2, 256, 257, 4), SINGLE, 1, far=10),
    *(Case((48, 5, 4, 3), dtype, 2, cuts=cuts) for dtype in (SINGLE, SHORT) for cuts in ((12, 12), (3, 21))),
]
FIRST = Case((8, 64, 9, 9), SINGLE, 2)
"""A case whose groups are also normalised alone, for their bits."""


def passed(own: BatchNorm, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    """Output, all gradients, running statistics."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = own(x)
    y.backward(dy.to(y.dtype))
    norm.update_running_statistics(own)
    assert x.grad is not None
    assert x.grad.stride() == y.stride() == x.stride()
    parameters = [p.grad for p in own.parameters()]
    values = [y.detach(), x.grad, *parameters, *own.buffers()]
    return dict(zip(NAMES if parameters else NAMES[:2] + NAMES[4:], values, strict=True))


def results(case: Case, dtype: torch.dtype) -> dict[str, Tensor]:
    """The case with its statistics in a precision; of several ranks the whole job's numbers, put together again."""
    x, dy = (case.data(seed).to(dtype) if dtype == torch.float64 else case.data(seed) for seed in (0, 1))
    if not case.cuts or dtype == torch.float64:
        return passed(case.made(dtype), x, dy)
    ranks = Ranks(len(case.cuts))
    norms = [case.made(dtype, Scope(partial(ranks.add, rank))) for rank in range(len(case.cuts))]
    work = [partial(passed, own, case.share(x, r), case.share(dy, r)) for r, own in enumerate(norms)]
    shares = ranks.run(work)
    found = {name: torch.stack([share[name] for share in shares]).sum(0) for name in ("dw", "db")}
    for name in ("y", "dx"):
        views = [share[name].chunk(case.views) for share in shares]
        found[name] = torch.cat([torch.cat([own[view] for own in views]) for view in range(case.views)])
    return found | {name: shares[-1][name] for name in ("mean", "var")}


def main(folder: Path) -> None:
    """Run all cases."""
    from dist_ssl.models import norm_triton

    found: dict[str, Tensor] = {}
    launches: dict[str, list[str]] = {}
    started: list[str] = []
    start, one_at_a_time = norm_triton.launch, Lock()

    def launch(function: Any, programs: tuple[int, int], *given: Any, **sizes: Any) -> None:
        with one_at_a_time:  # the interpreter keeps the number of the program for the whole process
            started.append(function.fn.__name__)
            start(function, programs, *given, **sizes)

    with (
        patch.object(norm_cuda, "DEVICES", ("cpu",)),
        patch.object(norm_cuda, "TRITON_DEVICES", ("cpu",)),
        patch.object(norm_triton, "launch", launch),
    ):
        assert norm_triton.usable(torch.device("cpu"))
        for case in CASES:
            started.clear()
            found |= {f"{case} {name}": value.contiguous() for name, value in results(case, SINGLE).items()}
            launches[str(case)] = list(started)
        x, dy = FIRST.data(0), FIRST.data(1)
        whole = passed(FIRST.made(SINGLE), x, dy)
        halves = zip(x.chunk(2), dy.chunk(2), strict=True)
        alone = [passed(FIRST._replace(views=1).made(SINGLE), *pair) for pair in halves]
        for name in ("y", "dx"):
            found |= {f"whole {name}": whole[name], f"alone {name}": torch.cat([one[name] for one in alone])}
    save_file({name: value.contiguous() for name, value in found.items()}, folder / "found.safetensors")
    (folder / "launches.json").write_text(json.dumps(launches))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
