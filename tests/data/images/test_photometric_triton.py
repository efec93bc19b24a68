"""The kernels colour as the reference does, move as few bytes as they say, and compile for GPUs that are not here."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dist_ssl.core.draws import Draws
from dist_ssl.data.images import photometric
from dist_ssl.data.images.colour_constants import CONTRAST
from dist_ssl.data.images.host_to_device import send
from dist_ssl.data.images.photometric import SOLARIZE_FROM, Photometry
from tests.data.images.interpreted import CASES, COUNT, FULL, MEAN, PART, RECIPES, STD, Case
from tests.interpreting import interpret

ROOT = Path(__file__).parents[3]
needs_triton = pytest.mark.skipif(photometric.find_spec("triton") is None, reason="Triton is not installed")
NEAR = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""Differences from double precision, of values up to 2.6; the interpreter rounds to bfloat16 by cutting off."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the interpreter made of the cases."""
    return interpret("tests.data.images.interpreted", tmp_path_factory.mktemp("interpreted"))


def reference(case: Case) -> Tensor:
    """The view in double precision, by torch's operations."""
    there = photometric._there([case.looks], torch.device("cpu"))[0]
    return case.photometry.change(case.pixels(), case.looks, there, torch.float64)


def at_threshold(view: Tensor) -> Tensor:
    """Where a pixel may have been solarized or not, as rounding had it."""
    mean, std = (torch.tensor(v, dtype=view.dtype).view(1, 3, 1, 1) for v in (MEAN, STD))
    return ((view * std + mean - 0.5).abs() - (SOLARIZE_FROM - 0.5)).abs() < 1e-5


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_equal_the_reference(folder: Path, case: Case) -> None:
    own, wanted = load_file(folder / "views.safetensors")[str(case)], reference(case)
    assert own.dtype == case.dtype
    apart = (own.double() - wanted).abs()
    if RECIPES[case.recipe].solarize_p:
        apart = torch.where(at_threshold(wanted), 0, apart)
    allowed = NEAR[case.dtype] * (1 if case.dtype == torch.float32 else wanted.abs().clamp_min(1))
    assert bool((apart <= allowed).all()), f"{apart.max():.2e}"


@needs_triton
def test_no_sample_depends_on_the_others_of_its_batch(folder: Path) -> None:
    views = load_file(folder / "views.safetensors")
    assert torch.equal(views["part"], views["all 33 float32"][PART])
    assert views["empty"].shape == (0, 3, 33, 33)


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_launches_move_the_bytes_that_are_counted_and_no_more(folder: Path, case: Case) -> None:
    from dist_ssl.data.images.photometric_triton import traffic

    launches = json.loads((folder / "launches.json").read_text())[str(case)]
    looks = case.looks
    contrasted, blurred = int((looks.order == CONTRAST).any(1).sum()), int((looks.sigma > 0).sum())
    assert len(launches) == 1 + (contrasted > 0) + 2 * (blurred > 0)
    counted = traffic(COUNT, case.side, contrasted, blurred, case.dtype)
    table = len(launches) * COUNT * 100  # what is known of each sample, and partial sums
    assert counted <= sum(launches) <= counted + table


@needs_triton
def test_two_views_of_mocov3_move_a_small_part_of_40_mb_an_image() -> None:
    from dist_ssl.data.images.photometric_triton import traffic

    # four of five samples are jittered; the first view is always blurred, the second one hardly ever
    views = [traffic(1000, 224, 800, blurred, torch.bfloat16) for blurred in (1000, 100)]
    assert sum(views) / 1000 < 5e6
    assert 2 * traffic(1000, 224, 800, 500, torch.float32) / 1000 < 5e6


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("out", ["bf16", "fp32"])
def test_kernels_compile_for_gpus(capability: int, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from dist_ssl.data.images import photometric_triton as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    sizes, single = {"size": kernels.PIXELS, "partials": 64}, {"side": "i32", "blocks": "i32"}
    pointers = {"pixels": "*u8", "rows": "*i32", "out": f"*{out}"}
    for function, chosen in (
        (kernels.lumas, {}),
        (kernels.colours, {}),
        (kernels.blurs, {"along_rows": True}),
        (kernels.blurs, {"along_rows": False}),
    ):
        constants = {name: value for name, value in (sizes | chosen).items() if name in function.arg_names}
        kinds = {n: "constexpr" if n in constants else (single | pointers).get(n, "*fp32") for n in function.arg_names}
        if chosen.get("along_rows"):
            kinds["out"] = "*fp32"
        constants = {(function.arg_names.index(name),): value for name, value in constants.items()}
        source = ASTSource(fn=function, signature=kinds, constexprs=constants)
        assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]


@needs_triton
def test_where_kernels_do_not_run_that_is_said_and_torch_does_the_work(caplog: pytest.LogCaptureFixture) -> None:
    from dist_ssl.data.images.photometric_triton import usable

    assert not usable(torch.device("cpu"))
    assert "coloured without Triton's kernels" in caplog.text


def test_the_reference_rounds_to_a_short_type_once() -> None:
    case = Case("all", 33, torch.bfloat16)
    there = photometric._there([case.looks], torch.device("cpu"))[0]
    short, single = (
        case.photometry.change(case.pixels(), case.looks, there, dtype) for dtype in (case.dtype, torch.float32)
    )
    assert torch.equal(short, single.to(case.dtype))
    assert short.is_contiguous(memory_format=torch.channels_last)


class Copies(TorchDispatchMode):
    """Counts copies from the host to another device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), options: Any = None) -> Any:
        found = function(*given, **(options or {}))
        hosts = [x for x in given if isinstance(x, Tensor) and x.device.type == "cpu" and x.ndim]
        self.count += bool(hosts) and isinstance(found, Tensor) and found.device.type != "cpu"
        return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_reference_reaches_a_device_in_one_copy(dtype: torch.dtype) -> None:
    changes = [Photometry(FULL, slot, MEAN, STD) for slot in range(2)]
    views = [torch.empty(64, 32, 32, 3, dtype=torch.uint8, device="meta") for _ in changes]
    with Copies() as copies:
        found = photometric.colour(changes, views, np.arange(64), Draws(0), dtype)
    assert [view.shape for view in found] == [(64, 3, 32, 32)] * 2
    assert copies.count == 1


def test_arrays_that_are_sent_together_arrive_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = [np.arange(5), np.array([True, False]), np.float32(2.5) * np.ones((3, 2)), np.zeros(0, np.float32)]
    arrays.append(np.arange(12, dtype=np.int16).reshape(3, 4).T)

    class Far:
        """Takes the way to another device, and is this one."""

        type = "far"

    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, non_blocking: self)
    for sent, array in zip(send(arrays, Far()), arrays, strict=True):  # type: ignore[arg-type]
        assert np.array_equal(sent.numpy(), array)
        assert sent.numpy().dtype == array.dtype
