"""The versions that `make` installs: one for every requirement, within its range, and nothing about their origin."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WANTED = [Requirement(text) for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]]
LINES = [line for line in (ROOT / "tests" / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
LEFT_TO_THE_MACHINE = ("torch", "torchvision")


@pytest.mark.parametrize("wanted", WANTED, ids=str)
def test_every_requirement_has_a_version_within_its_range(wanted: Requirement) -> None:
    pinned = [Requirement(line) for line in LINES]
    found = [own for own in pinned if canonicalize_name(own.name) == canonicalize_name(wanted.name)]
    if wanted.name in LEFT_TO_THE_MACHINE:
        assert not found
        return
    assert found, f"{wanted.name} has no version: run `make constraints`."
    for own in found:
        [version] = own.specifier
        assert version.operator == "=="
        assert wanted.specifier.contains(version.version, prereleases=True), "run `make constraints`"


def test_lines_are_versions_alone() -> None:
    assert all(Requirement(line).url is None for line in LINES)
    assert len(LINES) > 100
