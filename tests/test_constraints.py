"""The versions that `make` installs: one for every requirement, within its range, and nothing about their origin."""

import contextlib
import tomllib
from importlib import metadata
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


def test_everything_that_make_and_so_ci_installs_is_held_to_them() -> None:
    made = (ROOT / "Makefile").read_text()
    assert "INSTALL := $(BIN)/python -m pip install --quiet --constraint tests/constraints.txt\n" in made
    recipes = [line.strip() for line in made.splitlines() if line.startswith("\t")]
    installing = [line for line in recipes if "install" in line.lower()]
    assert installing
    assert all(line.startswith("$(INSTALL) ") for line in installing)
    steps = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith("#")]
    assert [line for line in steps if "install" in line] == []
    assert "make test" in steps


def test_what_the_requirements_need_in_turn_has_a_version_too() -> None:
    """As the packages that are installed here say; those of torch are its own matter."""
    known = {canonicalize_name(Requirement(line).name) for line in LINES}
    seen, waiting = set(LEFT_TO_THE_MACHINE), [*WANTED]
    missing = set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in seen:
            continue
        seen.add(name)
        missing |= {name} - known
        with contextlib.suppress(metadata.PackageNotFoundError):
            for text in metadata.requires(name) or []:
                needed = Requirement(text)
                extras = [{"extra": extra} for extra in (*wanted.extras, "")]
                if needed.marker is None or any(needed.marker.evaluate(extra) for extra in extras):
                    waiting.append(needed)
    assert not missing, "run `make constraints`"
    assert len(seen) > 80
