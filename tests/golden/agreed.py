"""Comparing what is made now with what a person agreed to."""

import difflib
import os
from pathlib import Path

import pytest


def agree(golden: Path, found: str) -> None:
    """Fail with the difference where `found` is not the golden file's; with ACCEPT_GOLDEN set, accept it."""
    if os.environ.get("ACCEPT_GOLDEN"):
        golden.write_text(found)
    if not golden.is_file():
        pytest.fail(f"There is no golden file {golden} yet. Write it with: make golden", pytrace=False)
    wanted = golden.read_text()
    if found != wanted:
        lines = difflib.unified_diff(wanted.splitlines(), found.splitlines(), "golden", "now", lineterm="")
        pytest.fail("\n".join([*lines, "If this is meant, accept it with: make golden"]), pytrace=False)
