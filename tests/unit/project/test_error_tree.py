"""Errors: the tree in errors.py names every one, where it stands."""

import ast
import re
from pathlib import Path

import pupitre
from pupitre import errors

SOURCES = Path(pupitre.__file__).parent


def test_tree_names_every_error_with_its_parent() -> None:
    parents = {}
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.bases and isinstance(node.bases[0], ast.Name):
                parents[node.name] = node.bases[0].id
    ours = {"PupitreError"}
    while more := {name for name, parent in parents.items() if parent in ours} - ours:
        ours |= more
    tree, above = {}, {0: "PupitreError"}
    for line in (errors.__doc__ or "").splitlines():
        if found := re.match(r"    ([│ ]*)[├└]── (\w+)", line):
            depth = len(found[1]) // 4 + 1
            above[depth] = found[2]
            tree[found[2]] = above[depth - 1]
    assert tree == {name: parents[name] for name in ours if name != "PupitreError"}
