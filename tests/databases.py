"""Real databases of one test, made by the migrations."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from pupitre.store import migrate
from pupitre.store.commands import Commands
from pupitre.store.engine import Database
from pupitre.store.status import Status


def url(folder: Path, name: str) -> str:
    """The address of the database ``name``, made if it is not there."""
    address = f"sqlite+aiosqlite:///{folder / name}.sqlite"
    migrate.upgrade(name, address)
    return address


@asynccontextmanager
async def database(folder: Path, name: str, *, read_only: bool = False) -> AsyncIterator[Database]:
    opened = Database(url(folder, name), bells=folder / "bells", read_only=read_only)
    try:
        yield opened
    finally:
        await opened.close()


@asynccontextmanager
async def commands(folder: Path) -> AsyncIterator[Commands]:
    async with database(folder, "commands") as opened:
        yield Commands(opened)


@asynccontextmanager
async def status(folder: Path, *, read_only: bool = False) -> AsyncIterator[Status]:
    async with database(folder, "status", read_only=read_only) as opened:
        yield Status(opened)
