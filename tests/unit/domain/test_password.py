"""The rule for passwords: length and no one's first guess; and one password however it is typed."""

import pytest
from argon2 import PasswordHasher

from pupitre.domain.people.password import MAX_LENGTH, decoded, normalized
from pupitre.errors import Invalid
from pupitre.portal.identity.passwords import hash_password, verify


@pytest.mark.parametrize(
    ("password", "words", "said"),
    [
        ("short", (), "at least 10 characters. Choose a longer one"),
        ("x" * MAX_LENGTH + "y", (), "at most 512 characters. Choose a shorter one"),
        ("\ufdfa" * 40, (), "at most 512 characters. Choose a shorter one"),  # 18 characters each, after NFKC
        (" " * 10, (), "repeats fewer than 5 characters"),
        ("abababababab", (), "repeats fewer than 5 characters"),
        ("password12", (), "Many people have this password"),
        ("PASSWORD12", (), "Many people have this password"),
        ("1234567890", (), "Many people have this password"),
        ("qwertyuiop", (), "Many people have this password"),
        ("pupitre2026", (), "a name that others know"),
        ("Ana.Diaz-99", ("ana.diaz",), "a name that others know"),
        ("a line\nbreak in it", (), "cannot be typed"),
        ("half a \ud800 character", (), "cannot be typed"),
        ("what was \ufffd bytes", (), "cannot be typed"),
    ],
)
def test_a_bad_password_is_refused_with_its_remedy(password: str, words: tuple[str, ...], said: str) -> None:
    with pytest.raises(Invalid, match=said) as refused:
        hash_password(password, *words)
    assert password not in refused.value.reason


@pytest.mark.parametrize(
    "password", ["open sesame 42", "correct horse battery", "ñandú ñandú", "名前名前名前名前名前" + "abcd"]
)
def test_no_rule_asks_for_kinds_of_characters(password: str) -> None:
    assert verify(password, hash_password(password, "ana"))


def test_two_ways_to_type_a_password_are_one() -> None:
    composed, two_points, wide = "\u00f1and\u00fa un d\u00eda", "n\u0303andu\u0301 un di\u0301a", "\uff4eandu un dia"
    made = hash_password(composed)
    assert verify(two_points, made)
    assert normalized(wide) == "nandu un dia"
    assert not verify(wide, made)


def test_a_hash_of_what_was_typed_before_is_still_good() -> None:
    typed = "n\u0303andu un dia"
    assert verify(typed, PasswordHasher().hash(typed))


@pytest.mark.parametrize(
    ("sent", "password"),
    [
        (b"a quite long one", "a quite long one"),
        (b"a quite long one\n", "a quite long one"),
        (b"a quite long one\r\n", "a quite long one"),
        (b"\xef\xbb\xbfa quite long one\r\n", "a quite long one"),
        (b" blanks stay \n", " blanks stay "),
    ],
)
def test_a_line_from_a_pipe_loses_its_end_alone(sent: bytes, password: str) -> None:
    assert decoded(sent) == password


def test_bytes_that_are_no_utf8_are_told_in_a_sentence() -> None:
    with pytest.raises(Invalid, match="is not UTF-8 text"):
        decoded(b"contrase\xf1a larga\n")
