"""SQLite: one file, for one machine. Every commit is on disk (WAL, synchronous=FULL) before anyone is told.

Processes of this machine wake each other by `pupitre.runtime.notifier`, because SQLite cannot. Each
connection has a thread of its own, so that the disk never holds up the event loop.
"""

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

from sqlalchemy import URL, Column, Executable, Table, Update
from sqlalchemy.dialects import sqlite

from pupitre.errors import SetupError, Unavailable
from pupitre.runtime.notifier import Notifier
from pupitre.runtime.timeouts import timeout
from pupitre.store.sql.deadline import Deadline
from pupitre.store.sql.dialect import DriverConnection, Listening
from pupitre.store.sql.pool import Pool
from pupitre.store.sql.statement import Result, Statements, Values, returning
from pupitre.store.sql.upsert import insert_or_update
from pupitre.timings import DATABASE_CLOSE, SQLITE_WAIT, SQLITE_WAL_RETRY

_OF_NO_USE = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB})
"""Primary result codes of a file that is another one by now, or that cannot be used."""
_NOT_WRITTEN = frozenset(
    {
        sqlite3.SQLITE_IOERR_WRITE,
        sqlite3.SQLITE_IOERR_FSYNC,
        sqlite3.SQLITE_IOERR_DIR_FSYNC,
        sqlite3.SQLITE_IOERR_TRUNCATE,
    }
)
"""Extended result codes of a disk that does not take a change.

Such a connection stays: only it knows that the end of the log does not count. Once the last connection is closed,
the next one reads the log anew and would take a change whose sync failed for one that is on disk.
"""


class Moved(sqlite3.OperationalError):
    """There is another file in the place of the one that was opened, or none."""


T = TypeVar("T")


class Sqlite:
    def __init__(self, url: URL, *, notify_dir: Path, patience: float, read_only: bool = False) -> None:
        self._path = url.database or ""
        self._notify_dir = notify_dir
        self._read_only = read_only
        self._patience = patience
        if not Path(self._path).exists():
            raise SetupError(f"The database {self._path} does not exist.", "Run: pupitre db create")
        self._statements = Statements(sqlite.dialect())
        self.reading: Pool[DriverConnection] = Pool(self._path, self._open)
        # SQLite has one writer at a time, and who waits for it in its own queue wakes late and out of turn.
        self.writing = self.reading
        self.turn = _Turn(self._path, patience)

    async def _open(self) -> DriverConnection:
        thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        try:
            with Deadline(self._patience):
                raw, file = await asyncio.get_running_loop().run_in_executor(thread, self._connect)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return SqliteConnection(raw, thread, self._statements, self._patience, Path(self._path), file)

    def _connect(self) -> tuple[sqlite3.Connection, tuple[int, int] | None]:
        file = _file(Path(self._path))
        mode = "ro" if self._read_only else "rw"
        # We say BEGIN ourselves. The thread that closes a connection may be another.
        connection = sqlite3.connect(
            f"file:{quote(self._path)}?mode={mode}", uri=True, isolation_level=None, timeout=SQLITE_WAIT,
            check_same_thread=False,
        )  # fmt: skip
        if self._read_only:
            connection.execute("PRAGMA query_only = ON")
        else:
            _use_wal(connection)
            connection.execute("PRAGMA synchronous = FULL")
        return connection, file

    def is_conflict(self, error: Exception) -> bool:
        return isinstance(error, sqlite3.IntegrityError)

    def is_about_a_value(self, error: Exception) -> bool:
        return isinstance(error, sqlite3.DataError | OverflowError | UnicodeEncodeError)

    def is_failure(self, error: Exception) -> bool:
        return isinstance(error, sqlite3.Error | OverflowError | UnicodeEncodeError | OSError)

    def ends_sessions(self, error: Exception) -> bool:
        return isinstance(error, Moved) or _is_of_no_use(error)

    def notify(self, topics: Sequence[str]) -> None:
        for topic in topics:
            Notifier(self._notify_dir, topic).notify()

    def listen(self, topic: str) -> Listening:
        return Notifier(self._notify_dir, topic).listen()

    async def close(self) -> None:
        await self.writing.close()


