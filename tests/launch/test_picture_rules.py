"""What is chosen for a folder of pictures follows from its facts, is said in the document, and makes a config."""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from launch import settings
from launch.run_dir import PROJECT
from shards.folder_facts import Facts
from shards.picture_rules import IMAGENET, KeyChoice, choices, of_the_length

PHOTOGRAPHS = Facts(
    train=3000,
    val=60,
    classes=5,
    measured=400,
    unreadable=0,
    short_sides=(300, 500, 900),
    grey=0.0,
    colour=0.2,
    turned=0.9,
    recoloured=0.9,
    deepest=0,
    mean=(0.47, 0.45, 0.42),
    std=(0.24, 0.23, 0.24),
)
ICONS = replace(PHOTOGRAPHS, train=60_000, short_sides=(32, 32, 48), colour=0.7, mean=(0.5, 0.5, 0.5))
SCANS = replace(PHOTOGRAPHS, train=90, val=0, classes=0, grey=1.0, short_sides=(70, 80, 90), std=(0.1, 0.1, 0.1))
BROKEN = replace(PHOTOGRAPHS, unreadable=10)
CELLS = replace(ICONS, turned=0.52, recoloured=0.49, deepest=4000)
FOLDERS = {"photographs": PHOTOGRAPHS, "icons": ICONS, "scans": SCANS, "broken": BROKEN, "cells": CELLS}


def chosen(facts: Facts) -> dict[str, str]:
    return {choice.key: choice.value for choice in choices(facts)}


@cache
def config(facts: Facts) -> dict[str, Any]:
    own = [f"{choice.key}={choice.value}" for choice in choices(facts)]
    return settings.compose(["data=shards", "data.path=x", *own], PROJECT / "configs")


def test_photographs_get_a_residual_net_at_a_size_that_few_of_them_afford() -> None:
    found = chosen(PHOTOGRAPHS)
    assert (found["encoder"], found["schedule.image_size"], found["epochs"]) == ("resnet18", "96", "400")
    assert found["optim.base_lr"] == "1.5e-3"
    assert found["data.val"] == "val"
    assert (found["probe.crop"], found["probe.resize"]) == ("null", "null")
    assert {"batch_size", "views.view1.blur_p", "views.view1.hue", "data.max_bad"}.isdisjoint(found)


@pytest.mark.parametrize(
    ("train", "side", "encoder", "epochs"),
    [
        (1_000, "96", "resnet18", "400"),
        (10_000, "128", "resnet18", "200"),
        (100_000, "224", "resnet50", "100"),
        (10**6, "224", "resnet50", "100"),
    ],
)
def test_more_photographs_get_larger_views_and_fewer_epochs(train: int, side: str, encoder: str, epochs: str) -> None:
    found = chosen(replace(PHOTOGRAPHS, train=train))
    assert (found["schedule.image_size"], found["encoder"], found["epochs"]) == (side, encoder, epochs)


@pytest.mark.parametrize(
    ("sides", "side", "crop"),
    [
        ((30, 32, 40), 28, 0.22),  # small: a multiple of 4
        ((10, 20, 40), 16, 0.6),
        ((48, 48, 48), 32, 0.2),
        ((40, 65, 90), 64, 0.6),  # photographs: at least 64, though some are enlarged
        ((70, 300, 500), 64, 0.21),
        ((100, 300, 500), 96, 0.24),
    ],
)
def test_views_are_no_larger_than_most_pictures_and_crops_are_enlarged_at_most_twice(
    sides: tuple[int, int, int], side: int, crop: float
) -> None:
    found = chosen(replace(PHOTOGRAPHS, short_sides=sides))
    assert int(found["schedule.image_size"]) == side
    assert float(found["views.view1.crop_min"]) == float(found["views.view2.crop_min"]) == crop
    assert crop == 0.6 or side <= 2 * sides[0] * crop**0.5 + 1e-9


def test_small_pictures_get_the_tiny_encoder_no_blur_and_are_probed_whole() -> None:
    found = config(ICONS)
    assert found["encoder"]["_target_"].endswith("TinyResNet")
    assert [found["views"][view]["blur_p"] for view in ("view1", "view2")] == [0.0, 0.0]
    assert (found["probe"]["resize"], found["probe"]["crop"]) == (32, 32)
    assert (found["schedule"]["image_size"], found["epochs"]) == (32, 20)
    assert "optim.base_lr" not in chosen(ICONS), "the default is the tiny encoder's"


