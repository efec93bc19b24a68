"""The resolved default config, and what every recipe makes of it, as a person agreed to it: none changes unnoticed."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from launch import science_keys, settings
from launch.run_dir import PROJECT
from tests.golden.agreed import agree

HERE = Path(__file__).parent
CONFIGS = PROJECT / "configs"


@pytest.mark.golden
def test_the_default_config_is_the_golden_one() -> None:
    agree(HERE / "config.yaml", yaml.safe_dump(settings.compose([], CONFIGS), sort_keys=False))


def changes(recipe: str, default: dict[str, Any]) -> dict[str, Any]:
    """The keys of a recipe's config that the default config does not have, or has other values of."""
    found = science_keys.leaves(settings.compose([f"+recipe={recipe}"], CONFIGS))
    return {key: value for key, value in found if key not in default or default[key] != value}


@pytest.mark.golden
def test_what_every_recipe_changes_is_what_the_golden_file_says() -> None:
    default = dict(science_keys.leaves(settings.compose([], CONFIGS)))
    names = sorted(path.stem for path in (CONFIGS / "recipe").glob("*.yaml"))
    shown = [f"{name}: " + yaml.safe_dump(changes(name, default), default_flow_style=True, width=110) for name in names]
    found = "".join(shown).replace("\n ", "\n    ")
    assert yaml.safe_load(found).keys() == set(names)
    agree(HERE / "recipes.yaml", found)
