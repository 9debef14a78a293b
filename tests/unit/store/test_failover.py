"""After a fail-over: connections to a server that only reads are let go, and while writes fail nobody says ready."""

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from sqlalchemy import insert, make_url, select, text

from pupitre.errors import Unavailable
from pupitre.net.ops import Ops
from pupitre.store.schema import gates
from pupitre.store.sql.engine import Database
from pupitre.store.sql.health import telling
from tests.rigs import databases
from tests.rigs.database_servers import Provisioned
from tests.rigs.local_cluster import eventually

pytestmark = pytest.mark.anyio


async def write(database: Database, key: str) -> None:
    async with database.write() as connection:
        await connection.execute(insert(gates).values(user_id=key, last=1))


async def keys(database: Database) -> list[str]:
    async with database.read() as connection:
        return (await connection.execute(select(gates.c.user_id).order_by(gates.c.user_id))).scalars()


async def administer(provisioned: Provisioned, *statements: str) -> None:
    """Statements of the server's administrator, each on its own."""
    place = provisioned.settings.database_url("commands", "owner")
    url = provisioned.server.url.set(database=make_url(place).database)
    database = Database(url.render_as_string(hide_password=False), notify_dir=provisioned.settings.notify_dir)
    async with databases.closing(database):
        for statement in statements:
            await database.select(text(statement))


def user_of(database: Database) -> str:
    return str(database.url.username)


async def test_read_only_sessions_replaced_when_new_ones_write(tmp_path: Path, each_server: Provisioned) -> None:
    """As after a fail-over behind one address: what is connected stays at the server that only reads."""
    async with databases.database(tmp_path, "commands", "portal") as database:
        user, kind = user_of(database), database.kind
        make, unmake = {
            "postgresql": (
                f'ALTER ROLE "{user}" SET default_transaction_read_only = on',
                f'ALTER ROLE "{user}" RESET default_transaction_read_only',
            ),
            "mariadb": ("SET GLOBAL tx_read_only = on", "SET GLOBAL tx_read_only = off"),
        }[kind]
        await administer(each_server, make)
        try:
            # Several connections, all opened while this lasts; the first has the others discarded, which is not
            # done again within the same second.
            [first] = await asyncio.gather(write(database, "early"), return_exceptions=True)
            rest = await asyncio.gather(*(write(database, f"early {n}") for n in range(3)), return_exceptions=True)
        finally:
            await administer(each_server, unmake)
        assert {type(end) for end in (first, *rest)} == {Unavailable}, rest
        assert "read" in str(first).lower()
        for number in range(4):
            await write(database, f"late {number}")
        assert await keys(database) == [f"late {number}" for number in range(4)]
        assert database.health.reason is None


async def test_server_that_only_reads_is_not_ready_until_it_writes(tmp_path: Path, each_server: Provisioned) -> None:
    """Reads go on; readiness goes by writes, and comes back by itself."""
    kind = each_server.server.kind
    away, back = {
        "postgresql": ("ALTER SYSTEM SET default_transaction_read_only = on", "ALTER SYSTEM RESET ALL"),
        "mariadb": ("SET GLOBAL read_only = on", "SET GLOBAL read_only = off"),
    }[kind]
    reload = ("SELECT pg_reload_conf()",) if kind == "postgresql" else ()
    ops = Ops("test")
    ops.ready()

    def is_ready() -> bool:
        return b"pupitre_ready 1.0" in generate_latest(ops.registry)

    async with databases.database(tmp_path, "commands", "portal") as database, telling(ops, database):
        await write(database, "before")
        assert is_ready()
        await administer(each_server, away, *reload)
        try:

            async def refused() -> bool:
                try:
                    await write(database, "during")
                except Unavailable:
                    return True
                async with database.write() as connection:
                    await connection.execute(gates.delete().where(gates.c.user_id == "during"))
                return False

            await eventually(refused)
            await eventually(lambda: not is_ready())
            assert await keys(database) == ["before"], "reading goes on"
            assert "read" in str(database.health.reason)
        finally:
            await administer(
                each_server, "SET default_transaction_read_only = off" if reload else "DO 0", back, *reload
            )
        await eventually(is_ready)
        await write(database, "later")
        assert await keys(database) == ["before", "later"]


async def test_sessions_the_server_ends_are_replaced_unseen(tmp_path: Path, each_server: Provisioned) -> None:
    async with databases.database(tmp_path, "commands", "portal") as database:
        await asyncio.gather(*(write(database, str(n)) for n in range(4)))
        user = user_of(database)
        if each_server.server.kind == "postgresql":
            end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{user}'"  # noqa: S608
        else:
            end = f"KILL SOFT USER '{user}'@'%'"
        await administer(each_server, end)
        await asyncio.gather(*(write(database, str(n)) for n in range(4, 12)))
        assert len(await keys(database)) == 12


async def test_replaced_file_of_sqlite_is_opened_anew(tmp_path: Path) -> None:
    """What is written after a backup was put in place goes into that file, not into the one that is gone."""
    async with databases.database(tmp_path, "commands") as database:
        path = Path(str(database.url.database))
        await write(database, "old")
        backup = tmp_path / "backup.sqlite"
        with contextlib.closing(sqlite3.connect(path)) as file:
            file.execute("VACUUM INTO ?", (str(backup),))
        await write(database, "lost with the old file")
        backup.replace(path)
        for leftover in (path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
            leftover.unlink()
        await asyncio.gather(*(keys(database) for _ in range(3)))
        await write(database, "new")
        assert await keys(database) == ["new", "old"]
