"""Opening a database: SQLite, PostgreSQL or MariaDB, with the same surface and the same errors.

Every commit is on disk before anyone is told. A commit whose answer is lost is an
error, whether it was made or not: who asked tries again with the same ids.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from sqlalchemy import URL, Executable, Table, Update, column, make_url, select, table, update

from pupitre.config import DatabaseName, DatabaseRole, Settings
from pupitre.errors import Conflict, Invalid, SetupError, Unavailable
from pupitre.runtime.timeouts import timeout
from pupitre.store.sql.dialect import Connection, Dialect, DriverConnection, Listening
from pupitre.store.sql.health import Health
from pupitre.store.sql.pool import Pool
from pupitre.store.sql.statement import Result, Values
from pupitre.timings import DATABASE_LEAVE

_news = table("news", column("value"))
_LOOK, _CHANGE = select(_news.c.value), update(_news).values(value=_news.c.value)


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a backend; see `Database`."""

    notify_dir: Path
    read_only: bool
    poll: float
    patience: float


# Each process imports the one driver that it uses.


def _sqlite(url: URL, options: Options) -> Dialect:
    from pupitre.store.sql.backends.sqlite import Sqlite

    return Sqlite(url, notify_dir=options.notify_dir, patience=options.patience, read_only=options.read_only)


def _postgresql(url: URL, options: Options) -> Dialect:
    from pupitre.store.sql.backends.postgresql import Postgres

    return Postgres(url, patience=options.patience, read_only=options.read_only)


def _mariadb(url: URL, options: Options) -> Dialect:
    from pupitre.store.sql.backends.mariadb import MariaDB

    return MariaDB(url, poll=options.poll, patience=options.patience, read_only=options.read_only)


Backend = Callable[[URL, Options], Dialect]
BACKENDS: dict[str, Backend] = {"sqlite": _sqlite, "postgresql": _postgresql, "mariadb": _mariadb}
"""What opens each kind of database."""


class Database:
    """One database. ``write`` is one transaction, ``read`` one consistent look, ``listen`` waits for news.

    ``notify_dir`` is the folder in which processes of one machine wake each other, where the database itself cannot;
    ``poll`` the longest pause (s) between two looks for news where neither can; ``patience`` how long (s) one
    statement may take on a server.
    """

    def __init__(
        self, url: str, *, notify_dir: Path, read_only: bool = False, poll: float = 0.5, patience: float = 30
    ) -> None:
        self.url = make_url(url)
        self.read_only = read_only
        self.health = Health()
        if self.kind not in BACKENDS:
            raise SetupError(f"{self.kind} is not a database that Pupitre knows.", f"Use one of {', '.join(BACKENDS)}.")
        self._dialect = BACKENDS[self.kind](self.url, Options(notify_dir, read_only, poll, patience))
        self._under_way = 0
        self._ended = asyncio.Event()

    @property
    def kind(self) -> str:
        """Key of `BACKENDS`."""
        return self.url.get_backend_name()

    @asynccontextmanager
    async def write(self, *topics: str) -> AsyncIterator[Connection]:
        """A transaction that commits at the end of the block, and then wakes who listens to ``topics``.

        Raises `Conflict` for a duplicate key, `Invalid` for a value that no row can hold, and
        `Unavailable` when the database takes no change; then it is as before, or the answer was lost.
        """
        with self._counted():
            async with self._dialect.turn:
                with self._errors("does not take the change"):
                    async with self._transaction(self._dialect.writing, write=True) as connection:
                        yield connection
                        await connection.commit(topics)
                self.health.works()
            self._dialect.notify(topics)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Connection]:
        """A transaction that sees one state of the database. Raises `Unavailable`."""
        with self._counted(), self._errors("does not answer"):
            async with self._transaction(self._dialect.reading, write=False) as connection:
                yield connection

    async def select(self, statement: Executable, values: Values | None = None) -> Result:
        """Rows of one statement alone, in one round trip. Raises `Unavailable`."""
        with self._counted(), self._errors("does not answer"):
            pool = self._dialect.reading
            connection, result = await pool.take(lambda one: one.execute(statement, values))
            await pool.give(connection)
        return result

    async def check(self) -> None:
        """Try whether it answers and, unless it is for reading alone, takes a change. Raises `Unavailable`."""
        if self.read_only:
            await self.select(_LOOK)
            self.health.works()
        else:
            async with self.write() as connection:
                await connection.execute(_CHANGE)

    def listen(self, topic: str) -> Listening:
        """An async context manager; ``heard()`` returns after each commit that wakes ``topic``."""
        return self._dialect.listen(topic)

    async def close(self) -> None:
        """Let transactions under way end, for a while, then let go."""
        with suppress(TimeoutError):
            async with timeout(DATABASE_LEAVE):
                while self._under_way:
                    self._ended.clear()
                    await self._ended.wait()
        await self._dialect.close()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1
            self._ended.set()

    @asynccontextmanager
    async def _transaction(self, pool: Pool[DriverConnection], *, write: bool) -> AsyncIterator[DriverConnection]:
        """A connection with a transaction begun. Whatever the block has not committed is undone."""
        connection, _ = await pool.take(lambda one: one.begin(write=write))
        try:
            yield connection
            await connection.rollback()
        except Exception as error:
            undone = False
            with suppress(Exception):
                await connection.rollback()
                undone = True
            if not undone:
                connection.abandon()
            elif self._dialect.ends_sessions(error):
                connection.retire()  # however often the others were discarded of late
            raise
        except BaseException:
            connection.abandon()
            raise
        finally:
            await pool.give(connection)

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if self._dialect.is_conflict(error):
                raise Conflict("There is already one with that name.") from error
            if self._dialect.is_about_a_value(error):
                raise Invalid(f"The database {self.name} cannot hold that value: {words_of(error)}") from error
            if self._dialect.ends_sessions(error):
                self._dialect.reading.discard()
                self._dialect.writing.discard()
            if self._dialect.is_failure(error):
                reason = f"The database {self.name} {what}: {words_of(error)}"
                self.health.fails(reason)
                raise Unavailable(reason) from error
            raise

    @property
    def name(self) -> str:
        """Name for people: the file, or the database's name on its server."""
        return str(self.url.database)


def words_of(error: Exception) -> str:
    """Message of the server, without the statement and its values."""
    said = str(error.args[-1]) if error.args else ""
    return said or type(error).__name__


def open_database(settings: Settings, role: DatabaseRole, name: DatabaseName, *, read_only: bool = False) -> Database:
    """The database ``name`` as ``role`` may use it. Raises `SetupError` when it does not exist."""
    return Database(
        settings.database_url(name, role),
        notify_dir=settings.notify_dir,
        read_only=read_only,
        poll=settings.database_poll,
    )


async def next_version(connection: Connection, counter: Table) -> int:
    """Take the next version; the row lock also puts all writers of this database in one order."""
    return int(await connection.change_and_read(_take_version(counter), counter.c.value))


@lru_cache
def _take_version(counter: Table) -> Update:
    return update(counter).values(value=counter.c.value + 1)
