"""What is chosen near a limit is said to be close, with the words of the other choice; elsewhere nothing is said."""

from dataclasses import replace
from typing import Any

import pytest

from launch import settings
from launch.run_dir import PROJECT
from shards.close_calls import PLAIN, close_calls, close_lines
from shards.folder_facts import Facts
from shards.picture_rules import choices
from tests.launch.test_picture_rules import CELLS, FOLDERS, ICONS, PHOTOGRAPHS, SCANS

MANY_LOOKED_AT = replace(PHOTOGRAPHS, measured=1000)


def instead(facts: Facts) -> dict[str, str]:
    return {choice.key: choice.value for call in close_calls(facts) for choice in call.instead}


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        (replace(PHOTOGRAPHS, colour=0.47), {"views.view1.hue": "0.2", "views.view2.brightness": "0.8"}),
        (replace(PHOTOGRAPHS, colour=0.53), {"views.view1.hue": "0.1", "views.view2.brightness": "0.4"}),
        (replace(PHOTOGRAPHS, grey=0.92), {"views.view1.hue": "0.0", "views.view2.gray_p": "0.0"}),
        (replace(PHOTOGRAPHS, grey=0.97), {"views.view1.hue": "0.1", "views.view2.gray_p": "0.2"}),
        (replace(MANY_LOOKED_AT, recoloured=0.56), {"views.view1.hue": "0.5", "views.view2.jitter_p": "1.0"}),
        (replace(MANY_LOOKED_AT, recoloured=0.54), {"views.view1.hue": "0.1", "views.view2.jitter_p": "0.8"}),
        (replace(MANY_LOOKED_AT, turned=0.56), {"views.view1.turn_p": "0.75", "views.view2.turn_p": "0.75"}),
        (replace(MANY_LOOKED_AT, turned=0.53), {"views.view1.turn_p": "0.0", "views.view2.turn_p": "0.0"}),
        (replace(PHOTOGRAPHS, train=9_500), {"schedule.image_size": "128"}),
        (replace(PHOTOGRAPHS, train=100_500), {"encoder": "resnet18", "optim.base_lr": "1.5e-3"}),
        (replace(PHOTOGRAPHS, short_sides=(62, 68, 90)), {"encoder": "tiny", "schedule.image_size": "32"}),
        (replace(PHOTOGRAPHS, short_sides=(50, 60, 90)), {"encoder": "resnet18", "optim.base_lr": "1.5e-3"}),
        (replace(PHOTOGRAPHS, deepest=4200), {"data.range": "4095"}),
    ],
)
def test_the_other_choice_is_named_near_a_limit(facts: Facts, found: dict[str, str]) -> None:
    own = instead(facts)
    assert {key: own.get(key) for key in found} == found
    chosen = {**PLAIN, **{choice.key: choice.value for choice in choices(facts)}}
    assert all(chosen.get(key) != value for key, value in own.items()), "what was chosen is no other choice"


@pytest.mark.parametrize("facts", [PHOTOGRAPHS, SCANS, replace(ICONS, colour=0.6), replace(PHOTOGRAPHS, deepest=4000)])
def test_nothing_is_said_far_from_all_limits(facts: Facts) -> None:
    assert close_calls(facts) == []
    assert close_lines([]) == []


def test_the_line_says_how_near_the_limit_is_and_its_words_can_be_typed() -> None:
    head, *lines = close_lines(close_calls(replace(PHOTOGRAPHS, colour=0.47)))
    assert "to make it, add its words" in head
    (line,) = lines
    assert line.endswith(
        "   47.0 % of the variance of colour is between pictures, and from 50.0 % on colour tells them apart"
    )
    words = line.strip().partition("   ")[0].split(" ")
    config = settings.compose(["data=shards", "data.path=x", "views=pictures", *words], PROJECT / "configs")
    assert config["views"]["view2"]["brightness"] == 0.8


def test_the_colours_where_no_rule_chooses_others_are_those_of_the_config() -> None:
    config: dict[str, Any] = settings.compose(["views=pictures"], PROJECT / "configs")["views"]
    for key, value in PLAIN.items():
        _, view, name = key.split(".")
        assert config[view][name] == float(value)


@pytest.mark.parametrize("facts", [*FOLDERS.values(), CELLS])
def test_every_kind_of_folder_gets_an_answer(facts: Facts) -> None:
    for call in close_calls(facts):
        assert call.instead
        assert call.reason
