"""A node of plain values becomes an object, or is refused by the name of the key that is wrong."""

import sys
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from dist_ssl.config.durations import Duration
from dist_ssl.config.instantiate import ALLOWED, fit, instantiate, keywords, resolve, shared_keywords
from dist_ssl.errors import ConfigError
from dist_ssl.models.encoders import TinyResNet
from dist_ssl.optim.recipes import SGD, AdamW


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
    net = instantiate({"_target_": "dist_ssl.models.encoders.TinyResNet", "width": 3}, "encoder", blocks=2)
    assert isinstance(net, TinyResNet)
    assert net.num_features == 24
    made = instantiate(
        {"_target_": "dist_ssl.optim.recipes.AdamW", "base_lr": 1, "weight_decay": 0.1, "betas": [0, 0.5]}, "optim"
    )
    assert made == AdamW(1.0, 0.1, betas=(0.0, 0.5))


def test_the_node_is_left_as_it_is() -> None:
    node = {"_target_": "dist_ssl.optim.recipes.SGD", "base_lr": 0.2, "weight_decay": 0.1}
    assert instantiate(node, "optim") == SGD(0.2, 0.1)
    assert node == {"_target_": "dist_ssl.optim.recipes.SGD", "base_lr": 0.2, "weight_decay": 0.1}


OUTSIDE = (
    *("os.system", "builtins.eval", "torchvision.models.resnet18", "dist_ssl_evil.X", "", "timm.create_model"),
    *("torch.utils.collect_env.run", "torch.hub.load", "torch.load", "dist_ssl.runtime.files.write_atomically"),
    *("dist_ssl.methods.byol.BYOL", "dist_ssl.models", "dist_ssl.modelsx.A"),
)


@pytest.mark.parametrize("target", OUTSIDE)
def test_a_target_outside_of_the_groups_package_is_refused(target: str) -> None:
    with pytest.raises(ConfigError, match=r"encoder\._target_=.* is outside dist_ssl.models"):
        instantiate({"_target_": target, "command": "true"}, "encoder")


@pytest.mark.parametrize("name", ["width_of", "Literal", "at_least", "ConfigError"])
def test_what_a_module_only_imports_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"elsewhere|neither a class|does not exist"):
        instantiate({"_target_": f"dist_ssl.models.encoders.{name}"}, "encoder")


def callables(root: str) -> set[str]:
    """Every callable that can be reached by an import path of a package's modules that are imported now."""
    modules = [name for name in sys.modules if name == root or name.startswith(f"{root}.")]
    return {f"{m}.{name}" for m in modules for name, value in list(vars(sys.modules[m]).items()) if callable(value)}


@pytest.mark.parametrize("group", sorted(ALLOWED))
def test_of_all_that_torch_and_this_package_have_a_group_gets_its_own_definitions_alone(group: str) -> None:
    reached = {target for root in ("torch", "dist_ssl") for target in callables(root)}
    assert len(reached) > 3000
    for target in reached:
        try:
            found = resolve(target, group)
        except ConfigError:
            continue
        assert found.__module__.startswith(f"{ALLOWED[group]}.")


@pytest.mark.parametrize("target", ["dist_ssl.optim.recipes.AdamX", "dist_ssl.optim.nothing.AdamW"])
def test_a_target_that_does_not_exist_is_refused(target: str) -> None:
    with pytest.raises(ConfigError, match=r"optim\._target_=.* does not exist"):
        instantiate({"_target_": target}, "optim")


def test_an_encoder_of_timm_is_built_from_its_config() -> None:
    node = {"_target_": "dist_ssl.models.encoders.timm_encoder", "name": "resnet18", "stem": "small"}
    assert instantiate(node, "encoder").num_features == 512


@pytest.mark.parametrize("option", ["pretrained", "checkpoint_path", "pretrained_cfg"])
def test_an_encoder_of_timm_reads_no_weights(option: str) -> None:
    node = {"_target_": "dist_ssl.models.encoders.timm_encoder", "name": "resnet18", option: "x"}
    with pytest.raises(
        ConfigError, match=rf"encoder\.{option}=x is not possible: an encoder starts untrained"
    ) as caught:
        instantiate(node, "encoder")
    assert "init=timm:resnet18" in caught.value.remedy


def test_what_is_no_class_and_what_names_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"schedule\.planner=dist_ssl.* is neither a class nor a function"):
        resolve("dist_ssl.schedules.half_cosine.math", "schedule.planner")
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
