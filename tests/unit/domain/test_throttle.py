"""How slow guessing is, whatever an attacker has; and what a class behind one address may do."""

from collections.abc import Callable, Iterable

import pytest

from pupitre.domain.people.throttle import (
    MINUTE,
    Counted,
    Counter,
    Tally,
    is_locked,
    limits,
    network_of,
    of_device,
    of_stranger,
)

N = 10
TABLE = limits(N)
DAY = 24 * 60 * MINUTE


class Counts:
    """The rule by which rows are counted, in memory: `test_store_failures` holds the database to the same."""

    def __init__(self) -> None:
        self.tallies: dict[str, Tally] = {}

    def locked(self, counters: Iterable[Counter], now: int) -> list[Tally]:
        found = [self.tallies[one.id] for one in counters if one.id in self.tallies]
        return [tally for tally in found if is_locked(tally, TABLE, now)]

    def count(self, counters: Iterable[Counter], now: int) -> None:
        for one in counters:
            tally = self.tallies.get(one.id)
            goes_on = tally is not None and tally.until > now
            self.tallies[one.id] = Tally(
                one,
                tally.failures + 1 if tally and goes_on else 1,
                tally.until if tally and goes_on else now + TABLE[one.kind].period,
            )


def guesses(attempt: Callable[[int], tuple[Counter, ...]], duration: int) -> int:
    """How many an attacker gets who tries as fast as they may; ``attempt`` gives the counters of the n-th."""
    counts, now, done = Counts(), 0, 0
    while now < duration:
        counters = attempt(done)
        locked = counts.locked(counters, now)
        if locked:
            now = max(tally.until for tally in locked)
        else:
            counts.count(counters, now)
            done += 1
    return done


@pytest.mark.parametrize(
    "attempt",
    [
        lambda n: of_stranger("ana", "192.0.2.1"),
        lambda n: of_stranger(f"pupil{n}", "192.0.2.1"),
        lambda n: of_stranger("ana", f"address {n}"),
    ],
    ids=["one address, one name", "one address, every name", "every address, one name"],
)
def test_guesses_a_day_are_as_many_as_before(attempt: Callable[[int], tuple[Counter, ...]]) -> None:
    assert guesses(attempt, DAY) == N * DAY // MINUTE


def test_a_stolen_cookie_gives_a_few_guesses_a_day() -> None:
    assert guesses(lambda n: of_device("ana", "stolen"), DAY) == N


def test_a_class_behind_one_address_may_slip() -> None:
    """Forty people, nine slips each within a minute; then nobody is locked out, and no name at another address."""
    counts = Counts()
    for pupil in range(40):
        for slip in range(N - 1):
            counts.count(of_stranger(f"pupil{pupil}", "192.0.2.1"), now=slip * 1000)
    assert not any(counts.locked(of_stranger(f"pupil{pupil}", "192.0.2.1"), 10_000) for pupil in range(41))


def test_a_lock_at_one_address_is_none_at_another() -> None:
    counts = Counts()
    for _ in range(N):
        counts.count(of_stranger("teacher", "192.0.2.1"), now=0)
    assert counts.locked(of_stranger("teacher", "192.0.2.1"), 1)
    assert not counts.locked(of_stranger("teacher", "192.0.2.2"), 1)
    assert not counts.locked(of_device("teacher", "own browser"), 1)


def test_a_clock_set_back_locks_nobody_for_long() -> None:
    tally = Tally(Counter(Counted.PAIR, "ana", "192.0.2.1"), N, until=DAY)
    assert not is_locked(tally, TABLE, DAY - 2 * MINUTE)
    assert is_locked(tally, TABLE, DAY - 1)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown", "unknown"),
    ],
)
def test_an_address_is_counted_by_its_network(address: str, network: str) -> None:
    assert network_of(address) == network
