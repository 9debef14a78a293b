"""MariaDB, by asyncmy. Nobody can be woken by it, so who listens looks at a row, seldom while nothing happens.

Readers and writers have pools of their own: MariaDB takes four round trips to change
a connection's isolation. Each transaction is begun aloud, which also shows a
connection that the server closed while it rested in the pool. The limits on waits are
ours (`deadline`): asyncmy's read_timeout makes a task of every read, and loses cancellations.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from functools import lru_cache, partial
from typing import Any

import asyncmy
from asyncmy.errors import DataError, IntegrityError, InterfaceError, InternalError, MySQLError, OperationalError
from sqlalchemy import URL, Column, Executable, Select, Table, Update, select
from sqlalchemy.dialects import mysql

from pupitre.errors import SetupError
from pupitre.store.sql.commit_listener import RemoteListener
from pupitre.store.sql.deadline import Deadline
from pupitre.store.sql.dialect import DriverConnection, Listening
from pupitre.store.sql.pool import Pool
from pupitre.store.sql.statement import Result, Statements, Values
from pupitre.timings import DATABASE_CLOSE, DATABASE_CONNECT, DATABASE_LISTENER_ANSWER, MARIADB_IDLE, MARIADB_POLL

_ARGUMENTS = {"charset": "utf8mb4", "connect_timeout": int(DATABASE_CONNECT)}
# Notes on our own statements, such as the name of a primary key, help nobody.
logging.getLogger("asyncmy").setLevel(logging.ERROR)

_MODE = "STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION"
_FAILURES = (MySQLError, OSError, asyncio.IncompleteReadError)
_READ_ONLY, _KILLED, _SHUTDOWN = {1290, 1792, 1836}, {1152, 1927, 4031}, {1047, 1053, 1077, 1079}
_ENDS_SESSIONS = frozenset(_READ_ONLY | _KILLED | _SHUTDOWN)
"""What the server says of itself or of a connection (its own numbers are from 1000 to 1999, and above 3000)."""


class MariaDB:
    def __init__(self, url: URL, *, poll: float, patience: float, read_only: bool = False) -> None:
        url = url.set(drivername="mariadb+asyncmy")
        dialect = url.get_dialect()()
        self._address = dict(dialect.create_connect_args(url)[1])
        self._statements = Statements(dialect)
        self._where = f"{url.host}", f"{url.database}"
        self._poll = poll
        self._patience = patience
        self._read_only = read_only
        self.reading: Pool[DriverConnection] = Pool(self._where[1], partial(self._open, "REPEATABLE READ"))
        self.writing: Pool[DriverConnection] = Pool(self._where[1], partial(self._open, "READ COMMITTED"))
        self.turn = nullcontext()

    async def _open(self, isolation: str) -> DriverConnection:
        connection = MariaConnection(await _connect(self._address), self._statements, self._patience)
        try:
            await self._prepare(connection, isolation)
        except BaseException:
            connection.abandon()
            raise
        return connection

    async def _prepare(self, connection: "MariaConnection", isolation: str) -> None:
        mode = f"sql_mode = '{_MODE}', innodb_lock_wait_timeout = {int(self._patience / 3)}"
        await connection.say(f"SET SESSION TRANSACTION ISOLATION LEVEL {isolation}")
        await connection.say(f"SET SESSION {mode}, idle_transaction_timeout = {MARIADB_IDLE}")
        if self._read_only:
            await connection.say("SET SESSION TRANSACTION READ ONLY")
        if await connection.say("SELECT @@innodb_flush_log_at_trx_commit") != 1:
            raise SetupError(
                f"MariaDB at {self._where[0]} does not put every commit on disk"
                " (innodb_flush_log_at_trx_commit is not 1).",
                "Set innodb_flush_log_at_trx_commit = 1 in its configuration and restart it.",
            )

    def is_conflict(self, error: Exception) -> bool:
        return isinstance(error, IntegrityError)

    def is_about_a_value(self, error: Exception) -> bool:
        return isinstance(error, DataError | UnicodeEncodeError)

    def is_failure(self, error: Exception) -> bool:
        return isinstance(error, (*_FAILURES, UnicodeEncodeError))

    def ends_sessions(self, error: Exception) -> bool:
        return isinstance(error, MySQLError) and _number(error) in _ENDS_SESSIONS

    def notify(self, topics: Sequence[str]) -> None:
        pass

    def listen(self, topic: str) -> Listening:
        """Every topic rings when any does: the one row of ``news`` counts them all."""
        return MariaListener(self._where[1], self._address, self._poll)

    async def close(self) -> None:
        await asyncio.gather(self.reading.close(), self.writing.close())


async def _connect(address: dict[str, Any]) -> Any:
    with Deadline(DATABASE_CONNECT):
        return await asyncmy.connect(**address, **_ARGUMENTS, autocommit=True)


def _number(error: Exception) -> int:
    """Number of the error by the server or the client; 0 where neither gave one."""
    number = error.args[0] if error.args and isinstance(error, MySQLError) else 0
    return number if isinstance(number, int) else 0


def _abort(raw: Any) -> None:
    """End the connection at once. Its own ``close`` would first wait until all is sent."""
    if raw._transport is not None:
        raw._transport.abort()
    raw.close()


class MariaConnection:
    def __init__(self, raw: Any, statements: Statements, patience: float) -> None:
        self._raw = raw
        self._statements = statements
        self._deadline = Deadline(patience, self.abandon)
        self._begun = False
        self._broken = False

    def is_lost(self) -> bool:
        return self._broken or not self._raw.connected

    def retire(self) -> None:
        self._broken = True

    @asynccontextmanager
    async def _cursor(self) -> AsyncIterator[Any]:
        try:
            with self._deadline:
                async with self._raw.cursor() as cursor:
                    yield cursor
        except (InterfaceError, InternalError, OperationalError, OSError, asyncio.IncompleteReadError) as error:
            # What is neither the server's word on a statement is about the connection.
            number = _number(error)
            self._broken |= number in _ENDS_SESSIONS or not (1000 <= number < 2000 or 3000 <= number < 5000)
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
            await cursor.execute(*prepared.form(values or {}))
            rows = await cursor.fetchall() if cursor.description else ()
            names = [str(column[0]) for column in cursor.description or ()]
            return prepared.result(rows, names, cursor.rowcount)

    async def change_and_read(self, change: Update, column: Column[Any], values: Values | None = None) -> Any:
        # Its UPDATE returns nothing.
        changed = await self.execute(change, values)
        return (await self.execute(_value_of(column))).scalar() if changed.rowcount else None

    def upsert(self, table: Table, names: tuple[str, ...]) -> Executable:
        return _upsert(table, names)

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
        self._broken = True
        _abort(self._raw)

    async def close(self) -> None:
        try:
            with Deadline(DATABASE_CLOSE, self.abandon):
                await self._raw.ensure_closed()
        except _FAILURES:
            pass
        finally:
            self.abandon()


@lru_cache
def _upsert(table: Table, names: tuple[str, ...]) -> Executable:
    insert = mysql.insert(table)
    keys = [column.name for column in table.primary_key.columns]
    # Without anything to change, a key set to itself leaves the row as it is.
    changed = [name for name in names if name not in keys] or keys[:1]
    return insert.on_duplicate_key_update({name: insert.inserted[name] for name in changed})


@lru_cache
def _value_of(column: Column[Any]) -> Select[Any]:
    return select(column)


class MariaListener(RemoteListener):
    """Looks at the row of ``news``; while it stands still, the pauses grow from `MARIADB_POLL` to ``longest`` (s)."""

    errors = (OSError, MySQLError)

    def __init__(self, database: str, address: dict[str, Any], longest: float) -> None:
        super().__init__(database)
        self._address = address
        self._longest = longest

    async def _follow(self) -> None:
        connection = await _connect(self._address)
        try:
            deadline = Deadline(DATABASE_LISTENER_ANSWER, partial(_abort, connection))
            seen = await _news(connection, deadline)
            self._begun()
            await self._look(connection, deadline, seen)
        finally:
            _abort(connection)

    async def _look(self, connection: Any, deadline: Deadline, seen: int) -> None:
        pause = MARIADB_POLL
        while True:
            await asyncio.sleep(pause)
            now = await _news(connection, deadline)
            if now == seen:
                pause = min(pause * 1.5, max(self._longest, MARIADB_POLL))
            else:
                seen, pause = now, MARIADB_POLL
                self._notify()


async def _news(connection: Any, deadline: Deadline) -> int:
    with deadline:
        async with connection.cursor() as cursor:
            await cursor.execute("SELECT value FROM news")
            (value,) = await cursor.fetchone()
    return int(value)
