"""The benchmark of a step runs: its plain loop makes the run's loss, and every part of a step is charged."""

from pathlib import Path

import pytest
import torch

from tests.benchmarks import step
from tests.benchmarks.plain_step import PLAIN

SMALL = ["encoder.width=4", "method.hidden=16", "method.dim=8", "schedule.image_size=16", "batch_size=12"]
SMALL += ["lanes=12", "window=8", "data.source=null"]


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_step_has_the_loss_of_ours_and_every_part_is_charged(
    demo_shards: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(step, "WARM", 1)
    found = step.one(name, 2, torch.contiguous_format, [*SMALL, f"data.path={demo_shards}"])
    assert len(found.plain()) == 2
    assert {step.ENCODER, step.HEADS, *step.AROUND} <= found.shares().keys()
