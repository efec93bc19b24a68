"""The texts that the code can say, as templates in which a value is one character."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SPEAKING = ("dist_ssl", "launch", "shards")
VALUE = "\0"
"""What stands for a value in a template."""


@cache
def templates() -> tuple[str, ...]:
    """All texts of the product's code."""
    files = (path for name in SPEAKING for path in sorted((ROOT / name).rglob("*.py")))
    return tuple(text for path in files for text in texts(ast.parse(path.read_text())))


def texts(tree: ast.AST) -> Iterator[str]:
    """The texts of a module; pieces that follow each other are one, and a value within is VALUE.

    Docstrings are none: nobody sees them.
    """
    described = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in described:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values)
