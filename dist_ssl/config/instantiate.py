"""Build an object from a config node: `_target_` names the class, the other keys are its keyword arguments.

There is no registry: the config names the class by its import path. Values are checked against the constructor's
annotations, so a wrong one is refused by the name of its key before anything is built.

A config may come from somebody else, so each group names classes and functions of its own package, only those that are
defined there, and only those that make a part of the group's kind: whatever a config calls, it builds a part of this
system.
"""

import importlib
import inspect
import math
import reprlib
import types
import typing
from collections.abc import Container, Mapping, Sequence
from typing import Any

from dist_ssl.config.durations import Duration
from dist_ssl.config.percentage import Share
from dist_ssl.errors import ConfigError, nearest

ALLOWED = {
    "method": "dist_ssl.methods",
    "aux": "dist_ssl.methods",
    "encoder": "dist_ssl.models",
    "optim": "dist_ssl.optim",
    "schedule": "dist_ssl.schedules",
    "difficulty": "dist_ssl.data.difficulty",
    "engine": "dist_ssl.engines",
    "tracker": "dist_ssl.metrics.trackers",
}
"""The package whose classes and functions a group of the config may name."""
METHOD = "dist_ssl.protocols.method.Method"
BASES = {
    "method": METHOD,
    "aux": METHOD,
    "encoder": "torch.nn.modules.module.Module",
    "optim": "dist_ssl.optim.recipes.OptimizerRecipe",
    "schedule.planner": "dist_ssl.protocols.schedule.EpochPlanner",
    "schedule.curves": "dist_ssl.schedules.cycle_curves.CycleCurves",
    "difficulty": "dist_ssl.data.epoch_views.Difficulty",
    "engine": "dist_ssl.engines.canonical.Canonical",
    "tracker": "dist_ssl.metrics.trackers.detached.Tracker",
}
"""The class from which those derive that a group, or a key of it, may name; a function says that it returns one."""
MOST_TARGET = 128
"""Characters of the import path of a class, at most: it may come from somebody else, and is imported step by step."""
SHOWN = reprlib.Repr()
"""How a value appears in a message: in full up to a length that can be read, whatever it holds."""
SHOWN.maxstring = SHOWN.maxother = SHOWN.maxlong = 200


def fit(value: Any, annotation: Any, key: str) -> Any:
    """Return the value, converted to the type of its annotation. Raises ConfigError if it does not fit."""
    if annotation is inspect.Parameter.empty or annotation is Any:
        return value
    if annotation is Duration or annotation is Share:
        return annotation.parse(value)
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        if value in inner:
            return value
        raise ConfigError(f"{key}={SHOWN.repr(value)} is not possible.", nearest(str(value), map(str, inner)))
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        lists = [a for a in inner if isinstance(value, list | tuple) and typing.get_origin(a) in (tuple, list)]
        return fit(value, next(a for a in (*lists, *inner) if a is not types.NoneType), key)
    if origin is tuple and inner[-1] is Ellipsis and isinstance(value, list | tuple):
        return tuple(fit(v, inner[0], key) for v in value)
    if origin is tuple and isinstance(value, list | tuple) and len(value) == len(inner):
        return tuple(fit(v, a, key) for v, a in zip(value, inner, strict=True))
    if origin is list and isinstance(value, list) and inner:
        return [fit(v, inner[0], key) for v in value]
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        return _in_floating_point(value, key)
    expected = origin or annotation
    if isinstance(value, float) and expected is float and not math.isfinite(value):
        raise ConfigError(f"{key}={value} is not possible: it takes a finite number.", "Correct the value.")
    if isinstance(value, expected) and not (expected is int and isinstance(value, bool)):
        return value
    name = getattr(annotation, "__name__", str(annotation))
    raise ConfigError(
        f"{key}={SHOWN.repr(value)} is not possible: it takes a value of type {name}.", "Correct the value."
    )


def _in_floating_point(value: int, key: str) -> float:
    """Return a whole number as one of floating point. Raises ConfigError where it is too large."""
    try:
        return float(value)
    except OverflowError as error:
        raise ConfigError(
            f"{key}={SHOWN.repr(value)} is not possible: it is too large.", "Correct the value."
        ) from error


