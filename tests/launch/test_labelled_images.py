"""Classes of shards: as many as the data can have, whatever number a manifest of somebody else claims."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dist_ssl.data.storage import manifest
from dist_ssl.data.storage.samples import columns
from dist_ssl.errors import DataError
from launch.image_collection import ImagePlace, collection
from launch.labelled_images import MOST_CLASSES, FolderSamples, class_names, labelled_splits


def labelled(folder: Path, labels: list[int], classes: list[str]) -> manifest.Manifest:
    """A data set with these labels in its training split, and an empty split beside it."""
    rows = [(str(number), number, 1, label) for number, label in enumerate(labels)]
    shard = manifest.Shard("a.tar", len(rows), len(rows), "0" * 64)
    splits = {"train": ([shard], columns(rows)), "val": ([], columns([]))}
    manifest.write(folder, splits, classes)
    return manifest.read(folder)


def test_classes_are_those_of_the_manifest_or_the_numbers_of_the_labels(tmp_path: Path) -> None:
    assert class_names(labelled(tmp_path, [0, 2], ["a", "b", "c", "d"])) == ["a", "b", "c", "d"]
    assert class_names(labelled(tmp_path, [0, 2], [])) == ["0", "1", "2"]
    assert len(class_names(labelled(tmp_path, [MOST_CLASSES - 1], []))) == MOST_CLASSES
    many = labelled(tmp_path, [0], [])
    samples = replace(many.splits["train"].samples, labels=np.arange(MOST_CLASSES + 10))
    assert len(class_names(replace(many, splits={"train": replace(many.splits["train"], samples=samples)}))) > 32770


def test_more_classes_than_the_data_can_have_are_refused(tmp_path: Path) -> None:
    many = replace(labelled(tmp_path, [0, 1], []), classes=tuple(map(str, range(MOST_CLASSES + 1))))
    with pytest.raises(DataError, match=f"names {MOST_CLASSES + 1} classes, and has fewer images"):
        class_names(many)


@pytest.mark.parametrize(("label", "classes"), [(1 << 59, []), (MOST_CLASSES, []), (2, ["a", "b"])])
def test_a_label_beyond_the_classes_is_refused(tmp_path: Path, label: int, classes: list[str]) -> None:
    with pytest.raises(DataError, match=f"has the label {label}: its labels are 0 to"):
        class_names(labelled(tmp_path, [0, label], classes))


def test_labels_are_looked_up_without_a_search_through_the_classes(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / name).mkdir()
        for number in range(5):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{number}.png")
    splits = labelled_splits(str(tmp_path), None, None, "1GB", Console(quiet=True))
    for samples in (splits.train, splits.val):
        assert isinstance(samples, FolderSamples)
        assert [samples(n)[1] for n in range(len(samples))] == ["abcd".index(file.name[0]) for file in samples.files]
        assert samples.labels == {"a": 0, "b": 1, "c": 2, "d": 3}


@pytest.mark.parametrize(("channels", "arrays"), [(3, 0), (4, 0), (5, 4)])
def test_arrays_beside_pictures_are_the_images_of_an_encoder_of_more_channels(
    tmp_path: Path, channels: int, arrays: int
) -> None:
    """They were left out, as masks beside photographs are, and their previews, of which none fits, were computed."""
    for name in ("a/0", "a/1", "b/0", "b/1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}_preview.png")
        np.save(tmp_path / f"{name}.npy", np.zeros((8, 8, 5), np.uint8))
    quiet = Console(quiet=True)
    images = collection(ImagePlace(str(tmp_path), None, None, "1GB", 1, 1, channels), quiet)
    assert sum(images.key(number).endswith(".npy") for number in range(images.count)) == arrays
    splits = labelled_splits(str(tmp_path), None, None, "1GB", quiet, channels)
    assert len(splits.train) + len(splits.val) == 4 + arrays
