"""Freed memory: what a step has freed is there for the next one, without the system's help."""

import ctypes
import subprocess
import sys

import pytest

from dist_ssl.runtime.freed_memory import keep_freed_memory

FAULTS = """
import resource, sys
import torch
from dist_ssl.runtime.freed_memory import keep_freed_memory

def step():
    tensors = [torch.ones(5 << 18) for _ in range(12)]  # 5 MiB each
    del tensors

if sys.argv[1] == "kept":
    assert keep_freed_memory()
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt")


def faults(mode: str) -> int:
    """Return how many pages were mapped in 20 steps of 60 MiB, which has 15,360 pages."""
    done = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_a_step_reuses_the_pages_of_the_one_before() -> None:
    assert faults("kept") < 1_000 < faults("usual")


def test_it_says_whether_the_library_offers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    assert not keep_freed_memory()
