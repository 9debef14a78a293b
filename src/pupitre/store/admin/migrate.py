"""Making and upgrading the databases, by Alembic; both may be repeated, and by several at once.

Each upgrade holds a lock of its database from the look at its revision to the last
commit, so that of two at once one does it and the other finds it done.
"""

import asyncio
import fcntl
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, insert, make_url, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from pupitre.config import DatabaseName, DatabaseRole, Settings
from pupitre.errors import SetupError, Unavailable
from pupitre.store.admin.grants import ACCESS, ensure_grants
from pupitre.store.admin.kinds import KINDS
from pupitre.store.admin.kinds.base import said_by
from pupitre.store.schema import DATABASES
from pupitre.store.sql.deadline import Deadline
from pupitre.timings import ADMIN_CONNECT

T = TypeVar("T")


def upgrade_all(settings: Settings) -> list[str]:
    """Make and upgrade all four, as their owner; the names of those that changed."""
    return [name for name in DATABASES if upgrade(name, settings.database_url(name), users_of(settings, name))]


def upgrade(name: DatabaseName, url: str, users: Mapping[DatabaseRole, str] | None = None) -> bool:
    """Bring the database ``name`` at ``url`` up to date; True when anything was done.

    ``users`` then have exactly their role's privileges, where the database is on a server.
    """
    path = _file(url)
    if path is not None and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(0o600)
    return _run(_upgrade(name, url, users or {}))


def current(url: str) -> str | None:
    """The revision of the database, None when it was never made. Raises `Unavailable`."""
    path = _file(url)
    if path is not None and not path.exists():
        return None
    return inspect(url, lambda connection: MigrationContext.configure(connection).get_current_revision())


def head(name: str) -> str | None:
    """The newest revision of the database ``name``."""
    with as_file(files("pupitre.store") / "migrations") as folder:
        return ScriptDirectory.from_config(_config(folder, name)).get_current_head()


def users_of(settings: Settings, name: DatabaseName) -> dict[DatabaseRole, str]:
    """Users that the file of addresses names for each role of this database."""
    addresses = settings.database_urls() or {}
    return {role: str(make_url(addresses[role][name]).username) for role in ACCESS if name in addresses.get(role, {})}


def inspect(url: str, look: Callable[[Connection], T]) -> T:
    """Result of ``look`` in the database. Raises `Unavailable`."""

    async def inspected() -> T:
        async with _connected(url) as connection:
            return await connection.run_sync(look)

    return _run(inspected())


async def _upgrade(name: DatabaseName, url: str, users: Mapping[DatabaseRole, str]) -> bool:
    async with _connected(url) as connection:
        await connection.exec_driver_sql(KINDS[connection.engine.url.get_backend_name()].lock)
        changed = await connection.run_sync(_migrate, name)
        await _seed(connection, name)
        if users:
            changed |= await ensure_grants(connection, name, users)
        await connection.commit()
    return changed


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[AsyncConnection]:
    """Alembic speaks by SQLAlchemy's own connections. Raises `SetupError` and `Unavailable`."""
    where = make_url(url)
    name = where.get_backend_name()
    if name not in KINDS:
        raise SetupError(f"{name} is not a database that Pupitre knows.", f"Use one of {', '.join(KINDS)}.")
    kind = KINDS[name]
    engine = create_async_engine(where.set(drivername=kind.driver), poolclass=NullPool)
    kind.prepare(engine.sync_engine)
    try:
        with _alone(_file(url)):
            with Deadline(ADMIN_CONNECT):
                connection = await engine.connect()
            async with aclosing(connection):
                await kind.check(connection)
                yield connection
    except (DBAPIError, OSError) as error:
        raise Unavailable(f"The database {where.database} is not upgraded: {said_by(error)}") from error
    finally:
        await engine.dispose()


@contextmanager
def _alone(path: Path | None) -> Iterator[None]:
    """Wait for others that migrate a file: where two make it at once, SQLite tells one of them that it is locked."""
    if path is None:
        yield
        return
    folder = os.open(path.parent, os.O_RDONLY)  # not the file: to close it would take SQLite's own locks away
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _migrate(connection: Connection, name: DatabaseName) -> bool:
    with as_file(files("pupitre.store") / "migrations") as folder:
        config = _config(folder, name)
        config.attributes.update(connection=connection, metadata=DATABASES[name])
        held = MigrationContext.configure(connection).get_current_revision()
        if held == ScriptDirectory.from_config(config).get_current_head():
            return False
        command.upgrade(config, "head")
        return True


async def _seed(connection: AsyncConnection, name: DatabaseName) -> None:
    """Counters start at nought."""
    for table in ("counter", "epochs", "news"):
        found = DATABASES[name].tables.get(table)
        if found is not None and (await connection.execute(select(found.c.id))).first() is None:
            await connection.execute(insert(found).values(id=1, value=0))


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Finish ``work`` on a loop of its own, whether or not the caller is on one."""
    result: list[T | BaseException] = []

    def finish() -> None:
        try:
            result.append(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            result.append(error)

    thread = threading.Thread(target=finish, name="migrate")
    thread.start()
    thread.join()
    [outcome] = result
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def _config(folder: Path, name: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(folder))
    config.set_main_option("version_locations", str(folder / "versions" / name))
    config.set_main_option("path_separator", "os")
    return config


def _file(url: str) -> Path | None:
    parsed = make_url(url)
    return Path(parsed.database or "") if parsed.get_backend_name() == "sqlite" else None
