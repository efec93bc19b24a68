"""Training computes the same without torch's compiler, which is loaded as soon as something needs it."""

import os
import subprocess
import sys

import pytest

from launch.run_dir import PROJECT

TRAINED = """
import sys, tempfile, torch
from torch import nn
if sys.argv[1] == "deferred":
    from dist_ssl.runtime.deferred_compiler import Deferred, defer_compiler
    defer_compiler()
torch.distributed.init_process_group("gloo", init_method=f"file://{tempfile.mkdtemp()}/x", rank=0, world_size=1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
wrapped = nn.parallel.DistributedDataParallel(model)
for make in (lambda p: torch.optim.AdamW(p, fused=True), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)):
    optimizer = make(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        wrapped(torch.randn(8, 5)).square().mean().backward()
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
torch.distributed.destroy_process_group()
print(torch.cat([p.detach().flatten() for p in model.parameters()]).numpy().tobytes().hex())
if sys.argv[1] == "deferred":
    assert isinstance(sys.modules["torch._dynamo"], Deferred), "the compiler was loaded"
"""
NEEDED = """
import os, sys, torch, traceback
from dist_ssl.runtime.deferred_compiler import Deferred, defer_compiler
defer_compiler()
optimizer = torch.optim.SGD([torch.zeros(2, requires_grad=True)], lr=0.1)
optimizer.step()
assert not hasattr(sys.modules["torch._dynamo"], "__file__")
assert isinstance(sys.modules["torch._dynamo"], Deferred)

def needed(use):
    exec(use)
    assert not isinstance(sys.modules["torch._dynamo"], Deferred)
    assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(3)).tolist() == [2, 2, 2]
    optimizer.step()
    defer_compiler()
    assert not isinstance(sys.modules["torch._dynamo"], Deferred), "it stays"

for use in sys.argv[1:]:
    if os.fork() == 0:  # none of the processes has loaded it before
        try:
            needed(use)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
USES = {
    "compile": "torch.compile(lambda x: x + 1, backend='eager')(torch.ones(3))",
    "attribute": "torch._dynamo.config.recompile_limit",
    "submodule": "import torch._dynamo.config as config; config.recompile_limit",
    "function of a known part": "torch._dynamo.utils.counters",
    "name": "from torch._dynamo import reset; reset()",
}


def ran(program: str, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_training_has_the_same_bits_without_the_compiler() -> None:
    assert ran(TRAINED, "deferred") == ran(TRAINED, "usual")


@pytest.fixture(scope="module")
def codes() -> dict[str, str]:
    """The exit codes of processes that use the compiler in some way; all are forked from one that has deferred it."""
    return dict(zip(USES, ran(NEEDED, *USES.values()).split(), strict=True))


@pytest.mark.parametrize("use", list(USES))
def test_any_other_use_loads_the_compiler(use: str, codes: dict[str, str]) -> None:
    assert codes[use] == "0"
