"""Images of one channel and of five: shards, a run that resumes on other ranks, its probe, and its encoder in use."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from rich.console import Console

import dist_ssl
from dist_ssl.checkpoint.folder_names import ENCODER
from dist_ssl.data.storage import manifest
from dist_ssl.distributed.world import World
from launch import embed
from launch.checkpoint_encoder import of_checkpoint
from launch.embed import EmbedOptions
from shards.folder_facts import measure_shards
from shards.make import run as make
from shards.picture_rules import of_the_statistics
from tests.jobs import attempt, same_bits, small_config
from tests.ranks import Ranks

SIDE = 20
Values = npt.NDArray[Any]


def image_of(number: int, channels: int) -> Values:
    """A slope with some noise [S, S, C]; the classes, even and odd numbers, differ in the last channel alone."""
    pixels = np.random.default_rng(number).integers(0, 6, (SIDE, SIDE, channels), dtype=np.uint8)
    pixels += np.linspace(0, 200, SIDE, dtype=np.uint8)[:, None, None]
    pixels[..., -1] = pixels[..., -1] // 4 + 200 * (number % 2)
    return pixels


def write(path: Path, pixels: Values) -> None:
    """Write an image of one channel as a picture, of others as an array of 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels.shape[2] == 1:
        Image.fromarray(pixels[..., 0]).save(path.with_suffix(".png"))
    else:
        np.save(path.with_suffix(".npy"), pixels.astype(np.uint16) * 16)


@pytest.mark.parametrize(
    ("channels", "bits", "words"), [(1, 8, ("channels=1",)), (5, 16, ())], ids=["grey", "five bands of 16 bits"]
)
def test_from_files_to_features(
    channels: int, bits: int, words: tuple[str, ...], ranks: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(48):
        write(tmp_path / "in" / str(number % 2) / str(number), image_of(number, channels))
    quiet, out = Console(quiet=True), tmp_path / "shards"
    make(["source=imagefolder", f"path={tmp_path / 'in'}", f"out={out}", "val=12", *words], quiet)
    found = manifest.read(out)
    assert found.channels == channels
    keys = [f"{choice.key}={choice.value}" for choice in of_the_statistics(measure_shards(found, 1))]
    white = ("data.range=4095",) if channels > 1 else ()
    bitwise = ("engine.bitwise=true", "engine.virtual_ranks=4", "save_every=1 steps")
    config = small_config(
        out,
        "data=shards",
        *keys,
        *white,
        *bitwise,
        f"data.bits={bits}",
        "data.val=val",
        "epochs=1",
        "schedule.warmup=1 step",
        "probe.k=1",
    )

    alone = attempt(World(), config, tmp_path / "alone", 1, 99)
    assert ranks.run(attempt, 2, config, tmp_path / "moved", 1, 2) == [None, None]
    moved = attempt(World(), config, tmp_path / "moved", 2, 99)
    assert alone is not None
    assert moved is not None
    assert same_bits(alone, moved)
    reports = [json.loads(line) for line in (tmp_path / "moved" / "metrics.jsonl").read_text().splitlines()]
    assert [one["knn_accuracy"] for one in reports if "knn_accuracy" in one][-1] == 1.0

    checkpoint = sorted((tmp_path / "moved" / "checkpoints").glob("step_*"))[-1]
    of_checkpoint(config, "moved", checkpoint).write(tmp_path / "moved" / ENCODER)
    encoder = dist_ssl.load_encoder(tmp_path / "moved")
    files = sorted((tmp_path / "in").rglob("*.*"))
    features = encoder.embed([*files[:3]])
    assert features.shape == (3, encoder.num_features)
    options = ["encoder=moved/encoder.safetensors", "data.path=in", "out=features", "device=cpu", "threads=1"]
    console = Console(file=io.StringIO())
    embed.embed(EmbedOptions.parse(options), 0, 1, console)
    written = np.load(tmp_path / "features" / "part_00000.npz")
    assert len(written["key"]) == 48
    places = [written["key"].tolist().index(str(path.relative_to(tmp_path / "in"))) for path in files[:3]]
    assert torch.allclose(torch.from_numpy(written["embedding"])[places], features, atol=1e-5)
