"""Clocks of hosts that differ from the cluster's: consoles open all the same, and people are told."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pupitre.cluster.clocks import SAMPLES, ClockEstimate
from pupitre.domain.ticket import LEEWAY, TicketRefused
from pupitre.domain.warning import HostWarning
from pupitre.host.console.used_tickets import UsedTickets
from pupitre.runtime.clock import now_ms
from pupitre.timings import CLOCK_SAMPLE, CLOCK_TOLERATED_MS
from pupitre.wire.messages import Heartbeat
from tests.rigs.hostile_host import hostile_host
from tests.rigs.local_cluster import eventually, local_cluster
from tests.unit.host.test_warnings import host_where_warned


def shown(offset: int, delays: list[int]) -> tuple[HostWarning, ...]:
    """What is said after heartbeats of a clock that is ``offset`` ms ahead, each so many ms on its way."""
    clock, now = ClockEstimate(), 1_000_000_000
    last: tuple[HostWarning, ...] = ()
    for number, delay in enumerate(delays):
        found = clock.add(now + offset, now=now + delay, loop_time=number * (CLOCK_SAMPLE + 1))
        last = last if found is None else found
    return last


@given(st.integers(-CLOCK_TOLERATED_MS, CLOCK_TOLERATED_MS), st.lists(st.integers(0, 10**6), max_size=20))
def test_no_delay_makes_a_good_clock_seem_ahead(offset: int, delays: list[int]) -> None:
    assert not any(one.code == "clock_ahead" for one in shown(offset, delays))


@given(
    st.integers(-3600, 3600), st.integers(0, SAMPLES - 1), st.lists(st.integers(0, 60_000), min_size=20, max_size=20)
)
def test_one_quick_beat_of_five_tells_the_difference(seconds: int, quick: int, delays: list[int]) -> None:
    for number in range(quick, len(delays), SAMPLES):
        delays[number] = 0
    said = shown(seconds * 1000, delays)
    if abs(seconds * 1000) <= CLOCK_TOLERATED_MS:
        assert said == ()
    else:
        [one] = said
        assert one.code == ("clock_ahead" if seconds > 0 else "clock_behind")
        assert abs(one.number - abs(seconds)) <= abs(seconds) * 0.1 + 1


def test_beats_from_one_queue_count_as_one() -> None:
    clock = ClockEstimate()
    for number in range(50):  # the cluster was paused for ten seconds
        said = clock.add(1000, now=11_000, loop_time=7 + number / 10_000)
        assert not said


@pytest.mark.anyio
async def test_a_host_40_s_ahead_is_named_and_forgiven(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, host_timeout=30) as here:
        await (await here.add_host("host-2")).crash()
        async with hostile_host(here.settings, "host-2") as host:
            ahead = 40_000

            async def beaten(codes: list[str]) -> bool:
                await host.beat(Heartbeat(host="host-2", run="r", number=0, at=now_ms() + ahead))
                seen = await here.status.host("host-2")
                return seen is not None and [one.code for one in seen.warnings] == codes

            await eventually(lambda: beaten(["clock_ahead"]))
            found = await host_where_warned(here, "host-2", "clock_ahead")
            assert found.warnings[0].sentence("host-2").startswith("The clock of host-2 is 40 s ahead.")
            ahead = 0
            await eventually(lambda: beaten([]))


def test_a_used_ticket_is_refused_over_its_leeway(tmp_path: Path) -> None:
    """Also by the next process of the host."""
    expires = time.time() - LEEWAY / 2
    used = UsedTickets(tmp_path / "burned")
    used.consume("t1", expires + LEEWAY)
    for store in (used, UsedTickets(tmp_path / "burned")):
        with pytest.raises(TicketRefused, match="has been used"):
            store.consume("t1", expires + LEEWAY)
        store.close()
