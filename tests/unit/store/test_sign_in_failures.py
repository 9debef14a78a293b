"""Wrong passwords in the database: exact for many at once, begun anew when a window is over."""

import asyncio
from pathlib import Path

import pytest

from pupitre.domain.people.throttle import MINUTE, Counted, Limit, limits, of_stranger
from pupitre.store.sign_in_failures import Failures
from tests.rigs import databases

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("each_database")]
TABLE = limits(3)
ANA = of_stranger("ana", "192.0.2.1")


async def test_many_at_once_in_two_portals_are_all_counted(tmp_path: Path) -> None:
    async with databases.database(tmp_path, "accounts") as one, databases.database(tmp_path, "accounts") as other:
        both = [Failures(one), Failures(other)]
        await asyncio.gather(*(both[turn % 2].count(ANA, TABLE, now=1000) for turn in range(20)))
        tallies = await both[0].tallies(ANA)
        assert {tally.counter.kind: tally.failures for tally in tallies} == {
            Counted.PAIR: 20,
            Counted.NAME: 20,
            Counted.ADDRESS: 20,
        }


async def test_a_window_begins_anew_when_it_is_over(tmp_path: Path) -> None:
    async with databases.database(tmp_path, "accounts") as database:
        failures = Failures(database)
        pair = ANA[:1]
        for now, counted in ((0, 1), (MINUTE - 1, 2), (MINUTE, 1), (MINUTE + 1, 2)):
            (tally,) = await failures.count(pair, TABLE, now=now)
            assert tally.failures == counted, now
        assert tally.until == 2 * MINUTE
        (tally,) = await failures.count(pair, {Counted.PAIR: Limit(3, 10)}, now=5)
        assert (tally.failures, tally.until) == (1, 15), "the clock was set back"
        await failures.prune(now=14)
        assert [one.counter for one in await failures.in_force(now=14)] == list(pair)
        await failures.prune(now=15)
        assert await failures.tallies(pair) == []


async def test_forgotten_is_what_was_lifted_alone(tmp_path: Path) -> None:
    async with databases.database(tmp_path, "accounts") as database:
        failures = Failures(database)
        await failures.count(ANA, TABLE, now=0)
        assert await failures.forget(ANA[:1])
        assert not await failures.forget(ANA[:1])
        assert {tally.counter for tally in await failures.in_force(now=1)} == set(ANA[1:])
