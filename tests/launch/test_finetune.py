"""Fine-tuning: a classifier that learns what is there to learn, from folders and shards, and the files of it."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from dist_ssl.errors import ConfigError, DataError
from dist_ssl.models.encoders import TinyResNet
from dist_ssl.saved_encoder import SavedEncoder, load_encoder
from launch import finetune
from launch.finetune import FinetuneOptions, rate_share
from tests.test_saved_encoder import DESCRIPTION

COLOURS = {"blue": (20, 40, 220), "green": (30, 200, 40), "red": (220, 30, 20)}


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "encoder.safetensors"
    SavedEncoder(TinyResNet(4, pool="mean"), DESCRIPTION).write(path)
    return path


def draw(folder: Path, count: int) -> None:
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            noise = np.random.default_rng(number).integers(-20, 20, (24, 24, 3))
            Image.fromarray(np.clip(noise + colour, 0, 255).astype(np.uint8)).save(folder / name / f"{number}.png")


def tuned(encoder: Path, data: Path, out: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    options = [f"encoder={encoder}", f"data.path={data}", f"out={out}", "device=cpu", "workers=0", "batch=8", *words]
    code = finetune.main(options)
    text = capsys.readouterr().out
    assert code == 0, text
    return text


@pytest.mark.parametrize("train", ["all", "head"])
def test_classes_of_colours_are_learnt_and_the_files_hold_what_was_learnt(
    train: str, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "data", 20)
    words = [f"train={train}", "epochs=12", "lr=0.05", "encoder_lr=0.001"]
    text = tuned(encoder, tmp_path / "data", tmp_path / "out", capsys, *words)
    assert "48 images train, 12 test; 3 classes." in text
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["accuracy"] == results["epochs"][-1]["accuracy"] == 1.0
    assert [row["epoch"] for row in results["epochs"]] == list(range(1, 13))

    found, head = load_encoder(tmp_path / "out"), load_file(tmp_path / "out" / "head.safetensors")
    with safe_open(tmp_path / "out" / "head.safetensors", "pt") as file:
        classes = json.loads(file.metadata()["classes"])
    assert classes == list(COLOURS)
    for number, name in enumerate(COLOURS):
        features = found.embed(tmp_path / "data" / name / "0.png")
        assert int((features @ head["weight"].T + head["bias"]).argmax(1)) == number
    same = all(torch.equal(a, b) for a, b in zip(found.parameters(), load_encoder(encoder).parameters(), strict=True))
    assert same is (train == "head")


def test_a_folder_with_splits_is_tested_on_its_own(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "data" / "train", 5)
    draw(tmp_path / "data" / "val", 2)
    text = tuned(encoder, tmp_path / "data", tmp_path / "out", capsys, "epochs=1")
    assert "15 images train, 6 test; 3 classes." in text


def test_shards_are_read_by_workers_with_the_results_of_this_process(
    encoder: Path, demo_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tuned(encoder, demo_shards, tmp_path / "a", capsys, "epochs=1", "train=head")
    assert "60 images train, 20 test; 10 classes." in text
    text = tuned(encoder, demo_shards, tmp_path / "b", capsys, "epochs=1", "train=head", "workers=2")
    counts = [json.loads((tmp_path / name / "results.json").read_text())["epochs"][0]["images"] for name in "ab"]
    assert counts == [20, 20]


def test_the_same_seed_gives_the_same_bits(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path / "data", 6)
    for name in "ab":
        tuned(encoder, tmp_path / "data", tmp_path / name, capsys, "epochs=2", "seed=5")
    heads = [load_file(tmp_path / name / "head.safetensors") for name in "ab"]
    assert all(torch.equal(heads[0][key], heads[1][key]) for key in ("weight", "bias"))


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_picture_that_cannot_be_decoded_is_left_out_and_one_that_is_gone_ends_it(
    workers: str, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "data" / "train", 3)
    draw(tmp_path / "data" / "val", 2)
    (tmp_path / "data" / "val" / "red" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    words = ["epochs=1", f"workers={workers}"]
    tuned(encoder, tmp_path / "data", tmp_path / "out", capsys, *words)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["epochs"][0]["images"] == 5

    split = finetune.labelled_splits

    def splits_and_removal(*arguments: object) -> object:
        found = split(*arguments)  # type: ignore[arg-type]
        (tmp_path / "data" / "train" / "red" / "0.png").unlink()
        return found

    monkeypatch.setattr(finetune, "labelled_splits", splits_and_removal)
    words = [f"encoder={encoder}", f"data.path={tmp_path / 'data'}", f"out={tmp_path / 'b'}", "device=cpu", *words]
    assert finetune.main(words) == 2
    assert "red/0.png cannot be read: No such file or directory." in capsys.readouterr().out
    assert not (tmp_path / "b").exists()


def test_an_error_of_a_worker_comes_back_whole() -> None:
    found = pickle.loads(pickle.dumps(DataError("the problem", "the remedy")))
    assert (found.problem, found.remedy) == ("the problem", "the remedy")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["data.path=x"], "out is not given"),
        (["data.path=x", "out=y"], "The encoder is not clear"),
        (["data.path=x", "out=y", "run=a", "train=some"], "train='some' is not possible"),
        (["data.path=x", "out=y", "run=a", "epochs=0"], "epochs=0 is too small"),
        (["data.path=x", "out=y", "run=a", "lr=-1"], "lr=-1.0 is too small"),
        (["data.path=x", "out=y", "run=a", "lr=high"], "lr='high' is not possible"),
        (["data.path=x", "out=y", "run=a", "flip=perhaps"], "flip='perhaps' is not possible"),
    ],
)
def test_options_that_cannot_be_are_refused(words: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        FinetuneOptions.parse(words)


def test_pictures_without_classes_are_refused(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    Image.new("RGB", (30, 30)).save(tmp_path / "data" / "a.png")
    assert finetune.main([f"encoder={encoder}", f"data.path={tmp_path / 'data'}", f"out={tmp_path / 'out'}"]) == 2
    assert "lies in no folder of a class" in capsys.readouterr().out


def test_rates_rise_for_one_epoch_and_end_at_zero() -> None:
    shares = [rate_share(step, 4, 20) for step in range(21)]
    assert shares[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert shares[4:] == sorted(shares[4:], reverse=True)
    assert shares[12] == pytest.approx(0.5)
    assert shares[20] == pytest.approx(0.0)
    assert rate_share(0, 0, 1) == 1.0
