"""The script for GPUs runs on a CPU in small sizes, and keeps going whatever a part does."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import run
from tests.gpu.profiles import kind_of, uncovered
from tests.gpu.report import BARS, Bar, Report
from tests.gpu.run import PARTS, Part, Runner, selected

SCRIPT = Path(run.__file__).with_name("run.sh")
ROWS = {
    "a": ("Python", "numba compiles", "a JPEG is decoded"),
    "b": (
        "DINO's recipe, bf16",
        "mocov3, as on the CPU",
        "swav + rotation",
        "LARS",
        "batch norm, bfloat16",
        "photometry",
    ),
    "c": (
        "resnet50: our step, bf16",
        "resnet50: plain step",
        "resnet50: host stops",
        "vit_small: a step, profiled",
        "vit_small: kernels by kind",
    ),
    "d": ("vit_small: compiled blocks", "vit_small: our step, bf16, compiled"),
    "e": (
        "loader alone",
        "resnet50: fed from JPEG",
        "resnet50: idle share",
        "resnet50: ours against the plain loop with a PIL loader",
        "vit_small: ours against the plain loop with a PIL loader",
    ),
    "f": ("a run starts", "it is killed in the middle", "killed and resumed, the same bits and losses"),
    "g": ("ddp alone, float64: saves beside training", "ddp alone, float64: reads its own"),
}
"""What each part has to say, by the start of its rows."""


def ran(out: Path, parts: str) -> dict[str, Any]:
    """Run these parts on the CPU; they all hold, and each printed its rows. What results.json says."""
    words = ["device=cpu", f"python={sys.executable}", f"out={out}", f"part={parts}", "steps=2"]
    found = subprocess.run(["sh", str(SCRIPT), *words], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-4000:] + found.stderr[-2000:]
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    for letter in parts.split(","):
        printed = (out / f"{letter}.txt").read_text()
        for name in ROWS[letter]:
            assert any(line.startswith(name) for line in printed.splitlines()), f"{letter}: no row {name}"
        own = [row for row in results["rows"] if row["part"] == letter]
        assert {row["verdict"] for row in own} <= {"right", "proved", "seen", "SKIPPED"}
        assert printed in found.stdout
    return results


def test_the_shorter_parts_hold_on_a_cpu(tmp_path: Path) -> None:
    results = ran(tmp_path, "a,b,c,e")
    measured = {bar.key for bar in BARS if "vit_base" not in bar.key}
    assert measured <= results["measures"].keys()
    assert all(bar["seen"] is not None for bar in results["bars"] if "ViT-B" not in bar["name"])


@pytest.mark.chaos
def test_the_whole_script_holds_on_a_cpu(tmp_path: Path) -> None:
    ran(tmp_path, ",".join(PARTS))


def test_a_word_or_a_part_that_is_not_known_is_refused() -> None:
    for word in ("device", "prat=a", "part=x"):
        found = subprocess.run(
            ["sh", str(SCRIPT), "device=cpu", f"python={sys.executable}", word],
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 2
        assert "is not known" in found.stderr


FAKE = """
import subprocess, sys, time
print("first | right | a row before the fault", flush=True)
print("# stops_resnet50=0.0", flush=True)
{fault}
"""
FAULTS = {
    "crashes": "import os; os.abort()",
    "raises": "raise ValueError('no')",
    "hangs": "subprocess.Popen(['sleep', '987654'], start_new_session=True); time.sleep(600)",
    "lies": "print('second | WRONG | it is not so', flush=True); sys.exit(1)",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_part_does_stops_no_other_and_what_it_printed_counts(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, code in (("bad", FAULTS[fault]), ("good", "")):
        (tmp_path / f"{name}.py").write_text(FAKE.format(fault=code))
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    monkeypatch.setattr(run, "PARTS", {"a": Part("bad", 6, "bad"), "b": Part("good", 60, "good")})
    words = ["--device", "cuda", "--out", str(tmp_path / "out"), "--part", "a,b", "--limit", "66"]
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    start = time.monotonic()
    assert run.main() == 1
    assert time.monotonic() - start < 40
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    verdicts = [(row["part"], row["verdict"]) for row in results["rows"]]
    assert verdicts == [("a", "right"), ("a", "WRONG" if fault == "lies" else "FAILED"), ("b", "right")]
    assert "first | right" in (tmp_path / "out" / "b.txt").read_text()
    assert "1 WRONG" in capsys.readouterr().out if fault == "lies" else True
    assert not still_there("987654"), "a part that was killed left a process behind"


def test_parts_run_in_the_order_asked_with_what_they_name() -> None:
    found = selected("b:norms,f,c,e:resnet50+vit_base,d:vit_small", "resnet50")
    chosen = {"b": {"norms"}, "f": set(), "c": {"resnet50"}, "e": {"resnet50", "vit_base"}, "d": {"vit_small"}}
    assert (list(found), found) == (list("bfced"), chosen)
    processes = {letter: list(PARTS[letter].processes(names, apart=True)) for letter, names in found.items()}
    assert processes == {
        "b": [("norms", "")],
        "f": [("resuming", "")],
        "c": [("throughput", "resnet50")],
        "e": [("feeding", "resnet50+vit_base")],
        "d": [("compiled", "vit_small")],
    }
    assert list(PARTS["c"].processes(set(), apart=True)) == [("throughput", net) for net in PARTS["c"].subjects]
    assert list(PARTS["e"].processes(set(), apart=True)) == [("feeding", "")]
    assert list(PARTS["d"].processes({"vit_base"}, apart=True)) == []
    for words in (("ac", ""), ("c:resnet", ""), ("a:resnet50", ""), ("c", "vit")):
        with pytest.raises(ValueError, match="is not known"):
            selected(*words)


def test_what_a_part_does_not_need_those_after_it_get(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[float] = []
    now = [0.0]

    def ran(own: Runner, letter: str, script: str, subject: str, seconds: float) -> None:
        given.append(seconds)
        now[0] += 10

    monkeypatch.setattr(run.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(run, "PARTS", {name: Part(name, seconds, "") for name, seconds in (("x", 30), ("y", 90))})
    monkeypatch.setattr(Runner, "process", ran)
    asked = argparse.Namespace(device="cuda", steps=2, out=None, bars=False, limit=100.0, spent=20.0)
    runner = Runner(asked, {"x": set(), "y": set()}, tmp_path)
    for letter in "xy":
        runner.part(letter)
    assert given == [20, 70]


def still_there(word: str) -> bool:
    """Whether a process with this word in its command line runs."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in entry.read_bytes() and int(entry.parent.name) != os.getpid():
                return True
        except OSError:
            continue
    return False


