"""docs/THREATS.md: every threat and every fault has a row, a promise and tests, and pytest collects them."""

import re
import subprocess
import sys
from collections.abc import Iterable

import pytest

from tests import ROOT
from tests.conftest import COLLECTED

TESTS = ROOT / "tests"
PAGE = (ROOT / "docs/THREATS.md").read_text()
NAMED = re.compile(r"`((?:\w+/)*test_\w+\.py)::(test_\w+)`")
COUNTS = {"Threats": 22, "Faults": 27}


def rows(section: str) -> list[list[str]]:
    lines = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| \d", line)]


@pytest.mark.parametrize("section", COUNTS)
def test_every_threat_and_fault_has_a_row_and_a_test(section: str) -> None:
    assert [int(row[0]) for row in rows(section)] == list(range(1, COUNTS[section] + 1))
    for number, what, promise, held in rows(section):
        assert what, number
        assert promise.endswith("."), number
        assert NAMED.findall(held), number
        assert not NAMED.sub("", held).strip(", "), (number, "nothing but tests stands there")


def test_every_test_that_the_page_names_is_collected(request: pytest.FixtureRequest) -> None:
    """By pytest itself: a name may be there and skipped over, a parametrised one may have no case."""
    named = {test for section in COUNTS for row in rows(section) for test in NAMED.findall(row[3])}
    everything = request.config.stash[COLLECTED]
    collected = names_in(everything)
    if modules := {module for module, _ in named} - {module for module, _ in collected}:
        collected |= names_in(collect(modules))  # this run is about some files only
    assert named <= collected, named - collected


def names_in(ids: Iterable[str]) -> set[tuple[str, str]]:
    matches = (re.match(r"(?:tests/)?(\S+?)::(test_\w+)", one) for one in ids)
    return {(match[1], match[2]) for match in matches if match}


def collect(modules: set[str]) -> list[str]:
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-m", "pytest", "--collect-only", "-q", "-n", "0", "--no-cov"),
            *("-p", "no:cacheprovider", *(str(TESTS / module) for module in sorted(modules))),
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout.splitlines()