def instantiate(node: Mapping[str, Any], place: str, *, offered: Mapping[str, Any] | None = None, **given: Any) -> Any:
    """Call the class that `_target_` names and return the object.

    Its keyword arguments are the node's other keys, all of `given`, and those of `offered` that it has a parameter for.
    `place`: the node's name, for messages. Raises ConfigError.
    """
    if "_target_" not in node:
        raise ConfigError(f"{place}._target_ is missing: it names the class.", "Choose an option of the group.")
    make = resolve(node["_target_"], f"{place}._target_")
    own = {key: value for key, value in node.items() if key != "_target_"}
    given |= accepted_by(make, offered or {})
    return make(**keywords(make, own, place, given), **given)


def accepted_by(make: Any, offered: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the offered keyword arguments that `make` has a parameter for."""
    return {name: value for name, value in offered.items() if name in inspect.signature(make).parameters}


def defaults_of(make: Any) -> dict[str, Any]:
    """Return the default values of the arguments that `make` has some for."""
    parameters = inspect.signature(make).parameters
    return {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}


def resolve(target: Any, key: str) -> Any:
    """Return the class or function that `target` names, the value of `key`.

    Raises ConfigError where it is outside the group's package (see ALLOWED), does not exist or makes something else
    than the group holds (see BASES).
    """
    group = key.partition(".")[0]
    package = ALLOWED[group]
    if target is None:
        raise ConfigError(f"{key} is missing: it names the class.", "Choose an option of the group.")
    if not isinstance(target, str) or len(target) > MOST_TARGET:
        raise ConfigError(
            f"{key}={SHOWN.repr(target)} is no import path of at most {MOST_TARGET} characters.",
            f"Name a class or a function that is defined in {package}.",
        )
    module, _, name = target.rpartition(".")
    if not f"{module}.".startswith(f"{package}."):
        raise ConfigError(f"{key}={target} is outside {package}.", "Name a class or a function that is defined there.")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{key}={target} does not exist: {error}.", "Correct the name.") from error
    if not (inspect.isclass(found) or inspect.isfunction(found)):
        raise ConfigError(f"{key}={target} is neither a class nor a function.", "Name a class.")
    if found.__module__ != module:
        raise ConfigError(
            f"{key}={target} is defined elsewhere, in {found.__module__}.", f"Name one that {module} defines."
        )
    base = BASES.get(key) or BASES[group]
    if not makes(found, base):
        raise ConfigError(f"{key}={target} is no {base.rpartition('.')[2]}.", f"Name a class that derives from {base}.")
    return found


def makes(make: Any, base: str) -> bool:
    """Return whether a class derives from the class of this name and can be built, or a function returns such a class.

    The classes are compared by their names, so that nothing is imported for it.
    """
    made = make if inspect.isclass(make) else make.__annotations__.get("return")
    if not inspect.isclass(made) or base not in {f"{own.__module__}.{own.__qualname__}" for own in made.__mro__}:
        return False
    return made is not make or not (inspect.isabstract(make) or vars(make).get("_is_protocol"))


def shared_keywords(
    makers: Sequence[Any], own: Mapping[str, Any], place: str, given: Container[str]
) -> list[dict[str, Any]]:
    """Return the keyword arguments of each maker out of the node's keys, which they share.

    A key goes to every maker that takes it; the names in `given` are no keys of the node. Raises ConfigError where no
    maker takes a key.
    """
    taken = [inspect.signature(make).parameters for make in makers]
    possible = list(dict.fromkeys(key for parameters in taken for key in parameters if key not in given))
    for key in own:
        if key not in possible:
            names = " or ".join(dict.fromkeys(make.__name__ for make in makers))
            raise ConfigError(f"{place}.{key} is not known to {names}.", nearest(key, possible))
    return [
        keywords(make, {key: value for key, value in own.items() if key in parameters}, place, given)
        for make, parameters in zip(makers, taken, strict=True)
    ]


def keywords(make: Any, own: Mapping[str, Any], place: str, given: Container[str] = ()) -> dict[str, Any]:
    """Return the node's keys as keyword arguments of `make`, checked by name and annotation.

    The node may not set the arguments `given`: these come from the caller. Raises ConfigError.
    """
    parameters = {k: p for k, p in inspect.signature(make).parameters.items() if k not in given}
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for key in own:
        if key not in parameters and not open_ended:
            raise ConfigError(f"{place}.{key} is not known to {make.__name__}.", nearest(key, parameters))
    prefix = f"{place}." if place else ""
    for key, parameter in parameters.items():
        named = parameter.kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        if named and parameter.default is inspect.Parameter.empty and key not in own:
            raise ConfigError(f"{prefix}{key} is missing: {make.__name__} needs it.", f"Set {prefix}{key}=...")
    return {
        key: fit(value, parameters[key].annotation, prefix + key) if key in parameters else value
        for key, value in own.items()
    }
