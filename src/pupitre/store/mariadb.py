"""MariaDB, by asyncmy. Nobody can be woken by it, so who listens looks at a row, seldom while nothing happens.

Readers and writers have pools of their own: MariaDB takes four round trips to change
a connection's isolation. Each transaction is begun aloud, which also shows a
connection that the server closed while it rested in the pool.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import asyncmy
from asyncmy.errors import MySQLError
from sqlalchemy import URL, Connection, event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from pupitre.errors import SetupError
from pupitre.store.dialect import POOL, Listening
from pupitre.store.listener import RemoteListener

SHORTEST_PAUSE = 0.02
"""Seconds between two looks at the row while it moves."""

_ARGUMENTS = {"charset": "utf8mb4", "connect_timeout": 10}
# Notes on our own statements, such as the name of a primary key, help nobody.
logging.getLogger("asyncmy").setLevel(logging.ERROR)

_MODE = "STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION"


class Maria:
    def __init__(self, url: URL, *, poll: float, patience: float, read_only: bool = False) -> None:
        self._url = url.set(drivername="mariadb+asyncmy")
        self._poll = poll
        self._patience = patience
        self._read_only = read_only
        self.reading = self._engine("REPEATABLE READ", "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
        self.writing = self._engine("READ COMMITTED", "START TRANSACTION")
        self.turn = nullcontext()

    def _engine(self, isolation: str, begin: str) -> AsyncEngine:
        # Every transaction is ended by name: the pool need not say ROLLBACK once more.
        arguments = {**_ARGUMENTS, "read_timeout": self._patience}
        engine = create_async_engine(
            self._url, connect_args=arguments, pool_reset_on_return=None, pool_recycle=3600, **POOL
        )

        def connected(connection: Any, _record: object) -> None:
            cursor = connection.cursor()
            cursor.execute(f"SET SESSION TRANSACTION ISOLATION LEVEL {isolation}")
            cursor.execute(f"SET SESSION sql_mode = '{_MODE}', innodb_lock_wait_timeout = {int(self._patience / 3)}")
            if self._read_only:
                cursor.execute("SET SESSION TRANSACTION READ ONLY")
            cursor.execute("SELECT @@innodb_flush_log_at_trx_commit")
            (flush,) = cursor.fetchone()
            cursor.close()
            if flush != 1:
                raise SetupError(
                    f"MariaDB at {self._url.host} does not put every commit on disk"
                    f" (innodb_flush_log_at_trx_commit is {flush}).",
                    "Set innodb_flush_log_at_trx_commit = 1 in its configuration and restart it.",
                )

        def begun(connection: Connection) -> None:
            connection.exec_driver_sql(begin)

        event.listen(engine.sync_engine, "connect", connected)
        event.listen(engine.sync_engine, "begin", begun)
        return engine

    async def announce(self, connection: AsyncConnection, topics: Sequence[str]) -> None:
        if topics:
            await connection.exec_driver_sql("UPDATE news SET value = value + 1")

    def announced(self, topics: Sequence[str]) -> None:
        pass

    def listen(self, topic: str) -> Listening:
        """Every topic rings when any does: the one row of ``news`` counts them all."""
        return MariaListener(self._url, self._poll)

    async def close(self) -> None:
        await self.reading.dispose()
        await self.writing.dispose()


class MariaListener(RemoteListener):
    """Looks at the row of ``news``; while it stands still, the pauses grow from `SHORTEST_PAUSE` to ``longest`` (s)."""

    errors = (OSError, MySQLError)

    def __init__(self, url: URL, longest: float) -> None:
        super().__init__(str(url.database))
        _, self._address = url.get_dialect()().create_connect_args(url)
        self._longest = longest

    async def _follow(self) -> None:
        async with asyncmy.connect(**self._address, **_ARGUMENTS, read_timeout=30, autocommit=True) as connection:
            seen = await _news(connection)
            self._begun()
            await self._look(connection, seen)

    async def _look(self, connection: Any, seen: int) -> None:
        pause = SHORTEST_PAUSE
        while True:
            await asyncio.sleep(pause)
            now = await _news(connection)
            if now == seen:
                pause = min(pause * 1.5, max(self._longest, SHORTEST_PAUSE))
            else:
                seen, pause = now, SHORTEST_PAUSE
                self._ring()


async def _news(connection: Any) -> int:
    async with connection.cursor() as cursor:
        await cursor.execute("SELECT value FROM news")
        (value,) = await cursor.fetchone()
    return int(value)
