"""Names of tests: at most 60 characters, one of each in a module; the story belongs into the docstring."""

import ast
from pathlib import Path

from tests import ROOT

LONGEST = 60


def test_names_of_tests_are_short_and_used_once() -> None:
    long, twice, count = [], [], 0
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        names = [
            node.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
        ]
        count += len(names)
        long += [f"{where(path)}: {name}" for name in names if len(name) > LONGEST]
        twice += [f"{where(path)}: {name}" for name in set(names) if names.count(name) > 1]
    assert not long
    assert not twice
    assert count > 900


def where(path: Path) -> Path:
    return path.relative_to(ROOT)