def test_colour_that_tells_pictures_apart_is_changed_strongly_and_grey_pictures_are_not_coloured() -> None:
    gentle, strong, grey, any_colour = (config(facts)["views"]["view2"] for facts in (PHOTOGRAPHS, ICONS, SCANS, CELLS))
    keys = ("brightness", "contrast", "saturation", "hue", "gray_p")
    assert [gentle[key] for key in keys] == [0.4, 0.4, 0.2, 0.1, 0.2]
    assert [strong[key] for key in keys] == [0.8, 0.8, 0.8, 0.2, 0.2]
    assert [grey[key] for key in keys] == [0.4, 0.4, 0.0, 0.0, 0.0]
    assert [any_colour[key] for key in (*keys, "jitter_p")] == [0.6, 0.6, 0.6, 0.5, 0.5, 1.0]


@pytest.mark.parametrize(
    ("measured", "share", "turns"),
    [(1000, 0.54, 0.75), (1000, 0.55, 0.0), (1000, 0.7, 0.0), (150, 0.5, 0.0), (160, 0.5, 0.75)],
)
def test_pictures_are_turned_where_that_is_surely_not_noticed(measured: int, share: float, turns: float) -> None:
    facts = replace(PHOTOGRAPHS, measured=measured, turned=share)
    assert [view["turn_p"] for view in config(facts)["views"].values()] == [turns, turns]
    why = next(choice.reason for choice in choices(facts) if "turn_p" in choice.key)
    assert ("gentle" in why, "orientation matters:" in why) == (turns == 0 and share < 0.58, share >= 0.58)


def test_grey_pictures_say_nothing_of_hues() -> None:
    assert chosen(replace(CELLS, measured=1000))["views.view1.hue"] == "0.5"
    assert "views.view1.hue" not in chosen(replace(CELLS, measured=1000, grey=0.9, colour=0.2)), "a hundred are too few"


@pytest.mark.parametrize(("measured", "share", "said"), [(30, 0.7, "70 % of"), (3, 1.0, "fewer than 4 pictures")])
def test_of_few_pictures_it_is_not_said_that_orientation_matters(measured: int, share: float, said: str) -> None:
    facts = replace(PHOTOGRAPHS, measured=measured, turned=share)
    why = next(choice.reason for choice in choices(facts) if "turn_p" in choice.key)
    assert why.startswith(f"whether orientation matters is not known, so the gentle choice: {said}")


@pytest.mark.parametrize(("deepest", "white"), [(0, None), (65535, None), (40000, None), (4095, "4095"), (900, "1023")])
def test_the_white_of_deep_pictures_is_that_of_their_bits(deepest: int, white: str | None) -> None:
    assert chosen(replace(PHOTOGRAPHS, deepest=deepest)).get("data.range") == white


def test_statistics_are_imagenets_where_they_are_close() -> None:
    assert config(PHOTOGRAPHS)["data"]["mean"] == list(IMAGENET[0])
    assert config(SCANS)["data"]["std"] == [0.1, 0.1, 0.1]
    assert config(SCANS)["data"]["mean"] == list(SCANS.mean)


@pytest.mark.parametrize("train", [1, 2, 3, 97, 251])
def test_the_length_counts_pictures_that_fill_batches(train: int) -> None:
    (length, *_) = of_the_length(replace(PHOTOGRAPHS, train=train))
    assert length.value == "400"
    used = {1: 1, 2: 2, 3: 2, 97: 96, 251: 192}[train]
    pictures = "1 picture" if train == 1 else f"{train} pictures"
    assert length.reason == f"{used} of {pictures} in each, as many as fill whole batches: {400 * used:,}"


def test_without_labels_nothing_is_probed_and_few_pictures_fill_a_batch_twice() -> None:
    found = config(SCANS)
    assert found["data"]["val"] is None
    assert found["batch_size"] == 24
    assert chosen(replace(SCANS, val=9))["data.val"] == chosen(replace(SCANS, classes=2))["data.val"] == "null"
    assert "batch_size" not in chosen(replace(SCANS, train=192))


@pytest.mark.parametrize(("unreadable", "limit"), [(0, None), (2, None), (3, "2 %"), (40, "20 %"), (41, None)])
def test_pictures_that_cannot_be_read_raise_the_limit_up_to_a_fifth(unreadable: int, limit: str | None) -> None:
    found = chosen(replace(PHOTOGRAPHS, unreadable=unreadable)).get("data.max_bad")
    assert found == (limit and f"'{limit}'")


def test_every_choice_has_a_reason_and_is_made_once() -> None:
    for facts in FOLDERS.values():
        found: list[KeyChoice] = choices(facts)
        assert len({choice.key for choice in found}) == len(found)
        assert all(choice.reason for choice in found)
        config(facts)


def test_the_document_has_a_row_for_every_key_that_is_chosen() -> None:
    text = (Path(PROJECT) / "configs" / "README.md").read_text().partition("<!-- rules:")[2].partition("These are")[0]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    documented = {key for row in rows for key in re.findall(r"`([^`]+)`", row)}
    made = {
        re.sub(r"views\.view[12]", "views.*", choice.key) for facts in FOLDERS.values() for choice in choices(facts)
    }
    assert documented == made
