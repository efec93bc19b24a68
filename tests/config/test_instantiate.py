"""A node of plain values becomes an object, or is refused by the name of the key that is wrong."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest
from torch import nn

from dist_ssl.config.durations import Duration
from dist_ssl.config.instantiate import fit, instantiate, keywords, resolve, shared_keywords
from dist_ssl.data.images.views import Augmentation
from dist_ssl.errors import ConfigError
from dist_ssl.optim.recipes import AdamW


@dataclass
class Part:
    """Something with one parameter of every kind."""

    size: int
    rate: float = 0.5
    name: str = "part"
    flag: bool = False
    every: Duration | None = None
    pair: tuple[int, float] = (1, 2.0)


def open_width(width: int) -> int:
    """Takes one key."""
    return width


def open_ended(width: int, **rest: Any) -> dict[str, Any]:
    """Takes any further keys."""
    return {"width": width, **rest}


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (3, int, 3),
        (3, float, 3.0),
        (0.5, float, 0.5),
        ("a", str, "a"),
        (True, bool, True),
        (None, int | None, None),
        (3, int | None, 3),
        (3, float | None, 3.0),
        ([1, 2], tuple[int, float], (1, 2.0)),
        ((1, 2), tuple[float, float], (1.0, 2.0)),
        ("2 minutes", Duration, Duration(120, "seconds")),
        ("3 steps", Duration | None, Duration(3, "steps")),
        (None, Duration | None, None),
        ([1], list[int], [1]),
        ({"a": 1}, dict[str, int], {"a": 1}),
        ("anything", Any, "anything"),
        ("small", Literal["standard", "small"], "small"),
    ],
)
def test_a_value_that_fits_is_taken(value: Any, annotation: Any, expected: Any) -> None:
    found = fit(value, annotation, "part.key")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        ("3", int),
        (3.5, int),
        (True, int),
        (False, float),
        (None, int),
        ("0.5", float),
        (3, str),
        (1, bool),
        ("yes", bool),
        ("3", int | None),
        (True, int | None),
        ([1], tuple[int, float]),
        ([1, 2, 3], tuple[int, float]),
        (["a", 2], tuple[int, float]),
        (3, tuple[int, float]),
        ("ab", tuple[str, str]),
        ({"a": 1}, list[int]),
        ("large", Literal["standard", "small"]),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(value: Any, annotation: Any) -> None:
    with pytest.raises(ConfigError, match=r"^part\.key=") as caught:
        fit(value, annotation, "part.key")
    assert "is not possible" in caught.value.problem


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("annotation", [float, float | None])
def test_numbers_without_end_are_refused(value: float, annotation: Any) -> None:
    with pytest.raises(ConfigError, match=r"^part\.key=(-?inf|nan) is not possible: it takes a finite number"):
        fit(value, annotation, "part.key")


@pytest.mark.parametrize("value", [30, "30", None, "soon"])
def test_a_duration_without_a_unit_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="is not a duration"):
        fit(value, Duration, "save_every")


def test_keys_become_keyword_arguments_of_their_types() -> None:
    node = {"size": 2, "rate": 1, "every": "1 epoch", "pair": [3, 4]}
    found = keywords(Part, node, "part")
    assert Part(**found) == Part(2, 1.0, every=Duration(1, "epochs"), pair=(3, 4.0))


def test_an_unknown_key_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"part\.siez is not known to Part") as caught:
        keywords(Part, {"siez": 2}, "part")
    assert caught.value.remedy == "Did you mean 'size'?"


def test_an_unknown_key_like_no_other_is_refused_with_all_names() -> None:
    with pytest.raises(ConfigError, match=r"part\.zzz is not known") as caught:
        keywords(Part, {"zzz": 2}, "part")
    assert "every, flag, name, pair, rate, size" in caught.value.remedy


def test_a_wrong_value_is_named_with_its_place() -> None:
    with pytest.raises(ConfigError, match=r"^part\.size='two' is not possible: it takes a value of type int"):
        keywords(Part, {"size": "two"}, "part")
    with pytest.raises(ConfigError, match=r"^size='two'"):
        keywords(Part, {"size": "two"}, "")


def test_further_keys_pass_to_what_takes_any() -> None:
    assert keywords(open_ended, {"width": 2, "depth": "x"}, "part") == {"width": 2, "depth": "x"}


def test_the_target_is_built_from_its_keys_and_what_is_given() -> None:
    linear = instantiate({"_target_": "torch.nn.Linear", "in_features": 3}, "head", out_features=2)
    assert isinstance(linear, nn.Linear)
    assert linear.weight.shape == (2, 3)
    made = instantiate(
        {"_target_": "dist_ssl.optim.recipes.AdamW", "base_lr": 1, "weight_decay": 0.1, "betas": [0, 0.5]}, "optim"
    )
    assert made == AdamW(1.0, 0.1, betas=(0.0, 0.5))


def test_the_node_is_left_as_it_is() -> None:
    node = {"_target_": "dist_ssl.data.images.views.Augmentation", "crop_min": 0.2}
    assert instantiate(node, "views.view1") == Augmentation(0.2)
    assert node == {"_target_": "dist_ssl.data.images.views.Augmentation", "crop_min": 0.2}


@pytest.mark.parametrize("target", ["os.system", "builtins.eval", "torchvision.models.resnet18", "dist_ssl_evil.X", ""])
def test_a_target_outside_the_allowed_packages_is_refused(target: str) -> None:
    with pytest.raises(ConfigError, match=r"encoder\._target_=.* is outside"):
        instantiate({"_target_": target, "command": "true"}, "encoder")


@pytest.mark.parametrize("target", ["dist_ssl.optim.recipes.AdamX", "dist_ssl.nothing.AdamW", "torch.nn.Linearr"])
def test_a_target_that_does_not_exist_is_refused(target: str) -> None:
    with pytest.raises(ConfigError, match=r"optim\._target_=.* does not exist"):
        instantiate({"_target_": target}, "optim")


def test_an_encoder_of_timm_is_built_from_its_config() -> None:
    node = {"_target_": "dist_ssl.models.encoders.timm_encoder", "name": "resnet18", "stem": "small"}
    assert instantiate(node, "encoder").num_features == 512


def test_what_is_no_class_and_what_names_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"schedule\.planner=torch\.nn is neither a class nor a function"):
        resolve("torch.nn", "schedule.planner")
    with pytest.raises(ConfigError, match=r"schedule\.planner is missing"):
        resolve(None, "schedule.planner")


def test_a_key_that_the_class_needs_is_asked_for_by_name() -> None:
    with pytest.raises(ConfigError, match=r"part\.size is missing: Part needs it") as raised:
        keywords(Part, {"rate": 1.0}, "part")
    assert raised.value.remedy == "Set part.size=..."


def test_makers_that_share_keys_take_their_own_and_refuse_what_none_knows() -> None:
    first, second = shared_keywords([Part, open_width], {"size": 3, "width": 4}, "part", ())
    assert (first, second) == ({"size": 3}, {"width": 4})
    with pytest.raises(ConfigError, match=r"part\.witdh is not known to Part or open_width") as raised:
        shared_keywords([Part, open_width], {"size": 3, "witdh": 4}, "part", ())
    assert "'width'" in raised.value.remedy
