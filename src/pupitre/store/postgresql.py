"""PostgreSQL, by asyncpg. NOTIFY is part of the transaction, so that a ring is lost only with its commit.

A connection that the server closed while it rested in the pool is known without
asking the server, and is replaced unseen.
"""

import asyncio
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import asyncpg
from sqlalchemy import URL, event, func, select
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from pupitre.errors import SetupError
from pupitre.store.dialect import POOL, Listening
from pupitre.store.listener import RemoteListener

CHECK = 30.0
"""Seconds after which a silent listener asks whether the server is still there."""

_SESSION = {
    "application_name": "pupitre",
    "jit": "off",
    "idle_in_transaction_session_timeout": "60s",
    "synchronous_commit": "on",
}


class Postgres:
    def __init__(self, url: URL, *, patience: float, read_only: bool = False) -> None:
        self._url = url.set(drivername="postgresql+asyncpg")
        settings = _SESSION | {"lock_timeout": f"{int(patience / 3 * 1000)}ms"}
        if read_only:
            settings["default_transaction_read_only"] = "on"
        self._arguments: dict[str, Any] = {"server_settings": settings, "timeout": 10, "command_timeout": patience}
        engine = create_async_engine(self._url, connect_args=self._arguments, **POOL)
        event.listen(engine.sync_engine, "checkout", _refuse_closed)
        event.listen(engine.sync_engine, "first_connect", self._check)
        self.writing = engine.execution_options(isolation_level="READ COMMITTED")
        self.reading = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        self.turn = nullcontext()

    def _check(self, connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute("SHOW fsync")
        if cursor.fetchone()[0] != "on":
            raise SetupError(
                f"PostgreSQL at {self._url.host} does not put commits on disk (fsync is off).",
                "Set fsync = on in postgresql.conf and restart it.",
            )
        cursor.close()
        connection.rollback()

    async def announce(self, connection: AsyncConnection, topics: Sequence[str]) -> None:
        if topics:
            await connection.execute(select(*(func.pg_notify(topic, "") for topic in topics)))

    def announced(self, topics: Sequence[str]) -> None:
        pass

    def listen(self, topic: str) -> Listening:
        return PostgresListener(self._url, self._arguments, topic)

    async def close(self) -> None:
        await self.writing.dispose()


class PostgresListener(RemoteListener):
    """LISTEN on a connection of its own."""

    errors = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError)

    def __init__(self, url: URL, arguments: dict[str, Any], topic: str) -> None:
        super().__init__(f"{url.database}, {topic}")
        _, address = url.get_dialect()().create_connect_args(url)
        self._arguments = {**address, **arguments}
        self._topic = topic

    async def _follow(self) -> None:
        connection = await asyncpg.connect(**self._arguments)
        try:
            lost = asyncio.Event()
            connection.add_termination_listener(lambda *_: lost.set())
            await connection.add_listener(self._topic, lambda *_: self._ring())
            self._begun()
            await _until_lost(connection, lost)
        finally:
            connection.terminate()


async def _until_lost(connection: "asyncpg.Connection[asyncpg.Record]", lost: asyncio.Event) -> None:
    while not lost.is_set():
        try:
            async with asyncio.timeout(CHECK):
                await lost.wait()
        except TimeoutError:
            await connection.execute("SELECT 1", timeout=10)


def _refuse_closed(connection: Any, _record: object, _proxy: object) -> None:
    if connection.driver_connection.is_closed():
        raise DisconnectionError
