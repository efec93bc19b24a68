"""The resolved default config, as a person agreed to it: defaults do not change unnoticed."""

import difflib
import os
from pathlib import Path

import pytest
import yaml

from launch import settings
from launch.run_dir import PROJECT

GOLDEN = Path(__file__).with_name("config.yaml")


@pytest.mark.golden
def test_the_default_config_is_the_golden_one() -> None:
    found = yaml.safe_dump(settings.compose([], PROJECT / "configs"), sort_keys=False)
    if os.environ.get("ACCEPT_GOLDEN"):
        GOLDEN.write_text(found)
    wanted = GOLDEN.read_text()
    if found != wanted:
        lines = difflib.unified_diff(wanted.splitlines(), found.splitlines(), "golden", "now", lineterm="")
        pytest.fail("\n".join([*lines, "If this is meant, accept it with: make golden"]), pytrace=False)
