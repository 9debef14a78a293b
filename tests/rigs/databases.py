"""Real databases of one test, made by the migrations.

They are SQLite's in the test's folder, or, where `place` put a file of addresses into
it, those of this worker's PostgreSQL or MariaDB server. Code under test that has its
settings from that folder meets the same databases.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from pupitre.config import DatabaseName, DatabaseRole, Settings
from pupitre.store.admin import migrate
from pupitre.store.commands import Commands
from pupitre.store.sql.engine import Database
from pupitre.store.status import Status


def url(folder: Path, name: DatabaseName, role: DatabaseRole = "owner") -> str:
    """The address of the database ``name`` for ``role``, made if it is not there."""
    for above in (folder, *folder.parents):
        if (above / "databases.json").exists():
            return Settings(home=above).database_url(name, role)
    address = f"sqlite+aiosqlite:///{folder / name}.sqlite"
    migrate.upgrade(name, address)
    return address


@asynccontextmanager
async def database(
    folder: Path, name: DatabaseName, role: DatabaseRole = "owner", *, read_only: bool = False
) -> AsyncIterator[Database]:
    opened = Database(url(folder, name, role), notify_dir=folder / "notify", read_only=read_only, poll=0.1)
    async with closing(opened):
        yield opened


@asynccontextmanager
async def closing(database: Database) -> AsyncIterator[Database]:
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def commands(folder: Path) -> AsyncIterator[Commands]:
    async with database(folder, "commands") as opened:
        yield Commands(opened)


@asynccontextmanager
async def status(folder: Path, *, read_only: bool = False) -> AsyncIterator[Status]:
    async with database(folder, "status", read_only=read_only) as opened:
        yield Status(opened)


@asynccontextmanager
async def out_of_order(path: Path) -> AsyncIterator[None]:
    """SQLite's file is there and answers nothing of use: a table is gone for as long as this lasts."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=10, check_same_thread=False)) as file:
        # In a thread: who holds the lock may be waiting for this event loop.
        await asyncio.to_thread(file.execute, "ALTER TABLE counter RENAME TO counter_away")
        try:
            yield
        finally:
            await asyncio.to_thread(file.execute, "ALTER TABLE counter_away RENAME TO counter")
