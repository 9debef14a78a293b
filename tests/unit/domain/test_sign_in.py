"""How far a sign-in is extended, and when it is warned of."""

from pupitre.domain.people.sign_in import WARNING, extended, warning
from pupitre.portal.labels import lasting

HOUR = 3_600_000


def test_an_extension_reaches_from_now_to_the_last_end() -> None:
    for now, ends in ((6 * HOUR, 18 * HOUR), (11 * HOUR, 23 * HOUR), (20 * HOUR, 24 * HOUR)):
        assert extended(0, 12 * HOUR, now=now, length=12 * HOUR, most=24 * HOUR) == ends
    assert extended(0, 30 * HOUR, now=1, length=12 * HOUR, most=24 * HOUR) == 30 * HOUR, "never earlier"


def test_a_warning_comes_five_minutes_before_or_a_third() -> None:
    assert warning(12 * HOUR) == WARNING
    assert warning(90_000) == 30_000


def test_a_length_is_said_in_plain_words() -> None:
    said = {12 * HOUR: "12 hours", 90_000: "90 seconds", 90 * 60_000: "90 minutes", 12 * HOUR + 5: "12 hours"}
    assert {length: lasting(length) for length in said} == said
