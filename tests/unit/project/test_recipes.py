"""Recipes of CONTRIBUTING: the tests that they name exist, and a step that was left out fails here."""

import pkgutil
import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import pupitre
from pupitre.config import Settings
from pupitre.portal import pages, rest
from pupitre.portal.http.app import REST
from tests import ROOT

SOURCES = Path(pupitre.__file__).parent


def test_every_test_that_a_document_names_exists() -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    named = {name for one in documents for name in re.findall(r"\btest_\w+\.py\b", one.read_text())}
    there = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert len(named) > 10
    assert named <= there


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_described_and_used(name: str) -> None:
    field = Settings.model_fields[name]
    assert field.description
    if field.annotation in (int, float):
        assert field.metadata, "a number without bounds"
    used = re.compile(rf"(settings|self)\.{name}\b|\"{name}\"")
    assert any(used.search(path.read_text()) for path in SOURCES.rglob("*.py"))


@pytest.mark.parametrize(
    ("package", "served"), [(pages, pages.ROUTERS), (rest, [module.router for module in REST])], ids=["pages", "rest"]
)
def test_every_module_with_routes_is_served(package: ModuleType, served: list[object]) -> None:
    modules = [import_module(f"{package.__name__}.{found.name}") for found in pkgutil.iter_modules(package.__path__)]
    assert [module.__name__ for module in modules if getattr(module, "router", None) not in (*served, None)] == []
