"""ARCHITECTURE.md: every "never" names a test, and the test is there."""

import re

from tests import ROOT

TESTS = ROOT / "tests"
PAGE = (ROOT / "ARCHITECTURE.md").read_text()


def test_every_never_is_held_by_a_test_that_exists() -> None:
    rows = [line for line in PAGE.partition("## Never")[2].splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 15
    for row in rows:
        found = re.search(r"`((?:\w+/)*test_\w+\.py)::(test_\w+)`", row)
        assert found or "`make check`" in row, row
        if found:
            module, name = found.groups()
            assert re.search(rf"^(async )?def {name}\(", (TESTS / module).read_text(), re.MULTILINE), row


def test_every_component_is_in_the_picture() -> None:
    components = {path.name for path in (ROOT / "src/pupitre").iterdir() if (path / "process.py").exists()} - {"cli"}
    assert {"cluster", "endpoint", "host"} <= components
    for name in components | {"portal", "gateway", "web", "up"}:
        assert f"| `{name}` |" in PAGE
