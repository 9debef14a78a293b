"""The command line with whatever people may give it: each command ends in one sentence, never in a traceback."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rigs.command_walk import PROCESSES, Case, Ended, Leaf, damaged_homes, leaves, walk
from tests.rigs.stack import Stack

ODD = ("", "x" * 10_000, "\udcff\udcfe", "../..", "9" * 30, "\x1b[31mred\n\u202e", "?a=b#c/")
ODD_OPTIONS = ("", "\udcff\udcfe\x1b[31m\u202e", "9" * 30)
NEEDED = {"port": "5000", "role": "student"}
"""Words for arguments that take a closed list or a number."""
ENDLESS = {("image", "build"), ("cluster", "halt")}
"""Commands that do what they say with any argument, at length."""
HOMES = ("closed", "broken-settings", "unknown-setting", "not-utf8", "settings-folder", "damaged-files", "empty",
         "a-file", "below-a-file", "missing", "someone-elses")  # fmt: skip
SERVING = PROCESSES - {"host", "cluster"}
"""Commands that only serve: they take no argument."""
USABLE = {"empty", "missing"}
"""Homes with which a process would start."""


def _plain(leaf: Leaf) -> tuple[str, ...]:
    return (*leaf.path, *(NEEDED.get(name, "x") for name in leaf.arguments))


def _check(case: Case, ended: Ended) -> None:
    said = f"pupitre {' '.join(case.arguments)!r}: {ended}"
    assert "Traceback" not in ended.output, said
    assert "fault of Pupitre" not in ended.output, said
    assert ended.code in {0, 1, 2}, said
    assert ended.code == 0 or ended.output.strip(), said
    assert "\x1b[31m" not in ended.output, said
    assert "\u202e" not in ended.output, said


@pytest.fixture
def homes(tmp_path: Path) -> Iterator[dict[str, dict[str, str]]]:
    yield damaged_homes(tmp_path)
    (tmp_path / "closed").chmod(0o700)


def test_no_home_ends_a_command_in_a_traceback(homes: dict[str, dict[str, str]]) -> None:
    cases = {
        (home, leaf.path): Case(_plain(leaf), {**found, "PUPITRE_IMAGE_STORE": f"{found['PUPITRE_HOME']}/images"})
        for home, found in homes.items()
        for leaf in leaves()
        if leaf.path not in ENDLESS and not (home in USABLE and len(leaf.path) == 1 and leaf.path[0] in PROCESSES)
    }
    outcomes = dict(zip(cases, walk(list(cases.values()), {}), strict=True))
    for key, ended in outcomes.items():
        _check(cases[key], ended)
    accepted = {
        (home, path)
        for (home, path), ended in outcomes.items()
        if ended.code != 2 and home not in {*USABLE, "damaged-files", "someone-elses"}
    }
    assert {path for _, path in accepted} <= {("host", "configure")}  # which has nothing to change, and says so first


@pytest.fixture(scope="module")
def token(stack: Stack) -> str:
    return stack.pupitre("user", "token", "admin").stdout.strip()


def test_no_argument_ends_a_command_in_a_traceback(stack: Stack, token: str, tmp_path: Path) -> None:
    environment = {"PUPITRE_TOKEN": token, "PUPITRE_IMAGE_STORE": str(tmp_path / "images")}
    cases = [
        Case(arguments, environment, given)
        for leaf in leaves()
        if leaf.path not in ENDLESS and leaf.path[0] != "up" and leaf.path[0] not in SERVING
        for arguments, given in _odd(leaf)
    ]
    before = set(Path.cwd().iterdir())
    for case, ended in zip(cases, walk(cases, stack.environment), strict=True):
        _check(case, ended)
    assert set(Path.cwd().iterdir()) == before


def _odd(leaf: Leaf) -> Iterator[tuple[tuple[str, ...], str]]:
    """Arguments and standard input: missing ones, unknown ones, and each in turn as nobody means it."""
    plain = _plain(leaf)
    if leaf.arguments:
        yield leaf.path, ""
    yield (*leaf.path, "-h"), ""
    yield (*plain, "--no-such-option"), ""
    yield (*plain, "one", "too", "many"), ""
    for odd in ODD:
        for place in range(len(leaf.path), len(plain)):
            yield (*plain[:place], odd, *plain[place + 1 :]), ""
    for option in leaf.options:
        for odd in ODD_OPTIONS:
            yield (*plain, f"{option}={odd}"), ""
    if leaf.path[0] == "user":
        yield (*plain, "--password-stdin"), "\udcff\udcfe\n"
        yield (*plain, "--password-stdin"), ""
        yield (*plain, "--password-stdin", "--ask"), "x"


def test_every_home_of_the_walk_is_tried(homes: dict[str, dict[str, str]]) -> None:
    assert sorted(homes) == sorted(HOMES)