def test_bars_are_judged_by_what_was_measured() -> None:
    at_least, most = Bar("", "c", "x", 3, 5), Bar("", "c", "x", 0.03, most=True)
    assert [at_least.verdict(value) for value in (None, float("nan"), 2.9, 3, 5)] == [
        *("not measured", "not measured", "MISSED", "reached", "star")
    ]
    assert [most.verdict(value) for value in (0.029, 0.031)] == ["reached", "MISSED"]
    report = Report("cuda")
    for line in (
        "# fed_resnet50=1300.0",
        "# against_plain_vit_small=6.5",
        "# stops_resnet50=nan",
        "a | b",
        "x | right | y | z",
    ):
        report.take("e", line)
    found = {bar.key: word for bar, _, word in report.bars({"e": set()})}
    assert found["against_plain_vit_small"] == "star"
    assert found["fed_resnet50"] == "reached"
    assert found["fed_vit_small"] == "not measured"
    assert {bar.key for bar, _, _ in report.bars({"e": {"vit_base"}, "c": {"resnet50"}})} == {
        *("fed_vit_base", "launches_resnet50", "stops_resnet50")
    }
    assert report.rows == [{"part": "e", "name": "x", "verdict": "right", "seen": "y | z"}]


def test_the_idle_share_is_what_no_kernel_covers() -> None:
    assert uncovered([(0, 4), (1, 2), (3, 5), (7, 10)]) == pytest.approx(0.2)
    assert uncovered([(0, 5), (5, 10)]) == 0
    assert uncovered([]) != uncovered([]), "nothing was measured"


KERNELS = {
    "batch norm": (
        "void at::native::batch_norm_collect_statistics_channels_last_kernel<at::native::InvStd, c10::BFloat16>",
        "norm_backward",
    ),
    "layer norm": ("void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float, false>(",),
    "copies, cat": (
        "void at::native::(anonymous namespace)::CatArrayBatchedCopy_alignedK_contig<at::native::(a",
        "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(at::TensorIterator",
        "void at::native::vectorized_elementwise_kernel<8, at::native::bfloat16_copy_kernel_cuda(at::Tensor",
        "Memcpy HtoD (Pinned -> Device)",
    ),
    "elementwise": (
        "void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add<c10::BFloat16>",
        "void at::native::vectorized_elementwise_kernel<8, at::native::GeluCUDAKernelImpl(at::TensorIteratorBase&, "
        "at::native::GeluType)::{lambda()#1}::operator()() const::{lambda(c10::BFloat16)#1}, std::array<char*, 2ul>>",
        "void at::native::elementwise_kernel<128, 4, at::native::gpu_kernel_impl_nocast<at::native::BUnaryFunctor<"
        "float, float, float, at::native::binary_internal::MulFunctor<float>>>(at::TensorIterator&)::{lambda(int)#1}>",
    ),
    "convolution, matmul": (
        "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64_warpgroup",
        "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816fprop_optimized_bf16_256x64_32x4",
        "nvjet_sm90_tst_192x192_64x4_1x2_h_bz_coopB_bias_TNN",
        "_ZN17cutlass__5x_cudnn6KernelINS_4conv6kernel23ImplicitGemmConvolutionINS1_11threadblock22",
    ),
    "attention": ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26_64x64x64_1x4x1_cga1x1x",),
    "pooling": ("void at::native::(anonymous namespace)::max_pool_backward_nhwc<c10::BFloat16, float>(",),
    "optimizer": ("void at::native::(anonymous namespace)::multi_tensor_apply_kernel<at::native::TensorListMetadata",),
    "reductions": ("void at::native::reduce_kernel<128, 4, at::native::ReduceOp<c10::BFloat16, at::native::func",),
    "compiled": ("triton_per_fused_native_layer_norm_0", "triton_poi_fused__to_copy_gelu_3"),
    "other": ("some_kernel",),
}


@pytest.mark.parametrize("kind", KERNELS)
def test_kernels_are_sorted_by_their_names(kind: str) -> None:
    assert {name: kind_of(name) for name in KERNELS[kind]} == dict.fromkeys(KERNELS[kind], kind)
