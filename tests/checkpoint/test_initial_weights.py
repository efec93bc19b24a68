"""Every rank of every engine starts from the very weights of the run's file, which nobody can exchange unnoticed."""

import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from dist_ssl.checkpoint.initial_weights import start_from, verified
from dist_ssl.distributed.world import World
from dist_ssl.errors import CheckpointError
from dist_ssl.models.encoders import TinyResNet
from dist_ssl.protocols.engine import Piece
from tests.engines.jobs import forget_worlds
from tests.jobs import small_config, small_job
from tests.ranks import Ranks
from tests.test_saved_encoder import shaken

OF_ENCODERS = re.compile(r"model/(student|teacher)\.encoder\.(.+)")


def written(encoder: nn.Module, folder: Path) -> tuple[Path, str]:
    """The file of an encoder's weights, and its hash."""
    state = {name: x for name, x in encoder.state_dict().items() if not name.endswith("num_batches_tracked")}
    content = save(state, {"format": "pt"})
    (folder / "init.safetensors").write_bytes(content)
    return folder / "init.safetensors", sha256(content).hexdigest()


def test_an_encoder_gets_all_weights_of_the_file(tmp_path: Path) -> None:
    source = shaken(TinyResNet(4))
    own = TinyResNet(4)
    start_from(own, *written(source, tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(own.state_dict().values(), source.state_dict().values(), strict=True))


def test_another_file_is_refused(tmp_path: Path) -> None:
    file, own = written(shaken(TinyResNet(4)), tmp_path)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"init\.safetensors is not what the run began with: its sha256 is "):
        verified(file, own)
    with pytest.raises(CheckpointError, match="init_sha256 is None"):
        verified(file, None)
    file.unlink()
    with pytest.raises(CheckpointError, match="the initial weights of the run, cannot be read: No such file"):
        verified(file, own)
    file.mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        verified(file, own)


def test_weights_of_another_encoder_are_refused(tmp_path: Path) -> None:
    bare = nn.Sequential(TinyResNet(4).stem)
    for other, wrong in (
        (TinyResNet(5), "stages.0.conv1.weight"),
        (bare, "0.0.weight"),
        (nn.Identity(), "stages.0.conv1"),
    ):
        message = rf"init\.safetensors does not fit the encoder: '{wrong}\S* is missing, unknown or of another shape"
        with pytest.raises(CheckpointError, match=message):
            start_from(TinyResNet(4), *written(other, tmp_path))


def initial_state(world: World, config: dict[str, Any], folder: Path) -> tuple[int, dict[str, Tensor]]:
    """How many elements of encoders this rank holds, all as in the file; and the other weights that it has whole."""
    if config["engine"]["_target_"].endswith("DeepSpeed"):
        forget_worlds()
    job = small_job(world, config, folder)
    expected = load_file(folder / "init.safetensors")
    count, others = 0, {}
    for name, value in job.engine.state().items():
        own = value.tensor.flatten() if isinstance(value, Piece) else value.flatten()
        first = value.start if isinstance(value, Piece) else 0
        if place := OF_ENCODERS.fullmatch(name):
            assert torch.equal(own, expected[place[2]].flatten()[first : first + len(own)]), name
            count += len(own)
        elif not isinstance(value, Piece):
            others[name] = value.clone()
    job.stream.close()
    job.ledger.close()
    return count, others


@pytest.mark.parametrize(
    ("engine", "sharded"),
    [(("engine=ddp",), False), (("engine=fsdp", "engine.block_parameters=500"), True),
     (("engine=deepspeed", "engine.stage=3"), True)],
    ids=["ddp", "fsdp", "deepspeed"],
)  # fmt: skip
def test_every_rank_of_every_engine_has_the_same_weights(
    engine: tuple[str, ...], sharded: bool, demo_shards: Path, tmp_path: Path, ranks: Ranks
) -> None:
    file, own = written(shaken(TinyResNet(4)), tmp_path)
    config = small_config(demo_shards, "method=mocov3", f"init={file}", f"init_sha256={own}", *engine)
    whole = 2 * sum(x.numel() for x in load_file(file).values())
    (alone,) = ranks.run(initial_state, 1, config, tmp_path)
    assert alone[0] == whole, "student and teacher"
    two = ranks.run(initial_state, 2, config, tmp_path)
    parts = sum(x.numel() for name, x in load_file(file).items() if "running" not in name)
    assert sum(count for count, _ in two) == (2 * whole - 2 * parts if sharded else 2 * whole)
    for _, others in two:
        assert others.keys() <= alone[1].keys()
        assert all(torch.equal(x, alone[1][name]) for name, x in others.items())


def test_heads_are_drawn_as_without_initial_weights(demo_shards: Path, tmp_path: Path) -> None:
    file, own = written(shaken(TinyResNet(4)), tmp_path)
    words = (f"init={file}", f"init_sha256={own}")
    found = []
    for more in (words, ()):
        job = small_job(World(), small_config(demo_shards, "method=mocov3", *more), tmp_path)
        found.append({name: x for name, x in job.engine.state().items() if isinstance(x, Tensor)})
        job.stream.close()
        job.ledger.close()
    for name in found[0]:
        assert torch.equal(found[0][name], found[1][name]) != bool(OF_ENCODERS.fullmatch(name)), name