class _Turn:
    """Turn to write; each writer has it within ``patience`` (s) or not at all. Entering raises `Unavailable`."""

    def __init__(self, name: str, patience: float) -> None:
        self._name = name
        self._patience = patience
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> None:
        if not self._lock.locked():
            await self._lock.acquire()
            return
        try:
            async with timeout(self._patience):
                await self._lock.acquire()
        except TimeoutError as error:
            raise Unavailable(f"The database {self._name} has too much to do.") from error

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


def _code(error: Exception) -> int:
    """SQLite's extended result code, 0 of none. Its low byte is the primary one."""
    return int(getattr(error, "sqlite_errorcode", None) or 0)


def _is_of_no_use(error: Exception) -> bool:
    code = _code(error)
    return code & 0xFF in _OF_NO_USE and code not in _NOT_WRITTEN


def _use_wal(connection: sqlite3.Connection) -> None:
    """Write ahead. Connections that change a file to it at the same moment refuse each other without SQLite's wait."""
    deadline = time.monotonic() + SQLITE_WAIT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if _code(error) & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(SQLITE_WAL_RETRY)
        else:
            return


def _file(path: Path) -> tuple[int, int] | None:
    """Identity of the file that is there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class SqliteConnection:
    def __init__(
        self,
        raw: sqlite3.Connection,
        thread: ThreadPoolExecutor,
        statements: Statements,
        patience: float,
        path: Path,
        file: tuple[int, int] | None,
    ) -> None:
        self._raw = raw
        self._thread = thread
        self._statements = statements
        self._path = path
        self._file = file
        self._is_broken = False
        self._deadline = Deadline(patience, self._interrupt)

    async def _do(self, work: Callable[[], T]) -> T:
        try:
            with self._deadline:
                return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except (sqlite3.Error, OSError) as error:
            self._is_broken |= isinstance(error, OSError | Moved) or _is_of_no_use(error)
            raise

    def _interrupt(self) -> None:
        """End what its thread does, if that is SQLite's own work; a disk that hangs it cannot end."""
        self._is_broken = True
        self._raw.interrupt()

    def is_lost(self) -> bool:
        return self._is_broken

    def retire(self) -> None:
        self._is_broken = True

    async def begin(self, *, write: bool) -> None:
        # IMMEDIATE: a writer queues here and never fails half-way on a stale snapshot.
        await self._do(lambda: self._begin(write=write))

    def _begin(self, *, write: bool) -> None:
        self._look()
        self._raw.execute("BEGIN IMMEDIATE" if write else "BEGIN")

    def _look(self) -> None:
        # SQLite itself finds it out only without a write-ahead log. What is written here would be lost.
        if _file(self._path) != self._file:
            raise Moved("another file is in its place, or none")

    async def execute(self, statement: Executable, values: Values | Sequence[Values] | None = None) -> Result:
        if isinstance(values, Sequence):
            many = self._statements.prepare(statement, values[0])
            sets = [many.arguments(one) for one in values]
            await self._do(lambda: self._raw.executemany(many.text, sets))
            return Result()
        given = values or {}
        prepared = self._statements.prepare(statement, given)
        text, arguments = prepared.form(given)

        def ask() -> tuple[list[tuple[object, ...]], list[str], int]:
            if not self._raw.in_transaction:
                self._look()
            cursor = self._raw.execute(text, arguments)
            names = [str(column[0]) for column in cursor.description or ()]
            return cursor.fetchall(), names, cursor.rowcount

        rows, names, rowcount = await self._do(ask)
        return prepared.result(rows, names, rowcount)

    async def change_and_read(self, change: Update, column: Column[Any], values: Values | None = None) -> Any:
        return (await self.execute(returning(change, column), values)).scalar()

    def upsert(self, table: Table, names: tuple[str, ...]) -> Executable:
        return _upsert(table, names)

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
        closing = self._thread.submit(self._raw.close)
        self._thread.shutdown(wait=False)
        await asyncio.wait([asyncio.wrap_future(closing)], timeout=DATABASE_CLOSE)


@lru_cache
def _upsert(table: Table, names: tuple[str, ...]) -> Executable:
    return insert_or_update(sqlite.insert(table), table, names)
