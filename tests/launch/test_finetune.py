"""Fine-tuning: a classifier that learns what is there to learn, from folders and shards, and the files of it."""

import errno
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file

from dist_ssl.config.instantiate import instantiate
from dist_ssl.errors import ConfigError, DataError
from dist_ssl.models.encoders import TinyResNet
from dist_ssl.runtime.files import write_atomically
from dist_ssl.runtime.own_cores import own_cores
from dist_ssl.saved_encoder import SavedEncoder, load_encoder
from launch import finetune, finetune_files, labelled_images
from launch.finetune import rate_share
from launch.finetune_options import ENCODER_LR, FinetuneOptions
from launch.labelled_images import LabelledSplits, labelled_splits
from launch.run_dir import PROJECT
from launch.variables import ADDRESS
from tests.test_saved_encoder import DESCRIPTION
from tests.web import serving

UNDECODABLE = b"\x89PNG\r\n\x1a\n nothing more"
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
    code, text = tried(encoder, data, out, capsys, *words)
    assert code == 0, text
    return text


def tried(encoder: Path, data: Path, out: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    options = [f"encoder={encoder}", f"data.path={data}", f"out={out}", "device=cpu", "workers=0", "batch=8"]
    given = {word.partition("=")[0] for word in words}
    code = finetune.main([*(own for own in options if own.partition("=")[0] not in given), *words])
    return code, capsys.readouterr().out


@pytest.mark.parametrize("train", ["all", "head"])
def test_classes_of_colours_are_learnt_and_the_files_hold_what_was_learnt(
    train: str, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "data", 20)
    words = [f"train={train}", "epochs=12", "lr=0.05", *(["encoder_lr=0.001"] if train == "all" else [])]
    text = tuned(encoder, tmp_path / "data", tmp_path / "out", capsys, *words)
    assert "48 images to train on, 12 to test on; 3 classes." in text
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["accuracy"] == results["epochs"][-1]["accuracy"] == 1.0
    assert results["images"] == results["epochs"][-1]["images"] > 0
    assert [row["epoch"] for row in results["epochs"]] == list(range(1, 13))

    found, head = load_encoder(tmp_path / "out"), load_file(tmp_path / "out" / "head.safetensors")
    with safe_open(tmp_path / "out" / "head.safetensors", "pt") as file:
        classes = json.loads(file.metadata()["classes"])
    assert classes == list(COLOURS)
    for number, name in enumerate(COLOURS):
        features = found.embed(tmp_path / "data" / name / "0.png")
        assert int((features @ head["weight"].T + head["bias"]).argmax(1)) == number
    assert found.description.finetuned == ("12 epochs on 48 images of 3 classes" if train == "all" else None)
    same = all(torch.equal(a, b) for a, b in zip(found.parameters(), load_encoder(encoder).parameters(), strict=True))
    assert same is (train == "head")


def test_a_folder_with_splits_is_tested_on_its_own(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "data" / "train", 5)
    draw(tmp_path / "data" / "val", 2)
    text = tuned(encoder, tmp_path / "data", tmp_path / "out", capsys, "epochs=1")
    assert "15 images to train on, 6 to test on; 3 classes." in text


def test_workers_read_a_server_of_shards_and_give_the_batches_of_this_process(encoder: Path, demo_shards: Path) -> None:
    options = FinetuneOptions.parse(["data.path=x", "out=y", f"encoder={encoder}", "batch=7", "workers=2"])
    with serving(demo_shards) as server:
        splits = labelled_splits(server.url, None, None, "1GB", Console(quiet=True))
        assert (len(splits.train), len(splits.val), len(splits.classes)) == (60, 20, 10)
        images = finetune.views_of(load_encoder(encoder), splits, flip=True)[1]
        found = [list(finetune.batches(images, replace(options, workers=n), shuffle=False)) for n in (0, 2)]
    assert [len(labels) for (_, labels), _ in found[0]] == [7, 7, 6]
    for ((views, labels), bad), ((same, alike), _) in zip(*found, strict=True):
        assert not bad
        assert torch.equal(views, same)
        assert torch.equal(labels, alike)


def test_more_workers_than_cores_are_no_warning(encoder: Path, demo_shards: Path) -> None:
    """There are always four by default, as the views that are drawn depend on their number."""
    options = FinetuneOptions.parse(["data.path=x", "out=y", f"encoder={encoder}", f"workers={own_cores() + 1}"])
    splits = labelled_splits(str(demo_shards), None, None, "1GB", Console(quiet=True))
    images = finetune.views_of(load_encoder(encoder), splits, flip=True)[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader = finetune.batches(images, options, shuffle=False)
        assert loader.num_workers == own_cores() + 1
        loader.check_worker_number_rationality()  # as when they start


def test_shards_are_trained_on(
    encoder: Path, demo_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tuned(encoder, demo_shards, tmp_path / "out", capsys, "epochs=1", "train=head")
    assert "60 images to train on, 20 to test on; 10 classes." in text


@pytest.mark.parametrize("spare", ["spare", "none"])
def test_what_was_trained_is_kept_where_the_folder_fails_meanwhile(
    spare: str, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "data", 2)
    (tmp_path / "spare").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / spare))

    def failing(path: Path, content: str | bytes, sync: bool = False) -> None:
        if sync and path.parent == tmp_path / "out":
            raise OSError(errno.EIO, "Input/output error")
        write_atomically(path, content, sync)

    monkeypatch.setattr(finetune_files, "write_atomically", failing)
    code, text = tried(encoder, tmp_path / "data", tmp_path / "out", capsys, "epochs=1")
    assert (code, f"out={tmp_path / 'out'} cannot be written: Input/output error." in text) == (2, True)
    if spare == "none":
        assert "they are lost: No such file or directory." in text
        return
    [folder] = (tmp_path / "spare").iterdir()
    assert f"The files are in {folder} of this machine instead" in text
    assert {path.name for path in folder.iterdir()} == {"encoder.safetensors", "head.safetensors", "results.json"}
    assert load_encoder(folder).num_features == load_encoder(encoder).num_features


def test_the_same_seed_gives_the_same_bits(encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path / "data", 6)
    for name in "ab":
        tuned(encoder, tmp_path / "data", tmp_path / name, capsys, "epochs=2", "seed=5")
    heads = [load_file(tmp_path / name / "head.safetensors") for name in "ab"]
    assert all(torch.equal(heads[0][key], heads[1][key]) for key in ("weight", "bias"))


def test_a_picture_that_cannot_be_decoded_does_not_count_and_one_that_is_gone_ends_it(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "data" / "train", 5)  # a multiple of the batch: every epoch sees all
    draw(tmp_path / "data" / "val", 2)
    for name in ("val/red/0.png", "train/red/0.png", "train/blue/1.png"):
        (tmp_path / "data" / name).write_bytes(UNDECODABLE)
    words = ["epochs=2", "batch=5"]  # of the six to test on the last one is alone in its batch
    text = tuned(encoder, tmp_path / "data", tmp_path / "out", capsys, *words)
    last = json.loads((tmp_path / "out" / "results.json").read_text())["epochs"][-1]
    assert (last["images"], last["undecodable_test"], last["undecodable_train"]) == (5, 1, 2)
    assert load_encoder(tmp_path / "out").description.finetuned == "2 epochs on 13 images of 3 classes"
    assert text.count("1 of 6 images to test on cannot be decoded; they do not count.") == 1
    assert text.count("2 of 15 images to train on cannot be decoded; they do not count.") == 1

    split = finetune.labelled_splits

    def splits_and_removal(*arguments: object) -> object:
        found = split(*arguments)  # type: ignore[arg-type]
        (tmp_path / "data" / "val" / "green" / "0.png").unlink()
        return found

    monkeypatch.setattr(finetune, "labelled_splits", splits_and_removal)
    code, text = tried(encoder, tmp_path / "data", tmp_path / "b", capsys, *words)
    assert code == 2
    assert "green/0.png cannot be read: No such file or directory." in text
    assert not any((tmp_path / "b").iterdir())


@pytest.mark.parametrize(
    ("damaged", "words", "problem"),
    [
        ("val/*/*.png", [], "No image to test on can be decoded."),
        ("train/[br]*/*.png", [], "Too few images to train on can be decoded: a batch needs 2."),
        ("train/[br]*/*.png", ["train=head"], ""),
        ("train/*/*.png", ["train=head"], "Too few images to train on can be decoded: a batch needs 1."),
    ],
)
def test_too_few_images_that_can_be_decoded_are_refused(
    damaged: str, words: list[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        draw(tmp_path / "data" / split, 1)
    for path in (tmp_path / "data").glob(damaged):
        path.write_bytes(UNDECODABLE)
    node = {"_target_": "dist_ssl.models.encoders.timm_encoder", "name": "resnet18", "stem": "standard"}
    encoder = tmp_path / "resnet.safetensors"  # whose maps end at 1 x 1 px
    SavedEncoder(instantiate(node, "encoder"), replace(DESCRIPTION, encoder=node)).write(encoder)
    code, text = tried(encoder, tmp_path / "data", tmp_path / "out", capsys, "epochs=1", *words)
    assert (code, problem in text) == (2 if problem else 0, True), text


def test_nothing_that_is_there_is_overwritten(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path / "data", 3)
    run = tmp_path / "run"
    run.mkdir()
    (run / "encoder.safetensors").write_bytes(encoder.read_bytes())
    before = (run / "encoder.safetensors").read_bytes()
    code, text = tried(encoder, tmp_path / "data", run, capsys)
    assert (code, "holds files already" in text) == (2, True)
    assert (run / "encoder.safetensors").read_bytes() == before
    for out in (encoder, encoder / "below", Path("/proc/none")):
        code, text = tried(encoder, tmp_path / "data", out, capsys)
        assert (code, "cannot be written" in text) == (2, True)


def test_a_password_is_neither_kept_nor_shown(
    encoder: Path,
    demo_shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[str] = []

    def there(path: str, *others: object) -> object:
        asked.append(path)
        return labelled_splits(str(demo_shards), *others)  # type: ignore[arg-type]

    monkeypatch.setenv(ADDRESS, "")
    monkeypatch.setattr(finetune, "labelled_splits", there)
    words = ["data.path=https://me:pa55w0rd@host/x", "epochs=1", "train=head"]
    text = tuned(encoder, demo_shards, tmp_path / "out", capsys, *words)
    assert asked == ["https://me:pa55w0rd@host/x"]
    assert "pa55w0rd" not in text
    assert not any(b"pa55w0rd" in path.read_bytes() for path in (tmp_path / "out").iterdir())


def test_a_password_is_not_shown_where_there_is_one_class(demo_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = LabelledSplits(SimpleNamespace(), SimpleNamespace(), ["cats"])  # type: ignore[arg-type]
    monkeypatch.setattr(labelled_images, "of_shards", lambda *given: one)
    with pytest.raises(DataError, match="has one class only") as caught:
        labelled_splits("https://me:pa55w0rd@host/x", None, None, "1GB", Console(quiet=True))
    assert "pa55w0rd" not in str(caught.value)


def test_workers_import_nothing_from_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "multiprocessing.py").write_text("open('canary', 'w')\n")
    code = (
        "from torch.utils.data import DataLoader; from launch import finetune\n"
        "if __name__ == '__main__':\n"
        "    loader = DataLoader([1, 2, 3, 4], 2, num_workers=1, multiprocessing_context=finetune.workers_context())\n"
        "    print([x.tolist() for x in loader])\n"
    )
    (tmp_path / "program").mkdir()
    (tmp_path / "program" / "try.py").write_text(code)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "program/try.py"],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "[[1, 2], [3, 4]]\n", done.stderr
    assert not (tmp_path / "canary").exists()


def test_an_error_of_a_worker_comes_back_whole() -> None:
    found = pickle.loads(pickle.dumps(DataError("the problem", "the remedy")))
    assert (found.problem, found.remedy) == ("the problem", "the remedy")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["data.path=x"], "out is not given"),
        (["data.path=x", "out=y"], "The encoder is not clear"),
        (["data.path=x", "out=y", "run=a", "train=some"], "train=some is not possible"),
        (["data.path=x", "out=y", "run=a", "epochs=0"], "epochs=0 is too small"),
        (["data.path=x", "out=y", "run=a", "lr=-1"], "lr=-1 is not possible"),
        (["data.path=x", "out=y", "run=a", "lr=high"], "lr=high is not possible"),
        (["data.path=x", "out=y", "run=a", "flip=perhaps"], "flip=perhaps is not possible"),
        (["data.path=x", "out=y", "run=a", "epochs=["], r"epochs=\[ is not possible"),
        (["data.path=x", "out=y", "run=a", f"seed={10**20}"], "is too large"),
        (["data.path=x", "out=y", "run=a", "train=head", "encoder_lr=1e-4"], "encoder_lr=... has no effect"),
    ],
)
def test_options_that_cannot_be_are_refused(words: list[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        FinetuneOptions.parse(words)


def test_the_values_in_the_usage_are_the_defaults() -> None:
    text = " ".join((finetune.__doc__ or "").split("Keys:")[1].split())
    values = re.findall(r"\b(epochs|batch|lr|encoder_lr|weight_decay|seed|workers)=([\d.e-]*\d)", text)
    assert len(values) == 7
    plain = FinetuneOptions.parse(["data.path=x", "out=y", "run=a"])
    given = FinetuneOptions.parse(["data.path=x", "out=y", "run=a", *(f"{key}={value}" for key, value in values)])
    assert given == replace(plain, encoder_lr=ENCODER_LR)


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="Several processes cannot share this training"):
        FinetuneOptions.parse(["data.path=x", "out=y", "run=a"])


@pytest.mark.parametrize(
    ("files", "words", "problem"),
    [
        (["a.png", "b/1.png", "c/2.png"], [], "lies in no folder of a class"),
        (["a/1.png", "a/2.png"], [], "has one class only: a"),
        (["a/1.png", "b/2.png"], ["val=0"], "val=0 leaves no picture to test on"),
        (["train/a/1.png", "train/b/1.png", "val/a/1.png"], ["val=50%"], "has a split of its own for testing, val/"),
        (["train/a/1.png", "train/b/1.png", "val/c/1.png"], [], "No picture of class 'c' is there to train on"),
        ([], [], "holds no images"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(
    files: list[str], words: list[str], problem: str, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    for name in files:
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 30)).save(tmp_path / "data" / name)
    code, text = tried(encoder, tmp_path / "data", tmp_path / "out", capsys, *words)
    assert code == 2
    assert problem in text
    assert "labels=" not in text
    assert not (tmp_path / "out").exists()


def test_rates_rise_for_one_epoch_and_end_at_zero() -> None:
    shares = [rate_share(step, 4, 20) for step in range(21)]
    assert shares[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert shares[4:] == sorted(shares[4:], reverse=True)
    assert shares[12] == pytest.approx(0.5)
    assert shares[20] == pytest.approx(0.0)
    assert rate_share(0, 0, 1) == 1.0


def test_images_of_five_bands_of_sixteen_bits_are_learnt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = replace(DESCRIPTION, mean=(0.5,) * 5, std=(0.3,) * 5, bits=16)
    torch.manual_seed(0)
    SavedEncoder(TinyResNet(4, pool="mean", in_channels=5), own).write(tmp_path / "encoder.safetensors")
    for number in range(40):
        pixels = np.random.default_rng(number).integers(20_000, 30_000, (24, 24, 5)).astype(np.uint16)
        pixels[..., 4] += np.uint16(30_000 * (number % 2))
        path = tmp_path / "data" / str(number % 2) / f"{number}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, pixels)
    words = ["epochs=8", "lr=0.05", "train=head"]
    text = tuned(tmp_path / "encoder.safetensors", tmp_path / "data", tmp_path / "out", capsys, *words)
    assert "32 images to train on, 8 to test on; 2 classes." in text
    assert json.loads((tmp_path / "out" / "results.json").read_text())["accuracy"] == 1.0
    assert load_encoder(tmp_path / "out").description == own
