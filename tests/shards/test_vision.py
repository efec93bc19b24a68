"""torchvision's data sets become shards. None is downloaded here: the tests write small ones in their formats."""

import hashlib
import inspect
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from torchvision import datasets

from dist_ssl.data.storage import manifest
from dist_ssl.errors import DataError
from shards.make import make
from shards.sources import vision
from tests.shards.pictures import held, picture

QUIET = Console(quiet=True)


def batch(path: Path, seed: int, count: int = 6) -> tuple[list[str], np.ndarray, list[int]]:
    """A file of CIFAR-10's Python format: its name and MD5, its pixels [N, 32, 32, 3] and its labels."""
    rng = np.random.default_rng(seed)
    pixels, labels = rng.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, count).tolist()
    data = pickle.dumps({"data": pixels.reshape(count, -1), "labels": labels})
    path.write_bytes(data)
    return [path.name, hashlib.md5(data).hexdigest()], pixels.transpose(0, 2, 3, 1), labels


def test_cifar10_becomes_png_of_the_same_pixels_with_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    batches = [batch(folder / f"data_batch_{n}", n) for n in range(1, 6)]
    test = batch(folder / "test_batch", 9)
    names = pickle.dumps({"label_names": list("abcdefghij")})
    (folder / "batches.meta").write_bytes(names)
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [named for named, _, _ in batches])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [test[0]])
    monkeypatch.setitem(datasets.CIFAR10.meta, "md5", hashlib.md5(names).hexdigest())
    make("cifar10", tmp_path / "out", QUIET, vision.VisionOptions(tmp_path))
    assert manifest.read(tmp_path / "out").classes == tuple("abcdefghij")
    for split, parts in (("train", batches), ("val", [test])):
        pixels, labels = np.concatenate([p for _, p, _ in parts]), [label for _, _, own in parts for label in own]
        own = held(tmp_path / "out", split)
        assert list(own) != sorted(own), "they are shuffled"
        assert sorted(own) == [f"cifar10-{split}-{n:08d}" for n in range(len(pixels))]
        for n, (data, label) in enumerate(own[key] for key in sorted(own)):
            image = Image.open(io.BytesIO(data))
            assert (image.format, label) == ("PNG", labels[n])
            assert (np.asarray(image) == pixels[n]).all()


def test_files_that_torchvision_would_open_are_packed_as_they_are(tmp_path: Path) -> None:
    expected = {}
    for split, classes in (("train", "ab"), ("valid", "ab"), ("test", "ab")):
        for n, name in enumerate(classes):
            path = tmp_path / "country211" / split / name / "1.jpg"
            path.parent.mkdir(parents=True)
            path.write_bytes(picture(hash((split, n)) % 1000))
            expected[split, n] = path.read_bytes()
    make("country211", tmp_path / "out", QUIET, vision.VisionOptions(tmp_path))
    for split, theirs in (("train", "train"), ("val", "valid"), ("test", "test")):
        own = held(tmp_path / "out", split)
        assert sorted(own.values()) == sorted((expected[theirs, n], n) for n in range(2))


def test_a_data_set_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"torchvision cannot open CIFAR100 \(train\) in") as caught:
        make("cifar100", tmp_path / "out", QUIET, vision.VisionOptions(tmp_path))
    assert "download=true" in caught.value.remedy
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", vision.SETS)
def test_every_row_of_the_table_fits_torchvision(name: str) -> None:
    kind, splits = vision.SETS[name]
    wanted = inspect.signature(getattr(datasets, kind)).parameters
    assert {"train", "val"} <= set(splits)
    assert all(key in wanted for given in splits.values() for key in given)
    assert "download" in wanted
