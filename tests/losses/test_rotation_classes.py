"""Rotation as a task: quarter turns counter-clockwise, each image its own, and the loss of chance."""

import math

import pytest
import torch

from dist_ssl.losses.rotation_classes import rotate, rotation_cross_entropy
from tests.losses.tensors import normal


def test_every_image_is_turned_by_its_own_quarter_turns() -> None:
    images, turns = normal(6, 3, 5, 5), torch.tensor([0, 1, 2, 3, 1, 0])
    expected = [image.rot90(int(turn), (1, 2)) for image, turn in zip(images, turns, strict=True)]
    assert torch.equal(rotate(images, turns), torch.stack(expected))


def test_a_quarter_turn_goes_counter_clockwise() -> None:
    image = torch.tensor([[[[1, 2], [3, 4]]]])
    assert rotate(image, torch.tensor([1])).tolist() == [[[[2, 4], [1, 3]]]]


def test_four_quarters_are_a_whole() -> None:
    images, turn = normal(2, 1, 4, 4), torch.tensor([1, 3])
    turned = images
    for _ in range(4):
        turned = rotate(turned, turn)
    assert torch.equal(turned, images)


def test_images_that_are_not_square_are_refused() -> None:
    with pytest.raises(ValueError, match="4 x 6 px cannot be turned"):
        rotate(torch.zeros(1, 3, 6, 4), torch.tensor([1]))


def test_both_views_by_chance_cost_the_published_value() -> None:
    rows = rotation_cross_entropy(torch.zeros(4, 4), torch.arange(4))
    assert rows.tolist() == pytest.approx([math.log(4)] * 4)
    assert 2 * float(rows.mean()) == pytest.approx(2.773, abs=5e-4)
    assert 0.1 * 2 * float(rows.mean()) == pytest.approx(0.277, abs=5e-4)


def test_logits_of_half_precision_are_widened() -> None:
    logits = normal(5, 4).bfloat16()
    turns = torch.tensor([0, 1, 2, 3, 0])
    rows = rotation_cross_entropy(logits, turns)
    expected = [-float(row.double().log_softmax(0)[turn]) for row, turn in zip(logits, turns, strict=True)]
    assert rows.tolist() == pytest.approx(expected, rel=1e-5)
