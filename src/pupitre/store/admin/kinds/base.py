"""Surface of a kind of database for its administration, and what its servers have in common."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import ClassVar

from sqlalchemy import URL, Engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from pupitre.store.sql.deadline import Deadline
from pupitre.timings import ADMIN_CONNECT


class Server(ABC):
    """A server as its administrator sees it: users, databases, and who may enter them.

    Names are of letters, digits and ``_`` (see `pupitre.store.admin.provision`), so they may stand in a statement.
    """

    kind: ClassVar[str]
    driver: ClassVar[str]
    first: ClassVar[str | None]
    """The database in which an administrator begins."""
    port: ClassVar[int]

    def __init__(self, root: URL, connection: AsyncConnection) -> None:
        self._root = root
        self._connection = connection

    def address(self, user: str, password: str, database: str) -> URL:
        return self._root.set(drivername=self.kind, username=user, password=password, database=database)

    def is_at(self, url: URL) -> bool:
        """Whether ``url`` is about this server."""

        def place(one: URL) -> tuple[object, ...]:
            return one.host, one.port or self.port, dict(one.query)

        return url.get_backend_name() == self.kind and place(url) == place(self._root)

    async def signs_in(self, address: URL) -> bool:
        """Whether the server takes the address's user and password."""
        database = address.database if self.first else ""
        try:
            async with connected(address.set(drivername=self.driver, database=database)):
                return True
        except DBAPIError:
            return False

    async def _do(self, statement: str) -> None:
        await self._connection.exec_driver_sql(statement)

    async def _found(self, question: str, **parameters: str) -> bool:
        return (await self._connection.execute(text(question), parameters)).first() is not None

    @abstractmethod
    async def lock(self) -> None:
        """Lock out other set-ups until the connection ends."""

    @abstractmethod
    async def has_user(self, user: str) -> bool: ...

    @abstractmethod
    async def create_user(self, user: str, password: str) -> None: ...

    @abstractmethod
    async def set_password(self, user: str, password: str) -> None: ...

    @abstractmethod
    async def has_database(self, database: str) -> bool: ...

    @abstractmethod
    async def create_database(self, database: str, *, owner: str) -> None: ...

    @abstractmethod
    async def admit(self, database: str, *, owner: str, users: Sequence[str]) -> None:
        """The owner and these users may enter, and nobody else. What they may do there, the owner grants."""


def _nothing(engine: Engine) -> None:
    """Most kinds need no preparation."""


async def _accept(connection: AsyncConnection) -> None:
    """Most kinds take every connection."""


@dataclass(frozen=True, slots=True)
class Grants:
    """Statements about privileges. ``held`` reads (user, table, privileges) of the database that is open."""

    held: str
    user: Callable[[str], str]
    table: Callable[[str], str]


@dataclass(frozen=True, slots=True)
class DatabaseKind:
    """One kind of database. ``lock`` is the first statement of an upgrade: it keeps others waiting until the end.

    ``server`` and ``grants`` are None where the database is a file. ``prepare`` is given the engine of an upgrade,
    ``check`` its connection, which it refuses by an exception.
    """

    name: str
    driver: str
    lock: str
    server: type[Server] | None = None
    grants: Grants | None = None
    prepare: Callable[[Engine], None] = _nothing
    check: Callable[[AsyncConnection], Awaitable[None]] = _accept


@asynccontextmanager
async def connected(url: URL) -> AsyncIterator[AsyncConnection]:
    """A connection of an administrator, on which each statement commits by itself."""
    engine = create_async_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    try:
        with Deadline(ADMIN_CONNECT):
            connection = await engine.connect()
        async with aclosing(connection):
            yield connection
    finally:
        await engine.dispose()


def said_by(error: DBAPIError | OSError) -> str:
    """Message of the server, without the statement and its values."""
    if isinstance(error, OSError):
        return str(error) or type(error).__name__
    said = (error.orig and error.orig.__cause__) or error.orig
    return str(said.args[-1]) if said and said.args else type(error).__name__
