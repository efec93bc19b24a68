"""An accuracy of few images is as uncertain as Wilson's interval says, and of doubtful data that is said."""

import numpy as np
import pytest
from scipy.stats import binomtest

from dist_ssl.data.storage.manifest import Split
from dist_ssl.evaluate.confidence import interval
from dist_ssl.evaluate.evidence import doubts


@pytest.mark.parametrize(("right", "images"), [(0, 6), (3, 6), (6, 6), (31, 40), (1423, 2000)])
def test_the_interval_is_wilsons(right: int, images: int) -> None:
    found = binomtest(right, images).proportion_ci(method="wilson")
    assert interval(right / images, images) == pytest.approx((found.low, found.high), abs=1e-6)


def split(name: str, *labels: int) -> Split:
    samples = type("Samples", (), {"labels": np.array(labels)})()
    return type("Split", (), {"name": name, "samples": samples})()  # type: ignore[no-any-return]


def test_images_that_are_trained_on_and_classes_that_are_not_are_named() -> None:
    train = split("train", 0, 0, 1, 2)
    assert list(doubts(train, split("val", *[2, 1, 0] * 40))) == []
    assert next(doubts(train, train)) == "data.val=train is trained on: the accuracy says nothing of other images."
    *_, found = doubts(train, split("val", 3, 3, 0, 7))
    assert found.startswith("2 classes of 'val', 3 of its 4 images, are not in 'train'")


@pytest.mark.parametrize(("images", "said"), [(6, "19 to 81"), (99, "40 to 60")])
def test_a_split_of_few_images_is_named_with_what_its_accuracy_says(images: int, said: str) -> None:
    train = split("train", *range(3))
    assert list(doubts(train, split("val", *[0] * images))) == [
        f"'val' has {images} images only: an accuracy of a half is {said} %."
    ]
    assert list(doubts(train, split("val", *[0] * 100))) == []
