"""The keys of a run as `--help` and completion show them: the groups of configs/ with their choices, and other keys."""

import textwrap
from pathlib import Path

import yaml

RECIPE = "recipe"
"""The group of which a run has no choice by default, so that one is added with a +."""
WIDTH = 116


def config_groups(configs: Path) -> dict[str, list[str]]:
    """Return the choices of each group by how it is written before the =, those that every run has first."""
    listed = yaml.safe_load((configs / "config.yaml").read_text())["defaults"]
    order = [name for entry in listed if isinstance(entry, dict) for name in entry]
    found = {name: sorted(path.stem for path in (configs / name).glob("*.yaml")) for name in [*order, RECIPE]}
    return {f"+{name}" if name == RECIPE else name: choices for name, choices in found.items()}


def run_keys(configs: Path) -> list[str]:
    """Return the keys of config.yaml itself."""
    return [key for key in yaml.safe_load((configs / "config.yaml").read_text()) if key != "defaults"]


def keys_of_a_run(configs: Path) -> str:
    """Return what `--help` says about the keys of a run: the groups, then config.yaml's own keys and their defaults."""
    groups = config_groups(configs)
    width = max(map(len, groups)) + 2
    lines = ["Groups, with one choice each (dry_run=true prints the keys of what is chosen, such as encoder.stem):", ""]
    for name, choices in groups.items():
        start = f"    {name + '=':{width}}"
        lines += textwrap.wrap(", ".join(choices), WIDTH, initial_indent=start, subsequent_indent=" " * len(start))
    own = (configs / "config.yaml").read_text()
    own = textwrap.indent(own[own.index("# ----") :].rstrip(), "    ")
    return "\n".join([*lines, "", "Keys, and what they are by default (key=value sets one):", "", own])
