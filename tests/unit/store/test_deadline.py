"""Waits for a driver: each ends within its limit, and a cancellation that comes together with an answer is not lost."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy import insert, text

from pupitre.errors import Unavailable
from pupitre.store.commands import ASKED, Commands
from pupitre.store.schema import gates
from pupitre.store.sql.deadline import Deadline, Overdue
from pupitre.store.sql.engine import Database
from pupitre.timings import DATABASE_CANCEL
from tests.rigs import databases
from tests.rigs.database_servers import Provisioned
from tests.rigs.local_cluster import eventually

pytestmark = pytest.mark.anyio

PATIENCE = 30.0
BRIEF = 0.05


async def cancelled_at_each_step(work: Callable[[], Awaitable[object]], *, rounds: int, steps: int) -> list[str]:
    """How each of many tasks ended that were cancelled at another step of the event loop while they were under way."""
    ends = []
    for _ in range(rounds):
        for step in range(steps):
            await work()  # over a connection that rests from now on, since opening one takes many steps
            task = asyncio.ensure_future(work())
            for _ in range(step):
                await asyncio.sleep(0)
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
                ends.append("cancelled" if task.cancelled() else "went on")
            else:
                task.result()
    return ends


async def test_cancellation_with_answer_ends_the_task(tmp_path: Path, each_database: str) -> None:
    """What is cancelled while it waits for a database ends, at whichever step: a loop would go on for ever."""
    async with databases.commands(tmp_path) as commands:
        await commands.version()
        before = asyncio.all_tasks()
        ends = await cancelled_at_each_step(commands.version, rounds=2, steps=60)
        assert len(ends) >= 5, f"{each_database} answers before anything can be cancelled: this shows nothing"
        assert set(ends) == {"cancelled"}
        # asyncpg tells the server of each cancellation over a connection of its own.
        if others := asyncio.all_tasks() - before:
            _, left = await asyncio.wait(others, timeout=PATIENCE)
            assert not left
        assert await commands.version() == 0


async def test_frozen_server_ends_every_wait_in_time(tmp_path: Path, each_server: Provisioned) -> None:
    """A server that takes connections and says nothing, as a machine that hangs: reads, writes, listening, closing."""
    url = databases.url(tmp_path, "commands")
    database = Database(url, notify_dir=tmp_path / "notify", poll=0.1, patience=1)
    commands = Commands(database)
    try:
        await asyncio.gather(*(commands.version() for _ in range(3)))
        async with database.listen(ASKED), asyncio.timeout(PATIENCE):
            async with database.write() as connection:
                await connection.execute(insert(gates).values(user_id="a", last=1))
            await freeze(pids(each_server))
            asked = [commands.version(), commands.catch_up(), commands.unfinished()]
            ends = await asyncio.gather(*asked, return_exceptions=True)
            assert [type(end) for end in ends] == [Unavailable] * 3, ends
            await database.close()
    finally:
        for pid in pids(each_server):
            os.kill(pid, signal.SIGCONT)
    async with databases.commands(tmp_path) as again:
        assert await again.version() == 0


async def freeze(processes: list[int]) -> None:
    """Stop them; a thread that runs on another processor stops a moment after the signal."""
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    threads = [path for pid in processes for path in Path(f"/proc/{pid}/task").glob("*/stat")]

    def stopped() -> bool:
        return all(path.read_text().rpartition(")")[2].split()[0] == "T" for path in threads)

    await eventually(stopped)


def pids(provisioned: Provisioned) -> list[int]:
    """Of the server and of all its processes."""
    first = provisioned.server.pid()
    children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    return [first, *map(int, children)]


async def test_long_statement_of_sqlite_is_ended(tmp_path: Path) -> None:
    counting = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1e12) SELECT count(*) FROM n"
    database = Database(databases.url(tmp_path, "commands"), notify_dir=tmp_path / "notify", patience=0.2)
    async with databases.closing(database), asyncio.timeout(PATIENCE):
        with pytest.raises(Unavailable, match=r"no answer within 0\.2 s"):
            async with database.read() as connection:
                await connection.execute(text(counting))
        assert await Commands(database).version() == 0


async def test_deaf_wait_is_cancelled_until_it_ends() -> None:
    """The connection is closed first; a driver that hears neither that nor a first cancellation ends all the same."""
    heard: list[str] = []

    async def deaf() -> None:
        for _ in range(2):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                heard.append("cancelled")
        await asyncio.Event().wait()

    with pytest.raises(Overdue, match="no answer within"), Deadline(BRIEF, lambda: heard.append("closed")):
        await deaf()
    assert heard == ["closed", "cancelled", "cancelled"]
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_cancellation_by_driver_is_an_error() -> None:
    """Nobody has cancelled the task: it would take for its own end what is the driver's."""

    async def gives_up() -> None:
        raise asyncio.CancelledError

    with pytest.raises(Overdue, match="gave up"), Deadline(PATIENCE):
        await gives_up()


async def test_swallowed_cancellation_is_raised() -> None:
    async def swallows() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "an answer"
        return ""

    async def work() -> str:
        with Deadline(PATIENCE):
            return await swallows()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_answers_in_time_are_never_late() -> None:
    """One deadline serves one wait after the other; each has its whole time."""
    closed: list[None] = []
    deadline = Deadline(4 * BRIEF, lambda: closed.append(None))
    loop = asyncio.get_running_loop()
    end = loop.time() + 4 * BRIEF + DATABASE_CANCEL
    while loop.time() < end:
        with deadline:
            await asyncio.sleep(BRIEF)
    assert not closed
