"""Liveness by what hosts say, and the order of their reports."""

import asyncio

import pytest

from pupitre.cluster.liveness import Liveness
from pupitre.errors import Unavailable

pytestmark = pytest.mark.anyio


async def test_each_silent_host_is_named_once_and_again_after_it_spoke() -> None:
    silent: list[str] = []
    news = asyncio.Event()

    async def on_silence(host: str) -> None:
        silent.append(host)
        news.set()

    liveness = Liveness(0.05, on_silence)
    watching = asyncio.create_task(liveness.watch())
    for host in ("a", "b"):
        liveness.expect(host)
    while len(silent) < 2:
        await asyncio.wait_for(news.wait(), 5)
        news.clear()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(news.wait(), 0.15)
    assert sorted(silent) == ["a", "b"]
    liveness.heard("a")
    await asyncio.wait_for(news.wait(), 5)
    assert silent[2:] == ["a"]
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_a_host_that_speaks_is_not_silent() -> None:
    silent: list[str] = []

    async def on_silence(host: str) -> None:
        silent.append(host)

    liveness = Liveness(0.2, on_silence)
    watching = asyncio.create_task(liveness.watch())
    liveness.expect("a")
    for _ in range(10):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 0.04)
        liveness.heard("a")
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

    liveness = Liveness(0.05, on_silence, can_hear)
    watching = asyncio.create_task(liveness.watch())
    liveness.expect("a")
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

    liveness = Liveness(0.01, on_silence)
    watching = asyncio.create_task(liveness.watch())
    liveness.expect("a")
    await asyncio.wait_for(written.wait(), 10)
    assert tries == ["a", "a"]
    assert not watching.done()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_the_order_of_reports() -> None:
    async def on_silence(_host: str) -> None: ...

    liveness = Liveness(10, on_silence)
    assert liveness.is_news("a", "run 1", 1)
    liveness.took("a", "run 1", 5)
    assert not liveness.is_news("a", "run 1", 5)
    assert liveness.is_news("a", "run 1", 6)
    assert not liveness.is_news("a", "run 1", 4)
    assert liveness.follows("a", "run 1", 5)
    assert liveness.follows("a", "run 1", 6)
    assert not liveness.follows("a", "run 1", 7)
    assert liveness.is_stale("a", "run 1", 4)
    assert not liveness.is_stale("a", "run 1", 5)
    assert not liveness.is_stale("a", "run 2", 1)
    assert liveness.is_news("a", "run 2", 1)
    assert not liveness.follows("a", "run 2", 1)


async def test_everything_told_before_a_later_change_is_stale_though_it_comes_after_it() -> None:
    """Asked to describe itself, a host looks, is given a desktop, tells of it, and only then its look arrives."""
    liveness = Liveness(10, _nobody)
    liveness.write("a", "run 1", 3)
    liveness.took("a", "run 1", 3)
    liveness.write("a", "run 1", 5)
    assert liveness.is_stale("a", "run 1", 4)
    assert liveness.is_news("a", "run 1", 5), "what the fourth would have said is still asked for"


async def test_a_host_that_was_restarted_says_nothing_more_from_before() -> None:
    liveness = Liveness(10, _nobody)
    liveness.write("a", "run 1", 7)
    assert not liveness.is_stale("a", "run 2", 1)
    liveness.write("a", "run 2", 1)
    assert liveness.is_stale("a", "run 1", 8)
    assert not liveness.is_stale("a", "run 2", 2)
    assert not liveness.is_stale("b", "run 1", 1)


async def _nobody(_host: str) -> None:
    raise AssertionError("nobody is silent")
