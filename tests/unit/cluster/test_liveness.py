"""Liveness by what hosts say, and the order of their reports."""

import asyncio

import pytest

from pupitre.cluster.host_session import HostSession, ReportNumber
from pupitre.cluster.liveness import HostSessions
from pupitre.errors import Unavailable

pytestmark = pytest.mark.anyio


async def test_each_silent_host_is_named_once_and_again_after_it_spoke() -> None:
    silent: list[str] = []
    news = asyncio.Event()

    async def on_silence(host: str) -> None:
        silent.append(host)
        news.set()

    sessions = HostSessions(0.05, on_silence)
    watching = asyncio.create_task(sessions.watch())
    for host in ("a", "b"):
        sessions.expect(host)
    while len(silent) < 2:
        await asyncio.wait_for(news.wait(), 5)
        news.clear()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(news.wait(), 0.15)
    assert sorted(silent) == ["a", "b"]
    sessions.expect("a")
    await asyncio.wait_for(news.wait(), 5)
    assert silent[2:] == ["a"]
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_a_host_that_speaks_is_not_silent() -> None:
    silent: list[str] = []

    async def on_silence(host: str) -> None:
        silent.append(host)

    sessions = HostSessions(0.2, on_silence)
    watching = asyncio.create_task(sessions.watch())
    sessions.expect("a")
    for _ in range(10):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.04)
        sessions.expect("a")
    assert silent == []
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_silence_says_nothing_while_nobody_can_be_heard() -> None:
    silent: list[str] = []
    hears, looked, news = False, asyncio.Event(), asyncio.Event()

    async def on_silence(host: str) -> None:
        silent.append(host)
        news.set()

    def can_hear() -> bool:
        looked.set()
        return hears

    sessions = HostSessions(0.05, on_silence, can_hear)
    watching = asyncio.create_task(sessions.watch())
    sessions.expect("a")
    for _ in range(3):
        await asyncio.wait_for(looked.wait(), 5)
        looked.clear()
    assert silent == []
    hears = True
    await asyncio.wait_for(news.wait(), 5)
    assert silent == ["a"]
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_a_database_that_is_away_costs_no_silence() -> None:
    tries: list[str] = []
    written = asyncio.Event()

    async def on_silence(host: str) -> None:
        tries.append(host)
        if len(tries) == 1:
            raise Unavailable("away")
        written.set()

    sessions = HostSessions(0.01, on_silence)
    watching = asyncio.create_task(sessions.watch())
    sessions.expect("a")
    await asyncio.wait_for(written.wait(), 10)
    assert tries == ["a", "a"]
    assert not watching.done()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


def test_the_order_of_reports() -> None:
    session = HostSession("a")
    assert session.is_new(ReportNumber("run 1", 1))
    session.mark_applied(ReportNumber("run 1", 5))
    assert not session.is_new(ReportNumber("run 1", 5))
    assert session.is_new(ReportNumber("run 1", 6))
    assert not session.is_new(ReportNumber("run 1", 4))
    assert session.follows(ReportNumber("run 1", 5))
    assert session.follows(ReportNumber("run 1", 6))
    assert not session.follows(ReportNumber("run 1", 7))
    assert session.is_stale(ReportNumber("run 1", 4))
    assert not session.is_stale(ReportNumber("run 1", 5))
    assert not session.is_stale(ReportNumber("run 2", 1))
    assert session.is_new(ReportNumber("run 2", 1))
    assert not session.follows(ReportNumber("run 2", 1))


def test_report_before_later_change_is_stale() -> None:
    """Asked to describe itself, a host looks, is given a desktop, tells of it, and only then its look arrives."""
    session = HostSession("a")
    session.mark_written(ReportNumber("run 1", 3))
    session.mark_applied(ReportNumber("run 1", 3))
    session.mark_written(ReportNumber("run 1", 5))
    assert session.is_stale(ReportNumber("run 1", 4))
    assert session.is_new(ReportNumber("run 1", 5)), "what the fourth would have said is still asked for"


def test_a_host_that_was_restarted_says_nothing_more_from_before() -> None:
    session = HostSession("a")
    session.mark_written(ReportNumber("run 1", 7))
    assert not session.is_stale(ReportNumber("run 2", 1))
    session.mark_written(ReportNumber("run 2", 1))
    assert session.is_stale(ReportNumber("run 1", 8))
    assert not session.is_stale(ReportNumber("run 2", 2))
