"""MariaDB, by asyncmy. Nobody can be woken by it, so who listens looks at a row, seldom while nothing happens.

Readers and writers have pools of their own: MariaDB takes four round trips to change
a connection's isolation. Each transaction is begun aloud, which also shows a
connection that the server closed while it rested in the pool.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from typing import Any

import asyncmy
from asyncmy.errors import DataError, IntegrityError, InterfaceError, MySQLError, OperationalError
from sqlalchemy import URL, Executable

from pupitre.errors import SetupError
from pupitre.store.dialect import DriverConnection, Listening
from pupitre.store.listener import RemoteListener
from pupitre.store.pool import Pool
from pupitre.store.statement import Result, Statements, Values

SHORTEST_PAUSE = 0.02
"""Seconds between two looks at the row while it moves."""

_ARGUMENTS = {"charset": "utf8mb4", "connect_timeout": 10}
# Notes on our own statements, such as the name of a primary key, help nobody.
logging.getLogger("asyncmy").setLevel(logging.ERROR)

_MODE = "STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION"
_FAILURES = (MySQLError, OSError, asyncio.IncompleteReadError)


class Maria:
    def __init__(self, url: URL, *, poll: float, patience: float, read_only: bool = False) -> None:
        url = url.set(drivername="mariadb+asyncmy")
        dialect = url.get_dialect()()
        self._address = dict(dialect.create_connect_args(url)[1])
        self._statements = Statements(dialect, arrays=False)
        self._where = f"{url.host}", f"{url.database}"
        self._poll = poll
        self._patience = patience
        self._read_only = read_only
        self.reading: Pool[DriverConnection] = Pool(self._where[1], partial(self._open, "REPEATABLE READ"))
        self.writing: Pool[DriverConnection] = Pool(self._where[1], partial(self._open, "READ COMMITTED"))
        self.turn = nullcontext()

    async def _open(self, isolation: str) -> DriverConnection:
        raw = await asyncmy.connect(**self._address, **_ARGUMENTS, read_timeout=self._patience, autocommit=True)
        connection = MariaConnection(raw, self._statements)
        mode = f"sql_mode = '{_MODE}', innodb_lock_wait_timeout = {int(self._patience / 3)}"
        await connection.say(f"SET SESSION TRANSACTION ISOLATION LEVEL {isolation}")
        await connection.say(f"SET SESSION {mode}")
        if self._read_only:
            await connection.say("SET SESSION TRANSACTION READ ONLY")
        if await connection.say("SELECT @@innodb_flush_log_at_trx_commit") != 1:
            await connection.close()
            raise SetupError(
                f"MariaDB at {self._where[0]} does not put every commit on disk"
                " (innodb_flush_log_at_trx_commit is not 1).",
                "Set innodb_flush_log_at_trx_commit = 1 in its configuration and restart it.",
            )
        return connection

    def is_conflict(self, error: Exception) -> bool:
        return isinstance(error, IntegrityError)

    def is_about_a_value(self, error: Exception) -> bool:
        return isinstance(error, DataError | UnicodeEncodeError)

    def is_failure(self, error: Exception) -> bool:
        return isinstance(error, (*_FAILURES, UnicodeEncodeError))

    def announced(self, topics: Sequence[str]) -> None:
        pass

    def listen(self, topic: str) -> Listening:
        """Every topic rings when any does: the one row of ``news`` counts them all."""
        return MariaListener(self._where[1], self._address, self._poll)

    async def close(self) -> None:
        await self.reading.close()
        await self.writing.close()


class MariaConnection:
    kind = "mariadb"

    def __init__(self, raw: Any, statements: Statements) -> None:
        self._raw = raw
        self._statements = statements
        self._begun = False
        self._broken = False

    def is_lost(self) -> bool:
        return self._broken or not self._raw.connected

    @asynccontextmanager
    async def _cursor(self) -> AsyncIterator[Any]:
        try:
            async with self._raw.cursor() as cursor:
                yield cursor
        except (InterfaceError, OperationalError, OSError, asyncio.IncompleteReadError) as error:
            # What the server says has numbers below 2000; above are the client's, about the connection.
            number = error.args[0] if error.args and isinstance(error, MySQLError) else 0
            self._broken |= not isinstance(number, int) or not 1000 <= number < 2000
            raise

    async def say(self, text: str) -> Any:
        """The first value of what the server answers to words of ours, if anything."""
        async with self._cursor() as cursor:
            await cursor.execute(text)
            row = await cursor.fetchone() if cursor.description else None
        return row[0] if row else None

    async def begin(self, *, write: bool) -> None:
        await self.say("START TRANSACTION" if write else "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
        self._begun = True

    async def execute(self, statement: Executable, values: Values | Sequence[Values] | None = None) -> Result:
        async with self._cursor() as cursor:
            if isinstance(values, Sequence):
                prepared = self._statements.prepare(statement, values[0])
                await cursor.executemany(prepared.text, [prepared.arguments(one) for one in values])
                return Result()
            prepared = self._statements.prepare(statement, values or {})
            await cursor.execute(prepared.expanded(values or {}, "%s"), prepared.arguments(values or {}))
            rows = await cursor.fetchall() if cursor.description else ()
            names = [str(column[0]) for column in cursor.description or ()]
            return prepared.result(rows, names, cursor.rowcount)

    async def commit(self, topics: Sequence[str]) -> None:
        if self._begun:
            if topics:
                await self.say("UPDATE news SET value = value + 1")
            await self.say("COMMIT")
            self._begun = False

    async def rollback(self) -> None:
        if self._begun:
            self._begun = False
            await self.say("ROLLBACK")

    def abandon(self) -> None:
        self._raw.close()

    async def close(self) -> None:
        try:
            await self._raw.ensure_closed()
        except _FAILURES:
            self._raw.close()


class MariaListener(RemoteListener):
    """Looks at the row of ``news``; while it stands still, the pauses grow from `SHORTEST_PAUSE` to ``longest`` (s)."""

    errors = (OSError, MySQLError)

    def __init__(self, database: str, address: dict[str, Any], longest: float) -> None:
        super().__init__(database)
        self._address = address
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
