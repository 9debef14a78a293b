"""SQLite: one file, for one machine. Every commit is on disk (WAL, synchronous=FULL) before anyone is told.

Processes of this machine wake each other by `pupitre.bell`, because SQLite cannot.
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, event
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from pupitre.bell import Bell
from pupitre.errors import SetupError
from pupitre.store.dialect import POOL, Listening

WRITES = "pupitre_writes"


class Sqlite:
    def __init__(self, url: URL, *, bells: Path, read_only: bool = False) -> None:
        self._bells = bells
        self._read_only = read_only
        if url.database and not Path(url.database).exists():
            raise SetupError(f"The database {url.database} does not exist.", "Run: pupitre db create")
        if read_only:
            url = url.set(database=f"file:{quote(url.database or '')}", query={"mode": "ro", "uri": "true"})
        engine = create_async_engine(url.set(drivername="sqlite+aiosqlite"), **POOL)
        event.listen(engine.sync_engine, "connect", self._connect)
        event.listen(engine.sync_engine, "begin", _begin)
        self.reading = engine
        self.writing = engine.execution_options(**{WRITES: True})
        # SQLite has one writer at a time, and who waits for it in its own queue wakes late and out of turn.
        self.turn = asyncio.Lock()

    def _connect(self, connection: Any, _record: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout = 10000")
        if self._read_only:
            cursor.execute("PRAGMA query_only = ON")
        else:
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute("PRAGMA synchronous = FULL")
        cursor.close()

    async def announce(self, connection: AsyncConnection, topics: Sequence[str]) -> None:
        pass

    def announced(self, topics: Sequence[str]) -> None:
        for topic in topics:
            Bell(self._bells, topic).ring()

    def listen(self, topic: str) -> Listening:
        return Bell(self._bells, topic).listen()

    async def close(self) -> None:
        await self.reading.dispose()


def _begin(connection: Connection) -> None:
    # IMMEDIATE: a writer queues here and never fails half-way on a stale snapshot.
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
