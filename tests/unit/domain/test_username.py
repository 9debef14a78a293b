"""Sign-in names: one person, however their name is typed, and nothing that cannot be seen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pupitre.domain.people.username import MAX_DISPLAY, MAX_LENGTH, canonical, checked, checked_display
from pupitre.errors import Invalid


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("Student7", "student7"),
        (" student7\r\n", "student7"),
        ("Ana@Example.ORG", "ana@example.org"),
        ("ana+lab@example.org", "ana+lab@example.org"),
        ("O'Brien", "o'brien"),
        ("O\u2019Brien", "o'brien"),
        ("\u00d1and\u00fa", "\u00f1and\u00fa"),
        ("N\u0303andu\u0301", "\u00f1and\u00fa"),
        ("\uff21\uff4e\uff41", "ana"),
        ("\u540d\u524d", "\u540d\u524d"),
        ("x" * MAX_LENGTH, "x" * MAX_LENGTH),
    ],
)
def test_ways_to_type_a_name_are_one(typed: str, name: str) -> None:
    assert canonical(typed) == name
    assert checked(typed) == name


INVISIBLE = ["a\x00", "a\x1b[31m", "a\nb", "a\u202eb", "a\u200bb", "a\u2066b", "a\u00adb", "\u3164a", "a\ufeff1"]
NO_NAMES = [
    "",
    " ",
    "a b",
    "-a",
    ".",
    "..",
    "a/b",
    "a\\b",
    "a%2e",
    "a?b",
    "a:b",
    "<a>",
    "a\ud800",
    "\u0301a",
    "\U0001f600",
]


@pytest.mark.parametrize("typed", [*INVISIBLE, *NO_NAMES, "x" * (MAX_LENGTH + 1)], ids=ascii)
def test_what_no_name_is_refused_without_showing_it(typed: str) -> None:
    assert canonical(typed) is None
    with pytest.raises(Invalid, match="A sign-in name has") as refused:
        checked(typed)
    assert refused.value.reason.isprintable()


@given(st.text(max_size=200))
def test_the_canonical_form_is_its_own_form(typed: str) -> None:
    name = canonical(typed)
    if name is not None:
        assert canonical(name) == name
        assert name.isprintable()


def test_a_name_to_be_shown_is_kept_as_it_is() -> None:
    assert checked_display("  Ana  D\u00edaz ") == "Ana D\u00edaz"
    assert checked_display("") == checked_display("  ") == ""
    for bad in ("a\u202eb", "a\x1b[2J", "a\nb", "\u3164", "a\u200bb", "a\ud800", "x" * (MAX_DISPLAY + 1)):
        with pytest.raises(Invalid, match="A name to be shown"):
            checked_display(bad)
