"""ARCHITECTURE.md and docs/design: one page, names that exist, and for every "never" a test that is there."""

import ast
import re
from pathlib import Path

from tests import ROOT

TESTS = ROOT / "tests"
SOURCES = ROOT / "src/pupitre"
ARCHITECTURE = ROOT / "ARCHITECTURE.md"
PAGES = [ARCHITECTURE, *sorted((ROOT / "docs/design").glob("*.md"))]
LINES = 120


def nevers(page: Path) -> list[str]:
    rows = [
        line
        for line in page.read_text().partition("| Never |")[2].partition("\n## ")[0].splitlines()
        if line.startswith("| ")
    ]
    return [row for row in rows if "Held by" not in row]


def test_architecture_is_one_page() -> None:
    assert len(ARCHITECTURE.read_text().splitlines()) <= LINES


def test_every_never_is_held_by_a_test_that_exists() -> None:
    everything = nevers(ROOT / "docs/design/never.md")
    assert len(everything) > 50
    for row in everything:
        found = re.search(r"`((?:\w+/)*test_\w+\.py)::(test_\w+)`", row)
        assert found or "`make check`" in row, row
        if found:
            module, name = found.groups()
            assert re.search(rf"^(async )?def {name}\(", (TESTS / module).read_text(), re.MULTILINE), row
    assert len(nevers(ARCHITECTURE)) == 10
    assert set(nevers(ARCHITECTURE)) <= set(everything)


def test_every_component_is_in_the_picture() -> None:
    components = {path.name for path in SOURCES.iterdir() if (path / "process.py").exists()} - {"cli"}
    assert {"cluster", "endpoint", "host"} <= components
    for name in components | {"portal", "gateway", "web", "up"}:
        assert f"| `{name}` |" in ARCHITECTURE.read_text()


def test_every_module_and_class_that_pages_name_exists() -> None:
    defined = set()
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                defined.add(node.name)
                functions = (ast.FunctionDef, ast.AsyncFunctionDef)
                defined |= {f"{node.name}.{one.name}" for one in node.body if isinstance(one, functions)}
    for page in PAGES:
        for name in re.findall(r"`([^`\n]+)`", page.read_text()):
            if re.fullmatch(r"[\w/]+\.py", name):
                assert (SOURCES / name).exists() or (ROOT / name).exists(), f"{page.name}: {name}"
            elif re.fullmatch(r"[A-Z][a-z]+([A-Z][a-z]+)+(\.\w+)?", name):
                assert name in defined, f"{page.name}: {name}"


def test_every_layer_is_in_the_table() -> None:
    table = ARCHITECTURE.read_text().partition("## Layers")[2].partition("## ")[0]
    packages = {path.stem for path in SOURCES.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert packages - {"__init__", "__main__"} == set(
        re.findall(r"`(\w+)`", "".join(re.findall(r"^\|[^|]*\|", table, re.MULTILINE)))
    )
