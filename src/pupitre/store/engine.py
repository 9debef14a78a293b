"""Opening a database. On SQLite every commit is on disk (WAL, synchronous=FULL) before anyone is told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Table, event, make_url, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from pupitre.bell import Bell, Listener
from pupitre.config import DatabaseName, DatabaseRole, Settings
from pupitre.errors import Conflict, SetupError, Unavailable


class Database:
    """One database. ``write`` is one transaction, ``read`` one consistent look, ``listen`` waits for news.

    ``bells`` is the folder in which processes of one machine wake each other, where the database itself cannot.
    """

    def __init__(self, url: str, *, bells: Path, read_only: bool = False) -> None:
        self.url = make_url(url)
        self._bells = bells
        self.read_only = read_only
        target = self.url
        # SQLite has one writer at a time, and who waits for it in its own queue wakes late and out of turn.
        self._turn: AbstractAsyncContextManager[object] = nullcontext()
        if self.url.get_backend_name() == "sqlite":
            if self.url.database and not Path(self.url.database).exists():
                raise SetupError(f"The database {self.url.database} does not exist.", "Run: pupitre db create")
            if read_only:
                path = quote(self.url.database or "")
                target = self.url.set(database=f"file:{path}", query={"mode": "ro", "uri": "true"})
            self._turn = asyncio.Lock()
        self.engine: AsyncEngine = create_async_engine(target, pool_size=4, max_overflow=4)
        if self.url.get_backend_name() == "sqlite":
            event.listen(self.engine.sync_engine, "connect", self._sqlite_connect)
            event.listen(self.engine.sync_engine, "begin", self._sqlite_begin)

    def _sqlite_connect(self, connection: Any, _record: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        cursor = connection.cursor()
        cursor.execute("PRAGMA busy_timeout = 10000")
        if self.read_only:
            cursor.execute("PRAGMA query_only = ON")
        else:
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute("PRAGMA synchronous = FULL")
        cursor.close()

    def _sqlite_begin(self, connection: Connection) -> None:
        # IMMEDIATE: a writer queues here and never fails half-way on a stale snapshot.
        writes = connection.get_execution_options().get("pupitre_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    @asynccontextmanager
    async def write(self, *topics: str) -> AsyncIterator[AsyncConnection]:
        """A transaction that commits at the end of the block, and then wakes who listens to ``topics``.

        Raises `Conflict` for a duplicate key and `Unavailable` when the database takes no change.
        """
        try:
            async with self._turn, self.engine.connect() as connection:
                await connection.execution_options(pupitre_writes=True)
                async with connection.begin():
                    yield connection
            for topic in topics:
                Bell(self._bells, topic).ring()
        except IntegrityError as error:
            raise Conflict("There is already one with that name.") from error
        except DBAPIError as error:
            raise Unavailable(f"The database {self.url.database} does not take the change: {error.orig}") from error
        except PoolTimeout as error:
            raise Unavailable(f"The database {self.url.database} has too much to do.") from error

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with self.engine.connect() as connection:
                yield connection
        except DBAPIError as error:
            raise Unavailable(f"The database {self.url.database} does not answer: {error.orig}") from error
        except PoolTimeout as error:
            raise Unavailable(f"The database {self.url.database} has too much to do.") from error

    def listen(self, topic: str) -> Listener:
        """An async context manager; ``heard()`` returns after each commit that wakes ``topic``."""
        return Bell(self._bells, topic).listen()

    async def close(self) -> None:
        await self.engine.dispose()


def open_database(settings: Settings, role: DatabaseRole, name: DatabaseName, *, read_only: bool = False) -> Database:
    """The database ``name`` as ``role`` may use it. Raises `SetupError` when it does not exist."""
    return Database(settings.database_url(name, role), bells=settings.bells_dir, read_only=read_only)


async def next_version(connection: AsyncConnection, counter: Table) -> int:
    """Take the next version; the row lock also puts all writers of this database in one order."""
    await connection.execute(update(counter).values(value=counter.c.value + 1))
    return int((await connection.execute(select(counter.c.value))).scalar_one())
