"""A server of PostgreSQL or MariaDB as its administrator sees it: users, databases, and who may enter them.

Names are of letters, digits and ``_`` (`pupitre.store.admin.provision` sees to it), so they
may stand in a statement.
"""

import base64
import hashlib
import hmac
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import ClassVar

from sqlalchemy import URL, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from pupitre.errors import SetupError, Unavailable
from pupitre.store.sql.deadline import Deadline
from pupitre.timings import ADMIN_CONNECT

ITERATIONS = 4096
"""Of SCRAM-SHA-256, as PostgreSQL itself takes; the passwords are random."""


class Server(ABC):
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
            async with _connected(address.set(drivername=self.driver, database=database)):
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


class PostgresServer(Server):
    kind, driver, first, port = "postgresql", "postgresql+asyncpg", "postgres", 5432

    async def lock(self) -> None:
        await self._do("SELECT pg_advisory_lock(7074169)")

    async def has_user(self, user: str) -> bool:
        return await self._found("SELECT 1 FROM pg_roles WHERE rolname = :name", name=user)

    async def create_user(self, user: str, password: str) -> None:
        await self._do(f"CREATE ROLE \"{user}\" LOGIN PASSWORD '{scram(password)}'")

    async def set_password(self, user: str, password: str) -> None:
        await self._do(f"ALTER ROLE \"{user}\" LOGIN PASSWORD '{scram(password)}'")

    async def has_database(self, database: str) -> bool:
        return await self._found("SELECT 1 FROM pg_database WHERE datname = :name", name=database)

    async def create_database(self, database: str, *, owner: str) -> None:
        if not await self._found("SELECT 1 FROM pg_roles WHERE rolname = current_user AND rolsuper"):
            # Who is no superuser can make a database only for a role that it belongs to.
            await self._do(f'GRANT "{owner}" TO CURRENT_USER')
        # By code point, as SQLite and MariaDB sort and compare.
        await self._do(
            f'CREATE DATABASE "{database}" OWNER "{owner}" TEMPLATE template0'
            " ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'"
        )

    async def admit(self, database: str, *, owner: str, users: Sequence[str]) -> None:
        everyone = ", ".join(f'"{user}"' for user in users)
        async with _connected(self._root.set(drivername=self.driver, database=database)) as inside:
            for statement in (
                f'REVOKE ALL ON DATABASE "{database}" FROM PUBLIC',
                f'GRANT CONNECT ON DATABASE "{database}" TO {everyone}',
                "REVOKE ALL ON SCHEMA public FROM PUBLIC",
                f'GRANT ALL ON SCHEMA public TO "{owner}"',
                f"GRANT USAGE ON SCHEMA public TO {everyone}",
            ):
                await inside.exec_driver_sql(statement)


class MariaServer(Server):
    kind, driver, first, port = "mariadb", "mariadb+asyncmy", None, 3306

    async def lock(self) -> None:
        await self._do("SELECT GET_LOCK('pupitre', 600)")

    async def has_user(self, user: str) -> bool:
        return await self._found("SELECT 1 FROM mysql.user WHERE User = :name AND Host = '%'", name=user)

    async def create_user(self, user: str, password: str) -> None:
        await self._do(f"CREATE USER '{user}'@'%%' IDENTIFIED BY PASSWORD '{native(password)}'")

    async def set_password(self, user: str, password: str) -> None:
        await self._do(f"ALTER USER '{user}'@'%%' IDENTIFIED BY PASSWORD '{native(password)}'")

    async def has_database(self, database: str) -> bool:
        return await self._found("SELECT 1 FROM information_schema.schemata WHERE schema_name = :name", name=database)

    async def create_database(self, database: str, *, owner: str) -> None:
        # By code point, as SQLite and PostgreSQL sort and compare.
        await self._do(f"CREATE DATABASE `{database}` CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin")

    async def admit(self, database: str, *, owner: str, users: Sequence[str]) -> None:
        # A user enters by its privileges on tables; in the name of a database _ would stand for any letter.
        escaped = database.replace("_", "\\_")
        await self._do(f"GRANT ALL ON `{escaped}`.* TO '{owner}'@'%%' WITH GRANT OPTION")
        await self._do(f"GRANT SELECT ON mysql.tables_priv TO '{owner}'@'%%'")  # to see what it has granted


@asynccontextmanager
async def open_server(root: URL) -> AsyncIterator[Server]:
    """The server at its administrator's address, for one set-up at a time. Raises `SetupError` and `Unavailable`."""
    kinds: dict[str, type[Server]] = {"postgresql": PostgresServer, "mariadb": MariaServer, "mysql": MariaServer}
    kind = kinds.get(root.get_backend_name())
    if kind is None:
        raise SetupError(f"There is no server of {root.get_backend_name()}.", "Use postgresql://… or mariadb://…")
    try:
        async with _connected(root.set(drivername=kind.driver, database=root.database or kind.first)) as connection:
            server = kind(root, connection)
            await server.lock()
            yield server
    except (DBAPIError, OSError) as error:
        where = root.render_as_string(hide_password=True)
        raise Unavailable(f"{where} does not do what is needed: {said_by(error)}") from error


@asynccontextmanager
async def _connected(url: URL) -> AsyncIterator[AsyncConnection]:
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


def scram(password: str) -> str:
    """Verifier that PostgreSQL keeps of a password (RFC 5803)."""
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, ITERATIONS)
    client = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    words = [base64.b64encode(word).decode() for word in (salt, client, server)]
    return f"SCRAM-SHA-256${ITERATIONS}:{words[0]}${words[1]}:{words[2]}"


def native(password: str) -> str:
    """Hash that MariaDB keeps of a password (mysql_native_password); safe for random ones, as ours are."""
    inner = hashlib.sha1(password.encode(), usedforsecurity=False).digest()
    return "*" + hashlib.sha1(inner, usedforsecurity=False).hexdigest().upper()
