"""Glossary of CONTRIBUTING: each term is used in the module that the glossary names."""

import re
from pathlib import Path

import pupitre
from tests import ROOT

SOURCES = Path(pupitre.__file__).parent


def rows() -> list[tuple[str, list[str]]]:
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## Glossary")[2].partition("\n## ")[0]
    found = re.findall(r"^\| ([a-z ]+) \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE)
    return [(term, re.findall(r"`([^`]+)`", places)) for term, places in found]


def test_each_term_is_used_where_the_glossary_says() -> None:
    terms = rows()
    assert len(terms) > 25
    for term, places in terms:
        assert places, term
        for place in places:
            words = re.sub(r"[\W_]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", (SOURCES / place).read_text())).lower()
            assert re.search(rf"\b{term}", words), f"{term} is not in {place}"
