"""SQLite: one file, for one machine. Every commit is on disk (WAL, synchronous=FULL) before anyone is told.

Processes of this machine wake each other by `pupitre.bell`, because SQLite cannot. Each
connection has a thread of its own, so that the disk never holds up the event loop.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from sqlalchemy import URL, Executable
from sqlalchemy.dialects import sqlite

from pupitre.bell import Bell
from pupitre.errors import SetupError
from pupitre.store.dialect import DriverConnection, Listening
from pupitre.store.pool import Pool
from pupitre.store.statement import Result, Statements, Values

WAIT = 10.0
"""Seconds for another process's transaction."""

T = TypeVar("T")


class Sqlite:
    def __init__(self, url: URL, *, bells: Path, read_only: bool = False) -> None:
        self._path = url.database or ""
        self._bells = bells
        self._read_only = read_only
        if not Path(self._path).exists():
            raise SetupError(f"The database {self._path} does not exist.", "Run: pupitre db create")
        self._statements = Statements(sqlite.dialect(), arrays=False)
        self.reading: Pool[DriverConnection] = Pool(self._path, self._open)
        # SQLite has one writer at a time, and who waits for it in its own queue wakes late and out of turn.
        self.writing = self.reading
        self.turn = asyncio.Lock()

    async def _open(self) -> DriverConnection:
        thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        try:
            raw = await asyncio.get_running_loop().run_in_executor(thread, self._connect)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return SqliteConnection(raw, thread, self._statements)

    def _connect(self) -> sqlite3.Connection:
        mode = "ro" if self._read_only else "rw"
        # We say BEGIN ourselves. The thread that closes a connection may be another.
        connection = sqlite3.connect(
            f"file:{quote(self._path)}?mode={mode}", uri=True, isolation_level=None, timeout=WAIT,
            check_same_thread=False,
        )  # fmt: skip
        if self._read_only:
            connection.execute("PRAGMA query_only = ON")
        else:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
        return connection

    def is_conflict(self, error: Exception) -> bool:
        return isinstance(error, sqlite3.IntegrityError)

    def is_about_a_value(self, error: Exception) -> bool:
        return isinstance(error, sqlite3.DataError | OverflowError | UnicodeEncodeError)

    def is_failure(self, error: Exception) -> bool:
        return isinstance(error, sqlite3.Error | OverflowError | UnicodeEncodeError | OSError)

    def announced(self, topics: Sequence[str]) -> None:
        for topic in topics:
            Bell(self._bells, topic).ring()

    def listen(self, topic: str) -> Listening:
        return Bell(self._bells, topic).listen()

    async def close(self) -> None:
        await self.writing.close()


class SqliteConnection:
    kind = "sqlite"

    def __init__(self, raw: sqlite3.Connection, thread: ThreadPoolExecutor, statements: Statements) -> None:
        self._raw = raw
        self._thread = thread
        self._statements = statements

    async def _do(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def is_lost(self) -> bool:
        return False

    async def begin(self, *, write: bool) -> None:
        # IMMEDIATE: a writer queues here and never fails half-way on a stale snapshot.
        await self._do(lambda: self._raw.execute("BEGIN IMMEDIATE" if write else "BEGIN"))

    async def execute(self, statement: Executable, values: Values | Sequence[Values] | None = None) -> Result:
        if isinstance(values, Sequence):
            many = self._statements.prepare(statement, values[0])
            sets = [many.arguments(one) for one in values]
            await self._do(lambda: self._raw.executemany(many.text, sets))
            return Result()
        given = values or {}
        prepared = self._statements.prepare(statement, given)
        text, arguments = prepared.expanded(given, "?"), prepared.arguments(given)

        def ask() -> tuple[list[tuple[object, ...]], list[str], int]:
            cursor = self._raw.execute(text, arguments)
            names = [str(column[0]) for column in cursor.description or ()]
            return cursor.fetchall(), names, cursor.rowcount

        rows, names, rowcount = await self._do(ask)
        return prepared.result(rows, names, rowcount)

    async def commit(self, topics: Sequence[str]) -> None:
        if self._raw.in_transaction:
            await self._do(lambda: self._raw.execute("COMMIT"))

    def _rollback(self) -> None:
        if self._raw.in_transaction:
            self._raw.execute("ROLLBACK")

    async def rollback(self) -> None:
        if self._raw.in_transaction:
            await self._do(self._rollback)

    def abandon(self) -> None:
        # Its thread does one thing after the other: who takes the connection next comes after this.
        self._thread.submit(self._rollback)

    async def close(self) -> None:
        # Whoever closes a database may put another file in its place.
        await self._do(self._raw.close)
        self._thread.shutdown(wait=False)
