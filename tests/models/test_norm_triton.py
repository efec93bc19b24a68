"""Triton's kernels normalise as the reference does, in six launches, and compile for GPUs that are not here."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dist_ssl.models import norm_cuda
from tests.emulated_norms import emulated
from tests.interpreting import interpret
from tests.models.interpreted_norms import CASES, Case, results

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
NEAR = {torch.float32: 2e-6, torch.bfloat16: 2**-7}
"""Differences from double precision; the interpreter rounds to bfloat16 by cutting off."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the interpreter made of the cases."""
    return interpret("tests.models.interpreted_norms", tmp_path_factory.mktemp("interpreted"))


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "found.safetensors")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_equal_the_reference(found: dict[str, Tensor], case: Case) -> None:
    exact = results(case, torch.float64)
    for name, expected in exact.items():
        own = found[f"{case} {name}"]
        short = name in ("y", "dx")
        assert own.dtype == (case.dtype if short else torch.float32)
        allowed = NEAR[case.dtype if short else torch.float32] * max(float(expected.abs().max()), 1.0)
        if name in ("y", "dx", "dw") and abs(case.far) > 1:  # a mean is rounded to single precision: moves x - mean
            weights = exact["db"] if name == "dw" else expected
            allowed += abs(case.far) * 2**-24 * max(float(weights.abs().max()), 1.0) * 2
        apart = (own.double() - expected).abs().max()
        assert apart <= allowed, f"{name}: {apart:.2e} > {allowed:.2e}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_all_groups_take_three_launches_forward_and_three_backward(folder: Path, case: Case) -> None:
    launches = json.loads((folder / "launches.json").read_text())[str(case)]
    forward = ["block_moments", "merge_moments", "normalise_block"]
    backward = ["block_sums", "merge_sums", "gradient_block"]
    assert sorted(launches) == sorted((forward + backward) * max(len(case.cuts), 1))


def test_a_group_has_the_same_bits_in_every_batch(found: dict[str, Tensor]) -> None:
    for name in ("y", "dx"):
        assert torch.equal(found[f"whole {name}"], found[f"alone {name}"])


@pytest.mark.parametrize(
    ("rows", "channels"), [(256 * 112 * 112, 64), (256 * 49, 2048), (256, 4096), (1, 1), (10**8, 64), (512 * 3136, 96)]
)
def test_rows_are_cut_into_enough_blocks_and_not_too_many(rows: int, channels: int) -> None:
    from dist_ssl.models import norm_triton as host

    span, blocks, form = host._blocks(rows, channels)
    assert (blocks - 1) * span < rows <= blocks * span
    assert blocks <= host._padded(blocks) <= host.PROGRAMS
    programs = blocks * -(-channels // form["width"])
    assert programs >= min(700, rows * channels / (8192 * 2)), programs
    assert channels % form["width"] == 0 or channels % 32


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("short", ["bf16", "fp32"])
@pytest.mark.parametrize(("channels", "width"), [(64, 64), (2048, 128), (5, 8)])
def test_kernels_compile_for_gpus(
    capability: int, short: str, channels: int, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dist_ssl.models import norm_kernels as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    sums, pass_ = ({"height": tiles * 2048 // width, "width": width} for tiles in (1, 2))
    for function, sizes, warps in (
        (kernels.block_moments, sums, 4),
        (kernels.merge_moments, {"size": 1024}, 8),
        (kernels.normalise_block, pass_ | {"affine": True}, 4),
        (kernels.block_sums, sums, 4),
        (kernels.merge_sums, {"size": 1024}, 8),
        (kernels.gradient_block, pass_ | {"affine": True}, 4),
    ):
        made = compiled(function, sizes, short, capability, aligned=channels % 16 == 0, warps=warps)
        assert made.asm["cubin"]
        if "width" in sizes and channels != 5:
            assert "ld.global.v4" in made.asm["ptx"]  # 16 bytes a thread


def compiled(function: Any, sizes: dict[str, Any], short: str, capability: int, aligned: bool, warps: int) -> Any:
    """The kernel for a GPU, with pointers and, where they are, channels that 16 divides."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    whole = {"rows": "i32", "span": "i32", "blocks": "i32", "groups": "i32", "channels": "i32"}
    kinds = {**whole, "eps": "fp32", "count": "fp32", **dict.fromkeys(("x", "dy", "out", "dx"), f"*{short}")}
    signature = {n: "constexpr" if n in sizes else kinds.get(n, "*fp32") for n in function.arg_names}
    even = [
        i for i, n in enumerate(function.arg_names) if signature[n].startswith("*") or (n == "channels" and aligned)
    ]
    source = ASTSource(
        fn=function,
        signature=signature,
        constexprs={(function.arg_names.index(name),): value for name, value in sizes.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in even},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})


def test_where_kernels_do_not_run_that_is_said_and_torch_does_the_work(caplog: pytest.LogCaptureFixture) -> None:
    from dist_ssl.models.norm_triton import usable

    assert not usable(torch.device("cpu"))
    assert "without Triton's kernels" in caplog.text


def test_other_layouts_and_devices_stay_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm_cuda, "_has_triton", lambda _: True)
    x = torch.zeros(4, 5, 3, 3)
    with emulated():
        assert not norm_cuda.by_triton(x.to(memory_format=torch.channels_last))
    monkeypatch.setattr(norm_cuda, "TRITON_DEVICES", ("cpu",))
    assert norm_cuda.by_triton(x.to(memory_format=torch.channels_last))
    assert norm_cuda.by_triton(x[:, :, 0, 0].contiguous())
    assert not norm_cuda.by_triton(x)
    assert not norm_cuda.by_triton(x[..., 0].contiguous())
    assert not norm_cuda.by_triton(x[:0, :, 0, 0])
