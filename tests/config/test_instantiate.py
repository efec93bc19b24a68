"""A node of plain values becomes an object, or is refused by the name of the key that is wrong."""

import contextlib
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pytest

from dist_ssl.config.durations import Duration
from dist_ssl.config.instantiate import fit, instantiate, keywords, resolve, shared_keywords
from dist_ssl.errors import ConfigError
from dist_ssl.models.encoders import TinyResNet
from dist_ssl.optim.recipes import SGD, AdamW
from launch.run_dir import PROJECT


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


@pytest.mark.parametrize("annotation", [float, float | None, tuple[float, ...], list[float]])
def test_a_whole_number_that_no_float_can_hold_is_refused(annotation: Any) -> None:
    value = [10**400] if "[" in str(annotation) else 10**400
    with pytest.raises(ConfigError, match=r"^part\.key=1000.* is not possible: it is too large") as caught:
        fit(value, annotation, "part.key")
    assert len(str(caught.value)) < 300


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


@pytest.mark.parametrize(
    "target", [f"dist_ssl.models{'.a' * 5000}", "dist_ssl.models.encoders." + "x" * 10**6, 5, [[]]]
)
def test_a_target_that_is_no_import_path_is_one_short_message(target: object) -> None:
    with pytest.raises(ConfigError, match=r"encoder\._target_=.* is no import path of at most") as caught:
        resolve(target, "encoder._target_")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["width_of", "Literal", "at_least", "ConfigError"])
def test_what_a_module_only_imports_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"elsewhere|neither a class|does not exist"):
        instantiate({"_target_": f"dist_ssl.models.encoders.{name}"}, "encoder")


KEYS = ("method._target_", "aux._target_", "encoder._target_", "optim._target_", "schedule.planner", "schedule.curves")
KEYS += ("difficulty._target_", "engine._target_", "tracker.wandb._target_")
PARTS_OF_ENCODERS = {"branch.Branch", "drop_path.DropPath", "encoders.ResidualBlock", "heads.mlp", "norm.BatchNorm"}
PARTS_OF_ENCODERS |= {"fixed_positions.Patches", "patches.Projection"}
PARTS_OF_ENCODERS |= {"resampling.ChosenPatches", "resampling.ResizedPositions"}
"""Networks that no config names, and that one could call."""
NAMED = re.compile(
    r"^(?:async )?(?:def|class) (\w+)|^(\w+)(?::[^=\n]+)? ?=|^from \S+ import (.*)|^import (.*)", re.MULTILINE
)
"""What a line of a module gives a name to: a function, a class, a value, or what it imports."""


def modules_of(package: str) -> Iterator[tuple[str, str]]:
    """Name and text of every module in the folder of a package, none of which is imported for it."""
    spec = find_spec(package)
    assert spec is not None
    for root in map(Path, spec.submodule_search_locations or []):
        for path in sorted(root.rglob("*.py")):
            own = path.relative_to(root).with_suffix("")
            yield ".".join([package, *own.parts]).removesuffix(".__init__"), path.read_text(errors="replace")


def named_in(text: str) -> set[str]:
    """Every name that a module's text defines or imports at its top."""
    defined, imported = set(), []
    for function, value, *names in NAMED.findall(text):
        defined |= {function or value} - {""}
        imported += [word for name in names for word in name.replace("(", "").replace(")", "").split(",")]
    return defined | {last for word in imported if (last := word.split(" as ")[-1].strip()).isidentifier()}


def test_a_config_can_call_what_our_own_configs_call_and_nothing_else_of_this_package() -> None:
    text = "\n".join(path.read_text() for path in (PROJECT / "configs").rglob("*.yaml"))
    ours = set(re.findall(r"^\s*(?:_target_|planner|curves): (dist_ssl\.\S+)", text, re.MULTILINE))
    assert len(ours) > 25
    found = set()
    for module, source in modules_of("dist_ssl"):
        for name, key in product(named_in(source), KEYS):
            with contextlib.suppress(ConfigError):
                resolve(f"{module}.{name}", key)
                found.add(f"{module}.{name}")
    assert found - ours == {f"dist_ssl.models.{own}" for own in PARTS_OF_ENCODERS}
    assert ours - found == set()


@pytest.mark.parametrize("every", [40, pytest.param(1, marks=pytest.mark.chaos)])
@pytest.mark.parametrize("package", ["torch", "timm"])
def test_nothing_of_other_packages_is_called_or_imported(
    package: str, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def imported(name: str) -> None:
        raise AssertionError(f"{name} is imported")

    modules = list(modules_of(package))[::every]
    monkeypatch.setattr(importlib, "import_module", imported)
    count = 0
    for (module, text), key in product(modules, KEYS):
        for name in named_in(text):
            count += 1
            with pytest.raises(ConfigError, match="is outside dist_ssl"):
                resolve(f"{module}.{name}", key)
    print(f"{count} names of {len(modules)} modules of {package} refused")
    assert count > 20_000 // every


WAYS_ROUND = (
    *("dist_ssl.models.encoders.nn.Module", "dist_ssl.models.encoders.timm.create_model", "dist_ssl.models..os.system"),
    *("dist_ssl.models.encoders.__builtins__.eval", "dist_ssl.models.encoders.TinyResNet.load_state_dict"),
    *(
        "dist_ssl.models.\nos.system",
        "dist_ssl.models.../../os.system",
        "dist_ssl.models.encoders.",
        "dist_ssl.models.os:x",
    ),
    *(
        "dist_ssl.models.encoders.TinyResNet.__init__",
        "dist_ssl.models.encoders.nearest",
        "dist_ssl.models.norm.convert",
    ),
    *(
        "dist_ssl.models.named_weights.load_weights",
        "dist_ssl.models.fixed_positions.stored_positions",
        "dist_ssl.models.\0.x",
    ),
)


@pytest.mark.parametrize("target", WAYS_ROUND)
def test_no_way_leads_round_that(target: str) -> None:
    with pytest.raises(ConfigError, match=r"encoder\._target_="):
        resolve(target, "encoder._target_")


@pytest.mark.parametrize(
    "target", ["dist_ssl.optim.recipes.OptimizerRecipe", "dist_ssl.optim.lars.LARSX", "dist_ssl.optim.lars.Rows"]
)
def test_what_is_no_part_of_the_groups_kind_is_refused(target: str) -> None:
    with pytest.raises(ConfigError, match=r"optim\._target_=.* (is no OptimizerRecipe|does not exist)"):
        instantiate({"_target_": target}, "optim")


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
